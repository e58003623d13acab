"""What a build is told: one table of options, and the files and command line that set them.

From the weakest to the strongest: the built-in default, ``/usr/lib/pyinit/image.toml``, its drop-ins
``image.toml.d/*.toml`` in the order of their names, the same two below ``/etc/pyinit``, the command line. A
drop-in in ``/etc`` hides the one of the same name in ``/usr/lib``. A later single value takes the place of an
earlier one; lists add up. With ``--sysroot`` the files of the sysroot are read, never those of this machine.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyinit.config.distance import closest
from pyinit.text import printable

from . import compress, microcode
from .access import RESCUE
from .build import FORMATS, MODES
from .errors import BuildError
from .sysroot import Sysroot, read_regular

DIRECTORIES = ("/usr/lib/pyinit", "/etc/pyinit")
NAME = "image.toml"
#: Bytes of a configuration file; more is a mistake.
MAX_SIZE = 1 << 20


@dataclass(frozen=True, slots=True)
class Option:
    """One option of ``pyinit-image build`` and key of the configuration files."""

    name: str
    """The key; with two dashes the option."""
    help: str
    default: str | bool = ""
    """The value when nobody sets it; that of a list is always the empty list."""
    metavar: str = ""
    choices: tuple[str, ...] = ()
    many: bool = False
    """A list of strings; repeatable on the command line."""
    file: bool = False
    """The value names a file or directory of this machine."""
    flag: bool = False
    """True or false."""
    in_files: bool = True
    """Whether configuration files may set it."""


OPTIONS = (
    Option("kernel-version", "release of the kernel (default: the only or the running one)", metavar="V"),
    Option("sysroot", "system to build for", "/", "DIR", file=True, in_files=False),
    Option(
        "mode",
        "generic: any machine of this architecture; host: this machine, with a margin (docs/host-mode.md); "
        "list: only the modules named with --module and what they need",
        "generic",
        choices=MODES,
    ),
    Option(
        "module",
        "a kernel module or alias, such as ext4; loaded as soon as the boot starts",
        metavar="NAME",
        many=True,
    ),
    Option(
        "unsigned-modules",
        "leave out the signatures of kernel modules and the symbols that only debugging needs: they load in "
        "half of the time, the kernel counts as tainted (E), and with Secure Boot it refuses them",
        False,
        flag=True,
    ),
    Option(
        "devices",
        "build mode host for the machine that pyinit-image devices wrote this file on",
        metavar="FILE",
        file=True,
    ),
    Option(
        "format",
        "image: one file for a boot loader; list: a directory with initramfs.list for the kernel's "
        "CONFIG_INITRAMFS_SOURCE",
        "image",
        choices=FORMATS,
    ),
    Option(
        "microcode",
        "auto: put the microcode that the target system has in front; none: do not",
        "auto",
        choices=microcode.CHOICES,
    ),
    Option("compress", "compression of the image", "zstd", choices=compress.METHODS),
    Option(
        "include",
        "a file or directory of this machine (in a configuration file: of the target system), and its place "
        "in the image",
        metavar="SRC[:DST]",
        many=True,
        file=True,
    ),
    Option(
        "rescue",
        "who gets a shell when a boot fails: whoever sits there, who knows the password, or nobody, with no "
        "shell in the image at all (default: password if there is one, else none if the root is known to be "
        "encrypted, else open)",
        choices=RESCUE,
    ),
    Option(
        "rescue-password-file",
        "a file with the hash of the password for the rescue shell, as pyinit-image hash-password prints it",
        metavar="FILE",
        file=True,
    ),
    Option("feature", "add a feature, of pyinit or of an installed package", metavar="NAME", many=True),
    Option("no-feature", "leave a feature out", metavar="NAME", many=True),
    Option(
        "hook",
        "a Python file of boot hooks, beside those of /etc/pyinit/hooks.d",
        metavar="FILE",
        many=True,
        file=True,
    ),
    Option(
        "cache",
        "where layers are kept that later images can use again (default: /var/cache/pyinit-image for root, "
        "else ~/.cache/pyinit-image)",
        metavar="DIR",
        file=True,
        in_files=False,
    ),
    Option("no-cache", "keep and use no layers", False, flag=True),
    Option("cmdline", "words to stand before the kernel's command line", metavar="WORDS"),
    Option("quiet", "print errors and warnings only", False, flag=True),
)


@dataclass(frozen=True, slots=True)
class Setting:
    """One value and where it came from: a file with its line, ``--mode`` or ``default``."""

    value: str | bool
    origin: str


Settings = dict[str, tuple[Setting, ...]]
"""Every option by name. A list has any number of settings, every other option exactly one."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Give ``command`` the options of the table, and ``--config``. What is not given stays None."""
    for option in OPTIONS:
        text = option.help.replace("%", "%%")
        short = ["-q"] if option.name == "quiet" else []
        flag = f"--{option.name}"
        if option.flag:
            command.add_argument(*short, flag, action="store_true", default=None, help=text)
        elif option.many:
            text += " (repeatable)"
            command.add_argument(flag, action="append", metavar=option.metavar, help=text)
        else:
            text += f" (default: {option.default})" if option.default else ""
            command.add_argument(
                flag, choices=option.choices or None, metavar=option.metavar or None, help=text
            )
    command.add_argument(
        "--config", type=Path, metavar="FILE", help="read this file instead of those in /etc and /usr/lib"
    )


