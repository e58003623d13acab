"""What a boot amounts to: a pure function of what was seen."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from pyinit_qemu.channel import Frame
from pyinit_qemu.console import Failure


class Verdict(Enum):
    """The classes of outcome."""

    PASS = "PASS"
    GUEST_FAIL = "GUEST_FAIL"
    """The guest ran and said or did something wrong, or ended before what was awaited."""
    PANIC = "PANIC"
    """The guest's kernel panicked."""
    HANG = "HANG"
    """Neither the console nor the result channel moved any more."""
    TIMEOUT = "TIMEOUT"
    """Time ran out while the guest was still saying things."""
    QEMU_CRASH = "QEMU_CRASH"
    """QEMU failed, not the guest: trouble of the host."""


@dataclass(frozen=True)
class Evidence:
    """All that a verdict is made of."""

    goal: str
    """What was awaited, in words."""
    reached: bool = False
    failure: Failure | None = None
    """The first failure that was not allowed."""
    damage: str | None = None
    """The first damage of the result channel, when the goal depends on the channel."""
    exit_code: int | None = None
    """QEMU's, negative for a signal; None while it runs."""
    stopped: bool = False
    """The host ended QEMU on purpose."""
    shutdown: str | None = None
    """The reason in QMP's SHUTDOWN event: guest-shutdown, guest-reset, guest-panic, host-qmp-quit... or
    ``watchdog``."""
    qmp_lost: bool = False
    """The control connection ended although QEMU had not."""
    waited: float | None = None
    """Seconds after which the wait was given up; None while it has not been."""
    quiet: float = 0.0
    """Seconds since the console or the channel last moved."""
    stall: float = 100.0
    """Seconds of quiet that make a hang."""
    stderr: str = ""


def judge(evidence: Evidence) -> tuple[Verdict, str] | None:
    """Return the verdict and its reason in one sentence, or None when nothing is decided yet.

    What the guest said counts before how QEMU ended, and that before the clock: the first cause is named, not
    its consequences.
    """
    e = evidence
    if e.failure is not None and e.failure.name in ("panic", "no-root"):
        return Verdict.PANIC, f"the kernel panicked: {_message(e.failure.line)}"
    if e.shutdown == "guest-panic":
        return Verdict.PANIC, "the kernel panicked, as QEMU reports"
    if e.failure is not None:
        return Verdict.GUEST_FAIL, f"{_NAMES.get(e.failure.name, e.failure.name)}: {_message(e.failure.line)}"
    if e.exit_code and not e.stopped:
        how = f"was ended by signal {-e.exit_code}" if e.exit_code < 0 else f"ended with status {e.exit_code}"
        said = f": {e.stderr.strip().splitlines()[-1]}" if e.stderr.strip() else ""
        return Verdict.QEMU_CRASH, f"QEMU {how}{said}"
    if e.qmp_lost and not e.stopped:
        return Verdict.QEMU_CRASH, "QEMU closed its control connection while it was running"
    if e.damage is not None and (e.reached or e.exit_code is not None):
        return Verdict.GUEST_FAIL, f"the result channel is damaged: {e.damage}"
    if e.reached:
        return Verdict.PASS, f"reached: {e.goal}"
    if e.exit_code is not None:
        how = _SHUTDOWN.get(e.shutdown or "", f"the machine ended ({e.shutdown or 'no reason given'})")
        return Verdict.GUEST_FAIL, f"{how} before this was seen: {e.goal}"
    if e.quiet >= e.stall:
        return Verdict.HANG, f"no output for {e.quiet:.0f} s while waiting for: {e.goal}"
    if e.waited is not None:
        if e.quiet >= e.waited / 2:
            return (
                Verdict.HANG,
                f"no output for the last {e.quiet:.1f} of {e.waited:.1f} s, not seen: {e.goal}",
            )
        return Verdict.TIMEOUT, f"still producing output after {e.waited:.1f} s, not seen: {e.goal}"
    return None


_NAMES = {
    "oops": "the kernel reported a fault of its own",
    "traceback": "a Python program failed",
    "banner": "the guest gave up",
    "asked": "the console shows what it was not to show",
}

_SHUTDOWN = {
    "guest-shutdown": "the guest powered off",
    "guest-reset": "the guest rebooted",
    "watchdog": "the watchdog reset the machine, because the guest did not feed it,",
    "host-qmp-quit": "the machine was stopped",
    "host-signal": "the machine was stopped by a signal",
}


def _message(line: str) -> str:
    """A console line without the kernel's time stamp."""
    return re.sub(r"^\s*\[[ .0-9]+\]\s*", "", line).strip()


@dataclass(frozen=True)
class Outcome:
    """How one boot ended."""

    verdict: Verdict
    reason: str
    frames: tuple[Frame, ...]
    console: str
    """All console output as plain text."""
    seconds: float
    """Wall time from power on."""
    exit_code: int | None
    shutdown: str | None
    report: str
    """Verdict, reason, last console lines and how to replay, for a person."""

    @property
    def ok(self) -> bool:
        return self.verdict is Verdict.PASS

    def check(self) -> Outcome:
        """Return itself if the boot passed, else raise :class:`BootFailed`."""
        if not self.ok:
            raise BootFailed(self.verdict, self.reason, self.report)
        return self


class MachineError(Exception):
    """Something about a virtual machine went wrong."""


class BootFailed(MachineError):
    """A wait that cannot be fulfilled any more, or a boot that did not pass."""

    def __init__(self, verdict: Verdict, reason: str, report: str) -> None:
        super().__init__(report)
        self.verdict = verdict
        self.reason = reason
        self.report = report
