"""An appliance as installers of updates lay it out: two slots with a squashfs each, one place for changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu import MIB, Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks.filesystems import Ext4, Squashfs
from pyinit_qemu.disks.image import ROOT_X86_64, Image, Partition
from pyinit_qemu.shell import Shell
from pyinit_qemu.timing import Timeout
from pyinit_qemu.witness import parse_mount

pytestmark = pytest.mark.boot

#: An emulated machine may need longer than systemd waits for devices, and must be seen to move.
PATIENCE = (
    "systemd.default_device_timeout_sec=900 systemd.default_timeout_start_sec=900 systemd.show_status=1"
)


def test_a_debian_in_the_second_slot_runs_and_keeps_its_changes(
    boot: Callable[..., Machine], bookworm: DebianRoot, generic: Path
) -> None:
    # The first slot is being written: it has room and the type of a root, and nothing in it yet.
    image = Image(
        gpt=(
            Partition(size=64 * MIB, type=ROOT_X86_64, name="system-a"),
            Partition(Squashfs(bookworm.source), type=ROOT_X86_64, name="system-b"),
            Partition(Ext4(label="changes", size=256 * MIB), name="changes"),
        )
    )
    vm = boot(
        kernel=bookworm.kernel,
        initrd=generic,
        disks=(Disk(image.build()),),
        memory=1024 * MIB,
        append=f"quiet root=PARTLABEL=system-b rd.overlay=LABEL=changes {PATIENCE}",
    )
    shell = Shell.login(vm)
    assert shell.run("systemctl is-system-running --wait", Timeout.LOGIN).output.strip() == "running"
    assert shell.check("systemctl --failed --no-legend --plain") == ""
    mounts = {
        mount.target: mount
        for mount in map(parse_mount, shell.check("cat /proc/self/mountinfo").splitlines())
    }
    assert (mounts["/"].type, "rw" in mounts["/"].options) == ("overlay", True)
    assert (mounts["/run/rootfsbase"].type, mounts["/run/rootfsbase"].source) == ("squashfs", "/dev/vda2")
    assert mounts["/run/overlayfs-backing"].source == "/dev/vda3"
    shell.check("echo kept > /etc/kept")
    shell.machine.send_line("systemctl poweroff")
    vm.wait_event("SHUTDOWN", Timeout.LOGIN)
    vm.power_cut()

    vm = boot.again(vm)  # type: ignore[attr-defined]
    shell = Shell.login(vm)
    assert shell.check("cat /etc/kept") == "kept"
    assert shell.check("systemctl --failed --no-legend --plain") == ""
    vm.stop().check()
