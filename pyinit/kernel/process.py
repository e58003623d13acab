"""Child processes: started with a clean environment, watched, and reaped, orphans included.

PID 1 is the parent of last resort, so the statuses of strangers arrive among those of its own children
(wait(2)). One table keeps them apart: only :meth:`Children.reap` ever waits, and only it fills in an end.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from errno import EAGAIN, ENOMEM
from time import monotonic, sleep
from types import MappingProxyType
from typing import Any

from pyinit.errors import BootError
from pyinit.kernel import memory
from pyinit.kernel.files import names, read_if_there
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

# Seconds between attempts to start a process that the kernel has no room for; others may end meanwhile.
_RETRIES = (0.1, 0.2, 0.4, 0.8, 1.6)

Say = Callable[[str], None]


class Children:
    """Every process that PID 1 started, and the reaping of all others."""

    def __init__(self, record: Record, warn: Say = lambda text: None) -> None:
        self._record = record
        self._warn = warn
        self._running: dict[int, dict[str, object]] = {}
        self._ended: dict[int, int] = {}
        self._wakeup = -1
        self.orphans = 0
        self.reserve = memory.Reserve()
        self._out_of_memory = False

    def start(
        self,
        argv: Sequence[str],
        *,
        environment: dict[str, str] | None = None,
        stdin: int = -1,
        stdout: int | None = None,
        terminal: str = "",
        descriptors: Mapping[int, int] = MappingProxyType({}),
        oom_score_adj: int = 0,
    ) -> int:
        """Start a program and return its pid; OSError when it cannot be started.

        When there is no room for another process it is tried again for three seconds; then BootError
        ``E-FORK`` has the figures.

        It leads a session of its own. Its input is the descriptor ``stdin`` or, if that is negative,
        /dev/null; its output, errors included, goes to ``stdout`` or to PID 1's own standard error; or all
        three are ``terminal``, which becomes its controlling one because a session leader opens it
        (credentials(7)). ``descriptors`` are what it has beside these three: its number, and ours. Signal
        dispositions and mask are the defaults. ``oom_score_adj``: from -1000, never killed for want of
        memory, to 1000, killed first (proc(5)); 0 for what the boot cannot do without, 500 for what it can.
        """
        actions: list[tuple[object, ...]] = []
        if terminal:
            # A person is at work, and needs what there is.
            self.reserve.release()
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
        pid = self._spawn(list(argv), {**ENVIRONMENT, **(environment or {})}, actions)
        if oom_score_adj:
            try:
                with open(f"/proc/{pid}/oom_score_adj", "wb") as file:
                    file.write(b"%d" % oom_score_adj)
            except OSError:
                pass
        self._running[pid] = self._record.add(
            "children", argv=[printable(word) for word in argv], pid=pid, start=begin, end=None, status=None
        )
        return pid

    def run(self, argv: Sequence[str], timeout: float | None, **options: Any) -> int | None:
        """Run a program to its end; its status as :meth:`wait` returns it, ``options`` as for :meth:`start`.

        A program that the kernel killed for want of memory is started once more; when that happens again
        BootError ``E-MEM`` names it.
        """
        for attempt in ("first", "last"):
            killed = _killed_for_memory()
            status = self.wait(self.start(argv, **options), timeout)
            if status != -signal.SIGKILL or _killed_for_memory() == killed:
                break
            command = printable(" ".join(argv))
            if attempt == "last":
                raise memory.too_small(
                    f"{printable(argv[0])} was killed by the kernel, twice: memory is too small for it",
                    tried=(command,),
                )
            self._warn(f"{command} was killed by the kernel for want of memory; it is started once more")
        return status

    def _spawn(self, argv: list[str], environment: dict[str, str], actions: list[tuple[object, ...]]) -> int:
        for pause in (*_RETRIES, None):
            try:
                return os.posix_spawn(
                    argv[0],
                    argv,
                    environment,
                    file_actions=actions,
                    setsid=True,
                    setsigdef=_RESETTABLE,
                    setsigmask=(),
                )
            except OSError as error:
                if error.errno not in (EAGAIN, ENOMEM):
                    raise
                self.reap()
                program = printable(argv[0])
                if pause is None:
                    raise _no_room(program, error) from error
                if pause == _RETRIES[0]:
                    self._warn(f"{program} cannot be started: {error.strerror}; trying again")
                sleep(pause)
        raise AssertionError("the last attempt returns or raises")

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
            if pid == self.reserve.pid:
                self.reserve.pid = 0
                self._out_of_memory = True
            elif entry is None:
                self.orphans += 1
            else:
                entry["end"] = now()
                entry["status"] = self._ended[pid] = os.waitstatus_to_exitcode(status)
                self._record.progress()

    def check_memory(self) -> None:
        """``E-MEM``, once, when the kernel had to take the reserve."""
        if self._out_of_memory:
            self._out_of_memory = False
            raise memory.too_small(
                "memory ran out: the kernel began to kill processes",
                tried=("gave back what was held in reserve for this explanation",),
            )

    def end_reserve(self) -> None:
        """Give back what was held in reserve, and wait until that is done."""
        pid = self.reserve.release()
        if pid:
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                pass

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

    def settle(self, timeout: float, besides: Collection[int] = ()) -> None:
        """Wait, ``timeout`` seconds at most, until all programs have ended but ``besides``."""
        deadline = monotonic() + timeout
        for pid in [pid for pid in self._running if pid not in besides]:
            self.wait(pid, max(0.0, deadline - monotonic()))


def find_program(name: str) -> str:
    """The path of a program of the image; empty when it has none of that name."""
    paths = (f"{directory}/{name}" for directory in ENVIRONMENT["PATH"].split(":"))
    return next((path for path in paths if os.access(path, os.X_OK)), "")


def _no_room(program: str, error: OSError) -> BootError:
    limits = ", ".join(
        f"{name} {printable(read_if_there(f'/proc/sys/kernel/{name}').decode('ascii', 'replace').strip())}"
        for name in ("pid_max", "threads-max")
    )
    count = sum(name.isdigit() for name in names("/proc"))
    return BootError(
        "E-FORK",
        f"no process can be started for {program}: {error.strerror}",
        tried=(f"{len(_RETRIES) + 1} attempts in {sum(_RETRIES):.0f} s",),
        found=(f"{count} processes; limits: {limits}", *memory.figures()),
        advice=(
            "Look for what fills the process table: a program that starts itself again and again.",
            "`sysctl.kernel.pid_max=32768` on the kernel command line lifts a limit that is too low.",
        ),
    )


def _killed_for_memory() -> int:
    """How many processes the kernel has killed for want of memory (Linux 4.13 and later)."""
    for line in read_if_there("/proc/vmstat").splitlines():
        name, _, count = line.partition(b" ")
        if name == b"oom_kill" and count.isdigit():
            return int(count)
    return 0


# Those two have no disposition; valid_signals() already leaves out what the C library keeps to itself.
_RESETTABLE = [number for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP)]
