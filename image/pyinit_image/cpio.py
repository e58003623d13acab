"""The newc archive that the kernel unpacks into its first root file system.

Format: ``Documentation/driver-api/early-userspace/buffer-format.rst`` and cpio(5). A header is 6 bytes of
magic and 13 fields of 8 hexadecimal digits; names and contents are padded to 4 bytes. Magic ``070702``
carries the sum of a file's bytes, which the kernel verifies since 5.19. Archives may follow one another, with
zero bytes between them, each compressed by itself.

Everything here is a function of its arguments: no owner, clock or inode number of the machine gets in.
"""

from __future__ import annotations

import stat
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pyinit.text import printable

from .errors import BuildError

MAGIC = b"070701"
MAGIC_SUMMED = b"070702"
TRAILER = b"TRAILER!!!"
HEADER_SIZE = 110
FIELDS = 13
#: Sizes are 32 bits in the header.
MAX_SIZE = 2**32 - 1
#: PATH_MAX of the kernel, its terminating zero included; longer names are skipped by the kernel silently.
MAX_NAME = 4096


class CpioError(BuildError):
    """An archive that is not newc, or cannot be written as newc."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member. ``name`` has no leading slash; ``mode`` includes the file type bits."""

    name: bytes
    mode: int
    data: bytes = b""
    """The content of a file, the target of a symbolic link."""
    device: tuple[int, int] = (0, 0)
    """Major and minor number of a device node."""
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    links: int = 1
    inode: int = 0
    holder: tuple[int, int] = (0, 0)
    """Major and minor number of the file system it was on; with ``inode`` they tell hard links."""


def write(
    members: Iterable[Member],
    *,
    mtime: int = 0,
    summed: bool = True,
    known: frozenset[bytes] = frozenset(),
    trailer: bool = True,
) -> Iterator[bytes]:
    """Yield the bytes of an archive of ``members``, in the order given; parents must come first.

    ``known`` are directories that an archive unpacked before this one has made. Without its trailer an
    archive goes on with the next one.

    Owner, inode numbers and link counts are made up here: 0, 1, 2, 3... and 1. ``mtime`` (seconds, 32 bits)
    is that of all members. ``summed`` selects the format with checksums.
    Raises :class:`CpioError` for what newc or the kernel's unpacker cannot take.
    """
    if not 0 <= mtime <= MAX_SIZE:
        raise CpioError(f"modification time {mtime} does not fit into a newc header")
    seen: set[bytes] = set()
    magic = MAGIC_SUMMED if summed else MAGIC
    for inode, member in enumerate(members, 1):
        _check(member, seen, known)
        links = 2 if stat.S_ISDIR(member.mode) else 1
        checksum = byte_sum(member.data) if summed and stat.S_ISREG(member.mode) else 0
        fields = (
            inode,
            member.mode,
            0,
            0,
            links,
            mtime,
            len(member.data),
            0,
            0,
            *member.device,
            len(member.name) + 1,
            checksum,
        )
        yield _header(magic, fields, member.name)
        yield member.data
        yield bytes(-len(member.data) % 4)
    if trailer:
        yield _header(magic, (0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, len(TRAILER) + 1, 0), TRAILER)


def read(data: bytes, offset: int = 0) -> tuple[list[Member], int]:
    """Read one uncompressed archive that starts at ``offset``; return its members and where it ends.

    Raises :class:`CpioError`, and nothing else, for anything that is not a whole, sound archive. Names come
    as they are: whoever unpacks has to refuse ``..`` and absolute ones.
    """
    members: list[Member] = []
    while True:
        header = data[offset : offset + HEADER_SIZE]
        magic = header[:6]
        if magic not in (MAGIC, MAGIC_SUMMED):
            raise CpioError(f"no newc header at byte {offset}: {printable(magic)}")
        try:
            digits = header[6:].decode("ascii")
            # int() would take signs, blanks and underscores, too.
            if len(digits) != FIELDS * 8 or not digits.isalnum():
                raise ValueError(digits)
            fields = [int(digits[at : at + 8], 16) for at in range(0, FIELDS * 8, 8)]
        except ValueError as error:
            raise CpioError(f"damaged newc header at byte {offset}") from error
        inode, mode, uid, gid, links, mtime, size, *holder, major, minor, name_size, checksum = fields
        start = offset + HEADER_SIZE
        name = data[start : start + name_size]
        body = start + name_size + (-(start + name_size - offset) % 4)
        content = data[body : body + size]
        if not name or len(name) != name_size or name[-1] != 0 or len(content) != size:
            raise CpioError(f"the archive ends within the member at byte {offset}")
        name = name[:-1]
        offset = body + size + (-size % 4)
        if name == TRAILER:
            return members, min(offset, len(data))
        if magic == MAGIC_SUMMED and stat.S_ISREG(mode) and byte_sum(content) != checksum:
            raise CpioError(f"{printable(name)}: the content does not match its checksum")
        members.append(
            Member(name, mode, content, (major, minor), uid, gid, mtime, links, inode, (holder[0], holder[1]))
        )


def byte_sum(data: bytes) -> int:
    """The sum of all bytes modulo 2**32: the checksum of format 070702.

    The lower half of Adler-32 is the plain sum of the bytes as long as it stays below 65521, which 256 bytes
    cannot exceed; that is several times as fast as adding them up in Python.
    """
    view = memoryview(data)
    adler32 = zlib.adler32
    return sum(adler32(view[at : at + 256], 0) & 0xFFFF for at in range(0, len(view), 256)) & 0xFFFFFFFF


def _header(magic: bytes, fields: Iterable[int], name: bytes) -> bytes:
    header = magic + b"".join(b"%08X" % field for field in fields) + name + b"\0"
    return header + bytes(-len(header) % 4)


def _check(member: Member, seen: set[bytes], known: frozenset[bytes]) -> None:
    name = member.name
    shown = printable(name)
    if not name or b"\0" in name or name.startswith(b"/") or name == TRAILER:
        raise CpioError(f"{shown!r} cannot be the name of a member of an initramfs")
    if any(part in (b"", b".", b"..") for part in name.split(b"/")):
        raise CpioError(f"{shown}: a name with empty or dot components")
    if len(name) + 1 > MAX_NAME:
        raise CpioError(f"{shown[:60]}...: a name of {len(name)} bytes; the kernel takes {MAX_NAME - 1}")
    if len(member.data) > MAX_SIZE:
        raise CpioError(f"{shown}: {len(member.data)} bytes; a newc archive holds files below 4 GiB")
    if not 0 <= member.mode <= 0o177777 or not all(0 <= number <= MAX_SIZE for number in member.device):
        raise CpioError(f"{shown}: mode {member.mode:o} or device {member.device} out of range")
    if name in seen:
        raise CpioError(f"{shown} is in the archive twice")
    # A member whose parent directory is missing is skipped by the kernel without a word.
    parent = name.rpartition(b"/")[0]
    if parent and parent not in seen and parent not in known:
        raise CpioError(f"{shown} comes before its directory {printable(parent)}")
    seen.add(name)
