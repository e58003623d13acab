"""What a person has mounted in the rescue shell is there after the root switch: on the disks, that is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu import Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks.filesystems import Ext4
from pyinit_qemu.disks.image import Image
from pyinit_qemu.shell import Shell
from pyinit_qemu.timing import Timeout

pytestmark = pytest.mark.boot

# Another disk, parts of it elsewhere, a file system in memory, layers on the disk and in the initramfs.
MOUNTS = (
    "mkdir -p /x /bound /second /merged /layers/lower /run/part",
    "mount LABEL=precious /x",
    "mkdir /x/deep /x/lower && echo kept > /x/deep/file && echo kept > /x/lower/file",
    "mount --bind /x/deep /bound",
    "mount --bind /x/deep /run/part",
    "mount -t tmpfs second /second && echo gone > /second/file",
    "mkdir /layers/upper /layers/work",
    "mount -t overlay merged -o lowerdir=/x/lower,upperdir=/layers/upper,workdir=/layers/work /merged",
    "ln -s /x /link && ln -s /x/deep /layers/link",
    "sync",
)


@pytest.mark.fault("row-17", "R1")
def test_nothing_on_a_disk_is_deleted_with_the_initramfs(
    boot: Callable[..., Machine],
    bookworm: DebianRoot,
    image: Callable[..., Path],
    small_disk: Callable[..., Path],
) -> None:
    initrd = image(mode="list", modules=("virtio_pci", "virtio_blk", "ext4", "overlay"))
    disks = (Disk(small_disk()), Disk(Image(whole=Ext4(label="precious")).build()))
    line = "quiet root=LABEL=small-root rd.break"
    vm = boot(kernel=bookworm.kernel, initrd=initrd, disks=disks, append=line)
    shell = Shell.rescue(vm, "switch-root")
    for command in MOUNTS:
        shell.check(command)
    shell.leave()
    # The machine is off when nothing of it runs any more that could delete.
    vm.wait_event("SHUTDOWN", Timeout.BOOT)
    assert vm.frames[-1]["kind"] == "done"
    vm.power_cut()

    vm = boot.again(vm)  # type: ignore[attr-defined]
    shell = Shell.rescue(vm, "switch-root")
    shell.check("mkdir /x && mount LABEL=precious /x")
    assert shell.check("cat /x/deep/file /x/lower/file") == "kept\nkept"
    vm.stop()
