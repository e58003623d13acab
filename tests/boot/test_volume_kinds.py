"""Roots on each kind of logical volume and on arrays of each level."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu import Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks.declare import gpt
from pyinit_qemu.disks.filesystems import Ext4
from pyinit_qemu.disks.stacks import Stack, Volume, lvm, md
from pyinit_qemu.smallroot import LABEL, small_root
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot


@pytest.fixture(scope="module")
def root(storage: DebianRoot) -> Ext4:
    return Ext4(small_root(storage), label=LABEL)


@pytest.fixture
def start(
    boot: Callable[..., Machine], storage: DebianRoot, image: Callable[..., Path]
) -> Callable[..., Machine]:
    initrd = image(
        storage,
        mode="list",
        modules=("virtio_pci", "virtio_blk", "ext4"),
        features=("lvm", "md"),
        rescue="open",
    )

    def go(append: str, stack: Stack) -> Machine:
        disks = tuple(Disk(gpt(stack.member(number)).build()) for number in range(stack.members))
        return boot(kernel=storage.kernel, initrd=initrd, disks=disks, append=f"quiet {append} rd.timeout=60")

    return go


@pytest.mark.parametrize("kind", ["linear", "striped", "raid1", "mirror", "thin", "cached"])
def test_a_root_on_a_volume_of_each_kind(
    kind: str, start: Callable[..., Machine], root: Ext4, witness_of: Callable[[Machine], Witness]
) -> None:
    vm = start("root=/dev/v/root", lvm(vg="v", pvs=2, root=Volume(root, kind), other=Volume(size=8 << 20)))
    seen = witness_of(vm)
    assert "/dev/disk/by-id/dm-name-v-root" in seen.root.links
    assert "/dev/v/other" not in seen.dev
    assert seen.boot is not None
    assert [m["text"] for m in seen.boot["messages"] if m["level"] in ("warning", "error")] == []


def test_a_root_on_a_snapshot(
    start: Callable[..., Machine], root: Ext4, witness_of: Callable[[Machine], Witness]
) -> None:
    group = lvm(vg="v", old=root, root=Volume(kind="snapshot", origin="old", size=16 << 20))
    seen = witness_of(start("root=/dev/v/root", group))
    assert "/dev/disk/by-id/dm-name-v-root" in seen.root.links


@pytest.mark.parametrize("level", [0, 1, 4, 5, 6, 10])
def test_a_root_on_an_array_of_each_level(
    level: int, start: Callable[..., Machine], root: Ext4, witness_of: Callable[[Machine], Witness]
) -> None:
    members = {0: 2, 1: 2, 4: 3, 5: 3}.get(level, 4)
    array = md(level, root, members, uuid="0123abcd:4567ef89:0123abcd:4567ef89", name="system")
    seen = witness_of(start("root=/dev/md/system", array))
    assert seen.root.device.startswith("md")
    assert "/dev/md/system" in seen.dev
