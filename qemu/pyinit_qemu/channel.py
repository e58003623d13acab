"""The result channel: frames that a guest sends over its second serial port.

A frame is ``<length> <crc32> <json>\\n``: the number of JSON bytes in decimal, their CRC-32 as 8 lower-case
hexadecimal digits, and one JSON object in ASCII with a string member ``kind``. Beside this form there is one
for senders that have neither JSON nor CRC-32 (:mod:`pyinit_qemu.plain`). The guest's tty may end a line with
``\\r\\n``. The last frame has kind ``done``: a channel that ends without it was cut off. As a newline never
occurs inside a frame, whatever is damaged costs its own line only.

What is noticed: a channel that was cut anywhere; any one changed byte, and any bytes that were lost or added
inside of a line; plain frames that were lost whole. What is not: frames in JSON that were lost whole, as they
have no numbers, and the last plain frames of a sender that another one follows.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyinit_qemu import plain

Frame = Mapping[str, Any]

DONE = "done"

MAX_LINE = 16 << 20
"""Bytes after which a line without an end is given up; a boot record has some 100 KiB."""

_FRAME = re.compile(rb"(0|[1-9][0-9]{0,8}) ([0-9a-f]{8}) (.*)", re.DOTALL)


@dataclass(frozen=True)
class Damage:
    """A line of the channel that is no frame."""

    reason: str
    line: bytes
    """Its first 200 bytes, as they came. Show them only through ``repr``."""

    def __str__(self) -> str:
        return f"{self.reason}: {self.line!r}"


def encode(frame: Frame) -> bytes:
    """Return ``frame`` as the bytes of one line. A frame without a string ``kind`` raises ValueError."""
    if not isinstance(frame.get("kind"), str):
        raise ValueError("a frame needs a string member 'kind'")
    body = json.dumps(dict(frame), ensure_ascii=True, separators=(",", ":")).encode("ascii")
    return b"%d %08x %s\n" % (len(body), zlib.crc32(body), body)


def parse_line(line: bytes) -> Frame | Damage:
    """Read one line of either form, given without its end."""
    if line.startswith(plain.PREFIX):
        found = plain.parse(line)
        return _damage(found, line) if isinstance(found, str) else found.frame
    match = _FRAME.fullmatch(line)
    if match is None:
        return _damage("not a frame", line)
    length, checksum, body = int(match[1]), int(match[2], 16), match[3]
    if length != len(body):
        return _damage(f"{len(body)} bytes where {length} were announced", line)
    if checksum != zlib.crc32(body):
        return _damage("wrong checksum", line)
    try:
        value = json.loads(body.decode("ascii"))
    except (ValueError, RecursionError) as error:
        return _damage(f"not JSON ({error})", line)
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        return _damage("not an object with a kind", line)
    return value


def _damage(reason: str, line: bytes) -> Damage:
    return Damage(reason, line[:200])


class Decoder:
    """Bytes in, frames and damage out, however the bytes are cut into pieces."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._skipping = False
        self._number = 0

    def feed(self, data: bytes) -> list[Frame | Damage]:
        """Take the next bytes; return what they completed, in order. Blank lines are passed over."""
        found: list[Frame | Damage] = []
        *ended, rest = data.split(b"\n")
        for piece in ended:
            self._take(piece, found)
            line = bytes(self._pending).rstrip(b"\r")
            self._pending.clear()
            if line and not self._skipping:
                found += self._read(line)
            self._skipping = False
        self._take(rest, found)
        return found

    def _read(self, line: bytes) -> list[Frame | Damage]:
        sent = plain.parse(line)
        if isinstance(sent, str):
            return [parse_line(line)]
        expected, self._number = self._number + 1, sent.number
        # Number 1 is the first of a new sender: a shell that took over from another.
        if sent.number in (1, expected):
            return [sent.frame]
        return [_damage(f"frame {sent.number} where {expected} was due", line), sent.frame]

    def _take(self, piece: bytes, found: list[Frame | Damage]) -> None:
        if self._skipping:
            return
        self._pending += piece
        if len(self._pending) > MAX_LINE:
            found.append(_damage(f"a line of more than {MAX_LINE} bytes", bytes(self._pending[:200])))
            self._pending.clear()
            self._skipping = True

    def close(self) -> list[Frame | Damage]:
        """Say that no more bytes come; a last line without an end is damage."""
        rest = bytes(self._pending).rstrip(b"\r")
        self._pending.clear()
        return [_damage("cut off inside a line", rest)] if rest and not self._skipping else []


@dataclass
class Frames:
    """All that came over one channel."""

    items: list[Frame] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)
    _decoder: Decoder = field(default_factory=Decoder, repr=False)

    def feed(self, data: bytes) -> list[Frame]:
        """Take the next bytes; return the frames that they completed."""
        return self._sort(self._decoder.feed(data))

    def close(self) -> None:
        """Say that no more bytes come."""
        self._sort(self._decoder.close())

    def _sort(self, found: list[Frame | Damage]) -> list[Frame]:
        frames: list[Frame] = []
        for item in found:
            if isinstance(item, Damage):
                self.damage.append(item)
            elif self.done:
                self.damage.append(_damage("a frame after the last one", encode(item)))
            else:
                self.items.append(item)
                frames.append(item)
        return frames

    @property
    def done(self) -> bool:
        """Whether the channel was ended by its last frame."""
        return bool(self.items) and self.items[-1]["kind"] == DONE

    def of_kind(self, kind: str) -> list[Frame]:
        return [frame for frame in self.items if frame["kind"] == kind]
