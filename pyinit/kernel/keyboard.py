"""What people type on the consoles, read by PID 1 itself while it goes on with its work.

Every console is read: nobody knows on which one a person sits. While somebody listens the terminals give each
byte at once, echo nothing and send no signals (termios(3): ICANON, ECHO, ISIG off), so Ctrl-C and Ctrl-Z are
bytes like others.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

from pyinit.kernel.terminal import active_consoles, write_patiently

_CHUNK = 4096


class Listener(Protocol):
    """Somebody who is interested in what is typed."""

    def typed(self, terminal: str, data: bytes) -> None:
        """Take what was typed on the terminal of this path."""


class Keyboard:
    """The consoles as input; they are open only while there is a listener."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._terminals: dict[int, tuple[str, list[Any]]] = {}

    def listen(self, listener: Listener, *, behind: bool = False) -> None:
        """Let a listener have what is typed from now on, before all others or behind them."""
        if listener not in self._listeners:
            self._listeners.insert(0 if behind else len(self._listeners), listener)
        if not self._terminals:
            self._open()

    def leave(self, listener: Listener) -> None:
        """The listener hears nothing any more; without any the terminals are as they were before."""
        if listener in self._listeners:
            self._listeners.remove(listener)
        if not self._listeners:
            self.close()

    def descriptors(self) -> tuple[int, ...]:
        """The descriptors that become readable when something was typed."""
        return tuple(self._terminals)

    def read(self, descriptor: int) -> None:
        """Give what was typed to the newest listener; a terminal that is gone is forgotten."""
        if descriptor not in self._terminals:
            return
        path = self._terminals[descriptor][0]
        try:
            data = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._forget(descriptor)
        elif self._listeners:
            self._listeners[-1].typed(path, data)

    def echo(self, terminal: str, data: bytes) -> None:
        """Write to one terminal only, the one where somebody types."""
        for descriptor, (path, _) in self._terminals.items():
            if path == terminal:
                write_patiently(descriptor, data)

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
                raw = list(before)
                raw[3] &= ~(termios.ICANON | termios.ECHO | termios.ISIG | termios.IEXTEN)
                raw[6] = list(before[6])
                raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
                termios.tcsetattr(fd, termios.TCSANOW, raw)
            except termios.error:  # Not a terminal.
                os.close(fd)
                continue
            self._terminals[fd] = (path, before)

    def _forget(self, descriptor: int) -> None:
        import termios

        _, before = self._terminals.pop(descriptor)
        try:
            termios.tcsetattr(descriptor, termios.TCSANOW, before)
        except termios.error:
            pass
        os.close(descriptor)
