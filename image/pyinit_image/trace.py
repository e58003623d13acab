"""What a build looked at: the files, directories and links that its result depends on.

A layer of an image can be used again as long as everything that was looked at when it was made is the same:
the files that were read, the directories that were listed, and the places where nothing was found.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

ABSENT = "-"
DIRECTORY = "directory"

#: Nanoseconds. The kernel stamps files with a clock that ticks at least every 10 ms: what was changed this
#: short a time before it was looked at may be changed again without getting another time.
TICK = 20_000_000


@dataclass(slots=True)
class Trace:
    """What was looked at, as paths of this machine, with a mark of what was there."""

    looked: dict[str, str] = field(default_factory=dict)
    listed: dict[str, str] = field(default_factory=dict)
    sure: bool = True
    """Whether a later change to any of it would be noticed."""

    def look(self, path: str) -> os.stat_result | None:
        """The status of ``path`` itself, None when there is nothing."""
        try:
            status = os.lstat(path)
        except (OSError, ValueError):
            self.looked[path] = ABSENT
            return None
        self.looked[path] = mark(status, path)
        if stat.S_ISREG(status.st_mode) and status.st_ctime_ns > time.time_ns() - TICK:
            self.sure = False
        return status

    def list(self, path: str, names: Iterable[str]) -> None:
        """Note that the directory ``path`` was listed and had ``names``."""
        self.listed[path] = mark_names(names)

    def holds(self) -> bool:
        """Whether everything is still as it was."""
        return all(_now(path) == old for path, old in self.looked.items()) and all(
            _names_now(path) == old for path, old in self.listed.items()
        )


def mark(status: os.stat_result, path: str) -> str:
    """What tells one state of a path from another: for a file its inode, size and times, for a link its
    target, for a directory only that it is one."""
    if stat.S_ISDIR(status.st_mode):
        return DIRECTORY
    if stat.S_ISLNK(status.st_mode):
        try:
            return "-> " + os.readlink(path)
        except OSError:
            return ABSENT
    numbers = (status.st_mode, status.st_size, status.st_dev, status.st_ino)
    return " ".join(map(str, (*numbers, status.st_mtime_ns, status.st_ctime_ns)))


def mark_names(names: Iterable[str]) -> str:
    """What tells one list of names in a directory from another. Python's own cache does not count."""
    listed = "\0".join(sorted(name for name in names if name != "__pycache__"))
    return hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest()


def _now(path: str) -> str:
    try:
        return mark(os.lstat(path), path)
    except (OSError, ValueError):
        return ABSENT


def _names_now(path: str) -> str:
    try:
        return mark_names(os.listdir(path))
    except OSError:
        return ABSENT
