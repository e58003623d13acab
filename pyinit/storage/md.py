"""MD: software RAID arrays are assembled member by member, by mdadm's own incremental mode.

Only arrays that were asked for, or that the image's mdadm.conf names, are touched. One that is not complete
is started without its missing members after a while, with a loud line; what mdadm finds too old is never
forced.

As long as a hibernated system may be resumed, arrays are started so that nothing is written to their members
unless something is written to the array (Documentation/admin-guide/md.rst, "read-auto"): that system has
their state in its memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from math import inf
from time import monotonic

from pyinit.config.volumes import array_uuid, show_array
from pyinit.devices.view import DeviceView
from pyinit.errors import BootError
from pyinit.kernel.console import Console
from pyinit.kernel.files import read_if_there, write_if_possible
from pyinit.kernel.modules import Modules
from pyinit.kernel.process import Children, find_program
from pyinit.storage.job import Job, run
from pyinit.storage.mappings import devices_on_encrypted
from pyinit.text import printable

MEMBER = "linux_raid_member"
#: Seconds after its first member at which an array is started degraded, mdadm's own timer
#: (mdadm-last-resort@.timer).
DEGRADED_AFTER = 30.0
#: Whether arrays are started "read-auto", the module's parameter of that meaning.
START_READ_ONLY = "/sys/module/md_mod/parameters/start_ro"
_SHOWN = 4
_CLOSE_TIMEOUT = 10.0


class _Array:
    """An array of which a member was seen."""

    def __init__(self, uuid: str) -> None:
        self.uuid = uuid
        self.node = ""
        """``/dev/md127``, once mdadm has told."""
        self.taken: list[str] = []
        """The nodes of the members that mdadm was given."""
        self.refused: list[str] = []
        self.started = False
        self.degraded_at = inf
        self.forced = False
        """Whether it was tried to start it without missing members."""


class Md:
    """Assembles arrays."""

    name = "md"

    def __init__(
        self,
        arrays: Iterable[str],
        labels: Iterable[str],
        everything: bool,
        children: Children,
        console: Console,
        modules: Modules,
        may_resume: Callable[[], bool] = lambda: False,
    ) -> None:
        """``arrays`` are UUIDs, ``labels`` names as the array has them, with or without its host.

        ``may_resume``: whether a hibernated system may still be resumed.
        """
        self._arrays = frozenset(arrays)
        self._labels = frozenset(labels)
        self._everything = everything
        self._children = children
        self._console = console
        self._modules = modules
        self._may_resume = may_resume
        self._protected = False
        """Whether arrays are started read-auto."""
        self._found: dict[str, _Array] = {}
        self._queue: list[tuple[_Array, str]] = []
        self._job: Job | None = None
        self._working: tuple[_Array, str] | None = None

    def react(self, known: Collection[DeviceView]) -> None:
        """Give mdadm the members that have come, one after the other."""
        if self._job is not None:
            status = self._job.status()
            if status is None:
                return
            self._ended(status)
        if self._protected and not self._may_resume():
            self._release()
        present = set()
        for view in sorted(known, key=lambda view: view.number):
            if view.properties.get("ID_FS_TYPE") != MEMBER or not self._is_wanted(view):
                continue
            present.add(view.node)
            uuid = array_uuid(view.properties.get("ID_FS_UUID", ""))
            array = self._found.setdefault(uuid, _Array(uuid))
            if view.node not in array.taken and all(view.node != node for _, node in self._queue):
                self._queue.append((array, view.node))
        for array in self._found.values():
            array.taken = [node for node in array.taken if node in present]
        if self._queue:
            array, node = self._queue.pop(0)
            if node in present:
                self._start(array, node, ["--incremental", "--export", node])
            return
        for array in self._found.values():
            if monotonic() >= array.degraded_at:
                array.degraded_at, array.forced = inf, True
                self._console.warning(
                    f"{self._describe(array)}; started without the others after {DEGRADED_AFTER:.0f} s"
                )
                self._start(array, "", ["--run", array.node])
                return

    def wake(self) -> float:
        """When an array is started degraded."""
        if self._job is not None:
            return inf
        return min((array.degraded_at for array in self._found.values()), default=inf)

    def holds(self) -> bool:
        """An array may be for something else than what is waited for."""
        return False

    def waits_for(self) -> tuple[str, ...]:
        """The arrays that are not there, and which members are."""
        lines = [self._describe(array) for array in self._found.values() if not array.started]
        for array in self._found.values():
            lines += array.refused
        missing = self._arrays - set(self._found)
        return (*lines, *(f"no member of array {show_array(uuid)}" for uuid in sorted(missing)))

    def opened(self) -> tuple[str, ...]:
        """Nothing here takes a secret."""
        return ()

    def close(self) -> None:
        """Stop what lies on encrypted volumes, so that these can be closed; others stay assembled."""
        program = find_program("mdadm")
        for name in devices_on_encrypted(lambda path: os.path.isdir(f"{path}/md")) if program else ():
            status, said = run(self._children, [program, "--stop", f"/dev/{name}"], _CLOSE_TIMEOUT)
            if status != 0:
                self._console.warning(f"array {printable(name)} stays: {'; '.join(said)}")
            self._found.clear()
            self._queue.clear()

    def forget(self) -> None:
        """There is no secret, but the real system starts its arrays as it likes."""
        self._release()

    def _protect(self) -> None:
        """Have the arrays that are started from now on written to by nobody but their users."""
        if self._protected or not self._may_resume():
            return
        self._modules.load("md-mod")
        if not write_if_possible(START_READ_ONLY, b"1"):
            raise BootError(
                "E-MD",
                "arrays cannot be started without writing to them, while a system may be resumed",
                tried=(f"wrote 1 to {START_READ_ONLY}",),
                advice=("To give up resuming: pyinit set noresume, then leave the shell.",),
            )
        self._protected = True

    def _release(self) -> None:
        """Let arrays be repaired and synchronised: nothing is resumed any more."""
        if not self._protected:
            return
        self._protected = False
        write_if_possible(START_READ_ONLY, b"0")
        for array in self._found.values():
            path = f"/sys/class/block/{array.node[5:]}/md/array_state"
            if array.node and read_if_there(path).strip() == b"read-auto":
                write_if_possible(path, b"active")

    def _is_wanted(self, view: DeviceView) -> bool:
        if self._everything or array_uuid(view.properties.get("ID_FS_UUID", "")) in self._arrays:
            return True
        label = view.properties.get("ID_FS_LABEL", "")
        return bool(label) and not self._labels.isdisjoint((label, label.partition(":")[2]))

    def _start(self, array: _Array, node: str, words: list[str]) -> None:
        program = find_program("mdadm")
        if not program:
            raise BootError(
                "E-MD",
                "arrays cannot be assembled: there is no mdadm in the image",
                found=(f"{printable(node)} is a member of array {show_array(array.uuid)}",),
                advice=("Build the image with --feature md.",),
            )
        self._protect()
        try:
            self._job = Job(self._children, [program, *words])
        except OSError as error:
            raise BootError("E-MD", f"{printable(program)} cannot be started: {error.strerror}") from error
        self._working = array, node
        if node:
            array.taken.append(node)

    def _ended(self, status: int) -> None:
        job, self._job = self._job, None
        assert job is not None and self._working is not None
        array, node = self._working
        said = job.close()
        facts = exported(said)
        if name := facts.get("MD_DEVICE"):
            array.node = f"/dev/{name}"
        if status != 0:
            array.refused = [line for line in said if "=" not in line][-_SHOWN:]
            for line in array.refused:
                self._console.warning(f"mdadm: {line}")
            if not node:
                from pyinit.kernel.messages import kernel_messages

                # mdadm says no more than "Input/output error"; the kernel, which members it did not want.
                messages = (line for line in kernel_messages(200) if line.startswith("md"))
                array.refused += [f"kernel: {line}" for line in messages][-_SHOWN:]
        if not node:
            array.started = status == 0
        elif facts.get("MD_STARTED") == "yes" or _is_running(array.node):
            array.started, array.degraded_at = True, inf
        elif array.node and array.degraded_at == inf and not array.forced:
            array.degraded_at = monotonic() + DEGRADED_AFTER

    def _describe(self, array: _Array) -> str:
        there = ", ".join(map(printable, array.taken)) or "none"
        return f"array {show_array(array.uuid)} is not complete; its members here: {there}"


def exported(lines: Iterable[str]) -> dict[str, str]:
    """The facts that ``mdadm --export`` prints as NAME=value."""
    facts = {}
    for line in lines:
        name, equals, value = line.partition("=")
        if equals and name.startswith("MD_"):
            facts[name] = value.strip("'\"")
    return facts


def _is_running(node: str) -> bool:
    # Documentation/admin-guide/md.rst, array_state.
    state = read_if_there(f"/sys/class/block/{node[5:]}/md/array_state").strip()
    return bool(node) and state not in (b"", b"clear", b"inactive")
