"""A line that is written again in its place, second by second, on the terminals that somebody looks at.

The cursor rests at the start of the line below it. What others print, the kernel for one, then stands on a
line of its own; the countdown goes on below, and one that was printed over stays as it was.
"""

from __future__ import annotations

import os

from pyinit.kernel.console import Console

# Up one line, to its start, and all of it away: ECMA-48, CUU and EL. Every terminal of the last forty years
# understands them, the kernel's own included (console_codes(4)).
_AWAY = b"\x1b[A\r\x1b[K"
_COLUMNS = 80


class Countdown:
    """The last line of some terminals, as :class:`pyinit.kernel.console.LastLine`."""

    def __init__(self, console: Console, messages: KernelMessages) -> None:
        self._console = console
        self._messages = messages
        self._line = b""
        self._terminals: tuple[str, ...] = ()
        self._in_sight: set[str] = set()
        """Those on which nothing was printed below it."""

    def show(self, text: str, terminals: tuple[str, ...]) -> bool:
        """Write ``text`` (printable) on these terminals in place of the line before; False when it may not.

        It may not while something else stands in the last line, such as a question.
        """
        if self._console.last_line not in (None, self):
            self._in_sight.clear()
            return False
        self._line, self._terminals = text.encode("ascii", "backslashreplace"), terminals
        self._console.last_line = self
        for terminal in terminals:
            self._console.write_to(terminal, b"")
        return True

    def clear(self) -> None:
        """Take the line away."""
        if self._console.last_line is self:
            terminals, self._terminals = self._terminals, ()
            for terminal in terminals:
                self._console.write_to(terminal, b"")
            self._console.last_line = None
        self._in_sight.clear()

    def lift(self, terminal: str) -> bytes:
        """What takes it away; nothing where something was printed below it."""
        if self._messages.printed():
            self._in_sight.clear()
        if terminal not in self._in_sight:
            return b""
        self._in_sight.discard(terminal)
        return _AWAY

    def lay(self, terminal: str) -> bytes:
        """What shows it again."""
        if terminal not in self._terminals:
            return b""
        self._in_sight.add(terminal)
        return _cut(self._line, terminal)


class KernelMessages:
    """Notices that the kernel printed something on the consoles (Documentation/ABI/testing/dev-kmsg)."""

    def __init__(self, path: str = "/dev/kmsg", levels: str = "/proc/sys/kernel/printk") -> None:
        self._levels = levels
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            self._fd = -1

    def printed(self) -> bool:
        """Whether it did since this was asked last."""
        if self._fd < 0:
            return False
        shown = self._shown_below()
        found = False
        while True:
            try:
                record = os.read(self._fd, 8192)
            except BrokenPipeError:  # Records were overwritten before they were read.
                found = True
                continue
            except OSError:
                return found
            if not record:
                return found
            priority = record.partition(b",")[0]
            found |= priority.isdigit() and int(priority) & 7 < shown

    def close(self) -> None:
        """Look at the kernel's log no more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _shown_below(self) -> int:
        """The level below which messages appear on consoles (proc_sys_kernel(5), printk)."""
        try:
            with open(self._levels, "rb") as file:
                return int(file.read().split()[0])
        except (OSError, ValueError, IndexError):
            return 8


def _cut(line: bytes, terminal: str) -> bytes:
    """One line of the terminal, with its end: a line that wraps could not be taken away as one."""
    import termios

    columns = 0
    try:
        fd = os.open(terminal, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            columns = termios.tcgetwinsize(fd)[1]
        finally:
            os.close(fd)
    except (OSError, termios.error):
        pass
    return line[: (columns or _COLUMNS) - 1] + b"\n"
