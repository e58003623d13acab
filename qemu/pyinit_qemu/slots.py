"""How many virtual machines run at once on this host, over all test processes of a user.

Guests that boot on fewer CPUs than they need can starve each other until a timer calibration fails. A process
that holds a slot may start further machines in it: a test with two guests cannot deadlock.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

from pyinit_qemu.disks.cache import cache_folder
from pyinit_qemu.timing import Deadline
from pyinit_qemu.verdict import MachineError

_POLL = 0.1
_ROOM = 2 << 30


class Slots:
    """A semaphore of ``count`` places, made of locked files.

    By default as many as there are CPUs, but no more than there are times 2 GiB of memory.

    The kernel drops the locks of a process that dies.
    """

    def __init__(self, count: int | None = None, folder: Path | None = None) -> None:
        self.count = count or places()
        self.folder = folder or cache_folder() / "slots"
        self._users = 0
        self._descriptor = -1
        self._mutex = threading.Lock()

    def acquire(self, timeout: float = 3600.0) -> None:
        """Wait for a place at most ``timeout`` seconds; MachineError names those who hold them."""
        with self._mutex:
            if self._users == 0:
                self._descriptor = self._wait(timeout)
            self._users += 1

    def release(self) -> None:
        with self._mutex:
            self._users -= 1
            if self._users == 0:
                os.close(self._descriptor)

    def _wait(self, timeout: float) -> int:
        self.folder.mkdir(parents=True, exist_ok=True)
        deadline = Deadline(timeout)
        while True:
            holders = []
            for number in range(self.count):
                descriptor = os.open(self.folder / str(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    holders.append(os.read(descriptor, 20).decode("ascii", "replace").strip())
                    os.close(descriptor)
                    continue
                os.truncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
                return descriptor
            if deadline.expired:
                raise MachineError(
                    f"all {self.count} places for virtual machines ({self.folder}) have been taken for "
                    f"{timeout:.0f} s, by processes {', '.join(holders)}"
                )
            time.sleep(_POLL)


def places() -> int:
    """How many machines this host has room for."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(len(os.sched_getaffinity(0)), memory // _ROOM))
