"""Questions to whoever sits at one of the consoles: asked on all of them at once, answered on any.

Each console has a line of its own: nothing that is typed on one is shown on another, and a line that is not
finished yet is kept while another console answers wrongly or somebody writes to the screen. One question is
asked at a time, the others wait for their turn.

    prompt = Prompt(keyboard, console)
    question = prompt.ask("Passphrase of vda2: ", answered)

    def answered(question, answer):    # answer: a bytearray, to be wiped here; None when it was given up
        ...
        prompt.again(question, "That is not the passphrase.")   # or prompt.withdraw(question)

The callback is called out of :meth:`pyinit.kernel.keyboard.Keyboard.read`. The question stays asked until it
is withdrawn: between an answer and :meth:`Prompt.again` no other answer arrives; a line that is finished on
another console meanwhile comes right after that call. Who has no loop that reads the keyboard calls
:func:`attend` until the answer is there.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from math import inf
from time import monotonic

from pyinit.kernel.console import Console
from pyinit.kernel.keyboard import Keyboard
from pyinit.kernel.line import Line
from pyinit.kernel.process import Children


class Question:
    """One question; made by :meth:`Prompt.ask`."""

    def __init__(self, text: str, answered: Answered, secret: bool) -> None:
        self.text = text
        self.answered = answered
        self.secret = secret
        self.terminal = ""
        """Where the answer that is being looked at was typed; empty while there is none."""
        self.lines: dict[str, Line] = {}
        """By terminal. One that is not open any more waits to be looked at."""


Answered = Callable[[Question, bytearray | None], None]
"""Takes an answer. None: it was given up (Ctrl-C, Ctrl-D) or longer than anybody types."""


class Prompt:
    """Asks questions on every console that can be read."""

    def __init__(self, keyboard: Keyboard, console: Console) -> None:
        self._keyboard = keyboard
        self._console = console
        self._questions: list[Question] = []

    def ask(self, text: str, answered: Answered, *, secret: bool = True) -> Question:
        """Ask as soon as earlier questions are withdrawn; ``text`` is printable and ends with a blank.

        Of a secret each character is shown as a star.
        """
        question = Question(text, answered, secret)
        self._questions.append(question)
        if len(self._questions) == 1:
            self._console.last_line = self
            self._keyboard.listen(self)
            self._show()
        return question

    def again(self, question: Question, why: str = "") -> None:
        """The answer was no good: ask where it was typed once more, with ``why`` (printable) in front."""
        terminal, question.terminal = question.terminal, ""
        if question not in self._questions:
            return
        self._open_line(question, terminal)
        self._keyboard.echo(terminal, _text(why) + self.lay(terminal))
        self._take_finished()

    def withdraw(self, question: Question, why: str = "") -> None:
        """Ask no more, and forget what was typed; ``why`` (printable) is shown where the question stood."""
        if question not in self._questions:
            return
        asked = question is self._questions[0]
        for terminal, line in question.lines.items():
            if asked:
                unfinished = line.state == "open" and terminal != question.terminal
                self._keyboard.echo(terminal, (b"\n" if unfinished else b"") + _text(why))
            line.wipe()
        self._questions.remove(question)
        question.lines.clear()
        if not self._questions:
            self._console.last_line = None
            self._keyboard.leave(self)
        elif asked:
            self._show()

    def typed(self, terminal: str, data: bytearray) -> None:
        """Take what was typed; what comes after the end of a line belongs to no question."""
        question = self._questions[0]
        line = question.lines.get(terminal) or self._open_line(question, terminal)
        if line.state != "open" or terminal == question.terminal:
            return
        self._keyboard.echo(terminal, line.feed(data)[0])
        self._take_finished()

    def lift(self, terminal: str) -> bytes:
        """Leave the question as it is: what comes is written below, on a line of its own."""
        return b"\n" if self._is_shown(terminal) else b""

    def lay(self, terminal: str) -> bytes:
        """The question and what was typed so far."""
        if not self._is_shown(terminal):
            return b""
        question = self._questions[0]
        return question.text.encode("ascii", "backslashreplace") + question.lines[terminal].shown()

    def _is_shown(self, terminal: str) -> bool:
        if not self._questions:
            return False
        question = self._questions[0]
        line = question.lines.get(terminal)
        return line is not None and line.state == "open" and terminal != question.terminal

    def _show(self) -> None:
        for terminal in self._keyboard.terminals():
            self._open_line(self._questions[0], terminal)
            self._keyboard.echo(terminal, self.lay(terminal))

    def _open_line(self, question: Question, terminal: str) -> Line:
        line = question.lines[terminal] = Line(secret=question.secret)
        return line

    def _take_finished(self) -> None:
        """Let the question's owner look at a finished line, if none is being looked at."""
        if not self._questions:
            return
        question = self._questions[0]
        if question.terminal:
            return
        for terminal, line in question.lines.items():
            if line.state == "open":
                continue
            question.terminal = terminal
            if line.state == "done":
                question.answered(question, line.take())
            else:
                line.wipe()
                question.answered(question, None)
            return


def attend(keyboard: Keyboard, children: Children, until: float = inf) -> bool:
    """Sleep until a key was pressed, a child has ended or ``until`` (time.monotonic) has come; see to it.

    Returns whether a key was pressed.
    """
    poll = select.poll()
    ended = children.watch()
    poll.register(ended, select.POLLIN)
    for descriptor in keyboard.descriptors():
        poll.register(descriptor, select.POLLIN)
    timeout = None if until == inf else max(0.0, until - monotonic()) * 1000
    pressed = False
    for descriptor, _ in poll.poll(timeout):
        if descriptor == ended:
            children.woken()
        else:
            keyboard.read(descriptor)
            pressed = True
    return pressed


def _text(why: str) -> bytes:
    return f"{why}\n".encode("ascii", "backslashreplace") if why else b""
