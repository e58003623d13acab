"""What the console shows, and that it never stops a boot."""

from __future__ import annotations

import os
import select
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyinit.kernel.console import Console
from pyinit.kernel.terminal import write_patiently
from pyinit.record import Record


@pytest.fixture
def terminal() -> Iterator[tuple[int, str]]:
    """(the other end, the path) of a terminal."""
    controller, device = os.openpty()
    yield controller, os.ttyname(device)
    os.close(controller)
    os.close(device)


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch, terminal: tuple[int, str]) -> Console:
    console = Console(Record("1", "6"))
    monkeypatch.setattr(console, "_screens", [terminal[1]])
    return console


def shown(controller: int, last: str) -> str:
    """What arrived, up to the line ``last``: the kernel passes it on piece by piece."""
    text = ""
    while not text.endswith(f"{last}\n") and select.select([controller], [], [], 30)[0]:
        text += os.read(controller, 65536).decode().replace("\r\n", "\n")
    return text


@pytest.mark.parametrize(
    ("informative", "verbose", "expected"),
    [
        (False, False, "pyinit: n\npyinit: warning: w\npyinit: e\n"),
        (True, False, "pyinit: i\npyinit: n\npyinit: warning: w\npyinit: e\n"),
        (True, True, "pyinit: d\npyinit: i\npyinit: n\npyinit: warning: w\npyinit: e\n"),
    ],
)
def test_levels(
    informative: bool, verbose: bool, expected: str, console: Console, terminal: tuple[int, str]
) -> None:
    console.informative, console.verbose = informative, verbose
    for say, text in ((console.debug, "d"), (console.info, "i"), (console.notice, "n"),
                      (console.warning, "w"), (console.error, "e")):  # fmt: skip
        say(text)
    assert shown(terminal[0], "pyinit: e") == expected
    assert len(console.record.data["messages"]) == 5


def test_a_quiet_console_does_not_show_what_is_told_for_debugging(
    console: Console, terminal: tuple[int, str]
) -> None:
    console.verbose = console.quiet = True
    console.debug("d")
    console.info("i")
    console.error("e")
    assert shown(terminal[0], "pyinit: e") == "pyinit: e\n"


def test_a_terminal_that_was_hung_up_is_opened_anew(
    console: Console, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "tty"
    monkeypatch.setattr(console, "_screens", [str(path)])
    open_before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        controller, device = os.openpty()
        path.unlink(missing_ok=True)
        path.symlink_to(os.ttyname(device))
        for text in ("one", "two"):
            console.error(text)
        assert shown(controller, "pyinit: two") == "pyinit: one\npyinit: two\n"
        os.close(controller)
        os.close(device)
    # One stays open, so that no line is the last that has it open.
    assert len(os.listdir("/proc/self/fd")) == open_before + 1


def test_every_console_shows_it(
    console: Console, terminal: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    controller, device = os.openpty()
    monkeypatch.setattr(console, "_screens", [terminal[1], "/nonexistent", os.ttyname(device)])
    console.error("hello")
    for end in (terminal[0], controller):
        assert shown(end, "pyinit: hello") == "pyinit: hello\n"
    os.close(controller)
    os.close(device)


def test_a_stopped_terminal_is_waited_for_once(
    console: Console, terminal: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    def write(fd: int, data: bytes, patience: float) -> bool:
        waited.append(patience)
        return write_patiently(fd, data, min(patience, 0.01))

    monkeypatch.setattr("pyinit.kernel.terminal.write_patiently", write)
    device = os.open(terminal[1], os.O_RDWR | os.O_NOCTTY)
    termios.tcflow(device, termios.TCOOFF)
    for number in range(20):
        console.error(f"lost {number}")
    assert waited == [1.0] + [0.0] * 19
    assert len(console.record.data["messages"]) == 20
    termios.tcflow(device, termios.TCOON)
    console.error("first")
    console.error("second")
    assert shown(terminal[0], "pyinit: second") == "pyinit: first\npyinit: second\n"
    # Waited for like any other again.
    assert waited[-2:] == [0.0, 1.0]
    os.close(device)


def test_a_terminal_that_takes_nothing_is_given_up() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    assert not write_patiently(writer, b"x" * 1_000_000, patience=0.01)
    os.close(reader)
    assert not write_patiently(writer, b"x")
    os.close(writer)
