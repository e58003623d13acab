"""Going on with a hibernated system instead of booting another: before anything is mounted.

The memory of a hibernated system lies in its swap space. The kernel reads it back when the number of the
device is written to /sys/power/resume, and does not return then. When it refuses the memory, it has taken the
mark off the swap space, and so is done here where it has not (Documentation/power/swsusp.rst: memory that is
restored after its file systems were mounted by somebody else destroys them). A kernel that may not resume at
all has not looked at it: then the mark is left to the person who forbade it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pyinit.config import devspec
from pyinit.devices.view import DeviceView
from pyinit.devices.waiting import Want, describe
from pyinit.errors import BootError
from pyinit.kernel import mountinfo
from pyinit.kernel.console import Console
from pyinit.kernel.files import read_if_there
from pyinit.kernel.messages import kernel_messages
from pyinit.kernel.patience import Patience
from pyinit.text import printable

#: Seconds that the device is waited for: longer than an array or a group without all its members, in which it
#: may be, is waited for.
TIMEOUT = 35.0
#: What the kernel calls all its ways to hibernate when it may not (Documentation/ABI/testing/sysfs-power).
DISK, DISABLED = "/sys/power/disk", b"[disabled]"
RESUME, OFFSET = "/sys/power/resume", "/sys/power/resume_offset"
#: What udev calls swap space with such a memory in it.
FSTYPE = "swsuspend"
_SHOWN = 4

# Ten bytes each at the end of the first page of swap space (struct swsusp_header, kernel/power/swap.c): what
# stood there before, then the mark.
_MARK = 10
_KERNEL = b"S1SUSPEND\0"
_SWAP = (b"SWAPSPACE2", b"SWAP-SPACE")
# Those of other programs, as libblkid knows them (libblkid/src/superblocks/swap.c), by their beginning.
_OTHERS = (
    (b"S2SUSPEND", "uswsusp"),
    (b"ULSUSPEND", "uswsusp"),
    (b"LINHIB0001", "a program that marks it LINHIB0001"),
    (b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c", "TuxOnIce"),
)


class Memory(NamedTuple):
    """The memory of a hibernated system, as the first page of swap space tells of it."""

    writer: str
    """Who wrote it: ``kernel``, or the name of another program, printable."""
    before: bytes
    """The mark of swap space that it replaced; empty when it is none."""


def parse_header(page: bytes) -> Memory | None:
    """What the first page of swap space says; None when no system is hibernated there."""
    mark, before = page[-_MARK:], page[-2 * _MARK : -_MARK]
    writer = "kernel" if mark == _KERNEL else next((n for start, n in _OTHERS if mark.startswith(start)), "")
    if len(page) < 2 * _MARK or not writer:
        return None
    return Memory(writer, before if before in _SWAP else b"")


def forbidden() -> str:
    """Why this kernel resumes nothing, whatever it is given, printable; empty when it may."""
    if not os.path.exists(RESUME):
        return "this kernel is built without hibernation"
    if read_if_there(DISK).strip() != DISABLED:
        return ""
    said = [line for line in kernel_messages(500) if "ibernation is restricted" in line][-1:]
    return "; ".join(("hibernation is disabled in this kernel", *(f"kernel: {line}" for line in said)))


def mounted_disks(mounts: Iterable[mountinfo.Mount]) -> list[str]:
    """The block devices that are mounted, printable."""
    return sorted({printable(mount.source) for mount in mounts if mount.source.startswith("/dev/")})


class Resume:
    """One try to resume, with the words of the command line that ask for it."""

    def __init__(self, asked: str, offset: int, console: Console, patience: Patience) -> None:
        """``asked``: ``resume=``; ``offset``: where the swap space begins on that device, in pages."""
        self._asked = asked
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._offset = offset
        self._console = console
        self._patience = patience

    def find(self, wait: Callable[[Want], DeviceView], limit: float | None) -> DeviceView | None:
        """Wait for the device, ``limit`` or 35 seconds at most; None and a warning when it does not come."""
        shown = printable(self._asked)[:80]
        try:
            spec = devspec.parse_spec(self._asked)
        except BootError:
            self._console.warning(
                f"resume={shown} names no device: the boot goes on without looking for a hibernated system"
            )
            return None
        timeout = TIMEOUT if limit is None else min(limit, TIMEOUT)
        seen: list[DeviceView] = []

        def look(known: Iterable[DeviceView]) -> list[DeviceView]:
            seen[:] = known
            return devspec.resolve(spec, seen)

        try:
            return wait(Want("resume", devspec.describe(spec), look, timeout))
        except BootError as error:
            asleep = any(view.properties.get("ID_FS_TYPE") == FSTYPE for view in devspec.resolve(spec, seen))
            # Which of two is the one that sleeps is not for us to guess, and going on would be its end.
            if error.code != "E-DEV" and (error.code != "E-AMBIG" or asleep):
                raise
            self._console.warning(
                f"{error.cause}: a hibernated system would not be resumed; the boot goes on"
            )
            near = [f"{printable(view.node)}: {what}" for view, what in devspec.nearest(spec, seen)]
            swaps = [describe(view) for view in seen if view.properties.get("ID_FS_TYPE") in ("swap", FSTYPE)]
            for line in (*error.found, *near[:1], *(f"swap space here: {line}" for line in swaps[:_SHOWN])):
                self._console.warning(line)
            return None

    def go(self, device: DeviceView, before: Callable[[], None], *, touched: bool = False) -> None:
        """Resume what is hibernated on ``device``, and return only if there is nothing, or it failed.

        ``before`` is called when everything else must have come to rest. ``touched``: whether a file system
        of this machine was checked or mounted in this boot. A refusal of the kernel is a warning;
        :class:`BootError` ``E-RESUME`` when resuming would destroy what was changed since.
        """
        node = printable(device.node)
        try:
            memory = self._look(device)
        except OSError as error:
            self._console.warning(f"{node} cannot be read for a hibernated system: {error.strerror}")
            return
        if memory is None:
            if not self._offset and device.properties.get("ID_FS_USAGE") == "filesystem":
                kind = printable(device.properties.get("ID_FS_TYPE", ""))
                self._console.warning(
                    f"resume= names {node}, which is no swap space but a file system ({kind}); "
                    "for a swap file on it resume_offset= is needed too"
                )
            else:
                self._console.debug(f"no system is hibernated on {node}")
                # It is where the kernel hibernates to, whoever asks it to.
                self._write(device)
            return
        what = f"the system that is hibernated on {node}"
        if memory.writer != "kernel":
            self._console.warning(
                f"{what} was written by {memory.writer}, not by the kernel, and cannot be resumed from here"
            )
            return
        if reason := forbidden():
            self._console.warning(f"{what} is not resumed: {reason}")
            self._console.warning(
                f"{node} keeps its mark. Never resume it after this boot: what is mounted now would be "
                "destroyed; use mkswap"
            )
            return
        # Even what is mounted read-only may have replayed its log.
        if changed := mounted_disks(mountinfo.read()) or (["the root"] if touched else []):
            raise _too_late(what, node, ", ".join(changed))
        before()
        self._console.notice(f"resuming {what}")
        failure = self._write(device)
        self._console.warning(f"{what} was not resumed: {failure}. What it had not saved is lost")
        for line in [line for line in kernel_messages(500) if "PM:" in line or "ibernat" in line][-_SHOWN:]:
            self._console.warning(f"kernel: {line}")
        self._discard(device)

    def _look(self, device: DeviceView) -> Memory | None:
        return self._patience.call(
            f"reading the first page of swap space on {printable(device.node)}", self._read, device
        )

    def _read(self, device: DeviceView) -> Memory | None:
        fd = os.open(device.node, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # The kernel writes past the cache of the device.
            os.posix_fadvise(fd, self._offset * self._page, self._page, os.POSIX_FADV_DONTNEED)
            return parse_header(os.pread(fd, self._page, self._offset * self._page))
        finally:
            os.close(fd)

    def _write(self, device: DeviceView) -> str:
        """Tell the kernel the place: it resumes what is there. Returns why it did not, printable."""
        # No thread makes these calls: the kernel stops all others, that of PID 1 too, until it is through.
        major, minor = device.number
        try:
            for path, value in ((OFFSET, str(self._offset)), (RESUME, f"{major}:{minor}")):
                with open(path, "wb", buffering=0) as file:
                    file.write(value.encode())
        except FileNotFoundError:
            return "this kernel is built without hibernation"
        except OSError as error:
            return f"the kernel refused it ({error.strerror})"
        return "the kernel refused it"

    def _discard(self, device: DeviceView) -> None:
        """Take the mark off, unless the kernel did: resuming later would destroy what is mounted now."""
        node = printable(device.node)
        try:
            memory = self._look(device)
            if memory is None:
                return
            if not memory.before:
                raise OSError(0, "its header is damaged")
            fd = os.open(device.node, os.O_WRONLY | os.O_EXCL | os.O_CLOEXEC)
            try:
                os.pwrite(fd, memory.before, (self._offset + 1) * self._page - _MARK)
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            self._console.warning(f"{node} keeps the mark of a hibernated system: {error.strerror}")
            self._console.warning("never resume it: what is mounted now would be destroyed; use mkswap")


def _too_late(what: str, node: str, changed: str) -> BootError:
    return BootError(
        "E-RESUME",
        f"{what} cannot be resumed any more: {changed} was mounted in this boot",
        tried=("resuming, which would destroy what was changed there since",),
        found=(f"the mark of a hibernated system on {node}",),
        advice=(
            "To give it up and boot: pyinit set noresume, then leave the shell.",
            f"In the real system then: mkswap {node}, so that nobody resumes it later.",
        ),
    )


def warn_of_others(known: Iterable[DeviceView], asked: str, off: bool, console: Console) -> None:
    """Say that systems are hibernated that nobody resumes: their file systems are about to be changed."""
    if off:
        why = "the kernel command line says so"
    else:
        why = f"resume={printable(asked)[:80]} is another device" if asked else "no resume= names it"
    for view in known:
        if view.properties.get("ID_FS_TYPE") == FSTYPE:
            console.warning(
                f"a system is hibernated on {printable(view.node)}, and is not resumed: {why}. "
                "If it is this one, never resume it after this boot"
            )
