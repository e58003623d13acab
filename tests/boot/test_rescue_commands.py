"""The commands of the rescue shell, typed by a person at a console."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit.record import timeline
from pyinit_qemu import Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks.filesystems import Ext4, Vfat
from pyinit_qemu.disks.image import Image
from pyinit_qemu.shell import Shell
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

Start = Callable[[str], Machine]
Testimony = Callable[[Machine], Witness]


@pytest.fixture
def start(
    boot: Callable[..., Machine], bookworm: DebianRoot, listed: Path, small_disk: Callable[..., Path]
) -> Start:
    """Boot the small root, with a stick beside it."""

    def go(append: str) -> Machine:
        disks = (Disk(small_disk()), Disk(Image(whole=Ext4(label="stick")).build()))
        return boot(
            kernel=bookworm.kernel,
            initrd=listed,
            disks=disks,
            append=f"quiet {append}",
            allow=("banner", "traceback"),
        )

    return go


def code(vm: Machine) -> str:
    """The code of the next failure that PID 1 sends."""
    return str(vm.wait_frame("failure")["code"])


def test_a_failed_boot_is_looked_at_reported_and_continued(start: Start, witness_of: Testimony) -> None:
    vm = start("root=LABEL=gone rd.timeout=1 wifi.password=hunter2 site.log=http://me:hunter2@log/")
    shell = Shell.rescue(vm, "initqueue")
    assert code(vm) == "E-DEV"
    status = shell.check("pyinit status")
    assert "stopped:   in initqueue\nbecause:   E-DEV root: LABEL=gone did not appear within 1 s" in status
    assert "done:      cmdline, pre-udev, pre-trigger\n" in status
    assert "root:      nothing is mounted on /sysroot" in status
    assert "systemd-udevd (" in status
    assert "UUID or label is that of a disk that was replaced" in shell.check("pyinit explain E-DEV")

    doubtful = shell.run("pyinit report --to LABEL=stick")
    assert (doubtful.status, "nothing was written to /dev/vdb: it is no stick" in doubtful.output) == (
        1,
        True,
    )
    assert "all the same: pyinit report --to LABEL=stick --force" in doubtful.output
    shell.check("pyinit set root=LABEL=small-root")
    root = shell.run("pyinit report --to vda1")
    assert (root.status, "/dev/vda1: root=LABEL=small-root names it; " in root.output) == (1, True)
    gone = shell.check("pyinit set root=LABEL=gone")
    assert "Note: no device is LABEL=gone now. There is:\n      /dev/vda  " in gone
    results = shell.run("pyinit report --to ttyS1")
    assert (results.status, "/dev/ttyS1 carries what rd.pyinit.report sends" in results.output) == (1, True)
    written = shell.check("pyinit report --to LABEL=stick --force")
    folder = written.split("directory ")[1].rstrip(".")
    lost = shell.run("chroot")
    assert (lost.status, "chroot: nothing is mounted on /sysroot." in lost.output) == (1, True)
    shell.check("mkdir /stick && touch /stick/x && mount -o ro LABEL=stick /stick")
    assert re.search(r"\n/dev/vdb +\S+ MiB +\S+ .iB +\S+ MiB /stick\n", shell.check("df -h") + "\n")
    report = shell.check(f"cat /stick/{folder}/report.txt")
    assert "E-DEV root: LABEL=gone did not appear" in report
    assert "--- kernel log\n" in report and "ID_FS_LABEL=stick" in report
    assert "--- device links\n" in report and "\n/dev/disk/by-label/stick -> ../../vdb\n" in report
    assert re.search(
        r"\nfrom the boot loader: .* wifi.password=\(hidden\) site.log=http://\(hidden\)@log/\n", report
    )
    assert "\n/dev/vdb  16 MiB  ext4  UUID=" in report
    assert re.search(r"\npyinit \S+, Python 3\.\S+, Linux 6\.1\.", report)
    assert '"schema": 1' in shell.check(f"cat /stick/{folder}/boot.json")
    assert shell.run(f"grep -r hunter2 /stick/{folder}").status == 1
    busy = shell.run("pyinit report --to vdb")
    assert (busy.status, "/dev/vdb is in use: mounted on /stick" in busy.output) == (1, True)
    shell.check("umount /stick")
    empty = shell.run("pyinit report --to /dev/vda")
    assert (empty.status, "/dev/vda holds no file system to write to" in empty.output) == (1, True)
    sent = shell.check("pyinit report --to ttyS0")
    assert sent.index("----- begin of") < sent.index("--- timeline") < sent.index("----- end of")

    missing = shell.run("pyinit mount-root LABEL=nowhere")
    assert (missing.status, "no block device is LABEL=nowhere; see pyinit devices" in missing.output) == (
        1,
        True,
    )
    wrong = shell.check("pyinit mount-root vdb")
    assert "/dev/vdb is mounted on /sysroot" in wrong
    assert "Note: what was mounted does not look like a root file system" in wrong
    assert shell.run("pyinit mount-root vda1").status == 1
    shell.check("umount /sysroot")
    assert "/dev/vda1 is mounted" in shell.check("pyinit mount-root vda1 rw,noatime")
    vm.send_line("pyinit continue")
    seen = witness_of(vm)
    assert seen.root.device == "vda1" and not seen.root.read_only and "noatime" in seen.root.options
    assert seen.boot is not None
    assert [shell["stage"] for shell in seen.boot["shells"]] == ["initqueue"]
    last = timeline(dict(seen.boot))[-1]
    assert re.fullmatch(r"\S+ ms from /init to the real init, without \S+ ms in the rescue shell", last)


def test_a_report_is_copied_to_a_stick(
    boot: Callable[..., Machine], bookworm: DebianRoot, generic: Path, small_disk: Callable[..., Path]
) -> None:
    stick = Disk(Image(whole=Vfat(label="STICK")).build(), interface="usb")
    vm = boot(
        kernel=bookworm.kernel,
        initrd=generic,
        disks=(Disk(small_disk()), stick),
        append="quiet root=LABEL=small-root rd.break=mount",
    )
    shell = Shell.rescue(vm, "mount")
    # It comes when it is ready: a stick that was plugged in just now.
    shell.check("until pyinit devices | grep -q STICK; do sleep 0.2; done")
    assert "Copied to /dev/sda, directory " in shell.check("pyinit report --to LABEL=STICK")
    shell.check("mkdir /stick && mount -o ro LABEL=STICK /stick && ls /stick/pyinit-report-*/report.txt")
    vm.stop()


def test_arguments_for_init_are_set_in_the_shell(start: Start, witness_of: Testimony) -> None:
    vm = start("rd.break=pre-mount root=LABEL=small-root -- one")
    shell = Shell.rescue(vm, "pre-mount")
    assert "stopped:   before pre-mount\nbecause:   rd.break asks for it" in shell.check("pyinit status")
    assert "Nothing has failed" in shell.check("pyinit explain")
    shell.check("pyinit set -- two 'three=3 4'")
    vm.send_line("pyinit retry")
    assert witness_of(vm).argv == ("/sbin/init", "one", "two", "three=3 4")


def test_a_python_console_has_the_boots_objects(start: Start) -> None:
    vm = start("rd.break=initqueue root=LABEL=small-root")
    shell = Shell.rescue(vm, "initqueue")
    vm.send_line("pyinit python")
    vm.expect("^>>> ")
    vm.send_line("print(config.root, sorted(d.name for d in devices), image.mode)")
    vm.expect(r"^LABEL=small-root \['vda', 'vda1', 'vdb'\] list\n>>> ")
    vm.send_bytes(b"\x04")
    shell.wait()
    vm.stop()


def test_what_a_person_breaks_is_explained_until_it_is_mended(
    start: Start, witness_of: Testimony, expect_screen: Callable[[Machine, str], None]
) -> None:
    vm = start("rd.break=pre-pivot rd.break=switch-root root=LABEL=gone rd.timeout=1 rd.break=pre-udev")
    shell = Shell.rescue(vm, "pre-udev")
    shell.check(
        "mkdir /saved && cd /usr/lib/pyinit/pyinit/rescue && mv missing.py __pycache__/missing.* /saved"
    )
    shell.leave()

    shell = Shell.rescue(vm, "initqueue")
    assert code(vm) == "E-INTERNAL"
    expect_screen(vm, "E-INTERNAL")
    shell.check("pyinit set root=LABEL=small-root")
    shell.leave()

    shell = Shell.rescue(vm, "pre-pivot")
    shell.check("mount -t tmpfs none /sysroot")
    shell.leave()
    shell = Shell.rescue(vm, "pre-pivot")
    assert code(vm) == "E-ROOTFS"
    shell.check("umount /sysroot")
    shell.leave()

    shell = Shell.rescue(vm, "switch-root")
    shell.check("mv /etc/initrd-release /saved")
    shell.leave()
    shell = Shell.rescue(vm, "switch-root")
    assert code(vm) == "E-SWITCH"
    expect_screen(vm, "E-SWITCH")
    shell.check("mv /saved/initrd-release /etc")
    shell.leave()
    assert witness_of(vm).argv == ("/sbin/init",)
