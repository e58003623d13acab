"""The countdown in place: nothing that others print is lost, whatever comes in between."""

from __future__ import annotations

import os
import re
import select
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.devices.progress import Progress, countdown, state
from pyinit.kernel import keyboard as keyboard_module
from pyinit.kernel.console import Console
from pyinit.kernel.countdown import Countdown, KernelMessages
from pyinit.kernel.keyboard import Keyboard
from pyinit.record import Record


class Screen:
    """What a terminal shows, as far as these few sequences go."""

    def __init__(self) -> None:
        self.lines = [""]

    def feed(self, text: str) -> None:
        for part in re.split(r"(\x1b\[[0-9]*[A-Z]|\r|\n)", text):
            if part == "\x1b[A":
                self.lines.pop()
            elif part == "\x1b[K":
                self.lines[-1] = ""
            elif part == "\n":
                self.lines.append("")
            elif part != "\r":
                self.lines[-1] += part


class FakeMessages:
    """A kernel that prints when it is told to."""

    def __init__(self) -> None:
        self.news = False

    def printed(self) -> bool:
        news, self.news = self.news, False
        return news

    def close(self) -> None:
        pass


class FakeConsole(Console):
    """A console of terminals that are remembered."""

    def __init__(self, *paths: str) -> None:
        super().__init__(Record("1", "6"))
        self._screens = list(paths)
        self.shown = {path: Screen() for path in paths}

    def write_to(self, path: str, data: bytes) -> None:
        keep = self.last_line
        self.shown[path].feed((keep.lift(path) + data + keep.lay(path) if keep else data).decode())


Step = tuple[str, str]


@given(st.lists(st.tuples(st.sampled_from(["show", "write", "kernel"]), st.sampled_from("abc")), max_size=12))
def test_every_line_of_others_stays_and_one_countdown_is_last(steps: list[Step]) -> None:
    console, messages = FakeConsole("/dev/tty0", "/dev/ttyS0"), FakeMessages()
    line = Countdown(console, messages)  # type: ignore[arg-type]
    others = []
    shown = ""
    for what, text in steps:
        if what == "show":
            shown = f"left {text}"
            assert line.show(shown, ("/dev/tty0",))
        elif what == "write":
            others.append(text)
            console.write(f"{text}\n")
        else:
            others.append(f"kernel {text}")
            messages.news = True
            for screen in console.shown.values():
                screen.feed(f"kernel {text}\n")
    seen = console.shown["/dev/tty0"].lines
    assert [text for text in seen if text and not text.startswith("left")] == others
    if shown:
        assert shown in seen
        if steps[-1][0] != "kernel":
            assert seen[-2:] == [shown, ""]
    assert console.shown["/dev/ttyS0"].lines == [*others, ""]
    line.clear()
    if not any(what == "kernel" for what, _ in steps):
        assert console.shown["/dev/tty0"].lines == [*others, ""]


def test_a_question_in_the_last_line_is_left_alone() -> None:
    class Question:
        def lift(self, terminal: str) -> bytes:
            return b"\n"

        def lay(self, terminal: str) -> bytes:
            return b"Password: "

    console = FakeConsole("/dev/tty0")
    line = Countdown(console, FakeMessages())  # type: ignore[arg-type]
    assert line.show("9 s left", ("/dev/tty0",))
    console.last_line = question = Question()
    assert not line.show("8 s left", ("/dev/tty0",))
    line.clear()
    assert console.last_line is question
    console.last_line = None
    assert line.show("7 s left", ("/dev/tty0",))
    assert console.shown["/dev/tty0"].lines == ["9 s left", "7 s left", ""]


def test_what_the_kernel_prints_is_noticed(tmp_path: Path) -> None:
    levels = tmp_path / "printk"
    levels.write_bytes(b"4\t4\t1\t7\n")
    log = tmp_path / "kmsg"
    log.write_bytes(b"3,0,0,-;before\n")
    messages = KernelMessages(str(log), str(levels))
    writer = os.open(log, os.O_WRONLY | os.O_APPEND)
    assert not messages.printed()
    for record, shown in ((b"6,1,1,-;quiet\n", False), (b"3,2,1,-;error\n", True), (b"11,3,1,-;err\n", True),
                          (b"nonsense", False)):  # fmt: skip
        os.write(writer, record)
        assert messages.printed() == shown
        assert not messages.printed()
    os.close(writer)
    messages.close()
    assert not messages.printed()
    assert not KernelMessages("/nonexistent").printed()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, str]]:
    """(the other end, the path) of a serial console of 40 columns."""
    import termios

    controller, device = os.openpty()
    termios.tcsetwinsize(device, (25, 40))
    monkeypatch.setattr(keyboard_module, "active_consoles", lambda: [os.ttyname(device)])
    yield controller, os.ttyname(device)
    os.close(controller)
    os.close(device)


