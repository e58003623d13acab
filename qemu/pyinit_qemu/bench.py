"""Measures images against each other: how long they take, in seconds of the guest, and how large they are.

The guest's clock counts instructions (``icount``), so that a boot takes the same time on any host, however
busy. The one thing that host and guest do at once is reading the disk, which :mod:`pyinit_qemu.icount` makes
take no time. Where it cannot, the guest polls instead of idling. What is left makes a boot too long, never
too short: the least of several counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType

from pyinit.text import printable
from pyinit_image import archive
from pyinit_image.errors import BuildError
from pyinit_qemu.icount import instant_disks
from pyinit_qemu.machine import Machine
from pyinit_qemu.moments import UPTIME, Moments, moments
from pyinit_qemu.slots import Slots
from pyinit_qemu.spec import MIB, VmSpec
from pyinit_qemu.timing import Timeout, TimeScale
from pyinit_qemu.verdict import BootFailed, MachineError, Verdict

ICOUNT_SLOWNESS = 4.0
"""How much longer a boot takes with ``icount``, at most, in wall time."""

TOLERANCE = 0.02
"""Two boots agree when they differ by no more than this part."""
CLOCK = 10_000
"""... or by one tick of /proc/uptime, in microseconds, if it says when the real init was executed."""

MEMORY_LEAST = 32
MEMORY_STEP = 4
GOALS = {
    "pyinit list": (0.60, 2.45, 6.0, 116),
    "pyinit list unsigned": (0.30, 2.45, 6.0, 116),
    "pyinit generic": (0.85, 3.0, 16.0, 160),
}
"""At most: seconds from /init and from the kernel's start to the real init, MB, MiB of memory."""

Headers = Sequence[str]
Rows = Sequence[Sequence[str]]


class BenchError(Exception):
    """An image that cannot be measured."""


@dataclass(frozen=True)
class Boot:
    """One boot, in microseconds of the guest's time."""

    initramfs: int
    """From the execution of /init to that of the real init."""
    kernel: int
    """From the kernel's start to the execution of the real init."""
    mounted: int | None = None
    """From the execution of /init to the mount of a disk's file system; None: the kernel did not say."""
    idle: float | None = None
    """Seconds that the guest idled for disks: by so much its clock may have run ahead."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where the moments were read: by the names ``/init``, ``root mounted``, ``real init``."""


@dataclass(frozen=True)
class Result:
    """What was measured of one image."""

    name: str
    packed: int
    """Bytes of the file."""
    unpacked: int
    """Bytes of what is in it."""
    boots: tuple[Boot, ...] = ()
    memory: int | None = None
    """Smallest memory that it boots with, in MiB."""
    failure: str = ""
    """Why it did not boot."""

    @property
    def initramfs(self) -> int:
        """The least of all boots, in microseconds; likewise :attr:`kernel`."""
        return min(boot.initramfs for boot in self.boots)

    @property
    def kernel(self) -> int:
        return min(boot.kernel for boot in self.boots)

    @property
    def best(self) -> Boot:
        """The boot with the least time in the initramfs."""
        return min(self.boots, key=lambda boot: boot.initramfs)

    @property
    def spread(self) -> float | None:
        """By which part of it the second least time in the initramfs is above the least; None: one boot."""
        if len(self.boots) < 2:
            return None
        first, second = sorted(boot.initramfs for boot in self.boots)[:2]
        return (second - first) / first

    @property
    def doubts(self) -> list[str]:
        """Why the times might be other ones, for people."""
        found = []
        if self.boots and not settled(self.boots):
            found.append(
                f"the two shortest of {len(self.boots)} boots differ by {self.spread or 0:.1%}: measure "
                "again with more boots, or when this machine has less to do"
            )
        if self.boots and (idle := self.best.idle or 0) > self.initramfs / 1e6 * TOLERANCE:
            found.append(f"up to {idle:.2f} s of it may not be the guest's, which waited for a real disk")
        return found


@dataclass(frozen=True)
class Goal:
    """A figure that was to be reached."""

    what: str
    value: float
    limit: float
    strict: bool = True
    """Below the limit; else the limit itself is good enough."""

    @property
    def reached(self) -> bool:
        return self.value < self.limit or (not self.strict and self.value == self.limit)

    def __str__(self) -> str:
        word = "below" if self.strict else "at most"
        verdict = "reached" if self.reached else "NOT reached"
        return f"{self.what}: {round(self.value, 2):g} ({word} {self.limit:g}: {verdict})"


