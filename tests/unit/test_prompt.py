"""A question on all consoles at once, answered on any of them."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.kernel import keyboard as module
from pyinit.kernel.console import Console
from pyinit.kernel.keyboard import Keyboard
from pyinit.kernel.process import Children
from pyinit.kernel.prompt import Prompt, Question, attend
from pyinit.record import Record


class CountingPrompt(Prompt):
    """Knows how much has arrived: a terminal hands on what is written to its other end in its own time."""

    arrived = 0

    def typed(self, terminal: str, data: bytearray) -> None:
        self.arrived += len(data)
        super().typed(terminal, data)


class Desk:
    """Two terminals, and a person who looks at and types on both."""

    def __init__(self, paths: list[str], controllers: list[int]) -> None:
        self.paths, self.controllers = paths, controllers
        self.keyboard = Keyboard()
        self.console = Console(Record("1", "6.1"))
        self.console._screens = paths
        self.prompt = CountingPrompt(self.keyboard, self.console)
        self.answers: list[tuple[str, bytes | None]] = []

    def answered(self, question: Question, answer: bytearray | None) -> None:
        self.answers.append((question.terminal, None if answer is None else bytes(answer)))

    def type(self, where: int, data: bytes) -> None:
        whole = self.prompt.arrived + len(data)
        os.write(self.controllers[where], data)
        while self.prompt.arrived < whole and self.keyboard.descriptors():
            assert wait_readable(*self.keyboard.descriptors())
            for descriptor in self.keyboard.descriptors():
                self.keyboard.read(descriptor)

    def sees(self, where: int, expected: bytes) -> bool:
        """Whether this and nothing else is what has appeared there since the last look."""
        found = b""
        while len(found) < len(expected) and wait_readable(self.controllers[where]):
            found += os.read(self.controllers[where], 4096)
        assert found == expected
        return True


def wait_readable(*descriptors: int) -> bool:
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(10_000))


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    pairs = [os.openpty() for _ in range(2)]
    paths = [os.ttyname(device) for _, device in pairs]
    monkeypatch.setattr(module, "active_consoles", lambda: paths)
    for controller, _ in pairs:
        os.set_blocking(controller, False)
    desk = Desk(paths, [controller for controller, _ in pairs])
    yield desk
    desk.keyboard.close()
    for pair in pairs:
        for end in pair:
            os.close(end)


def test_it_is_asked_everywhere_and_what_is_typed_is_shown_here_only_as_stars(desk: Desk) -> None:
    question = desk.prompt.ask("Password: ", desk.answered)
    desk.type(0, b"geheim")
    assert desk.sees(0, b"Password: ******")
    assert desk.sees(1, b"Password: ")
    desk.type(1, b"open\r")
    assert desk.answers == [(desk.paths[1], b"open")]
    desk.prompt.withdraw(question, "Thank you.")
    assert desk.sees(0, b"\r\nThank you.\r\n")
    assert desk.sees(1, b"****\r\nThank you.\r\n")
    assert desk.keyboard.descriptors() == ()


def test_a_wrong_answer_leaves_the_line_of_another_console_alone(desk: Desk) -> None:
    question = desk.prompt.ask("Password: ", desk.answered)
    desk.type(0, b"half a")
    desk.type(1, b"wrong\r")
    desk.prompt.again(question, "No.")
    assert desk.sees(1, b"Password: *****\r\nNo.\r\nPassword: ")
    desk.type(0, b" word\r")
    assert desk.answers == [(desk.paths[1], b"wrong"), (desk.paths[0], b"half a word")]


def test_answers_come_one_at_a_time_and_what_is_typed_ahead_is_dropped(desk: Desk) -> None:
    question = desk.prompt.ask("Password: ", desk.answered)
    desk.type(0, b"first\rmore\r")
    desk.type(0, b"dropped\r")
    desk.type(1, b"second\r")
    assert desk.answers == [(desk.paths[0], b"first")]
    desk.prompt.again(question)
    assert desk.answers == [(desk.paths[0], b"first"), (desk.paths[1], b"second")]
    desk.prompt.again(question)
    desk.type(0, b"third\r")
    assert desk.answers[2:] == [(desk.paths[0], b"third")]


@pytest.mark.parametrize("keys", [b"abc\x03", b"\x04", b"x" * 5000 + b"\r"])
def test_giving_up_is_an_answer(keys: bytes, desk: Desk) -> None:
    desk.prompt.ask("Password: ", desk.answered)
    for start in range(0, len(keys), 1000):
        desk.type(0, keys[start : start + 1000])
    assert desk.answers == [(desk.paths[0], None)]


def test_a_line_of_the_log_does_not_take_the_question_out_of_sight(desk: Desk) -> None:
    question = desk.prompt.ask("Name: ", desk.answered, secret=False)
    desk.type(0, b"ab")
    desk.console.write("pyinit: news\n")
    assert desk.sees(0, b"Name: ab\r\npyinit: news\r\nName: ab")
    assert desk.sees(1, b"Name: \r\npyinit: news\r\nName: ")
    desk.type(0, b"c\r")
    assert desk.sees(0, b"c\r\n")
    desk.console.write("pyinit: looking\n")
    assert desk.sees(0, b"pyinit: looking\r\n")
    assert desk.answers == [(desk.paths[0], b"abc")]
    desk.prompt.withdraw(question)
    desk.console.write("pyinit: over\n")
    assert desk.sees(0, b"pyinit: over\r\n")


def test_questions_wait_for_their_turn(desk: Desk) -> None:
    first = desk.prompt.ask("One: ", desk.answered)
    second = desk.prompt.ask("Two: ", desk.answered)
    third = desk.prompt.ask("Three: ", desk.answered)
    assert desk.sees(0, b"One: ")
    desk.prompt.withdraw(second)
    desk.prompt.withdraw(first)
    assert desk.sees(0, b"\r\nThree: ")
    desk.type(1, b"3\r")
    assert desk.answers == [(desk.paths[1], b"3")]
    desk.prompt.withdraw(third)
    desk.prompt.withdraw(third)
    assert desk.keyboard.descriptors() == ()


def test_the_owner_may_ask_and_withdraw_while_it_is_told(desk: Desk) -> None:
    answers = []

    def answered(question: Question, answer: bytearray | None) -> None:
        answers.append(answer)
        desk.prompt.withdraw(question)
        if len(answers) == 1:
            desk.prompt.ask("Once more: ", answered)

    desk.prompt.ask("Password: ", answered)
    desk.type(0, b"one\r")
    desk.type(1, b"two\r")
    assert answers == [b"one", b"two"]
    assert desk.keyboard.descriptors() == ()


def test_waiting_ends_with_a_key_a_child_or_the_time(desk: Desk) -> None:
    children = Children(Record("1", "6.1"))
    desk.prompt.ask("Password: ", desk.answered)
    os.write(desk.controllers[0], b"abc\r")
    while not desk.answers:
        attend(desk.keyboard, children)
    assert desk.answers == [(desk.paths[0], b"abc")]
    attend(desk.keyboard, children, until=0.0)


@given(st.lists(st.tuples(st.integers(0, 1), st.binary(max_size=30)), max_size=20))
def test_whatever_is_typed_every_answer_is_what_one_console_typed(keys: list[tuple[int, bytes]]) -> None:
    class Silent(Keyboard):
        def __init__(self) -> None:
            super().__init__()
            self.shown: dict[str, bytes] = {"0": b"", "1": b""}

        def terminals(self) -> tuple[str, ...]:
            return ("0", "1")

        def _open(self) -> None:
            pass

        def echo(self, terminal: str, data: bytes) -> None:
            self.shown[terminal] += data

    keyboard = Silent()
    prompt = Prompt(keyboard, Console(Record("1", "6.1")))
    answers: list[tuple[str, bytes]] = []

    def answered(question: Question, answer: bytearray | None) -> None:
        answers.append((question.terminal, b"" if answer is None else bytes(answer)))
        prompt.again(question)

    prompt.ask("Password: ", answered)
    for where, data in keys:
        prompt.typed(str(where), bytearray(data))
    for name in ("0", "1"):
        typed = b"".join(data for where, data in keys if str(where) == name)
        assert all(set(answer) <= set(typed) for terminal, answer in answers if terminal == name)
        assert set(keyboard.shown[name]) <= set(b"Password: *\b\n")
