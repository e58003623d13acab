"""What people and the kernel log are told.

Everything goes to the kernel log (/dev/kmsg, Documentation/ABI/testing/dev-kmsg) and into the boot record.
``info`` lines appear on the console as kernel messages do, following ``quiet`` and ``loglevel=``; what a
person must see is written to the console itself. A console that is absent or broken never stops a boot.
"""

from __future__ import annotations

import os
from typing import Protocol

from pyinit.kernel.terminal import Writer, active_consoles, drop_unsent, write_patiently
from pyinit.record import Record

LOG_PATH = "/run/pyinit/log"
# A record of the kernel log holds about 976 bytes; longer writes fail with EINVAL.
_KMSG_LIMIT = 900
_KMSG_LIMIT_PATH = "/proc/sys/kernel/printk_devkmsg"
_LEVELS = {"error": 3, "warning": 4, "notice": 5, "info": 6, "debug": 7}


class LastLine(Protocol):
    """What stands in the last line of the consoles while others write: a question with what was typed."""

    def lift(self, terminal: str) -> bytes:
        """What makes room for a line of somebody else."""

    def lay(self, terminal: str) -> bytes:
        """What shows it again below."""


class Console:
    """The log and the screen of PID 1."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.informative = False
        """``info`` lines go to the console themselves, whatever the kernel shows (``rd.info``)."""
        self.verbose = False
        """``debug`` lines go to the kernel log, and to the console unless :attr:`quiet` (``rd.debug``)."""
        self.quiet = False
        self.last_line: LastLine | None = None
        """Kept in sight when lines are written."""
        self._kmsg = -1
        self._kmsg_limit = b""
        self._screens: list[str] = []
        self._writer = Writer()
        self._held: dict[str, int] = {}
        self._log = -1

    def open(self) -> None:
        """Take /dev/console for the three standard descriptors and open the kernel log.

        Called once devtmpfs is mounted; until then the descriptors that the kernel gave are used.
        """
        try:
            fd = os.open("/dev/console", os.O_RDWR | os.O_NOCTTY)
        except OSError:
            fd = os.open("/dev/null", os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(fd, standard)
        if fd > 2:
            os.close(fd)
        self._screens = active_consoles()
        try:
            self._kmsg = os.open("/dev/kmsg", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            pass
        # The kernel takes ten lines in five seconds from a process and drops the others
        # (Documentation/admin-guide/sysctl/kernel.rst, printk_devkmsg).
        self._kmsg_limit = _exchange(_KMSG_LIMIT_PATH, b"on\n")

    def close(self) -> None:
        """Give the kernel's own settings back, right before the real init is executed.

        That closes the terminals, and must not wait for one of them.
        """
        if self._kmsg_limit:
            _exchange(_KMSG_LIMIT_PATH, self._kmsg_limit)
        for fd in self._held.values():
            drop_unsent(fd)

    def open_log(self) -> None:
        """Keep the log in /run as well, where it survives the switch."""
        try:
            self._log = os.open(LOG_PATH, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError:
            return
        for message in self.record.data["messages"]:
            self._write_log(message["at"], message["text"])

    def empty_log(self) -> None:
        """Give up the log in /run, for what needs its room more."""
        if self._log >= 0:
            try:
                os.ftruncate(self._log, 0)
            except OSError:
                pass

    def debug(self, text: str) -> None:
        """Only for the record and the log file, unless ``rd.debug`` asks for more."""
        if self.verbose:
            self._keep("debug", text, shown=not self.quiet)
        else:
            self.record.message("debug", text)
            self._write_log(self.record.data["messages"][-1]["at"], text)

    def info(self, text: str) -> None:
        """A step that went well; on the console unless ``quiet``."""
        self._keep("info", text, shown=self.informative)

    def notice(self, text: str) -> None:
        """Something a person who looks should see, even with ``quiet``."""
        self._keep("notice", text, shown=True)

    def warning(self, text: str) -> None:
        """Something that is probably wrong, though the boot goes on."""
        self._keep("warning", f"warning: {text}", shown=True)

    def error(self, text: str) -> None:
        """A line of a failure."""
        self._keep("error", text, shown=True)

    def write(self, text: str) -> None:
        """Write to every console as it is; ``text`` is known to be printable."""
        data = text.encode("ascii", "backslashreplace")
        if not self._screens:
            write_patiently(2, data)
        for path in self._screens:
            self.write_to(path, data)

    def write_to(self, path: str, data: bytes) -> None:
        """Write to one terminal, above its last line."""
        # Opened anew each time: when a shell that owned the terminal ends, the kernel hangs up every open
        # file of it (tty_vhangup_session). Nonblocking would be inherited by children with descriptor 2.
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return
        keep = self.last_line
        self._writer.write(path, fd, keep.lift(path) + data + keep.lay(path) if keep else data)
        # Held until there is another: closing the last descriptor of a serial line that does not drain waits
        # for 30 s (closing_wait in the kernel's drivers/tty/tty_port.c).
        before = self._held.get(path, -1)
        self._held[path] = fd
        if before >= 0:
            os.close(before)

    def screens(self) -> tuple[str, ...]:
        """The terminals that are written to."""
        return tuple(self._screens)

    def _keep(self, level: str, text: str, *, shown: bool = False) -> None:
        self.record.message(level, text)
        at = self.record.data["messages"][-1]["at"]
        self._write_log(at, text)
        # Shown lines reach the console directly, so the kernel's copy is one that it does not print again.
        priority = 7 if shown else _LEVELS[level]
        try:
            os.write(
                self._kmsg, f"<{priority}>pyinit: {text}"[:_KMSG_LIMIT].encode("ascii", "backslashreplace")
            )
        except OSError:
            pass
        if shown:
            self.write(f"pyinit: {text}\n")

    def _write_log(self, at: int, text: str) -> None:
        if self._log < 0:
            return
        try:
            os.write(self._log, f"{at / 1e6:10.6f} {text}\n".encode("ascii", "backslashreplace"))
        except OSError:
            pass


def _exchange(path: str, value: bytes) -> bytes:
    """Write a kernel setting and return what it was; empty when it cannot be done."""
    try:
        with open(path, "rb") as file:
            before = file.read()
        # A second descriptor: the kernel takes a value at offset 0 only (sysctl_writes_strict).
        with open(path, "wb") as file:
            file.write(value)
    except OSError:
        return b""
    return before
