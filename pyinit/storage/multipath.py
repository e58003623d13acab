"""Multipath: a disk that is reached in several ways is used through a map over all of them.

A disk that is meant is marked as a path by a rule of udev (pyinit_image.features.multipath), by a property
that every stack knows; so nobody uses one path while the map is not there. The rule looks at files that are
written here, before udevd starts. multipath(8) then makes a map of the paths that are there, or adds one that
has come: the kernel changes over from one to another without a daemon, and that of the real system goes on
with the maps. Nothing is written to the disks.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from pyinit.config.devspec import is_path
from pyinit.config.multipath import MultipathWords, is_wwid, wwids_of_paths
from pyinit.config.volumes import parse_sealed_uuids
from pyinit.devices.view import DeviceView
from pyinit.kernel.console import Console
from pyinit.kernel.files import names, read_if_there, remove_if_there, write_if_possible
from pyinit.kernel.modules import Modules
from pyinit.kernel.process import Children, find_program
from pyinit.storage import MULTIPATH_MARKS, SEALED_MULTIPATH, asked_paths, read_sealed
from pyinit.storage.job import Job
from pyinit.text import printable

if TYPE_CHECKING:
    from pyinit.context import Context

CONFIGURATION = "/etc/multipath.conf"
# The path selectors of multipath.conf(5), and handlers of devices that have active and passive paths.
_MODULES = (
    *("dm-multipath", "dm-service-time", "dm-round-robin", "dm-queue-length"),
    *("scsi_dh_alua", "scsi_dh_rdac", "scsi_dh_emc"),
)
_END_TIMEOUT = 10.0
# Seconds that udevd has for looking again at disks it has seen.
_LOOK_TIMEOUT = 10.0
_SHOWN = 4


class Multipath:
    """Makes maps of paths."""

    name = "multipath"

    def __init__(
        self,
        program: str,
        wwids: Iterable[str],
        children: Children,
        modules: Modules,
        console: Console,
        announced: Iterable[str] = (),
    ) -> None:
        """``wwids`` are the disks that are asked for by name.

        ``announced`` are devices, by their paths in sysfs, that are going to be marked as paths.
        """
        self._program = program
        self._wwids = tuple(wwids)
        self._children = children
        self._modules = modules
        self._console = console
        self._announced = frozenset(announced)
        self._until = monotonic() + _LOOK_TIMEOUT
        self._shown: set[str] = set()
        """The nodes of the paths that multipath was told of."""
        self._refused: dict[str, str] = {}
        self._found: set[str] = set()
        self._job: Job | None = None
        self._working: list[DeviceView] = []

    def react(self, known: Collection[DeviceView]) -> None:
        """Tell multipath of the paths that have come, one disk after the other."""
        unmarked = {view.sys_path for view in known if not is_path(view)}
        self._announced &= unmarked if monotonic() < self._until else frozenset()
        if self._job is not None:
            status = self._job.status()
            if status is None:
                return
            self._ended(status)
        paths = [view for view in known if view.devtype == "disk" and is_path(view)]
        self._found = {wwid_of(view) for view in paths}
        self._shown &= {view.node for view in paths}
        new = [view for view in sorted(paths, key=lambda view: view.number) if view.node not in self._shown]
        if not new:
            return
        self._working = [view for view in new if wwid_of(view) == wwid_of(new[0])]
        self._shown.update(view.node for view in self._working)
        for name in _MODULES:
            self._modules.load(name)
        # -B: a name that is not in the image's table is not made up, the WWID is the name.
        argv = [self._program, "-v2", "-B", new[0].node]
        try:
            self._job = Job(self._children, argv)
        except OSError as error:
            self._give_back(f"{printable(self._program)} cannot be started: {error.strerror}")

    def wake(self) -> float:
        """When disks that udevd does not look at again are what they are."""
        return self._until if self._announced else inf

    def holds(self) -> bool:
        """While paths are not marked yet as such; a map may be for something else than what is waited for."""
        return bool(self._announced)

    def waits_for(self) -> tuple[str, ...]:
        """What is being made, and the disks to which no path has come."""
        lines = [f"{printable(node)}: {why}" for node, why in self._refused.items()]
        if self._job is not None:
            lines.append("a map is being made")
        found = self._found
        return (
            *lines,
            *(f"no path to the disk {printable(wwid)}" for wwid in self._wwids if wwid not in found),
        )

    def opened(self) -> tuple[str, ...]:
        """Nothing here takes a secret."""
        return ()

    def close(self) -> None:
        """No map lies on an encrypted volume."""

    def forget(self) -> None:
        """Let multipath end: what it waits for is told by udevd, which will be stopped."""
        if self._job is not None:
            status = self._job.wait(_END_TIMEOUT)
            if status is None:
                self._job.kill()
                self._job = None
            else:
                self._ended(status)

    def _ended(self, status: int) -> None:
        job, self._job = self._job, None
        assert job is not None
        said = job.close()
        alone = [view for view in self._working if not is_mapped(view.name)]
        if alone:
            self._working = alone
            self._give_back("; ".join(said[-_SHOWN:]) or f"multipath made no map (status {status})")
        else:
            for line in said:
                self._console.debug(f"multipath: {line}")

    def _give_back(self, why: str) -> None:
        """Let others use the paths that multipath did not want: multipath.conf forbids it, say."""
        for view in self._working:
            self._refused[view.node] = why
            self._console.warning(f"multipath does not take {printable(view.node)}: {why}")
            write_if_possible(f"{MULTIPATH_MARKS}/not/{view.name}", b"")
        announce(self._working)


def make(context: Context) -> Multipath | None:
    """The assembler for disks with several paths; None when nothing is asked for."""
    words = context.config.multipath or MultipathWords()
    program = find_program("multipath")
    wwids: list[str] = []
    if words.enabled and program:
        # What the builder found counts when nothing else does.
        sealed = read_sealed(SEALED_MULTIPATH, parse_sealed_uuids)
        asked = [*words.wwids, *wwids_of_paths(asked_paths(context))]
        wwids = asked or ([] if words.everything else list(filter(is_wwid, sealed)))
    elif words.everything or words.wwids:
        context.console.warning(
            "rd.multipath: there is no multipath in the image; build with --feature multipath"
        )
    everything = words.everything and words.enabled and bool(program)
    mark(wwids, everything)
    changed: list[str] = []
    if context.daemon is not None:
        # Devices that udevd has looked at before a person changed what is asked for.
        changed = announce(
            view
            for view in context.known()
            if view.devtype == "disk"
            and not is_mapped(view.name)
            and is_path(view) != _is_meant(view, wwids, everything)
        )
    if not wwids and not everything:
        return None
    if not words.configured:
        # multipath(8) has no option for it; nothing outside of the image changes.
        remove_if_there(CONFIGURATION)
    return Multipath(program, wwids, context.children, context.modules, context.console, changed)


def mark(wwids: Iterable[str], everything: bool) -> None:
    """Leave for the rule of udev which disks are paths."""
    for folder in (f"{MULTIPATH_MARKS}/wwid", f"{MULTIPATH_MARKS}/not"):
        for name in names(folder):
            remove_if_there(f"{folder}/{name}")
    remove_if_there(f"{MULTIPATH_MARKS}/all")
    if wwids or everything:
        for folder in (f"{MULTIPATH_MARKS}/wwid", f"{MULTIPATH_MARKS}/not"):
            os.makedirs(folder, 0o755, exist_ok=True)
        for wwid in wwids:
            write_if_possible(f"{MULTIPATH_MARKS}/wwid/{wwid}", b"")
        if everything:
            write_if_possible(f"{MULTIPATH_MARKS}/all", b"")


def wwid_of(view: DeviceView) -> str:
    """What all paths to one disk say, as multipath has it for SCSI disks (multipath.conf(5), uid_attrs)."""
    return view.properties.get("ID_SERIAL", "")


def is_mapped(name: str) -> bool:
    """Whether a disk is a path of a map."""
    holders = f"/sys/class/block/{name}/holders"
    return any(read_if_there(f"{holders}/{one}/dm/uuid").startswith(b"mpath-") for one in names(holders))


def _is_meant(view: DeviceView, wwids: Collection[str], everything: bool) -> bool:
    """What the rule of udev says."""
    wwid = wwid_of(view)
    usb = view.properties.get("ID_BUS") == "usb"
    return view.name.startswith("sd") and bool(wwid) and (wwid in wwids or (everything and not usb))


def announce(views: Iterable[DeviceView]) -> list[str]:
    """Have udevd look at disks again, and at their partitions, which know of it by them.

    Returns the paths in sysfs of all these.
    """
    announced = []
    for view in views:
        for path in (view.sys_path, *(f"{view.sys_path}/{name}" for name in names(view.sys_path))):
            if path == view.sys_path or os.path.exists(f"{path}/partition"):
                write_if_possible(f"{path}/uevent", b"change")
                announced.append(path)
    return announced
