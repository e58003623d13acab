"""What random boots are drawn, what may come of them, and what counts as wrong."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.config.cmdline import parse
from pyinit.config.options import boot_config
from pyinit.errors import CODES
from pyinit.hooks import STAGES
from pyinit_qemu import soak
from pyinit_qemu.disks.filesystems import Xfs
from pyinit_qemu.soak import Scenario, Seen, draw, expected, judge, outcome
from pyinit_qemu.soak_boot import differences, xfs_journal
from pyinit_qemu.spec import Disk, VmSpec

scenarios = st.builds(draw, st.text(max_size=8), st.integers(1, 10_000))


@given(st.text(max_size=8), st.integers(1, 10_000))
def test_a_seed_and_a_number_give_one_scenario(seed: str, number: int) -> None:
    assert draw(seed, number) == draw(seed, number)
    assert draw(seed, number, ("slow disk",)).fault == "slow disk"


def test_every_fault_kernel_disk_and_file_system_is_drawn() -> None:
    drawn = [draw("x", number) for number in range(2000)]
    assert {one.fault for one in drawn} == set(soak.FAULTS)
    assert {one.suite for one in drawn} == {"bookworm", "trixie", "sid"}
    assert {one.interface for one in drawn} == {"virtio", "scsi", "nvme", "ahci", "usb"}
    assert {one.filesystem for one in drawn} == {"ext4", "xfs", "btrfs"}
    assert len({one.delay for one in drawn}) > 20


@given(scenarios)
def test_a_scenario_can_be_booted_and_something_may_come_of_it(scenario: Scenario) -> None:
    fault = soak.FAULTS[scenario.fault]
    assert scenario.interface in fault.interfaces and scenario.stage in fault.stages
    assert expected(scenario)
    late = scenario.fault in ("late disk", "no disk")
    # Raises for what this interface cannot do.
    VmSpec("kernel", "initrd", soak.words(scenario), (Disk("x", scenario.interface, "root", late=late),))
    assert scenario.fault in scenario.describe()


def test_codes_are_those_that_exist() -> None:
    codes = {code for fault in soak.FAULTS.values() for code in fault.codes}
    assert sorted(codes.difference(CODES)) == []


@given(scenarios)
def test_the_words_say_what_is_meant(scenario: Scenario) -> None:
    line = soak.words(scenario).encode()
    config = boot_config(line)
    assert config.timeout == soak.TIMEOUT
    assert config.read_only is not scenario.writable
    assert ("none" in config.rescue) is not scenario.shell
    if scenario.fault not in ("wrong root", "no root", "root of another kind"):
        assert config.root == soak.root_word(scenario)
    word = parse(line).last("soak.do")
    assert (word is None) == (scenario.fault not in ("udevd killed", "udevd stopped", "clock jumps"))


@given(st.integers(1, 10_000))
def test_a_wrong_root_differs_in_one_character(number: int) -> None:
    scenario = draw("x", number, ("wrong root",))
    right, wrong = soak.root_word(scenario), soak.wrong_root_word(scenario)
    assert len(right) == len(wrong)
    assert sum(one != other for one, other in zip(right, wrong, strict=True)) == 1


def test_the_hook_has_functions_for_its_stages() -> None:
    functions = {node.name for node in ast.parse(soak.HOOK).body if isinstance(node, ast.FunctionDef)}
    used = {
        stage.replace("-", "_")
        for name in ("udevd killed", "udevd stopped", "clock jumps")
        for stage in soak.FAULTS[name].stages
    }
    assert used == functions.intersection(STAGES)


def frame(kind: str, at: float = 0, **facts: Any) -> dict[str, Any]:
    return {"kind": kind, "at": int(at * 1e6), **facts}


GOOD = (frame("hello"), frame("stage", 1, name="initqueue"), frame("record"), frame("witness"), frame("done"))


def failure(code: str, at: float, *lines: str) -> dict[str, Any]:
    return frame("failure", at, code=code, stage="initqueue", lines=[f"{code} x", *lines])


def scenario(fault: str, **changes: Any) -> Scenario:
    one = draw("x", 1, (fault,))
    return Scenario(**{**one.__dict__, **changes})


def test_outcomes() -> None:
    assert outcome(Seen(GOOD)) == "booted"
    assert outcome(Seen(GOOD[:3])) == "handed over"
    assert outcome(Seen(GOOD[:2])) == "nothing"
    assert outcome(Seen((*GOOD[:2], failure("E-DEV", 11), *GOOD[2:]))) == "E-DEV"
    # What the real init's end looks like afterwards is not this boot's.
    assert outcome(Seen((*GOOD[:3], failure("E-IO", 20)))) == "handed over"


def test_a_good_boot_and_a_right_explanation_pass() -> None:
    assert judge(scenario("nothing"), Seen(GOOD)) == []
    explained = failure("E-DEV", 11.5, "nearest: /dev/vda1")
    assert judge(scenario("wrong root"), Seen((*GOOD[:2], explained), answered=True, recovered=True)) == []


@pytest.mark.parametrize(
    ("fault", "seen", "wrong"),
    [
        (
            "nothing",
            Seen((*GOOD[:2], failure("E-DEV", 5)), answered=True),
            "came to E-DEV, which is none of booted",
        ),
        ("wrong root", Seen(GOOD), "came to booted, which is none of E-DEV"),
        ("nothing", Seen(GOOD, trouble="PANIC: x"), "PANIC: x"),
        ("nothing", Seen(GOOD, changed={"root": [4096, 8192]}), "disk root: 2 blocks were written"),
        (
            "no disk",
            Seen((*GOOD[:2], failure("E-DEV", 16.5)), answered=True),
            "E-DEV was explained 15.5 s after",
        ),
        ("no disk", Seen((*GOOD[:2], failure("E-DEV", 11)), answered=False), "after the failure"),
        ("no disk", Seen((*GOOD[:2], failure("E-DEV", 11)), recovered=False), "the boot did not go on"),
        ("wrong root", Seen((*GOOD[:2], failure("E-DEV", 11))), "lacks 'nearest: /dev/'"),
        ("read errors", Seen(GOOD[:2], trouble="HANG: x"), "HANG: x"),
    ],
)
def test_what_is_wrong_is_told(fault: str, seen: Seen, wrong: str) -> None:
    assert any(wrong in line for line in judge(scenario(fault), seen))


def test_a_root_that_was_taken_away_may_end_anyhow_once_it_was_handed_over() -> None:
    taken = scenario("disk pulled", stage="switch-root")
    assert judge(taken, Seen(GOOD[:3], trouble="PANIC: attempted to kill init")) == []
    assert judge(taken, Seen(GOOD[:2], trouble="PANIC: attempted to kill init")) != []


def test_a_disk_that_cannot_be_read_from_the_start_is_never_found() -> None:
    assert expected(scenario("read errors", stage="power", delay=0.0)) == {"E-DEV"}
    assert "booted" in expected(scenario("read errors", stage="mount", delay=0.0))


def test_blocks_that_differ_are_found_in_holes_and_at_the_end(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        with path.open("wb") as file:
            file.truncate((64 << 20) + 4096)
    assert list(differences(one, other)) == []
    with other.open("r+b") as file:
        for offset in (0, (5 << 20) + 8191, 64 << 20):
            file.seek(offset)
            file.write(b"x")
    assert list(differences(one, other)) == [0, (5 << 20) + 4096, 64 << 20]


def test_the_journal_of_an_xfs_is_where_the_superblock_says(tmp_path: Path) -> None:
    image = tmp_path / "xfs"
    Xfs(label="a").write(image, 512)
    superblock, journal = xfs_journal(image, 0)
    assert superblock == range(4096)
    data = image.read_bytes()
    # A log record begins with its magic number, "XFS Algorithms & Data Structures", chapter 14.
    assert data[journal.start : journal.start + 4] == bytes.fromhex("feedbabe")
    assert journal.stop <= len(data)
