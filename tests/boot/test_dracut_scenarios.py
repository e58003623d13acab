"""Scenarios of dracut's own test suite (dracut-ng 111), under its numbers and names.

Not all of their variants are repeated here: every kind of volume and array is in test_volume_kinds.py, what
is not complete in test_volumes.py, changes that are kept, reset or not allowed in test_overlay.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from pyinit_qemu import Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks.declare import gpt
from pyinit_qemu.disks.filesystems import Btrfs, Ext4, Tree, Xfs
from pyinit_qemu.disks.stacks import BtrfsPool, Stack, Volume, luks, lvm, md
from pyinit_qemu.shell import Shell
from pyinit_qemu.smallroot import LABEL, small_root
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

ARRAY = "0123abcd:4567ef89:0123abcd:00000026"
UUID = "1c0de5ea-0000-4000-8000-000000000026"
ROOT_UUID = "2007da7a-0000-4000-8000-000000000010"
PASSPHRASE = "correct horse"
KEY = b"a key of the system that is in the image"
MODULES = ("virtio_pci", "virtio_blk", "ext4", "btrfs", "xfs")
Start = Callable[..., Machine]


@pytest.fixture(scope="module")
def assembling(storage: DebianRoot, image: Callable[..., Path]) -> Path:
    features = ("lvm", "md", "luks", "overlay")
    return image(storage, mode="list", modules=MODULES, features=features, rescue="open")


@pytest.fixture
def start(boot: Start, storage: DebianRoot, assembling: Path) -> Start:
    def go(append: str, *disks: Path, initrd: Path = assembling) -> Machine:
        return boot(
            kernel=storage.kernel,
            initrd=initrd,
            disks=tuple(map(Disk, disks)),
            append=f"quiet {append}",
            allow=("banner",),
        )

    return go


@pytest.fixture(scope="module")
def plain(storage: DebianRoot) -> Path:
    return gpt(Ext4(small_root(storage), label=LABEL, uuid=ROOT_UUID)).build()


def members(stack: Stack) -> list[Path]:
    return [gpt(stack.member(number)).build() for number in range(stack.members)]


def test_10_basic(start: Start, plain: Path, witness_of: Callable[[Machine], Witness]) -> None:
    seen = witness_of(start(f"root=LABEL={LABEL}", plain))
    assert (seen.root.device, seen.root.type) == ("vda1", "ext4")


@pytest.fixture(scope="module")
def usr_mount(storage: DebianRoot, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A btrfs whose subvolumes are the root and /usr."""
    small = small_root(storage)
    root = tmp_path_factory.mktemp("usr-mount") / "root"
    shutil.copytree(small.path, root, symlinks=True)
    usr = root.with_name("usr")
    (root / "usr").rename(usr)
    (root / "usr").mkdir()
    fstab = f"LABEL={LABEL} / btrfs subvol=root 0 0\nLABEL={LABEL} /usr btrfs subvol=usr,noatime 0 0\n"
    trees = (Tree(path, digest=f"{small.digest}-{path.name}") for path in (root, usr))
    system, programs = trees
    pool = BtrfsPool(
        subvolumes={"root": system.changed({"/etc/fstab": fstab.encode()}), "usr": programs}, label=LABEL
    )
    return gpt(pool).build()


@pytest.mark.parametrize("how", ["ro", "rw"])
def test_11_usr_mount(
    how: str,
    boot: Callable[..., Machine],
    storage: DebianRoot,
    assembling: Path,
    usr_mount: Path,
    witness_of: Callable[[Machine], Witness],
) -> None:
    vm = boot(
        kernel=storage.kernel,
        initrd=assembling,
        disks=(Disk(usr_mount),),
        append=f"quiet root=LABEL={LABEL} rootflags=subvol=root {how}",
    )
    mounts = {mount.target: mount for mount in witness_of(vm).mounts}
    assert (mounts["/"].root, mounts["/usr"].root) == ("/root", "/usr")
    assert how in mounts["/"].options and {how, "noatime"} <= mounts["/usr"].options


@pytest.mark.parametrize("kind", [Ext4, Btrfs, Xfs])
@pytest.mark.parametrize("volume", ["linear", "thin"])
def test_20_storage_volumes(
    volume: Literal["linear", "thin"],
    kind: type[Ext4] | type[Btrfs] | type[Xfs],
    start: Start,
    storage: DebianRoot,
    witness_of: Callable[[Machine], Witness],
) -> None:
    root = kind(small_root(storage), label="dracut")
    seen = witness_of(start("root=/dev/dracut/root", *members(lvm(vg="dracut", root=Volume(root, volume)))))
    assert seen.root.type == kind.fstype
    assert "/dev/dracut/root" in seen.dev


@pytest.mark.parametrize("gone", [0, 1])
def test_20_storage_mirror(
    gone: int, start: Start, storage: DebianRoot, witness_of: Callable[[Machine], Witness]
) -> None:
    array = md(1, Ext4(small_root(storage), uuid=ROOT_UUID), uuid=ARRAY, name="dracut")
    vm = start(f"root=UUID={ROOT_UUID} rd.md.uuid={ARRAY}", *members(array)[gone:])
    assert witness_of(vm).root.device.startswith("md")
    assert (f"warning: array {ARRAY} is not complete" in vm.console) == bool(gone)


