"""Software RAID: mdadm, its rules, and which arrays are the system's own."""

from __future__ import annotations

from collections.abc import Iterable

from pyinit.config.volumes import dump
from pyinit.storage import SEALED_ARRAYS

from .. import tables
from ..facts import MDADM as MDADM_CONF
from ..facts import mdadm_files
from ..plan import Plan
from ..tools import DIRECTORIES
from ..udev import RULES
from .base import Feature, Need, Target

MDADM = Need(tuple(f"{directory}/mdadm" for directory in DIRECTORIES), package="mdadm")
#: Names and links of arrays. The rules that assemble whatever appears (64-md-raid-assembly) are left out.
NAMES = ("01-md-raid-creating.rules", "63-md-raid-arrays.rules")
MODULES = ("md-mod", "raid0", "raid1", "raid10", "raid456", "linear")
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
        arrays = _arrays(target)
        return f"{', '.join(arrays)} names arrays" if arrays else ""

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
        for configuration in mdadm_files(sysroot):
            plan.file(configuration, "how the arrays are called", path)
        if found := _arrays(target):
            sealed = dump((row.uuid, row.name, row.device) for rows in found.values() for row in rows)
            plan.data(SEALED_ARRAYS, sealed, f"the arrays of {', '.join(found)}", path)
        elif target.facts is not None:
            for block in target.facts.blocks:
                if block.kind == "md":
                    plan.warn(
                        f"the array {block.name} is in use for the root, and no line of {MDADM_CONF[0]} "
                        "names it: it is assembled only when rd.md.uuid= or root=/dev/md... on the kernel "
                        "command line say so. mdadm --detail --scan prints the lines."
                    )


def _arrays(target: Target) -> dict[str, list[tables.Array]]:
    """The arrays by the file of mdadm that has them: all are the system's own."""
    found = {}
    for place in mdadm_files(target.sysroot):
        arrays = tables.parse_mdadm(target.sysroot.read(place))[0]
        if own := [array for array in arrays if not array.device.startswith("<")]:
            found[place] = own
    return found
