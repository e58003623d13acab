"""When a boot reached what, read from the kernel's log: on the console, or as the witness sends it.

No help of the image is needed. The kernel says by itself when it executes /init and when a file system was
mounted; that the real init was executed, the test root's own init says in the kernel's log as the first thing
it does (:mod:`pyinit_qemu.smallroot`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pyinit_qemu.icount import idle_for_disks

# CONFIG_PRINTK_TIME; CONFIG_PRINTK_CALLER adds the task or CPU (print_prefix in kernel/printk/printk.c).
_STAMP = re.compile(r"\[ {0,8}([0-9]{1,9})\.([0-9]{6})\](?:\[ *[CT][0-9]+\])? ", re.ASCII)
# /dev/kmsg: "priority,sequence,microseconds,flags[,more];text", Documentation/ABI/testing/dev-kmsg.
_RECORD = re.compile(r"[0-9]+,[0-9]+,([0-9]{1,18}),[^;]*;(.*)", re.ASCII | re.DOTALL)

_INIT = re.compile(r"Run /\S+ as init process")
_EXECUTED = re.compile(r"witness: executed;(.*)", re.DOTALL)
# What file systems say at the end of a mount, Linux 5.10 to 7; a remount is told apart. squashfs says
# nothing.
_MOUNTED = re.compile(
    r"EXT4-fs \(\S+\): mounted filesystem"
    r"|XFS \(\S+\): Ending (?:clean mount|recovery)"
    r"|BTRFS info \(device \S+\): (?:using free space tree|disk space caching is enabled)"
    r"|BTRFS info \(device \S+\): enabling free space tree"
    r"|F2FS-fs \(\S+\): Mounted with checkpoint version"
    r"|erofs: \(device \S+\): mounted with root inode"
    r"|VFS: Mounted root \("
)

CONSOLE = "the kernel's log on the console"
WITNESS = "the kernel's log that the witness sent"
UPTIME = "/proc/uptime, read by the witness (a clock of 10 ms)"
UNTIL = "the line on the console that was asked for"


@dataclass(frozen=True)
class Line:
    """A line of the kernel's log."""

    time: int
    """Microseconds since the kernel's start."""
    text: str


@dataclass(frozen=True)
class Moment:
    """A point of the guest's time, and where it was read."""

    time: int
    """Microseconds since the kernel's start."""
    source: str


@dataclass(frozen=True)
class Moments:
    """What a boot reached; None: it did not, or nothing said so."""

    init: Moment | None = None
    """/init was executed."""
    mounted: Moment | None = None
    """The first file system of a disk was mounted."""
    executed: Moment | None = None
    """The real init was executed."""
    idle: float | None = None
    """Seconds in which the CPU had nothing to do because of disks, until then (``iowait``)."""


def console_lines(text: str) -> Iterator[Line]:
    """The kernel's lines in a console's plain text.

    Programs write to the same console, so that a line of the kernel may begin in the middle of one.
    """
    for row in text.split("\n"):
        end = len(row)
        found = []
        for stamp in reversed(list(_STAMP.finditer(row))):
            found.append(Line(int(stamp[1]) * 1_000_000 + int(stamp[2]), row[stamp.end() : end]))
            end = stamp.start()
        yield from reversed(found)


def record_lines(records: Iterable[object]) -> Iterator[Line]:
    """The lines of records as /dev/kmsg gives them; what is none is left out."""
    for record in records:
        if isinstance(record, str) and (found := _RECORD.fullmatch(record)):
            yield Line(int(found[1]), found[2])


def read_moments(lines: Iterable[Line], source: str, until: re.Pattern[str] | None = None) -> Moments:
    """What lines of the kernel's log say.

    ``until``: a pattern that the line of the real init matches, if it is not the witness; the last one
    counts.
    """
    init = mounted = executed = None
    idle = None
    for line in lines:
        if init is None and _INIT.match(line.text):
            init = Moment(line.time, source)
        elif mounted is None and _MOUNTED.match(line.text):
            mounted = Moment(line.time, source)
        elif executed is None and (found := _EXECUTED.match(line.text)):
            executed = Moment(line.time, source)
            idle = idle_for_disks(found[1])
        if until is not None and until.search(line.text):
            executed = Moment(line.time, UNTIL)
    return Moments(init, mounted, executed, idle)


def moments(
    console: str, frame: Mapping[str, Any] | None = None, until: re.Pattern[str] | None = None
) -> Moments:
    """What the console says, and where it is silent (``quiet``) what the witness's ``frame`` says.

    The frame of a boot that had none is None. Nothing is raised for a frame with nonsense in it.
    """
    seen = read_moments(console_lines(console), CONSOLE, until)
    if frame is None:
        return seen
    log = frame.get("kmsg")
    records = log.get("moments") if isinstance(log, dict) else None
    sent = read_moments(record_lines(records if isinstance(records, list) else ()), WITNESS)
    executed = seen.executed or sent.executed
    if executed is None and (uptime := _uptime(frame.get("uptime"))) is not None:
        executed = Moment(uptime, UPTIME)
    idle = sent.idle if seen.idle is None else seen.idle
    return Moments(seen.init or sent.init, seen.mounted or sent.mounted, executed, idle)


def _uptime(text: object) -> int | None:
    """Microseconds from the first number of /proc/uptime."""
    if isinstance(text, str) and (found := re.fullmatch(r"([0-9]{1,9})\.([0-9]{2})", text, re.ASCII)):
        return int(found[1]) * 1_000_000 + int(found[2]) * 10_000
    return None
