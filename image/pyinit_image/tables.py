"""The tables in /etc that say what belongs to the root file system: fstab, mdadm.conf.

The parsers take the bytes of a file and never fail: a line that cannot be understood is left out and named
in the warnings, ``line 3: ...``. Text that was not UTF-8 is kept by surrogateescape; print it as foreign
text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pyinit.text import printable

_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")
_WORD = re.compile(rb"""(?:"[^"]*"?|'[^']*'?|[^\s"'])+""")


@dataclass(frozen=True, slots=True)
class Filesystem:
    """One line of fstab(5)."""

    line: int
    """From 1."""
    spec: str
    """What to mount: a device, ``UUID=...``, or whatever the file system calls its source."""
    file: str
    """Where to mount it; ``none`` for swap."""
    type: str
    """The type, several with commas, or ``auto``."""
    options: tuple[str, ...]

    @property
    def is_swap(self) -> bool:
        """Whether the line names swap space."""
        return self.type == "swap"


@dataclass(frozen=True, slots=True)
class Array:
    """One ARRAY line of mdadm.conf(5); what it does not say is empty."""

    line: int
    """Where it starts."""
    device: str
    """``/dev/md0``, ``/dev/md/NAME``, ``NAME`` or ``<ignore>``."""
    uuid: str
    """32 hexadecimal digits in lower case."""
    name: str
    """The name in the superblock, often ``HOST:NAME``."""


def parse_fstab(data: bytes) -> tuple[tuple[Filesystem, ...], tuple[str, ...]]:
    """Read fstab: its lines, and warnings about those that are left out.

    The two numbers at the end of a line are for dump(8) and fsck(8) and not looked at: a mistake in them
    keeps nothing from being mounted.
    """
    entries = []
    warnings: list[str] = []
    for number, words in _lines(data, warnings):
        if len(words) < 3:
            warnings.append(f"line {number}: no device, mount point and type: {_shown(words)}")
            continue
        spec, file, kind, options = (_unescape(word) for word in (*words, b"defaults")[:4])
        if b"\0" in spec + file + kind + options:
            warnings.append(f"line {number}: a zero byte in it: {_shown(words)}")
            continue
        entries.append(
            Filesystem(number, _unquote(_text(spec)), _text(file), _text(kind), _options(_text(options)))
        )
    return tuple(entries), tuple(warnings)


def parse_mdadm(data: bytes) -> tuple[tuple[Array, ...], tuple[str, ...]]:
    """Read the ARRAY lines of mdadm.conf, and warnings about those that are left out.

    A line that starts with blanks continues the one before; ``#`` starts a comment at the start of any word;
    keywords are the same in upper and lower case and may be cut down to three letters.
    """
    entries = []
    warnings: list[str] = []
    joined: list[tuple[int, list[bytes]]] = []
    for number, line in enumerate(data.split(b"\n"), 1):
        words = _words(line)
        if line[:1].isspace() and joined:
            joined[-1][1].extend(words)
        elif words:
            joined.append((number, words))
    for number, words in joined:
        keyword = words[0].lower()
        if len(keyword) < 3 or not b"array".startswith(keyword):
            continue
        fields = {"device": "", "uuid": "", "name": ""}
        identified = False
        for word in words[1:]:
            key, equals, value = word.partition(b"=")
            if not equals or word.startswith(b"/"):
                fields["device"] = fields["device"] or _text(word)
                continue
            lower = key.lower()
            identified |= lower in (b"uuid", b"name", b"super-minor", b"devices", b"member")
            if lower in (b"uuid", b"name"):
                fields[lower.decode()] = _text(value)
        uuid = re.sub(r"[:. -]", "", fields["uuid"]).lower()
        if fields["uuid"] and not re.fullmatch(r"[0-9a-f]{32}", uuid):
            warnings.append(f"line {number}: not a UUID: {printable(fields['uuid'][:80])}")
        elif not identified or b"\0" in b"".join(words):
            warnings.append(f"line {number}: nothing tells which array it is: {_shown(words)}")
        else:
            entries.append(Array(number, fields["device"], uuid, fields["name"]))
    return tuple(entries), tuple(warnings)


def _lines(data: bytes, warnings: list[str]) -> Iterator[tuple[int, list[bytes]]]:
    """The words of every line that is neither empty nor a comment."""
    for number, line in enumerate(data.split(b"\n"), 1):
        words = line.split()
        if not words or words[0].startswith(b"#"):
            continue
        if b"\0" in line:
            warnings.append(f"line {number}: a zero byte in it: {_shown(words)}")
            continue
        yield number, words


def _words(line: bytes) -> list[bytes]:
    """The words of a line of mdadm.conf, up to a comment, without their quotes."""
    words = []
    for match in _WORD.finditer(line):
        if match[0].startswith(b"#"):
            break
        words.append(re.sub(rb"""["']""", b"", match[0]))
    return [word for word in words if word]


def _shown(words: list[bytes]) -> str:
    return printable(b" ".join(words)[:80])


def _unescape(word: bytes) -> bytes:
    return _OCTAL.sub(lambda match: bytes((int(match[1], 8),)), word)


def _unquote(spec: str) -> str:
    """``UUID="..."``, which mount(8) takes as ``UUID=...``."""
    tag, equals, value = spec.partition("=")
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    return f"{tag}={value[1:-1]}" if equals and quoted else spec


def _options(text: str) -> tuple[str, ...]:
    return tuple(option for option in text.split(",") if option)


def _text(word: bytes) -> str:
    return word.decode("utf-8", "surrogateescape")
