"""PID 1 goes on whatever a stage raises: explained, then the rescue policy, then again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from pyinit.boot import Boot
from pyinit.devices.waiting import ShellWanted
from pyinit.errors import BootError
from pyinit.rescue.guard import MAX_NOBODY_THERE
from pyinit.rescue.shell import Policy
from pyinit.switch_root import Stranded


class GivenUp(Exception):
    """Stands for the end of the machine."""


class FakePolicy:
    """A policy whose shell a person leaves at once, or takes a moment to leave."""

    def __init__(
        self,
        *,
        allowed: bool = True,
        ending: str = "left",
        emergency: str = "",
        clock: Callable[[], None] = lambda: None,
    ):
        self.open = allowed
        self.level = "open" if allowed else "none"
        self.ending = ending
        self.ends = emergency
        self.clock = clock
        self.shells = 0

    def run_shell(self, stage: str, children: object, console: object, *, failed: bool, only: str) -> str:
        self.shells += 1
        self.clock()
        return self.ending

    def give_up(self, why: str, console: object) -> None:
        raise GivenUp(why)


@pytest.fixture
def boot(monkeypatch: pytest.MonkeyPatch) -> Boot:
    boot = Boot([], [b"/init"])
    monkeypatch.setattr(boot.console, "write", lambda text: None)
    return boot


def with_policy(boot: Boot, policy: FakePolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot.guard, "policy", lambda: cast(Policy, policy))


def failing(*exceptions: BaseException) -> Callable[[], None]:
    left = list(exceptions)

    def stage() -> None:
        if left:
            raise left.pop(0)

    return stage


@pytest.mark.parametrize(
    "exception",
    [
        BootError("E-MOUNT", "no"),
        ValueError("x"),
        MemoryError(),
        RecursionError("deep"),
        KeyboardInterrupt(),
        SystemExit(0),
        GeneratorExit(),
        OSError(5, "Input/output error"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"),
    ],
    ids=lambda exception: type(exception).__name__,
)
@pytest.mark.fault("P4")
def test_any_exception_is_explained_and_the_stage_tried_again(
    exception: BaseException, boot: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = FakePolicy()
    with_policy(boot, policy, monkeypatch)
    boot._go_through("mount", failing(exception))
    code = exception.code if isinstance(exception, BootError) else "E-INTERNAL"
    if isinstance(exception, MemoryError):
        code = "E-MEM"
    assert [stage["outcome"] for stage in boot.record.data["stages"]] == [code, "done"]
    assert boot.record.data["messages"][0]["text"].startswith(f"{code} ")
    assert policy.shells == 1


def test_an_explanation_that_fails_itself_does_not_stop_it(
    boot: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = FakePolicy()
    with_policy(boot, policy, monkeypatch)

    def broken(lines: list[str]) -> None:
        raise MemoryError

    monkeypatch.setattr(boot.guard, "write_report", broken)
    boot._go_through("mount", failing(ValueError("x")))
    assert policy.shells == 1


def test_without_a_shell_the_machine_is_ended(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    with_policy(boot, FakePolicy(allowed=False), monkeypatch)
    with pytest.raises(GivenUp, match="no rescue shell is allowed here"):
        boot._go_through("mount", failing(ValueError("x")))


class Volume:
    """A storage stack that notes when it is closed, or cannot be."""

    name = "volume"

    def __init__(self, events: list[str], error: Exception | None = None) -> None:
        self.events = events
        self.error = error

    def react(self, known: object) -> None:
        raise AssertionError

    def wake(self) -> float:
        raise AssertionError

    def waits_for(self) -> tuple[str, ...]:
        raise AssertionError

    def opened(self) -> tuple[str, ...]:
        return ("volume",)

    def close(self) -> None:
        self.events.append("closed")
        if self.error:
            raise self.error


@pytest.mark.parametrize("allowed", [True, False])
def test_volumes_are_closed_before_anything_else_follows(
    allowed: bool, boot: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    boot.assemblers.append(Volume(events))
    policy = FakePolicy(allowed=allowed, clock=lambda: events.append("shell"))
    with_policy(boot, policy, monkeypatch)
    try:
        boot._go_through("mount", failing(ValueError("x")))
    except GivenUp:
        events.append("given up")
    assert events == ["closed", "shell" if allowed else "given up"]


def test_a_volume_that_cannot_be_closed_allows_no_shell(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    boot.assemblers.append(Volume([], OSError(16, "Device or resource busy")))
    policy = FakePolicy()
    with_policy(boot, policy, monkeypatch)
    with pytest.raises(GivenUp, match=r"what was opened with a secret stays open .*busy"):
        boot._go_through("mount", failing(ValueError("x")))
    assert policy.shells == 0


def test_a_shell_that_cannot_be_started_ends_the_machine(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    with_policy(boot, FakePolicy(ending="failed"), monkeypatch)
    with pytest.raises(GivenUp, match="no rescue shell can be started"):
        boot._go_through("mount", failing(ValueError("x")))


def test_a_console_that_nobody_reads_does_not_keep_it_in_a_circle(
    boot: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = FakePolicy(ending="nobody")
    with_policy(boot, policy, monkeypatch)
    with pytest.raises(GivenUp, match="nobody answers"):
        boot._go_through("mount", failing(*[ValueError("x")] * 10))
    assert policy.shells == MAX_NOBODY_THERE


def test_a_person_may_try_as_often_as_they_like(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = FakePolicy()
    with_policy(boot, policy, monkeypatch)
    boot._go_through("mount", failing(*[ValueError("x")] * 10))
    assert policy.shells == 10


def test_after_the_point_of_no_return_there_is_no_shell(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = FakePolicy()
    with_policy(boot, policy, monkeypatch)
    with pytest.raises(GivenUp, match="went with the initramfs"):
        boot._go_through("switch-root", failing(Stranded("E-SWITCH", "x")))
    assert policy.shells == 0


@pytest.mark.parametrize("done", ["nothing", "pyinit retry", "pyinit set", "mounted"])
def test_what_rd_emergency_asks_for_comes_after_a_shell_in_which_nothing_was_done(
    done: str, boot: Boot, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    policy = FakePolicy(emergency="reboot")
    with_policy(boot, policy, monkeypatch)
    marker = tmp_path / "continue"
    monkeypatch.setattr("pyinit.rescue.guard.CONTINUE_PATH", str(marker))
    if done == "pyinit retry":
        marker.touch()
    monkeypatch.setattr(boot, "changed_command_line", lambda: done == "pyinit set")
    monkeypatch.setattr("pyinit.rescue.guard.is_mounted", lambda path: done == "mounted")
    if done == "nothing":
        with pytest.raises(GivenUp, match="the rescue shell was left"):
            boot._go_through("mount", failing(ValueError("x")))
    else:
        boot._go_through("mount", failing(ValueError("x")))
    assert policy.shells == 1


def test_a_key_while_it_waits_opens_a_shell_and_the_stage_comes_again(
    boot: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = FakePolicy(emergency="reboot")
    with_policy(boot, policy, monkeypatch)
    assert boot._go_through("initqueue", failing(ShellWanted()))
    assert [stage["outcome"] for stage in boot.record.data["stages"]] == ["interrupted", "done"]
    assert policy.shells == 1
    policy.open = False
    assert boot._go_through("initqueue", failing(ShellWanted()))
    assert policy.shells == 1
