"""What the words ``rd.luks.*`` of the kernel command line ask for."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from pyinit.config.cmdline import CommandLine, is_on
from pyinit.config.crypttab import decode_options, is_name, split_options
from pyinit.text import printable

_UUID = "[0-9a-fA-F-]{1,36}"


class Key(NamedTuple):
    """A key file, ``rd.luks.key``."""

    path: str
    device: str
    """The device that it is on, as in ``root=``; empty: the image."""
    volume: str
    """The start of the UUID of the one volume that it is for, in lower case; empty: for all."""


class LuksWords(NamedTuple):
    """All of them. A UUID is in lower case, and what was given may be only its beginning."""

    enabled: bool = True
    crypttab: bool = True
    uuids: tuple[str, ...] = ()
    names: tuple[tuple[str, str], ...] = ()
    """(UUID, name below /dev/mapper)."""
    partuuids: tuple[str, ...] = ()
    serials: tuple[str, ...] = ()
    data: tuple[tuple[str, str], ...] = ()
    """(UUID, the device with the data) of volumes whose header lies elsewhere."""
    keys: tuple[Key, ...] = ()
    key_timeout: float | None = None
    timeout: float = 0
    """Seconds that a person has; 0: for ever."""
    discards: tuple[str, ...] = ()
    """UUIDs of the volumes that pass discards on; an empty one means all."""
    options: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(UUID, options as in crypttab); an empty one means all that have none of their own."""


def luks_words(line: CommandLine, number: Callable[[str], int | None], warnings: list[str]) -> LuksWords:
    """Read the words, with ``number`` those that are numbers; ``warnings`` gets what is not understood."""

    def refuse(raw: str, expected: str) -> None:
        warnings.append(f"{printable(raw)[:80]} is not understood: {expected} is expected")

    def values(name: str) -> list[tuple[str, str]]:
        return [(word.value or "", word.raw) for word in line.all(name)]

    uuids, names, data, keys, discards, options = [], [], [], [], [], []
    for value, raw in values("rd.luks.uuid"):
        text = _uuid(value.removeprefix("keysource:"))
        uuids.append(text) if text else refuse(raw, "the beginning of a UUID")
    for value, raw in values("rd.luks.name"):
        text, _, name = value.partition("=")
        if (uuid := _uuid(text)) and is_name(name):
            names.append((uuid, name))
        else:
            refuse(raw, "UUID=NAME")
    for value, raw in values("rd.luks.data"):
        text, _, device = value.partition("=")
        if (uuid := _uuid(text)) and device:
            data.append((uuid, device))
        else:
            refuse(raw, "UUID=DEVICE")
    for value, raw in values("rd.luks.key"):
        key = parse_key(value)
        keys.append(key) if key else refuse(raw, "PATH, PATH:DEVICE, PATH:DEVICE:VOLUME or UUID=PATH:DEVICE")
    for word in line.all("rd.luks.allow-discards"):
        if word.value in (None, "", "1", "yes", "on"):
            discards.append("")
        elif is_on(word):
            text = _uuid(word.value or "")
            discards.append(text) if text else refuse(word.raw, "nothing or a UUID")
    for value, raw in values("rd.luks.options"):
        uuid, found = _options(value)
        options.append((uuid, found))
        warnings += (f"{printable(raw)[:80]}: {warning}" for warning in decode_options(found)[1])
    return LuksWords(
        enabled=line.flag("rd.luks", True),
        crypttab=line.flag("rd.luks.crypttab", True),
        uuids=tuple(uuids),
        names=tuple(names),
        partuuids=tuple(value.lower() for value, _ in values("rd.luks.partuuid") if value),
        serials=tuple(value for value, _ in values("rd.luks.serial") if value),
        data=tuple(data),
        keys=tuple(keys),
        key_timeout=number("rd.luks.key.tout"),
        timeout=number("rd.luks.timeout") or 0,
        discards=tuple(discards),
        options=tuple(options),
    )


def parse_key(value: str) -> Key | None:
    """``PATH[:DEVICE[:VOLUME]]``, or ``UUID=PATH[:DEVICE]``; None when it is neither."""
    match = re.fullmatch(f"({_UUID})=(/.*)", value, re.DOTALL)
    volume, text = (match[1].lower(), match[2]) if match else ("", value)
    path, _, rest = text.partition(":")
    device, _, last = rest.partition(":")
    if not path.startswith("/") or path == "/" or "\0" in value:
        return None
    if last:
        volume = _uuid(last.removeprefix("UUID="))
        if match or not volume:
            return None
    return Key(path, device, volume)


def covers(start: str, uuid: str) -> bool:
    """Whether ``start`` is the beginning of a UUID; dashes and upper case make no difference."""
    plain = _plain(start)
    return bool(plain) and _plain(uuid).startswith(plain)


def _plain(text: str) -> str:
    return text.replace("-", "").lower()


def _uuid(text: str) -> str:
    text = text.removeprefix("luks-")
    return text.lower() if re.fullmatch(_UUID, text) and _plain(text) else ""


def _options(value: str) -> tuple[str, tuple[str, ...]]:
    # A whole UUID only (systemd-cryptsetup-generator(8)): an option may look like the beginning of one.
    match = re.fullmatch("([0-9a-fA-F-]{36})=(.*)", value, re.DOTALL)
    return (match[1].lower(), split_options(match[2])) if match else ("", split_options(value))
