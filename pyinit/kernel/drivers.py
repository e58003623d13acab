"""Loading the drivers of devices beside everything else.

finit_module(2) of a driver returns when its devices were probed, and before that when those of every other
driver were (async_synchronize_full() in kernel/module/main.c): a controller that waits for its links, or for
disks that spin up, keeps the caller for seconds. So a thread calls it, while PID 1 already uses the devices
that are there, looks at signals and says what it waits for.
"""

from __future__ import annotations

import os
import select
from _thread import allocate_lock, get_ident
from time import monotonic

from pyinit.errors import BootError
from pyinit.kernel.console import Console
from pyinit.kernel.modules import Modules
from pyinit.kernel.patience import LIMIT, hang, start_thread

PATIENCE = 5.0


class Drivers:
    """The thread that loads drivers; there is none while there is nothing to look at."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = allocate_lock()
        self._wanted: Modules | None = None
        self._current: Modules | None = None
        self._failure: BaseException | None = None
        self._thread = 0
        self.limit: float | None = LIMIT
        """Seconds after which :meth:`finish` fails; None: never."""
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def look(self, modules: Modules) -> None:
        """Load the drivers of all devices that have none, and return before that is done."""
        with self._lock:
            self._wanted = modules
            if self._current is not None:
                return  # It looks once more when it is through.
            self._current = modules
        try:
            started = start_thread(self._run)
        except BaseException:
            # Nobody else would ever say that it is not busy any more.
            self._current = None
            raise
        if not started:
            self._run()

    @property
    def busy(self) -> bool:
        """Whether drivers are being loaded, or their devices probed."""
        return self._current is not None

    def loading(self) -> str:
        """The module that is being loaded; empty when there is none."""
        current = self._current
        return current.inserting.get(self._thread, "") if current is not None else ""

    def hang(self, waited: float) -> BootError:
        """The explanation for drivers that do not come back from the kernel."""
        what = f"loading {self.loading() or 'a driver'}"
        return hang(what, f"the kernel has not come back for {waited:.6g} s")

    def fileno(self) -> int:
        """A descriptor that becomes readable when all drivers are loaded."""
        return self._reader

    def woken(self) -> None:
        """Empty the descriptor; raises what went wrong in the thread."""
        try:
            os.read(self._reader, 4096)
        except BlockingIOError:
            pass
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def finish(self) -> None:
        """Wait until all drivers are loaded: a program can only be executed when no other thread is left.

        Which one takes long is told on the console. ``E-HANG`` after :attr:`limit` seconds.
        """
        begin = monotonic()
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        while self.busy:
            if self.limit is not None and monotonic() - begin >= self.limit:
                raise self.hang(monotonic() - begin)
            if not poll.poll(PATIENCE * 1000) and self.busy:
                self._console.notice(f"waiting for the driver {self.loading()} to find its devices")
            self.woken()

    def _run(self) -> None:
        self._thread = get_ident()
        # First of all, so that everything else is done while devices are probed (on Linux a thread has a nice
        # value of its own, setpriority(2)).
        try:
            os.setpriority(os.PRIO_PROCESS, 0, -20)
        except OSError:
            pass
        while True:
            with self._lock:
                self._current, self._wanted = self._wanted, None
                if self._current is None:
                    break
            try:
                self._current.load_for_devices()
            except BaseException as error:
                self._failure = error
        try:
            os.write(self._writer, b"\0")
        except OSError:
            pass  # The pipe is full of the same.
