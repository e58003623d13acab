"""The command ``pyinit`` of the rescue shell."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pyinit.config import devspec
from pyinit.config.cmdline import OVERRIDES
from pyinit.config.cmdline import parse as parse_command_line
from pyinit.config.distance import closest
from pyinit.config.options import OPTIONS, BootConfig, boot_config, help_text
from pyinit.config.sealed import CONFIG_PATH, SealedConfig, parse_config
from pyinit.devices.view import DeviceView
from pyinit.errors import BootError
from pyinit.kernel.ending import ACTIONS, end_machine
from pyinit.kernel.files import read_if_there
from pyinit.kernel.patience import Patience
from pyinit.record import PATH as RECORD_PATH
from pyinit.record import decode, timeline
from pyinit.rescue.explain import FAILURE_PATH, render
from pyinit.rescue.shell import CONTINUE_PATH, STAGE_VARIABLE
from pyinit.text import printable

# What this program is under other names: see pyinit.rescue.small.
SMALL = ("chroot", "clear", "df", "head", "ps", "touch")


class UsageError(Exception):
    """The words after a command are not what it takes."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 when it worked, 1 when not, 2 when it was not understood."""
    if arguments is None:
        arguments = sys.argv[1:]
        called = os.path.basename(sys.argv[0])
        if called in ACTIONS:
            # "reboot -f", as hands have learnt it.
            arguments = [called]
        elif called in SMALL:
            from pyinit.rescue import small

            return small.run(called, arguments)
    name, rest = (arguments[0], arguments[1:]) if arguments else ("help", [])
    if name in ("-h", "--help"):
        name = "help"
    command = COMMANDS.get(name)
    if command is None:
        near = closest(name, tuple(COMMANDS), 3)
        hint = f"; did you mean {near}?" if near else ""
        print(f"pyinit: there is no command {printable(name)}{hint}\n\n{usage()}", file=sys.stderr)
        return 2
    try:
        return command.run(rest)
    except UsageError as error:
        print(f"pyinit {name}: {error}", file=sys.stderr)
        print(f"usage: pyinit {name} {command.words}".rstrip(), file=sys.stderr)
        return 2
    except BootError as error:
        print("\n".join(render(error, os.environ.get(STAGE_VARIABLE, ""))), file=sys.stderr)
        return 1
    except OSError as error:
        what = f"{printable(str(error.filename))}: {error.strerror}" if error.filename else str(error)
        print(f"pyinit {name}: {what}", file=sys.stderr)
        return 1


def usage() -> str:
    """All commands, a line each, and how to go on."""
    heads = {name: f"pyinit {name} {command.words}".rstrip() for name, command in COMMANDS.items()}
    width = max(map(len, heads.values())) + 2
    lines = [f"  {heads[name]:<{width}}{command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        (
            "pyinit: what can be done here",
            "",
            *lines,
            "",
            "Leave the shell (exit, Ctrl-D) to try again from the stage that failed. If the root is",
            "mounted on /sysroot by then, the boot goes on with it. Keys: Tab completes, the arrows",
            "edit and recall lines, Ctrl-R searches them.",
        )
    )


def _help(words: list[str]) -> int:
    _none(words)
    print(usage())
    return 0


def _status(words: list[str]) -> int:
    from pyinit.rescue.status import gather, status

    _none(words)
    print("\n".join(status(gather(_record(), _failure(), read_if_there(OVERRIDES)))))
    return 0


def _explain(words: list[str]) -> int:
    from pyinit.rescue.codes import HELP, tell

    if len(words) > 1:
        raise UsageError("it takes one code")
    if words:
        code = words[0].upper()
        code = code if code.startswith("E-") else f"E-{code}"
        if code not in HELP:
            raise UsageError(f"there is no code {printable(words[0])}; the codes are {', '.join(HELP)}")
        print("\n".join(tell(code)))
        return 0
    lines = _failure()
    print("\n".join(lines) if lines else "Nothing has failed: this shell was asked for.")
    return 0


def _devices(words: list[str]) -> int:
    from pyinit.rescue.missing import present

    _none(words)
    print("\n".join(present(_enumerate())))
    return 0


