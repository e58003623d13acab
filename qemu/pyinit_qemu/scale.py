"""How boots grow: with the disks of a machine, with events that nobody waits for, with the bytes of an image.

Each series boots the same images with more and more of one thing, in a machine whose clock counts
instructions. What counts is the growth: how much longer each further disk makes it, for one image and the
other.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyinit_image.elf import closure
from pyinit_qemu.appended import with_files
from pyinit_qemu.bench import ICOUNT_SLOWNESS, BenchError, measure
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks.cache import Cache
from pyinit_qemu.machine import Machine
from pyinit_qemu.moments import moments
from pyinit_qemu.peers import MODULES
from pyinit_qemu.slots import Slots
from pyinit_qemu.spec import VmSpec
from pyinit_qemu.timing import Timeout, TimeScale
from pyinit_qemu.verdict import MachineError
from pyinit_qemu.witness import Witness

#: Of a machine with a thousand disks, in MiB: each takes the kernel some 100 kB.
MEMORY = 2048
#: Disks of one target of scsi_debug: more numbers than these need another way to address them.
LUNS = 100
#: How much longer the longest of these boots may take than any other.
PATIENCE = 20.0

_MIB = 1 << 20

# Nothing but the shell's own commands: the image may have no other program. What is read never comes, so that
# read waits; it is the output of a process that waits, too.
_NOISE = """#!/bin/bash
(
exec < /dev/null > /dev/null 2>&1
coproc never {{ read -r; }}
while :; do
    [ -e {uevent} ] && echo change > {uevent}
    read -r -t {pause} -u "${{never[0]}}"
done
) &
exec /init
"""
_DEVICE = "/sys/class/mem/null/uevent"


@dataclass(frozen=True)
class Point:
    """One boot with so many of something. Times in microseconds of the guest, memory in bytes."""

    count: float
    initramfs: int = 0
    """From the execution of /init to that of the real init."""
    kernel: int = 0
    """From the kernel's start to the execution of the real init."""
    mounted: int | None = None
    """From the execution of /init to the mount of the root."""
    memory: int = 0
    """What is not available any more when the real init is executed."""
    failure: str = ""


@dataclass(frozen=True)
class Series:
    """One thing that there is more and more of."""

    name: str
    title: str
    unit: str
    """What is counted."""
    counts: tuple[int, ...]
    modules: tuple[str, ...] = MODULES
    """The drivers of the images."""
    words: Callable[[int], str] = lambda count: ""
    """Kernel command line words."""
    change: Callable[[Path, DebianRoot, int, Cache], Path] = lambda image, debian, count, cache: image
    """What is added to an image; the new one is kept in the cache."""
    time: Callable[[Point], int | None] = lambda point: point.initramfs
    """The time that is compared, and what it is called."""
    time_name: str = "/init → real init"
    logarithmic: bool = False
    """How a picture of it is drawn."""
    without: tuple[str, ...] = ()
    """Images that this is nothing for."""


