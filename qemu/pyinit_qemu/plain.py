"""Frames in the form that a shell or ten lines of C can send.

A plain frame is one line, ``pyinit <length> <sum> <number> <kind> [<key>=<value>]...``. Its text is what
follows the sum: words of printable ASCII with one space between them, other bytes and ``%`` written as ``%``
and two hexadecimal digits (RFC 3986, section 2.1; a shell also writes ``\\`` so, which its ``echo`` may
interpret). The length is that of the text in bytes, the sum its Adler-32 (RFC 1950, section 8), both in
decimal; the number counts a sender's frames from 1.

Why these checks: a shell can do them with built-ins alone, and what a serial line does is noticed for sure.
Lost or added bytes change the length. One changed byte changes the line's form, or one of length, sum and
text and so their agreement. Two changed bytes of a text change its sum, which is made of the sum of all bytes
and the sum of each byte times its place, both modulo the prime 65521: two changes that cancel out in the
first differ in the second by a change (below 256) times a distance (below 65521 in a text that is shorter),
which is no multiple of the prime. For the same reason two bytes that changed places are noticed. Lost lines
leave a gap in the numbers. More changes can pass: of texts that are changed at random one in as many as there
are sums for texts of their length, some hundred million for a line of 40 bytes.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote_from_bytes, unquote_to_bytes

PREFIX = b"pyinit "

_LINE = re.compile(rb"pyinit (0|[1-9][0-9]{0,8}) (0|[1-9][0-9]{0,9}) (.*)", re.DOTALL)
_WORD = rb"(?:[!-$&-~]|%[0-9A-Fa-f]{2})"
_TEXT = re.compile(rb"([1-9][0-9]{0,8}) ([A-Za-z0-9_.-]+)((?: [A-Za-z_][A-Za-z0-9_.-]*=" + _WORD + rb"*)*)")
_KIND = re.compile(r"[A-Za-z0-9_.-]+")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")

# Printable ASCII without space, % and \ (what quote_from_bytes never writes otherwise is left out).
_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in "%\\")


@dataclass(frozen=True)
class Plain:
    """A plain frame that arrived whole."""

    number: int
    """Which of its sender's frames it is, from 1."""
    frame: dict[str, str]
    """``kind`` and the values; bytes that are not UTF-8 have become U+FFFD."""


def encode(number: int, kind: str, values: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of one line, as ``report.sh`` and ``report.h`` send them.

    A kind or a key that is no word, and the key ``kind``, raise ValueError.
    """
    if not _KIND.fullmatch(kind):
        raise ValueError(f"kind {kind!r} is not made of letters, digits, _, . and -")
    words = [str(number), kind]
    for key, value in (values or {}).items():
        if not _KEY.fullmatch(key) or key == "kind":
            raise ValueError(f"{key!r} cannot be a key of a plain frame")
        words.append(f"{key}={quote_from_bytes(value.encode('utf-8', 'surrogateescape'), _SAFE)}")
    text = " ".join(words).encode("ascii")
    return PREFIX + b"%d %d %s\n" % (len(text), zlib.adler32(text), text)


def parse(line: bytes) -> Plain | str:
    """Read one line, given without its end; what is no whole plain frame gives the reason in words."""
    match = _LINE.fullmatch(line)
    if match is None:
        return "not a frame"
    length, checksum, text = int(match[1]), int(match[2]), match[3]
    if length != len(text):
        return f"{len(text)} bytes where {length} were announced"
    if checksum != zlib.adler32(text):
        return "wrong checksum"
    words = _TEXT.fullmatch(text)
    if words is None:
        return "not a number, a kind and key=value words"
    frame = {"kind": words[2].decode("ascii")}
    for word in words[3].split():
        key, _, value = word.partition(b"=")
        name = key.decode("ascii")
        if name in frame:
            return f"{name} is given twice"
        frame[name] = unquote_to_bytes(value).decode("utf-8", "replace")
    return Plain(int(words[1]), frame)
