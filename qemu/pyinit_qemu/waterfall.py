"""Where the time of a boot goes: what followed what, from the kernel's start to the real init.

Four sources are brought together, whatever of them there is:

- the kernel's log: moments, and with ``initcall_debug`` each initcall and the initialisation of each module;
- the boot record of pyinit (:mod:`pyinit.record`): stages, modules, processes, mounts;
- the modules that PID 1 imported, as ``guest/profiled.py`` timed them;
- who had the CPU: the scheduler's trace events (Documentation/trace/events.rst).

The kernel stamps its log with a clock of its own (``local_clock()``), the record is of CLOCK_MONOTONIC. Both
count the same microseconds from different moments; lines that are in both tell the difference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyinit.text import printable
from pyinit_qemu.moments import Line, read_moments

WORDS = "initcall_debug initramfs_async=0 log_buf_len=4M trace_clock=mono"
"""Words of the kernel command line: initcalls are logged, the image is unpacked in one piece, so that its
share can be told, and traces are stamped with the clock of the boot record
(Documentation/admin-guide/kernel-parameters.txt)."""

_INITCALL = re.compile(
    r"initcall ([A-Za-z0-9_.]{1,128})\+0x[0-9a-f]+/0x[0-9a-f]+(?: \[([a-z0-9_]{1,64})\])?"
    r" returned -?[0-9]{1,10} after ([0-9]{1,12}) usecs",
    re.ASCII | re.IGNORECASE,
)
_UNPACK = "populate_rootfs"
# "  task-12  [000] d..2.  1.234567: sched_switch: prev_comm=a prev_pid=1 ... ==> next_comm=b next_pid=2"
_SWITCH = re.compile(
    r"\s([0-9]{1,9})\.([0-9]{6}): sched_switch: .*? ==> next_comm=(.*) next_pid=([0-9]{1,9}) next_prio=",
    re.ASCII,
)
_UDEV = ("systemd-udevd", "(udev-worker)")

KERNEL, UNPACKING, INTERPRETER, MODULE, PROCESS, STAGE, OTHER = (
    "kernel", "unpacking", "interpreter", "module", "process", "stage", "other",
)  # fmt: skip


class WaterfallError(Exception):
    """A boot that left too little behind to say where its time went."""


@dataclass(frozen=True)
class Span:
    """Something that took time. Microseconds since the kernel's start, by the kernel's log."""

    name: str
    start: int
    end: int
    depth: int
    """0: a phase, which follows the one before; else a part of what is above it."""
    kind: str

    @property
    def took(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Turn:
    """A time in which somebody had the CPU."""

    who: str
    """``PID 1``, ``udevd``, ``idle``, or ``others`` (threads of the kernel)."""
    start: int
    end: int


@dataclass(frozen=True)
class Waterfall:
    """One boot."""

    spans: tuple[Span, ...]
    """In order of their start, parts behind what they are a part of."""
    turns: tuple[Turn, ...] = ()
    init: int = 0
    """When /init was executed."""
    executed: int = 0
    """When the real init was executed."""

    @property
    def phases(self) -> dict[str, int]:
        """What each phase took, unpacking apart from the rest of the kernel's; they add up to the boot."""
        found: dict[str, int] = {}
        for span in self.spans:
            if span.depth == 0:
                found[span.name] = found.get(span.name, 0) + span.took
        unpacking = sum(span.took for span in self.spans if span.kind == UNPACKING)
        if unpacking:
            found = {"kernel": found.pop("kernel") - unpacking, "unpacking": unpacking, **found}
        return found

    @property
    def shares(self) -> dict[str, int]:
        """How long each had the CPU, in microseconds, from the first turn on."""
        found: dict[str, int] = {}
        for turn in self.turns:
            found[turn.who] = found.get(turn.who, 0) + turn.end - turn.start
        return found


@dataclass
class _Node:
    """A span with its parts, while they are collected."""

    name: str
    start: int
    end: int
    kind: str
    parts: list[_Node] = field(default_factory=list)

    def holds(self, other: _Node) -> bool:
        return self.start <= other.start and other.end <= self.end


def waterfall(
    lines: Iterable[Line],
    record: Mapping[str, Any] | None = None,
    imports: Sequence[Sequence[Any]] = (),
    trace: str = "",
) -> Waterfall:
    """Bring together what is known of a boot.

    ``imports``: (name, start, end) of CLOCK_MONOTONIC in microseconds, as ``guest/profiled.py`` writes them.
    Raises :class:`WaterfallError` when the log lacks /init or the real init, and for a record that is none.
    """
    lines = list(lines)
    seen = read_moments(lines, "log")
    if seen.init is None or seen.executed is None:
        missing = "/init" if seen.init is None else "the real init"
        raise WaterfallError(f"the kernel's log does not say when {missing} was executed")
    init, executed = seen.init.time, seen.executed.time
    phases = [_Node("kernel", 0, init, KERNEL)]
    parts = [node for line in lines if (node := _initcall(line)) is not None]
    late = 0
    if record is None:
        phases.append(_Node("initramfs", init, executed, OTHER))
    else:
        try:
            late = clock_difference(lines, record)
            phases += _phases(record, late, init, executed)
            parts += _parts(record, imports, late)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise WaterfallError(f"not a boot record: {type(error).__name__}: {error}") from error
    for part in sorted(parts, key=lambda node: (node.start, -node.end)):
        _place(phases, part)
    spans = tuple(span for phase in phases for span in _flat(phase, 0))
    return Waterfall(spans, turns(trace, executed, late), init, executed)


