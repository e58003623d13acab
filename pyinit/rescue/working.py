"""Who is still at work when a wait is over: children of PID 1, and the workers of udevd."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pyinit.kernel.files import read_if_there
from pyinit.text import printable

QUEUE = "/run/udev/queue"
# proc_pid_stat(5), state: what a process is doing if it is not waiting for something to do.
_STATES = {"R": "running", "D": "in uninterruptible sleep: a device does not answer", "T": "stopped"}
_TICKS = 100  # USER_HZ, in which the kernel tells times to programs, is 100 on every machine (time(7)).


class Process(NamedTuple):
    """A process as /proc shows it."""

    pid: int
    name: str
    """Printable."""
    state: str
    """One letter."""
    parent: int
    started: float
    """Seconds since the kernel's start."""
    devices: tuple[str, ...]
    """The device nodes that it has open, printable."""


def parse_stat(data: bytes, devices: tuple[str, ...] = ()) -> Process | None:
    """Read a line of /proc/PID/stat, proc_pid_stat(5); None when it is none.

    The name stands in parentheses and may have any character, parentheses and line ends included.
    """
    head, bracket, rest = data.rpartition(b")")
    number, _, name = head.partition(b" (")
    fields = rest.split()
    try:
        started = int(fields[19]) / _TICKS
        return Process(
            int(number), printable(name), fields[0].decode("ascii"), int(fields[1]), started, devices
        )
    except (IndexError, ValueError, OverflowError):
        return None


def describe_work(
    children: Iterable[Mapping[str, Any]], processes: Iterable[Process], queued: bool, now: float
) -> list[str]:
    """Tell who is at work and since when, a line each.

    ``children`` are those of the boot record, ``queued`` says whether udevd has events that it has not
    finished, ``now`` is in seconds since the kernel's start.
    """
    running = [child for child in children if child["end"] is None]
    daemons = {child["pid"] for child in running if "udevd" in child["argv"][0]}
    lines = [
        f"{' '.join(child['argv'])} (process {child['pid']}) runs since {now - child['start'] / 1e6:.0f} s"
        for child in running
        if child["pid"] not in daemons
    ]
    for process in processes:
        # One that runs while there is nothing to do is about to end.
        busy = _STATES.get(process.state) if queued or process.state != "R" else None
        if process.pid in daemons and process.state == "T":
            lines.append(f"udevd (process {process.pid}) is stopped")
        elif process.parent in daemons and (busy or process.devices):
            what = f", with {', '.join(process.devices)} open" if process.devices else ""
            doing = f", {busy}" if busy else ""
            lines.append(
                f"worker {process.pid} of udevd, started {now - process.started:.0f} s ago{doing}{what}"
            )
    if queued:
        lines.append(f"udevd has not finished all events: {QUEUE} is there")
    return lines


def work(record: Mapping[str, Any]) -> list[str]:
    """Look at this machine."""
    from time import CLOCK_BOOTTIME, clock_gettime

    return describe_work(
        record["children"], list(_processes()), os.path.exists(QUEUE), clock_gettime(CLOCK_BOOTTIME)
    )


def _processes() -> Iterable[Process]:
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        process = parse_stat(read_if_there(f"/proc/{name}/stat"), _open_devices(name))
        if process is not None:
            yield process


def _open_devices(pid: str) -> tuple[str, ...]:
    found = []
    try:
        for number in os.listdir(f"/proc/{pid}/fd"):
            target = os.readlink(f"/proc/{pid}/fd/{number}")
            if target.startswith("/dev/") and target not in ("/dev/null", "/dev/kmsg", "/dev/console"):
                found.append(printable(target))
    except OSError:
        pass
    return tuple(sorted(set(found)))
