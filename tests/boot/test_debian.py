"""Debian systems to their login prompts: not worse with this project's initramfs than with Debian's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pyinit_qemu import MIB, Disk, Machine
from pyinit_qemu.debian import LABEL, SUITES, DebianRoot, Suite
from pyinit_qemu.shell import Shell
from pyinit_qemu.timing import Timeout
from pyinit_qemu.witness import Mount, parse_mount

pytestmark = pytest.mark.boot

#: What `systemctl is-system-running` says, best first.
STATES = ("running", "degraded", "maintenance")

#: An emulated machine may need longer than systemd waits for devices, and must be seen to move.
PATIENCE = (
    "systemd.default_device_timeout_sec=900 systemd.default_timeout_start_sec=900 systemd.show_status=1"
)


@dataclass(frozen=True)
class System:
    """What somebody who logs in finds."""

    state: str
    failed: frozenset[str]
    """Names of the units that failed."""
    mounts: tuple[Mount, ...]
    release: str
    console: str
    """Everything up to the login prompt of a boot with ``quiet``."""
    record: dict[str, Any] | None
    """The boot record; None when no initramfs of this project was in use."""
    timeline: str
    """What the script in /run/pyinit prints of it."""
    checked_again: str
    """Whether the conditions of systemd-fsck-root.service held: ``yes`` or ``no``."""

    def mount(self, target: str) -> Mount:
        return next(mount for mount in reversed(self.mounts) if mount.target == target)


@pytest.fixture(scope="module", params=SUITES)
def root(request: pytest.FixtureRequest, debian: Callable[[Suite], DebianRoot]) -> DebianRoot:
    return debian(request.param)


@pytest.fixture(scope="module")
def visit(boot_module: Callable[..., Machine], root: DebianRoot) -> Callable[[Path], System]:
    """``visit(initrd)``: boot the system through this initramfs, log in and look around."""

    def go(initrd: Path) -> System:
        vm = boot_module(
            kernel=root.kernel,
            initrd=initrd,
            disks=(Disk(root.disk()),),
            memory=1024 * MIB,
            append=f"quiet root=LABEL={LABEL} ro {PATIENCE}",
        )
        shell = Shell.login(vm)
        console = vm.console.rpartition("login: ")[0]
        record = shell.run("cat /run/pyinit/boot.json")
        system = System(
            state=shell.run("systemctl is-system-running --wait", Timeout.LOGIN).output.strip(),
            failed=frozenset(
                line.split()[0] for line in shell.check("systemctl --failed --no-legend --plain").splitlines()
            ),
            mounts=tuple(map(parse_mount, shell.check("cat /proc/self/mountinfo").splitlines())),
            release=shell.check("uname -r"),
            console=console,
            record=json.loads(record.output) if record.status == 0 else None,
            timeline=shell.run("python3 /run/pyinit/timeline.py").output.strip(),
            checked_again=shell.check("systemctl show --property ConditionResult --value systemd-fsck-root"),
        )
        vm.stop().check()
        return system

    return go


@pytest.fixture(scope="module")
def seen(visit: Callable[[Path], System], image: Callable[..., Path], root: DebianRoot) -> System:
    return visit(image(root))


@pytest.fixture(scope="module")
def record(seen: System) -> dict[str, Any]:
    assert seen.record is not None
    return seen.record


def test_the_system_runs_no_worse_than_through_debians_own_initramfs(
    seen: System, visit: Callable[[Path], System], root: DebianRoot
) -> None:
    # Nothing is better than `running` without a failed unit: only else is there anything to compare with.
    if (seen.state, seen.failed) != ("running", frozenset()):
        other = visit(root.initrd_debian)
        assert other.record is None
        assert STATES.index(seen.state) <= STATES.index(other.state)
        assert seen.failed <= other.failed


def test_root_became_writable_as_fstab_says(seen: System) -> None:
    mount = seen.mount("/")
    assert (mount.type, mount.source) == ("ext4", "/dev/vda1")
    assert mount.options == {"rw", "relatime"}


def test_a_root_that_was_checked_before_is_not_checked_again(seen: System) -> None:
    assert seen.checked_again == "no"


def test_the_root_was_switched_as_this_kernel_allows(seen: System, record: dict[str, Any]) -> None:
    """Since Linux 7.0 the root file system of the initramfs can be pivoted away from."""
    major = int(seen.release.partition(".")[0])
    assert record["handover"]["method"] == ("pivot_root" if major >= 7 else "move")


def test_nothing_of_the_initramfs_was_left_to_be_killed(record: dict[str, Any]) -> None:
    assert record["handover"]["killed"] == []
    assert {child["status"] for child in record["children"]} == {0}


def test_the_timeline_can_be_printed_there(seen: System) -> None:
    assert "root satisfied by /dev/vda1" in seen.timeline
    assert seen.timeline.endswith("ms from /init to the real init")


def test_nothing_is_said_when_quiet_is_asked_for_and_all_is_well(
    seen: System, record: dict[str, Any]
) -> None:
    assert "pyinit: " not in seen.console
    assert {message["level"] for message in record["messages"]} <= {"info", "debug"}
