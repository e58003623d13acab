"""Frames for whoever watches the boot from outside, on a serial port.

A frame is ``<length> <crc32> <json>\\n``: the length of the JSON in bytes, its CRC-32 as eight hexadecimal
digits, and an object with ``kind`` in ASCII on one line. It works from PID 1's first line on, without a
module.
"""

from __future__ import annotations

import json
import os
from binascii import crc32

from pyinit.kernel.terminal import drain, write_patiently
from pyinit.record import now

# Seconds. The reader may be a busy machine; a frame that is cut off spoils all that follow.
_PATIENCE = 120.0


def frame(kind: str, facts: dict[str, object]) -> bytes:
    """Encode one frame."""
    body = json.dumps({"kind": kind, **facts}, separators=(",", ":")).encode("ascii")
    return b"%d %08x %s\n" % (len(body), crc32(body), body)


class Reporter:
    """Sends frames to a device; without one, or when it fails, it is silent: a boot never depends on it."""

    def __init__(self, device: str = "") -> None:
        self._device = device

    def send(self, kind: str, facts: dict[str, object]) -> None:
        """Send one frame, opening the device anew: it may be another node than before.

        ``at`` is added: microseconds of CLOCK_MONOTONIC.
        """
        if not self._device:
            return
        try:
            fd = os.open(self._device, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError:
            return
        # Only a terminal: a mistyped device name must never be written over.
        if os.isatty(fd):
            # A leading line end closes whatever a firmware or a boot loader left on the line.
            data = b"\n" + frame(kind, {"at": now(), **facts})
            if write_patiently(fd, data, _PATIENCE):
                # Closing gives up what is not sent after 30 s of a clock that may jump (termios(3), tcdrain).
                drain(fd)
            else:
                self._device = ""  # Nobody reads it: it must not cost the next frame as much.
        os.close(fd)
