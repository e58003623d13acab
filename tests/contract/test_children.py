"""Child processes, started for real."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyinit.kernel.process import ENVIRONMENT, Children
from pyinit.record import Record


@pytest.fixture
def children() -> Iterator[Children]:
    before = signal.getsignal(signal.SIGCHLD)
    yield Children(Record("1", "6"))
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, before)


@pytest.fixture
def output_of(children: Children, tmp_path: Path) -> Callable[..., str]:
    """Run a program to its end and return what it wrote."""

    def run(*argv: str) -> str:
        with (tmp_path / "output").open("w+b") as file:
            pid = children.start(argv, stdout=file.fileno())
            assert children.wait(pid, 30) == 0
            file.seek(0)
            return file.read().decode()

    return run


def test_output_and_errors_go_to_one_place(output_of: Callable[..., str]) -> None:
    assert output_of("/bin/sh", "-c", "echo out; echo err >&2") == "out\nerr\n"


def test_the_environment_is_an_allow_list(
    output_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_DEBUG", "help")
    monkeypatch.setenv("PYTHONINSPECT", "1")
    words = output_of("/usr/bin/env").splitlines()
    assert sorted(words) == sorted(f"{key}={value}" for key, value in ENVIRONMENT.items())


def test_no_descriptor_of_ours_is_inherited(output_of: Callable[..., str]) -> None:
    ours = set(map(str, os.pipe()))
    output = output_of("/bin/ls", "-l", "/proc/self/fd")
    names = {line.split(" -> ")[0].split()[-1] for line in output.splitlines()[1:]}
    assert names >= {"0", "1", "2"}
    # ls itself opens the lowest free one on the directory.
    assert not (names & ours) - {"3"}
    assert "0 -> /dev/null" in output


def test_signals_are_reset(output_of: Callable[..., str]) -> None:
    """Python ignores SIGPIPE and SIGXFSZ, and ignored signals survive exec (signal(7))."""
    pairs = [line.partition(":") for line in output_of("/bin/cat", "/proc/self/status").splitlines()]
    masks = {name: value.strip() for name, _, value in pairs}
    library_keeps = 1 << 31 | 1 << 32
    for name in ("SigBlk", "SigIgn", "SigCgt"):
        assert int(masks[name], 16) & ~library_keeps == 0


def test_a_program_on_a_terminal_leads_a_session_that_owns_it(children: Children) -> None:
    controller, terminal = os.openpty()
    pid = children.start(
        ("/bin/sh", "-c", "ps -o pid=,sid=,tpgid= $$; exit 7"), terminal=os.ttyname(terminal)
    )
    assert children.wait(pid, 30) == 7
    text = b""
    while text.count(b"\n") < 1 and select.select([controller], [], [], 30)[0]:
        text += os.read(controller, 4096)
    numbers = text.split()
    assert numbers == [str(pid).encode()] * 3


def test_a_program_that_is_not_there(children: Children) -> None:
    with pytest.raises(FileNotFoundError):
        children.start(("/nonexistent/program",))


def test_statuses_do_not_get_mixed_up(children: Children) -> None:
    pids = [children.start(("/bin/sh", "-c", f"exit {number}")) for number in range(20)]
    statuses = [children.wait(pid, 30) for pid in reversed(pids)]
    assert statuses == list(reversed(range(20)))


def test_children_that_were_not_started_here_are_reaped_and_counted(children: Children) -> None:
    children.watch()
    stranger = os.posix_spawn("/bin/true", ["true"], {})
    ours = children.start(("/bin/sh", "-c", "exit 5"))
    os.waitid(os.P_PID, stranger, os.WEXITED | os.WNOWAIT)
    assert children.wait(ours, 30) == 5
    assert children.orphans == 1
    assert not os.path.exists(f"/proc/{stranger}")


def test_waiting_gives_up_when_it_is_told_to(children: Children) -> None:
    pid = children.start(("/bin/sleep", "1000"))
    assert children.wait(pid, 0.05) is None
    os.kill(pid, signal.SIGKILL)
    assert children.wait(pid, None) == -signal.SIGKILL


def test_programs_come_to_rest_but_for_those_that_stay(children: Children) -> None:
    stays = children.start(["/bin/sleep", "1000"])
    ends = [children.start(["/bin/sh", "-c", f"exit {number}"]) for number in range(3)]
    children.settle(30, {stays})
    assert [children.status(pid) for pid in ends] == [0, 1, 2]
    assert children.status(stays) is None
    # One that does not end is not waited for longer than that.
    children.settle(0)
    assert children.status(stays) is None
    os.kill(stays, signal.SIGKILL)
    assert children.wait(stays, 30) == -signal.SIGKILL
