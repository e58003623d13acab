"""A picture of curves: one for each image (SVG 1.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pyinit.text import printable
from pyinit_qemu.chart import box, caption

COLOURS = ("#2f6fb3", "#0b3d6e", "#e0922f", "#c0504d", "#5b9e6d", "#7d6ba8", "#8a8a8a")

_LEFT, _WIDTH, _HEIGHT, _TOP = 70, 420, 260, 64
_CHARACTER = 7.2

Curve = Sequence[tuple[float, float]]


def svg(
    panels: Sequence[tuple[str, str, Mapping[str, Curve]]], title: str, note: str = "", *, log: bool = False
) -> str:
    """Return the picture of ``panels``, each (name of x, name of y, curves by name), side by side.

    ``log``: both axes are logarithmic, so that growth in proportion is a straight line whose slope is 1; a
    point at 0 is left out then.
    """
    names = list(dict.fromkeys(name for _, _, curves in panels for name in curves))
    width = (_LEFT + _WIDTH + 40) * len(panels)
    bottom = _TOP + _HEIGHT
    height = bottom + 52 + 18 * len(names) + (20 if note else 0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        caption(14, 24, printable(title), size=15),
    ]
    for number, (x_name, y_name, curves) in enumerate(panels):
        left = number * (_LEFT + _WIDTH + 40) + _LEFT
        parts += _panel(
            left, x_name, y_name, {name: curves[name] for name in names if name in curves}, names, log
        )
    for number, name in enumerate(names):
        upper = bottom + 46 + 18 * number
        parts.append(box(_LEFT, upper, 12, 12, COLOURS[number % len(COLOURS)]))
        parts.append(caption(_LEFT + 18, upper + 11, printable(name)))
    if note:
        parts.append(caption(14, height - 10, printable(note), size=10))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(
    left: int, x_name: str, y_name: str, curves: Mapping[str, Curve], names: Sequence[str], log: bool
) -> list[str]:
    points = [point for curve in curves.values() for point in curve if not log or min(point) > 0]
    across = _Axis([x for x, _ in points], left, left + _WIDTH, log)
    up = _Axis([y for _, y in points], _TOP + _HEIGHT, _TOP, log)
    parts = [caption(left - 50, _TOP - 10, y_name, size=12)]
    for value in up.marks():
        y = up.place(value)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + _WIDTH}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(caption(left - 8, y + 4, f"{value:g}", anchor="end", size=11))
    for value in across.marks():
        x = across.place(value)
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_TOP + _HEIGHT}" stroke="#dddddd"/>')
        parts.append(caption(x, _TOP + _HEIGHT + 15, f"{value:g}", anchor="middle", size=11))
    parts.append(caption(left + _WIDTH / 2, _TOP + _HEIGHT + 32, x_name, anchor="middle"))
    for name, curve in curves.items():
        colour = COLOURS[names.index(name) % len(COLOURS)]
        places = [(across.place(x), up.place(y)) for x, y in sorted(curve) if not log or (x > 0 and y > 0)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
    return parts


class _Axis:
    """Values to places in the picture."""

    def __init__(self, values: Sequence[float], start: float, end: float, log: bool) -> None:
        least, most = (min(values), max(values)) if values else (1.0, 10.0)
        self.log = log
        if log:
            self.low, self.high = 10.0 ** math.floor(math.log10(least)), 10.0 ** math.ceil(math.log10(most))
            self.high = max(self.high, self.low * 10)
        else:
            self.step = 10.0 ** math.floor(math.log10(most or 1.0))
            self.step *= next(part for part in (0.2, 0.5, 1, 2) if most / (self.step * part) <= 6)
            self.low, self.high = 0.0, max(1, math.ceil(most / self.step)) * self.step
        self.start, self.end = start, end

    def place(self, value: float) -> float:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        part = ((math.log10(value) if self.log else value) - low) / (high - low)
        return self.start + part * (self.end - self.start)

    def marks(self) -> list[float]:
        if self.log:
            count = round(math.log10(self.high / self.low))
            return [self.low * 10.0**number for number in range(count + 1)]
        return [self.step * number for number in range(round(self.high / self.step) + 1)]
