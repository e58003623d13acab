"""A picture of boots: one bar for each image, from the kernel's start to the real init (SVG 1.1)."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from pyinit.text import printable
from pyinit_qemu.bench import Result

KERNEL, SEARCH, HANDOVER, UNTOLD = "#b8bec6", "#2f6fb3", "#e0922f", "#7d6ba8"
_LEGEND = (
    (KERNEL, "kernel → /init"),
    (SEARCH, "/init → root mounted"),
    (HANDOVER, "root mounted → real init"),
    (UNTOLD, "/init → real init"),
)

_WIDTH, _BAR, _ROW = 620, 18, 30
_CHARACTER = 7.2
"""Of a text of 12 pixels, in pixels: more than nearly all fonts take."""
_MARGIN = 14


def svg(results: Sequence[Result], title: str, note: str = "") -> str:
    """Return the picture. An image that did not boot has its name and the first words of the reason."""
    names = [printable(result.name) for result in results]
    left = round(max(map(len, names), default=0) * _CHARACTER) + 2 * _MARGIN
    longest = max((result.best.kernel for result in results if result.boots), default=1_000_000)
    step = next(step for step in (0.5, 1, 2, 5, 10, 20, 50, 100, 1e9) if longest / 1e6 / step <= 8)
    scale = _WIDTH / longest
    top = 74
    bottom = top + _ROW * len(results)
    width, height = left + _WIDTH + 240, bottom + (62 if note else 44)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        caption(_MARGIN, 24, printable(title), size=15),
    ]
    used = {colour for result in results for _, colour in _pieces(result)}
    place = float(_MARGIN)
    for colour, label in _LEGEND:
        if colour in used:
            parts.append(box(place, 40, 12, 12, colour))
            parts.append(caption(place + 17, 51, label))
            place += 17 + len(label) * _CHARACTER + 16
    for number in range(int(longest / 1e6 / step) + 1):
        across = left + number * step * 1e6 * scale
        parts.append(
            f'<line x1="{across:.1f}" y1="{top - 8}" x2="{across:.1f}" y2="{bottom}" stroke="#dddddd"/>'
        )
        parts.append(caption(across, bottom + 16, f"{number * step:g} s", anchor="middle"))
    for number, (name, result) in enumerate(zip(names, results, strict=True)):
        upper = top + _ROW * number
        base = upper + _BAR - 5
        parts.append(caption(left - 8, base, name, anchor="end"))
        start = 0
        for length, colour in _pieces(result):
            parts.append(box(left + start * scale, upper, length * scale, _BAR, colour))
            start += length
        words = _words(result) if result.boots else f"did not boot: {_first_line(result.failure)}"
        parts.append(caption(left + start * scale + 8, base, words))
    if note:
        parts.append(caption(_MARGIN, height - 14, printable(note), size=10))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _pieces(result: Result) -> list[tuple[int, str]]:
    """The pieces of a bar, in microseconds."""
    if not result.boots:
        return []
    best = result.best
    pieces = [(best.kernel - best.initramfs, KERNEL)]
    if best.mounted is None or not 0 <= best.mounted <= best.initramfs:
        return [*pieces, (best.initramfs, UNTOLD)]
    return [*pieces, (best.mounted, SEARCH), (best.initramfs - best.mounted, HANDOVER)]


def _words(result: Result) -> str:
    words = f"{result.best.kernel / 1e6:.2f} s, of it {result.best.initramfs / 1e6:.2f}"
    words += f"; {result.packed / 1e6:.1f} MB"
    return words + (f", {result.memory} MiB" if result.memory else "")


def _first_line(text: str) -> str:
    line = printable(text.strip().split("\n")[0])
    return line if len(line) <= 90 else f"{line[:89]}…"


def box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def caption(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
    return f"<text {place}>{escape(text)}</text>"
