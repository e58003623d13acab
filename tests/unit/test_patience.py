"""Calls that do not return, processes that cannot be started, memory that is short."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyinit.errors import BootError
from pyinit.kernel import memory, process
from pyinit.kernel.console import Console
from pyinit.kernel.patience import Call, Patience, unanswered
from pyinit.kernel.process import Children
from pyinit.record import Record


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> Console:
    console = Console(Record("", ""))
    monkeypatch.setattr(console, "write", lambda text: None)
    return console


@pytest.fixture
def answer() -> Iterator[threading.Event]:
    """What a call waits for; it comes at the end."""
    event = threading.Event()
    yield event
    event.set()


def test_a_call_returns_and_raises_what_the_function_does(console: Console) -> None:
    patience = Patience(console)
    assert patience.call("adding", lambda one, other: one + other, 1, 2) == 3
    with pytest.raises(ZeroDivisionError):
        patience.call("dividing", lambda: 1 // 0)
    assert console.record.data["messages"] == []


def test_a_call_that_does_not_return_is_given_up_and_waited_for_at_the_end(
    console: Console, answer: threading.Event
) -> None:
    patience = Patience(console)
    patience.limit = 0
    with pytest.raises(BootError) as caught:
        patience.call("loading virtio_blk", answer.wait)
    assert caught.value.code == "E-HANG"
    assert caught.value.cause.startswith("loading virtio_blk does not end")
    with pytest.raises(BootError):
        patience.finish()
    answer.set()
    patience.limit = None
    patience.finish()


def test_who_asks_again_for_what_still_hangs_gets_what_comes_of_it(
    console: Console, answer: threading.Event
) -> None:
    """A mount that was given up and comes late must not be made a second time."""
    made: list[str] = []

    def mount(place: str) -> str:
        made.append(place)
        answer.wait()
        return f"mounted on {place}"

    patience = Patience(console)
    patience.limit = 0
    for place in ("/a", "/b", "/a"):
        with pytest.raises(BootError, match="E-HANG"):
            patience.call("mounting", mount, place)
    answer.set()
    patience.limit = None
    assert patience.call("mounting", mount, "/a") == "mounted on /a"
    assert patience.call("mounting", mount, "/b") == "mounted on /b"
    assert sorted(made) == ["/a", "/b"]
    patience.finish()


def test_where_there_can_be_no_thread_the_call_is_made_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(function: object, arguments: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("pyinit.kernel.patience.start_new_thread", refuse)
    call = Call(lambda: 7)
    assert call.wait(0) and call.result() == 7


def test_who_owes_an_answer(tmp_path: Path) -> None:
    for name, inflight in (
        ("vda", "       1        0\n"),
        ("vdb", "0 0\n"),
        ("vdc", "2 3\n"),
        ("x\x1b", "1 x"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "inflight").write_text(inflight)
    (tmp_path / "none").mkdir()
    assert unanswered(str(tmp_path)) == (
        "/dev/vda has not answered 1 request",
        "/dev/vdc has not answered 5 requests",
    )


class Spawner:
    """posix_spawn(3) that fails so many times."""

    def __init__(self, failures: int, number: int) -> None:
        self.failures = failures
        self.number = number

    def __call__(self, *arguments: object, **options: object) -> int:
        if self.failures:
            self.failures -= 1
            raise OSError(self.number, os.strerror(self.number))
        return 4711


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Children:
    monkeypatch.setattr(process, "sleep", lambda seconds: None)
    said: list[str] = []
    children = Children(Record("", ""), said.append)
    monkeypatch.setattr(children, "reap", lambda: None)
    return children


@pytest.mark.fault("X3")
def test_a_process_is_tried_again_while_there_is_no_room(
    children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_spawn", Spawner(5, errno.EAGAIN))
    assert children.start(("/bin/x",)) == 4711


@pytest.mark.fault("X3")
@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM])
def test_at_last_it_is_explained_with_figures(
    number: int, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_spawn", Spawner(100, number))
    with pytest.raises(BootError) as caught:
        children.start(("/bin/x\x1b",))
    assert caught.value.code == "E-FORK"
    assert r"/bin/x\x1b" in caught.value.cause
    assert "pid_max" in caught.value.found[0] and "memory: " in caught.value.found[1]


def test_what_is_not_there_is_not_tried_again(children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_spawn", Spawner(1, errno.ENOENT))
    with pytest.raises(FileNotFoundError):
        children.start(("/bin/x",))


def test_figures_of_a_system_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "read_if_there", lambda path: b"")
    (line,) = memory.figures()
    assert line.startswith("memory: ") and line.endswith(" MiB available")