def measure(seen: Moments) -> Boot:
    """Turn what was seen of a boot into times. BenchError says which moment is missing."""
    if seen.init is None:
        raise BenchError(
            "nothing says when /init was executed: no line `Run /init as init process` with a time in the "
            "kernel's log (is it quiet, or without printk.time?)"
        )
    if seen.executed is None:
        raise BenchError(
            "nothing says when the real init was executed: no line of the witness, and none with the "
            "kernel's time that the pattern of --until matches"
        )
    found = {"/init": seen.init, "root mounted": seen.mounted, "real init": seen.executed}
    return Boot(
        initramfs=seen.executed.time - seen.init.time,
        kernel=seen.executed.time,
        mounted=None if seen.mounted is None else seen.mounted.time - seen.init.time,
        idle=seen.idle,
        sources={name: moment.source for name, moment in found.items() if moment is not None},
    )


def boot_once(spec: VmSpec, scale: TimeScale, until: str | None = None) -> Boot:
    """Boot to the real init and return the times; waits for a place if other machines run.

    The real init is the witness, which ends the boot; or it has come when a line of the console matches the
    regular expression ``until``. Raises :class:`MachineError` when the boot does not get there,
    :class:`BenchError` when there are no times.
    """
    if spec.icount:
        scale = TimeScale(scale.factor * ICOUNT_SLOWNESS)
    slots = Slots()
    slots.acquire()
    try:
        with Machine(spec, scale=scale) as machine:
            machine.run()
            if until is None:
                outcome = machine.finish(Timeout.BOOT).check()
            else:
                machine.expect(f"(?:{until}).*\n", Timeout.BOOT)
                outcome = machine.stop(until).check()
    finally:
        slots.release()
    report = next((frame for frame in outcome.frames if frame["kind"] == "witness"), None)
    return measure(moments(outcome.console, report, None if until is None else re.compile(until)))


def steady(spec: VmSpec) -> VmSpec:
    """Return the machine with the word ``idle=poll`` if its disks are real ones and its clock counts
    instructions: a guest that polls is never idle, and its clock has no timer to jump to.

    Sleeping then takes it wall time, ten times as long as it sleeps.
    """
    if spec.icount and instant_disks():
        return spec.replace(append=f"idle=poll {spec.append}")
    return spec


def repeat(once: Callable[[], Boot], least: int, progress: Callable[[str], None]) -> tuple[Boot, ...]:
    """Boot ``least`` times, and up to twice as often until the two shortest boots agree."""
    boots: list[Boot] = []
    while len(boots) < least or (len(boots) < 2 * least and not settled(boots)):
        progress(f"boot {len(boots) + 1} of {max(least, len(boots) + 1)}")
        boots.append(once())
    return tuple(boots)


def settled(boots: Sequence[Boot]) -> bool:
    """Whether the two shortest boots agree; a single one has nothing to disagree with."""
    if len(boots) < 2:
        return True
    first, second = sorted(boots, key=lambda boot: boot.initramfs)[:2]
    tick = CLOCK if UPTIME in first.sources.values() else 0
    return second.initramfs - first.initramfs <= max(tick, first.initramfs * TOLERANCE)


def smallest_memory(boots: Callable[[int], bool], enough: int) -> int:
    """The smallest memory in MiB, to :data:`MEMORY_STEP`, with which ``boots``; with ``enough`` it does."""
    low, high = MEMORY_LEAST // MEMORY_STEP - 1, enough // MEMORY_STEP
    while high - low > 1:
        middle = (low + high) // 2
        if boots(middle * MEMORY_STEP):
            high = middle
        else:
            low = middle
    return high * MEMORY_STEP


def boots_with(spec: VmSpec, memory: int, scale: TimeScale, until: str | None = None) -> bool:
    """Whether the machine boots with so many MiB. Raises :class:`MachineError` when QEMU itself fails.

    A guest that runs out of memory panics instead of living on with a process less, so that this is soon
    told.
    """
    # How much memory is needed does not depend on the clock, and this one is faster.
    append = f"sysctl.vm.panic_on_oom=1 {spec.append}"
    spec = spec.replace(memory=memory * MIB, icount=False, append=append)
    try:
        boot_once(spec, scale, until)
    except BootFailed as error:
        if error.verdict is Verdict.QEMU_CRASH:
            raise
        return False
    except BenchError:
        return False
    return True


def sizes(image: Path) -> tuple[int, int]:
    """Bytes of the image, and of the files in it."""
    content = image.read_bytes()
    try:
        segments = archive.read(content)
    except BuildError as error:
        raise BenchError(f"{image}: {error}") from error
    return len(content), sum(len(member.data) for segment in segments for member in segment.members)


