"""The programs that check file systems before they are mounted."""

from __future__ import annotations

from collections.abc import Iterable

from ..plan import Plan
from .base import Feature, Need, Target

_DIRECTORIES = ("/usr/sbin", "/sbin", "/usr/bin", "/bin")

#: Types whose program is taken as far as the target has it. Others check themselves, or cannot be a root.
TYPES = ("ext2", "ext3", "ext4", "vfat", "f2fs", "jfs", "exfat", "minix", "reiserfs")


class Fsck(Feature):
    """fsck.TYPE of every type that the target can check; its counterpart is ``pyinit/root/fsck.py``."""

    name = "fsck"
    summary = "checks file systems before they are mounted"

    def wanted(self, target: Target) -> str:
        return "the root is checked before it is mounted" if target.mode != "list" else ""

    def needs(self, target: Target) -> Iterable[Need]:
        paths = tuple(f"{directory}/fsck.{name}" for name in TYPES for directory in _DIRECTORIES)
        return [Need(paths, package="e2fsprogs")]

    def add(self, plan: Plan, target: Target, reason: str) -> None:
        for name in TYPES:
            place = target.sysroot.find(*(f"{directory}/fsck.{name}" for directory in _DIRECTORIES))
            if place is None:
                plan.leave_out(f"fsck.{name}", f"feature fsck would have it ({reason}), the target has not")
            else:
                plan.file(place, f"checks {name} file systems ({reason})")
