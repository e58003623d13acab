"""Partition tables as bytes: GPT (UEFI specification 2.10, chapter 5) and MBR, sectors of 512 or 4096 B."""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

LINUX = "0fc63daf-8483-4772-8e79-3d69d8477de4"
ROOT_X86_64 = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"
SWAP = "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f"
ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
"""Partition types, as the UAPI group's Discoverable Partitions Specification lists them."""

ALIGNMENT = 1 << 20
"""Bytes that partitions start at multiples of."""

_ENTRIES = 128
_ENTRY_SIZE = 128
_HEADER = struct.Struct("<8s4sIIIQQQQ16sQIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")


@dataclass(frozen=True)
class Slot:
    """One partition: first and last sector (inclusive), and what GPT or MBR say about it."""

    first: int
    last: int
    type: str = LINUX
    """GPT: a type UUID. MBR: the type byte in hexadecimal, ``83``."""
    uuid: str = ""
    """GPT only: the partition's own UUID, PARTUUID."""
    name: str = ""
    """GPT only: at most 36 UTF-16 units."""
    attributes: int = 0


def gpt(disk_uuid: str, slots: Sequence[Slot], sectors: int, sector: int = 512) -> list[tuple[int, bytes]]:
    """The pieces of a GPT for a disk of ``sectors`` sectors, each with its byte offset.

    Raises ``ValueError`` for what no valid table can hold: partitions that overlap each other or the table,
    names that are too long, too many of either.
    """
    table_sectors = _ENTRIES * _ENTRY_SIZE // sector
    first, last = 2 + table_sectors, sectors - table_sectors - 2
    if len(slots) > _ENTRIES:
        raise ValueError(f"{len(slots)} partitions, a GPT of the usual size holds {_ENTRIES}")
    _check(slots, first, last)
    table = b"".join(map(_entry, slots)).ljust(_ENTRIES * _ENTRY_SIZE, b"\0")

    def header(own: int, other: int, table_at: int) -> bytes:
        def pack(checksum: int) -> bytes:
            identity = uuid.UUID(disk_uuid).bytes_le
            crc = zlib.crc32(table)
            return _HEADER.pack(
                b"EFI PART", b"\0\0\1\0", _HEADER.size, checksum, 0, own, other, first, last, identity,
                table_at, _ENTRIES, _ENTRY_SIZE, crc,
            )  # fmt: skip

        return pack(zlib.crc32(pack(0)))

    backup = sectors - 1
    protective = Slot(1, min(backup, 0xFFFFFFFF), "ee")
    return [
        (0, _mbr_sector(0, [protective])),
        (sector, header(1, backup, 2)),
        (2 * sector, table),
        ((backup - table_sectors) * sector, table),
        (backup * sector, header(backup, 1, backup - table_sectors)),
    ]


def mbr(disk_id: int, slots: Sequence[Slot], sectors: int, sector: int = 512) -> list[tuple[int, bytes]]:
    """An MBR with up to four primary partitions; ``disk_id`` (32 bits) is the first half of PARTUUIDs."""
    if len(slots) > 4:
        raise ValueError(f"{len(slots)} partitions, an MBR holds four")
    _check(slots, 1, min(sectors - 1, 0xFFFFFFFF))
    return [(0, _mbr_sector(disk_id, slots))]


def _check(slots: Sequence[Slot], first: int, last: int) -> None:
    end = first - 1
    for slot in sorted(slots, key=lambda slot: slot.first):
        if slot.first <= end:
            raise ValueError(f"the partition at sector {slot.first} overlaps what ends at {end}")
        if not slot.first <= slot.last <= last:
            raise ValueError(f"the partition {slot.first}-{slot.last} does not lie within {first}-{last}")
        end = slot.last


def _entry(slot: Slot) -> bytes:
    name = slot.name.encode("utf-16-le")
    if len(name) > 72:
        raise ValueError(f"partition name {slot.name!r} has more than 36 UTF-16 units")
    identity = uuid.UUID(slot.uuid).bytes_le
    return _ENTRY.pack(uuid.UUID(slot.type).bytes_le, identity, slot.first, slot.last, slot.attributes, name)


def _mbr_sector(disk_id: int, slots: Sequence[Slot]) -> bytes:
    # 0xfffffe in place of cylinder, head and sector: beyond what that notation can say.
    beyond = b"\xfe\xff\xff"
    entries = b"".join(
        struct.pack(
            "<B3sB3sII", 0, beyond, int(slot.type, 16), beyond, slot.first, slot.last - slot.first + 1
        )
        for slot in slots
    )
    return struct.pack("<440xI2x64s2s", disk_id, entries, b"\x55\xaa")