def bench(
    name: str,
    spec: VmSpec,
    *,
    boots: int,
    scale: TimeScale,
    memory: bool = False,
    until: str | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Result:
    """Measure one image; what fails in the guest is part of the result.

    Raises :class:`MachineError` when QEMU itself fails, :class:`BenchError` when the image is none.
    """
    assert spec.initrd is not None
    packed, unpacked = sizes(Path(spec.initrd))
    timed = steady(spec)
    try:
        times = repeat(
            lambda: boot_once(timed, scale, until), boots, lambda text: progress(f"{name}: {text}")
        )
    except (MachineError, BenchError) as error:
        if isinstance(error, BootFailed) and error.verdict is Verdict.QEMU_CRASH:
            raise
        return Result(name, packed, unpacked, failure=str(error))
    least = None
    if memory:

        def enough(mib: int) -> bool:
            progress(f"{name}: with {mib} MiB")
            return boots_with(spec, mib, scale, until)

        least = smallest_memory(enough, spec.memory // MIB)
    return Result(name, packed, unpacked, times, least)


def boot_table(results: Sequence[Result]) -> tuple[Headers, Rows]:
    """Columns and cells, for people."""
    memory = any(result.memory is not None for result in results)
    headers = ["image", "kernel → /init, s", "/init → root, s", "/init → real init, s"]
    headers += ["kernel → real init, s", "spread, %", "boots", "MB", "unpacked, MB"]
    headers += ["least RAM, MiB"] if memory else []
    rows = []
    for result in results:
        times = ["—"] * 5
        if result.boots:
            start = result.best.kernel - result.best.initramfs
            values = (start, result.best.mounted, result.initramfs, result.kernel)
            times = ["—" if value is None else f"{value / 1e6:.2f}" for value in values]
            times.append("—" if result.spread is None else f"{100 * result.spread:.1f}")
        row = [printable(result.name), *times, str(len(result.boots))]
        row += [f"{result.packed / 1e6:.1f}", f"{result.unpacked / 1e6:.1f}"]
        row += [str(result.memory or "—")] if memory else []
        rows.append(row)
    return headers, rows


def sources(results: Sequence[Result]) -> list[str]:
    """Where the times come from, a sentence for each moment and source."""
    names: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for moment, source in (result.best.sources if result.boots else {}).items():
            names.setdefault((moment, source), []).append(result.name)
    everywhere = sum(1 for result in results if result.boots)
    return [
        f"{moment}: {source}" + ("" if len(found) == everywhere else f" ({printable(', '.join(found))})")
        for (moment, source), found in names.items()
    ]


def build_table(times: Mapping[str, Sequence[float]]) -> tuple[Headers, Rows]:
    """The same for building."""
    rows = [[name, f"{min(seconds):.1f}", f"{max(seconds):.1f}"] for name, seconds in times.items()]
    return ["image", "least, s", "most, s"], rows


def markdown(headers: Headers, rows: Rows) -> str:
    """A table that can be read as it is and pasted into Markdown; all columns but the first are numbers."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        fields = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return f"| {' | '.join(fields)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(headers), f"| {' | '.join(rule)} |", *map(line, rows)])


def goals(results: Sequence[Result], fits: Mapping[str, int] = MappingProxyType({})) -> list[Goal]:
    """What was to be reached, as far as can be told; ``fits``: MiB in which an image has booted."""
    found = {result.name: result for result in results}
    reached = []
    for name, (initramfs, kernel, size, least) in GOALS.items():
        ours = found.get(name)
        if ours is None:
            continue
        if ours.boots:
            reached.append(
                Goal(f"{name}, /init → real init, s", ours.initramfs / 1e6, initramfs, strict=False)
            )
            reached.append(Goal(f"{name}, kernel → real init, s", ours.kernel / 1e6, kernel, strict=False))
        reached.append(Goal(f"{name}, MB", ours.packed / 1e6, size, strict=False))
        if memory := ours.memory or fits.get(name):
            reached.append(Goal(f"{name}, MiB in which it boots", memory, least, strict=False))
    ours = found.get("pyinit list")
    for peer in ("initramfs-tools list", "dracut minimal"):
        if ours and ours.boots and peer in found and found[peer].boots:
            ratio = ours.initramfs / found[peer].initramfs
            reached.append(Goal(f"/init → real init, pyinit list : {peer}", ratio, 0.5))
    return reached


def as_json(results: Sequence[Result]) -> list[dict[str, object]]:
    """The results with every boot, for programs. Times in microseconds, sizes in bytes, memory in MiB."""
    return [
        {
            "name": result.name,
            "packed": result.packed,
            "unpacked": result.unpacked,
            "boots": [asdict(boot) for boot in result.boots],
            "spread": result.spread,
            "doubts": result.doubts,
            "memory": result.memory,
            "failure": result.failure,
        }
        for result in results
    ]
