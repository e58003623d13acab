"""A guest's console as text that can be searched while it grows."""

from __future__ import annotations

import codecs
import re
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class FailurePattern:
    """A line that means that the boot went wrong, whatever was being waited for."""

    name: str
    regex: re.Pattern[str]


@dataclass(frozen=True)
class Failure:
    """A failure pattern that was seen, or a ``failure`` frame of the result channel."""

    name: str
    line: str
    start: int
    """Where in the console's text."""


FAILURES: tuple[FailurePattern, ...] = (
    FailurePattern("no-root", re.compile(r"VFS: Unable to mount root fs|Unable to mount root")),
    FailurePattern("panic", re.compile(r"Kernel panic|not syncing:")),
    FailurePattern("oops", re.compile(r"\bOops: |\bBUG: unable to handle|\bBUG: kernel NULL pointer")),
    FailurePattern("traceback", re.compile(r"Traceback \(most recent call last\):")),
    FailurePattern("banner", re.compile(r"^(?:\[[ .0-9]+\] )?(?:pyinit: )?E-[A-Z]{2,9} \S")),
)
"""What ends a wait at once unless its name is allowed. Names: ``no-root``, ``panic``, ``oops``,
``traceback``, ``banner`` (pyinit's explanation of a failure)."""


class Cleaner:
    """Raw bytes of a terminal line into plain text, whatever pieces they come in.

    Escape sequences (ECMA-48) and control characters are dropped, any number of carriage returns before a
    line feed with it makes one end of line, and so does a carriage return alone (a progress line that draws
    over itself becomes one line a state). Bytes that are not UTF-8 become U+FFFD.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._state = "text"
        self._returned = False
        self._in_line = False

    def feed(self, data: bytes) -> str:
        return self._clean(self._decoder.decode(data))

    def close(self) -> str:
        """Return what is left when no more bytes come."""
        return self._clean(self._decoder.decode(b"", final=True))

    def _clean(self, text: str) -> str:
        out: list[str] = []
        position = 0
        while position < len(text):
            if self._state == "text":
                match = _PLAIN.match(text, position)
                assert match is not None
                if match.end() > position:
                    if self._returned and self._in_line:
                        out.append("\n")
                    self._returned, self._in_line = False, True
                    out.append(match[0])
                    position = match.end()
                    continue
            character = text[position]
            if self._escape(character):
                position += 1
                continue
            # Not (or no longer) part of an escape sequence.
            position += 1
            if character == "\r":
                self._returned = True
            elif character == "\n":
                self._returned = self._in_line = False
                out.append("\n")
        return "".join(out)

    def _escape(self, character: str) -> bool:
        """Advance the escape sequence; False: the character is not part of one."""
        code = ord(character)
        if character == "\x1b":
            self._state = "string-escape" if self._state == "string" else "escape"
            return True
        match self._state:
            case "text":
                return False
            case "escape":
                if character == "[":
                    self._state = "csi"
                elif character in "]PX^_":
                    self._state = "string"
                elif 0x20 <= code <= 0x2F:
                    self._state = "intermediate"
                else:
                    self._state = "text"
                    return code >= 0x20
                return True
            case "csi" | "intermediate":
                low = 0x40 if self._state == "csi" else 0x30
                if not 0x20 <= code < low:
                    self._state = "text"
                    return low <= code <= 0x7E
                return True
            case "string":
                if character == "\x07":
                    self._state = "text"
                    return True
                if character == "\n":  # no terminal's string has one: a sequence that was cut off
                    self._state = "text"
                    return False
                return True
            case _:  # string-escape
                if character == "\\":
                    self._state = "text"
                    return True
                self._state = "escape"
                return self._escape(character)


_MORE = ("a", "0", " ", "\n", "-", ".", "=", "]")
"""What a console may say next: one of each kind of character that patterns tell apart."""

_PLAIN = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f-\x9f]*")


class Console:
    """The text so far, its lines with the time they came, a cursor, and the failures seen.

    ``clock`` gives seconds since power on.
    """

    def __init__(
        self,
        patterns: Iterable[FailurePattern] = FAILURES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.text = ""
        self.cursor = 0
        self.lines: list[tuple[float, str]] = []
        self.failures: list[Failure] = []
        self._patterns = tuple(patterns)
        self._clock = clock
        self._cleaner = Cleaner()
        self._line_start = 0

    def feed(self, data: bytes) -> str:
        """Take raw bytes; return them as plain text."""
        return self._add(self._cleaner.feed(data))

    def close(self) -> None:
        """Say that no more bytes come: the last line is complete as it is."""
        self._add(self._cleaner.close())
        if self._line_start < len(self.text):
            self._end_line(len(self.text))

    def _add(self, text: str) -> str:
        scan = len(self.text)
        self.text += text
        while (end := self.text.find("\n", scan)) >= 0:
            self._end_line(end)
            scan = self._line_start = end + 1
        return text

    def _end_line(self, end: int) -> None:
        line = self.text[self._line_start : end]
        self.lines.append((self._clock(), line))
        for pattern in self._patterns:
            match = pattern.regex.search(line)
            if match is not None:
                self.failures.append(Failure(pattern.name, line, self._line_start + match.start()))
                break

    def search(self, pattern: re.Pattern[str], *, growing: bool = False) -> re.Match[str] | None:
        """Look for ``pattern`` from the cursor on; the cursor stays.

        ``growing``: more bytes may be on their way, so a match that they would make another one does not
        count yet. Without it what ``\\S+`` matches would depend on the pieces that the console comes in.
        """
        match = pattern.search(self.text, self.cursor)
        if match is None or not growing or match.end() < len(self.text):
            return match
        for more in _MORE:
            later = pattern.search(self.text + more, self.cursor)
            if later is None or later.span() != match.span():
                return None
        return match

    def fail(self, name: str, match: re.Match[str]) -> None:
        """Take what matched for a failure, in its place among the others."""
        start, end = self.text.rfind("\n", 0, match.start()) + 1, self.text.find("\n", match.end())
        line = self.text[start : end if end >= 0 else len(self.text)]
        found = Failure(name, line, match.start())
        if found not in self.failures:
            self.failures.append(found)
            self.failures.sort(key=lambda failure: failure.start)

    def failure(self, allow: Collection[str] = (), before: int | None = None) -> Failure | None:
        """Return the first failure from the cursor on (and before an offset), names in ``allow`` aside."""
        for failure in self.failures:
            if failure.start >= self.cursor and failure.name not in allow:
                return failure if before is None or failure.start < before else None
        return None

    def tail(self, count: int = 40) -> str:
        """Return the last lines, each with its time, for a report."""
        lines = [f"[{when:9.3f}] {line}" for when, line in self.lines[-count:]]
        rest = self.text[self._line_start :] if not self.text.endswith("\n") else ""
        if rest and (not self.lines or self.lines[-1][1] != rest):
            lines.append(f"[{'':9}] {rest}")
        return "\n".join(lines[-count:])
