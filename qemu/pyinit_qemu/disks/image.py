"""Whole disks, declared as values and built once.

>>> Image(gpt=(Partition(Ext4(Tree(path), label="my root"), name="root"),)).build()
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from pyinit_qemu.disks import gpt as table
from pyinit_qemu.disks.cache import Cache
from pyinit_qemu.disks.filesystems import MIB, Filesystem
from pyinit_qemu.disks.gpt import ALIGNMENT, LINUX, ROOT_X86_64, Slot
from pyinit_qemu.disks.tools import Progress, silent

__all__ = ["LINUX", "ROOT_X86_64", "Image", "Partition"]

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "disks.pyinit")


@dataclass(frozen=True)
class Partition:
    """A partition, filled with a file system or, without one, ``size`` bytes of zeros."""

    fs: Filesystem | None = None
    partuuid: str = ""
    """GPT only; made from the name and the position if not given."""
    name: str = ""
    type: str = ""
    """GPT type UUID or MBR type byte; that of Linux data if not given."""
    size: int = 0
    """Bytes; at least what the file system takes."""
    attributes: int = 0
    """GPT only: the partition's attribute bits."""


@dataclass(frozen=True)
class Image:
    """A disk: a GPT, an MBR, or one file system without a partition table."""

    gpt: tuple[Partition, ...] = ()
    mbr: tuple[Partition, ...] = ()
    whole: Filesystem | None = None
    disk_uuid: str = ""
    """GPT: the disk's UUID. MBR: its first eight hexadecimal digits are the disk's id."""
    sector: int = 512
    """Logical sector size in bytes: 512 or 4096. The virtual disk must be given the same."""

    def build(self, *, cache: Cache | None = None, progress: Progress = silent) -> Path:
        """The image file: raw, sparse, mode 0444. Give it to a VM with a snapshot or an overlay on top."""
        if sum((bool(self.gpt), bool(self.mbr), self.whole is not None)) != 1:
            raise ValueError("an image has either a GPT, or an MBR, or one file system")

        def write(folder: Path) -> None:
            progress(f"making a disk: {self.describe()}")
            target = folder / "disk.img"
            if self.whole is not None:
                self.whole.write(target, self.sector)
            else:
                self._write_partitions(target)
            target.chmod(0o444)

        return (cache or Cache()).entry("disk", self._recipe(), write, progress) / "disk.img"

    def describe(self) -> str:
        """One line for people: ``gpt: ext4 "debian-root"``."""
        kind = "gpt: " if self.gpt else "mbr: " if self.mbr else ""
        filesystems = [part.fs for part in self.gpt or self.mbr] if self.whole is None else [self.whole]
        return kind + ", ".join(fs.describe() if fs else "empty" for fs in filesystems)

    def _recipe(self) -> dict[str, object]:
        parts = [
            (p.fs and p.fs.recipe, p.partuuid, p.name, p.type, p.size, *([p.attributes] * bool(p.attributes)))
            for p in self.gpt or self.mbr
        ]
        return {
            "table": "gpt" if self.gpt else "mbr" if self.mbr else "",
            "partitions": parts,
            "whole": self.whole and self.whole.recipe,
            "disk": self.disk_uuid,
            "sector": self.sector,
            "owner": os.geteuid() == 0,
            "format": 1,
        }

    def _write_partitions(self, target: Path) -> None:
        identity = self.disk_uuid or str(uuid.uuid5(_NAMESPACE, repr(self._recipe())))
        slots: list[Slot] = []
        position = ALIGNMENT
        with target.open("w+b") as disk:
            for number, part in enumerate(self.gpt or self.mbr, 1):
                size = part.size or MIB
                if part.fs is not None:
                    piece = target.with_name(f"{target.name}.{number}")
                    part.fs.write(piece, self.sector)
                    size = max(size, piece.stat().st_size)
                    _copy_sparse(piece, disk.fileno(), position)
                    piece.unlink()
                size += -size % ALIGNMENT
                slots.append(
                    Slot(
                        position // self.sector,
                        (position + size) // self.sector - 1,
                        part.type or (LINUX if self.gpt else "83"),
                        part.partuuid or str(uuid.uuid5(_NAMESPACE, f"{identity} {number} {part.name}")),
                        part.name,
                        part.attributes,
                    )
                )
                position += size
            total = position + ALIGNMENT
            disk.truncate(total)
            sectors = total // self.sector
            if self.gpt:
                pieces = table.gpt(identity, slots, sectors, self.sector)
            else:
                pieces = table.mbr(int(identity[:8], 16), slots, sectors, self.sector)
            for offset, data in pieces:
                os.pwrite(disk.fileno(), data, offset)


def _copy_sparse(source: Path, target: int, position: int) -> None:
    """Copy a file's data, not its holes, to a place in another file."""
    with source.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        at = 0
        while at < end:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but a hole up to the end
                return
            hole = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            while at < hole:
                at += os.copy_file_range(file.fileno(), target, min(hole - at, 1 << 30), at, position + at)
