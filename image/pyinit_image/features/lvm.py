"""Logical volumes: lvm, and what it runs."""

from __future__ import annotations

from collections.abc import Iterable

from pyinit.config.volumes import dump, volume_of_path
from pyinit.storage import SEALED_VOLUMES

from .. import tables
from ..facts import FSTAB
from ..plan import Plan
from ..tools import DIRECTORIES
from . import devmapper
from .base import Feature, Need, Target

LVM = Need(tuple(f"{directory}/lvm" for directory in DIRECTORIES), package="lvm2")
RULES = ("11-dm-lvm.rules", "56-lvm.rules")
CONFIGURATION = ("/etc/lvm/lvm.conf", "/etc/lvm/lvmlocal.conf")
#: What lvm runs to look at a pool before it activates it.
CHECKS = ("thin_check", "cache_check")
#: Targets of the device mapper by what a volume may be: linear and striped are in dm-mod itself.
MODULES = (
    *("dm-mod", "dm-mirror", "dm-raid", "dm-thin-pool", "dm-cache", "dm-cache-smq", "dm-snapshot"),
    "dm-writecache",
)
#: What Debian's package lvm2 brings for its own initramfs.
PACKAGED = "/usr/share/initramfs-tools/hooks/lvm2"


class Lvm(Feature):
    """Wanted when the root is on a logical volume, or the system is prepared for one."""

    name = "lvm"
    summary = "activates logical volumes (LVM)"

    def wanted(self, target: Target) -> str:
        if target.facts is not None:
            for block in target.facts.blocks:
                if block.mapping.startswith("LVM-"):
                    return f"the logical volume {block.name} is in use for the root"
            return ""
        if target.mode == "list":
            return ""
        for row in _fstab(target):
            if row.file in ("/", "/usr") and (volume := volume_of_path(row.spec)):
                return f"{FSTAB} has {row.file} on {'/'.join(volume)}"
        return f"the system has LVM: {PACKAGED}" if target.sysroot.is_file(PACKAGED) else ""

    def needs(self, target: Target) -> Iterable[Need]:
        return (LVM, devmapper.DMSETUP)

    def modules(self, target: Target) -> Iterable[str]:
        return [name for name in MODULES if target.kernel.find(name)]

    def add(self, plan: Plan, target: Target, reason: str) -> None:
        sysroot = target.sysroot
        place = sysroot.find(*LVM.paths)
        assert place is not None  # It is among the needs.
        path = plan.file(place, reason)
        devmapper.collect(plan, path, RULES)
        for name in CONFIGURATION:
            if sysroot.is_file(name):
                plan.file(name, "settings of lvm", path)
        for name in CHECKS:
            check = sysroot.find(*(f"{directory}/{name}" for directory in DIRECTORIES))
            if check is not None:
                plan.file(check, "lvm runs it before it activates a pool", path)
            else:
                plan.leave_out(name, "lvm would run it before it activates a pool; the target has it not")
        volumes = sorted(_in_use(target))
        if volumes:
            sealed = dump([volume] for volume in volumes)
            plan.data(SEALED_VOLUMES, sealed, "the logical volumes that the root is on")


def _in_use(target: Target) -> set[str]:
    """GROUP/VOLUME of what the root is on, or fstab says it is on."""
    found = set()
    if target.facts is not None:
        paths = [f"/dev/mapper/{b.label}" for b in target.facts.blocks if b.mapping == "LVM-"]
    else:
        paths = [row.spec for row in _fstab(target) if row.file in ("/", "/usr")]
    for path in paths:
        if volume := volume_of_path(path):
            found.add("/".join(volume))
    return found


def _fstab(target: Target) -> Iterable[tables.Filesystem]:
    sysroot = target.sysroot
    return tables.parse_fstab(sysroot.read(FSTAB))[0] if sysroot.is_file(FSTAB) else ()