def seen(controller: int, last: str) -> str:
    """What arrived, up to ``last``: the kernel passes it on piece by piece."""
    text = ""
    while not text.endswith(last) and select.select([controller], [], [], 30)[0]:
        text += os.read(controller, 65536).decode()
    return text


def press(keyboard: Keyboard, controller: int, keys: bytes) -> None:
    os.write(controller, keys)
    for descriptor in select.select(keyboard.descriptors(), [], [], 30)[0]:
        keyboard.read(descriptor)


def test_a_serial_line_gets_a_line_every_ten_seconds_until_a_key_makes_it_a_terminal(
    terminal: tuple[int, str],
) -> None:
    controller, path = terminal
    console, keyboard = Console(Record("1", "6")), Keyboard()
    console._screens = [path]
    progress = Progress(console, keyboard, 180.0, shell=True)
    progress.tell(105.0, "root: LABEL=x", 5.0, 175.0, ["block devices: none", "luks: a passphrase"])
    hint = "keys: s opens a shell, w waits 180 s longer"
    first = "waiting for root: LABEL=x since 5 s, 175 s more; block devices: none; luks: a passphrase"
    assert seen(controller, "longer\r\n") == f"pyinit: {first}; {hint}\r\n"
    assert progress.due == 115.0
    progress.tell(115.0, "root: LABEL=x", 15.0, 165.0, ["block devices: vda"])
    assert seen(controller, "vda\r\n") == (
        "pyinit: waiting for root: LABEL=x since 15 s, 165 s more; block devices: vda\r\n"
    )
    assert [m["text"] for m in console.record.data["messages"]] == [f"{first}; {hint}"]

    press(keyboard, controller, b"x")
    assert progress.due == 0.0
    for waited in (16, 17):
        progress.tell(100.0 + waited, "root: LABEL=x", waited, 180.0 - waited, [])
    assert progress.due == 118.0
    # Cut to 39 columns, written again in its place.
    cut = "pyinit: 16{} s left; keys: s opens a shell, w"[:40]
    expected = f"{cut.format(4)}\r\n\x1b[A\r\x1b[K{cut.format(3)}\r\n"
    assert seen(controller, expected[-45:]) == expected
    progress.end()
    assert seen(controller, "\x1b[K") == "\x1b[A\r\x1b[K"
    assert keyboard.descriptors() == ()


@pytest.mark.parametrize(
    ("keys", "shell", "seconds"),
    [
        (b"s", True, 0.0),
        (b"S", True, 0.0),
        (b"w", False, 60.0),
        (b"root\n", False, 0.0),
        (b"\x03", False, 0.0),
    ],
)
def test_keys(keys: bytes, shell: bool, seconds: float, terminal: tuple[int, str]) -> None:
    console, keyboard = Console(Record("1", "6")), Keyboard()
    progress = Progress(console, keyboard, 60.0, shell=True)
    press(keyboard, terminal[0], keys)
    assert (progress.shell_wanted, progress.seconds_wanted) == (shell, seconds)
    progress.end()


def test_without_a_shell_no_key_is_read(terminal: tuple[int, str]) -> None:
    console, keyboard = Console(Record("1", "6")), Keyboard()
    console._screens = [terminal[1]]
    progress = Progress(console, keyboard, None, shell=False)
    assert keyboard.descriptors() == ()
    progress.tell(5.0, "root: LABEL=x", 5.0, None, [])
    expected = "pyinit: waiting for root: LABEL=x since 5 s, for ever (rootwait)\r\n"
    assert seen(terminal[0], expected) == expected
    progress.end()


def test_a_question_gets_the_keys_first(terminal: tuple[int, str]) -> None:
    heard = []

    class Question:
        def typed(self, terminal: str, data: bytes | bytearray) -> None:
            heard.append(bytes(data))

    keyboard = Keyboard()
    question = Question()
    keyboard.listen(question)
    console = Console(Record("1", "6"))
    console._screens = [terminal[1]]
    progress = Progress(console, keyboard, None, shell=True)
    press(keyboard, terminal[0], b"s")
    assert (heard, progress.shell_wanted) == ([b"s"], False)
    progress.tell(5.0, "root: x", 5.0, None, [])
    assert (
        seen(terminal[0], "(rootwait)\r\n")
        == "pyinit: waiting for root: x since 5 s, for ever (rootwait)\r\n"
    )
    keyboard.leave(question)
    press(keyboard, terminal[0], b"s")
    assert progress.shell_wanted
    progress.end()


def test_what_must_be_seen_comes_first() -> None:
    assert countdown("root: LABEL=x", 7.9, None, "") == "pyinit: 7 s; root: LABEL=x"
    assert state("root: x", 5.4, None, []) == "waiting for root: x since 5 s, for ever (rootwait)"
