"""Writing to terminals that may be slow, stopped, or not there."""

from __future__ import annotations

import os
import select
import sys
from time import sleep

PATIENCE = 1.0
_STEP = 0.02


def write_patiently(fd: int, data: bytes, patience: float = PATIENCE) -> bool:
    """Write to a nonblocking descriptor; False when it took nothing for ``patience`` seconds, or failed.

    A terminal that is stopped (Ctrl-S, no carrier, a line that does not drain) would block a writer for ever,
    and PID 1 with it.
    """
    try:
        while data:
            try:
                data = data[os.write(fd, data) :]
            except BlockingIOError:
                poll = select.poll()
                poll.register(fd, select.POLLOUT)
                if not poll.poll(patience * 1000):
                    return False
    except OSError:
        return False
    return True


class Writer:
    """Writes to several terminals, and waits once for each one that has stopped.

    One that took nothing for a whole second is given up: it gets what it takes at once, until that is all of
    a piece again. Otherwise a forgotten Ctrl-S would cost a boot a second for every line.
    """

    def __init__(self) -> None:
        self._stopped: set[str] = set()

    def write(self, path: str, fd: int, data: bytes) -> None:
        """Write to the terminal ``path``, which is open, nonblocking, as ``fd``."""
        if write_patiently(fd, data, 0.0 if path in self._stopped else PATIENCE):
            self._stopped.discard(path)
        else:
            self._stopped.add(path)


def drop_unsent(fd: int) -> None:
    """Throw away what a terminal does not send: who closes a serial line last waits for that, up to 30 s.

    One that sends, however slowly, is waited for; one that has stopped for a second.
    """
    import termios

    try:
        left, stuck = _unsent(fd), 0.0
        while left and stuck < PATIENCE:
            sleep(_STEP)
            before, left = left, _unsent(fd)
            stuck = 0.0 if left < before else stuck + _STEP
        if left:
            termios.tcflush(fd, termios.TCOFLUSH)
    except (OSError, termios.error):
        pass  # It was hung up.


def _unsent(fd: int) -> int:
    """How many bytes a terminal has still to send (TIOCOUTQ, ioctl_tty(2))."""
    import fcntl
    import termios

    return int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def drain(fd: int) -> None:
    """Wait until what was written to a terminal has been sent."""
    import termios

    try:
        termios.tcdrain(fd)
    except termios.error:
        pass  # It was hung up.


def active_consoles() -> list[str]:
    """The devices of all consoles, the one that is /dev/console last.

    /sys/class/tty/console/active (Documentation/ABI/testing/sysfs-tty); ``tty0`` is the virtual terminal in
    front.
    """
    try:
        with open("/sys/class/tty/console/active", "rb") as file:
            names = file.read().split()
    except OSError:
        return []
    return [f"/dev/{os.fsdecode(name)}" for name in names]