def effective(arguments: argparse.Namespace) -> Settings:
    """What the files of the target system and the parsed command line come to."""
    given = vars(arguments)
    sysroot = given.get("sysroot") or "/"
    layers = read(Sysroot(Path(sysroot)), given.get("config"))
    line: dict[str, tuple[Setting, ...]] = {}
    for option in OPTIONS:
        value = given.get(option.name.replace("-", "_"))
        if value is not None:
            values = value if option.many else [value]
            line[option.name] = tuple(Setting(item, f"--{option.name}") for item in values)
    return merge([*layers, line])


def merge(layers: Iterable[Mapping[str, tuple[Setting, ...]]]) -> Settings:
    """Lay ``layers`` over the defaults, the strongest last."""
    result: Settings = {
        option.name: () if option.many else (Setting(option.default, "default"),) for option in OPTIONS
    }
    for layer in layers:
        for option in OPTIONS:
            if option.name in layer:
                below = result[option.name] if option.many else ()
                result[option.name] = (*below, *layer[option.name])
    return result


def read(sysroot: Sysroot, file: Path | None = None) -> list[dict[str, tuple[Setting, ...]]]:
    """The settings of each configuration file, the weakest first; of ``file`` alone when it is given."""
    if file is not None:
        return [parse(read_regular(file)[0], str(file))]
    places: list[str] = []
    dropins = {
        name: f"{directory}/{NAME}.d/{name}"
        for directory in DIRECTORIES
        for name in sysroot.list(f"{directory}/{NAME}.d")
        if name.endswith(".toml")
    }
    for directory in DIRECTORIES:
        if sysroot.find(f"{directory}/{NAME}") is not None:
            places.append(f"{directory}/{NAME}")
        places += sorted(place for place in dropins.values() if place.startswith(f"{directory}/"))
    layers = []
    for place in places:
        found = sysroot.resolve(place)
        shown = str(sysroot.host(found.path if found else place))
        layers.append(parse(sysroot.read(place), shown, sysroot))
    return layers


def parse(data: bytes, name: str, sysroot: Sysroot | None = None) -> dict[str, tuple[Setting, ...]]:
    """Decode one file called ``name``; :class:`BuildError` has the file, the line and the nearest known key.

    Paths are taken below ``sysroot`` when the file is one of it.
    """
    shown = printable(name)
    if len(data) > MAX_SIZE:
        raise BuildError(
            f"{shown}: {len(data)} bytes are no configuration file; at most {MAX_SIZE} are read",
            hint="Name the right file, or remove this one.",
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BuildError(
            f"{shown} line {line}: not UTF-8, as TOML must be", hint="Save the file as UTF-8."
        ) from error
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError, OverflowError) as error:
        raise BuildError(
            f"{shown}: not TOML: {printable(str(error))}",
            hint='Lines look like this: mode = "generic" or module = ["ext4", "nvme"]',
        ) from error
    known = {option.name: option for option in OPTIONS if option.in_files}
    result: dict[str, tuple[Setting, ...]] = {}
    for key, value in document.items():
        number = find_line(text, key)
        where = f"{shown} line {number}" if number else shown
        if key not in known:
            near = closest(key[:80], known, 3)
            raise BuildError(
                f"{where}: the key {printable(key[:80])} is not known"
                + (f"; did you mean {near}?" if near else ""),
                hint="Known: " + ", ".join(known),
            )
        result[key] = _values(known[key], value, where, sysroot)
    return result


