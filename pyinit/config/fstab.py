"""fstab(5): which file system belongs where."""

from __future__ import annotations

import re
from typing import NamedTuple

# getmntent(3) and libmount write blanks, tabs, line ends and backslashes as three octal digits.
_ESCAPE = re.compile(rb"\\([0-7]{3})")
_BLANKS = re.compile(rb"[ \t]+")
#: Nobody has so long an fstab; a file that is something else is not read to its end.
MAX_LINES = 10_000


class Line(NamedTuple):
    """One file system. Text that was not UTF-8 is kept by surrogateescape; print it as foreign text."""

    number: int
    """Which line of the file it is, from 1."""
    source: str
    """What is mounted: a device, ``UUID=...``, a directory for a bind mount, any word for others."""
    target: str
    """The mount point, normalised: absolute, without ``.``, ``..`` and doubled slashes; ``none`` for swap."""
    fstype: str
    options: tuple[str, ...]
    passno: int
    """In which pass it is checked at boot; 0 for never."""

    def has(self, *names: str) -> bool:
        """Whether one of these options is there, with or without a value."""
        return any(option.partition("=")[0] in names for option in self.options)


class Fstab(NamedTuple):
    """The file systems of a file, and what could not be understood."""

    lines: tuple[Line, ...]
    warnings: tuple[str, ...]
    """One line each, printable."""


def parse(data: bytes) -> Fstab:
    """Read an fstab; a line that makes no sense is left out with a warning that names its number."""
    lines: list[Line] = []
    warnings: list[str] = []
    for number, raw in enumerate(data.split(b"\n")[:MAX_LINES], 1):
        text = raw.strip(b" \t\r")
        if not text or text.startswith(b"#"):
            continue
        fields = [_unescape(field) for field in _BLANKS.split(text)]
        if any("\0" in field for field in fields):
            warnings.append(f"fstab line {number} has a zero byte in it")
            continue
        if len(fields) < 3:
            warnings.append(f"fstab line {number} has {len(fields)} fields, at least 3 are expected")
            continue
        target = normalise(fields[1])
        if not target:
            warnings.append(f"fstab line {number}: the mount point is no absolute path")
            continue
        options = tuple(split_options(fields[3])) if len(fields) > 3 else ()
        passno = fields[5] if len(fields) > 5 else "0"
        lines.append(
            Line(
                number,
                fields[0],
                target,
                fields[2],
                options,
                int(passno) if re.fullmatch("[0-9]{1,3}", passno, re.ASCII) else 0,
            )
        )
    return Fstab(tuple(lines), tuple(warnings))


def split_options(options: str) -> list[str]:
    """Split mount options at commas, except those inside double quotes (SELinux contexts have them)."""
    parts = [""]
    quoted = False
    for character in options:
        if character == '"':
            quoted = not quoted
        if character == "," and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part]


def normalise(path: str) -> str:
    """A mount point in its shortest form; empty when it is none. ``..`` does not leave the root."""
    if path in ("none", "swap"):
        return "none"
    if not path.startswith("/") or "\0" in path:
        return ""
    kept: list[str] = []
    for name in path.split("/"):
        if name == "..":
            kept[-1:] = []
        elif name not in ("", "."):
            kept.append(name)
    return "/" + "/".join(kept)


def _unescape(field: bytes) -> str:
    plain = _ESCAPE.sub(lambda match: bytes((int(match[1], 8) & 0xFF,)), field)
    return plain.decode("utf-8", "surrogateescape")
