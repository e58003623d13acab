"""LUKS headers: what is read out of them, which must not be opened, and that no bytes break the parser."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.storage import luks_header
from pyinit.storage.luks_header import BINARY_SIZE, MAGIC, SECOND_MAGIC, Damaged, Slot, parse_v1
from pyinit.storage.luks_tokens import Token, is_fido

UUID = "1c0de5ea-0000-4000-8000-00000000000a"
SIZE = 16384


def metadata() -> dict[str, Any]:
    """The JSON area of an ordinary volume with two keys."""
    area = {
        "type": "raw",
        "offset": "32768",
        "size": "258048",
        "encryption": "aes-xts-plain64",
        "key_size": 64,
    }
    return {
        "keyslots": {
            "0": {"type": "luks2", "area": area, "kdf": {"type": "argon2id", "memory": 1048576}},
            "1": {"type": "luks2", "area": area, "kdf": {"type": "pbkdf2", "iterations": 1000}},
            "7": {"type": "luks2", "area": area, "kdf": {"type": "pbkdf2"}, "priority": 0},
        },
        "tokens": {"0": {"type": "systemd-tpm2", "keyslots": ["1"]}},
        "segments": {"0": {"type": "crypt", "offset": "16777216", "encryption": "aes-xts-plain64"}},
        "digests": {"0": {"type": "pbkdf2", "keyslots": ["0", "1", "7"], "segments": ["0"]}},
        "config": {"json_size": "12288", "keyslots_size": "16744448"},
    }


def copy(raw: bytes | dict[str, Any], magic: bytes = MAGIC, offset: int = 0, size: int = SIZE) -> bytes:
    """One copy of a LUKS2 header, with a right checksum."""
    text = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
    binary = bytearray(BINARY_SIZE)
    binary[:16] = magic + b"\0\2" + size.to_bytes(8, "big")
    binary[72:78] = b"sha256"
    binary[168:204] = UUID.encode()
    binary[256:264] = offset.to_bytes(8, "big")
    data = binary + text.ljust(size - BINARY_SIZE, b"\0")
    data[448:480] = hashlib.sha256(data).digest()
    return bytes(data)


def device(change: Callable[[dict[str, Any]], None] = lambda raw: None) -> bytes:
    raw = metadata()
    change(raw)
    return copy(raw) + copy(raw, SECOND_MAGIC, SIZE)


def read(data: bytes) -> luks_header.Copies:
    return luks_header.read(lambda offset, size: data[offset : offset + size])


def test_luks2() -> None:
    copies = read(device())
    assert copies.damage == ()
    assert len(copies.good) == 2 and copies.good[0] == copies.good[1]
    header = copies.good[0]
    assert (header.version, header.uuid, header.cipher, header.weak) == (2, UUID, "aes-xts-plain64", "")
    assert header.slots == (Slot(0, "argon2id", 1048576), Slot(1, "pbkdf2", 0))
    assert header.tokens == (Token("tpm2", False),)


def luks1(**fields: bytes) -> bytes:
    data = bytearray(1024)
    data[:8] = MAGIC + b"\0\1"
    places = {"cipher": 8, "mode": 40, "hash": 72, "uuid": 168}
    for name, value in {"cipher": b"aes", "mode": b"xts-plain64", "hash": b"sha256", **fields}.items():
        data[places[name] : places[name] + len(value)] = value
    data[208:212] = data[304:308] = (0x00AC71F3).to_bytes(4, "big")
    data[256:260] = (0xDEAD).to_bytes(4, "big")
    return bytes(data)


def test_luks1() -> None:
    (header,) = read(luks1(uuid=UUID.encode())).good
    assert (header.version, header.uuid, header.cipher, header.weak) == (1, UUID, "aes-xts-plain64", "")
    assert [slot.number for slot in header.slots] == [0, 2]


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["segments"]["0"].update(encryption="cipher_null-ecb"),
        lambda raw: raw["segments"]["0"].update(encryption="capi:ecb(cipher_null)-plain"),
        lambda raw: raw["segments"]["0"].update(encryption=""),
        lambda raw: raw["segments"]["0"].pop("encryption"),
        lambda raw: raw["segments"].update({"1": {"type": "linear", "offset": "0"}}),
        lambda raw: raw["keyslots"]["1"].update(area={"encryption": "cipher_null-ecb"}),
    ],
)
def test_a_volume_that_protects_nothing_is_weak(change: Callable[[dict[str, Any]], None]) -> None:
    assert all(header.weak for header in read(device(change)).good)


def test_a_luks1_volume_with_a_null_cipher_is_weak() -> None:
    assert read(luks1(cipher=b"cipher_null", mode=b"ecb")).good[0].weak


def test_one_damaged_copy_leaves_the_other() -> None:
    whole = device()
    broken = b"\0" * BINARY_SIZE + whole[BINARY_SIZE:]
    copies = read(broken)
    assert len(copies.good) == 1 and copies.damage == ("first header: it is not there",)
    flipped = bytearray(whole)
    flipped[5000] ^= 1
    assert read(bytes(flipped)).damage == ("first header: its checksum is wrong",)
    flipped = bytearray(whole)
    flipped[SIZE + 5000] ^= 1
    assert read(bytes(flipped)).damage == ("second header: its checksum is wrong",)


@pytest.mark.parametrize("size", luks_header.SIZES)
def test_a_second_copy_is_found_wherever_it_can_be(size: int) -> None:
    copies = read(bytes(size) + copy(metadata(), SECOND_MAGIC, size, size))
    assert len(copies.good) == 1


def test_a_weak_second_copy_counts_even_beside_a_good_first_one() -> None:
    raw = metadata()
    raw["segments"]["0"]["encryption"] = "cipher_null-ecb"
    copies = read(copy(metadata()) + copy(raw, SECOND_MAGIC, SIZE))
    assert [bool(header.weak) for header in copies.good] == [False, True]


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{}", b'{"segments": 1}', b"[" * 9000, b'{"a": ' + b"9" * 9000 + b"}", b"\xff"]
)
def test_nonsense_in_the_json_area_is_damage(text: bytes) -> None:
    copies = read(copy(text) + copy(text, SECOND_MAGIC, SIZE))
    assert copies.good == () and len(copies.damage) == 2


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["0", "1", "type", "encryption", "kdf", "area"]), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["keyslots", "segments", "digests", "tokens"]), VALUES))
def test_any_json_is_read_or_damage(changes: dict[str, Any]) -> None:
    raw = {**metadata(), **changes}
    copies = read(copy(raw) + copy(raw, SECOND_MAGIC, SIZE))
    assert len(copies.good) + len(copies.damage) == 2
    for header in copies.good:
        # Whatever is not known to be encrypted must not be opened.
        encrypted = all(
            isinstance(segment, dict) and segment.get("type") == "crypt" and segment.get("encryption")
            for segment in raw["segments"].values()
        )
        assert header.weak or encrypted
    assert all(text.isascii() and text.isprintable() for text in copies.damage)


@given(
    st.binary(max_size=700), st.sampled_from([b"", MAGIC + b"\0\1", MAGIC + b"\0\2", SECOND_MAGIC + b"\0\2"])
)
def test_any_bytes_are_read_or_damage(data: bytes, start: bytes) -> None:
    copies = read(start + data)
    assert copies.good or copies.damage
    assert all(text.isascii() and text.isprintable() for text in copies.damage)
    try:
        parse_v1(start + data)
    except Damaged as error:
        assert str(error).isascii()


#: Of a security key: usage page FIDO, usage U2F authenticator, a collection of two reports of 64 bytes.
FIDO_KEY = bytes.fromhex(
    "06d0f10901a1010920150026ff00750895408102092115002 6ff00750895409102c0".replace(" ", "")
)
#: Of a keyboard (Device Class Definition for HID 1.11, appendix B.1).
KEYBOARD = bytes.fromhex(
    "05010906a101050719e029e71500250175019508810295017508810195057501050819012905910295017503910195067508"
    "150025650507190029658100c0"
)


def test_a_security_key_is_told_from_a_keyboard() -> None:
    assert is_fido(FIDO_KEY) and is_fido(KEYBOARD + FIDO_KEY)
    assert is_fido(bytes.fromhex("fe0410d0f10600") + FIDO_KEY)
    assert not is_fido(KEYBOARD)
    # Cut short, and the number within a longer value.
    assert not is_fido(FIDO_KEY[:2]) and not is_fido(bytes.fromhex("0706d0f101"))
