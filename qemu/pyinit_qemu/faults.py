"""Faults of a running machine, each one call.

>>> vm.faults.fail(disk, IoError(sector=2050))
>>> vm.faults.hang(disk)
>>> vm.faults.heal(disk)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyinit_qemu import spec as specs
from pyinit_qemu.spec import Disk, IoError
from pyinit_qemu.verdict import MachineError

if TYPE_CHECKING:
    from pyinit_qemu.machine import Machine

_FREE = {
    f"{kind}-{side}": 0
    for kind in ("bps", "iops")
    for side in ("total", "read", "write", "total-max", "read-max", "write-max")
}


class Faults:
    """What can go wrong with a machine's disks and its network; also on one that has not run yet."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._failing = {index for index, disk in enumerate(machine.spec.disks) if disk.errors}

    def fail(self, disk: Disk, *errors: IoError) -> None:
        """From now on requests of the disk fail; by default all reads. What failed before is forgotten."""
        index = self._machine.index(disk)
        self._stop_failing(index)
        node = specs.error_node(index, errors or (IoError(),)) | {"read-only": disk.readonly}
        self._machine.qmp("blockdev-add", **node)
        self._attach(index, disk, erring=True)
        self._failing.add(index)

    def slow(self, disk: Disk, *, iops: int = 0, bytes_per_second: int = 0) -> None:
        """From now on the disk does no more than this in a second; 0 sets no limit."""
        if iops < 0 or bytes_per_second < 0 or not (iops or bytes_per_second):
            raise ValueError("a slow disk needs iops or bytes_per_second, above 0")
        self._limit(disk, {"iops-total": iops, "bps-total": bytes_per_second})

    def hang(self, disk: Disk) -> None:
        """From now on the disk answers no request: the first one takes an hour."""
        self._limit(disk, {"bps-total": 1})

    def heal(self, disk: Disk) -> None:
        """The disk works again, and answers what it was asked meanwhile."""
        index = self._machine.index(disk)
        self._limit(disk, {})
        self._stop_failing(index)
        # Requests that wait for their turn under the old limits are let go when the disk is drained.
        self._attach(index, disk, erring=False)

    def cut_network(self) -> None:
        """Pull the network cable."""
        self._link(False)

    def restore_network(self) -> None:
        """Put the network cable back."""
        self._link(True)

    def _limit(self, disk: Disk, limits: dict[str, int]) -> None:
        group = specs.throttle_group(self._machine.index(disk))
        self._machine.qmp("qom-set", path=f"/objects/{group}", property="limits", value={**_FREE, **limits})

    def _stop_failing(self, index: int) -> None:
        if index in self._failing:
            self._attach(index, self._machine.spec.disks[index], erring=False)
            name: dict[str, Any] = {"node-name": f"{specs.node_name(index)}-errors"}
            self._machine.qmp("blockdev-del", **name)
            self._failing.remove(index)

    def _attach(self, index: int, disk: Disk, *, erring: bool) -> None:
        self._machine.qmp("blockdev-reopen", options=[specs.top_node(index, disk, erring=erring)])

    def _link(self, up: bool) -> None:
        if not self._machine.spec.network:
            raise MachineError("this machine has no network: give it network=True")
        self._machine.qmp("set_link", name=specs.NETWORK, up=up)


def many(disk: Disk, count: int) -> tuple[Disk, ...]:
    """Return ``count`` SCSI disks with the content of ``disk``, read-only, serials ``many0``, ``many1``..."""
    if not 1 <= count <= 255:
        raise ValueError(f"{count} disks: a SCSI controller has room for 255")
    return tuple(Disk(disk.path, "scsi", serial=f"many{number}", readonly=True) for number in range(count))
