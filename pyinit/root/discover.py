"""A root that nobody named, found by the type of its partition."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable

from pyinit.config.discoverable import (
    LOADER_VARIABLE,
    NO_AUTO,
    READ_ONLY,
    ROOT,
    USR,
    attributes,
    disk_of,
    disks_with,
    find,
    of_type,
    parse_loader_variable,
)
from pyinit.devices.view import DeviceView
from pyinit.devices.waiting import OTHERS_GRACE
from pyinit.errors import BootError
from pyinit.kernel.files import names, read_if_there
from pyinit.kernel.modules import Modules
from pyinit.kernel.syscalls import mount, umount2
from pyinit.root.belongs import Wanted
from pyinit.text import printable

#: Seconds for which a root of which nobody has said the disk is held back, so that another one is seen.
GRACE = 30.0
_VARIABLES = "/sys/firmware/efi/efivars"


class Discovery:
    """Looks for partitions by type; on the disk that was booted from, if that is known."""

    def __init__(self, booted: str, machine: str = "") -> None:
        """``booted``: the UUID of the partition that the boot loader was started from; empty: not known."""
        self.booted = booted
        machine = machine or os.uname().machine
        self._root, self._usr = ROOT.get(machine, ""), USR.get(machine, "")
        self._disk = ""
        self.grace = OTHERS_GRACE if booted else GRACE
        """Seconds for which one is held back at most while other devices are looked at."""
        self.read_only = False
        """Whether the partition of the root is marked so."""

    def describe(self) -> str:
        """What is looked for."""
        where = f" on the disk with PARTUUID={self.booted}" if self.booted else ""
        return f"a partition of the GPT type {self._root or 'of a root'}{where}"

    def root(self, known: Collection[DeviceView]) -> list[DeviceView]:
        """The partitions that may be the root; more than one: it cannot be told which."""
        disks = disks_with(known, self.booted) if self.booted else []
        if not self._root or (self.booted and not disks):
            return []
        return find(known, self._root, disks)

    def choose(self, root: DeviceView) -> None:
        """Remember what this partition says of the root."""
        self._disk = disk_of(root)
        self.read_only = bool(attributes(root) & READ_ONLY)

    def usr(self, known: Collection[DeviceView], top: str) -> list[Wanted]:
        """The /usr on the root's disk, when the root, mounted on ``top``, has none of its own."""
        found = find(known, self._usr, [self._disk]) if self._usr and not names(f"{top}/usr") else []
        return [
            Wanted(
                "/usr",
                f"PARTUUID={view.properties.get('ID_PART_ENTRY_UUID', '')}",
                "auto",
                "ro" if attributes(view) & READ_ONLY else "",
                "by the type of its partition",
                False,
                True,
            )
            for view in found
        ]

    def reason(self, known: Collection[DeviceView]) -> str:
        """Why this partition is the root."""
        others = len(find(known, self._root, ())) - 1
        if not self.booted:
            return "the only partition with the GPT type of a root"
        which = "the first" if others else "the"
        return f"{which} partition with the GPT type of a root on the disk that was booted from"

    def missing(self, cause: str, known: Collection[DeviceView], present: Iterable[str]) -> BootError:
        """Explain that there is none, ``present`` being the devices, a line each."""
        return BootError(
            "E-DEV",
            cause,
            tried=("looked for a root by the type of its partition (root=gpt-auto)",),
            found=(*present, *self.remarks(known)),
            advice=(
                "Name it here: pyinit set root=UUID=..., then leave the shell.",
                f"Give its partition the type: sfdisk --part-type DISK NUMBER {self._root or 'TYPE'}",
            ),
        )

    def remarks(self, known: Collection[DeviceView]) -> list[str]:
        """Why partitions of the type, and others, are not the root."""
        disks = disks_with(known, self.booted) if self.booted else []
        lines = []
        if self.booted and not disks:
            lines.append(f"the partition that was booted from, PARTUUID={self.booted}, is not there")
        for view in of_type(known, self._root):
            name = printable(view.node)
            if attributes(view) & NO_AUTO:
                lines.append(f"{name} has the type of a root, and is marked as not to be used by itself")
            elif disks and disk_of(view) not in disks:
                lines.append(f"{name} has the type of a root, and is on another disk than was booted from")
        return lines


def booted_partition(modules: Modules) -> str:
    """The UUID of the partition that the boot loader says it was started from; empty: it does not say."""
    if not os.path.isdir(_VARIABLES):
        return ""
    path = f"{_VARIABLES}/{LOADER_VARIABLE}"
    if data := read_if_there(path):
        return parse_loader_variable(data)
    modules.load("efivarfs")
    try:
        mount("efivarfs", _VARIABLES, "efivarfs")
    except OSError:
        return ""
    try:
        return parse_loader_variable(read_if_there(path))
    finally:
        umount2(_VARIABLES)
