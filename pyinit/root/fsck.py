"""Checking a file system before it is mounted, with its own program, and what its exit status means.

A program is never killed by a time-out: a file system whose repair is cut short is worse than a slow boot.
It is told of on every console instead, and a person may stop it with Ctrl-C, which e2fsck takes as a request
to end in good order.
"""

from __future__ import annotations

import os
import select
import signal
import struct
from time import monotonic
from typing import NamedTuple

from pyinit.config.options import BootConfig
from pyinit.errors import BootError
from pyinit.kernel.console import Console
from pyinit.kernel.files import read_if_there, write_if_possible
from pyinit.kernel.keyboard import Keyboard
from pyinit.kernel.patience import Patience
from pyinit.kernel.process import Children
from pyinit.text import printable

DIRECTORIES = ("/usr/sbin", "/sbin", "/usr/bin", "/bin")
FIRST_NOTICE = 5.0
NEXT_NOTICE = 10.0

#: Those check themselves when they are mounted, or hold no error that a program could mend.
SELF_CHECKING = frozenset(
    ("xfs", "btrfs", "bcachefs", "zfs", "squashfs", "erofs", "iso9660", "udf", "nilfs2")
)

# By which option a program repairs what is safe to repair, says yes to everything, or changes nothing.
_REPAIR = {"preen": "-a", "yes": "-y", "no": "-n"}
_EXT = ("ext2", "ext3", "ext4")

# fsck(8), EXIT STATUS.
FIXED, RESTART, UNCORRECTED, OPERATIONAL, USAGE, CANCELLED, LIBRARY = 1, 2, 4, 8, 16, 32, 128

# How much of e2fsck's whole work, in percent, is done at the end of each of its passes, as a rule.
_PASSES = (0, 70, 90, 92, 95, 100)
_OUTPUT = 16384
_SHOWN = 8

# The ext4 superblock lies 1024 bytes behind the start (Documentation/filesystems/ext4/super.rst).
_SUPERBLOCK = (1024, 1024)
_EXT_MAGIC, _EXT_VALID, _INCOMPAT_RECOVER = 0xEF53, 1, 0x4


class Verdict(NamedTuple):
    """What is to be done after a check."""

    writable: bool
    """Whether the file system may be mounted writable."""
    checked: bool
    """Whether it is known to be good, so that the real system need not look again."""


def meaning(status: int) -> str:
    """What an exit status says: ``clean``, ``fixed``, ``restart``, ``damaged``, ``cancelled`` or ``unsure``.

    The worst of its bits counts. A negative one is the signal that ended the program.
    """
    if status < 0:
        return "unsure"
    if status & UNCORRECTED:
        return "damaged"
    if status & RESTART:
        return "restart"
    if status & CANCELLED:
        return "cancelled"
    if status & ~FIXED:
        return "unsure"
    return "fixed" if status else "clean"


def ext_is_clean(superblock: bytes) -> bool:
    """Whether e2fsck would do nothing but say that an ext2, ext3 or ext4 file system is clean.

    That is so when it was unmounted well, saw no error, and is due neither by count nor by time (e2fsck(8),
    tune2fs(8)).
    """
    if len(superblock) < 1024:
        return False
    mounts, most, magic, state = struct.unpack_from("<HhHH", superblock, 52)
    (interval,) = struct.unpack_from("<I", superblock, 68)
    (incompatible,) = struct.unpack_from("<I", superblock, 96)
    (errors,) = struct.unpack_from("<I", superblock, 404)
    return (
        magic == _EXT_MAGIC
        and state == _EXT_VALID
        and not incompatible & _INCOMPAT_RECOVER
        and not errors
        and not interval
        and (most <= 0 or mounts < most)
    )


def percent(line: bytes) -> float | None:
    """How much is done, from a line of progress: pass, position, end, device (e2fsck(8), ``-C``)."""
    fields = line.split(maxsplit=3)[:3]
    if len(fields) < 3 or not all(field.isdigit() and len(field) < 20 for field in fields):
        return None
    number, position, end = map(int, fields)
    if not 1 <= number < len(_PASSES) or not end:
        return None
    low, high = _PASSES[number - 1], _PASSES[number]
    return low + (high - low) * min(position, end) / end


