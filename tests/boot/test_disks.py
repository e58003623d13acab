"""The ways a disk may be attached, through the image for any machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu import Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks.filesystems import Ext4
from pyinit_qemu.shell import Shell
from pyinit_qemu.spec import Interface
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

UUID = "0ddba11d-0000-4000-8000-000000000001"


@pytest.mark.parametrize(
    ("interface", "device"),
    [("virtio", "vda1"), ("scsi", "sda1"), ("nvme", "nvme0n1p1"), ("ahci", "sda1"), ("usb", "sda1")],
)
def test_a_root_on_a_disk_of_this_kind_is_found_by_uuid(
    interface: Interface,
    device: str,
    boot: Callable[..., Machine],
    bookworm: DebianRoot,
    generic: Path,
    small_disk: Callable[..., Path],
    witness_of: Callable[[Machine], Witness],
) -> None:
    disk = Disk(small_disk(lambda tree: Ext4(tree, uuid=UUID)), interface=interface)
    vm = boot(kernel=bookworm.kernel, initrd=generic, disks=(disk,), append=f"quiet root=UUID={UUID}")
    root = witness_of(vm).root
    assert (root.type, root.device, root.read_only) == ("ext4", device, True)
    assert f"/dev/disk/by-uuid/{UUID}" in root.links


def test_a_copy_behind_a_slower_controller_is_noticed(
    boot: Callable[..., Machine], bookworm: DebianRoot, generic: Path, small_disk: Callable[..., Path]
) -> None:
    """The virtio disk is there long before the AHCI controller has looked at its six ports."""
    disk = Disk(small_disk(lambda tree: Ext4(tree, uuid=UUID)))
    disks = (disk, Disk(disk.path, interface="ahci"))
    vm = boot(
        kernel=bookworm.kernel, initrd=generic, disks=disks, append=f"root=UUID={UUID}", allow=("banner",)
    )
    Shell.rescue(vm, "initqueue")
    assert f"E-AMBIG 2 devices match root: UUID={UUID}" in vm.console
    assert "/dev/vda1" in vm.console and "/dev/sda1" in vm.console
    vm.stop()
