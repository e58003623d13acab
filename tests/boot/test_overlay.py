"""Changes that are laid over the root: in memory, on a device, shown only; and why they cannot be.

After test 21 of dracut, OVERLAYFS.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu import MIB, Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks.declare import gpt
from pyinit_qemu.disks.filesystems import Ext4, Squashfs, Tree
from pyinit_qemu.disks.image import Image, Partition
from pyinit_qemu.disks.stacks import Stack, luks, lvm
from pyinit_qemu.shell import Shell
from pyinit_qemu.smallroot import small_root
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

FSTAB = "LABEL=small-root / ext4 errors=remount-ro 0 1\n"
Start = Callable[..., Machine]


@pytest.fixture(scope="module")
def root(bookworm: DebianRoot, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A root with such an fstab as Debian's installer writes."""
    tree = tmp_path_factory.mktemp("overlay") / "root"
    shutil.copytree(small_root(bookworm).path, tree, symlinks=True)
    (tree / "etc/fstab").write_text(FSTAB)
    return Tree(tree)


@pytest.fixture(scope="module")
def changes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk that has changes of an earlier boot: another file in /srv."""
    tree = tmp_path_factory.mktemp("changes")
    (tree / "overlay/srv").mkdir(parents=True)
    (tree / "overlay/srv/kept").write_text("from an earlier boot\n")
    return Image(gpt=(Partition(Ext4(Tree(tree), label="changes"), name="changes"),)).build()


@pytest.fixture
def start(boot: Callable[..., Machine], bookworm: DebianRoot, generic: Path) -> Start:
    def go(append: str, *disks: Path, initrd: Path | None = None) -> Machine:
        return boot(
            kernel=bookworm.kernel,
            initrd=initrd or generic,
            disks=tuple(map(Disk, disks)),
            append=f"quiet {append}",
            allow=("banner",),
        )

    return go


def test_changes_in_memory_over_a_root_that_cannot_be_written(
    start: Start, root: Tree, witness_of: Callable[[Machine], Witness]
) -> None:
    disk = Image(gpt=(Partition(Squashfs(root), name="the-root"),)).build()
    vm = start("root=PARTLABEL=the-root ro rd.overlay=tmpfs:size=40m rd.break=pre-pivot", disk)
    shell = Shell.rescue(vm, "pre-pivot")
    assert shell.check("cat /sysroot/etc/fstab") == f"# Not with rd.overlay: {FSTAB.strip()}"
    assert shell.check("cat /run/rootfsbase/etc/fstab") == FSTAB.strip()
    shell.leave()
    seen = witness_of(vm)
    assert (seen.root.type, seen.root.read_only) == ("overlay", False)
    mounts = {mount.target: mount for mount in seen.mounts}
    assert mounts["/"].source == "LiveOS_rootfs"
    assert mounts["/run/rootfsbase"].type == "squashfs"
    assert "size=40960k" in mounts["/run/overlayfs-backing"].options
    assert "/run/overlayfs/etc/fstab" in seen.run or "/run/overlayfs-backing/overlay/etc/fstab" in seen.run


def test_changes_on_a_device_survive_until_they_are_reset(
    start: Start, root: Tree, changes: Path, witness_of: Callable[[Machine], Witness]
) -> None:
    disk = Image(gpt=(Partition(Ext4(root, label="small-root"), name="root"),)).build()
    vm = start("root=LABEL=small-root rw rd.overlay=LABEL=changes rd.break=pre-pivot,cleanup", disk, changes)
    shell = Shell.rescue(vm, "pre-pivot")
    assert shell.check("cat /sysroot/srv/kept") == "from an earlier boot"
    shell.check("echo new > /sysroot/srv/new")
    assert shell.check("cat /run/overlayfs/srv/new") == "new"
    assert shell.run("ls /run/rootfsbase/srv/new").status != 0
    shell.check("pyinit set rd.overlay.reset")
    shell.leave()
    shell = Shell.rescue(vm, "cleanup")
    assert shell.run("ls /sysroot/srv/kept /sysroot/srv/new").status != 0
    # The fstab without the root.
    assert shell.check("ls /run/overlayfs") == "etc"
    shell.leave()
    seen = witness_of(vm)
    (lower,) = (mount for mount in seen.mounts if mount.target == "/run/rootfsbase")
    # What the changes lie over must stay as it is, rw or not.
    assert "ro" in lower.options
    assert seen.root.type == "overlay"


def test_a_device_for_changes_that_is_not_there_is_explained(
    start: Start, root: Tree, changes: Path, witness_of: Callable[[Machine], Witness]
) -> None:
    disk = Image(gpt=(Partition(Ext4(root, label="small-root"), name="root"),)).build()
    vm = start("root=LABEL=small-root rd.live.overlay=changes rd.timeout=20", disk, changes)
    shell = Shell.rescue(vm, "mount")
    assert "warning: rd.live.overlay is an old spelling; the word is rd.overlay" in vm.console
    lines = shell.check("pyinit explain").splitlines()
    assert lines[0] == "E-CMDLINE rd.overlay=changes names neither a device nor tmpfs"
    shell.check("pyinit set rd.overlay=LABEL=chnges rd.timeout=3")
    shell.leave()
    shell = Shell.rescue(vm, "mount")
    text = shell.check("pyinit explain")
    assert text.startswith("E-DEV overlay: LABEL=chnges did not appear within 3 s")
    assert "LABEL=changes" in text
    assert "To keep changes in memory for this time: pyinit set rd.overlay=tmpfs" in text
    # Nothing is left half done for the next try.
    assert "/run/rootfsbase" not in shell.check("cat /proc/mounts")
    shell.check("pyinit set rd.overlay=LABEL=changes rd.overlay.readonly")
    shell.leave()
    seen = witness_of(vm)
    assert (seen.root.type, seen.root.read_only) == ("overlay", True)
    mounts = {mount.target: mount for mount in seen.mounts}
    assert {"ro", "nodev"} <= mounts["/run/overlayfs-backing"].options
    assert "lowerdir=/run/overlayfs-backing/overlay:/run/rootfsbase" in mounts["/"].options
    assert mounts["/etc/fstab"].root == "/pyinit/fstab"


def test_an_image_that_cannot_lay_anything_over_the_root_says_so(
    start: Start, root: Tree, listed: Path, witness_of: Callable[[Machine], Witness]
) -> None:
    disk = Image(gpt=(Partition(Ext4(root, label="small-root"), name="root"),)).build()
    vm = start("root=LABEL=small-root overlayroot=tmpfs", disk, initrd=listed)
    shell = Shell.rescue(vm, "mount")
    text = shell.check("pyinit explain")
    assert text.startswith(
        "E-MOUNT the changes in the memory for changes cannot be laid over the root: No such device"
    )
    assert "This image has no driver for overlay: build one with --feature overlay." in text
    shell.check("pyinit set rd.overlay=off")
    shell.leave()
    assert witness_of(vm).root.type == "ext4"


@pytest.fixture
def start_stack(boot: Callable[..., Machine], storage: DebianRoot, image: Callable[..., Path]) -> Start:
    initrd = image(
        storage,
        mode="list",
        modules=("virtio_pci", "virtio_blk", "ext4"),
        features=("luks", "lvm", "overlay"),
        rescue="open",
    )

    def go(append: str, stack: Stack) -> Machine:
        return boot(
            kernel=storage.kernel,
            initrd=initrd,
            disks=(Disk(gpt(stack).build()),),
            append=f"quiet {append}",
            memory=640 * MIB,
        )

    return go


@pytest.mark.fault("A5")
def test_an_encrypted_root_below_changes_is_closed_before_a_shell(
    start_stack: Start, storage: DebianRoot, witness_of: Callable[[Machine], Witness]
) -> None:
    uuid = "1c0de5ea-0000-4000-8000-00000000000d"
    stack = luks(Ext4(small_root(storage), label="small-root"), uuid=uuid, passphrase="secret")
    vm = start_stack(f"root=LABEL=small-root rd.luks.uuid={uuid} rd.overlay rd.break=pre-pivot", stack)
    vm.expect(r"Passphrase for luks-\S+ \(/dev/\S+\): ")
    vm.send_line("secret")
    shell = Shell.rescue(vm, "pre-pivot")
    assert "luks-" not in shell.check("ls /dev/mapper")
    mounts = shell.check("cat /proc/mounts")
    assert " /sysroot " not in mounts and "rootfsbase" not in mounts and "overlayfs" not in mounts
    shell.leave()
    vm.expect(r"Passphrase for luks-\S+ \(/dev/\S+\): ")
    vm.send_line("secret")
    assert witness_of(vm).root.type == "overlay"


def test_changes_on_one_volume_over_a_root_on_another(
    start_stack: Start, storage: DebianRoot, witness_of: Callable[[Machine], Witness]
) -> None:
    stack = lvm(vg="v", root=Ext4(small_root(storage)), changes=Ext4(label="changes"), other=Ext4())
    seen = witness_of(start_stack("root=/dev/v/root rd.overlay=/dev/v/changes", stack))
    mounts = {mount.target: mount for mount in seen.mounts}
    assert mounts["/run/rootfsbase"].source == "/dev/mapper/v-root"
    assert mounts["/run/overlayfs-backing"].source == "/dev/mapper/v-changes"
    # Nobody asked for that one.
    assert "/dev/v/other" not in seen.dev
