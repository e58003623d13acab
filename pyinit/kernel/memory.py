"""How much memory there is, and what to say when it does not suffice."""

from __future__ import annotations

import os
import signal

from pyinit.errors import BootError
from pyinit.kernel.files import read_if_there

MIB = 1 << 20
NEEDED = 15 * MIB
"""What must be available when the boot begins: udevd, its workers and a root's modules take it."""
SCARCE = 48 * MIB
"""Below this a :class:`Reserve` is kept."""
RESERVE = 3 * MIB


def total() -> int:
    """The machine's memory in bytes, as sysinfo(2) has it: without what the kernel itself takes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def free() -> int:
    """Bytes that nobody uses (sysinfo(2)); when nothing has been read from a disk yet, all that there are."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes; empty when it cannot be read."""
    return parse_meminfo(read_if_there("/proc/meminfo"))


def parse_meminfo(data: bytes) -> dict[str, int]:
    """Read /proc/meminfo (proc_meminfo(5)), what it has in kB: bytes by name."""
    found = {}
    for line in data.splitlines():
        name, _, value = line.partition(b":")
        number, _, unit = value.strip().partition(b" ")
        if number.isdigit() and len(number) < 20 and unit == b"kB":
            found[name.decode("ascii", "replace")] = int(number) << 10
    return found


def figures() -> tuple[str, ...]:
    """Where the memory is, one line each."""
    known = meminfo()
    left = known.get("MemAvailable", free())
    lines = [f"memory: {_mib(known.get('MemTotal', total()))} in all, {_mib(left)} available"]
    # The files of a ramfs can be neither written out nor thrown away, those of a tmpfs are shared memory.
    image = known.get("Unevictable", 0) + known.get("Shmem", 0)
    if image:
        lines.append(f"the unpacked initramfs and what was written to /run: {_mib(image)}")
    return tuple(lines)


def too_small(cause: str, *, tried: tuple[str, ...] = (), advice: tuple[str, ...] = ()) -> BootError:
    """``E-MEM`` with figures and what helps."""
    return BootError(
        "E-MEM",
        cause,
        tried=tried,
        found=figures(),
        advice=(
            *advice,
            "Give the machine more memory; an image with all drivers boots with 160 MiB.",
            "A smaller image needs less: pyinit-image build --mode host, or --mode list.",
        ),
    )


def check() -> None:
    """``E-MEM`` when so little is available that the boot would end in a panic of the kernel."""
    if free() < NEEDED and available() < NEEDED:
        raise too_small(
            "there is too little memory to boot this machine",
            tried=(f"{_mib(NEEDED)} must be available when the boot begins",),
        )


def check_unpacked() -> None:
    """``E-MEM`` when the image is incomplete because the kernel had no room for it.

    A tmpfs, which the initramfs lies in unless the boot loader's line has ``root=``
    (Documentation/filesystems/ramfs-rootfs-initramfs.rst), holds half of the memory.
    """
    room = os.statvfs("/")
    if room.f_blocks and room.f_bavail * room.f_frsize < MIB:
        raise too_small(
            "the kernel could not unpack the whole image: its room, half of the memory, is full",
            tried=(f"unpacked into a tmpfs of {_mib(room.f_blocks * room.f_frsize)}",),
            advice=("Put root= on the boot loader's command line: then half of the memory is no limit.",),
        )


def available() -> int:
    """Bytes that processes could have: what is free, and what the kernel would give up for them."""
    return meminfo().get("MemAvailable", free())


class Reserve:
    """A process that holds the memory for an explanation, and that the kernel kills before all others.

    When memory is gone the kernel kills a process. It can kill neither PID 1 nor udevd, and when nothing else
    is left it panics ("System is deadlocked on memory", mm/oom_kill.c). With the reserve there is always
    one that it can kill, and its death is how PID 1 learns of it.
    """

    def __init__(self) -> None:
        self.pid = 0

    def keep(self) -> None:
        """Have one while memory is scarce."""
        if self.pid or free() >= SCARCE or available() >= SCARCE:
            return
        try:
            self.pid = os.fork()
        except OSError:
            return
        if not self.pid:
            _hold()

    def release(self) -> int:
        """Give the memory back, for a person's shell or the real init; the pid that will end, or 0."""
        pid, self.pid = self.pid, 0
        if pid:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        return pid


def _hold() -> None:
    """The process: it is asleep until it is killed."""
    try:
        with open("/proc/self/oom_score_adj", "wb") as file:
            file.write(b"1000")
        held = bytearray(b"\1" * RESERVE)
        while held:
            signal.pause()
    finally:
        os._exit(0)


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB"
