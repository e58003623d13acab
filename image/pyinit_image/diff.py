"""What changed from one image to another, and why what came is there. Foreign images have no reasons."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass

from . import cpio
from .plan import MANIFEST_PATH, chain, parse_manifest


@dataclass(frozen=True, slots=True)
class Change:
    """One path that differs. Sizes are bytes of content, 0 where it is missing."""

    path: str
    kind: str
    """``came``, ``went``, ``mode`` (owner, type or device number, too) or ``content``."""
    before: int
    after: int
    reasons: tuple[str, ...]
    """The chain of reasons, from the path up; of the old image for what went. Empty when not known."""


def compare(old: Mapping[str, cpio.Member], new: Mapping[str, cpio.Member]) -> list[Change]:
    """The changes from ``old`` to ``new``, sorted by path. Times and inode numbers do not count."""
    manifests = [
        parse_manifest(image[MANIFEST_PATH].data).entries if MANIFEST_PATH in image else {}
        for image in (old, new)
    ]
    changes = []
    for path in sorted({*old, *new}):
        before, after = old.get(path), new.get(path)
        if before is None or after is None:
            kind = "came" if before is None else "went"
        elif _attributes(before) != _attributes(after):
            kind = "mode"
        elif before.data != after.data:
            kind = "content"
        else:
            continue
        steps = chain(manifests[0] if kind == "went" else manifests[1], path)
        reasons = tuple(
            f"{step}: {reason}" if number else reason for number, (step, reason) in enumerate(steps)
        )
        sizes = [len(member.data) if member is not None else 0 for member in (before, after)]
        changes.append(Change(path, kind, sizes[0], sizes[1], reasons))
    return changes


def _attributes(member: cpio.Member) -> tuple[int, int, int, tuple[int, int]]:
    special = stat.S_ISCHR(member.mode) or stat.S_ISBLK(member.mode)
    return member.mode, member.uid, member.gid, member.device if special else (0, 0)
