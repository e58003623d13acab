"""Where the time of building an image goes: a table and a picture (SVG 1.1) of its steps."""

from __future__ import annotations

import dataclasses
import json
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pyinit.text import printable
from pyinit_qemu.chart import box, caption

LEAST = 0.01
"""Seconds; shorter steps are not shown."""

_STEP, _BESIDE, _WHOLE = "#2f6fb3", "#8fb8dd", "#b8bec6"
_LEFT, _WIDTH, _RIGHT = 300, 560, 90
_ROW, _BAR, _MARGIN = 17, 12, 14


@dataclass(frozen=True)
class Span:
    """A step of a build, in seconds since the program was started."""

    name: str
    start: float
    end: float
    beside: bool
    """Whether it was done at the same time as others."""


@dataclass(frozen=True)
class Built:
    """One build: how long it took in all, in seconds of wall time, and its steps if it tells them."""

    name: str
    seconds: float
    cpu: float
    """Seconds of CPU time, of all processes and threads."""
    spans: tuple[Span, ...] = ()


def timed(name: str, make: Callable[[], str]) -> tuple[Built, str]:
    """Have an image made by child processes; return how long that took, and what ``make`` returned."""
    used, start = _cpu(), time.monotonic()
    output = make()
    return Built(name, time.monotonic() - start, _cpu() - used), output


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def with_steps(built: Built, output: str) -> Built:
    """Add to a build what ``pyinit-image build --json`` said of it.

    ``ValueError`` when that is no such report.
    """
    try:
        # Warnings may be before or behind it.
        report = json.loads(next(line for line in reversed(output.splitlines()) if line.startswith("{")))
        # What comes before the first step is the interpreter and its imports.
        begin = max(0.0, built.seconds - float(report["seconds"]))
        spans = [Span("start of the program", 0.0, begin, False)]
        for row in report["steps"]:
            start, end = begin + float(row["start"]), begin + float(row["end"])
            spans.append(Span(str(row["name"]), start, end, bool(row["beside"])))
    except (LookupError, StopIteration, TypeError, ValueError) as error:
        raise ValueError(f"{built.name}: no report of a build: {printable(output[-200:])}") from error
    shown = tuple(span for span in spans if span.end - span.start >= LEAST)
    return dataclasses.replace(built, spans=shown)


def text(built: Built) -> list[str]:
    """The steps as lines: start and duration in seconds; what runs beside others is set in."""
    lines = [f"{built.name}: {built.seconds:.2f} s, {built.cpu:.2f} s of CPU time"]
    for span in built.spans:
        inset = "  " if span.beside else ""
        lines.append(f"  {span.start:6.2f} {span.end - span.start:6.2f}  {inset}{printable(span.name)}")
    return lines


def svg(builds: Sequence[Built], title: str, note: str = "") -> str:
    """Return the picture: each build with its steps below it, those of other programs as one bar."""
    longest = max((built.seconds for built in builds), default=1.0) or 1.0
    step = next(step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 1e9) if longest / step <= 10)
    scale = _WIDTH / longest
    top = 64
    rows = sum(1 + len(built.spans) for built in builds)
    bottom = top + _ROW * rows
    width, height = _LEFT + _WIDTH + _RIGHT, bottom + (54 if note else 36)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        caption(_MARGIN, 24, printable(title), size=15),
    ]
    place = float(_MARGIN)
    for colour, words in ((_WHOLE, "all"), (_STEP, "a step"), (_BESIDE, "a step beside others")):
        parts.append(box(place, 36, _BAR, _BAR, colour))
        parts.append(caption(place + 17, 46, words, size=11))
        place += 17 + 7 * len(words) + 14
    for number in range(int(longest / step) + 1):
        across = _LEFT + number * step * scale
        parts.append(
            f'<line x1="{across:.1f}" y1="{top - 6}" x2="{across:.1f}" y2="{bottom}" stroke="#dddddd"/>'
        )
        parts.append(caption(across, bottom + 15, f"{number * step:g} s", anchor="middle", size=10))
    row = 0
    for built in builds:
        bars = [(built.name, 0.0, built.seconds, _WHOLE, 0)]
        bars += [
            (span.name, span.start, span.end, _BESIDE if span.beside else _STEP, 1) for span in built.spans
        ]
        for name, start, end, colour, depth in bars:
            upper = top + _ROW * row
            size = 11 if depth else 12
            parts.append(caption(_MARGIN + 14 * depth, upper + _BAR - 2, printable(name)[:46], size=size))
            left = _LEFT + start * scale
            parts.append(box(left, upper, max(0.5, (end - start) * scale), _BAR, colour))
            parts.append(
                caption(left + (end - start) * scale + 5, upper + _BAR - 2, f"{end - start:.2f}", size=10)
            )
            row += 1
    if note:
        parts.append(caption(_MARGIN, height - 12, printable(note), size=10))
    return "\n".join([*parts, "</svg>"]) + "\n"


def build_table(builds: Mapping[str, Sequence[Built]]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells, for people."""
    rows = []
    for name, found in builds.items():
        seconds = [built.seconds for built in found]
        cpu = min(built.cpu for built in found)
        rows.append([name, f"{min(seconds):.1f}", f"{max(seconds):.1f}", f"{cpu:.1f}"])
    return ["image", "least, s", "most, s", "CPU time, s"], rows


def quickest(builds: Mapping[str, Sequence[Built]]) -> list[Built]:
    """Of each kind of build the one that took the least."""
    return [min(found, key=lambda built: built.seconds) for found in builds.values() if found]
