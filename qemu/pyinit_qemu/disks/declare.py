"""Disks in one expression.

>>> gpt(esp(), ext4(Tree(path), label="root")).build()
>>> gpt(esp(), luks(lvm(vg="v", root=ext4(Tree(path)), swap=swap()))).build()
>>> array = md(1, ext4(Tree(path)))
>>> disks = [gpt(array.member(0)).build(), gpt(array.member(1)).build()]

Whatever has a file system, a volume or an array in it is a content; ``part`` gives a content a name, a type
or a UUID of its own, and everything else that stands in a table is a partition without them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pyinit_qemu.disks.filesystems import (
    MIB,
    Btrfs,
    Erofs,
    Ext2,
    Ext3,
    Ext4,
    F2fs,
    Filesystem,
    Squashfs,
    Swap,
    Tree,
    Vfat,
    Xfs,
)
from pyinit_qemu.disks.gpt import ESP, LINUX, SWAP
from pyinit_qemu.disks.image import Image, Partition
from pyinit_qemu.disks.stacks import btrfs_pool, luks, lvm, md

__all__ = [
    "blank",
    "btrfs",
    "btrfs_pool",
    "erofs",
    "esp",
    "ext2",
    "ext3",
    "ext4",
    "f2fs",
    "gpt",
    "luks",
    "lvm",
    "mbr",
    "md",
    "part",
    "squashfs",
    "swap",
    "vfat",
    "whole",
    "xfs",
]


def _made(kind: Callable[..., Filesystem], tree: Tree | Path | None = None, **options: Any) -> Filesystem:
    """A file system of a tree, or of a directory; options as in :mod:`pyinit_qemu.disks.filesystems`."""
    return kind(Tree(tree) if isinstance(tree, Path) else tree, **options)


ext2 = partial(_made, Ext2)
ext3 = partial(_made, Ext3)
ext4 = partial(_made, Ext4)
xfs = partial(_made, Xfs)
btrfs = partial(_made, Btrfs)
f2fs = partial(_made, F2fs)
vfat = partial(_made, Vfat)
squashfs = partial(_made, Squashfs)
erofs = partial(_made, Erofs)


def swap(size: int = 16 * MIB, **options: Any) -> Swap:
    """A swap area of ``size`` bytes."""
    return Swap(size=size, **options)


def part(
    content: Filesystem | None = None, *, name: str = "", type: str = "", uuid: str = "", size: int = 0
) -> Partition:
    """A partition: GPT name, type (UUID, or MBR type byte), PARTUUID; at least ``size`` bytes."""
    return Partition(content, uuid, name, type, size)


def blank(size: int, *, name: str = "") -> Partition:
    """A partition with nothing but zeros in it."""
    return Partition(None, name=name, size=size)


def esp(tree: Tree | Path | None = None, **options: Any) -> Partition:
    """An EFI system partition; options as those of vfat."""
    return Partition(vfat(tree, **options), name="esp", type=ESP)


def gpt(*parts: Partition | Filesystem, **options: Any) -> Image:
    """A disk with a GPT; ``disk_uuid`` and ``sector`` as in :class:`pyinit_qemu.disks.image.Image`."""
    return Image(gpt=tuple(_partition(item, {"swap": SWAP}, LINUX) for item in parts), **options)


def mbr(*parts: Partition | Filesystem, **options: Any) -> Image:
    """A disk with an MBR, of at most four partitions."""
    return Image(mbr=tuple(_partition(item, {"swap": "82", "vfat": "0c"}, "83") for item in parts), **options)


def whole(content: Filesystem, **options: Any) -> Image:
    """A disk without a partition table."""
    return Image(whole=content, **options)


def _partition(item: Partition | Filesystem, types: dict[str, str], default: str) -> Partition:
    return item if isinstance(item, Partition) else Partition(item, type=types.get(item.fstype, default))
