"""bcache: devices with a cache in front of them are made by the kernel, once it is told of both.

Telling is all there is to do (Documentation/admin-guide/bcache.rst): the name of a device is written to
/sys/fs/bcache/register. Only what was asked for is told, for the kernel writes to what it takes. A backing
device that has had a cache is not used without it unless that is asked for: what is newer in the cache would
be lost. As long as a hibernated system may be resumed, only the device that it is resumed from is told.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from pyinit.config.bcache import (
    LENGTH,
    SUPERBLOCK,
    BcacheWords,
    Superblock,
    backing_uuid,
    parse_superblock,
    uuids_of_paths,
)
from pyinit.config.volumes import parse_sealed_uuids
from pyinit.devices.view import DeviceView
from pyinit.kernel.console import Console
from pyinit.kernel.files import read_if_there
from pyinit.kernel.modules import Modules
from pyinit.kernel.patience import Patience
from pyinit.storage import SEALED_BCACHE, asked_paths, read_sealed
from pyinit.storage.mappings import devices_on_encrypted
from pyinit.text import printable

if TYPE_CHECKING:
    from pyinit.context import Context

REGISTER = "/sys/fs/bcache/register"
#: Seconds after which a backing device is used without its cache; as for arrays.
DEGRADED_AFTER = 30.0


class _Member:
    """A device with a superblock of bcache."""

    def __init__(self, view: DeviceView, superblock: Superblock | None) -> None:
        self.view = view
        self.superblock = superblock
        self.tried = False
        self.refused = ""
        self.degraded_at = inf
        self.forced = False

    @property
    def node(self) -> str:
        return printable(self.view.node)


class Bcache:
    """Tells the kernel of backing devices and of their caches."""

    name = "bcache"

    def __init__(
        self,
        uuids: Iterable[str],
        everything: bool,
        degraded: bool,
        patience: Patience,
        modules: Modules,
        console: Console,
        may_resume: Callable[[], bool] = lambda: False,
        resumed: Iterable[str] = (),
    ) -> None:
        """``uuids`` are those of backing devices; ``degraded``: they may be used without their caches.

        ``may_resume``: whether a hibernated system may still be resumed; ``resumed``: from which of them.
        """
        self._uuids = frozenset(uuids)
        self._everything = everything
        self._degraded = degraded
        self._patience = patience
        self._modules = modules
        self._console = console
        self._may_resume = may_resume
        self._resumed = frozenset(resumed)
        self._members: dict[str, _Member] = {}

    def react(self, known: Collection[DeviceView]) -> None:
        """Tell the kernel of what has come, caches first: a backing device then starts with its cache."""
        present = {view.node: view for view in known if view.properties.get("ID_FS_TYPE") == "bcache"}
        self._members = {node: member for node, member in self._members.items() if node in present}
        for node, view in sorted(present.items(), key=lambda item: item[1].number):
            if node not in self._members:
                self._members[node] = _Member(view, self._read(view))
        wanted = self._permitted()
        for member in sorted(wanted, key=lambda member: _is_backing(member)):
            if not member.tried:
                member.tried = True
                self._register(member)
        for member in filter(_is_backing, wanted):
            self._consider(member)

    def wake(self) -> float:
        """When a backing device is used without its cache."""
        return min((member.degraded_at for member in self._members.values()), default=inf)

    def holds(self) -> bool:
        """A device may be for something else than what is waited for."""
        return False

    def waits_for(self) -> tuple[str, ...]:
        """What the kernel did not take, and which caches are not there."""
        wanted = self._wanted()
        lines = [f"{member.node}: {member.refused}" for member in wanted if member.refused]
        permitted = self._permitted()
        for member in wanted:
            if member not in permitted:
                lines.append(f"{member.node} is used when it is decided whether a system is resumed")
            elif _is_backing(member) and not member.refused and not _is_running(member):
                lines.append(self._describe(member))
        found = {member.superblock.uuid for member in wanted if member.superblock}
        return (*lines, *(f"no backing device {uuid}" for uuid in sorted(self._uuids - found)))

    def opened(self) -> tuple[str, ...]:
        """Nothing here takes a secret."""
        return ()

    def close(self) -> None:
        """Stop what lies on encrypted volumes, so that these can be closed; others stay."""
        for name in devices_on_encrypted(lambda path: os.path.exists(f"{path}/bcache/stop")):
            try:
                self._patience.call(f"stopping {name}", _write, f"/sys/class/block/{name}/bcache/stop", "1")
            except OSError as error:
                self._console.warning(f"{name} stays: {error.strerror}")

    def forget(self) -> None:
        """There is no secret."""

    def _permitted(self) -> list[_Member]:
        """Those of them that the kernel may be told of now."""
        return self._chosen(self._resumed, False) if self._may_resume() else self._wanted()

    def _wanted(self) -> list[_Member]:
        """The backing devices that are asked for, and the caches of their sets."""
        return self._chosen(self._uuids, self._everything)

    def _chosen(self, uuids: Collection[str], everything: bool) -> list[_Member]:
        members = [member for member in self._members.values() if member.superblock]
        backing = [
            member
            for member in members
            if (block := member.superblock) and block.backing and (everything or block.uuid in uuids)
        ]
        sets = {member.superblock.cache_set for member in backing if member.superblock} - {""}
        return backing + [
            member
            for member in members
            if (block := member.superblock) and not block.backing and (everything or block.cache_set in sets)
        ]

    def _read(self, view: DeviceView) -> Superblock | None:
        node = printable(view.node)
        try:
            data = self._patience.call(f"reading the superblock of {node}", _read_superblock, view.node)
        except OSError as error:
            self._console.warning(f"{node} cannot be read: {error.strerror}")
            return None
        return parse_superblock(data)

    def _register(self, member: _Member) -> None:
        if os.path.isdir(f"/sys/class/block/{member.view.name}/bcache"):
            return  # Somebody else did.
        if not os.path.exists(REGISTER):
            self._modules.load("bcache")
        try:
            self._patience.call(f"telling bcache of {member.node}", _write, REGISTER, member.view.node)
            return
        except FileNotFoundError:
            member.refused = "the kernel has no bcache; build the image with --feature bcache"
        except OSError as error:
            from pyinit.kernel.messages import kernel_messages

            # The error is EINVAL whatever it is; the message has the reason.
            said = [line for line in kernel_messages(200) if line.startswith("bcache:")][-1:]
            member.refused = "; ".join((f"bcache does not take it ({error.strerror})", *said))
        self._console.warning(f"{member.node}: {member.refused}")

    def _consider(self, member: _Member) -> None:
        """Use a backing device without its cache when the time has come, if that is asked for."""
        block = member.superblock
        assert block is not None
        if member.refused or member.forced or _is_running(member):
            member.degraded_at = inf
        elif self._degraded and block.state != "dirty":
            if member.degraded_at == inf:
                member.degraded_at = monotonic() + DEGRADED_AFTER
            elif monotonic() >= member.degraded_at:
                member.degraded_at, member.forced = inf, True
                self._console.warning(
                    f"{self._describe(member)}; it is used without its cache after {DEGRADED_AFTER:.0f} s"
                )
                path = f"/sys/class/block/{member.view.name}/bcache/running"
                try:
                    self._patience.call(f"starting {member.node} without its cache", _write, path, "1")
                except OSError as error:
                    self._console.warning(f"{member.node} cannot be started: {error.strerror}")

    def _describe(self, member: _Member) -> str:
        block = member.superblock
        assert block is not None
        line = f"backing device {member.node} ({block.uuid}) is here, its cache set {block.cache_set} is not"
        return f"{line}; the cache has data that it has not" if block.state == "dirty" else line


def make(context: Context) -> Bcache | None:
    """The assembler for devices with a cache; None when nothing is asked for."""
    words = context.config.bcache or BcacheWords()
    if not words.enabled:
        return None
    paths = asked_paths(context)
    asked = [*words.uuids, *uuids_of_paths(path for path, word in paths.items() if word != "resume=")]
    # What the builder found counts when nothing else does.
    sealed = read_sealed(SEALED_BCACHE, parse_sealed_uuids)
    uuids = [*(asked or filter(None, map(backing_uuid, sealed))), *uuids_of_paths(paths)]
    if not uuids and not words.everything:
        return None
    return Bcache(
        uuids,
        words.everything,
        words.degraded,
        context.patience,
        context.modules,
        context.console,
        context.may_resume,
        uuids_of_paths([context.config.resume]),
    )


def _is_backing(member: _Member) -> bool:
    return member.superblock is not None and member.superblock.backing


def _is_running(member: _Member) -> bool:
    return read_if_there(f"/sys/class/block/{member.view.name}/bcache/running").strip() not in (b"", b"0")


def _read_superblock(node: str) -> bytes:
    fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, LENGTH, SUPERBLOCK)
    finally:
        os.close(fd)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode("utf-8", "surrogateescape"))
    finally:
        os.close(fd)