def test_20_storage_encrypted_mirror_with_a_key_file(
    start: Start,
    storage: DebianRoot,
    image: Callable[..., Path],
    witness_of: Callable[[Machine], Witness],
) -> None:
    root = Ext4(small_root(storage), uuid=ROOT_UUID)
    array = md(1, luks(root, uuid=UUID, key=KEY), uuid=ARRAY, name="dracut")
    table = f"dracut UUID={UUID} /etc/key luks\n".encode()
    initrd = image(
        storage,
        mode="list",
        modules=MODULES,
        features=("md", "luks"),
        rescue="open",
        includes=((table, "/etc/crypttab"), (KEY, "/etc/key")),
    )
    vm = start(f"root=UUID={ROOT_UUID} rd.md.uuid={ARRAY}", *members(array), initrd=initrd)
    seen = witness_of(vm)
    assert "/dev/mapper/dracut" in seen.dev and seen.root.device.startswith("dm-")
    assert "Passphrase" not in vm.console


OVERLAYS = {
    "off": ("rd.overlay=0", "ext4", ""),
    "memory": ("rd.overlay", "overlay", "tmpfs"),
    "sized": ("rd.overlay=tmpfs:size=40m", "overlay", "tmpfs"),
    "label": ("rd.overlay=LABEL=OVERLAY", "overlay", "ext4"),
    "uuid": (f"rd.overlay=UUID={UUID}", "overlay", "ext4"),
    "path": ("rd.overlay=/dev/disk/by-label/OVERLAY", "overlay", "ext4"),
}


@pytest.mark.parametrize("name", OVERLAYS)
def test_21_overlayfs(name: str, start: Start, plain: Path, witness_of: Callable[[Machine], Witness]) -> None:
    words, kind, backing = OVERLAYS[name]
    changes = gpt(Ext4(label="OVERLAY", uuid=UUID)).build()
    seen = witness_of(start(f"root=LABEL={LABEL} ro {words}", plain, changes))
    mounts = {mount.target: mount for mount in seen.mounts}
    assert seen.root.type == kind
    assert ("/run/overlayfs-backing" in mounts) == bool(backing)
    if backing:
        assert mounts["/run/overlayfs-backing"].type == backing
        assert ("size=40960k" in mounts["/run/overlayfs-backing"].options) == (name == "sized")


def test_21_overlayfs_missing(start: Start, plain: Path, witness_of: Callable[[Machine], Witness]) -> None:
    vm = start(f"root=LABEL={LABEL} rd.overlay=LABEL=OVERLAY rd.timeout=2", plain)
    shell = Shell.rescue(vm, "mount")
    # Dracut takes memory in its place; here nobody loses changes without having said so.
    told = shell.check("pyinit explain")
    assert told.startswith("E-DEV overlay: LABEL=OVERLAY did not appear within 2 s")
    shell.check("pyinit set rd.overlay=tmpfs")
    shell.leave()
    assert witness_of(vm).root.type == "overlay"


def test_21_overlayfs_encrypted(start: Start, plain: Path, witness_of: Callable[[Machine], Witness]) -> None:
    changes = members(luks(Ext4(label="OVERLAY"), uuid=UUID, passphrase=PASSPHRASE))
    vm = start(f"root=LABEL={LABEL} rd.overlay=LABEL=OVERLAY rd.luks.uuid={UUID}", plain, *changes)
    vm.expect(r"Passphrase for luks-\S+ \(/dev/\S+\): ")
    vm.send_line(PASSPHRASE)
    mounts = {mount.target: mount for mount in witness_of(vm).mounts}
    assert mounts["/run/overlayfs-backing"].source == f"/dev/mapper/luks-{UUID}"


@pytest.mark.parametrize("words", [f"rd.md.uuid={ARRAY} rd.luks.uuid={UUID}", f"rd.auto rd.luks.uuid={UUID}"])
def test_26_enc_raid_lvm(
    words: str,
    boot: Callable[..., Machine],
    storage: DebianRoot,
    assembling: Path,
    witness_of: Callable[[Machine], Witness],
) -> None:
    root = Ext4(small_root(storage), label=LABEL)
    volumes = lvm(vg="dracut", root=root)
    array = md(1, luks(volumes, uuid=UUID, passphrase=PASSPHRASE), uuid=ARRAY, name="dracut")
    vm = boot(
        kernel=storage.kernel,
        initrd=assembling,
        disks=tuple(Disk(gpt(array.member(number)).build()) for number in range(2)),
        append=f"quiet root=/dev/dracut/root {words}",
    )
    vm.expect(r"Passphrase for luks-\S+ \(/dev/md\S+\): ")
    vm.send_line(PASSPHRASE)
    seen = witness_of(vm)
    assert "/dev/dracut/root" in seen.dev and seen.root.device.startswith("dm-")


def test_44_drivers(
    start: Start,
    storage: DebianRoot,
    witness_of: Callable[[Machine], Witness],
) -> None:
    """The root has no modules; what needs one, another file system, is mounted before it is entered."""
    small = small_root(storage)
    assert not (small.path / "lib/modules").exists() and not (small.path / "usr/lib/modules").exists()
    fstab = f"LABEL={LABEL} / ext4 defaults 0 1\nLABEL=mnt /mnt xfs x-initrd.mount 0 0\n"
    root = gpt(Ext4(small.changed({"/etc/fstab": fstab.encode(), "/mnt/.keep": b""}), label=LABEL)).build()
    vm = start(f"root=LABEL={LABEL} rw rd.driver.export", root, gpt(Xfs(label="mnt")).build())
    mounts = {mount.target: mount for mount in witness_of(vm).mounts}
    assert (mounts["/mnt"].type, "rw" in mounts["/mnt"].options) == ("xfs", True)
    assert "rd.driver.export" in vm.console
