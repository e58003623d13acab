"""Partition tables, read back by an independent reader (UEFI specification, tables 5-5 and 5-6)."""

from __future__ import annotations

import uuid
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit_qemu.disks.gpt import LINUX, ROOT_X86_64, Slot, gpt, mbr

DISK = "0b3c2f6e-9d1a-4a53-8a43-0d9a0c8f6f11"
SECTORS = 1 << 20


def lay_out(pieces: list[tuple[int, bytes]], size: int) -> dict[int, bytes]:
    """The pieces by offset, checked to lie apart and on the disk."""
    end = 0
    for offset, data in sorted(pieces):
        assert end <= offset and offset + len(data) <= size
        end = offset + len(data)
    return dict(pieces)


def number(data: bytes, start: int, length: int) -> int:
    return int.from_bytes(data[start : start + length], "little")


def read_header(header: bytes) -> dict[str, int]:
    assert header[:8] == b"EFI PART" and number(header, 8, 4) == 0x10000 and number(header, 12, 4) == 92
    blank = header[:16] + bytes(4) + header[20:92]
    assert zlib.crc32(blank) == number(header, 16, 4)
    assert uuid.UUID(bytes_le=header[56:72]) == uuid.UUID(DISK)
    return {
        "own": number(header, 24, 8),
        "other": number(header, 32, 8),
        "first": number(header, 40, 8),
        "last": number(header, 48, 8),
        "table": number(header, 72, 8),
        "crc": number(header, 88, 4),
    }


def read_slots(table: bytes) -> list[Slot]:
    slots = []
    for start in range(0, len(table), 128):
        entry = table[start : start + 128]
        if entry[:16] != bytes(16):
            slots.append(
                Slot(
                    number(entry, 32, 8),
                    number(entry, 40, 8),
                    str(uuid.UUID(bytes_le=entry[:16])),
                    str(uuid.UUID(bytes_le=entry[16:32])),
                    entry[56:128].decode("utf-16-le").rstrip("\0"),
                    number(entry, 48, 8),
                )
            )
    return slots


names = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=18)


@st.composite
def slot_lists(draw: st.DrawFn) -> list[Slot]:
    cuts = sorted(draw(st.sets(st.integers(40, SECTORS - 41), max_size=12)))
    return [
        Slot(
            first,
            last - 1,
            draw(st.sampled_from([LINUX, ROOT_X86_64])),
            str(draw(st.uuids())),
            draw(names),
            draw(st.integers(0, (1 << 64) - 1)),
        )
        for first, last in zip(cuts[::2], cuts[1::2], strict=False)
    ]


@given(slot_lists(), st.sampled_from([512, 4096]))
def test_gpt_reads_back(slots: list[Slot], sector: int) -> None:
    pieces = lay_out(gpt(DISK, slots, SECTORS, sector), SECTORS * sector)
    primary = read_header(pieces[sector])
    backup = read_header(pieces[(SECTORS - 1) * sector])
    assert (primary["own"], primary["other"]) == (backup["other"], backup["own"]) == (1, SECTORS - 1)
    for header in (primary, backup):
        table = pieces[header["table"] * sector]
        assert zlib.crc32(table) == header["crc"] and len(table) == 128 * 128
        assert read_slots(table) == slots
        assert header["first"] == 2 + 128 * 128 // sector
        assert header["last"] == SECTORS - 2 - 128 * 128 // sector
    protective = pieces[0]
    assert protective[510:] == b"\x55\xaa" and protective[450] == 0xEE
    assert number(protective, 454, 4) == 1 and number(protective, 458, 4) == SECTORS - 1


def test_mbr_reads_back() -> None:
    slots = [Slot(2048, 4095, "83"), Slot(4096, 8191, "82")]
    (piece,) = mbr(0xDEADBEEF, slots, 1 << 16)
    offset, sector = piece
    assert offset == 0 and len(sector) == 512 and number(sector, 440, 4) == 0xDEADBEEF
    entries = [sector[446 + 16 * index : 462 + 16 * index] for index in range(4)]
    assert [(entry[4], number(entry, 8, 4), number(entry, 12, 4)) for entry in entries] == [
        (0x83, 2048, 2048),
        (0x82, 4096, 4096),
        (0, 0, 0),
        (0, 0, 0),
    ]


GOOD = Slot(2048, 4095, uuid=str(uuid.uuid5(uuid.NAMESPACE_DNS, "one")), name="root")


@pytest.mark.parametrize(
    ("slots", "complaint"),
    [
        ([GOOD, replace(GOOD, first=4095, last=5000)], "overlaps"),
        ([replace(GOOD, first=33)], "overlaps"),
        ([replace(GOOD, last=SECTORS - 33)], "does not lie within"),
        ([replace(GOOD, last=2047)], "does not lie within"),
        ([replace(GOOD, name="n" * 37)], "36 UTF-16 units"),
        ([replace(GOOD, name="\N{SNAKE}" * 19)], "36 UTF-16 units"),
        ([GOOD] * 129, "129 partitions"),
    ],
)
def test_impossible_tables_are_refused(slots: list[Slot], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        gpt(DISK, slots, SECTORS)


def test_mbr_holds_four() -> None:
    with pytest.raises(ValueError, match="5 partitions"):
        mbr(1, [GOOD] * 5, SECTORS)
