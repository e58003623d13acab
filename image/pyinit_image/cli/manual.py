"""The manual page and the completion of shells, from the parser of the command line."""

from __future__ import annotations

import argparse

import shtab

from pyinit import VERSION

SHELLS = ("bash", "zsh", "tcsh")


def completion(parser: argparse.ArgumentParser, shell: str) -> int:
    """Print what ``shell`` has to read so that it completes the command."""
    print(shtab.complete(parser, shell))
    return 0


def page(parser: argparse.ArgumentParser) -> int:
    """Print the manual page, for man(7)."""
    print(roff(parser))
    return 0


def roff(parser: argparse.ArgumentParser) -> str:
    """The manual page of ``parser`` and its commands."""
    lines = [f'.TH PYINIT-IMAGE 8 "" "pyinit {VERSION}" "System administration"']
    lines += [".SH NAME", r"pyinit\-image \- " + _text("build initramfs images and look into them")]
    lines += [".SH SYNOPSIS", r".B pyinit\-image", ".I COMMAND", "[...]"]
    lines += [".SH DESCRIPTION", _text(parser.description or "")]
    lines += [".SH COMMANDS"]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help for choice in action._choices_actions}
            for name, command in action.choices.items():
                lines += _command(name, command, helps.get(name) or "")
    examples, _, status = (parser.epilog or "").partition("exit status:")
    lines += [".SH EXAMPLES", ".nf", _text(examples.partition("\n")[2].rstrip()), ".fi"]
    lines += [".SH EXIT STATUS", _text(status.strip()), ".SH FILES"]
    lines += [
        _text("/etc/pyinit/image.toml, /etc/pyinit/image.toml.d/*.toml, and the same in /usr/lib/pyinit")
    ]
    return "\n".join(lines)


def _command(name: str, command: argparse.ArgumentParser, summary: str) -> list[str]:
    usage = " ".join(command.format_usage().split()[1:])
    lines = [f".SS {_text(name)}", _text(command.description or f"{summary[:1].upper()}{summary[1:]}.")]
    lines += [".PP", _text(usage)]
    for action in command._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        shown = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        if action.option_strings and action.nargs != 0:
            value = action.metavar or "|".join(map(str, action.choices or ())) or action.dest.upper()
            shown += f" {value}"
        text = (action.help or "") % {"default": action.default}
        lines += [".TP", f".B {_text(shown)}", _text(text) or r"\&"]
    if command.epilog:
        lines += [".PP", _text(command.epilog)]
    return lines


def _text(text: str) -> str:
    """``text`` as roff takes it (groff(7)): no line starts a request, dashes stay dashes."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(f"\\&{line}" if line[:1] in (".", "'") else line for line in escaped.splitlines())
