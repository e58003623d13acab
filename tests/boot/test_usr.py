"""A /usr of its own, and what else the root's fstab wants before the real init runs.

After test 11 of dracut, USR-MOUNT.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu import Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks.filesystems import Btrfs, Ext4, Tree
from pyinit_qemu.disks.image import Image, Partition
from pyinit_qemu.disks.stacks import btrfs_pool
from pyinit_qemu.shell import Shell
from pyinit_qemu.smallroot import small_root
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

Split = Callable[[str], Path]


@pytest.fixture(scope="module")
def split(bookworm: DebianRoot, tmp_path_factory: pytest.TempPathFactory) -> Split:
    """``split(fstab)``: a disk with a root whose /usr is the second partition."""

    def make(fstab: str) -> Path:
        root = tmp_path_factory.mktemp("split") / "root"
        shutil.copytree(small_root(bookworm).path, root, symlinks=True)
        usr = root.with_name("usr")
        (root / "usr").rename(usr)
        for name in ("usr", "srv", "opt"):
            (root / name).mkdir()
        (root / "opt/file").write_text("seen twice\n")
        (root / "etc/fstab").write_text(fstab)
        return Image(
            gpt=(
                Partition(Ext4(Tree(root), label="small-root"), name="root"),
                Partition(Btrfs(Tree(usr), label="the-usr"), name="usr"),
            )
        ).build()

    return make


@pytest.fixture
def start(boot: Callable[..., Machine], bookworm: DebianRoot, generic: Path) -> Callable[..., Machine]:
    def go(disk: Path, append: str) -> Machine:
        return boot(
            kernel=bookworm.kernel, initrd=generic, disks=(Disk(disk),), append=append, allow=("banner",)
        )

    return go


def test_usr_and_other_lines_of_fstab_are_mounted(
    start: Callable[..., Machine], split: Split, witness_of: Callable[[Machine], Witness]
) -> None:
    disk = split(
        "LABEL=small-root / ext4 defaults 0 1\n"
        "/opt /srv none bind,x-initrd.mount 0 0\n"
        "LABEL=gone /tmp ext4 nofail,x-initrd.mount 0 0\n"
        "LABEL=the-usr /usr btrfs noatime 0 2\n"
        "broken line\n"
        # Of what is mounted later as the paths are sorted.
        "/usr/lib/witness /mnt none bind,x-initrd.mount 0 0\n"
    )
    vm = start(disk, "quiet root=LABEL=small-root rd.timeout=60")
    seen = witness_of(vm)
    mounts = {mount.target: mount for mount in seen.mounts}
    assert mounts["/usr"].type == "btrfs"
    assert {"ro", "noatime"} <= mounts["/usr"].options
    assert mounts["/srv"].root == "/opt"
    assert (mounts["/mnt"].type, mounts["/mnt"].root) == ("btrfs", "/lib/witness")
    assert "/tmp" not in mounts
    assert "warning: fstab line 5 has 2 fields, at least 3 are expected" in vm.console
    assert "warning: /tmp (fstab line 3) cannot be mounted: /tmp: LABEL=gone did not appear" in vm.console


def test_a_usr_that_is_a_subvolume_beside_the_root(
    start: Callable[..., Machine],
    bookworm: DebianRoot,
    tmp_path: Path,
    witness_of: Callable[[Machine], Witness],
) -> None:
    root, usr = tmp_path / "root", tmp_path / "usr"
    shutil.copytree(small_root(bookworm).path, root, symlinks=True)
    (root / "usr").rename(usr)
    (root / "usr").mkdir()
    (root / "etc/fstab").write_text(
        "LABEL=pool / btrfs subvol=root 0 0\nLABEL=pool /usr btrfs subvol=usr,noatime 0 0\n"
    )
    pool = btrfs_pool(subvolumes={"root": Tree(root), "usr": Tree(usr)}, label="pool")
    disk = Image(gpt=(Partition(pool, name="pool"),)).build()
    vm = start(disk, "quiet root=LABEL=pool rootflags=subvol=root rw")
    mounts = {mount.target: mount for mount in witness_of(vm).mounts}
    assert (mounts["/"].root, mounts["/usr"].root) == ("/root", "/usr")
    assert "noatime" in mounts["/usr"].options
    assert "rw" in mounts["/usr"].options


def test_fstab_is_left_to_the_real_system_when_that_is_asked_for(
    start: Callable[..., Machine], split: Split, witness_of: Callable[[Machine], Witness]
) -> None:
    disk = split("LABEL=usr-of-old /usr btrfs defaults 0 2\n/opt /srv none bind,x-initrd.mount 0 0\n")
    vm = start(disk, "quiet root=LABEL=small-root rd.fstab=0 mount.usr=LABEL=the-usr")
    mounts = {mount.target: mount for mount in witness_of(vm).mounts}
    assert mounts["/usr"].type == "btrfs"
    assert "/srv" not in mounts


@pytest.mark.fault("F7")
def test_a_usr_that_is_missing_is_explained_and_named_in_the_shell(
    start: Callable[..., Machine],
    split: Split,
    witness_of: Callable[[Machine], Witness],
    expect_screen: Callable[[Machine, str], None],
) -> None:
    vm = start(
        split("LABEL=usr-of-old /usr btrfs defaults 0 2\n"), "quiet root=LABEL=small-root rw rd.timeout=4"
    )
    shell = Shell.rescue(vm, "mount")
    expect_screen(vm, "E-USR")
    shell.check("pyinit set mount.usr=LABEL=the-usr")
    shell.leave()
    seen = witness_of(vm)
    (usr,) = (mount for mount in seen.mounts if mount.target == "/usr")
    assert "rw" in usr.options
