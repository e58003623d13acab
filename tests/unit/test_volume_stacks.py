"""Logical volumes and arrays, step by step: what is started when, and what comes of its answers."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, cast

import pytest

from pyinit.config.sealed import EMPTY_INDEX
from pyinit.config.volumes import Volume
from pyinit.devices.view import DeviceView
from pyinit.errors import BootError
from pyinit.kernel.console import Console
from pyinit.kernel.modules import Modules
from pyinit.kernel.process import Children
from pyinit.record import Record
from pyinit.storage import lvm as lvm_module
from pyinit.storage import md as md_module
from pyinit.storage.lvm import Lvm
from pyinit.storage.md import Md

UUID = "0123abcd4567ef890123abcd4567ef89"
SHOWN = "0123abcd:4567ef89:0123abcd:4567ef89"


class FakeJob:
    """A program whose end is told beforehand."""

    started: list[FakeJob]
    answers: list[tuple[int | None, list[str]]]

    def __init__(self, children: object, argv: Sequence[str], environment: object = None) -> None:
        self.argv = tuple(argv)
        self.ended, self.said = FakeJob.answers.pop(0)
        self.killed = False
        FakeJob.started.append(self)

    def status(self) -> int | None:
        return self.ended

    def close(self) -> list[str]:
        return self.said

    def kill(self) -> None:
        self.killed = True


@pytest.fixture(autouse=True)
def jobs(monkeypatch: pytest.MonkeyPatch) -> type[FakeJob]:
    FakeJob.started, FakeJob.answers = [], []
    for module in (lvm_module, md_module):
        monkeypatch.setattr(module, "Job", FakeJob)
        monkeypatch.setattr(module, "find_program", lambda name: f"/usr/sbin/{name}")
    monkeypatch.setattr(lvm_module.os, "makedirs", lambda *words, **named: None)
    monkeypatch.setattr(lvm_module, "on_encrypted", lambda kind: [])
    return FakeJob


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [100.0]
    for module in (lvm_module, md_module):
        monkeypatch.setattr(module, "monotonic", lambda: time[0])
    return time


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> Console:
    console = Console(Record("1", "6"))
    monkeypatch.setattr(console, "write", lambda text: None)
    return console


def warnings(console: Console) -> list[str]:
    return [one["text"] for one in console.record.data["messages"] if one["level"] == "warning"]


def device(name: str, kind: str = "", number: int = 1, **properties: str) -> DeviceView:
    return DeviceView(
        f"/sys/devices/{name}", name, "block", "disk", f"/dev/{name}", (254, number), (),
        {"ID_FS_TYPE": kind, **properties}, True,
    )  # fmt: skip


def lvm(console: Console, *volumes: Volume, everything: bool = False) -> Lvm:
    modules = Modules(EMPTY_INDEX, console)
    return Lvm(volumes, everything, True, cast(Children, None), modules, console)


PV, OTHER = device("vda2", "LVM2_member"), device("vdb1", "LVM2_member", 2)
LV = device("dm-0", DM_VG_NAME="v", DM_LV_NAME="root")


def test_lvm_is_shown_physical_volumes_and_told_one_name(jobs: type[FakeJob], console: Console) -> None:
    jobs.answers = [(0, [])]
    stack = lvm(console, Volume("v", "root"))
    stack.react([device("vdc", "ext4")])
    assert stack.waits_for() == ("no physical volume of volume group v",)
    stack.react([PV])
    (job,) = jobs.started
    assert job.argv[:6] == ("/usr/sbin/lvm", "lvchange", "--sysinit", "--yes", "--activate", "y")
    assert "--ignoreactivationskip" in job.argv
    assert job.argv[job.argv.index("--devices") + 1] == "/dev/vda2"
    assert job.argv[-1] == "v/root"
    assert stack.wake() == inf
    stack.react([PV, LV])
    assert len(jobs.started) == 1 and stack.waits_for() == ()


def test_while_a_system_may_be_resumed_only_plain_volumes_and_its_own_are_activated(
    jobs: type[FakeJob], console: Console
) -> None:
    jobs.answers = [(0, []), (0, [])]
    asleep = [True]
    volumes, swap = (Volume("v", "root"), Volume("v", "swap")), Volume("v", "swap")
    modules = Modules(EMPTY_INDEX, console)
    stack = Lvm(
        volumes, False, True, cast(Children, None), modules, console, lambda: asleep[0], Volume("v", "swap")
    )
    stack.react([PV])
    argv = jobs.started[0].argv
    assert argv[argv.index("--select") + 1] == lvm_module.selection(swap)
    known = [PV, device("dm-1", DM_VG_NAME="v", DM_LV_NAME="swap")]
    stack.react(known)
    assert stack.waits_for() == ("v/root is activated when it is decided whether a system is resumed",)
    asleep[0] = False
    stack.react(known)
    assert len(jobs.started) == 2
    argv = jobs.started[1].argv
    assert "--select" not in argv and argv[-1] == "v/root"


def test_a_group_that_is_not_complete_is_tried_again_and_then_degraded(
    jobs: type[FakeJob], console: Console, clock: list[float]
) -> None:
    missing = "Couldn't find device with uuid abc."
    jobs.answers = [(5, [missing]), (5, [missing]), (0, [])]
    stack = lvm(console, Volume("v", "root"))
    stack.react([PV])
    stack.react([PV])
    assert stack.waits_for() == (missing,)
    assert stack.wake() == clock[0] + lvm_module.DEGRADED_AFTER
    stack.react([PV, OTHER])
    assert "/dev/vda2,/dev/vdb1" in jobs.started[1].argv
    stack.react([PV, OTHER])
    assert warnings(console) == []
    clock[0] += lvm_module.DEGRADED_AFTER
    stack.react([PV, OTHER])
    assert [job.argv[job.argv.index("--activationmode") + 1] for job in jobs.started] == [
        "complete", "complete", "degraded"
    ]  # fmt: skip
    assert f"warning: lvm: {missing}" in warnings(console)


def test_two_groups_of_one_name_are_told(jobs: type[FakeJob], console: Console) -> None:
    jobs.answers = [(5, ["WARNING: Multiple VGs found with the same name: skipping v"])]
    stack = lvm(console, Volume("v", "root"))
    stack.react([PV, OTHER])
    with pytest.raises(BootError, match="E-LVM volume groups or physical volumes are there twice") as caught:
        stack.react([PV, OTHER])
    assert "Multiple VGs" in caught.value.found[0]


def test_lvm_that_does_not_end_does_not_keep_process_1_awake_and_is_killed_before_a_shell(
    jobs: type[FakeJob], console: Console, clock: list[float]
) -> None:
    jobs.answers = [(5, ["no"]), (None, [])]
    stack = lvm(console, Volume("v", "root"))
    stack.react([PV])
    stack.react([PV])
    stack.react([PV, OTHER])
    clock[0] += lvm_module.DEGRADED_AFTER
    assert stack.wake() == inf
    assert stack.waits_for() == ("logical volumes are being activated",)
    stack.close()
    assert jobs.started[1].killed


def member(name: str, number: int, **properties: str) -> DeviceView:
    spelt = "0123abcd-4567-ef89-0123-abcd4567ef89"
    return device(name, "linux_raid_member", number, **{"ID_FS_UUID": spelt, **properties})


def md(console: Console, *, uuids: Sequence[str] = (UUID,), labels: Sequence[str] = ()) -> Md:
    return Md(uuids, labels, False, cast(Any, None), console, Modules(EMPTY_INDEX, console))


def test_members_of_a_wanted_array_go_to_mdadm_one_after_the_other(
    jobs: type[FakeJob], console: Console, clock: list[float]
) -> None:
    jobs.answers = [(0, ["MD_DEVICE=md127", "MD_STARTED=no"]), (0, ["MD_DEVICE=md127", "MD_STARTED=yes"])]
    stack = md(console)
    assert stack.waits_for() == (f"no member of array {SHOWN}",)
    foreign = member("vdc", 3, ID_FS_UUID="ffffffff-4567-ef89-0123-abcd4567ef89")
    known = [member("vda1", 1), member("vdb1", 2), foreign]
    stack.react(known)
    assert stack.wake() == inf
    stack.react(known)
    stack.react(known)
    assert [job.argv[-1] for job in jobs.started] == ["/dev/vda1", "/dev/vdb1"]
    assert stack.waits_for() == () and stack.wake() == inf


def test_an_array_without_a_member_is_started_after_a_while_and_that_is_said(
    jobs: type[FakeJob], console: Console, clock: list[float]
) -> None:
    jobs.answers = [(0, ["MD_DEVICE=md127", "MD_STARTED=no"]), (0, [])]
    stack = md(console, uuids=(), labels=("0",))
    known = [member("vda1", 1, ID_FS_LABEL="host:0")]
    stack.react(known)
    stack.react(known)
    assert stack.wake() == clock[0] + md_module.DEGRADED_AFTER
    assert stack.waits_for() == (f"array {SHOWN} is not complete; its members here: /dev/vda1",)
    clock[0] += md_module.DEGRADED_AFTER
    stack.react(known)
    assert jobs.started[1].argv == ("/usr/sbin/mdadm", "--run", "/dev/md127")
    assert "started without the others after 30 s" in warnings(console)[0]
    stack.react(known)
    assert stack.waits_for() == () and stack.wake() == inf


def test_what_mdadm_refuses_is_told_and_never_forced(
    jobs: type[FakeJob], console: Console, clock: list[float]
) -> None:
    jobs.answers = [(1, ["mdadm: /dev/vda1 is not as new as the others"])]
    stack = md(console)
    stack.react([member("vda1", 1)])
    stack.react([member("vda1", 1)])
    assert "is not as new as the others" in warnings(console)[0]
    assert any("not as new" in line for line in stack.waits_for())
    clock[0] += md_module.DEGRADED_AFTER * 2
    stack.react([member("vda1", 1)])
    assert len(jobs.started) == 1