class Checker:
    """Checks file systems as the command line asks."""

    def __init__(
        self,
        config: BootConfig,
        children: Children,
        console: Console,
        keyboard: Keyboard,
        patience: Patience,
    ) -> None:
        self._config = config
        self._patience = patience
        self._children = children
        self._console = console
        self._keyboard = keyboard

    def check(self, name: str, node: str, fstype: str, *, interruptible: bool) -> Verdict:
        """Check the file system on a device; ``name`` is what it is for, ``root`` or ``/usr``.

        Raises :class:`BootError` ``E-FSCK`` when it must not be mounted before a person has looked.
        ``interruptible`` lets a person end the program with Ctrl-C, for there is a shell to go to.
        """
        mode = self._config.fsck_mode
        if mode == "skip" or not fstype or fstype in SELF_CHECKING or _is_read_only(node):
            return Verdict(True, False)
        program = find_program(fstype)
        if not program:
            self._console.debug(f"no fsck.{printable(fstype)} in the image: {printable(node)} is not checked")
            return Verdict(True, False)
        if mode == "auto" and fstype in _EXT:
            superblock = self._patience.call(f"reading {printable(node)}", _read_at, node, *_SUPERBLOCK)
            if ext_is_clean(superblock):
                self._console.debug(f"{printable(node)} is clean")
                return Verdict(True, True)
        argv = self._command(program, node, fstype)
        run = _Run(self._children, self._console, self._keyboard, argv, node, interruptible)
        status = run.finish()
        return self._judge(name, node, fstype, argv, status, run)

    def _command(self, program: str, node: str, fstype: str) -> list[str]:
        words = [program, _REPAIR[self._config.fsck_repair]]
        if fstype in _EXT:
            words += ["-C", str(_Run.PROGRESS)]
        if self._config.fsck_mode == "force" and fstype in (*_EXT, "f2fs"):
            words.append("-f")
        return [*words, node]

    def _judge(self, name: str, node: str, fstype: str, argv: list[str], status: int, run: _Run) -> Verdict:
        found = meaning(status)
        what, how = printable(node), ending(status)
        if run.stopped:
            found = "cancelled"
        if found == "clean":
            self._console.info(f"{what} is clean")
            return Verdict(True, True)
        if found == "fixed":
            self._console.notice(f"{what} was repaired ({how}): {run.last()}")
            return Verdict(True, True)
        if found == "unsure":
            self._console.warning(
                f"{what} could not be checked ({how}): {run.last()}; it is mounted read-only, and the real "
                "system checks it again"
            )
            return Verdict(False, False)
        if found == "damaged" and self._config.fsck_on_fail == "ro":
            self._console.warning(f"{what} has errors that need a person ({how}); it is mounted read-only")
            return Verdict(False, False)
        raise _explain(name, node, fstype, argv, found, how, run)


def ending(status: int) -> str:
    """How a program ended, in words."""
    return f"exit status {status}" if status >= 0 else f"signal {-status}"


def find_program(fstype: str) -> str:
    """The program of the image that checks this type; empty when there is none."""
    if "/" in fstype:
        return ""
    places = (f"{directory}/fsck.{fstype}" for directory in DIRECTORIES)
    return next((place for place in places if os.access(place, os.X_OK)), "")


def remember(name: str) -> None:
    """Leave a note for systemd, which then does not check again (systemd-fsck-root.service)."""
    write_if_possible(f"/run/initramfs/fsck-{name.strip('/') or 'root'}", b"")


def _explain(
    name: str, node: str, fstype: str, argv: list[str], found: str, how: str, run: _Run
) -> BootError:
    what = printable(node)
    cause = {
        "damaged": f"{name}: {what} ({printable(fstype)}) has errors that its check did not correct ({how})",
        "restart": f"{name}: the check of {what} asks for a restart of the machine ({how})",
        "cancelled": f"{name}: the check of {what} was stopped before its end ({how})",
    }[found]
    advice = {
        "damaged": (
            f"Repair it here: {printable(argv[0])} -y {what}, then leave the shell: it is checked again.",
            "To read what can be read: pyinit set rd.pyinit.fsck.on-fail=ro, then leave the shell.",
        ),
        "restart": ("pyinit reboot",),
        "cancelled": (
            "Leave the shell to check it again.",
            "To boot without a check: pyinit set fsck.mode=skip, then leave the shell.",
        ),
    }[found]
    return BootError(
        "E-FSCK",
        cause,
        tried=(printable(" ".join(argv)),),
        found=tuple(f"fsck: {line}" for line in run.lines()[-_SHOWN:]),
        advice=advice,
    )


