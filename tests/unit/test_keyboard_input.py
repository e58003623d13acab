"""What is typed on the consoles reaches the newest listener, and the terminals come back as they were."""

from __future__ import annotations

import os
import select
import termios
from collections.abc import Iterator

import pytest

from pyinit.kernel import keyboard as module
from pyinit.kernel.keyboard import Keyboard


class Ear:
    def __init__(self) -> None:
        self.heard: list[tuple[str, bytes]] = []

    def typed(self, terminal: str, data: bytearray) -> None:
        self.heard.append((terminal, bytes(data)))


@pytest.fixture
def terminals(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, str]]]:
    """(controller, path) of two terminals that are the consoles."""
    pairs = [os.openpty() for _ in range(2)]
    paths = [os.ttyname(device) for _, device in pairs]
    monkeypatch.setattr(module, "active_consoles", lambda: [*paths, "/nonexistent"])
    yield [(controller, path) for (controller, _), path in zip(pairs, paths, strict=True)]
    for pair in pairs:
        for end in pair:
            os.close(end)


def type_and_read(keyboard: Keyboard, controller: int, data: bytes) -> None:
    """Wait until it is there: a terminal hands on what is written to its other end in its own time."""
    os.write(controller, data)
    poll = select.poll()
    for descriptor in keyboard.descriptors():
        poll.register(descriptor, select.POLLIN)
    for descriptor, _ in poll.poll(10_000):
        keyboard.read(descriptor)


def test_the_newest_listener_hears_every_console_and_signals_are_bytes(
    terminals: list[tuple[int, str]],
) -> None:
    keyboard, first, second = Keyboard(), Ear(), Ear()
    keyboard.listen(first)
    keyboard.listen(second)
    for controller, _ in terminals:
        type_and_read(keyboard, controller, b"\x03\x1a\x1c")
    assert second.heard == [(path, b"\x03\x1a\x1c") for _, path in terminals]
    keyboard.leave(second)
    type_and_read(keyboard, terminals[0][0], b"x")
    assert first.heard == [(terminals[0][1], b"x")]
    keyboard.leave(first)
    assert keyboard.descriptors() == ()


def echoes(path: str) -> bool:
    with open(path, "rb", buffering=0) as file:
        return bool(termios.tcgetattr(file)[3] & termios.ECHO)


def test_what_is_typed_before_somebody_listens_is_not_shown_and_not_lost(
    terminals: list[tuple[int, str]],
) -> None:
    keyboard, ear = Keyboard(), Ear()
    controller, path = terminals[0]
    keyboard.hush()
    assert keyboard.descriptors() == () and not echoes(path)
    os.write(controller, b"ab")
    keyboard.listen(ear)
    typed = b"c"
    while sum(len(data) for _, data in ear.heard) < 3:
        type_and_read(keyboard, controller, typed)
        typed = b""
    assert b"".join(data for _, data in ear.heard) == b"abc"
    keyboard.leave(ear)
    assert keyboard.descriptors() == () and not echoes(path)
    keyboard.unhush()
    assert echoes(path)
    assert not select.select([controller], [], [], 0)[0]
    keyboard.listen(ear)
    keyboard.unhush()
    assert len(keyboard.descriptors()) == 2 and not echoes(path)
    keyboard.leave(ear)
    assert echoes(path)


def test_every_byte_arrives_and_a_break_is_no_end(terminals: list[tuple[int, str]]) -> None:
    keyboard, ear = Keyboard(), Ear()
    keyboard.listen(ear)
    # A break on a serial line is a NUL; at the end of a read it is dropped.
    type_and_read(keyboard, terminals[0][0], b"\0")
    assert len(keyboard.descriptors()) == 2
    for byte in range(1, 256):
        type_and_read(keyboard, terminals[0][0], bytes((byte,)))
    heard = b"".join(data for _, data in ear.heard)
    assert heard == bytes(range(1, 256)).replace(b"\r", b"\n")
    keyboard.leave(ear)


def test_nothing_that_was_typed_stays_in_the_buffers(terminals: list[tuple[int, str]]) -> None:
    kept: list[bytearray] = []

    class Keeper:
        def typed(self, terminal: str, data: bytearray) -> None:
            assert data == b"secret"
            kept.append(data)

    keyboard, ear = Keyboard(), Keeper()
    keyboard.listen(ear)
    type_and_read(keyboard, terminals[0][0], b"secret")
    assert kept == [bytearray(6)]
    assert not any(keyboard._buffer)
    keyboard.leave(ear)


def test_terminals_are_given_back_as_they_were(terminals: list[tuple[int, str]]) -> None:
    def settings() -> list[object]:
        with open(terminals[0][1], "rb", buffering=0) as file:
            return termios.tcgetattr(file)

    before = settings()
    keyboard, ear = Keyboard(), Ear()
    keyboard.listen(ear)
    assert settings() != before
    keyboard.close()
    assert settings() == before
    keyboard.reopen()
    type_and_read(keyboard, terminals[0][0], b"again")
    assert ear.heard == [(terminals[0][1], b"again")]
    keyboard.leave(ear)
    assert settings() == before


def test_a_terminal_that_is_gone_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    controller, device = os.openpty()
    path = os.ttyname(device)
    monkeypatch.setattr(module, "active_consoles", lambda: [path])
    keyboard, ear = Keyboard(), Ear()
    keyboard.listen(ear)
    os.close(controller)
    for descriptor in keyboard.descriptors():
        keyboard.read(descriptor)
    assert keyboard.descriptors() == ()
    assert ear.heard == []
    keyboard.leave(ear)
    os.close(device)
