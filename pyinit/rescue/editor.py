"""A line as a person edits it: cursor keys, history, search, completion. Pure: keys in, what to show out.

The keys are those of Emacs, which every shell has, and what the terminals of the world send for the others
(ECMA-48; terminfo(5), user_caps(5)). The line stays on one line of the screen: a longer one is scrolled.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable

MAX_LINE = 4000
"""Characters; the kernel takes 4095 bytes as a line (termios(3), canonical mode)."""
MAX_HISTORY = 500

_ROOM = 20
"""Columns that a line has at least behind its prompt."""
_MANY = 200
"""Words that are shown of those that could be meant."""

Completer = Callable[[str], tuple[int, list[str]]]
"""Takes what stands before the cursor; returns where the word begins, and what it could be."""

_ESCAPE = "\x1b"
# ECMA-48, 5.4: CSI, parameter and intermediate bytes, a final byte. SS3 has one byte behind it.
_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O[ -~]|[^\[O\x1b])")
_UNFINISHED = re.compile(r"\x1b(?:\[[0-?]{0,16}[ -/]?|O)?\Z")
_COLOURS = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")

# What terminals send for a key: application mode and not, the kernel's own, xterm, rxvt.
_NAMES = {
    "up": "[A OA",
    "down": "[B OB",
    "right": "[C OC",
    "left": "[D OD",
    "home": "[H OH [1~ [7~",
    "end": "[F OF [4~ [8~",
    "delete": "[3~",
    "word-left": "[1;5D [5D Od b B [1;3D",
    "word-right": "[1;5C [5C Oc f F [1;3C",
    "kill-word": "d D",
    "rub-part": "\x7f \x08",
    "last-word": ". _",
}
_SEQUENCES = {f"\x1b{keys}": name for name, found in _NAMES.items() for keys in found.split(" ")}
_CONTROLS = {
    "\x01": "home",
    "\x02": "left",
    "\x04": "end-of-file",
    "\x05": "end",
    "\x06": "right",
    "\x07": "give-up",
    "\x08": "rub",
    "\t": "complete",
    "\n": "enter",
    "\x0b": "kill-end",
    "\x0c": "clear",
    "\r": "enter",
    "\x0e": "down",
    "\x10": "up",
    "\x12": "search",
    "\x14": "swap",
    "\x15": "kill-start",
    "\x17": "rub-word",
    "\x19": "yank",
    "\x7f": "rub",
}


_NOT_SECRET = ("complete", "search", "up", "down", "last-word", "yank")
"""Keys that would show something, or put something else into a password."""


class Editor:
    """The line, its history, and what of it stands on the screen."""

    def __init__(self, complete: Completer | None = None) -> None:
        self.text = ""
        self.cursor = 0
        self.history: list[str] = []
        self.columns = 80
        self.secret = False
        """Nothing of the line is shown or remembered."""
        self.complete = complete
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._pending = ""
        """The start of an escape sequence."""
        self._killed = ""
        self._place = -1
        """Where in the history the line came from; -1: it is new."""
        self._kept = ""
        """The new line, while others are looked at."""
        self._search: str | None = None
        self._left = 0
        """The first character in sight of a line that is longer than the screen is wide."""
        self._prompt = ""
        self._drawn = ""
        """What stands on the line of the screen."""
        self._drawn_cursor = 0

    def decode(self, data: bytes) -> str:
        """What was typed, as text for :meth:`feed`; the rest of a character comes with the next bytes."""
        return self._decoder.decode(data)

    def feed(self, text: str) -> tuple[str, str, str]:
        """Take what was typed, up to the first key that ends a line.

        Returns what to show, how it ended (``line``, ``end-of-file``, or empty when all was taken), and what
        was typed behind it. The line is :attr:`text` until :meth:`begin`.
        """
        out = ""
        text, self._pending = self._pending + text, ""
        while text:
            if match := _SEQUENCE.match(text):
                text = text[match.end() :]
                out += self._press(_SEQUENCES.get(match[0], ""), "")
                continue
            if _UNFINISHED.match(text):
                self._pending = text
                break
            character, text = text[0], text[1:]
            name = _CONTROLS.get(character, "")
            if name == "enter":
                return out + self._finish(), "line", text
            if name == "end-of-file" and not self.text:
                return out, "end-of-file", text
            out += self._press(name, character if character >= " " and character != "\x7f" else "")
        return out + self.draw(), "", ""

    def begin(self) -> None:
        """Start a new line, behind nothing."""
        self.text, self.cursor, self._place, self._kept, self._search = "", 0, -1, "", None
        self._left, self._prompt, self._drawn, self._drawn_cursor = 0, "", "", 0

    def take(self) -> str:
        """What was typed so far, for somebody who takes every key; the line is empty then."""
        text, self._pending = self.text + self._pending, ""
        self.begin()
        return text

    def remember(self, line: str) -> None:
        """Put a line into the history, if it says something new."""
        if line.strip() and not self.secret and self.history[-1:] != [line]:
            self.history.append(line)
            del self.history[:-MAX_HISTORY]

    def output(self, text: str, *, waiting: bool) -> str:
        """What to show so that ``text``, which a program wrote, stands before the line.

        ``waiting``: who reads the line has asked for it, so it is somebody else's text, and goes above all.
        """
        out, kept = "", ""
        if self._drawn != self._prompt:
            if waiting:
                out, kept, self._prompt = "\r\x1b[K", self._prompt, ""
            else:
                out = f"\r{self._prompt}\x1b[K"
        head, newline, tail = text.rpartition("\n")
        self._prompt = (tail if newline else self._prompt + tail).rpartition("\r")[2] or kept
        if _width(self._prompt) > self.columns - _ROOM:
            # Too long to be repeated: the line is edited where it stands.
            self._prompt = ""
        if self._prompt == kept and waiting:
            self._drawn, self._drawn_cursor = "", 0
        else:
            self._drawn, self._drawn_cursor = self._prompt, len(self._prompt)
        return out + text + self.draw()

    def draw(self) -> str:
        """What brings the screen up to date."""
        if self.secret:
            return ""
        if self._search is None:
            prompt, cursor = self._prompt, self.cursor
        else:
            prompt, cursor = f"(search) {_shown(self._search)}: ", len(self.text)
        room = max(_ROOM // 2, self.columns - 1 - _width(prompt))
        self._left = min(self._left, cursor, max(0, len(self.text) - room))
        self._left = max(self._left, cursor - room)
        window = _shown(self.text[self._left : self._left + room])
        whole, place = prompt + window, len(prompt) + cursor - self._left
        drawn, at = self._drawn, self._drawn_cursor
        self._drawn, self._drawn_cursor = whole, place
        if whole == drawn and min(at, place) >= len(prompt):
            return _move(place - at)
        if whole.startswith(drawn) and at == len(drawn):
            return whole[len(drawn) :] + _move(place - len(whole))
        return f"\r{whole}\x1b[K" + _move(place - len(whole))

    def _finish(self) -> str:
        """Show all of the line, and go below it."""
        self._search = None
        self.cursor = len(self.text)
        out = self.draw()
        if self._left and not self.secret:
            out += f"\r\x1b[K{self._prompt}{_shown(self.text)}"
        return out + "\r\n"

    def _press(self, name: str, character: str) -> str:
        """One key: its name, or the character that it stands for. Returns what to show beside the line."""
        if self.secret and name in _NOT_SECRET:
            return ""
        if self._search is not None:
            if self._in_search(name, character):
                return ""
            self._search = None
        if character and not name:
            if len(self.text) < MAX_LINE:
                self._insert(character)
        elif name == "complete":
            return self._complete()
        elif name == "clear":
            self._drawn, self._drawn_cursor = "", 0
            return "\x1b[H\x1b[2J"
        elif name == "search":
            self._search = ""
        else:
            self._edit(name)
        return ""

    def _edit(self, name: str) -> None:
        text, cursor = self.text, self.cursor
        match name:
            case "left":
                self.cursor = max(0, cursor - 1)
            case "right":
                self.cursor = min(len(text), cursor + 1)
            case "home":
                self.cursor = 0
            case "end":
                self.cursor = len(text)
            case "word-left":
                self.cursor = _word_start(text, cursor)
            case "word-right":
                self.cursor = _word_end(text, cursor)
            case "rub" if cursor:
                self._cut(cursor - 1, cursor)
            case "delete" | "end-of-file":
                self._cut(cursor, cursor + 1)
            case "kill-end":
                self._killed = self._cut(cursor, len(text))
            case "kill-start":
                self._killed = self._cut(0, cursor)
            case "rub-word":
                self._killed = self._cut(_word_start(text, cursor, blanks=True), cursor)
            case "rub-part":
                self._killed = self._cut(_word_start(text, cursor), cursor)
            case "kill-word":
                self._killed = self._cut(cursor, _word_end(text, cursor))
            case "yank":
                self._insert(self._killed[: MAX_LINE - len(text)])
            case "swap" if cursor > 0 and len(text) > 1:
                cursor -= cursor == len(text)
                self.text = text[: cursor - 1] + text[cursor] + text[cursor - 1] + text[cursor + 1 :]
                self.cursor = cursor + 1
            case "up":
                self._go(-1)
            case "down":
                self._go(1)
            case "last-word" if self.history:
                self._insert(self.history[-1].split()[-1])

    def _insert(self, text: str) -> None:
        self.text = self.text[: self.cursor] + text + self.text[self.cursor :]
        self.cursor += len(text)

    def _cut(self, start: int, end: int) -> str:
        cut = self.text[start:end]
        self.text, self.cursor = self.text[:start] + self.text[end:], start
        return cut

    def _go(self, step: int) -> None:
        """To the line before or behind in the history; behind the last one is the line that was new."""
        place = (len(self.history) if self._place < 0 else self._place) + step
        if not 0 <= place <= len(self.history):
            return
        if self._place < 0:
            self._kept = self.text
        self._place = place if place < len(self.history) else -1
        self.text = self._kept if self._place < 0 else self.history[place]
        self.cursor = len(self.text)

    def _in_search(self, name: str, character: str) -> bool:
        """A key while the history is searched; False when it ends the search and is one of the line's."""
        assert self._search is not None
        before = len(self.history) if self._place < 0 else self._place
        if character and not name:
            self._search += character
            before += 1
        elif name == "rub":
            self._search = self._search[:-1]
            before = len(self.history)
        elif name == "give-up":
            self._search, self._place, self.text = None, -1, ""
            self.cursor = 0
            return True
        elif name != "search":
            self.cursor = len(self.text)
            return False
        for place in range(min(before, len(self.history)) - 1, -1, -1):
            if self._search in self.history[place]:
                self._place, self.text = place, self.history[place]
                break
        self.cursor = len(self.text)
        return True

    def _complete(self) -> str:
        if self.complete is None:
            self._insert("    ")
            return ""
        start, words = self.complete(self.text[: self.cursor])
        common = _common_start(words)
        typed = self.text[start : self.cursor]
        if len(common) > len(typed) or len(words) == 1:
            closed = len(words) == 1 and not common.endswith(("/", "="))
            self._cut(start, self.cursor)
            self._insert(common + (" " if closed else ""))
            return ""
        if not words:
            return "\a"
        self._drawn, self._drawn_cursor = "", 0
        return "\r\n" + "".join(f"{row}\r\n" for row in _rows(words[:_MANY], self.columns))