class _Run:
    """A check that is going on."""

    PROGRESS = 3
    """The descriptor of the child on which it tells how far it is."""

    def __init__(
        self,
        children: Children,
        console: Console,
        keyboard: Keyboard,
        argv: list[str],
        node: str,
        interruptible: bool,
    ) -> None:
        self.stopped = False
        self._children = children
        self._console = console
        self._keyboard = keyboard
        self._node = printable(node)
        self._interruptible = interruptible
        self._output = bytearray()
        self._progress = b""
        self._done: float | None = None
        self._pipes: dict[int, bytes] = {}
        said, say = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        told, tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(say, True)
        os.set_blocking(tell, True)
        self._said, self._told = said, told
        try:
            self._pid = children.start(argv, stdout=say, descriptors={self.PROGRESS: tell})
        except OSError as error:
            os.close(said)
            os.close(told)
            raise BootError(
                "E-FSCK",
                f"{printable(argv[0])} cannot be started: {error.strerror}",
                tried=(printable(" ".join(argv)),),
                advice=("To boot without a check: pyinit set fsck.mode=skip, then leave the shell.",),
            ) from error
        finally:
            os.close(say)
            os.close(tell)

    def finish(self) -> int:
        """Wait for the end of the program, however long it takes; its exit status or negative signal."""
        begin = monotonic()
        notice = begin + FIRST_NOTICE
        open_pipes = {self._said, self._told}
        done, work = self._done, b""
        try:
            if self._interruptible:
                self._keyboard.listen(self)
            while True:
                status = self._children.status(self._pid)
                if status is not None:
                    break
                poll = select.poll()
                watched = (*open_pipes, self._children.watch(), *self._keyboard.descriptors())
                for descriptor in watched:
                    poll.register(descriptor, select.POLLIN)
                ready = {fd for fd, _ in poll.poll(max(0.0, notice - monotonic()) * 1000)}
                for descriptor in ready & open_pipes:
                    if not self._take(descriptor):
                        open_pipes.discard(descriptor)
                if self._children.watch() in ready:
                    self._children.woken()
                for descriptor in ready & set(self._keyboard.descriptors()):
                    self._keyboard.read(descriptor)
                if done != self._done:
                    done = self._done
                    self._console.record.progress()
                if monotonic() >= notice:
                    before, work = work, _work(self._pid)
                    if work != before:
                        self._console.record.progress()
                    self._tell(monotonic() - begin)
                    notice = monotonic() + NEXT_NOTICE
            for descriptor in open_pipes:
                self._take(descriptor)
            return status
        finally:
            self._keyboard.leave(self)
            os.close(self._said)
            os.close(self._told)

    def typed(self, terminal: str, data: bytes) -> None:
        """Ctrl-C asks the program to stop."""
        if b"\x03" in data:
            self.stopped = True
            try:
                os.kill(self._pid, signal.SIGINT)
            except ProcessLookupError:
                pass

    def lines(self) -> list[str]:
        """What the program said, printable."""
        return [printable(line.strip()) for line in bytes(self._output).splitlines() if line.strip()]

    def last(self) -> str:
        """The last thing that it said."""
        lines = self.lines()
        return lines[-1] if lines else "it said nothing"

    def _take(self, descriptor: int) -> bool:
        """Read what a pipe has; False at its end."""
        while True:
            try:
                data = os.read(descriptor, 4096)
            except BlockingIOError:
                return True
            if not data:
                return False
            if descriptor == self._said:
                self._output += data
                del self._output[:-_OUTPUT]
                continue
            *lines, self._progress = (self._progress + data).split(b"\n")
            self._progress = self._progress[-256:]
            for line in lines:
                done = percent(line)
                self._done = self._done if done is None else done

    def _tell(self, since: float) -> None:
        state = "" if self._done is None else f", {self._done:.0f} % done"
        hint = "; Ctrl-C stops it" if self._interruptible else ""
        self._console.notice(f"checking the file system on {self._node} since {int(since)} s{state}{hint}")


def _work(pid: int) -> bytes:
    """What a process has read, written and computed so far, to be compared (proc(5))."""
    times = read_if_there(f"/proc/{pid}/stat").rpartition(b")")[2].split()[11:13]
    return b" ".join((read_if_there(f"/proc/{pid}/io"), *times))


def _is_read_only(node: str) -> bool:
    try:
        number = os.stat(node).st_rdev
    except OSError:
        return False
    return read_if_there(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/ro").strip() == b"1"


def _read_at(node: str, offset: int, size: int) -> bytes:
    try:
        fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.pread(fd, size, offset)
    except OSError:
        return b""
    finally:
        os.close(fd)
