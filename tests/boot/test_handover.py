"""What the real init is handed: one boot, looked at from all sides."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit.record import timeline
from pyinit_qemu import MIB, Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

LINE = (
    "quiet root=LABEL=small-root greeting=hello HOME=/home/x single "
    "sysctl.kernel.modprobe=/nowhere -- --last -x"
)


@pytest.fixture(scope="module")
def machine(
    boot_module: Callable[..., Machine], bookworm: DebianRoot, listed: Path, small_disk: Callable[..., Path]
) -> Machine:
    return boot_module(kernel=bookworm.kernel, initrd=listed, disks=(Disk(small_disk()),), append=LINE)


@pytest.fixture(scope="module")
def seen(machine: Machine, witness_of: Callable[[Machine], Witness]) -> Witness:
    return witness_of(machine)


def test_it_is_process_1_and_nobodys_child(seen: Witness) -> None:
    assert (seen.pid, seen.ppid) == (1, 0)
    assert (seen.uids, seen.gids) == ((0, 0, 0), (0, 0, 0))


def test_session_and_terminal_are_left_to_it(seen: Witness) -> None:
    assert (seen.sid, seen.pgid, seen.tty) == (0, 0, 0)


def test_arguments_are_the_kernels(seen: Witness) -> None:
    assert seen.argv == ("/sbin/init", "single", "--last", "-x")


def test_environment_is_what_the_kernel_would_have_given(seen: Witness) -> None:
    assert seen.environment == {"HOME": "/home/x", "TERM": "linux", "greeting": "hello"}


@pytest.mark.fault("R3")
def test_open_files_are_the_console_three_times(seen: Witness) -> None:
    assert seen.fds == {0: "/dev/console", 1: "/dev/console", 2: "/dev/console"}


def test_no_signal_is_blocked_or_ignored(seen: Witness) -> None:
    assert not seen.signals_blocked
    assert not seen.signals_ignored


def test_working_directory_and_umask(seen: Witness) -> None:
    assert (seen.cwd, seen.umask) == ("/", 0o022)


@pytest.mark.fault("R3")
def test_no_process_is_left(seen: Witness) -> None:
    # What empties the initramfs is a child on its way out; an init reaps children that it does not know.
    assert [process for process in seen.processes if process.comm != "pyinit-empty"] == []


def test_only_the_mounts_an_init_expects_are_there(seen: Witness) -> None:
    mounts = {mount.target: mount.type for mount in seen.mounts if mount.type != "rootfs"}
    assert mounts == {
        "/": "ext4",
        "/dev": "devtmpfs",
        "/dev/pts": "devpts",
        "/dev/shm": "tmpfs",
        "/proc": "proc",
        "/run": "tmpfs",
        "/sys": "sysfs",
    }


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("/proc", {"nosuid", "nodev", "noexec"}),
        ("/sys", {"nosuid", "nodev", "noexec"}),
        ("/dev", {"nosuid", "mode=755"}),
        ("/dev/pts", {"nosuid", "noexec", "gid=5", "mode=620"}),
        ("/dev/shm", {"nosuid", "nodev"}),
        ("/run", {"nosuid", "nodev", "mode=755"}),
    ],
)
def test_kernel_file_systems_have_the_usual_flags(target: str, options: set[str], seen: Witness) -> None:
    mount = seen.mount(target)
    assert mount is not None
    assert options <= mount.options


def test_run_can_be_executed_from(seen: Witness) -> None:
    """/run/initramfs/shutdown is."""
    run = seen.mount("/run")
    assert run is not None and "noexec" not in run.options


def test_root_is_read_only(seen: Witness) -> None:
    assert seen.root.read_only
    assert seen.root.device == "vda1"


def test_the_links_of_dev_are_there(seen: Witness) -> None:
    assert {"/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/core"} <= set(seen.dev)


def test_udevs_memory_is_left_to_the_real_udevd(seen: Witness) -> None:
    assert seen.udev_database == ()
    assert "/run/udev/control" not in seen.run


def test_memory_of_the_initramfs_is_given_back(seen: Witness) -> None:
    """Files of a rootfs are unevictable; the image has more than 20 MiB of them."""
    assert seen.memory["Unevictable"] < 4 * MIB


def test_the_kernel_is_not_tainted(seen: Witness) -> None:
    assert seen.tainted == 0


def test_record_log_and_timeline_survive(seen: Witness) -> None:
    assert {"/run/pyinit/boot.json", "/run/pyinit/log", "/run/pyinit/timeline.py"} <= set(seen.run)


def test_record_tells_the_whole_boot(seen: Witness) -> None:
    record = seen.boot
    assert record is not None
    assert [stage["name"] for stage in record["stages"]] == [
        "cmdline", "pre-udev", "pre-trigger", "initqueue", "pre-mount", "mount", "pre-pivot", "cleanup",
        "switch-root",
    ]  # fmt: skip
    assert {stage["outcome"] for stage in record["stages"]} == {"done"}
    (want,) = record["wants"]
    assert (want["spec"], want["outcome"], want["by"]) == ("LABEL=small-root", "satisfied", "/dev/vda1")
    assert {"virtio_blk", "ext4"} <= {module["name"] for module in record["modules"]}
    assert {module["result"] for module in record["modules"]} <= {"loaded", "present"}
    (udevd,) = record["children"]
    assert udevd["status"] == 0
    (mount,) = record["mounts"]
    assert (mount["target"], mount["type"], mount["options"]) == ("/sysroot", "ext4", "ro")
    assert record["handover"]["init"] == "/sbin/init"
    assert record["handover"]["killed"] == []
    assert timeline(dict(record))[-1].endswith("ms from /init to the real init")


def test_no_modprobe_was_needed(machine: Machine, seen: Witness) -> None:
    """The line names a modprobe that does not exist: whatever the kernel had asked for would be missing."""
    assert "sysctl.kernel.modprobe=/nowhere" in seen.cmdline
    assert seen.root.type == "ext4"


def test_the_record_came_over_the_serial_line_too(machine: Machine, seen: Witness) -> None:
    frames = {frame["kind"]: frame for frame in machine.frames}
    assert list(frames) == ["hello", "stage", "record", "witness", "done"]
    assert json.loads(json.dumps(seen.boot)) == frames["record"]["record"]


def test_quiet_is_quiet(machine: Machine, seen: Witness) -> None:
    assert "pyinit" not in machine.console
