"""The password before the rescue shell: asked on every console at once, three tries in all."""

from __future__ import annotations

from math import inf
from time import monotonic
from typing import Literal

from pyinit.kernel.console import Console
from pyinit.kernel.keyboard import Keyboard
from pyinit.kernel.line import wipe
from pyinit.kernel.process import Children
from pyinit.kernel.prompt import Prompt, Question, attend
from pyinit.kernel.syscalls import crypt

TRIES = 3
# Seconds before the second try; twice as many before each one after that.
_FIRST_DELAY = 2.0

Verdict = Literal["right", "wrong", "left", "nobody"]


class Password:
    """Counts the tries of one boot: who asks for the shell again gets no new ones."""

    def __init__(self, prompt: Prompt, keyboard: Keyboard, children: Children, console: Console) -> None:
        self._prompt = prompt
        self._keyboard = keyboard
        self._children = children
        self._console = console
        self._wrong = 0
        self._answers: list[bytearray | None] = []

    def ask(self, hashed: str, library: str, *, may_leave: bool, limit: float = inf) -> tuple[Verdict, str]:
        """Let somebody prove that they know the password; returns with the verdict where they typed it.

        ``right``; ``wrong`` when all tries are used up or nobody can type; ``left`` when the question was
        given up (Ctrl-C, Ctrl-D) although ``may_leave``; otherwise giving up is a wrong answer. ``nobody``
        when no key was pressed for ``limit`` seconds.
        """
        question = self._prompt.ask("Password of the rescue shell: ", self._answered)
        try:
            while True:
                # Without a terminal there is nothing that could end the waiting.
                until = monotonic() + limit
                while not self._answers and self._keyboard.descriptors():
                    if attend(self._keyboard, self._children, until):
                        until = monotonic() + limit
                    elif monotonic() >= until:
                        return "nobody", ""
                if not self._answers:
                    return "wrong", ""
                answer, terminal = self._answers.pop(), question.terminal
                if answer is None and may_leave:
                    return "left", terminal
                if answer is not None and _is_right(answer, hashed, library):
                    self._wrong = 0
                    return "right", terminal
                self._wrong += 1
                said = f"this is not the password, try {self._wrong} of {TRIES}"
                if self._wrong >= TRIES:
                    self._console.warning(said)
                    return "wrong", terminal
                delay = _FIRST_DELAY * 2 ** (self._wrong - 1)
                self._console.warning(f"{said}; the next one in {delay:.0f} s")
                self._pause(delay)
                self._prompt.again(question)
        finally:
            self._prompt.withdraw(question)

    def _answered(self, question: Question, answer: bytearray | None) -> None:
        self._answers.append(answer)

    def _pause(self, seconds: float) -> None:
        until = monotonic() + seconds
        while monotonic() < until:
            attend(self._keyboard, self._children, until)


def _is_right(answer: bytearray, hashed: str, library: str) -> bool:
    """Whether ``answer`` has this hash; whatever goes wrong, it has not. The answer is wiped."""
    from _operator import _compare_digest

    try:
        result = crypt(library, answer, hashed.encode("ascii"))
    except (OSError, ValueError):
        return False
    finally:
        wipe(answer)
    return result is not None and _compare_digest(result, hashed.encode("ascii"))
