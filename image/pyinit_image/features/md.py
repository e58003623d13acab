"""Software RAID: mdadm, its rules, and which arrays are the system's own."""

from __future__ import annotations

from collections.abc import Iterable

from pyinit.config.volumes import dump
from pyinit.storage import SEALED_ARRAYS

from .. import tables
from ..plan import Plan
from ..tools import DIRECTORIES
from ..udev import RULES
from .base import Feature, Need, Target

MDADM = Need(tuple(f"{directory}/mdadm" for directory in DIRECTORIES), package="mdadm")
#: Names and links of arrays. The rules that assemble whatever appears (64-md-raid-assembly) are left out.
NAMES = ("01-md-raid-creating.rules", "63-md-raid-arrays.rules")
MODULES = ("md-mod", "raid0", "raid1", "raid10", "raid456", "linear")
CONFIGURATION = ("/etc/mdadm/mdadm.conf", "/etc/mdadm.conf")
OWN_RULES = "/usr/lib/udev/rules.d/65-pyinit-md.rules"
PERSIST = b"""# Written by pyinit-image: what is known of an array outlives the initramfs.
SUBSYSTEM=="block", KERNEL=="md*", ACTION=="add|change", OPTIONS+="db_persist"
"""


class Md(Feature):
    """Wanted when the root is on an array, or mdadm.conf names arrays."""

    name = "md"
    summary = "assembles software RAID arrays (MD)"

    def wanted(self, target: Target) -> str:
        if target.facts is not None:
            for block in target.facts.blocks:
                if block.kind == "md":
                    return f"the array {block.name} is in use for the root"
            return ""
        if target.mode == "list":
            return ""
        return f"{_configuration(target)} names arrays" if _arrays(target) else ""

    def needs(self, target: Target) -> Iterable[Need]:
        return (MDADM,)

    def modules(self, target: Target) -> Iterable[str]:
        return [name for name in MODULES if target.kernel.find(name)]

    def add(self, plan: Plan, target: Target, reason: str) -> None:
        sysroot = target.sysroot
        place = sysroot.find(*MDADM.paths)
        assert place is not None  # It is among the needs.
        path = plan.file(place, reason)
        for name in NAMES:
            rules = sysroot.find(*(f"{directory}/{name}" for directory in RULES))
            if rules is not None:
                plan.file(rules, "names of arrays", path)
                plan.absent.pop(name, None)
        for program in ("readlink", "basename"):
            if tool := sysroot.find(*(f"{directory}/{program}" for directory in DIRECTORIES)):
                plan.file(tool, "called by 63-md-raid-arrays.rules", path)
        plan.data(OWN_RULES, PERSIST, "the real system must know the array that the root lies on", path)
        if configuration := _configuration(target):
            plan.file(configuration, "how the arrays are called", path)
        if arrays := _arrays(target):
            sealed = dump((array.uuid, array.name, array.device) for array in arrays)
            plan.data(SEALED_ARRAYS, sealed, f"the arrays of {configuration}", path)


def _configuration(target: Target) -> str:
    return target.sysroot.find(*CONFIGURATION) or ""


def _arrays(target: Target) -> list[tables.Array]:
    """The arrays that mdadm.conf has: all are the system's own."""
    place = _configuration(target)
    arrays = tables.parse_mdadm(target.sysroot.read(place))[0] if place else ()
    return [array for array in arrays if not array.device.startswith("<")]