def _set(words: list[str]) -> int:
    if not words:
        raise UsageError("it needs words, as in pyinit set root=UUID=...")
    os.makedirs(os.path.dirname(OVERRIDES), exist_ok=True)
    line = " ".join(_quoted(word) for word in words)
    with open(OVERRIDES, "a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(f"{line}\n")
    config = boot_config(line.encode("utf-8", "surrogateescape"))
    for warning in (*config.warnings, *_misspelt(words)):
        print(f"Note: {warning}")
    for text in _not_there(config):
        print(f"{'    ' if text.startswith(' ') else 'Note: '}{text}")
    print("Leave the shell to try with it.")
    return 0


def _not_there(config: BootConfig) -> list[str]:
    try:
        from pyinit.rescue.missing import named, not_there

        return not_there(config, _enumerate()) if named(config) else []
    except Exception:
        return []  # The word is set, and the boot will say it.


def _misspelt(words: list[str]) -> list[str]:
    """Words that are nearly one of ours. Others may be for the real init or for a kernel module."""
    names = [option.name for option in OPTIONS]
    notes = []
    for word in words:
        if word == "--":
            break
        key = word.partition("=")[0]
        if key not in names and not key.startswith("rd.") and (near := closest(key, names, 2)):
            notes.append(
                f"{printable(key)} is set, but the initramfs knows no such word; did you mean {near}? "
                f"Then: pyinit set {near}{printable(word[len(key) :])}"
            )
    return notes


def _quoted(word: str) -> str:
    """Quote a word as the kernel's parser reads it: one pair of quotes around the whole value."""
    if '"' in word or not any(character.isspace() for character in word):
        return word
    key, equals, value = word.partition("=")
    return f'{key}="{value}"' if equals else f'"{word}"'


def _mount_root(words: list[str]) -> int:
    from pyinit import switch_root
    from pyinit.config.sealed import MODULES_PATH, parse_modules
    from pyinit.kernel.console import Console
    from pyinit.kernel.modules import Modules
    from pyinit.record import Record
    from pyinit.root import mount

    if not 1 <= len(words) <= 2:
        raise UsageError("it needs a device")
    if os.path.ismount(mount.SYSROOT):
        raise OSError(f"{mount.SYSROOT} has a mount already: umount {mount.SYSROOT} first")
    device = _named(words[0], _enumerate())
    options = words[1] if len(words) == 2 else ""
    plan = mount.root_mount(
        device.node, device.properties.get("ID_FS_TYPE", ""), options, "rw" in options.split(",")
    )
    console = Console(Record("", os.uname().release))
    lines = _command_lines()
    parameters = [word for line in lines for word in parse_command_line(line).words]
    blacklist = boot_config(*lines).drivers_never
    modules = Modules(parse_modules(read_if_there(MODULES_PATH)), console, parameters, blacklist)
    mount.mount_filesystem(plan, (), modules, console, Patience(console))
    print(f"{printable(device.node)} is mounted on {mount.SYSROOT}.")
    try:
        for warning in switch_root.check_root(mount.SYSROOT, None):
            print(f"Note: {warning}")
    except BootError as error:
        print(f"Note: {error.cause}")
    print("Leave the shell to go on with it.")
    return 0


def _report(words: list[str]) -> int:
    from pyinit.rescue import report

    force = "--force" in words
    words = [word for word in words if word != "--force"]
    if (words or force) and (len(words) != 2 or words[0] != "--to"):
        raise UsageError("it takes --to and one place, and --force")
    record = _record()
    try:
        image: SealedConfig | None = _image()
    except (OSError, BootError):
        image = None
    config = boot_config(*_command_lines()) if image else boot_config(read_if_there("/proc/cmdline"))
    text = report.compose(_failure(), record, _enumerate() if image else (), image)
    report.write_report(text)
    print(f"{report.REPORT_PATH} is written: {len(text)} bytes.")
    if not words:
        return 0
    place = words[1]
    path = place if place.startswith("/") else f"/dev/{place}"
    if "=" not in place and os.path.exists(path) and not _is_block(path):
        if config.report and os.path.exists(config.report) and os.path.samefile(config.report, path):
            raise OSError(
                f"{printable(path)} carries what rd.pyinit.report sends, for a program that reads it; "
                "a report in between would spoil it"
            )
        report.copy_to_terminal(path, text)
        print(f"Sent to {printable(path)}.")
        return 0
    devices = _enumerate()
    device = _named(place, devices)
    reasons = report.look_at_target(device, devices, config)
    if reasons and not force:
        raise OSError(
            f"nothing was written to {printable(device.node)}: {'; '.join(reasons)}. "
            f"To write to it all the same: pyinit report --to {printable(place)} --force"
        )
    known = json.dumps(report.masked(record), indent=1).encode("ascii")
    folder = report.copy_to_disk(device, {"report.txt": text, "boot.json": known})
    print(f"Copied to {printable(device.node)}, directory {folder}.")
    return 0


def _timeline(words: list[str]) -> int:
    _none(words)
    print("\n".join(timeline(_record())))
    return 0


def _options(words: list[str]) -> int:
    _none(words)
    print(help_text())
    return 0


def _python(words: list[str]) -> int:
    import code

    from pyinit.kernel import mountinfo

    _none(words)
    names = {
        "record": _record(),
        "image": _image(),
        "config": boot_config(*_command_lines()),
        "devices": _enumerate(),
        "mounts": mountinfo.read(),
    }
    banner = f"The boot's own objects: {', '.join(names)}. Ctrl-D leaves."
    # What everybody types comes from site.py, which is not in the image.
    code.interact(banner, local={**names, "exit": sys.exit, "quit": sys.exit}, exitmsg="")
    return 0


def _go_on(words: list[str]) -> int:
    """End the shell: the leader of this session. It is what leaving it by hand does."""
    _none(words)
    leader = os.getsid(0)
    if not os.environ.get(STAGE_VARIABLE) or leader <= 1:
        raise OSError("this is not the rescue shell of a boot")
    with open(CONTINUE_PATH, "wb"):
        pass
    os.kill(leader, signal.SIGHUP)
    return 0


def _end(action: str) -> Callable[[list[str]], int]:
    def run(words: list[str]) -> int:
        _none(words)
        end_machine(action)

    return run


class Command(NamedTuple):
    """One command: the words it takes, what it does."""

    words: str
    help: str
    run: Callable[[list[str]], int]


COMMANDS: dict[str, Command] = {
    "status": Command("", "where the boot stands", _status),
    "explain": Command("[CODE]", "why the boot stopped, once more; what a code means", _explain),
    "devices": Command("", "the block devices, with UUIDs and labels", _devices),
    "set": Command("WORD...", "change the kernel command line: pyinit set root=UUID=...", _set),
    "options": Command("", "the words that can be set", _options),
    "mount-root": Command("DEVICE [OPTIONS]", "mount a device as the root, read-only unless rw", _mount_root),
    "retry": Command("", "leave the shell and try again what failed", _go_on),
    "continue": Command("", "the same, after rd.break", _go_on),
    "timeline": Command("", "what was done so far, and how long it took", _timeline),
    "report": Command("[--to PLACE [--force]]", "write a report; to a stick, to ttyS0 as well", _report),
    "python": Command("", "a Python console with the boot's objects", _python),
    **{name: Command("", f"{name} the machine, disks written out", _end(name)) for name in ACTIONS},
    "help": Command("", "this list", _help),
}


def _none(words: Sequence[str]) -> None:
    if words:
        raise UsageError("it takes no further words")


def _image() -> SealedConfig:
    with open(CONFIG_PATH, "rb") as file:
        return parse_config(file.read())


def _command_lines() -> tuple[bytes, ...]:
    """Those that count for the next try, later ones more."""
    sealed = _image().cmdline.encode("utf-8", "surrogateescape")
    return sealed, read_if_there("/proc/cmdline"), *read_if_there(OVERRIDES).splitlines()


def _record() -> dict[str, Any]:
    with open(RECORD_PATH, "rb") as file:
        data = file.read()
    try:
        return decode(data)
    except ValueError as error:
        raise OSError(f"{RECORD_PATH} holds no boot record: {error}") from error


def _failure() -> list[str]:
    return read_if_there(FAILURE_PATH).decode("ascii", "backslashreplace").splitlines()


def _enumerate() -> list[DeviceView]:
    from pyinit.devices.udev import Devices
    from pyinit.rescue.probe import probed

    return probed(Devices(_image().libraries).enumerate())


def _named(text: str, devices: list[DeviceView]) -> DeviceView:
    """The one device that a person named as root= would; OSError when there is none, or more than one."""
    if "=" not in text and not text.startswith("/"):
        text = f"/dev/{text}"
    found = devspec.resolve(devspec.parse_spec(text), devices)
    if len(found) != 1:
        many = f"{len(found)} devices are" if found else "no block device is"
        raise OSError(f"{many} {printable(text)}; see pyinit devices")
    return found[0]


def _is_block(path: str) -> bool:
    from stat import S_ISBLK

    return S_ISBLK(os.stat(path).st_mode)


if __name__ == "__main__":
    sys.exit(main())
