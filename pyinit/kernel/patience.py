"""System calls from which the kernel may not come back, made so that PID 1 stays its own master.

A driver that is loaded looks at its devices before finit_module(2) returns, and mount(2) reads the disk; when
the disk does not answer the caller sleeps uninterruptibly, and no signal, timer or deadline reaches it. So a
thread makes the call. PID 1 waits for the thread: it says what it waits for, Ctrl-Alt-Del works, and when
time is up the failure is explained while the call still hangs.
"""

from __future__ import annotations

import os
from _thread import allocate_lock, get_ident, start_new_thread
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from pyinit.errors import BootError
from pyinit.kernel.console import Console
from pyinit.kernel.files import names, read_if_there
from pyinit.kernel.syscalls import (
    ALL_SIGNALS,
    LIBRARY_SIGNALS,
    SIG_IGN,
    set_disposition,
    set_signal_mask,
)
from pyinit.text import printable

FIRST_NOTICE = 5.0
NEXT_NOTICE = 10.0
LIMIT = 180.0
HANG_ADVICE = (
    "Look at the device's cable, power and health; Ctrl-Alt-Del restarts the machine.",
    "Without it: rd.driver.blacklist=MODULE, or unplug the device, and boot again.",
    "Leaving the shell waits for it once more.",
)

if TYPE_CHECKING:
    from typing import TypeVar

    Result = TypeVar("Result")


def start_thread(function: Callable[..., None], *arguments: object) -> bool:
    """Start a thread that gets no signals; False when there can be none.

    The kernel protects PID 1 from every signal that it has no handler for, but it asks the main thread only,
    and only while that does not block the signal. glibc blocks all of them while it starts a thread or a
    program; a second thread that does not is then one that the signal may kill, and PID 1 with it
    (kernel/signal.c, sig_ignored and complete_signal). Of what it keeps to itself glibc lets one through to
    every thread, so these are ignored.
    """
    try:
        for number in LIBRARY_SIGNALS:
            set_disposition(number, SIG_IGN)
        before = set_signal_mask(ALL_SIGNALS)
    except OSError:
        return False
    try:
        start_new_thread(function, arguments)
    except (RuntimeError, MemoryError):
        return False
    finally:
        set_signal_mask(before)
    return True


class Call:
    """A call that is made at once, by a thread if there can be one."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._function = function
        self._arguments = arguments
        self._result: Any = None
        self._error: BaseException | None = None
        self._ended = allocate_lock()
        self._ended.acquire()
        if not start_thread(self._run):
            self._run()

    def is_of(self, function: Callable[..., object], *arguments: object) -> bool:
        """Whether this is the call of that function with those arguments."""
        return self._function == function and self._arguments == arguments

    def wait(self, seconds: float) -> bool:
        """Whether the call has ended, after at most so many seconds of CLOCK_MONOTONIC."""
        if not self._ended.acquire(timeout=max(0.0, seconds)):
            return False
        self._ended.release()
        return True

    def result(self) -> Any:
        """What the function returned, or raise what it raised."""
        if self._error is not None:
            raise self._error
        return self._result

    def _run(self) -> None:
        try:
            self._result = self._function(*self._arguments)
        except BaseException as error:
            self._error = error
        self._ended.release()


class Patience:
    """Makes calls, tells of those that take long, and gives up waiting for them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._hanging: list[tuple[str, Call]] = []
        self.limit: float | None = LIMIT
        """Seconds after which a call has failed; None: never."""
        self._owner = get_ident()

    def call(self, what: str, function: Callable[..., Result], *arguments: object) -> Result:
        """Call a function and return what it returns; ``what`` is it in words: ``loading virtio_blk``.

        :class:`BootError` ``E-HANG`` when it has not returned after :attr:`limit` seconds. It goes on all the
        same: nothing can end it. Whoever asks for the same again waits for that one, so that nothing is
        mounted twice. A thread that is not PID 1's first makes the call itself.
        """
        if get_ident() != self._owner:
            return function(*arguments)
        for begun in self._hanging:
            if begun[0] == what and begun[1].is_of(function, *arguments):
                self._hanging.remove(begun)
                call = begun[1]
                break
        else:
            call = Call(function, *arguments)
        result: Result = self._wait(what, call)
        return result

    def finish(self) -> None:
        """Wait for the calls that were given up: until they return no other program can become PID 1.

        execve(2) ends all other threads first.
        """
        while self._hanging:
            what, call = self._hanging.pop()
            try:
                self._wait(what, call)
            except OSError:
                pass  # What came of it in the end is of no use to anybody any more.

    def _wait(self, what: str, call: Call) -> Any:
        begin = monotonic()
        notice = FIRST_NOTICE
        while True:
            end = notice if self.limit is None else min(notice, self.limit)
            if call.wait(begin + end - monotonic()):
                return call.result()
            waited = monotonic() - begin
            silent = unanswered()
            if self.limit is not None and waited >= self.limit:
                self._hanging.append((what, call))
                raise hang(what, f"the kernel has not come back for {waited:.0f} s")
            why = f"; {', '.join(silent)}" if silent else ""
            self._console.notice(f"{what} since {int(waited)} s: the kernel has not come back{why}")
            notice += NEXT_NOTICE


def hang(what: str, why: str) -> BootError:
    """``E-HANG`` for work that does not end; ``what`` as for :meth:`Patience.call`, ``why`` printable."""
    return BootError(
        "E-HANG",
        f"{what} does not end: {why}",
        tried=(what,),
        found=unanswered() or ("every request to a disk has been answered",),
        advice=HANG_ADVICE,
    )


def unanswered(directory: str = "/sys/block") -> tuple[str, ...]:
    """The disks that owe an answer, one printable line each (Documentation/block/stat.rst, ``inflight``)."""
    lines = []
    for name in names(directory):
        counts = read_if_there(os.path.join(directory, name, "inflight")).split()
        if len(counts) == 2 and all(count.isdigit() for count in counts):
            waiting = sum(map(int, counts))
            if waiting:
                requests = "1 request" if waiting == 1 else f"{waiting} requests"
                lines.append(f"/dev/{printable(name)} has not answered {requests}")
    return tuple(lines)
