"""The hardware's watchdog: it resets the machine when a boot makes no progress.

Documentation/watchdog/watchdog-api.rst. It is fed when something has happened, never because time has
passed: a program that hangs, a device that does not come, a shell that nobody uses end in a reset. It is
never stopped (by writing ``V``) but handed over running, for the real system to go on with.
"""

from __future__ import annotations

import os
from _thread import LockType, allocate_lock
from collections.abc import Callable, Sequence
from fcntl import ioctl
from struct import pack, unpack
from time import monotonic

from pyinit.kernel.patience import start_thread

DEVICE = "/dev/watchdog"
# include/uapi/linux/watchdog.h
_WDIOC_SETTIMEOUT = 0xC0045706

PRESENCE = 300.0
"""For so many seconds after the last key somebody is believed to sit at a console."""


class Watchdog:
    """The watchdog, once :meth:`start` has found it; until then nothing is fed."""

    def __init__(self, device: str = DEVICE) -> None:
        self._device = device
        self._fd = -1
        self.seconds = 0
        """After so many seconds without progress the machine is reset."""

    @property
    def running(self) -> bool:
        """Whether it was started."""
        return self._fd >= 0

    def start(self, seconds: int) -> bool:
        """Start the watchdog; False when there is none, or none yet.

        A device that cannot count so many seconds keeps its own number.
        """
        try:
            self._fd = os.open(self._device, os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            return False
        self.seconds = seconds
        try:
            (self.seconds,) = unpack("i", ioctl(self._fd, _WDIOC_SETTIMEOUT, pack("i", seconds)))
        except OSError:
            pass
        self.feed()
        return True

    def feed(self) -> None:
        """Say that something has happened."""
        if self._fd >= 0:
            try:
                os.write(self._fd, b"\0")
            except OSError:
                pass

    def attend(self, terminals: Sequence[str], say: Callable[[str], None]) -> Callable[[], None]:
        """While a shell is open, feed it as long as somebody types there; call what it returns at the end."""
        if self._fd < 0:
            return self.feed
        say(
            f"the watchdog resets this machine {self.seconds} s after nobody has typed anything "
            f"for {PRESENCE / 60:.0f} minutes"
        )
        over, ended = allocate_lock(), allocate_lock()
        over.acquire()
        ended.acquire()
        if not start_thread(self._attend, terminals, over, ended):
            ended.release()

        def end() -> None:
            over.release()
            ended.acquire()
            self.feed()

        return end

    def _attend(self, terminals: Sequence[str], over: LockType, ended: LockType) -> None:
        used, last = self._used(terminals), monotonic()
        while not over.acquire(timeout=max(1.0, self.seconds / 4)):
            now = self._used(terminals)
            if now != used:
                used, last = now, monotonic()
            if monotonic() - last < PRESENCE:
                self.feed()
        ended.release()

    @staticmethod
    def _used(terminals: Sequence[str]) -> tuple[float, ...]:
        """When each terminal was read from: the kernel notes it to eight seconds (tty_update_time)."""
        times = []
        for path in terminals:
            try:
                times.append(os.stat(path).st_atime)
            except OSError:
                continue
        return tuple(times)
