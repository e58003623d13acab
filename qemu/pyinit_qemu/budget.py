"""A budget of guest time: how long each phase of a boot took when it was written, and what grew since.

With a clock that counts instructions (:mod:`pyinit_qemu.bench`) a boot takes the same time on every host, so
that a test may compare it with a figure in the repository: the one figure that a test may fail on. The least
of several boots counts; a boot is never too short.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

TOLERANCE = 0.05
"""By which part of its budget a boot may be longer."""
NOTABLE = 1000
"""Microseconds by which a phase has grown when it is worth naming."""
BOOTS = 3


class BudgetError(Exception):
    """A budget that cannot be read."""


@dataclass(frozen=True)
class Budget:
    """What one image may take."""

    versions: Mapping[str, str]
    """What it was measured with."""
    phases: Mapping[str, int]
    """Microseconds of each phase, in order; the first is the kernel's, up to /init."""

    @property
    def total(self) -> int:
        """From the kernel's start to the real init."""
        return sum(self.phases.values())

    @property
    def initramfs(self) -> int:
        """From /init to the real init."""
        return self.total - self.phases.get("kernel", 0)


def parse(text: str) -> dict[str, Budget]:
    """Read a budget file: a table for each image. BudgetError says what is wrong with it."""
    try:
        return {
            image: Budget(
                {str(name): str(version) for name, version in table["versions"].items()},
                {str(name): int(took) for name, took in table["phases"].items()},
            )
            for image, table in tomllib.loads(text).items()
        }
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BudgetError(f"the budget cannot be read: {type(error).__name__}: {error}") from error


def dump(budgets: Mapping[str, Budget]) -> str:
    """The file of :func:`parse`."""
    lines = [
        "# How long a boot may take, in microseconds of the guest's time, phase by phase.",
        "# How it is compared: pyinit_qemu/budget.py. Written by: scripts/bench budget --write",
    ]
    for image, budget in budgets.items():
        lines += ["", f"[{json.dumps(image)}.versions]"]
        lines += [f"{json.dumps(name)} = {json.dumps(version)}" for name, version in budget.versions.items()]
        lines += ["", f"[{json.dumps(image)}.phases]"]
        lines += [f"{json.dumps(name)} = {took}" for name, took in budget.phases.items()]
    return "\n".join(lines) + "\n"


def compare(name: str, budget: Budget, found: Budget) -> list[str]:
    """What is over budget, in lines for people; none when nothing is."""
    over = [
        f"{name}: {what} took {now / 1000:.1f} ms, {100 * now / before - 100:.1f} % above its budget of "
        f"{before / 1000:.1f}"
        for what, before, now in (
            ("/init → real init", budget.initramfs, found.initramfs),
            ("kernel → real init", budget.total, found.total),
        )
        if now > before * (1 + TOLERANCE)
    ]
    if not over:
        return []
    grown = [
        f"  {phase}: {budget.phases.get(phase, 0) / 1000:.1f} → {now / 1000:.1f} ms"
        for phase, now in found.phases.items()
        if now - budget.phases.get(phase, 0) >= NOTABLE
    ]
    changed = [
        f"  measured with {what} {now}, the budget with {budget.versions.get(what, 'none')}"
        for what, now in found.versions.items()
        if now != budget.versions.get(what)
    ]
    return [*over, *grown, *changed]


def least(once: Callable[[], Budget], enough: Callable[[Budget], bool], boots: int = BOOTS) -> Budget:
    """The shortest of ``boots`` boots, or the first that is short enough."""
    best: Budget | None = None
    for _ in range(boots):
        seen = once()
        if best is None or seen.initramfs < best.initramfs:
            best = seen
        if enough(best):
            break
    assert best is not None
    return best
