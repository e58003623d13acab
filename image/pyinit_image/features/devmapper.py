"""The device mapper, which LUKS and LVM lie on: its udev rules and the program that they call."""

from __future__ import annotations

from collections.abc import Iterable

from ..plan import Plan
from ..tools import DIRECTORIES
from ..udev import PROGRAMS, RULES
from ..udev import programs as called_programs
from .base import Need

DMSETUP = Need(tuple(f"{directory}/dmsetup" for directory in DIRECTORIES), package="dmsetup")

#: As device-mapper calls its rules, and as Debian does.
NAMES = (
    "10-dm.rules",
    "55-dm.rules",
    "13-dm-disk.rules",
    "60-persistent-storage-dm.rules",
    "64-btrfs-dm.rules",
    "95-dm-notify.rules",
)

OWN_RULES = "/usr/lib/udev/rules.d/61-pyinit-dm.rules"
#: What udev learned when a mapping was made cannot be found out again; without it the real system's udev
#: takes the mapping for one that is not ready, and systemd drops the file system on it (udev(7), db_persist).
PERSIST = b"""# Written by pyinit-image: what is known of a mapping outlives the initramfs.
SUBSYSTEM=="block", KERNEL=="dm-[0-9]*", ACTION=="add|change", OPTIONS+="db_persist"
"""


def collect(plan: Plan, parent: str, more: Iterable[str] = ()) -> None:
    """Add what makes the links below /dev/mapper and tells whoever made a mapping that they are there.

    ``more`` are names of rules for one kind of mapping.
    """
    sysroot = plan.sysroot
    dmsetup = sysroot.find(*DMSETUP.paths)
    assert dmsetup is not None  # It is among the needs.
    plan.file(dmsetup, "called by the udev rules of the device mapper", parent)
    for name in (*NAMES, *more):
        place = sysroot.find(*(f"{directory}/{name}" for directory in RULES))
        if place is None:
            continue
        path = plan.file(place, "links for the devices of the device mapper", parent)
        plan.absent.pop(name, None)
        for program in called_programs(sysroot.read_text(place)):
            found = (
                program
                if program.startswith("/")
                else sysroot.find(*(f"{directory}/{program}" for directory in PROGRAMS))
            )
            if found is not None and sysroot.is_file(found):
                plan.file(found, f"called by {name}", path)
    plan.data(OWN_RULES, PERSIST, "the real system must know the mappings that the root lies on", parent)