def disk_words(count: int) -> str:
    """The words that make the driver scsi_debug have ``count`` disks, or a multiple of :data:`LUNS`."""
    targets = -(-count // LUNS)
    words = f"scsi_debug.num_tgts={targets} scsi_debug.max_luns={-(-count // targets)} scsi_debug.delay=0"
    # Of so many disks the kernel says more than its log keeps, and the first lines are looked for.
    # dracut loads what is asked for, initramfs-tools and pyinit what the image was built with.
    return f"{words} log_buf_len=16M rd.driver.pre=scsi_debug"


def noisy(image: Path, debian: DebianRoot, rate: int, cache: Cache) -> Path:
    """An image in which about ``rate`` events a second come from a device that has nothing to do with it."""
    if rate == 0:
        return image
    files: dict[str, str | bytes] = {}
    for item in closure(debian.tree, ["/bin/bash"]):
        path = debian.tree / item.path.lstrip("/")
        # Links, too, as copies: the image may have none of the directories they lead to.
        if path.resolve().is_file():
            files[item.path] = path.read_bytes()
    files["/noise"] = _NOISE.format(uevent=_DEVICE, pause=f"{1 / rate:.6f}")
    return with_files(image, files, cache=cache)


def heavier(image: Path, debian: DebianRoot, size: int, cache: Cache) -> Path:
    """An image that has ``size`` MiB more, which cannot be compressed."""
    if size == 0:
        return image
    dice = random.Random(size)
    return with_files(image, {"/ballast": dice.randbytes(size * _MIB)}, mode=0o644, cache=cache)


SERIES = (
    Series(
        "disks",
        "Disks that have nothing to do with the root",
        "disks",
        (1, 10, 100, 1000),
        modules=(*MODULES, "sd_mod", "scsi_debug"),
        words=disk_words,
        logarithmic=True,
        # It takes no options of modules from the kernel command line.
        without=("tiny-initramfs list",),
    ),
    Series(
        "uevents",
        "Events that have nothing to do with the root",
        "events each second",
        (0, 100, 1000),
        words=lambda rate: "rdinit=/noise" if rate else "",
        change=noisy,
        # Where they come from is a process; who ends it before the switch, and who lets it live on, is
        # another question.
        time=lambda point: point.mounted,
        time_name="/init → root mounted",
        # Nobody listens to them there.
        without=("tiny-initramfs list",),
    ),
    Series(
        "bytes",
        "Files in the image that nobody needs",
        "MiB more",
        (0, 10, 50, 100, 200),
        change=heavier,
        time=lambda point: point.kernel,
        time_name="kernel → real init",
    ),
)


def boot_point(spec: VmSpec, count: float, scale: TimeScale) -> Point:
    """One boot; one that fails is a point, too. Raises :class:`MachineError` when QEMU itself fails."""
    slots = Slots()
    slots.acquire()
    try:
        with Machine(spec, scale=TimeScale(scale.factor * ICOUNT_SLOWNESS * PATIENCE)) as machine:
            machine.run()
            outcome = machine.finish(Timeout.BOOT).check()
        frame = next((frame for frame in outcome.frames if frame["kind"] == "witness"), None)
        if frame is None:
            raise BenchError("the real init said nothing")
        boot = measure(moments(outcome.console, frame))
        memory = Witness.parse(frame).memory
    except (MachineError, BenchError) as error:
        return Point(count, failure=str(error))
    finally:
        slots.release()
    used = memory["MemTotal"] - memory["MemAvailable"]
    return Point(count, boot.initramfs, boot.kernel, boot.mounted, used)


def slope(series: Series, points: Sequence[Point]) -> float | None:
    """By how many microseconds each further one of the series makes it longer, from the least to the most."""
    found = [(point.count, time) for point in points if not point.failure and (time := series.time(point))]
    (first, least), (last, most) = (min(found), max(found)) if found else ((0, 0), (0, 0))
    return (most - least) / (last - first) if last > first else None


def steepening(series: Series, points: Sequence[Point]) -> float | None:
    """How much steeper the last piece of the curve is than all before it: 1 when growth is linear."""
    good = [point for point in points if not point.failure and series.time(point)]
    if len(good) < 3:
        return None
    before, after = slope(series, good[:-1]), slope(series, good[-2:])
    return after / before if before and after else None


def scale_table(series: Series, curves: Mapping[str, Sequence[Point]]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells, for people: time and memory at each point, and the growth."""
    counts = sorted({point.count for points in curves.values() for point in points})
    headers = ["image", *(f"{count:g}" for count in counts), "ms for each", "last piece : before"]
    rows = []
    for name, points in curves.items():
        at = {point.count: point for point in points}
        cells = []
        for count in counts:
            point = at.get(count)
            time = series.time(point) if point is not None and not point.failure else None
            shown = "—" if point is None or time is None else f"{time / 1e6:.2f} s, {point.memory // _MIB}"
            cells.append(shown)
        grown, bend = slope(series, points), steepening(series, points)
        cells += ["—" if grown is None else f"{grown / 1000:.2f}", "—" if bend is None else f"{bend:.2f}"]
        rows.append([name, *cells])
    return headers, rows
