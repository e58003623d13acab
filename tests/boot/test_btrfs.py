"""A root on a btrfs of several devices: used when all are there, without some of them only when asked to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu import Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks.declare import gpt
from pyinit_qemu.disks.stacks import btrfs_pool
from pyinit_qemu.shell import Shell
from pyinit_qemu.smallroot import small_root
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

Start = Callable[..., Machine]


@pytest.fixture(scope="module")
def members(storage: DebianRoot) -> tuple[Path, Path]:
    """The two disks of a mirror whose root is a subvolume."""
    pool = btrfs_pool(
        devices=2,
        data="raid1",
        metadata="raid1",
        subvolumes={"@": small_root(storage), "@home": None},
        label="pool",
    )
    first, second = (gpt(pool.member(number)).build() for number in range(2))
    return first, second


@pytest.fixture
def start(boot: Callable[..., Machine], storage: DebianRoot, image: Callable[..., Path]) -> Start:
    def go(append: str, *disks: Disk) -> Machine:
        return boot(
            kernel=storage.kernel,
            initrd=image(storage, mode="list", modules=("virtio_pci", "virtio_blk", "btrfs")),
            disks=disks,
            append=f"quiet root=LABEL=pool {append}",
            allow=("banner",),
        )

    return go


@pytest.mark.fault("S3")
def test_a_pool_without_a_device_is_explained_and_used_when_the_device_comes(
    start: Start, members: tuple[Path, Path], witness_of: Callable[[Machine], Witness]
) -> None:
    late = Disk(members[1], late=True)
    vm = start("rootflags=subvol=@ rd.timeout=6", Disk(members[0]), late)
    shell = Shell.rescue(vm, "initqueue")
    told = shell.check("pyinit explain")
    assert told.startswith("E-DEV root: LABEL=pool did not appear within 6 s")
    assert "nearest: /dev/vda1: has that LABEL but other devices of its file system are missing" in told
    assert "pyinit set rootflags=degraded," in told
    vm.plug(late)
    shell.leave()
    seen = witness_of(vm)
    assert seen.root.type == "btrfs"
    assert "subvol=/@" in seen.root.options
    assert "degraded" not in seen.root.options


@pytest.mark.fault("S3")
def test_a_pool_without_a_device_is_used_after_a_while_when_that_is_asked_for(
    start: Start, members: tuple[Path, Path], witness_of: Callable[[Machine], Witness]
) -> None:
    vm = start("rootflags=subvol=@,degraded", Disk(members[0]))
    vm.expect("btrfs: the file system is not complete; its devices here: /dev/vda1")
    seen = witness_of(vm)
    assert seen.root.type == "btrfs" and "degraded" in seen.root.options
    assert (
        "warning: the file system is not complete; its devices here: /dev/vda1; it is mounted without the "
        "others after 30 s" in vm.console
    )


def test_a_pool_that_is_complete_is_not_degraded_by_the_option(
    start: Start, members: tuple[Path, Path], witness_of: Callable[[Machine], Witness]
) -> None:
    first, second = members
    vm = start("rootflags=subvol=@,degraded", Disk(first), Disk(second))
    assert witness_of(vm).root.type == "btrfs"
    assert "not complete" not in vm.console
