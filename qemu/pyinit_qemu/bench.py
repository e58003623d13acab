"""Measures images against each other: how long they take, in seconds of the guest, and how large they are.

The guest's clock counts instructions (``icount``), so that a boot takes the same time on any host, however
busy. The one thing that host and guest do at once is reading the disk: while the guest idles for that, its
clock runs ahead. So a boot can come out too long, never too short, and the least of several counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyinit_image import archive
from pyinit_image.errors import BuildError
from pyinit_qemu.machine import Machine
from pyinit_qemu.spec import MIB, VmSpec
from pyinit_qemu.timing import Timeout, TimeScale
from pyinit_qemu.verdict import BootFailed, MachineError, Verdict
from pyinit_qemu.witness import Witness, WitnessError

ICOUNT_SLOWNESS = 4.0
"""How much longer a boot takes with ``icount``, at most, in wall time."""

TOLERANCE = 0.02
"""Two boots agree when they differ by no more than this part."""
CLOCK = 10_000
"""... or by one tick of the clock that says when the real init was executed, in microseconds."""

MEMORY_LEAST = 32
MEMORY_STEP = 16
GOAL_MEMORY = 160
"""MiB."""

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


def measure(witness: Witness) -> Boot:
    """Read the times out of a witness's report.

    The time of the real init's execution is the witness's first look at the clock, before its interpreter
    starts: a clock of 10 ms, but what the witness itself takes is not in it.
    """
    if witness.run_init is None:
        raise BenchError("the kernel's log no longer held the line that says when /init was executed")
    return Boot(witness.executed - witness.run_init, witness.executed)


def boot_once(spec: VmSpec, scale: TimeScale) -> Boot:
    """Boot to the witness and return its times.

    Raises :class:`MachineError` when it does not get there, :class:`BenchError` when there are no times.
    """
    if spec.icount:
        scale = TimeScale(scale.factor * ICOUNT_SLOWNESS)
    with Machine(spec, scale=scale) as machine:
        machine.run()
        outcome = machine.finish(Timeout.BOOT).check()
    try:
        return measure(Witness.parse(next(frame for frame in outcome.frames if frame["kind"] == "witness")))
    except (StopIteration, WitnessError) as error:
        raise BenchError(f"no witness's report in what the guest sent: {error}") from error


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
    first, second = sorted(boot.initramfs for boot in boots)[:2]
    return second - first <= max(CLOCK, first * TOLERANCE)


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


def boots_with(spec: VmSpec, memory: int, scale: TimeScale) -> bool:
    """Whether the machine boots with so many MiB. Raises :class:`MachineError` when QEMU itself fails."""
    # How much memory is needed does not depend on the clock, and this one is faster.
    spec = spec.replace(memory=memory * MIB, icount=False)
    try:
        boot_once(spec, scale)
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
    progress: Callable[[str], None] = lambda text: None,
) -> Result:
    """Measure one image; what fails in the guest is part of the result.

    Raises :class:`MachineError` when QEMU itself fails, :class:`BenchError` when the image is none.
    """
    assert spec.initrd is not None
    packed, unpacked = sizes(Path(spec.initrd))
    try:
        times = repeat(lambda: boot_once(spec, scale), boots, lambda text: progress(f"{name}: {text}"))
    except (MachineError, BenchError) as error:
        if isinstance(error, BootFailed) and error.verdict is Verdict.QEMU_CRASH:
            raise
        return Result(name, packed, unpacked, failure=str(error))
    least = None
    if memory:

        def enough(mib: int) -> bool:
            progress(f"{name}: with {mib} MiB")
            return boots_with(spec, mib, scale)

        least = smallest_memory(enough, spec.memory // MIB)
    return Result(name, packed, unpacked, times, least)


def wall_times(
    make: Callable[[], object], count: int, clock: Callable[[], float] = time.monotonic
) -> tuple[float, ...]:
    """Seconds of wall time that each of ``count`` calls took."""
    times = []
    for _ in range(count):
        start = clock()
        make()
        times.append(clock() - start)
    return tuple(times)


def boot_table(results: Sequence[Result]) -> tuple[Headers, Rows]:
    """Columns and cells, for people."""
    memory = any(result.memory is not None for result in results)
    headers = ["image", "/init → real init, s", "kernel → real init, s", "MB", "unpacked, MB"]
    headers += ["least RAM, MiB"] if memory else []
    rows = []
    for result in results:
        times = (
            [f"{result.initramfs / 1e6:.2f}", f"{result.kernel / 1e6:.2f}"] if result.boots else ["—", "—"]
        )
        row = [result.name, *times, f"{result.packed / 1e6:.1f}", f"{result.unpacked / 1e6:.1f}"]
        row += [str(result.memory or "—")] if memory else []
        rows.append(row)
    return headers, rows


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


def goals(results: Sequence[Result], fits: int | None = None) -> list[Goal]:
    """What was to be reached, as far as can be told; ``fits``: MiB in which "pyinit list" has booted."""
    found = {result.name: result for result in results}
    ours = found.get("pyinit list")
    if ours is None:
        return []
    reached = []
    for peer in ("initramfs-tools list", "dracut minimal"):
        if ours.boots and peer in found and found[peer].boots:
            ratio = ours.initramfs / found[peer].initramfs
            reached.append(Goal(f"/init → real init, pyinit list : {peer}", ratio, 0.5))
    reached.append(Goal("MB of pyinit list", ours.packed / 1e6, 12, strict=False))
    if memory := ours.memory or fits:
        reached.append(Goal("MiB in which pyinit list boots", memory, GOAL_MEMORY, strict=False))
    return reached


def as_json(results: Sequence[Result]) -> list[dict[str, object]]:
    """The results with every boot, for programs. Times in microseconds, sizes in bytes, memory in MiB."""
    return [
        {
            "name": result.name,
            "packed": result.packed,
            "unpacked": result.unpacked,
            "boots": [{"initramfs": boot.initramfs, "kernel": boot.kernel} for boot in result.boots],
            "memory": result.memory,
            "failure": result.failure,
        }
        for result in results
    ]
