"""The kernel command line, split as the kernel splits it (``next_arg()`` in its lib/cmdline.c)."""

from __future__ import annotations

import re
from typing import NamedTuple

# What `pyinit set` writes in the rescue shell; read after the kernel's own line, so its words win.
OVERRIDES = "/run/initramfs/cmdline.d/90-pyinit.conf"

# The kernel's isspace() (lib/ctype.c), which counts byte 0xa0 in. Decoded with surrogateescape that byte is
# U+DCA0 when it stands alone; as the second half of a letter ("à" is c3 a0) it does not split a word here.
_BLANK = " \t\n\v\f\r\udca0"
# Every double quote switches protection of blanks on or off, wherever it stands; one that is never closed
# protects the rest of the line. Compiled when a line has one: that takes longer than all the rest.
_WORD = f'(?:[^"{_BLANK}]|"[^"]*(?:"|\\Z))+'
_TO_SPACES = dict.fromkeys(map(ord, _BLANK), " ")
_FALSE = frozenset(("0", "no", "off"))


class Word(NamedTuple):
    """One word: ``key`` or ``key=value``."""

    key: str
    value: str | None
    """``None`` for a word without ``=``."""
    raw: str
    """The word as it was typed, quotes included. Print it only through :func:`pyinit.text.printable`."""


class CommandLine(NamedTuple):
    """The words of a command line, in order, duplicates kept.

    Bytes that are not UTF-8 are kept by surrogateescape. Keys are compared as they are written: ``-`` and
    ``_`` differ.
    """

    words: tuple[Word, ...]
    init_args: tuple[str, ...]
    """What stood after ``--``: arguments of the real init."""

    def last(self, key: str) -> Word | None:
        """Return the last word with this key, the one that counts."""
        for word in reversed(self.words):
            if word.key == key:
                return word
        return None

    def all(self, key: str) -> list[Word]:
        """Return every word with this key, in order."""
        return [word for word in self.words if word.key == key]

    def text(self, key: str) -> str:
        """Return the value that counts; empty when there is none."""
        word = self.last(key)
        return word.value or "" if word else ""

    def flag(self, key: str, default: bool) -> bool:
        """Read a switch: ``0``, ``no`` and ``off`` are false, any other value and the bare key are true."""
        word = self.last(key)
        return default if word is None else is_on(word)


def is_on(word: Word) -> bool:
    """Return what a word means as a switch (see :meth:`CommandLine.flag`)."""
    return word.value not in _FALSE


def parse(data: bytes) -> CommandLine:
    """Split a command line; any bytes are accepted, nothing is raised.

    As in the kernel: double quotes protect blanks and cannot be escaped; the value loses one layer of quotes,
    or the whole word if it began with one; a NUL ends the line; ``--`` ends the parameters, and a second one
    the arguments of init. The newline that /proc/cmdline puts at the end is not part of the line.
    """
    text = data.partition(b"\0")[0].removesuffix(b"\n").decode("utf-8", "surrogateescape")
    words: list[Word] = []
    init_args: list[str] = []
    dashes = 0
    if '"' in text:
        raw_words = [match[0] for match in re.finditer(_WORD, text)]
    else:
        raw_words = [raw for raw in text.translate(_TO_SPACES).split(" ") if raw]
    for raw in raw_words:
        word = _word(raw)
        if word.key == "--" and word.value is None:
            dashes += 1
            if dashes == 2:
                break
        elif dashes:
            init_args.append(word.key if word.value is None else f"{word.key}={word.value}")
        else:
            words.append(word)
    return CommandLine(tuple(words), tuple(init_args))


def _word(raw: str) -> Word:
    quoted = raw[0] == '"'
    body = raw[1:] if quoted else raw
    # A "=" in front is part of the name: the kernel takes position 0 for "not found".
    equals = body.find("=", 1)
    if equals < 0:
        return Word(body.removesuffix('"') if quoted else body, None, raw)
    key, value = body[:equals], body[equals + 1 :]
    if value.startswith('"'):
        value = value[1:].removesuffix('"')
    elif quoted:
        value = value.removesuffix('"')
    return Word(key, value, raw)
