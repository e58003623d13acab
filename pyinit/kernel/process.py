"""Child processes: started with a clean environment, watched, and reaped, orphans included.

PID 1 is the parent of last resort, so the statuses of strangers arrive among those of its own children
(wait(2)). One table keeps them apart: only :meth:`Children.reap` ever waits, and only it fills in an end.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Mapping, Sequence
from time import monotonic
from types import MappingProxyType

from pyinit.record import Record, now
from pyinit.text import printable

ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/",
    "TERM": "linux",
    "LANG": "C.UTF-8",
    # Tells programs of systemd that they run in an initrd, as /etc/initrd-release does.
    "SYSTEMD_IN_INITRD": "1",
}


class Children:
    """Every process that PID 1 started, and the reaping of all others."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._running: dict[int, dict[str, object]] = {}
        self._ended: dict[int, int] = {}
        self._wakeup = -1
        self.orphans = 0

    def start(
        self,
        argv: Sequence[str],
        *,
        environment: dict[str, str] | None = None,
        stdin: int = -1,
        stdout: int | None = None,
        terminal: str = "",
        descriptors: Mapping[int, int] = MappingProxyType({}),
    ) -> int:
        """Start a program and return its pid; OSError when it cannot be started.

        It leads a session of its own. Its input is the descriptor ``stdin`` or, if that is negative,
        /dev/null; its output, errors included, goes to ``stdout`` or to PID 1's own standard error; or all
        three are ``terminal``, which becomes its controlling one because a session leader opens it
        (credentials(7)). ``descriptors`` are what it has beside these three: its number, and ours. Signal
        dispositions and mask are the defaults.
        """
        actions: list[tuple[object, ...]] = []
        if terminal:
            actions.append((os.POSIX_SPAWN_OPEN, 0, terminal, os.O_RDWR, 0))
            actions.append((os.POSIX_SPAWN_DUP2, 0, 1))
        else:
            if stdin >= 0:
                actions.append((os.POSIX_SPAWN_DUP2, stdin, 0))
            else:
                actions.append((os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0))
            actions.append((os.POSIX_SPAWN_DUP2, 2 if stdout is None else stdout, 1))
        actions.append((os.POSIX_SPAWN_DUP2, 1, 2))
        actions += [(os.POSIX_SPAWN_DUP2, ours, its) for its, ours in descriptors.items()]
        begin = now()
        pid = os.posix_spawn(
            argv[0],
            list(argv),
            {**ENVIRONMENT, **(environment or {})},
            file_actions=actions,
            setsid=True,
            setsigdef=_RESETTABLE,
            setsigmask=(),
        )
        self._running[pid] = self._record.add(
            "children", argv=[printable(word) for word in argv], pid=pid, start=begin, end=None, status=None
        )
        return pid

    def reap(self) -> None:
        """Collect every child that has ended, ours and orphans; never blocks."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            entry = self._running.pop(pid, None)
            if entry is None:
                self.orphans += 1
                continue
            entry["end"] = now()
            entry["status"] = self._ended[pid] = os.waitstatus_to_exitcode(status)

    def status(self, pid: int) -> int | None:
        """How a child ended, or None while it runs."""
        self.reap()
        return self._ended.get(pid)

    def watch(self) -> int:
        """Be told of every child that ends: returns a descriptor that becomes readable then."""
        if self._wakeup < 0:
            self._wakeup, writer = os.pipe()
            os.set_blocking(self._wakeup, False)
            os.set_blocking(writer, False)
            # Without a handler the kernel would not wake anybody; the descriptor is what is looked at.
            signal.signal(signal.SIGCHLD, lambda number, frame: None)
            signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        return self._wakeup

    def woken(self) -> None:
        """Empty the descriptor of :meth:`watch` and reap."""
        try:
            os.read(self._wakeup, 4096)
        except BlockingIOError:
            pass
        self.reap()

    def wait(self, pid: int, timeout: float | None) -> int | None:
        """Wait until a child has ended, reaping others; None when ``timeout`` seconds pass first."""
        deadline = None if timeout is None else monotonic() + timeout
        poll = select.poll()
        poll.register(self.watch(), select.POLLIN)
        while (status := self.status(pid)) is None:
            remaining = None if deadline is None else deadline - monotonic()
            if remaining is not None and remaining <= 0:
                return None
            if poll.poll(None if remaining is None else remaining * 1000):
                self.woken()
        return status


def find_program(name: str) -> str:
    """The path of a program of the image; empty when it has none of that name."""
    paths = (f"{directory}/{name}" for directory in ENVIRONMENT["PATH"].split(":"))
    return next((path for path in paths if os.access(path, os.X_OK)), "")


# Those two have no disposition; valid_signals() already leaves out what the C library keeps to itself.
_RESETTABLE = [number for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP)]
