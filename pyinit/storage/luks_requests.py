"""Which encrypted volumes a boot asks for, and with what each is opened. Values in, values out.

Nothing is opened that nobody asked for: a volume is named on the kernel command line, in the crypttab of the
image, into which the builder put what the root needs, or by a ``root=`` (``mount.usr=``, ``resume=``) that is
such a volume's own name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from pyinit.config import devspec
from pyinit.config.crypttab import Entry, Options, decode_options
from pyinit.config.luks import Key, LuksWords, covers, parse_key
from pyinit.devices.view import DeviceView
from pyinit.errors import BootError
from pyinit.text import printable

DEFAULT_KEY_TIMEOUT = 10.0
_PREFIX = "/dev/mapper/luks-"


class Request(NamedTuple):
    """One or more volumes that are to be opened."""

    kind: str
    """How they are named: ``uuid`` (the beginning of one), ``spec``, ``partuuid``, ``serial``."""
    value: str
    spec: devspec.DeviceSpec | None
    """Of the kind ``spec``."""
    name: str
    """What the opened volume is called; empty: luks-UUID."""
    key: Key | None
    options: tuple[str, ...]
    origin: str
    """Who asks, printable: ``crypttab line 2``."""

    def describe(self) -> str:
        """What is looked for, printable."""
        names = {"uuid": "UUID", "partuuid": "PARTUUID", "serial": "serial number"}
        value = devspec.describe(self.spec) if self.spec else f"{names[self.kind]}={printable(self.value)}"
        name = f"{printable(self.name)}: " if self.name else ""
        return f"{name}{value} ({self.origin})"

    def find(self, known: Collection[DeviceView]) -> list[DeviceView]:
        """The devices that are meant. Without ``header=`` only LUKS volumes are."""
        if self.spec is not None:
            found = devspec.carriers(self.spec, known)
        else:
            found = [view for view in known if view.initialized and self._is_meant(view.properties)]
        if any(option.startswith("header=") for option in self.options):
            return found
        return [view for view in found if is_luks(view)]

    def _is_meant(self, properties: dict[str, str]) -> bool:
        get = properties.get
        if get("DM_MULTIPATH_DEVICE_PATH") == "1":
            return False
        if self.kind == "uuid":
            return covers(self.value, get("ID_FS_UUID", ""))
        if self.kind == "partuuid":
            return get("ID_PART_ENTRY_UUID", "").lower() == self.value
        return self.value in (get("ID_SERIAL_SHORT"), get("ID_SERIAL"))


def is_luks(view: DeviceView) -> bool:
    """Whether udev found a LUKS header on a device."""
    return view.properties.get("ID_FS_TYPE") == "crypto_LUKS"


def requests(
    words: LuksWords, entries: Iterable[Entry], paths: Mapping[str, str]
) -> tuple[list[Request], list[str]]:
    """What is asked for, and warnings, printable, about what is left out.

    ``paths`` are those of devices that the boot needs, each with the word that names it (``root=``). When the
    command line names volumes by UUID, only those lines of crypttab count that are about one of them, as with
    systemd-cryptsetup-generator(8).
    """
    warnings: list[str] = []
    if not words.enabled:
        return [], warnings
    named = dict(words.names)
    starts = [*named, *(uuid for uuid in words.uuids if uuid not in named)]
    found = []
    covered: set[str] = set()
    for entry in entries if words.crypttab else ():
        origin = f"crypttab line {entry.line}"
        options, remarks = decode_options(entry.options)
        warnings += (f"{origin}: {remark}" for remark in remarks)
        uuid = entry.source[5:] if entry.source.startswith("UUID=") else ""
        start = next((start for start in starts if covers(start, uuid)), "")
        if starts and not start:
            continue
        if entry.key in ("/dev/urandom", "/dev/random"):
            options = options._replace(skip="it gets a new key each time")
        if options.skip:
            warnings.append(f"{origin}: {printable(entry.name)} is not opened: {options.skip}")
            continue
        key = None if entry.key in ("none", "") else parse_key(entry.key)
        if key is None and entry.key not in ("none", ""):
            warnings.append(f"{origin}: {printable(entry.key)[:80]} is no path of a key file")
        try:
            spec = None if uuid else devspec.parse_spec(entry.source)
        except BootError:
            warnings.append(f"{origin}: {printable(entry.source)[:80]} names no device")
            continue
        covered.add(start)
        kind, value = ("uuid", uuid) if uuid else ("spec", entry.source)
        name = named.get(start, entry.name)
        found.append(Request(kind, value, spec, name, key, entry.options, origin))
    for start in starts:
        if start not in covered:
            origin = "rd.luks.name" if start in named else "rd.luks.uuid"
            data = dict(words.data).get(start, "")
            kind, value, spec = "uuid", start, None
            if data:
                try:
                    kind, value, spec = "spec", data, devspec.parse_spec(data)
                except BootError:
                    warnings.append(f"rd.luks.data: {printable(data)[:80]} names no device")
            options_here = options_for(words, start) if data else ()
            found.append(Request(kind, value, spec, named.get(start, ""), None, options_here, origin))
    for partuuid in words.partuuids:
        found.append(Request("partuuid", partuuid, None, "", None, (), "rd.luks.partuuid"))
    for serial in words.serials:
        found.append(Request("serial", serial, None, "", None, (), "rd.luks.serial"))
    names = {request.name or f"luks-{request.value}" for request in found}
    for path, word in paths.items():
        uuid = path.removeprefix(_PREFIX)
        if path.startswith(_PREFIX) and len(uuid) == 36 and f"luks-{uuid}" not in names:
            found.append(Request("uuid", uuid, None, f"luks-{uuid}", None, (), word))
    return found, warnings


def options_for(words: LuksWords, uuid: str) -> tuple[str, ...]:
    """The options that the command line has for a volume: its own, else those for all."""
    own = [options for start, options in words.options if start and covers(start, uuid)]
    return tuple(
        option for options in own or [o for start, o in words.options if not start] for option in options
    )


def settle(request: Request, words: LuksWords, uuid: str) -> Options:
    """The options of one volume: crypttab's, then the command line's, which count more."""
    options, _ = decode_options((*request.options, *options_for(words, uuid)))
    if any(not start or covers(start, uuid) for start in words.discards):
        options = options._replace(discard=True)
    if words.key_timeout is not None:
        options = options._replace(key_timeout=float(words.key_timeout))
    if words.timeout:
        options = options._replace(timeout=float(words.timeout))
    return options


def keys_for(request: Request, words: LuksWords, uuid: str) -> list[Key]:
    """The key files to try, in this order: crypttab's, those for this volume, those for all."""
    found = [request.key] if request.key else []
    found += [key for key in words.keys if key.volume and covers(key.volume, uuid)]
    found += [key for key in words.keys if not key.volume]
    return list(dict.fromkeys(found))
