"""A line as a person types it: the editing that a terminal driver does, for terminals that do none."""

from __future__ import annotations

MAX_LINE = 4096
_ENTER, _END = b"\r\n", 0x04
_ERASE, _KILL, _CANCEL = b"\x08\x7f", 0x15, 0x03
_ESCAPE = 0x1B


class Line:
    """The bytes typed so far.

    Backspace takes the last character away (of UTF-8 all its bytes), Ctrl-U all; Ctrl-C gives the line up,
    and so does Ctrl-D when it is empty. Keys that send escape sequences have no effect. What does not fit is
    dropped, and the line counts as too long.
    """

    def __init__(self, *, secret: bool, limit: int = MAX_LINE) -> None:
        self.state = "open"
        """``open``, ``done``, ``cancelled`` or ``too long``."""
        self._secret = secret
        # Never resized: a buffer that grows leaves its content behind in memory that was freed.
        self._typed = bytearray(limit)
        self._length = 0
        self._overflow = False
        self._escape = b""

    def feed(self, data: bytes | bytearray) -> tuple[bytes, int]:
        """Take what was typed; returns what to echo, and how many bytes were taken up to the line's end."""
        echo = bytearray()
        for position, byte in enumerate(data, 1):
            if self._escape:
                self._follow_escape(byte)
            elif byte in _ENTER:
                self.state = "too long" if self._overflow else "done"
            elif byte == _CANCEL or (byte == _END and not self._length):
                self.state = "cancelled"
            elif byte in _ERASE:
                echo += self._erase(1)
            elif byte == _KILL:
                echo += self._erase(self._length)
                self._overflow = False
            elif byte == _ESCAPE:
                self._escape = b"\x1b"
            elif byte >= 0x20:
                echo += self._add(byte)
            if self.state != "open":
                return bytes(echo) + b"\n", position
        return bytes(echo), len(data)

    def shown(self) -> bytes:
        """What a terminal shows of the line, to show it once more."""
        # Not a slice of the buffer itself: that is a copy of the secret.
        return b"".join(map(self._echo, memoryview(self._typed)[: self._length]))

    def take(self) -> bytearray:
        """The bytes that were typed, for the caller to use and to :func:`wipe`; the line is wiped."""
        value = self._typed[: self._length]
        self.wipe()
        return value

    def wipe(self) -> None:
        """Overwrite what was typed."""
        wipe(self._typed)
        self._length = 0

    def _add(self, byte: int) -> bytes:
        if self._length == len(self._typed):
            self._overflow = True
            return b""
        self._typed[self._length] = byte
        self._length += 1
        return self._echo(byte)

    def _echo(self, byte: int) -> bytes:
        if byte & 0xC0 == 0x80:
            return b""  # Not the first byte of a character in UTF-8.
        if self._secret:
            return b"*"
        return bytes((byte,)) if byte <= 0x7E else b"?"

    def _erase(self, count: int) -> bytes:
        shown = 0
        while count and self._length:
            self._length -= 1
            byte, self._typed[self._length] = self._typed[self._length], 0
            count -= 1
            if byte & 0xC0 == 0x80 and self._length:
                count += 1
            else:
                shown += 1
        return b"\b \b" * shown

    def _follow_escape(self, byte: int) -> None:
        # ECMA-48, 5.4: CSI, parameter and intermediate bytes up to a final byte; SS3 has one byte behind it.
        if self._escape == b"\x1b" and byte in b"[O":
            self._escape += bytes((byte,))
        elif self._escape != b"\x1b[" or 0x40 <= byte <= 0x7E:
            self._escape = b""


def wipe(secret: bytearray) -> None:
    """Overwrite a secret where it lies."""
    secret[:] = bytes(len(secret))
