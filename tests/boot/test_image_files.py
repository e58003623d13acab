"""A root in a file on some medium: plain, live, wrong.

After test 30 of dracut, DMSQUASH.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu import Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks.filesystems import Erofs, Ext4, Filesystem, Squashfs, Tree, Vfat
from pyinit_qemu.disks.image import Image, Partition
from pyinit_qemu.shell import Shell
from pyinit_qemu.smallroot import small_root
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

Start = Callable[..., Machine]
MakeMedium = Callable[..., Path]


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> MakeMedium:
    """``medium(kind, name, content)``: a disk with one file system that holds a file with another one."""

    def make(kind: type[Ext4] | type[Vfat], name: str, content: Filesystem) -> Path:
        folder = tmp_path_factory.mktemp("medium")
        return Image(
            gpt=(Partition(kind(folder_with(folder, name, content), label="MEDIUM"), name="m"),)
        ).build()

    return make


def folder_with(folder: Path, name: str, content: Filesystem) -> Tree:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    content.write(folder / name, 512)
    return Tree(folder)


@pytest.fixture
def start(boot: Callable[..., Machine], bookworm: DebianRoot, generic: Path) -> Start:
    def go(append: str, disk: Path, initrd: Path = generic) -> Machine:
        return boot(
            kernel=bookworm.kernel,
            initrd=initrd,
            disks=(Disk(disk),),
            append=f"quiet {append}",
            allow=("banner",),
        )

    return go


def test_a_file_with_the_root_is_writable_when_rw_is_asked(
    start: Start, medium: MakeMedium, bookworm: DebianRoot, witness_of: Callable[[Machine], Witness]
) -> None:
    disk = medium(Ext4, "images/root.img", Ext4(small_root(bookworm), label="inside"))
    seen = witness_of(start("root=LABEL=MEDIUM loop=/images/root.img loopflags=noatime rw", disk))
    assert (seen.root.type, seen.root.device, seen.root.read_only) == ("ext4", "loop0", False)
    mounts = {mount.target: mount for mount in seen.mounts}
    assert "noatime" in mounts["/"].options
    assert mounts["/run/initramfs/live"].type == "ext4"
    assert "rw" in mounts["/run/initramfs/live"].options


def test_a_file_that_is_not_there_is_explained_with_what_is(
    start: Start, medium: MakeMedium, bookworm: DebianRoot, witness_of: Callable[[Machine], Witness]
) -> None:
    disk = medium(Vfat, "linux/root.sfs", Squashfs(small_root(bookworm)))
    vm = start("root=LABEL=MEDIUM loop=/linux/rot.sfs rw", disk)
    shell = Shell.rescue(vm, "mount")
    text = shell.check("pyinit explain")
    assert text.startswith("E-MOUNT the image /linux/rot.sfs cannot be read: No such file or directory")
    assert "/linux holds root.sfs" in text
    assert "Correct loop= here with pyinit set" in text
    assert " /run/initramfs/live " not in shell.check("cat /proc/mounts")
    shell.check("pyinit set loop=/linux/root.sfs")
    shell.leave()
    seen = witness_of(vm)
    assert (seen.root.type, seen.root.device, seen.root.read_only) == ("squashfs", "loop0", True)


def test_a_live_medium_with_a_file_in_a_file(
    start: Start,
    medium: MakeMedium,
    bookworm: DebianRoot,
    tmp_path: Path,
    witness_of: Callable[[Machine], Witness],
) -> None:
    inside = folder_with(tmp_path, "LiveOS/rootfs.img", Ext4(small_root(bookworm), label="inside"))
    disk = medium(Ext4, "LiveOS/squashfs.img", Squashfs(inside))
    seen = witness_of(start("root=live:CDLABEL=MEDIUM", disk))
    mounts = {mount.target: mount for mount in seen.mounts}
    assert (seen.root.type, seen.root.read_only) == ("overlay", False)
    assert (mounts["/run/rootfsbase"].type, mounts["/run/rootfsbase"].source) == ("ext4", "/dev/loop1")
    assert (mounts["/run/initramfs/squashfs"].type, mounts["/run/initramfs/squashfs"].source) == (
        "squashfs",
        "/dev/loop0",
    )
    assert "ro" in mounts["/run/initramfs/live"].options


def test_a_live_medium_with_an_erofs_in_another_folder(
    start: Start, medium: MakeMedium, bookworm: DebianRoot, witness_of: Callable[[Machine], Witness]
) -> None:
    disk = medium(Vfat, "os/root.img", Erofs(small_root(bookworm)))
    seen = witness_of(
        start(
            "root=LABEL=MEDIUM rd.live.image rd.live.dir=os rd.live.squashimg=root.img rd.overlay=off", disk
        )
    )
    assert (seen.root.type, seen.root.device) == ("erofs", "loop0")


def test_an_image_without_the_driver_says_so(
    start: Start, medium: MakeMedium, bookworm: DebianRoot, listed: Path
) -> None:
    disk = medium(Ext4, "images/root.img", Ext4(small_root(bookworm), label="inside"))
    vm = start("root=LABEL=MEDIUM loop=/images/root.img", disk, listed)
    text = Shell.rescue(vm, "mount").check("pyinit explain")
    assert text.startswith("E-MOUNT the image /images/root.img cannot be made a block device: No such")
    assert "build one with --feature loop." in text
    vm.stop()
