"""A picture of where the time of one boot goes (SVG 1.1)."""

from __future__ import annotations

from collections.abc import Sequence

from pyinit.text import printable
from pyinit_qemu.chart import box, caption
from pyinit_qemu.waterfall import (
    INTERPRETER,
    KERNEL,
    MODULE,
    OTHER,
    PROCESS,
    STAGE,
    UNPACKING,
    Span,
    Waterfall,
    significant,
)

_COLOURS = {
    KERNEL: "#b8bec6",
    UNPACKING: "#7d6ba8",
    INTERPRETER: "#e0922f",
    MODULE: "#2f6fb3",
    PROCESS: "#5b9e6d",
    STAGE: "#8fb8dd",
    OTHER: "#c98a8a",
}
_LEGEND = {
    KERNEL: "kernel",
    UNPACKING: "unpacking",
    INTERPRETER: "Python: interpreter and imports",
    MODULE: "kernel modules",
    PROCESS: "programs",
    STAGE: "stages of pyinit",
    OTHER: "other",
}
_TURNS = {"PID 1": "#e0922f", "udevd": "#5b9e6d", "others": "#b8bec6", "idle": "#f3f3f3"}

_LEFT, _WIDTH, _RIGHT = 320, 640, 90
_ROW, _BAR = 17, 12
_MARGIN = 14
_CHARACTER = 7.2


def svg(boot: Waterfall, title: str, note: str = "", least: int = 2000) -> str:
    """Return the picture: a row for each phase, and for each part of at least ``least`` microseconds.

    Time begins a little before /init; what the kernel does before is told in numbers. The last row shows who
    had the CPU.
    """
    spans = significant(boot, least)
    before = [span for span in spans if span.start < boot.init]
    after = [span for span in spans if span.start >= boot.init]
    whole = max(1, boot.executed - boot.init)
    scale = _WIDTH / whole
    step = next(step for step in (10, 20, 50, 100, 200, 500, 1000, 1e9) if whole / 1000 / step <= 10)
    top = 112
    rows = len(after) + (1 if boot.turns else 0)
    bottom = top + _ROW * rows
    width, height = _LEFT + _WIDTH + _RIGHT, bottom + (54 if note else 36)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        caption(_MARGIN, 24, printable(title), size=15),
    ]
    place = float(_MARGIN)
    used = {span.kind for span in after}
    for kind, words in _LEGEND.items():
        if kind in used:
            parts.append(box(place, 38, _BAR, _BAR, _COLOURS[kind]))
            parts.append(caption(place + 17, 48, words, size=11))
            place += 17 + len(words) * _CHARACTER * 0.9 + 14
    parts.append(caption(_MARGIN, 70, _kernel_words(boot), size=11))
    parts.append(caption(_MARGIN, 86, _longest(before), size=11))
    for number in range(int(whole / 1000 / step) + 1):
        across = _LEFT + number * step * 1000 * scale
        parts.append(
            f'<line x1="{across:.1f}" y1="{top - 6}" x2="{across:.1f}" y2="{bottom}" stroke="#dddddd"/>'
        )
        parts.append(caption(across, bottom + 15, f"{number * step:g} ms", anchor="middle", size=10))
    for number, span in enumerate(after):
        upper = top + _ROW * number
        parts.append(
            caption(
                _MARGIN + 14 * span.depth, upper + _BAR - 2, span.name[:46], size=12 if not span.depth else 11
            )
        )
        start = _LEFT + (span.start - boot.init) * scale
        parts.append(box(start, upper, max(0.5, span.took * scale), _BAR, _COLOURS[span.kind]))
        parts.append(
            caption(start + span.took * scale + 5, upper + _BAR - 2, f"{span.took / 1000:.1f}", size=10)
        )
    if boot.turns:
        upper = top + _ROW * len(after)
        shares = ", ".join(f"{who} {took / 1000:.0f}" for who, took in sorted(boot.shares.items()))
        parts.append(caption(_MARGIN, upper + _BAR - 2, f"CPU, ms: {shares}"[:60], size=11))
        for turn in boot.turns:
            start = _LEFT + (turn.start - boot.init) * scale
            length = (turn.end - turn.start) * scale
            if length >= 0.05:
                parts.append(box(start, upper, length, _BAR, _TURNS[turn.who]))
    if note:
        parts.append(caption(_MARGIN, height - 12, printable(note), size=10))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _kernel_words(boot: Waterfall) -> str:
    phases = boot.phases
    words = f"before /init: kernel {phases['kernel'] / 1000:.0f} ms"
    if "unpacking" in phases:
        words += f", unpacking the image {phases['unpacking'] / 1000:.0f} ms"
    return f"{words}; /init → real init {(boot.executed - boot.init) / 1000:.0f} ms"


def _longest(spans: Sequence[Span]) -> str:
    found = sorted((span for span in spans if span.depth), key=lambda span: -span.took)[:5]
    words = ", ".join(f"{span.name} {span.took / 1000:.0f}" for span in found)
    return f"longest in the kernel, ms: {words}" if words else ""
