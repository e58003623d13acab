"""The VGA screen of a running machine: a picture, and the text that stands on it.

Text is read from the memory of the VGA, where a kernel without a graphics driver keeps it: two bytes for each
place, the character's position in the font and its colours (Documentation/admin-guide/vga-softcursor.rst).
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyinit_qemu.timing import Timeout
from pyinit_qemu.verdict import MachineError

if TYPE_CHECKING:
    from collections.abc import Collection

    from pyinit_qemu.machine import Machine

COLUMNS, ROWS = 80, 25

_MEMORY = 0xB8000
_SIZE = 0x8000
# Ports of the VGA: an index is written to the first, the register is then behind the second.
_CRTC, _GRAPHICS = 0x3D4, 0x3CE
_START_HIGH, _START_LOW = 0x0C, 0x0D
_MISCELLANEOUS = 0x06


def decode(memory: bytes, start: int = 0) -> str:
    """Return the screen's text: its lines, without blanks at their ends and without empty lines below.

    ``memory`` is all of the text mode's 32 KiB, ``start`` the place (of two bytes) of the upper left corner.
    Control characters are the symbols that the font has there; what is no text at all never raises.
    """
    places = len(memory) // 2
    if not places:
        return ""
    lines = []
    for row in range(ROWS):
        codes = bytes(memory[2 * ((start + row * COLUMNS + column) % places)] for column in range(COLUMNS))
        line = "".join(
            _LOW[code] if code < 32 else chr(code) if code < 127 else _HIGH[code] for code in codes
        )
        lines.append(line.rstrip())
    return "\n".join(lines).rstrip("\n")


# Code page 437 as the VGA has it; what it shows for control characters is not in Python's codec.
_LOW = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"
_HIGH = {code: "⌂" if code == 127 else bytes([code]).decode("cp437") for code in range(127, 256)}


class Screen:
    """The screen of a machine with ``vga=True``."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def png(self, path: Path | str) -> None:
        """Write a picture of it to a PNG file."""
        self._machine.qmp("screendump", filename=os.path.abspath(path), format="png")

    def text(self) -> str:
        """Return the text that stands on it (:func:`decode`).

        MachineError when a graphics driver has it: then there are only pictures.
        """
        running = self._machine.qmp("query-status")["running"]
        # The guest must not use the registers in between.
        self._machine.qmp("stop")
        try:
            if self._register(_GRAPHICS, _MISCELLANEOUS) & 1:
                raise MachineError(
                    "the screen is in a graphics mode, whose text cannot be read: leave out the graphics "
                    "driver (nomodeset), or take a picture"
                )
            start = self._register(_CRTC, _START_HIGH) << 8 | self._register(_CRTC, _START_LOW)
            with tempfile.NamedTemporaryFile(prefix="pyinit-screen-") as file:
                self._machine.qmp("pmemsave", val=_MEMORY, size=_SIZE, filename=file.name)
                return decode(Path(file.name).read_bytes(), start)
        finally:
            if running:
                self._machine.qmp("cont")

    def wait_for(
        self,
        pattern: str | re.Pattern[str],
        timeout: float | Timeout = Timeout.BOOT,
        *,
        allow: Collection[str] = (),
    ) -> re.Match[str]:
        """Wait until its text has a match. Ends as waits for the console do."""
        regex = re.compile(pattern, re.MULTILINE) if isinstance(pattern, str) else pattern
        return self._machine.poll(
            f"/{regex.pattern}/ on the screen", lambda: regex.search(self.text()), timeout, allow=allow
        )

    def _register(self, port: int, index: int) -> int:
        before = self._read(port)
        self._command(f"o /b {port:#x} {index:#x}")
        value = self._read(port + 1)
        self._command(f"o /b {port:#x} {before:#x}")
        return value

    def _read(self, port: int) -> int:
        answer = self._command(f"i /b {port:#x}")
        found = re.search(r"=\s*(0x[0-9a-f]+)", answer)
        if found is None:
            raise MachineError(f"QEMU does not tell what port {port:#x} has: {answer.strip()!r}")
        return int(found[1], 16)

    def _command(self, line: str) -> str:
        words: dict[str, Any] = {"command-line": line}
        return str(self._machine.qmp("human-monitor-command", **words))
