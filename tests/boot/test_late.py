"""A root device that takes its time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu import Disk, Machine
from pyinit_qemu.debian import DebianRoot, Suite
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot


@pytest.mark.parametrize(("interface", "suite"), [("virtio", "bookworm"), ("scsi", "sid")])
@pytest.mark.fault("D1")
def test_a_disk_plugged_in_after_ten_seconds_is_used_when_it_appears(
    interface: str,
    suite: Suite,
    boot: Callable[..., Machine],
    debian: Callable[[Suite], DebianRoot],
    image: Callable[..., Path],
    small_disk: Callable[..., Path],
    witness_of: Callable[[Machine], Witness],
) -> None:
    disk = Disk(small_disk(), interface=interface, late=True)  # type: ignore[arg-type]
    system = debian(suite)
    vm = boot(
        kernel=system.kernel,
        initrd=image(debian=system),
        disks=(disk,),
        append="quiet root=LABEL=small-root",
    )
    vm.expect(r"waiting for root: LABEL=small-root since [56] s, 17[45] s more; block devices: none")
    vm.expect(r"waiting for root: LABEL=small-root since 1[5-9] s")
    vm.plug(disk)
    seen = witness_of(vm)
    assert seen.boot is not None
    (want,) = seen.boot["wants"]
    assert want["outcome"] == "satisfied"
    assert want["ended"] - want["asked"] > 10_000_000
    assert want["event"] == "add"


def test_rootwait_waits_for_ever_and_says_so(
    boot: Callable[..., Machine],
    bookworm: DebianRoot,
    listed: Path,
    small_disk: Callable[..., Path],
    witness_of: Callable[[Machine], Witness],
) -> None:
    disk = Disk(small_disk(), late=True)
    vm = boot(
        kernel=bookworm.kernel, initrd=listed, disks=(disk,), append="quiet root=LABEL=small-root rootwait"
    )
    vm.expect(r"waiting for root: LABEL=small-root since [56] s, for ever \(rootwait\)")
    vm.plug(disk)
    witness_of(vm)
