"""A guest whose clock counts instructions: minutes of waiting pass in seconds."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu import Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.shell import Shell
from pyinit_qemu.witness import Witness

pytestmark = [pytest.mark.boot, pytest.mark.icount]


def test_three_minutes_of_waiting_for_a_root_end_soon(
    boot: Callable[..., Machine], bookworm: DebianRoot, listed: Path
) -> None:
    vm = boot(kernel=bookworm.kernel, initrd=listed, icount=True, append="root=LABEL=gone", allow=("banner",))
    # The time that the host has for all of it is less than what passes in the guest.
    shell = Shell.rescue(vm, "initqueue", 170.0)
    assert "E-DEV root: LABEL=gone did not appear within 180 s" in vm.console
    assert float(shell.check("cat /proc/uptime").split()[0]) > 180
    vm.stop()


@pytest.mark.fault("D1")
@pytest.mark.parametrize("seconds", [5, 40, 170])
def test_a_late_disk_is_used_at_once_and_every_ten_seconds_a_line_says_what_is_awaited(
    seconds: int,
    boot: Callable[..., Machine],
    bookworm: DebianRoot,
    generic: Path,
    small_disk: Callable[..., Path],
    witness_of: Callable[[Machine], Witness],
) -> None:
    disk = Disk(small_disk(), late=True)
    # What the guest's clock says when the host gets to it cannot be known: it must not run out meanwhile.
    append = "root=LABEL=small-root rootwait loglevel=7"
    vm = boot(kernel=bookworm.kernel, initrd=generic, disks=(disk,), icount=True, append=append)
    vm.expect(rf"waiting for root: LABEL=small-root since {seconds - seconds % 10 + 5} s")
    vm.plug(disk)
    seen = witness_of(vm)
    told = [int(number) for number in re.findall(r"LABEL=small-root since (\d+) s", vm.console)]
    assert told == list(range(5, told[-1] + 1, 10))
    assert seen.boot is not None
    (want,) = seen.boot["wants"]
    assert want["ended"] - want["asked"] >= seconds * 1_000_000
    # The kernel's line is written when it has read the partition table and is about to announce the disk.
    appeared = re.search(r"\[ *([0-9.]+)\] (?:virtio_blk virtio\d+: \[vda\]| vda: vda1)", vm.console)
    assert appeared is not None
    assert want["ended"] / 1e6 - float(appeared[1]) < 1.0
