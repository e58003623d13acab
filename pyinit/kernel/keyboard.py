"""What people type on the consoles, read by PID 1 itself while it goes on with its work.

Every console is read: nobody knows on which one a person sits. While somebody listens the terminals give each
byte at once, echo nothing and send no signals (termios(3): ICANON, ECHO, ISIG off), so Ctrl-C and Ctrl-Z are
bytes like others.

What is typed may be a secret, so no copy of it stays: neither here nor in the kernel's buffer of the
terminal, which the kernel clears of what is read in canonical mode without echo (zero_buffer() in its
drivers/tty/n_tty.c), and only then. So a terminal is in that mode for the moment of each read.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple, Protocol

from pyinit.kernel.terminal import Writer, active_consoles

_CHUNK = 4096


class Listener(Protocol):
    """Somebody who is interested in what is typed."""

    def typed(self, terminal: str, data: bytearray) -> None:
        """Take what was typed on the terminal of this path; ``data`` is overwritten afterwards."""


class _Terminal(NamedTuple):
    path: str
    before: list[Any]
    """Its settings (termios(3)) as they were."""
    keys: list[Any]
    """With which it gives every key at once."""
    reading: list[Any]
    """With which the kernel forgets what is read."""


class Keyboard:
    """The consoles as input; they are open only while there is a listener."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._terminals: dict[int, _Terminal] = {}
        self._buffer = bytearray(_CHUNK)
        self._writer = Writer()
        self._hushed = False

    def listen(self, listener: Listener, *, behind: bool = False) -> None:
        """Let a listener have what is typed from now on, before all others or behind them."""
        if listener not in self._listeners:
            self._listeners.insert(0 if behind else len(self._listeners), listener)
        if not self._terminals:
            self._open()
        elif self._listeners == [listener]:
            self._set_modes()

    def leave(self, listener: Listener) -> None:
        """The listener hears nothing any more; without any the terminals are as they were before."""
        if listener in self._listeners:
            self._listeners.remove(listener)
        if not self._listeners and self._hushed:
            self._set_modes()
        elif not self._listeners:
            self.close()

    def hush(self) -> None:
        """Until :meth:`unhush` the terminals show nothing of what is typed while nobody listens.

        It stays in their buffers for who listens next.
        """
        self._hushed = True
        if not self._terminals:
            self._open()

    def unhush(self) -> None:
        """Let the terminals echo again."""
        self._hushed = False
        if not self._listeners:
            self.close()

    def hears(self, listener: Listener) -> bool:
        """Whether it is this listener who gets what is typed now."""
        return self._listeners[-1:] == [listener]

    def descriptors(self) -> tuple[int, ...]:
        """The descriptors that become readable when something was typed."""
        return tuple(self._terminals) if self._listeners else ()

    def terminals(self) -> tuple[str, ...]:
        """The paths of the terminals that are read."""
        return tuple(terminal.path for terminal in self._terminals.values())

    def read(self, descriptor: int) -> None:
        """Give what was typed to the newest listener; a terminal that is gone is forgotten."""
        if descriptor not in self._terminals:
            return
        from pyinit.kernel.line import wipe

        terminal = self._terminals[descriptor]
        try:
            count = self._read(descriptor, terminal)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self._forget(descriptor)
            return
        data = self._buffer[:count]
        wipe(self._buffer)
        try:
            if self._listeners:
                self._listeners[-1].typed(terminal.path, data)
        finally:
            wipe(data)

    def echo(self, terminal: str, data: bytes) -> None:
        """Write to one terminal only, the one where somebody types."""
        for descriptor, known in self._terminals.items():
            if known.path == terminal:
                self._writer.write(terminal, descriptor, data)

    def close(self) -> None:
        """Give the terminals back as they were, whoever listens: a shell is about to have them."""
        for descriptor in tuple(self._terminals):
            self._forget(descriptor)

    def reopen(self) -> None:
        """Read the terminals again after :meth:`close`, if somebody listens."""
        if self._listeners and not self._terminals:
            self._open()

    def _open(self) -> None:
        import termios

        for path in active_consoles():
            try:
                fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                before = termios.tcgetattr(fd)
            except termios.error:  # Not a terminal.
                os.close(fd)
                continue
            self._terminals[fd] = _Terminal(path, before, before, before)
        self._set_modes()

    def _set_modes(self) -> None:
        """Have the terminals give every key at once, or, while nobody listens, only not show it."""
        import termios

        for fd, terminal in self._terminals.items():
            keys = list(terminal.before)
            keys[3] &= ~termios.ECHO
            reading = keys
            if self._listeners:
                keys[1] |= termios.OPOST | termios.ONLCR
                keys[3] &= ~(termios.ICANON | termios.ISIG | termios.IEXTEN)
                # No character is special: none is lost that arrives during a read.
                keys[6] = [b"\0"] * len(keys[6])
                keys[6][termios.VMIN], keys[6][termios.VTIME] = 1, 0
                reading = list(keys)
                reading[3] |= termios.ICANON
            self._terminals[fd] = terminal._replace(keys=keys, reading=reading)
            try:
                termios.tcsetattr(fd, termios.TCSANOW, keys)
            except termios.error:
                pass  # It was hung up, which a read will tell.

    def _read(self, descriptor: int, terminal: _Terminal) -> int:
        """Fill the buffer; 0 when the terminal is gone."""
        import termios

        try:
            termios.tcsetattr(descriptor, termios.TCSANOW, terminal.reading)
            try:
                count = os.readv(descriptor, [self._buffer])
            finally:
                termios.tcsetattr(descriptor, termios.TCSANOW, terminal.keys)
        except termios.error as error:
            raise OSError(*error.args) from None
        # A lone NUL, as a break on a serial line is one, ends a canonical line and is not part of it.
        return count or os.readv(descriptor, [self._buffer])

    def _forget(self, descriptor: int) -> None:
        import termios

        terminal = self._terminals.pop(descriptor)
        try:
            termios.tcsetattr(descriptor, termios.TCSANOW, terminal.before)
        except termios.error:
            pass
        os.close(descriptor)
