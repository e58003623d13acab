"""What several commands need: images read, sizes written."""

from __future__ import annotations

import argparse
import stat
from pathlib import Path

import zstandard

from pyinit.text import printable

from .. import archive, cpio
from ..errors import BuildError
from ..sysroot import read_regular


def segments(options: argparse.Namespace, image: Path) -> list[archive.Segment]:
    """The archives of an image, within the limit of ``--max-size``."""
    content, _ = read_regular(image)
    return archive.read(content, limit=options.max_size << 20)


def members(options: argparse.Namespace, image: Path) -> dict[str, cpio.Member]:
    """What the kernel would unpack an image to."""
    return archive.tree(segments(options, image))


def content(tree: dict[str, cpio.Member], path: str) -> bytes:
    """The content of a file; links are followed."""
    here: str | None = path
    for _ in range(40):
        here = archive.lookup(tree, here) if here is not None else None
        member = tree.get(here or "")
        if here is None or member is None:
            raise BuildError(f"{printable(path)} is not in this image")
        if stat.S_ISREG(member.mode):
            return member.data
        if not stat.S_ISLNK(member.mode):
            break
        target = member.data.decode("utf-8", "surrogateescape")
        here = target if target.startswith("/") else f"{here.rpartition('/')[0]}/{target}"
    raise BuildError(f"{printable(path)} is not a regular file")


def weigh(data: bytes) -> int:
    """About how much of a compressed archive ``data`` takes, for comparisons."""
    return len(zstandard.ZstdCompressor(level=1).compress(data))


def size(count: int) -> str:
    """Bytes as people say them."""
    return f"{count / 1e6:.1f} MB"
