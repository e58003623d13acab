"""A real image as a list for the kernel's build, read back as the kernel's document describes it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from built_image import MODULES

from pyinit_image import genlist
from pyinit_image.build import BuildSpec, build
from pyinit_qemu.debian import DebianRoot, Suite

Found = tuple[bytes, int, bytes, tuple[int, int]]


def read(listing: Path) -> Iterator[Found]:
    """Path, mode, content and device number, by early_userspace_support.rst."""
    for line in listing.read_bytes().splitlines():
        match line.split(b" "):
            case [b"dir", name, mode, b"0", b"0"]:
                yield name, stat.S_IFDIR | int(mode, 8), b"", (0, 0)
            case [b"file", name, location, mode, b"0", b"0"]:
                yield name, stat.S_IFREG | int(mode, 8), Path(os.fsdecode(location)).read_bytes(), (0, 0)
            case [b"slink", name, target, mode, b"0", b"0"]:
                yield name, stat.S_IFLNK | int(mode, 8), target, (0, 0)
            case [b"nod", name, mode, b"0", b"0", b"c", major, minor]:
                yield name, stat.S_IFCHR | int(mode, 8), b"", (int(major), int(minor))
            case _:
                raise AssertionError(f"not in the document: {line!r}")


def test_the_list_says_what_the_archive_says(debian: Callable[[Suite], DebianRoot], tmp_path: Path) -> None:
    system = debian("bookworm")
    spec = BuildSpec(
        sysroot=system.tree, kernel_version=system.release, mode="list", modules=MODULES, compress="none"
    )
    entries = build(spec).entries
    listing = genlist.write(entries, tmp_path / "initramfs")
    found = list(read(listing))
    assert found == [(os.fsencode(entry.path), entry.mode, entry.data, entry.device) for entry in entries]
    stored = {path for path in (tmp_path / "initramfs").rglob("*") if path.is_file()} - {listing}
    assert len(stored) == sum(stat.S_ISREG(mode) for _, mode, _, _ in found)
    assert {stat.S_IMODE(path.stat().st_mode) for path in stored} == {0o600}
