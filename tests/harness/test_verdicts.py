"""Each verdict, by the pure function and by a QEMU that plays the case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pyinit_qemu import BootFailed, Machine, MachineError, Timeout, TimeScale, Verdict
from pyinit_qemu.console import Failure
from pyinit_qemu.verdict import Evidence, judge

Fake = Callable[..., Machine]
LONG = 60.0


@pytest.mark.parametrize(
    "scenario, verdict, reason",
    [
        ("pass", Verdict.PASS, "reached: the last frame (done) on the result channel"),
        ("panic", Verdict.PANIC, "Kernel panic - not syncing: Attempted to kill init!"),
        ("no-root", Verdict.PANIC, "Unable to mount root fs on unknown-block(0,0)"),
        ("panic-stays", Verdict.PANIC, "Attempted to kill init!"),
        ("traceback", Verdict.GUEST_FAIL, "a Python program failed"),
        ("failure-frame", Verdict.GUEST_FAIL, "the guest gave up: E-DEV no device has LABEL=x"),
        ("reset", Verdict.GUEST_FAIL, "the guest rebooted before this was seen"),
        ("truncated", Verdict.GUEST_FAIL, "cut off inside a line"),
        ("damaged", Verdict.GUEST_FAIL, "the result channel is damaged"),
        ("crash", Verdict.QEMU_CRASH, "QEMU ended with status 1: qemu-system-x86_64: out of luck"),
        ("signal", Verdict.QEMU_CRASH, "QEMU was ended by signal 11"),
        ("closed", Verdict.QEMU_CRASH, "closed its control connection while it was running"),
    ],
)
def test_the_end_is_judged_at_once(fake: Fake, scenario: str, verdict: Verdict, reason: str) -> None:
    outcome = fake(scenario).finish(LONG)
    assert outcome.verdict is verdict, outcome.report
    assert reason in outcome.reason
    assert outcome.seconds < LONG / 2


@pytest.mark.parametrize(
    "scenario, verdict",
    [
        ("pass", Verdict.GUEST_FAIL),
        ("panic", Verdict.PANIC),
        ("panic-stays", Verdict.PANIC),
        ("traceback", Verdict.GUEST_FAIL),
        ("failure-frame", Verdict.GUEST_FAIL),
        ("reset", Verdict.GUEST_FAIL),
        ("crash", Verdict.QEMU_CRASH),
        ("signal", Verdict.QEMU_CRASH),
        ("closed", Verdict.QEMU_CRASH),
    ],
)
def test_a_wait_does_not_outlive_the_guest(fake: Fake, scenario: str, verdict: Verdict) -> None:
    machine = fake(scenario)
    with pytest.raises(BootFailed) as failed:
        machine.expect("will never be said", LONG)
    assert failed.value.verdict is verdict
    report = failed.value.report
    assert "waited for: /will never be said/ on the console" in report
    assert "Linux version 0.0.0-fake" in report
    assert f"replay: {machine.folder / 'cmdline.sh'}" in report
    assert (machine.folder / "verdict.txt").read_text() == report + "\n"


def test_silence_until_the_deadline_is_a_hang(fake: Fake) -> None:
    machine = fake("hang")
    with pytest.raises(BootFailed) as failed:
        machine.expect("never", 0.5)
    assert failed.value.verdict is Verdict.HANG
    assert "CPUs running, instruction pointer 0000fff0, idle" in failed.value.report


def test_silence_is_a_hang_before_the_deadline(fake: Fake) -> None:
    machine = fake("hang", stall=0.3)
    outcome = machine.finish(LONG)
    assert outcome.verdict is Verdict.HANG
    assert outcome.seconds < LONG / 2


def test_output_until_the_deadline_is_a_timeout(fake: Fake) -> None:
    machine = fake("progress")
    machine.expect("first", LONG)
    with pytest.raises(BootFailed) as failed:
        machine.expect("never", 0.5)
    assert failed.value.verdict is Verdict.TIMEOUT
    assert machine.finish(0.5).verdict is Verdict.TIMEOUT


def test_qemu_that_refuses_its_arguments(fake: Fake) -> None:
    with pytest.raises(BootFailed, match="no such device") as failed:
        fake("early")
    assert failed.value.verdict is Verdict.QEMU_CRASH


def test_qemu_that_never_greets(fake: Fake) -> None:
    with pytest.raises(BootFailed, match="greeting"):
        fake("mute", scale=TimeScale(0.3 / Timeout.LAUNCH.value))


def test_qemu_that_is_not_installed() -> None:
    from pyinit_qemu import VmSpec

    machine = Machine(VmSpec("/k", None), program=("/nonexistent/qemu",))
    with pytest.raises(MachineError, match="/nonexistent/qemu.*install qemu-system-x86"):
        machine.start()


def test_an_expected_failure_does_not_count(fake: Fake) -> None:
    machine = fake("rescued", allow=["banner"])
    assert machine.wait_frame("failure", LONG)["code"] == "E-DEV"
    machine.expect("^# ", LONG)
    machine.send_line("exit")
    machine.expect("login:", LONG)
    assert machine.finish(LONG).check().verdict is Verdict.PASS


PANIC = Failure("panic", "[    1.0] Kernel panic - not syncing: x", 0)
TRACE = Failure("traceback", "Traceback", 0)
NOTHING = Evidence(goal="g")


@pytest.mark.parametrize(
    "changes, verdict",
    [
        ({}, None),
        ({"reached": True}, Verdict.PASS),
        ({"failure": PANIC, "exit_code": 1, "waited": 9.0, "reached": True}, Verdict.PANIC),
        ({"shutdown": "guest-panic", "exit_code": 0}, Verdict.PANIC),
        ({"failure": TRACE, "exit_code": -11}, Verdict.GUEST_FAIL),
        ({"exit_code": -9}, Verdict.QEMU_CRASH),
        ({"exit_code": -9, "stopped": True}, Verdict.GUEST_FAIL),
        ({"exit_code": 1, "reached": True}, Verdict.QEMU_CRASH),
        ({"exit_code": 0, "reached": True}, Verdict.PASS),
        ({"exit_code": 0, "reached": True, "damage": "x"}, Verdict.GUEST_FAIL),
        ({"exit_code": 0}, Verdict.GUEST_FAIL),
        ({"qmp_lost": True}, Verdict.QEMU_CRASH),
        ({"quiet": 99.0, "stall": 100.0}, None),
        ({"quiet": 100.0, "stall": 100.0}, Verdict.HANG),
        ({"waited": 10.0, "quiet": 6.0}, Verdict.HANG),
        ({"waited": 10.0, "quiet": 1.0}, Verdict.TIMEOUT),
        ({"waited": 10.0, "quiet": 1.0, "reached": True}, Verdict.PASS),
    ],
)
def test_judgement(changes: dict[str, object], verdict: Verdict | None) -> None:
    judged = judge(replace(NOTHING, **changes))  # type: ignore[arg-type]
    assert (judged and judged[0]) is verdict
