"""The mount table as the kernel tells it: /proc/PID/mountinfo (proc_pid_mountinfo(5))."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import NamedTuple

_ESCAPE = rb"\\([0-7]{3})"


class Mount(NamedTuple):
    """One line of mountinfo. Text that was not UTF-8 is kept by surrogateescape; print it as foreign text."""

    id: int
    parent: int
    """The mount it lies on; an id that is not in the table for the topmost one."""
    device: tuple[int, int]
    """(major, minor) of the file system."""
    root: str
    """Which directory of the file system is mounted; not ``/`` for a bind mount of a part."""
    target: str
    """The mount point, as seen from the root of the process."""
    options: tuple[str, ...]
    """Options of the mount."""
    propagation: tuple[str, ...]
    """The optional fields, ``shared:1``, ``master:2`` and others."""
    fstype: str
    source: str
    super_options: tuple[str, ...]
    """Options of the file system."""


def parse(data: bytes) -> tuple[Mount, ...]:
    """Read mountinfo; a line that cannot be understood is left out."""
    return tuple(mount for line in data.split(b"\n") if (mount := _parse_line(line)) is not None)


def read(path: str = "/proc/self/mountinfo") -> tuple[Mount, ...]:
    """The mount table of this process; OSError when /proc is not there."""
    with open(path, "rb", buffering=0) as file:
        return parse(file.readall())


def topmost(mounts: Iterable[Mount], target: str) -> Mount | None:
    """The mount seen at exactly this path, which is the last one where several are stacked."""
    here = [mount for mount in mounts if mount.target == target]
    covered = {mount.parent for mount in here}
    return next((mount for mount in here if mount.id not in covered), None)


def subtree(mounts: Iterable[Mount], top: Mount) -> tuple[Mount, ...]:
    """A mount and everything mounted on it, a parent always before its children."""
    children: dict[int, list[Mount]] = {}
    for mount in mounts:
        if mount.id != top.id:
            children.setdefault(mount.parent, []).append(mount)
    found = [top]
    for mount in found:
        found += children.pop(mount.id, ())
    return tuple(found)


def _parse_line(line: bytes) -> Mount | None:
    # The separator is searched from behind the six fixed fields: a mount point may be called "-".
    fields = line.split(b" ")
    try:
        end = fields.index(b"-", 6)
        major, minor = fields[2].split(b":")
        fstype, source, super_options = fields[end + 1 : end + 4]
        return Mount(
            _number(fields[0]),
            _number(fields[1]),
            (_number(major), _number(minor)),
            _text(fields[3]),
            _text(fields[4]),
            _options(fields[5]),
            tuple(_text(field) for field in fields[6:end]),
            _text(fstype),
            _text(source),
            _options(super_options),
        )
    except ValueError:
        return None


def _number(field: bytes) -> int:
    if not field.isdigit():
        raise ValueError(field)
    return int(field)


def _options(field: bytes) -> tuple[str, ...]:
    # Split before unescaping: an escaped byte is never a separator.
    return tuple(_text(option) for option in field.split(b",") if option)


def _text(field: bytes) -> str:
    if b"\\" in field:
        field = re.sub(_ESCAPE, lambda match: bytes((int(match[1], 8) & 0xFF,)), field)
    return os.fsdecode(field)
