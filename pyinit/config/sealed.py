"""The configuration that the builder seals into an image, and the index of its kernel modules.

Both are JSON; of the index, which may name hundreds of modules and thousands of their aliases, PID 1 needs a
few, so what belongs to one of them is one string there, and is only taken apart when it is needed.

The builder writes them with :func:`dump_config` and :func:`dump_modules`; PID 1 reads them
with :func:`parse_config` and :func:`parse_modules`, and treats anything unexpected as a damaged image.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

from pyinit.errors import BootError

CONFIG_PATH = "/etc/pyinit/config.json"
MODULES_PATH = "/usr/lib/pyinit/modules.json"
DRIVERS_PATH = "/usr/lib/pyinit/drivers.txt"
SENTINEL_PATH = "/.pyinit-complete"
SCHEMA = 1
# Enough to tell the vendors on PCI and USB apart, less than most patterns have before their first wildcard.
KEY_LENGTH = 13

POLICIES = ("none", "password", "open")
"""Who gets a rescue shell, the strictest first: nobody, who knows the password, whoever sits there."""

CRYPT = "crypt"
"""Short name of the library that checks passwords, in :attr:`SealedConfig.libraries`."""

# Methods of crypt(5) that make each try dear: yescrypt, gost-yescrypt, scrypt, bcrypt.
_HASH = (
    r"\$(?:y|gy)\$[./A-Za-z0-9]+\$[./A-Za-z0-9]{0,86}\$[./A-Za-z0-9]{43}"
    r"|\$7\$[./A-Za-z0-9]{11,97}\$[./A-Za-z0-9]{43}"
    r"|\$2[aby]\$[0-9]{2}\$[./A-Za-z0-9]{53}"
)


class SealedConfig(NamedTuple):
    """What was decided when the image was built."""

    kernel: str
    """Release of the kernel the image was built for, as ``uname -r`` prints it; empty for any."""
    mode: str
    """``generic``, ``host`` or ``list``."""
    rescue: str
    """Access policy of the rescue shell, one of :data:`POLICIES`; anything else counts as ``none``."""
    password: str
    """Hash (crypt(5)) of the password of the rescue shell; empty when there is none."""
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


class Aliases:
    """(pattern, module name) pairs: device aliases, ``fs_*`` and the like, underscored, without blanks."""

    def __init__(self, buckets: dict[str, str]) -> None:
        """``buckets``: what patterns begin with before the first wildcard, at most ``KEY_LENGTH`` characters
        of it, to the patterns, each followed by its name, with blanks between them all."""
        self.buckets = buckets

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> Aliases:
        """Make them of pairs."""
        buckets: dict[str, list[str]] = {}
        for pattern, name in sorted((underscored(pattern), name) for pattern, name in pairs):
            buckets.setdefault(_literal_prefix(pattern)[:KEY_LENGTH], []).append(f"{pattern} {name}")
        return cls({key: " ".join(words) for key, words in buckets.items()})

    def candidates(self, alias: str) -> Iterator[tuple[str, str]]:
        """Those whose pattern begins as the alias, which is :func:`underscored`, does: it may match."""
        for length in range(min(len(alias), KEY_LENGTH) + 1):
            yield from _pairs(self.buckets.get(alias[:length], ""))

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return (pair for _, words in sorted(self.buckets.items()) for pair in _pairs(words))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Aliases) and self.buckets == other.buckets

    def __hash__(self) -> int:
        return hash(tuple(self))


class _Entries(Mapping[str, ModuleEntry]):
    """The modules of an image, each taken apart when it is asked for."""

    def __init__(self, texts: dict[str, str]) -> None:
        self._texts = texts

    def __getitem__(self, name: str) -> ModuleEntry:
        path, needs, options = self._texts[name].split(" ", 2)
        return ModuleEntry(path, tuple(needs.split(",")) if needs else (), options)

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)


class ModuleIndex(NamedTuple):
    """The kernel modules of the image, with all that modprobe would have looked up resolved at build time."""

    directory: str
    """``/usr/lib/modules/<release>``; ``""`` when the image has no modules."""
    modules: Mapping[str, ModuleEntry]
    """By module name, written with underscores."""
    aliases: Aliases
    """Of those modules."""
    builtin: frozenset[str]
    """Names (underscores) of modules compiled into the kernel."""
    preload: tuple[str, ...]
    """Modules that are loaded at once, before any device was seen."""
    first: tuple[str, ...] = ()
    """Modules that make loading the others faster, on a CPU that can; loaded before all others."""
    buses: tuple[str, ...] = ()
    """The buses whose devices these modules drive: nearly every bus is what its aliases start with
    (Documentation/driver-api/driver-model/bus.rst)."""


EMPTY_INDEX = ModuleIndex("", {}, Aliases({}), frozenset(), ())


def strictest(*policies: str) -> str:
    """The policy that allows no more than any of these; one that is not known allows nothing."""
    return POLICIES[min(POLICIES.index(policy) if policy in POLICIES else 0 for policy in policies)]


def is_password_hash(text: str) -> bool:
    """Whether this is a hash by a method of crypt(5) that is strong enough for a file that others read."""
    return re.fullmatch(_HASH, text, re.ASCII) is not None


def parse_config(data: bytes) -> SealedConfig:
    """Decode the sealed configuration; :class:`BootError` ``E-IMAGE`` says what is wrong with it."""
    raw = _document(data, CONFIG_PATH)
    values: dict[str, str] = {}
    for key in ("kernel", "mode", "rescue", "password", "cmdline", "udevd", "shell"):
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
        entries, aliases = raw["modules"], raw["aliases"]
        if not all(_string(text).count(" ") >= 2 for text in entries.values()):
            raise ValueError("a module has not all its parts")
        if not all(_string(text).count(" ") % 2 for text in aliases.values()):
            raise ValueError("an alias has no module")
        return ModuleIndex(
            _string(raw["directory"]),
            _Entries(entries),
            Aliases(aliases),
            frozenset(_string(raw["builtin"]).split()),
            tuple(map(_string, raw["preload"])),
            tuple(map(_string, raw["first"])),
            tuple(map(_string, raw["buses"])),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        _damaged(MODULES_PATH, f"{type(error).__name__}: {error}")


def dump_modules(index: ModuleIndex) -> bytes:
    """Encode a module index; equal values give equal bytes."""
    return _encode(
        {
            "schema": SCHEMA,
            "directory": index.directory,
            "modules": {
                name: f"{entry.path} {','.join(entry.needs)} {entry.options}"
                for name, entry in index.modules.items()
            },
            "aliases": index.aliases.buckets,
            "builtin": " ".join(sorted(index.builtin)),
            "preload": index.preload,
            "first": index.first,
            "buses": index.buses,
        }
    )


def underscored(alias: str) -> str:
    """With underscores for dashes, except within brackets: kmod tells neither from the other."""
    if "-" not in alias:
        return alias
    return re.sub(r"\[[^]]*\]|-", lambda match: match[0] if match[0] != "-" else "_", alias)


def _literal_prefix(pattern: str) -> str:
    for position, character in enumerate(pattern):
        if character in "*?[":
            return pattern[:position]
    return pattern


def _pairs(words: str) -> Iterator[tuple[str, str]]:
    each = iter(words.split(" ") if words else ())
    return zip(each, each, strict=True)


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
