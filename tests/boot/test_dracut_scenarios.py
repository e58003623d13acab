"""Scenarios of dracut's own test suite (dracut-ng 111), under its numbers and names.

Others are shown elsewhere: 10 BASIC by test_roots.py, 20 STORAGE (logical volumes, mirrors, degraded ones) by
test_volumes.py and test_layouts.py, 21 OVERLAYFS with the overlays.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu import Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks.declare import gpt
from pyinit_qemu.disks.filesystems import Ext4, Tree
from pyinit_qemu.disks.stacks import BtrfsPool, luks, lvm, md
from pyinit_qemu.smallroot import LABEL, small_root
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

ARRAY = "0123abcd:4567ef89:0123abcd:00000026"
UUID = "1c0de5ea-0000-4000-8000-000000000026"
PASSPHRASE = "correct horse"


@pytest.fixture(scope="module")
def assembling(storage: DebianRoot, image: Callable[..., Path]) -> Path:
    modules = ("virtio_pci", "virtio_blk", "ext4", "btrfs")
    return image(storage, mode="list", modules=modules, features=("lvm", "md", "luks"), rescue="open")


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
