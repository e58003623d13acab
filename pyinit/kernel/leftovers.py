"""Processes of the initramfs that are still there when the real init is about to be executed."""

from __future__ import annotations

import os
import select
import signal
from time import monotonic
from typing import NamedTuple

from pyinit.errors import BootError
from pyinit.text import printable

# SIGKILL takes effect at once except on a process that waits for a device (state D).
_KILL_SECONDS = 2.0
_KILL_ROUNDS = 3
_COMMAND_LIMIT = 200


class Leftover(NamedTuple):
    """A process that was found and what became of it."""

    pid: int
    command: str
    """Printable."""
    outcome: str
    """``TERM`` or ``KILL``: the signal that ended it; ``stays``: nothing did."""


def end_leftovers(timeout: float) -> tuple[Leftover, ...]:
    """End and reap every process that descends from PID 1, and say which there were.

    Each gets SIGTERM, and SIGKILL when it is still there ``timeout`` seconds later.
    Spared are storage daemons, whose argv[0] starts with ``@``
    (https://systemd.io/ROOT_STORAGE_DAEMONS/), and what the kernel itself started: kernel threads and its
    helpers do not descend from PID 1.
    """
    if os.getpid() != 1 or os.readlink("/proc/self") != "1":
        raise BootError("E-INTERNAL", "leftover processes may be ended by PID 1 only, with its own /proc")
    # Every orphan is given to PID 1 (wait(2)): without a child there is no process at all.
    if not _reap():
        return ()
    found: dict[int, Leftover] = {}
    for number in (signal.SIGTERM, *[signal.SIGKILL] * _KILL_ROUNDS):
        targets = _descendants()
        if not targets:
            break
        seconds = timeout if number == signal.SIGTERM else _KILL_SECONDS
        alive = _signal_and_wait(targets, number, monotonic() + seconds)
        for pid, command in targets.items():
            found[pid] = Leftover(pid, command, "stays" if pid in alive else number.name[3:])
    return tuple(found.values())


def _reap() -> bool:
    """Collect what has ended; False when no child is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _descendants() -> dict[int, str]:
    """pid -> command of every process to be ended."""
    import psutil

    table = {
        process.pid: process.info for process in psutil.process_iter(["ppid", "cmdline", "name", "status"])
    }
    found = {}
    for pid, info in table.items():
        argv = info["cmdline"] or []
        if pid == 1 or info["status"] == psutil.STATUS_ZOMBIE or (argv and argv[0].startswith("@")):
            continue
        ancestor, seen = pid, {0}
        while ancestor != 1 and ancestor not in seen:
            seen.add(ancestor)
            ancestor = table[ancestor]["ppid"] or 0 if ancestor in table else 0
        if ancestor == 1:
            found[pid] = printable(" ".join(argv) or f"[{info['name']}]")[:_COMMAND_LIMIT]
    return found


def _signal_and_wait(pids: dict[int, str], number: signal.Signals, until: float) -> set[int]:
    """Send a signal and wait until all have ended or time is over; returns who is still there."""
    handles: dict[int, int] = {}
    poll = select.poll()
    try:
        for pid in pids:
            try:
                handle = os.pidfd_open(pid)
            except OSError:
                continue
            handles[handle] = pid
            poll.register(handle, select.POLLIN)
            try:
                signal.pidfd_send_signal(handle, number)
                # A stopped process does not see SIGTERM before it is continued.
                signal.pidfd_send_signal(handle, signal.SIGCONT)
            except OSError:
                pass
        alive = dict(handles)
        while alive and (remaining := until - monotonic()) > 0:
            for handle, _ in poll.poll(remaining * 1000):
                poll.unregister(handle)
                del alive[handle]
        return set(alive.values())
    finally:
        for handle in handles:
            os.close(handle)
        _reap()
