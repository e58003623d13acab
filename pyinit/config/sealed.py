"""The configuration that the builder seals into an image, and the index of its kernel modules.

Both are JSON. The builder writes them with :func:`dump_config` and :func:`dump_modules`; PID 1 reads them
with :func:`parse_config` and :func:`parse_modules`, and treats anything unexpected as a damaged image.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple, NoReturn

from pyinit.errors import BootError

CONFIG_PATH = "/etc/pyinit/config.json"
MODULES_PATH = "/usr/lib/pyinit/modules.json"
DRIVERS_PATH = "/usr/lib/pyinit/drivers.txt"
SENTINEL_PATH = "/.pyinit-complete"
SCHEMA = 1


class SealedConfig(NamedTuple):
    """What was decided when the image was built."""

    kernel: str
    """Release of the kernel the image was built for, as ``uname -r`` prints it; empty for any."""
    mode: str
    """``generic``, ``host`` or ``list``."""
    rescue: str
    """Access policy of the rescue shell: ``open`` or ``none``."""
    cmdline: str
    """Words that stand before those of the kernel's own command line."""
    udevd: str
    """Path of the udev daemon in the image."""
    shell: str
    """Path of the rescue shell in the image; empty when there is none."""
    libraries: dict[str, str]
    """File names of the shared libraries that are looked up by short name: ``udev``, ``c``."""
    hooks: dict[str, list[str]] = {}  # noqa: RUF012 (nobody changes it)
    """By hook function: the names of the files that have it, in the order of their calls."""


class ModuleEntry(NamedTuple):
    """One kernel module of the image."""

    path: str
    """File name below the module directory, compressed or not."""
    needs: tuple[str, ...]
    """Every module that must be loaded before it, in loading order: dependencies and soft ones."""
    options: str
    """Parameters from modprobe.d, as finit_module takes them."""


class ModuleIndex(NamedTuple):
    """The kernel modules of the image, with all that modprobe would have looked up resolved at build time."""

    directory: str
    """``/usr/lib/modules/<release>``; ``""`` when the image has no modules."""
    modules: dict[str, ModuleEntry]
    """By module name, written with underscores."""
    aliases: tuple[tuple[str, str], ...]
    """(pattern, module name) of those modules: device aliases, ``fs-*`` and the like."""
    builtin: frozenset[str]
    """Names (underscores) of modules compiled into the kernel."""
    preload: tuple[str, ...]
    """Modules that are loaded at once, before any device was seen."""
    first: tuple[str, ...] = ()
    """Modules that make loading the others faster, on a CPU that can; loaded before all others."""


EMPTY_INDEX = ModuleIndex("", {}, (), frozenset(), ())


def parse_config(data: bytes) -> SealedConfig:
    """Decode the sealed configuration; :class:`BootError` ``E-IMAGE`` says what is wrong with it."""
    raw = _document(data, CONFIG_PATH)
    values: dict[str, str] = {}
    for key in ("kernel", "mode", "rescue", "cmdline", "udevd", "shell"):
        value = raw.get(key)
        if not isinstance(value, str):
            _damaged(CONFIG_PATH, f"{key} is not a string")
        values[key] = value
    libraries = raw.get("libraries")
    if not isinstance(libraries, dict) or not all(isinstance(v, str) for v in libraries.values()):
        _damaged(CONFIG_PATH, "libraries is not a table of strings")
    hooks = raw.get("hooks")
    if not isinstance(hooks, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in hooks.values()
    ):
        _damaged(CONFIG_PATH, "hooks is not a table of lists of strings")
    return SealedConfig(**values, libraries=libraries, hooks=hooks)


def dump_config(config: SealedConfig) -> bytes:
    """Encode a configuration; equal values give equal bytes."""
    return _encode({"schema": SCHEMA, **config._asdict()})


def parse_modules(data: bytes) -> ModuleIndex:
    """Decode the module index; :class:`BootError` ``E-IMAGE`` says what is wrong with it."""
    raw = _document(data, MODULES_PATH)
    try:
        return ModuleIndex(
            _string(raw["directory"]),
            {
                name: ModuleEntry(_string(path), tuple(map(_string, needs)), _string(options))
                for name, (path, needs, options) in raw["modules"].items()
            },
            tuple((_string(pattern), _string(name)) for pattern, name in raw["aliases"]),
            frozenset(map(_string, raw["builtin"])),
            tuple(map(_string, raw["preload"])),
            tuple(map(_string, raw["first"])),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        _damaged(MODULES_PATH, f"{type(error).__name__}: {error}")


def dump_modules(index: ModuleIndex) -> bytes:
    """Encode a module index; equal values give equal bytes."""
    return _encode(
        {
            "schema": SCHEMA,
            "directory": index.directory,
            "modules": index.modules,
            "aliases": index.aliases,
            "builtin": sorted(index.builtin),
            "preload": index.preload,
            "first": index.first,
        }
    )


def parse_drivers(data: bytes) -> dict[str, tuple[str, ...]]:
    """The drivers of disks that the kernel has and the image has not: module name to device aliases.

    One module a line, its aliases behind it. Only explanations need it: what cannot be read is left out.
    """
    lines = (line.split() for line in data.decode("ascii", "replace").splitlines())
    return {words[0]: tuple(words[1:]) for words in lines if words}


def dump_drivers(drivers: dict[str, tuple[str, ...]]) -> bytes:
    """Encode them."""
    return "".join(f"{' '.join((name, *drivers[name]))}\n" for name in sorted(drivers)).encode("ascii")


def _encode(value: dict[str, object]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii") + b"\n"


def _document(data: bytes, path: str) -> dict[str, Any]:
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        _damaged(path, f"not JSON: {error}")
    try:
        if b"\\u" in data:
            _check_strings(raw)
    except (ValueError, RecursionError) as error:
        _damaged(path, str(error))
    if not isinstance(raw, dict):
        _damaged(path, "not a table")
    if raw.get("schema") != SCHEMA:
        _damaged(path, f"schema {raw.get('schema')!r}, this pyinit reads {SCHEMA}")
    return raw


def _check_strings(value: object) -> None:
    """Escapes can say what no path and no command line can hold: a zero byte, half of a surrogate pair."""
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("a zero byte in a string")
        value.encode("utf-8", "surrogateescape")
    elif isinstance(value, list):
        for item in value:
            _check_strings(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            _check_strings(name)
            _check_strings(item)


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


def _damaged(path: str, what: str) -> NoReturn:
    from pyinit.text import printable

    raise BootError(
        "E-IMAGE",
        f"{path} cannot be read: {printable(what)}",
        advice=("Build the image again: pyinit-image build -o IMAGE",),
    )
