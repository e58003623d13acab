"""A root on a bcache: used with its cache, explained without it, used without it on request; others stay."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu import Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks.declare import gpt
from pyinit_qemu.disks.filesystems import Ext4
from pyinit_qemu.disks.stacks import Bcache, bcache
from pyinit_qemu.shell import Shell
from pyinit_qemu.smallroot import LABEL, small_root
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

UUID = "c0ffee00-0000-4000-8000-0000000000bc"
OTHER = "c0ffee00-0000-4000-8000-0000000000bd"
Start = Callable[..., Machine]


@pytest.fixture(scope="module")
def root(bookworm: DebianRoot) -> Ext4:
    return Ext4(small_root(bookworm), label=LABEL)


@pytest.fixture
def start(boot: Callable[..., Machine], bookworm: DebianRoot, image: Callable[..., Path]) -> Start:
    def go(append: str, *disks: Path | Disk, **options: object) -> Machine:
        modules = ("virtio_pci", "virtio_blk", "ext4")
        return boot(
            kernel=bookworm.kernel,
            initrd=image(mode="list", modules=modules, features=("bcache",), rescue="open"),
            disks=tuple(disk if isinstance(disk, Disk) else Disk(disk) for disk in disks),
            append=f"quiet {append}",
            **options,
        )

    return go


def disks(stack: Bcache) -> tuple[Path, Path]:
    backing, cache = (gpt(stack.member(number)).build() for number in range(2))
    return backing, cache


def written(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_root_is_used_with_its_cache_and_no_other_device_is_touched(
    start: Start, root: Ext4, tmp_path: Path, witness_of: Callable[[Machine], Witness]
) -> None:
    backing, cache = disks(bcache(root, UUID))
    others = enumerate(disks(bcache(root, OTHER)))
    foreign = [Path(shutil.copy(path, tmp_path / f"{number}.img")) for number, path in others]
    for path in foreign:
        path.chmod(0o600)
    before = [written(path) for path in foreign]
    vm = start(
        f"root=/dev/bcache/by-uuid/{UUID}",
        *(Disk(path, snapshot=False) for path in foreign), backing, cache,
    )  # fmt: skip
    seen = witness_of(vm)
    assert seen.root.device == "bcache0"
    assert f"/dev/bcache/by-uuid/{UUID}" in seen.dev
    assert f"/dev/bcache/by-uuid/{OTHER}" not in seen.dev
    assert any("Caching vdc1 as bcache0 on set" in line for line in seen.kernel_log)
    assert [written(path) for path in foreign] == before


def test_a_backing_device_without_its_cache_is_explained_and_used_when_the_cache_comes(
    start: Start, root: Ext4, witness_of: Callable[[Machine], Witness]
) -> None:
    stack = bcache(root, UUID)
    backing, cache = disks(stack)
    late = Disk(cache, late=True)
    vm = start(f"root=LABEL={LABEL} rd.bcache={UUID} rd.timeout=6", backing, late, allow=("banner",))
    shell = Shell.rescue(vm, "initqueue")
    told = shell.check("pyinit explain")
    assert told.startswith(f"E-DEV root: LABEL={LABEL} did not appear within 6 s")
    assert (
        f"bcache: backing device /dev/vda1 ({UUID}) is here, its cache set {stack.cache_set} is not" in told
    )
    vm.plug(late)
    shell.leave()
    assert witness_of(vm).root.device == "bcache0"


def test_a_backing_device_is_used_without_its_cache_when_that_is_asked_for(
    start: Start, root: Ext4, witness_of: Callable[[Machine], Witness]
) -> None:
    backing, _ = disks(bcache(root, UUID))
    vm = start(f"root=LABEL={LABEL} rd.bcache rd.bcache.degraded", backing)
    assert witness_of(vm).root.device == "bcache0"
    assert "; it is used without its cache after 30 s" in vm.console
