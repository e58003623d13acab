"""The terminal of a rescue shell: a pseudo-terminal that the shell has for itself, with line editing.

A small shell such as dash leaves editing to the terminal, which knows a backspace and little more. So it gets
a pseudo-terminal whose lines are made here (EXTPROC, the mode that telnet's LINEMODE, RFC 1184, is made with:
the kernel neither edits nor echoes), for the shell and for everything that it starts: `pyinit python`, a
program that asks for a name. A program that takes each key itself (vi, less, bash) gets each key.

This is a program of its own, started by PID 1 for each console, and a session leader there.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
from collections.abc import Callable
from typing import Any

from pyinit.kernel.process import Children
from pyinit.record import Record
from pyinit.rescue.editor import Editor

NOBODY = 129
"""The exit status when the terminal went away or no key was pressed: 128 + SIGHUP, as shells count."""

_CHUNK = 4096
# asm-generic/termbits.h; Python's termios has no name for it.
_EXTPROC = 0x10000
_LOCAL, _CHARACTERS = 3, 6
# How often (milliseconds) to look whether a line was read, when more were typed ahead.
_READ_CHECK = 20


class Relay:
    """Moves bytes between a terminal and the pseudo-terminal of a shell."""

    def __init__(self, terminal: int, master: int, slave: int, shell: int, editor: Editor) -> None:
        """Descriptors of the three ends, and the process group of the shell."""
        self._terminal, self._master, self._slave = terminal, master, slave
        self._shell = shell
        self._editor = editor
        self._lines: list[bytes] = []
        """Finished, and not given to the shell yet."""
        self._histories: dict[int, list[str]] = {}
        self.used = False
        """Whether anything was typed."""

    def run(self, children: Children) -> int:
        """Until the shell has ended; returns 0, or :data:`NOBODY`."""
        poll = select.poll()
        ended = children.watch()
        for descriptor in (self._terminal, self._master, ended):
            poll.register(descriptor, select.POLLIN)
        while children.status(self._shell) is None:
            ready = {fd for fd, _ in poll.poll(_READ_CHECK if self._lines else None)}
            if ended in ready:
                children.woken()
            if self._master in ready:
                self._show(_read(self._master))
            if self._terminal in ready:
                data = _read(self._terminal)
                if not data:
                    return NOBODY
                self.used = True
                self._type(self._editor.decode(data))
            self._hand_over()
        self._show_the_rest()
        return 0 if self.used else NOBODY

    def _type(self, text: str) -> None:
        """Take keys: as parts of a line where the program reads lines, else as they are."""
        editor = self._editor
        while text:
            settings = termios.tcgetattr(self._master)
            foreground = os.tcgetpgrp(self._master)
            local = settings[_LOCAL]
            if local & termios.ICANON and not local & _EXTPROC and foreground == self._shell:
                # A program gave the terminal settings of its own, "stty sane" for one.
                settings[_LOCAL] |= _EXTPROC
                termios.tcsetattr(self._master, termios.TCSANOW, settings)
                continue
            if not local & _EXTPROC:
                self._lines.append((editor.take() + text).encode("utf-8", "surrogateescape"))
                return
            if not local & termios.ICANON:
                self._pass_on(editor.take() + text, settings, foreground)
                return
            text = self._edit(text, settings, foreground)

    def _edit(self, text: str, settings: list[Any], foreground: int) -> str:
        """Take keys up to the end of a line; returns the rest."""
        editor = self._editor
        editor.secret = not settings[_LOCAL] & termios.ECHO
        editor.history = self._histories.setdefault(foreground, [])
        editor.complete = self._completer(foreground)
        before, key, after = _first_signal(text, settings)
        shown, ending, rest = editor.feed(before)
        self._write(shown)
        if ending == "line":
            line = editor.text
            editor.remember(line)
            editor.begin()
            self._lines.append(f"{line}\n".encode("utf-8", "surrogateescape"))
            self._hand_over()
            return rest + key + after
        if ending == "end-of-file":
            self._lines.append(settings[_CHARACTERS][termios.VEOF])
            self._hand_over()
            return rest + key + after
        if key:
            editor.begin()
            self._lines.clear()
            self._write(f"^{chr(ord(key) ^ 0x40)}")
            self._signal(key, settings, foreground)
        return after

    def _pass_on(self, text: str, settings: list[Any], foreground: int) -> None:
        """Give keys to a program that takes each; the kernel would do these two things, and does not now."""
        while text:
            before, key, text = _first_signal(text, settings)
            if settings[0] & termios.ICRNL:
                before = before.replace("\r", "\n")
            if before:
                self._lines.append(before.encode("utf-8", "surrogateescape"))
            if key:
                self._signal(key, settings, foreground)

    def _signal(self, key: str, settings: list[Any], foreground: int) -> None:
        characters = settings[_CHARACTERS]
        for name, number in _SIGNALS:
            if characters[name] == key.encode() and foreground > 0:
                try:
                    os.killpg(foreground, number)
                except OSError:
                    pass

    def _hand_over(self) -> None:
        """Give the next line to who reads lines, when the one before was read: a read takes all there is."""
        while self._lines and not _unread(self._slave):
            os.write(self._master, self._lines.pop(0))

    def _show(self, data: bytes) -> None:
        if not data:
            return
        text = data.decode("utf-8", "surrogateescape")
        settings = termios.tcgetattr(self._master)
        if settings[_LOCAL] & termios.ICANON and settings[_LOCAL] & _EXTPROC:
            self._editor.columns = _columns(self._slave)
            at_prompt = os.tcgetpgrp(self._master) == self._shell
            text = self._editor.output(text, waiting=at_prompt)
        self._write(text)

    def _show_the_rest(self) -> None:
        os.set_blocking(self._master, False)
        while data := _read(self._master):
            self._show(data)

    def _write(self, text: str) -> None:
        data = text.encode("utf-8", "surrogateescape")
        while data:
            data = data[os.write(self._terminal, data) :]

    def _completer(self, foreground: int) -> Callable[[str], tuple[int, list[str]]] | None:
        if foreground != self._shell:
            return None
        from pyinit.rescue.completion import complete

        def in_shell(text: str) -> tuple[int, list[str]]:
            return complete(text, f"/proc/{self._shell}/cwd")

        return in_shell


_SIGNALS = (
    (termios.VINTR, signal.SIGINT),
    (termios.VQUIT, signal.SIGQUIT),
    (termios.VSUSP, signal.SIGTSTP),
)


def _first_signal(text: str, settings: list[Any]) -> tuple[str, str, str]:
    """Split at the first key that the terminal turns into a signal (termios(3), ISIG)."""
    if settings[_LOCAL] & termios.ISIG:
        keys = {settings[_CHARACTERS][name] for name, _ in _SIGNALS} - {b"\0"}
        for place, character in enumerate(text):
            if character < "\x80" and character.encode() in keys:
                return text[:place], character, text[place + 1 :]
    return text, "", ""


def _unread(slave: int) -> bool:
    """Whether something waits to be read; asking with poll(2) takes in what is still on its way, too."""
    poll = select.poll()
    poll.register(slave, select.POLLIN)
    return bool(poll.poll(0))


def _read(descriptor: int) -> bytes:
    """Empty when there is nothing any more: the other end is closed, the terminal went away."""
    try:
        return os.read(descriptor, _CHUNK)
    except OSError:
        return b""


def _columns(descriptor: int) -> int:
    """A serial line knows no size: `stty cols N` says it."""
    try:
        return termios.tcgetwinsize(descriptor)[1] or 80
    except termios.error:
        return 80


def main() -> None:
    """Run the shell that is named, on this terminal.

    The exit status is 0 when a person left it, :data:`NOBODY`, or 1 when line editing cannot be had here.
    """
    try:
        sys.exit(_relay([sys.argv[1], "-i"]))
    except (OSError, termios.error) as error:
        print(f"pyinit: no line editing here: {os.strerror(error.args[0])}", flush=True)
        sys.exit(1)


def _relay(words: list[str]) -> int:
    master, slave = os.openpty()
    before = termios.tcgetattr(0)
    termios.tcsetwinsize(slave, termios.tcgetwinsize(0))
    lines = termios.tcgetattr(slave)
    lines[_LOCAL] |= _EXTPROC
    termios.tcsetattr(slave, termios.TCSANOW, lines)
    children = Children(Record("", ""))
    shell = children.start(words, environment=dict(os.environ), terminal=os.ttyname(slave))
    keys = list(before)
    keys[0] &= ~(termios.ICRNL | termios.INLCR | termios.IGNCR | termios.ISTRIP)
    keys[1] &= ~termios.OPOST
    keys[_LOCAL] &= ~(termios.ICANON | termios.ECHO | termios.ISIG | termios.IEXTEN)
    keys[_CHARACTERS] = list(before[_CHARACTERS])
    keys[_CHARACTERS][termios.VMIN], keys[_CHARACTERS][termios.VTIME] = 1, 0
    termios.tcsetattr(0, termios.TCSADRAIN, keys)
    try:
        status = Relay(0, master, slave, shell, Editor()).run(children)
        termios.tcsetattr(0, termios.TCSADRAIN, before)
    except (OSError, termios.error):
        return NOBODY  # The terminal went away in the middle of something.
    return status
