"""Reading images back: ours and other makers', several archives in one file, each with its own compression.

What is in an image is foreign data. Nothing here raises anything but :class:`BuildError` because of it, and
:func:`extract` never writes outside the directory it is given.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from pyinit.text import printable

from . import compress, cpio
from .errors import BuildError

#: Bytes that an image may unpack to, unless the caller says otherwise.
LIMIT = 2 << 30


@dataclass(frozen=True, slots=True)
class Segment:
    """One archive of an image. ``offset`` is where it (or its compressed stream) starts in the file."""

    offset: int
    compression: str
    members: tuple[cpio.Member, ...]
    size: int = 0
    """Bytes that it takes in the file: of archives in one stream the first has all."""


def read(image: bytes, *, limit: int = LIMIT) -> list[Segment]:
    """The archives of an image, in the order in which the kernel unpacks them.

    :class:`BuildError` when what is compressed in it comes to more than ``limit`` bytes.
    """
    segments: list[Segment] = []
    at = 0
    room = limit
    while (at := _skip_zeros(image, at)) < len(image):
        if image.startswith((cpio.MAGIC, cpio.MAGIC_SUMMED), at):
            members, end = cpio.read(image, at)
            segments.append(Segment(at, "none", tuple(members), end - at))
            at = end
            continue
        method = compress.detect(image[at : at + 16])
        if method is None:
            raise BuildError(
                f"byte {at} of the image is neither newc nor compressed: {printable(image[at : at + 6])}"
            )
        try:
            plain, end = compress.decompress(image, at, method, room)
        except compress.TooLarge as error:
            raise BuildError(
                f"the {method} stream at byte {at} unpacks to more than the {limit} bytes that are allowed",
                hint="If the image is to be trusted, give a higher --max-size.",
            ) from error
        room -= len(plain)
        inner, size = 0, end - at
        while (inner := _skip_zeros(plain, inner)) < len(plain):
            members, inner = cpio.read(plain, inner)
            segments.append(Segment(at, method, tuple(members), size))
            size = 0
        at = end
    return segments


def tree(segments: list[Segment]) -> dict[str, cpio.Member]:
    """Path to member, as the kernel leaves them: a later one takes the place of an earlier one.

    Names of other makers ("./x", "/x", "x/") are brought into one form; ".." is refused.
    """
    found: dict[str, cpio.Member] = {}
    for segment in segments:
        # Of hard links only one has the content (init/initramfs.c, maybe_link()), in the same archive.
        links = [member for member in segment.members if member.links > 1 and member.data]
        linked = {_file(member): member.data for member in links}
        for member in segment.members:
            if member.links > 1 and stat.S_ISREG(member.mode):
                member = dataclasses.replace(member, data=linked.get(_file(member), b""))
            parts = [part for part in member.name.split(b"/") if part not in (b"", b".")]
            if b".." in parts:
                raise BuildError(f"hostile archive: the name {printable(member.name)} leaves the root")
            path = "/" + b"/".join(parts).decode("utf-8", "surrogateescape")
            if path != "/":
                found[path] = member
    return found


def _file(member: cpio.Member) -> tuple[int, int, int, int]:
    return member.inode, *member.holder, stat.S_IFMT(member.mode)


def lookup(members: dict[str, cpio.Member], path: str) -> str | None:
    """The path in ``members`` that ``path`` leads to when all links but the last are followed."""
    todo = [part for part in path.split("/") if part and part != "."]
    here = ""
    for _ in range(40 + len(todo)):
        if not todo:
            return here or "/"
        part = todo.pop(0)
        if part == "..":
            here = here.rpartition("/")[0]
            continue
        step = f"{here}/{part}"
        member = members.get(step)
        if member is None:
            return None
        if todo and stat.S_ISLNK(member.mode):
            target = member.data.decode("utf-8", "surrogateescape")
            here = "" if target.startswith("/") else here
            todo = [name for name in target.split("/") if name and name != "."] + todo
        else:
            here = step
    return None


def extract(members: dict[str, cpio.Member], target: Path) -> list[str]:
    """Unpack into ``target``, which must be new or empty; return what was left out, with the reason.

    Device nodes are left out: they are for the kernel. Set-user-ID bits are dropped. A member that would pass
    through a symbolic link of the archive is refused.
    """
    target.mkdir(parents=True, exist_ok=True)
    if any(target.iterdir()):
        raise BuildError(f"{printable(str(target))} is not empty", hint="Name a new directory.")
    skipped: list[str] = []
    top = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    modes: list[tuple[str, int]] = []
    try:
        for path, member in sorted(members.items(), key=lambda item: item[0].split("/")):
            *directories, name = path[1:].split("/")
            fd = _descend(top, directories, path)
            try:
                _create(fd, name, member, path, skipped)
            except OSError as error:
                raise BuildError(f"{printable(path)} cannot be extracted: {error.strerror}") from error
            finally:
                os.close(fd)
            if stat.S_ISDIR(member.mode):
                modes.append((path, stat.S_IMODE(member.mode) & 0o1777))
        # Last, so that a directory that may not be written to can be filled.
        for path, mode in reversed(modes):
            fd = _descend(top, path[1:].split("/"), path)
            os.fchmod(fd, mode)
            os.close(fd)
    finally:
        os.close(top)
    return skipped


def _create(fd: int, name: str, member: cpio.Member, path: str, skipped: list[str]) -> None:
    kind = stat.S_IFMT(member.mode)
    if kind == stat.S_IFDIR:
        try:
            os.mkdir(name, 0o700, dir_fd=fd)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                raise
    elif kind == stat.S_IFLNK:
        os.symlink(member.data, name.encode("utf-8", "surrogateescape"), dir_fd=fd)
    elif kind == stat.S_IFREG:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(name, flags, 0o600, dir_fd=fd), "wb") as stream:
            stream.write(member.data)
            os.fchmod(stream.fileno(), stat.S_IMODE(member.mode) & 0o777)
    else:
        skipped.append(f"{path}: a device node")


def _descend(top: int, directories: list[str], path: str) -> int:
    """A descriptor of the directory that holds ``path``, made if it is missing, never through a link."""
    fd = os.dup(top)
    for name in directories:
        try:
            try:
                os.mkdir(name, 0o755, dir_fd=fd)
            except FileExistsError:
                pass
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        except OSError as error:
            raise BuildError(
                f"hostile archive: {printable(path)} passes through {printable(name)}, which is no directory"
            ) from error
        finally:
            os.close(fd)
        fd = inner
    return fd


def _skip_zeros(data: bytes, at: int) -> int:
    while at < len(data) and data[at] == 0:
        at += 1
    return at