def find_line(text: str, key: str) -> int:
    """The line (from 1) where a top-level ``key`` stands; 0 when it is written with escapes."""
    word = re.escape(key)
    pattern = re.compile(rf"""[ \t]*\[*[ \t]*(?:{word}|"{word}"|'{word}')[ \t]*[.=\]]""")
    lines = text.split("\n")
    candidates = [number for number, line in enumerate(lines) if pattern.match(line)]
    for number in candidates[:20]:
        # The same words may stand within a string of several lines: what is before it must be whole.
        try:
            tomllib.loads("\n".join(lines[:number]))
        except (ValueError, RecursionError, OverflowError):
            continue
        return number + 1
    return 0


def _values(option: Option, value: Any, where: str, sysroot: Sysroot | None) -> tuple[Setting, ...]:
    if option.flag:
        if not isinstance(value, bool):
            raise BuildError(f"{where}: {option.name} is true or false", hint=f"Write: {option.name} = true")
        return (Setting(value, where),)
    items = value if option.many and isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in items) or option.many != isinstance(value, list):
        kind, example = ("a list of strings", '["..."]') if option.many else ("a string", '"..."')
        raise BuildError(f"{where}: {option.name} is {kind}", hint=f"Write: {option.name} = {example}")
    for item in items:
        if option.choices and item not in option.choices:
            raise BuildError(
                f"{where}: {option.name} cannot be {printable(item[:80])}",
                hint="Known: " + ", ".join(option.choices),
            )
        if "\0" in item:
            raise BuildError(f"{where}: {option.name} has a zero byte in it", hint="Remove it.")
        if option.file and not item.startswith("/"):
            raise BuildError(
                f"{where}: {option.name}: {printable(item[:80])} is not an absolute path",
                hint="Write it from the top of the system: /etc/example",
            )
    if option.file and sysroot is not None:
        items = [_below(option, item, sysroot) for item in items]
    return tuple(Setting(item, where) for item in items)


def _below(option: Option, item: str, sysroot: Sysroot) -> str:
    """The path on this machine of a file of the target; ``SRC:DST`` keeps its place in the image."""
    source, colon, target = item.partition(":") if option.name == "include" else (item, "", "")
    found = sysroot.resolve(source)
    if found is None:
        raise BuildError(
            f"{option.name}: {printable(source)} is missing in {printable(str(sysroot.root))}",
            hint="Remove it from the configuration, or install it in the target system.",
        )
    place = str(sysroot.host(found.path))
    return f"{place}:{target if colon else source}" if option.name == "include" else place


def value(settings: Settings, name: str) -> str:
    """The value of an option that is no list and no flag."""
    return str(settings[name][0].value)


def values(settings: Settings, name: str) -> tuple[str, ...]:
    """The values of a list."""
    return tuple(str(setting.value) for setting in settings[name])


def table(settings: Settings) -> dict[str, object]:
    """The settings as JSON has them: value (a list of them for lists) and origin of each."""
    result: dict[str, object] = {}
    for option in OPTIONS:
        rows = [{"value": setting.value, "from": setting.origin} for setting in settings[option.name]]
        result[option.name] = rows if option.many else rows[0]
    return result


def reference(options: Sequence[Option] = OPTIONS) -> str:
    """The section of docs/builder.md about the options."""
    lines = ["| key and option | value | default | what it does |", "|---|---|---|---|"]
    for option in options:
        key = f"`--{option.name}`" if not option.in_files else f"`{option.name}`, `--{option.name}`"
        kind = ", ".join(f"`{choice}`" for choice in option.choices)
        kind = kind or ("true or false" if option.flag else f"`{option.metavar}`")
        default = "" if option.many or option.default in ("", False) else f"`{option.default}`"
        lines.append(f"| {key} | {kind}{', a list' if option.many else ''} | {default} | {option.help} |")
    return "\n".join(lines) + "\n"
