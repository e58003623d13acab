"""Disks with several paths: multipath, the partitions of its maps, and which disks are the system's own."""

from __future__ import annotations

from collections.abc import Iterable

from pyinit.config.multipath import is_wwid
from pyinit.config.volumes import dump
from pyinit.storage import MULTIPATH_MARKS, SEALED_MULTIPATH

from ..facts import Block
from ..plan import Plan
from ..tools import DIRECTORIES
from . import devmapper
from .base import Feature, Need, Target

MULTIPATH = Need(tuple(f"{directory}/multipath" for directory in DIRECTORIES), package="multipath-tools")
KPARTX = Need(tuple(f"{directory}/kpartx" for directory in DIRECTORIES), package="kpartx")
#: Whether a map can be used, its partitions, and links; as Debian calls them, and multipath-tools. Those that
#: ask multipath about each disk (60-multipath) are left out: which disks are meant is known here.
RULES = (
    *("56-dm-mpath.rules", "11-dm-mpath.rules", "56-dm-parts.rules", "11-dm-parts.rules"),
    *("60-kpartx.rules", "66-kpartx.rules"),
)
#: Checkers and priorities, which multipath loads by their names in multipath.conf.
PLUGINS = ("/usr/lib/multipath", "/lib/multipath", "/usr/lib64/multipath", "/lib64/multipath")
MODULES = (
    *("dm-mod", "dm-multipath", "dm-service-time", "dm-round-robin", "dm-queue-length"),
    *("scsi_dh_alua", "scsi_dh_rdac", "scsi_dh_emc"),
)
CONFIGURATION = "/etc/multipath.conf"
MORE_CONFIGURATION = "/etc/multipath/conf.d"
WWIDS = "/etc/multipath/wwids"
BINDINGS = "/etc/multipath/bindings"
OWN_CONFIGURATION = "/etc/multipath/conf.d/zz-pyinit.conf"
#: It is only told of disks that are meant: it need not find out whether they are.
GREEDY = b"""# Written by pyinit-image: which disks have several paths is decided before multipath is asked.
defaults {
	find_multipaths greedy
}
"""
OWN_RULES = "/usr/lib/udev/rules.d/61-pyinit-multipath.rules"
#: The properties are those of multipath-tools' own 60-multipath.rules. ID_SERIAL and ID_BUS are of
#: 60-persistent-storage.rules.
RULE = f"""# Written by pyinit-image: marks the paths of disks that multipath was asked for.
SUBSYSTEM!="block", GOTO="pyinit_multipath_end"
ACTION=="remove", GOTO="pyinit_multipath_end"
KERNEL!="sd*", GOTO="pyinit_multipath_end"
ENV{{DEVTYPE}}=="partition", IMPORT{{parent}}="DM_MULTIPATH_DEVICE_PATH"
ENV{{DEVTYPE}}=="partition", GOTO="pyinit_multipath_partition"
ENV{{ID_SERIAL}}!="?*", GOTO="pyinit_multipath_end"
TEST=="{MULTIPATH_MARKS}/not/%k", GOTO="pyinit_multipath_end"
TEST=="{MULTIPATH_MARKS}/wwid/$env{{ID_SERIAL}}", ENV{{DM_MULTIPATH_DEVICE_PATH}}="1"
ENV{{ID_BUS}}!="usb", TEST=="{MULTIPATH_MARKS}/all", ENV{{DM_MULTIPATH_DEVICE_PATH}}="1"
ENV{{DM_MULTIPATH_DEVICE_PATH}}=="1", ENV{{ID_FS_TYPE}}="mpath_member", ENV{{SYSTEMD_READY}}="0"
GOTO="pyinit_multipath_end"
LABEL="pyinit_multipath_partition"
ENV{{DM_MULTIPATH_DEVICE_PATH}}=="1", ENV{{ID_FS_TYPE}}="none", ENV{{SYSTEMD_READY}}="0"
LABEL="pyinit_multipath_end"
"""


class Multipath(Feature):
    """Wanted when the root is on a map of paths, or the system has had such maps."""

    name = "multipath"
    summary = "uses disks through all paths to them (multipath)"

    def wanted(self, target: Target) -> str:
        if target.facts is not None:
            maps = (block.name for block in target.facts.blocks if _is_map(block))
            return next((f"the multipath device {name} is in use for the root" for name in maps), "")
        if target.mode == "list":
            return ""
        return f"{WWIDS} names disks with several paths" if _wwids(target) else ""

    def needs(self, target: Target) -> Iterable[Need]:
        return (MULTIPATH, KPARTX, devmapper.DMSETUP)

    def modules(self, target: Target) -> Iterable[str]:
        return [name for name in MODULES if target.kernel.find(name)]

    def add(self, plan: Plan, target: Target, reason: str) -> None:
        sysroot = target.sysroot
        place, partitions = (sysroot.find(*need.paths) for need in (MULTIPATH, KPARTX))
        assert place is not None and partitions is not None  # They are among the needs.
        path = plan.file(place, reason)
        plan.file(partitions, "partitions of maps", path)
        devmapper.collect(plan, path, RULES)
        folder = next((place for place in PLUGINS if sysroot.list(place)), "")
        for name in sysroot.list(folder) if folder else ():
            if name.endswith(".so"):
                plan.file(f"{folder}/{name}", "checks paths, or says which one is better", path)
        plan.data(OWN_RULES, RULE.encode(), "nobody else may use a path", path)
        more = [f"{MORE_CONFIGURATION}/{name}" for name in sysroot.list(MORE_CONFIGURATION)]
        for name in (CONFIGURATION, WWIDS, BINDINGS, *(name for name in more if name.endswith(".conf"))):
            if sysroot.is_file(name):
                plan.file(name, "settings of multipath, and how maps are called", path)
        plan.data(OWN_CONFIGURATION, GREEDY, "which disks are meant is known", path)
        if wwids := _wwids(target):
            plan.data(SEALED_MULTIPATH, dump([wwid] for wwid in wwids), f"the disks in {WWIDS}", path)


def _is_map(block: Block) -> bool:
    return block.mapping.endswith("mpath-")


def _wwids(target: Target) -> list[str]:
    """The disks that multipath has made maps of: ``/WWID/``, a line each."""
    sysroot = target.sysroot
    return parse_wwids(sysroot.read_text(WWIDS)) if sysroot.is_file(WWIDS) else []


def parse_wwids(text: str) -> list[str]:
    """The WWIDs in multipath's table of them, each once."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    found = (line[1:-1] for line in lines if len(line) > 2 and line.startswith("/") and line.endswith("/"))
    return [wwid for wwid in dict.fromkeys(found) if is_wwid(wwid)]
