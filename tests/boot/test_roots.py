"""The file systems that a root may have, through the image for any machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu import Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks.filesystems import FILESYSTEMS
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

LABEL = "a-root"
PARTUUID = "5c0ffee5-0000-4000-8000-00000000f00d"


@pytest.mark.parametrize(
    ("fstype", "asked"), [("ext4", "ro"), ("ext2", "rw"), ("xfs", "rw"), ("btrfs", "ro"), ("f2fs", "rw")]
)
def test_a_root_of_this_type_is_found_by_label_and_mounted_as_asked(
    fstype: str,
    asked: str,
    boot: Callable[..., Machine],
    bookworm: DebianRoot,
    generic: Path,
    small_disk: Callable[..., Path],
    witness_of: Callable[[Machine], Witness],
) -> None:
    disk = small_disk(lambda tree: FILESYSTEMS[fstype](tree, label=LABEL))
    vm = boot(
        kernel=bookworm.kernel, initrd=generic, disks=(Disk(disk),), append=f"root=LABEL={LABEL} {asked}"
    )
    root = witness_of(vm).root
    assert (root.type, root.device) == (fstype, "vda1")
    assert root.read_only == (asked == "ro")
    assert f"/dev/disk/by-label/{LABEL}" in root.links


@pytest.mark.parametrize("fstype", ["squashfs", "erofs"])
def test_a_root_that_cannot_be_written_is_read_only_even_when_rw_is_asked(
    fstype: str,
    boot: Callable[..., Machine],
    bookworm: DebianRoot,
    generic: Path,
    small_disk: Callable[..., Path],
    witness_of: Callable[[Machine], Witness],
) -> None:
    disk = small_disk(FILESYSTEMS[fstype], partuuid=PARTUUID)
    vm = boot(
        kernel=bookworm.kernel,
        initrd=generic,
        disks=(Disk(disk),),
        append=f"root=PARTUUID={PARTUUID} rw",
    )
    root = witness_of(vm).root
    assert (root.type, root.device) == (fstype, "vda1")
    assert root.read_only


def test_a_root_on_a_medium_that_cannot_be_written_is_read_only(
    boot: Callable[..., Machine],
    bookworm: DebianRoot,
    listed: Path,
    small_disk: Callable[..., Path],
    witness_of: Callable[[Machine], Witness],
) -> None:
    disks = (Disk(small_disk(), readonly=True),)
    vm = boot(kernel=bookworm.kernel, initrd=listed, disks=disks, append="quiet root=/dev/vda1 rw")
    root = witness_of(vm).root
    assert (root.type, root.read_only) == ("ext4", True)