def clock_difference(lines: Iterable[Line], record: Mapping[str, Any]) -> int:
    """By how many microseconds CLOCK_MONOTONIC is ahead of the clock of the kernel's log.

    pyinit takes the time of a message and then writes it to the kernel's log: the line that was written
    fastest tells the difference best. 0 when no message is in both.
    """
    written: dict[str, int] = {}
    for line in lines:
        if line.text.startswith("pyinit: "):
            written.setdefault(line.text.removeprefix("pyinit: "), line.time)
    differences = []
    for message in record["messages"]:
        at, text = int(message["at"]), str(message["text"])
        if text in written:
            differences.append(at - written[text])
    return max(differences, default=0)


def turns(trace: str, until: int, late: int = 0) -> tuple[Turn, ...]:
    """Who had the CPU when, from the text of a trace of ``sched_switch`` (one CPU).

    ``late``: by how many microseconds the trace's clock is ahead.
    """
    found: list[Turn] = []
    who, start = "", 0
    for line in trace.splitlines():
        if not (switch := _SWITCH.search(line)):
            continue
        time = int(switch[1]) * 1_000_000 + int(switch[2]) - late
        if time >= until:
            break
        following = _who(switch[3], int(switch[4]))
        if following == who:
            continue
        if who and time > start:
            found.append(Turn(who, start, time))
        who, start = following, max(time, start)
    if who and until > start:
        found.append(Turn(who, start, until))
    return tuple(found)


def _who(command: str, pid: int) -> str:
    if pid == 0:
        return "idle"
    if pid == 1:
        return "PID 1"
    return "udevd" if command in _UDEV else "others"


def _initcall(line: Line) -> _Node | None:
    found = _INITCALL.match(line.text)
    if found is None:
        return None
    name, module, took = found[1], found[2], int(found[3])
    if module:
        return _Node(f"initialisation of {module}", line.time - took, line.time, MODULE)
    if name == _UNPACK:
        return _Node("unpacking the image", line.time - took, line.time, UNPACKING)
    return _Node(f"initcall {name}", line.time - took, line.time, KERNEL)


def _phases(record: Mapping[str, Any], late: int, init: int, executed: int) -> list[_Node]:
    """One after the other, without holes: a phase lasts until the next one begins."""
    starts = [
        ("interpreter", init, INTERPRETER),
        ("imports", int(record["started"]) - late, INTERPRETER),
        ("first of all", int(record["imported"]) - late, OTHER),
    ]
    starts += [
        (printable(str(stage["name"])), int(stage["start"]) - late, STAGE) for stage in record["stages"]
    ]
    if record["handover"] is not None:
        starts.append(("execution", int(record["handover"]["at"]) - late, OTHER))
    ends = [start for _, start, _ in starts[1:]] + [executed]
    return [
        _Node(name, start, max(start, end), kind)
        for (name, start, kind), end in zip(starts, ends, strict=True)
    ]


def _parts(record: Mapping[str, Any], imports: Sequence[Sequence[Any]], late: int) -> list[_Node]:
    parts = []
    for module in record["modules"]:
        if module["result"] != "present":
            parts.append(("module " + str(module["name"]), module["start"], module["end"], MODULE))
    for mount in record["mounts"]:
        parts.append((f"mount of {mount['type']}", mount["start"], mount["end"], OTHER))
    for want in record["wants"]:
        if want["ended"]:
            parts.append((f"waits for {want['name']}", want["asked"], want["ended"], OTHER))
    for child in record["children"]:
        if child["end"] is not None:
            argv = " ".join(str(word) for word in child["argv"])
            parts.append((f"process {argv}", child["start"], child["end"], PROCESS))
    for name, start, end in imports:
        parts.append((f"import {name}", start, end, INTERPRETER))
    return [
        _Node(printable(name), int(start) - late, int(end) - late, kind) for name, start, end, kind in parts
    ]


def _place(nodes: list[_Node], part: _Node) -> bool:
    """Put a part where it belongs; one that is in no phase alone (udevd runs through many) is left out."""
    for node in reversed(nodes):
        if node.holds(part):
            if not _place(node.parts, part):
                node.parts.append(part)
            return True
    return False


def _flat(node: _Node, depth: int) -> list[Span]:
    span = Span(node.name, node.start, node.end, depth, node.kind)
    return [span, *(below for part in node.parts for below in _flat(part, depth + 1))]


def significant(boot: Waterfall, least: int) -> tuple[Span, ...]:
    """The spans of at least ``least`` microseconds, and all phases."""
    return tuple(span for span in boot.spans if span.depth == 0 or span.took >= least)


def text(boot: Waterfall, least: int = 1000, width: int = 40) -> list[str]:
    """The waterfall as lines of text; the bars of ``width`` characters begin with /init."""
    lines = [f"{'ms':>8} {'took':>7}"]
    whole = max(1, boot.executed - boot.init)
    for span in significant(boot, least):
        label = "  " * span.depth + span.name
        bar = ""
        if span.start >= boot.init:
            start = min(width - 1, (span.start - boot.init) * width // whole)
            end = min(width, -(-(span.end - boot.init) * width // whole))
            bar = "·" * start + "█" * max(1, end - start)
        lines.append(f"{span.start / 1000:8.1f} {span.took / 1000:7.1f}  {label:<44.44} {bar}".rstrip())
    if boot.turns:
        shares = ", ".join(
            f"{who} {took / 1000:.1f}" for who, took in sorted(boot.shares.items(), key=lambda item: -item[1])
        )
        lines.append(f"CPU from {boot.turns[0].start / 1000:.1f} ms on, in ms: {shares}")
    return lines
