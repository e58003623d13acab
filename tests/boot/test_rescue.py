"""When the boot cannot go on: it explains itself, opens a shell, and goes on from there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit.config.options import BREAK_POINTS
from pyinit_qemu import Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.shell import Shell
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

Start = Callable[..., Machine]


@pytest.fixture
def start(
    boot: Callable[..., Machine], bookworm: DebianRoot, listed: Path, small_disk: Callable[..., Path]
) -> Start:
    """Boot the small root with a command line that leads into the rescue shell."""

    def go(append: str, *, initrd: Path = listed, disks: int = 1) -> Machine:
        copies = tuple(Disk(small_disk(), serial=f"copy{number}") for number in range(disks))
        return boot(
            kernel=bookworm.kernel, initrd=initrd, disks=copies, append=f"quiet {append}", allow=("banner",)
        )

    return go


def explanation(vm: Machine) -> list[str]:
    """The lines of the failure that PID 1 sent, each of which must be on the console too."""
    frame = vm.wait_frame("failure")
    lines: list[str] = frame["lines"]
    for line in lines:
        assert f"pyinit: {line}" in vm.console
    return lines


@pytest.mark.fault("K2")
def test_a_wrong_root_is_explained_corrected_in_the_shell_and_booted(
    start: Start, witness_of: Callable[[Machine], Witness]
) -> None:
    vm = start("root=LABEL=smal-root rd.timeout=15 rd.tmeout=3")
    shell = Shell.rescue(vm, "initqueue")
    lines = explanation(vm)
    assert lines[0] == "E-DEV root: LABEL=smal-root did not appear within 15 s"
    text = "\n".join(lines)
    assert re.search(r"/dev/vda1  43 MiB  ext4  UUID=\S+  LABEL=small-root", text)
    assert "nearest: /dev/vda1: its LABEL small-root differs in 1 character" in text
    assert "rd.timeout=" in text
    warning = "rd.tmeout is not known and has no effect; the nearest known word is rd.timeout"
    assert vm.console.count(f"pyinit: warning: {warning}") == 1
    waiting = r"waiting for root: LABEL=smal-root since \d+ s, \d+ s more; block devices: /dev/vda, /dev/vda1"
    assert re.search(waiting, vm.console)

    assert "LABEL=small-root" in shell.check("pyinit devices")
    assert shell.check("pyinit explain").splitlines() == lines
    assert "initqueue  E-DEV" in shell.check("pyinit timeline")
    assert lines[0] in shell.check("cat /run/initramfs/rdsosreport.txt")
    assert shell.run("pyinit nonsense").status == 2
    shell.check("pyinit set root=LABEL=small-root")
    shell.leave()

    seen = witness_of(vm)
    assert seen.boot is not None
    outcomes = [stage["outcome"] for stage in seen.boot["stages"] if stage["name"] == "initqueue"]
    assert outcomes == ["E-DEV", "done"]
    assert "/run/initramfs/rdsosreport.txt" in seen.run
    assert [process for process in seen.processes if process.comm != "pyinit-empty"] == []


def test_a_blacklisted_driver_is_loaded_by_nobody(start: Start) -> None:
    vm = start("root=LABEL=small-root rd.timeout=3 rd.driver.blacklist=virtio_blk")
    shell = Shell.rescue(vm, "initqueue")
    assert any("no block device at all" in line for line in explanation(vm))
    assert "virtio_blk" not in shell.check("cat /proc/modules")
    vm.stop()


def test_a_root_mounted_by_hand_is_used(start: Start, witness_of: Callable[[Machine], Witness]) -> None:
    vm = start("root=/dev/nonexistent rd.timeout=1")
    shell = Shell.rescue(vm, "initqueue")
    shell.check("mount -o ro /dev/vda1 /sysroot")
    shell.leave()
    assert witness_of(vm).root.device == "vda1"


@pytest.mark.fault("K1")
def test_without_root_the_devices_are_named(start: Start, witness_of: Callable[[Machine], Witness]) -> None:
    vm = start("rd.systemd.gpt_auto=0")
    shell = Shell.rescue(vm, "initqueue")
    lines = explanation(vm)
    assert lines[0] == "E-NOROOT no root= was given"
    assert any("LABEL=small-root" in line for line in lines)
    shell.check("pyinit set root=LABEL=small-root")
    shell.leave()
    assert witness_of(vm).root.device == "vda1"


@pytest.mark.fault("D5", "row-19")
def test_two_roots_of_one_name_stop_the_boot(
    start: Start, witness_of: Callable[[Machine], Witness], expect_screen: Callable[[Machine, str], None]
) -> None:
    vm = start("root=LABEL=small-root", disks=2)
    shell = Shell.rescue(vm, "initqueue")
    expect_screen(vm, "E-AMBIG")
    shell.check("pyinit set root=/dev/vdb1")
    shell.leave()
    assert witness_of(vm).root.device == "vdb1"


@pytest.mark.fault("F5")
def test_a_root_that_cannot_be_mounted_is_explained_with_the_kernels_words(
    start: Start, witness_of: Callable[[Machine], Witness]
) -> None:
    vm = start("root=LABEL=small-root rootflags=nonsense=1")
    shell = Shell.rescue(vm, "mount")
    lines = explanation(vm)
    assert lines[0].startswith(
        "E-MOUNT /dev/vda1 cannot be mounted as the root file system: Invalid argument"
    )
    assert "  tried:  mount -t ext4 -o ro,nonsense=1 /dev/vda1 /sysroot: Invalid argument" in lines
    assert any("Unrecognized mount option" in line or "Unknown parameter" in line for line in lines)
    shell.check("pyinit set rootflags=noatime")
    shell.leave()
    assert "noatime" in witness_of(vm).root.options


@pytest.mark.fault("K7")
def test_an_init_that_is_not_there_is_explained_before_anything_is_moved(
    start: Start, witness_of: Callable[[Machine], Witness]
) -> None:
    vm = start("root=LABEL=small-root init=/sbin/missing")
    shell = Shell.rescue(vm, "pre-pivot")
    lines = explanation(vm)
    assert lines[0].startswith("E-INIT")
    assert any("/sbin/missing" in line for line in lines)
    assert any("/sbin/init" in line for line in lines[1:])
    assert shell.check("ls /proc/1/comm /dev/console /run/pyinit")
    shell.check("pyinit set init=/sbin/init")
    shell.leave()
    assert witness_of(vm).argv == ("/sbin/init",)


@pytest.mark.parametrize("root", ["nfs:server:/path", "nonsense", "UUID="])
def test_a_root_that_cannot_be_understood(root: str, start: Start) -> None:
    vm = start(f"root={root}")
    Shell.rescue(vm, "cmdline")
    assert explanation(vm)[0].startswith("E-CMDLINE")
    vm.stop()


def test_every_break_point_stops_and_goes_on(start: Start, witness_of: Callable[[Machine], Witness]) -> None:
    vm = start(" ".join(f"rd.break={stage}" for stage in BREAK_POINTS) + " root=LABEL=small-root")
    for stage in BREAK_POINTS:
        shell = Shell.rescue(vm, stage)
        assert f"pyinit: stopped before {stage}, as rd.break asks" in vm.console
        mounted = " /sysroot " in shell.check("cat /proc/mounts")
        assert mounted == (stage in ("pre-pivot", "cleanup", "switch-root"))
        shell.leave()
    seen = witness_of(vm)
    assert seen.boot is not None
    assert all(stage["outcome"] == "done" for stage in seen.boot["stages"])


def test_the_bare_break_stops_right_before_the_switch(
    start: Start, witness_of: Callable[[Machine], Witness]
) -> None:
    vm = start("rd.break root=LABEL=small-root")
    shell = Shell.rescue(vm, "switch-root")
    assert "/sysroot" in shell.check("cat /proc/mounts")
    # udevd is gone by then, and has forgotten what it knew.
    assert re.search(
        r"/dev/vda1  43 MiB  ext4  UUID=\S+  LABEL=small-root  PARTUUID=", shell.check("pyinit devices")
    )
    shell.check("clear")
    assert len(shell.check("head -n 3 /proc/filesystems").splitlines()) == 3
    assert "real init" not in shell.check("pyinit timeline")
    first = shell.check("ps aux").splitlines()[1].split()
    assert (first[0], first[1], first[2]) == ("1", "0", "S")
    vm.send_line("chroot / /bin/sh -i")
    vm.expect("^chroot /:/# ")
    vm.send_line("exit")
    shell.wait()
    vm.send_bytes(b"\x04")
    witness_of(vm)


def test_a_shell_has_a_terminal_of_its_own(start: Start) -> None:
    vm = start("rd.break=cmdline root=LABEL=small-root")
    shell = Shell.rescue(vm, "cmdline")
    # What it prints itself, unlike the echo of what was typed, comes from a process that has the terminal.
    vm.send_line("sh -c 'echo in''terruptible; exec sleep 1000'")
    vm.expect("^interruptible\n")
    vm.send_bytes(b"\x03")
    shell.wait()
    assert shell.check("echo $$") != "1"
    vm.stop()


@pytest.mark.fault("A1", "A3", "row-2", "row-12")
def test_an_image_without_shell_never_opens_one(
    boot: Callable[..., Machine],
    bookworm: DebianRoot,
    image: Callable[..., Path],
    small_disk: Callable[..., Path],
) -> None:
    sealed = image(mode="list", modules=("virtio_pci", "virtio_blk", "ext4"), rescue="none")
    vm = boot(
        kernel=bookworm.kernel, initrd=sealed, disks=(Disk(small_disk()),), allow=("banner",),
        append="quiet root=LABEL=none rd.timeout=1 rd.shell=1 rd.break=mount rd.emergency=poweroff",
    )  # fmt: skip
    vm.expect("no rescue shell is allowed here; poweroff")
    outcome = vm.finish()
    assert outcome.exit_code == 0
    assert "pyinit:initqueue#" not in vm.console


@pytest.mark.fault("P3")
def test_ctrl_alt_del_restarts_the_machine_even_while_it_waits(start: Start) -> None:
    vm = start("root=LABEL=none rd.timeout=600")
    vm.expect("waiting for root: LABEL=none")
    vm.qmp("send-key", keys=[{"type": "qcode", "data": key} for key in ("ctrl", "alt", "delete")])
    vm.wait_event("SHUTDOWN")
    vm.stop()


@pytest.mark.fault("P5")
def test_udevd_is_started_again_when_it_dies(start: Start, witness_of: Callable[[Machine], Witness]) -> None:
    vm = start("rd.break=initqueue root=LABEL=small-root")
    shell = Shell.rescue(vm, "initqueue")
    shell.check(
        "pids=$(cat /proc/[0-9]*/stat | while read pid name rest; do "
        "[ $name != '(systemd-udevd)' ] || echo $pid; done)"
    )
    # The kernel is not to kill it for want of memory; what a person starts is like any other program.
    assert "-1000" in shell.check("for pid in $pids; do cat /proc/$pid/oom_score_adj; done").splitlines()
    assert shell.check("cat /proc/self/oom_score_adj /proc/$$/oom_score_adj") == "0\n0"
    # A killed process needs a moment to end: it is gone when PID 1 has collected it.
    shell.check("kill -9 $pids; for pid in $pids; do while [ -e /proc/$pid ]; do sleep 0.1; done; done")
    shell.leave()
    seen = witness_of(vm)
    assert "pyinit: warning: udevd ended (signal 9); starting it again" in vm.console
    assert seen.boot is not None
    assert [child["status"] for child in seen.boot["children"] if "udevd" in child["argv"][0]] == [-9, 0]


def test_what_is_set_right_before_the_switch_still_counts(
    start: Start, witness_of: Callable[[Machine], Witness]
) -> None:
    vm = start("rd.break root=LABEL=small-root")
    shell = Shell.rescue(vm, "switch-root")
    shell.check("pyinit set rw init=/usr/lib/witness/init")
    # Somebody who looks at the root does not keep the old mount alive.
    shell.check("cd /sysroot")
    shell.leave()
    seen = witness_of(vm)
    assert seen.argv == ("/usr/lib/witness/init",)
    assert not seen.root.read_only


@pytest.mark.fault("P5")
def test_udevd_that_cannot_run_is_explained_and_tried_again(
    start: Start, witness_of: Callable[[Machine], Witness], expect_screen: Callable[[Machine, str], None]
) -> None:
    vm = start("rd.break=pre-udev root=LABEL=small-root")
    shell = Shell.rescue(vm, "pre-udev")
    daemon = "/usr/lib/systemd/systemd-udevd"
    real = shell.check(f"readlink -f {daemon} 2>/dev/null || echo {daemon}")
    shell.check(f"mount --bind /dev/null {real}")
    shell.leave()
    shell = Shell.rescue(vm, "pre-udev")
    expect_screen(vm, "E-UDEV")
    shell.check(f"umount {real}")
    shell.leave()
    witness_of(vm)
