"""Text that is safe to show on a terminal, whatever a disk or a command line said."""

from __future__ import annotations


def printable(value: str | bytes) -> str:
    """Return ``value`` with every character outside 0x20-0x7e (and the backslash) escaped.

    Labels, partition names, serial numbers and kernel command line words are bytes chosen by whoever made
    the disk or typed the line; printed raw they could drive the terminal (CVE-2024-28085 is the precedent).
    Bytes are shown byte by byte as ``\\xNN``, never decoded; characters that entered a ``str`` through
    surrogateescape are shown as the byte they stand for.
    """
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if value.isascii() and value.isprintable() and "\\" not in value:
        return value
    return "".join(_escape(character) for character in value)


def _escape(character: str) -> str:
    code = ord(character)
    if 0x20 <= code <= 0x7E and character != "\\":
        return character
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
    if code <= 0xFF:
        return "\\\\" if character == "\\" else f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
