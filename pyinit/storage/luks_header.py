"""The headers of LUKS volumes: what opens them, what it takes, and whether they protect anything.

Bytes in, values out. Formats: the LUKS1 On-Disk Format Specification 1.2.3, and the LUKS2 On-Disk Format
Specification 1.1.1 (https://gitlab.com/cryptsetup/cryptsetup). A header comes from a disk that anybody may
have written to: LUKS does not authenticate it. One that was changed to a cipher that encrypts nothing would
open with any passphrase, and whatever is written afterwards would lie there in clear.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from pyinit.storage.luks_tokens import KINDS, Token
from pyinit.text import printable

MAGIC = b"LUKS\xba\xbe"
SECOND_MAGIC = b"SKUL\xba\xbe"
BINARY_SIZE = 4096
"""Of a LUKS2 header; what follows is JSON."""
SIZES = tuple(1 << shift for shift in range(14, 23))
"""What a LUKS2 header can take, 16 KiB to 4 MiB; the second copy lies right behind the first."""
MAX_SIZE = SIZES[-1]

_V1_SIZE = 592
_V1_SLOTS = range(208, _V1_SIZE, 48)
_V1_ENABLED = 0x00AC71F3
_SUM = slice(448, 512)


class Slot(NamedTuple):
    """A key slot: one passphrase or key that opens the volume."""

    number: int
    kdf: str
    """``argon2id``, ``argon2i`` or ``pbkdf2``."""
    memory: int
    """KiB that the key derivation takes."""


class Header(NamedTuple):
    """What a header says, as far as it matters before the volume is opened."""

    version: int
    uuid: str
    cipher: str
    """``aes-xts-plain64``."""
    slots: tuple[Slot, ...]
    """Those that open the volume, in the order in which they are tried."""
    tokens: tuple[Token, ...]
    """Devices that hold a key of it, each kind once."""
    weak: str
    """Why the volume must not be opened: it is not encrypted, or not with a cipher; empty when it is."""


class Damaged(ValueError):
    """A header that cannot be used; the text, printable, says why."""


class Copies(NamedTuple):
    """The copies of a header: LUKS2 has two."""

    good: tuple[Header, ...]
    """Those that can be used, the first one first."""
    damage: tuple[str, ...]
    """What is wrong with the others, printable."""


def read(at: Callable[[int, int], bytes]) -> Copies:
    """Look at a device or file: ``at(offset, size)`` returns so many bytes of it, fewer at its end."""
    first = at(0, BINARY_SIZE)
    if first[:6] == MAGIC and first[6:8] == b"\0\1":
        try:
            return Copies((parse_v1(first),), ())
        except Damaged as error:
            return Copies((), (f"LUKS1 header: {error}",))
    good: list[Header] = []
    damage: list[str] = []
    size = 0
    try:
        size = _size(first, MAGIC, 0)
        good.append(parse_v2(first + at(BINARY_SIZE, size - BINARY_SIZE), MAGIC, 0))
    except Damaged as error:
        damage.append(f"first header: {error}")
    # Where the second one begins is what the first one says. When that cannot be read, it is looked for.
    for offset in (size,) if size else SIZES:
        second = at(offset, BINARY_SIZE)
        if not size and second[:6] != SECOND_MAGIC:
            continue
        try:
            length = _size(second, SECOND_MAGIC, offset)
            good.append(
                parse_v2(second + at(offset + BINARY_SIZE, length - BINARY_SIZE), SECOND_MAGIC, offset)
            )
        except Damaged as error:
            damage.append(f"second header: {error}")
        break
    else:
        damage.append("second header: it is nowhere")
    return Copies(tuple(good), tuple(damage))


def parse_v1(data: bytes) -> Header:
    """Read a LUKS1 header (592 bytes); :class:`Damaged` for anything else."""
    if len(data) < _V1_SIZE or data[:8] != MAGIC + b"\0\1":
        raise Damaged("it is no LUKS1 header")
    name, mode, digest = (_field(data, at, 32) for at in (8, 40, 72))
    for what, text in (("cipher", name), ("mode", mode), ("hash", digest)):
        if not re.fullmatch(r"[A-Za-z0-9_()/:,.-]{1,32}", text):
            raise Damaged(f"its {what} is {printable(text) or 'empty'}")
    slots = tuple(
        Slot(number, "pbkdf2", 0)
        for number, start in enumerate(_V1_SLOTS)
        if int.from_bytes(data[start : start + 4], "big") == _V1_ENABLED
    )
    cipher = f"{name}-{mode}"
    return Header(1, _field(data, 168, 40), cipher, slots, (), _weakness(cipher))


def parse_v2(data: bytes, magic: bytes, offset: int) -> Header:
    """Read one copy of a LUKS2 header, binary part and JSON area; :class:`Damaged` when it cannot be used."""
    size = _size(data, magic, offset)
    if len(data) < size:
        raise Damaged("the device ends within it")
    _check_sum(data[:size])
    text = data[BINARY_SIZE:size].partition(b"\0")[0]
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        raise Damaged("its JSON area is not JSON") from None
    if not isinstance(raw, dict):
        raise Damaged("its JSON area is no object")
    segments, keyslots, digests, tokens = (_table(raw, name) for name in _TABLES)
    if not segments:
        raise Damaged("it has no segment")
    segment = min(segments.items(), key=lambda item: item[0])[1]
    weak = next(
        filter(None, (*map(_weak_segment, segments.values()), *map(_weak_slot, keyslots.values()))), ""
    )
    return Header(
        2,
        _field(data, 168, 40),
        _string(segment, "encryption"),
        _slots(keyslots, digests),
        _tokens(tokens),
        weak,
    )


def ciphers(cipher: str) -> tuple[str, ...]:
    """The parts of a cipher that the kernel may have modules for: ``aes``, ``xts``, ``essiv``, ``sha256``."""
    # "capi:xts(aes)-plain64" is the kernel's own notation (device-mapper/dm-crypt.rst in its admin guide).
    return tuple(re.findall("[a-z0-9]+", cipher.removeprefix("capi:").lower()))


_NUMBER = re.compile("[0-9]{1,4}", re.ASCII)
_TABLES = ("segments", "keyslots", "digests", "tokens")
_Table = dict[int, dict[str, Any]]


def _size(data: bytes, magic: bytes, offset: int) -> int:
    """The size of a copy of a LUKS2 header, from its binary part."""
    if len(data) < BINARY_SIZE:
        raise Damaged("the device ends within it")
    if data[:6] != magic:
        raise Damaged("it is not there")
    if data[6:8] != b"\0\2":
        raise Damaged(f"its version is {int.from_bytes(data[6:8], 'big')}")
    size, place = (int.from_bytes(data[at : at + 8], "big") for at in (8, 256))
    if size not in SIZES or place != offset:
        raise Damaged(f"it says that it has {size} bytes and lies at {place}")
    return size


def _check_sum(data: bytes) -> None:
    """Of the kinds of checksums, the interpreter has SHA-2; another one is left to cryptsetup."""
    kind = _field(data, 72, 32)
    make = _sha2(kind)
    if make is None:
        return
    state = make(data[: _SUM.start])
    state.update(bytes(64))
    state.update(data[_SUM.stop :])
    digest = state.digest()
    if data[_SUM][: len(digest)] != digest:
        raise Damaged("its checksum is wrong")


def _sha2(kind: str) -> Callable[[bytes], Any] | None:
    # Not hashlib: that would bring a library of 5 MB into every image.
    if kind not in ("sha256", "sha512"):
        return None
    for module in ("_sha2", f"_{kind}"):
        try:
            return getattr(__import__(module), kind)  # type: ignore[no-any-return]
        except ImportError:
            continue
    return None


def _table(raw: dict[str, Any], name: str) -> _Table:
    value = raw.get(name)
    if not isinstance(value, dict):
        raise Damaged(f"it has no {name}")
    if not all(map(_NUMBER.fullmatch, value)):
        raise Damaged(f"its {name} are not numbered")
    if not all(isinstance(item, dict) for item in value.values()):
        raise Damaged(f"one of its {name} is no object")
    return {int(key): item for key, item in value.items()}


def _slots(keyslots: _Table, digests: _Table) -> tuple[Slot, ...]:
    """The slots whose key the digest of segment 0 knows, by priority; 0 is for slots that are not tried."""
    bound: set[int] = set()
    for digest in digests.values():
        if "0" in _strings(digest.get("segments")):
            bound |= {int(text) for text in _strings(digest.get("keyslots")) if _NUMBER.fullmatch(text)}
    found = []
    for number, slot in sorted(keyslots.items()):
        priority, kdf = slot.get("priority", 1), slot.get("kdf")
        if slot.get("type") != "luks2" or number not in bound or priority == 0 or not isinstance(kdf, dict):
            continue
        memory = kdf.get("memory", 0)
        found.append(
            (priority != 2, Slot(number, _string(kdf, "type"), memory if isinstance(memory, int) else 0))
        )
    return tuple(slot for _, slot in sorted(found, key=lambda item: item[0]))


def _tokens(table: _Table) -> tuple[Token, ...]:
    """Those that plug-ins of systemd handle; a kind of which one wants a PIN wants it."""
    pins: dict[str, bool] = {}
    for _, token in sorted(table.items()):
        system, _, kind = _string(token, "type").partition("-")
        if system == "systemd" and kind in KINDS:
            # Words of systemd's cryptsetup-token-systemd-tpm2.c and -fido2.c.
            wanted = any(token.get(name) is True for name in ("tpm2-pin", "fido2-clientPin-required"))
            pins[kind] = pins.get(kind, False) or wanted
    return tuple(Token(kind, pin) for kind, pin in pins.items())


def _weak_segment(segment: dict[str, Any]) -> str:
    if segment.get("type") != "crypt":
        return f"a segment of type {_string(segment, 'type') or 'nothing'} is not encrypted"
    return _weakness(_string(segment, "encryption"))


def _weak_slot(slot: dict[str, Any]) -> str:
    area = slot.get("area")
    if slot.get("type") != "luks2" or not isinstance(area, dict):
        return ""
    weak = _weakness(_string(area, "encryption"))
    return f"a key slot: {weak}" if weak else ""


def _weakness(cipher: str) -> str:
    parts = ciphers(cipher)
    if not parts:
        return "no cipher is named"
    if "null" in parts:
        return f"the cipher {printable(cipher)} encrypts nothing"
    return ""


def _strings(value: object) -> Iterable[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _string(table: dict[str, Any], name: str) -> str:
    value = table.get(name)
    return value if isinstance(value, str) else ""


def _field(data: bytes, at: int, size: int) -> str:
    return data[at : at + size].partition(b"\0")[0].decode("utf-8", "surrogateescape")