def _rows(words: list[str], columns: int) -> list[str]:
    """Words as a table, read downwards."""
    width = max(map(len, words)) + 2
    across = max(1, (columns - 1) // width)
    down = -(-len(words) // across)
    return ["".join(f"{_shown(word):<{width}}" for word in words[row::down]).rstrip() for row in range(down)]


def _common_start(words: list[str]) -> str:
    if not words:
        return ""
    low, high = min(words), max(words)
    for place, character in enumerate(low):
        if high[place : place + 1] != character:
            return low[:place]
    return low


def _word_start(text: str, cursor: int, *, blanks: bool = False) -> int:
    while cursor and not _in_word(text[cursor - 1], blanks):
        cursor -= 1
    while cursor and _in_word(text[cursor - 1], blanks):
        cursor -= 1
    return cursor


def _word_end(text: str, cursor: int) -> int:
    while cursor < len(text) and not _in_word(text[cursor], False):
        cursor += 1
    while cursor < len(text) and _in_word(text[cursor], False):
        cursor += 1
    return cursor


def _in_word(character: str, blanks: bool) -> bool:
    return character != " " if blanks else character.isalnum()


def _shown(text: str) -> str:
    """A character for each character: none of them moves the cursor elsewhere."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def _width(prompt: str) -> int:
    return len(_COLOURS.sub("", prompt))


def _move(columns: int) -> str:
    if not columns:
        return ""
    return f"\x1b[{columns}C" if columns > 0 else f"\x1b[{-columns}D"
