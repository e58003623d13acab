"""The command ``pyinit`` of the rescue shell."""

from __future__ import annotations

import json
import os
import sys

from pyinit.config.distance import closest
from pyinit.config.options import OPTIONS, boot_config, help_text
from pyinit.config.sealed import CONFIG_PATH, parse_config
from pyinit.errors import BootError
from pyinit.record import PATH as RECORD_PATH
from pyinit.record import timeline
from pyinit.rescue.explain import FAILURE_PATH
from pyinit.rescue.shell import ACTIONS, OVERRIDES, end_machine
from pyinit.text import printable

USAGE = """\
pyinit: what can be done here

  pyinit explain          why the boot stopped, once more
  pyinit devices          the block devices, with UUIDs and labels
  pyinit set WORD...      change the kernel command line for the next try: pyinit set root=UUID=...
  pyinit options          the words of the kernel command line that can be set
  pyinit timeline         what was done so far, and how long it took
  pyinit reboot | poweroff | halt

Leave the shell (exit, Ctrl-D) to try again from the stage that failed. If you mounted the root
yourself on /sysroot, the boot goes on with it.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 when it worked, 1 when not, 2 for a command that does not exist."""
    if arguments is None:
        arguments = sys.argv[1:]
    command, rest = (arguments[0], arguments[1:]) if arguments else ("help", [])
    simple = {
        "explain": _explain,
        "devices": _devices,
        "timeline": _timeline,
        "options": _options,
        "help": _help,
    }
    try:
        if command == "set" and rest:
            return _set(rest)
        if command in ACTIONS and not rest:
            end_machine(command)
        if command in simple and not rest:
            return simple[command]()
    except (OSError, BootError) as error:
        print(f"pyinit {command}: {error}", file=sys.stderr)
        return 1
    if command in (*simple, *ACTIONS, "set"):
        what = (
            "needs words, as in: pyinit set root=UUID=..." if command == "set" else "takes no further words"
        )
        print(f"pyinit {command} {what}", file=sys.stderr)
    else:
        near = closest(command, (*simple, *ACTIONS, "set"), 3)
        hint = f"; did you mean {near}?" if near else ""
        print(f"pyinit: there is no command {printable(command)}{hint}\n\n{USAGE}", end="", file=sys.stderr)
    return 2


def _help() -> int:
    sys.stdout.write(USAGE)
    return 0


def _options() -> int:
    print(help_text())
    return 0


def _explain() -> int:
    try:
        with open(FAILURE_PATH, encoding="ascii") as file:
            sys.stdout.write(file.read())
    except FileNotFoundError:
        print("Nothing has failed: this shell was asked for with rd.break.")
    return 0


def _devices() -> int:
    from pyinit.devices.udev import Devices
    from pyinit.devices.waiting import describe

    with open(CONFIG_PATH, "rb") as file:
        config = parse_config(file.read())
    views = Devices(config.libraries).enumerate()
    for view in sorted(views, key=lambda view: view.number):
        print(describe(view))
    if not views:
        print("no block devices")
    return 0


def _set(words: list[str]) -> int:
    os.makedirs(os.path.dirname(OVERRIDES), exist_ok=True)
    line = " ".join(_quoted(word) for word in words)
    with open(OVERRIDES, "a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(f"{line}\n")
    for warning in (*boot_config(line.encode("utf-8", "surrogateescape")).warnings, *_misspelt(words)):
        print(f"Note: {warning}")
    print("Leave the shell to try with it.")
    return 0


def _misspelt(words: list[str]) -> list[str]:
    """Words that are nearly one of ours. Others may be for the real init or for a kernel module."""
    names = [option.name for option in OPTIONS]
    notes = []
    for word in words:
        key = word.partition("=")[0]
        if key not in names and not key.startswith("rd.") and (near := closest(key, names, 2)):
            notes.append(f"{printable(key)} is not known; did you mean {near}?")
    return notes


def _quoted(word: str) -> str:
    """Quote a word as the kernel's parser reads it: one pair of quotes around the whole value."""
    if '"' in word or not any(character.isspace() for character in word):
        return word
    key, equals, value = word.partition("=")
    return f'{key}="{value}"' if equals else f'"{word}"'


def _timeline() -> int:
    with open(RECORD_PATH, "rb") as file:
        print("\n".join(timeline(json.load(file))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
