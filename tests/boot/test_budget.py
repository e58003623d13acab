"""Boots take no longer than they may: the one figure that a test fails on, in a guest's time."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyinit_qemu import decide
from pyinit_qemu.budget import Budget, compare, least, parse
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.profile_boot import plain, profile, profiled
from pyinit_qemu.reference import IMAGES, image, machine, versions

pytestmark = [pytest.mark.boot, pytest.mark.icount]

BUDGET = parse(Path(__file__).with_name("budget.toml").read_text())


@pytest.mark.parametrize("name", IMAGES)
def test_a_boot_is_within_its_budget(name: str, bookworm: DebianRoot) -> None:
    """One that is not is told phase by phase; `scripts/bench profile` says more."""
    spec = machine(bookworm).replace(initrd=image(name, bookworm))
    scale, measured_with = decide("tcg", bookworm.kernel).scale, versions(bookworm)

    def once() -> Budget:
        return Budget(measured_with, plain(spec, scale).phases)

    seen = least(once, lambda budget: not compare(name, BUDGET[name], budget))
    complaints = compare(name, BUDGET[name], seen)
    assert not complaints, "\n".join(complaints)


def test_a_profile_tells_where_all_of_the_time_went(bookworm: DebianRoot) -> None:
    spec = machine(bookworm).replace(initrd=profiled(image("pyinit list", bookworm)))
    seen = profile(spec, decide("tcg", bookworm.kernel).scale)
    assert sum(seen.phases.values()) == seen.executed
    names = {span.name for span in seen.spans}
    assert {"unpacking the image", "import pyudev", "module ext4", "initialisation of ext4"} <= names
    assert {"PID 1", "udevd"} <= seen.shares.keys()
    # What PID 1 says of its stages is within what the kernel says of the whole.
    phases = [span for span in seen.spans[1:] if span.depth == 0]
    assert all(seen.init <= span.start <= span.end <= seen.executed for span in phases)
