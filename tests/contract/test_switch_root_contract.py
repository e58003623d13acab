"""The root switch with the real kernel: what the new init is handed, and what becomes of everything else."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pyinit.kernel import mountinfo

STAGE = Path(__file__).with_name("switch_stage.py")
MODES = ("pivot", "move")
METHODS = {"pivot": "pivot_root", "move": "move"}


class Switched(NamedTuple):
    """What the stage said and what the new init reported."""

    outcome: dict[str, Any]
    report: Path
    console: str
    exit_status: int
    initramfs: list[str]
    """What is left of it."""

    def read(self, name: str) -> str:
        return (self.report / name).read_text(errors="surrogateescape")

    def status(self, field: str) -> str:
        return dict(line.split(":\t", 1) for line in self.read("status").splitlines())[field]


Perform = Callable[..., Switched]


@pytest.fixture
def perform(isolated: Callable[..., Any], tmp_path: Path) -> Perform:
    def run(scenario: str, mode: str, *, boots: bool = True) -> Switched:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            argument = {
                "directory": str(tmp_path),
                "mode": mode,
                "scenario": scenario,
                "socket": theirs.fileno(),
            }
            result = isolated(STAGE, argument, (theirs.fileno(),))
            ours.setblocking(False)
            try:
                _, roots, _, _ = socket.recv_fds(ours, 1, 1)
            except BlockingIOError:
                roots = []
        left = sorted(name for root in roots for name in _tree(root))
        outcome = json.loads((tmp_path / "outcome.json").read_text() or "{}")
        if "skipped" in outcome:
            pytest.skip(outcome["skipped"])
        console = (tmp_path / "console").read_text()
        told = f"{result.stderr}\n{outcome}\n{console}"
        assert (tmp_path / "report" / "done").exists() == boots, told
        assert "imported" not in outcome, told
        return Switched(outcome, tmp_path / "report", console, result.returncode, left)

    return run


def _tree(root: int) -> Iterator[str]:
    try:
        for path, directories, files, _ in os.fwalk(".", dir_fd=root):
            for name in directories + files:
                yield os.path.relpath(f"{path}/{name}")
    finally:
        os.close(root)


@pytest.mark.parametrize("mode", MODES)
def test_init_is_handed_what_the_kernel_would_have_given_it(perform: Perform, mode: str) -> None:
    seen = perform("good", mode)
    assert seen.exit_status == 0
    assert seen.outcome["method"] == METHODS[mode]
    assert seen.status("Pid") == "1"
    argv = (seen.report / "cmdline").read_bytes().split(b"\0")
    assert (argv[0], argv[1], argv[3:]) == (b"/sbin/init", b"-c", [b"first", b"two words", b"\xff", b""])
    assert sorted((seen.report / "environ").read_bytes().split(b"\0")) == [
        b"",
        b"HOME=/",
        b"TERM=vt220",
        b"byte=\xfe",
        b"word=a=b",
    ]
    assert sorted(line.split()[0] for line in seen.read("fds").splitlines()) == ["0", "1", "2"]
    assert {line.split()[1] for line in seen.read("fds").splitlines()} == {"/dev/console"}
    assert seen.console == "the witness speaks\n"
    assert seen.read("umask") == "0022\n"
    assert seen.read("cwd") == "/\n"


@pytest.mark.parametrize("mode", MODES)
def test_every_signal_is_as_the_kernel_starts_init(perform: Perform, mode: str) -> None:
    seen = perform("signals", mode)
    assert seen.status("Pid") == "1"
    for field in ("SigIgn", "SigCgt", "SigBlk"):
        assert int(seen.status(field), 16) == 0, field


@pytest.mark.parametrize("mode", MODES)
def test_only_what_was_meant_to_move_is_mounted(perform: Perform, mode: str) -> None:
    seen = perform("good", mode)
    mounts = mountinfo.parse((seen.report / "mountinfo").read_bytes())
    host_usr = {mount.target for mount in mounts if mount.target.startswith("/usr/")}
    assert {(mount.target, mount.source) for mount in mounts if mount.target not in host_usr} >= {
        ("/", "root"),
        ("/dev", "dev"),
        ("/dev/pts", "dev/pts"),
        ("/proc", "proc"),
        ("/sys", "sys"),
        ("/run", "run"),
        ("/run/user", "run/user"),
    }
    assert {mount.target for mount in mounts} - host_usr == {
        "/",
        "/usr",
        "/report",
        "/dev",
        "/dev/pts",
        "/dev/console",
        "/dev/null",
        "/proc",
        "/sys",
        "/run",
        "/run/user",
    }
    assert not any(mount.propagation for mount in mounts)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_of_the_initramfs_is_left(perform: Perform, mode: str) -> None:
    # Whoever still holds the old root, as this test does, keeps no more than an empty directory alive.
    seen = perform("good", mode)
    assert seen.initramfs == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.fault("R1", "row-17")
def test_no_file_of_another_mount_is_deleted(perform: Perform, mode: str) -> None:
    seen = perform("extra_mounts", mode)
    assert seen.read("check").splitlines() == [
        "/check/below/file tmpfs on a tmpfs",
        "/check/part/file part of the initramfs",
        "/check/tmpfs/file extra tmpfs",
    ]
    assert seen.read("precious") == "of the host"
    assert seen.initramfs == ["modules", "modules/file", "modules/inner", "modules/inner/file"]
    targets = {mount.target for mount in mountinfo.parse((seen.report / "mountinfo").read_bytes())}
    assert not targets & {"/host", "/usr/lib/deep", "/usr/lib/deep/below"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.fault("R1", "row-17")
def test_layers_of_an_overlay_that_lie_in_the_initramfs_stay(perform: Perform, mode: str) -> None:
    seen = perform("overlay", mode)
    assert seen.read("check") == "/check/overlay/file upper\n"
    assert [name for name in seen.initramfs if name.endswith("/file")] == [
        "layers/lower/file",
        "layers/upper/file",
    ]
    assert "layers/other" not in seen.initramfs
    assert "etc" not in seen.initramfs


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.fault("R1", "row-17")
def test_an_initramfs_that_is_bound_into_the_new_root_is_not_deleted(perform: Perform, mode: str) -> None:
    seen = perform("whole_initramfs_needed", mode)
    assert seen.read("check") == "/check/all/file part of the initramfs\n"
    assert {"etc/initrd-release", "init", "file"} <= set(seen.initramfs)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.fault("R4")
def test_a_file_that_cannot_be_deleted_does_not_stop_the_boot(perform: Perform, mode: str) -> None:
    seen = perform("undeletable", mode)
    assert seen.initramfs == ["usr", "usr/immutable"]


@pytest.mark.fault("row-17")
def test_emptying_enters_no_mount(perform: Perform) -> None:
    outcome = perform("busy_directory", "move", boots=False).outcome
    assert outcome["found"] == [
        "usr/bound",
        "usr/bound/initrd-release",
        "usr/file-bound",
        "usr/lib",
        "usr/lib/deep",
        "usr/lib/deep/file",
    ]
    assert len(outcome["failures"]) == 3
    assert all(
        any(failure.startswith(f"{name}: ") for failure in outcome["failures"])
        for name in ("/bound", "/file-bound", "/lib/deep")
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.fault("R2", "row-18")
def test_links_in_the_new_root_lead_no_mount_astray(perform: Perform, mode: str) -> None:
    outcome = perform("symlink_traps", mode, boots=False).outcome
    assert (outcome["code"], outcome["stranded"], outcome["unchanged"]) == ("E-ROOTFS", False, True)
    assert outcome["found"] == [
        "/sysroot/dev is a symbolic link to ../../run",
        "/sysroot/proc is a symbolic link to /",
        "/sysroot/run is not a directory",
    ]


@pytest.mark.fault("row-17")
@pytest.mark.parametrize(
    ("scenario", "objections"),
    [
        ("no_marker", ["/etc/initrd-release is not on the file system of /"]),
        ("not_mounted", ["nothing is mounted on /sysroot", "/sysroot is part of the file system of /"]),
        ("same_file_system", ["/sysroot is part of the file system of /"]),
    ],
)
def test_an_unsafe_switch_is_refused_before_anything_changes(
    perform: Perform, scenario: str, objections: list[str]
) -> None:
    outcome = perform(scenario, "move", boots=False).outcome
    assert (outcome["code"], outcome["stranded"], outcome["unchanged"]) == ("E-SWITCH", False, True)
    assert outcome["found"] == objections
    assert ".pyinit-complete" in outcome["files"]


def test_a_step_that_the_kernel_refuses_is_undone(perform: Perform) -> None:
    outcome = perform("refused_steps", "move", boots=False).outcome
    assert len(outcome["results"]) == 6
    for code, message, found, unchanged in outcome["results"]:
        assert code == "E-SWITCH"
        assert "Invalid argument" in message
        assert found == ["everything that had been moved is back in its place"]
        assert unchanged, message


@pytest.mark.parametrize("mode", MODES)
def test_a_read_only_root_without_all_directories_boots(perform: Perform, mode: str) -> None:
    seen = perform("read_only_root", mode)
    assert "warning: /run is left behind: the new root is read-only and has no /run" in seen.outcome["said"]
    targets = {mount.target for mount in mountinfo.parse((seen.report / "mountinfo").read_bytes())}
    assert {"/dev", "/proc"} <= targets
    assert not {"/run", "/run/user", "/sys"} & targets


def test_the_next_candidate_is_executed_when_the_chosen_one_fails(perform: Perform) -> None:
    seen = perform("init_that_cannot_be_executed", "pivot")
    assert (seen.report / "cmdline").read_bytes().startswith(b"/sbin/init\0-c\0")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.fault("R6")
def test_an_exec_that_fails_after_the_switch_is_told(perform: Perform, mode: str) -> None:
    outcome = perform("nothing_to_execute", mode, boots=False).outcome
    assert outcome["code"] == "E-INIT"
    assert outcome["method"] == METHODS[mode]
    assert [line.split()[0] for line in outcome["tried"]] == [
        "/sbin/init",
        "/etc/init",
        "/bin/init",
        "/bin/sh",
    ]
    assert (
        "warning: /sbin/init cannot be executed: No such file or directory; trying /etc/init"
        in outcome["said"]
    )
    assert "sbin" in outcome["found"][0]


def test_a_last_word_that_fails_does_not_stop_the_boot(perform: Perform) -> None:
    assert perform("last_word_fails", "pivot").exit_status == 0


def test_a_missing_console_does_not_stop_the_boot(perform: Perform) -> None:
    seen = perform("no_console", "pivot")
    assert {line.split()[1] for line in seen.read("fds").splitlines()} == {"/dev/null"}


def test_the_plan_is_told_step_by_step(perform: Perform) -> None:
    said = perform("extra_mounts", "pivot").outcome["said"]
    assert said[0] == "make all mounts private"
    assert "create /sysroot/sys" in said
    assert any(line.startswith("move /dev to /sysroot/dev with ") and "/dev/pts" in line for line in said)
    assert said[-1] == (
        "make /sysroot the root, leaving behind /usr/lib/deep/below, /usr/lib/deep, /host"
    ), os.linesep.join(said)
