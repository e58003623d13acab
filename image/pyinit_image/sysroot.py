"""A target system's tree, seen from outside, with every symbolic link resolved inside it.

Paths are absolute strings as the target sees them (``/usr/bin/python3``); only :meth:`Sysroot.host` turns one
into a path of this machine.
"""

from __future__ import annotations

import os
import posixpath
import stat
from dataclasses import dataclass, field
from pathlib import Path

from pyinit.text import printable

from .errors import BuildError
from .trace import ABSENT, Trace

#: The longest file that a newc archive can hold: its header has 32 bits for the size.
MAX_FILE = 2**32 - 1

#: Links the kernel follows in one look-up before it gives up with ELOOP (path_resolution(7)).
MAX_LINKS = 40


@dataclass(frozen=True, slots=True)
class Resolved:
    """Where a path ends, and the symbolic links on the way as (path of the link, its target)."""

    path: str
    links: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Sysroot:
    """The tree below ``root``. Everything in it is taken to stay as it is while an image is built."""

    root: Path
    trace: Trace = field(default_factory=Trace, repr=False)
    """What was looked at."""
    _places: dict[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.root = Path(os.path.abspath(self.root))
        if not self.root.is_dir():
            raise BuildError(
                f"--sysroot {printable(str(self.root))} is not a directory",
                hint="Give the top directory of an unpacked system, or leave it out to build from this one.",
            )

    def host(self, path: str) -> Path:
        """The path on this machine of a *resolved* target path."""
        return self.root / path.lstrip("/")

    def resolve(self, path: str) -> Resolved | None:
        """Follow ``path`` as the target's kernel would, or None when it leads nowhere.

        Raises :class:`BuildError` for a loop of links.
        """
        links: list[tuple[str, str]] = []
        here = "/"
        todo = [part for part in path.split("/") if part]
        while todo:
            part = todo.pop(0)
            if part == ".":
                continue
            if part == "..":
                here = posixpath.dirname(here)
                continue
            step = posixpath.join(here, part)
            target = self._target(step)
            if target is None:
                here = step
                continue
            links.append((step, target))
            if len(links) > MAX_LINKS:
                raise BuildError(
                    f"{printable(path)} in {printable(str(self.root))}: a loop of symbolic links "
                    f"at {printable(step)} -> {printable(target)}"
                )
            if target.startswith("/"):
                here = "/"
            todo[:0] = [part for part in target.split("/") if part]
        if self._place(here) == ABSENT:
            return None
        return Resolved(here, tuple(dict.fromkeys(links)))

    def find(self, *paths: str) -> str | None:
        """The first of ``paths`` that exists, unresolved."""
        return next((path for path in paths if self.resolve(path) is not None), None)

    def is_dir(self, path: str) -> bool:
        """Whether ``path`` leads to a directory."""
        found = self.resolve(path)
        return found is not None and self.host(found.path).is_dir()

    def is_file(self, path: str) -> bool:
        """Whether ``path`` leads to a regular file."""
        found = self.resolve(path)
        return found is not None and self.host(found.path).is_file()

    def list(self, path: str) -> list[str]:
        """The sorted names in the directory ``path``; none when there is no such directory."""
        found = self.resolve(path)
        if found is None or not self.host(found.path).is_dir():
            return []
        place = str(self.host(found.path))
        names = os.listdir(place)
        self.trace.list(place, names)
        return sorted(names)

    def read(self, path: str) -> bytes:
        """The content of the regular file ``path``; :class:`BuildError` when it cannot be read."""
        return self.read_with_mode(path)[0]

    def read_with_mode(self, path: str) -> tuple[bytes, int]:
        """Content and permission bits, taken from one open file so that they belong together."""
        found = self.resolve(path)
        if found is None:
            raise BuildError(f"{printable(path)} is missing in {printable(str(self.root))}")
        return read_regular(self.host(found.path))

    def read_text(self, path: str) -> str:
        """The file ``path`` as text, or an empty string when there is none."""
        return self.read(path).decode("utf-8", "surrogateescape") if self.is_file(path) else ""

    def _place(self, path: str) -> str:
        """The mark of ``path``, looked at once."""
        if path not in self._places:
            host = str(self.host(path))
            self.trace.look(host)
            self._places[path] = self.trace.looked[host]
        return self._places[path]

    def _target(self, path: str) -> str | None:
        place = self._place(path)
        return place.removeprefix("-> ") if place.startswith("-> ") else None


_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}


def read_regular(path: Path) -> tuple[bytes, int]:
    """Content and permission bits of a regular file of this machine; :class:`BuildError` for anything else.

    Opened without blocking and checked before it is read: a FIFO or a device in the place of a file must not
    hang the build.
    """
    try:
        # Looked at first: to open a device may already be to use it, a watchdog for example.
        _refuse_special(path, os.stat(path).st_mode)
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as stream:
            status = os.fstat(fd)
            _refuse_special(path, status.st_mode)
            if status.st_size > MAX_FILE:
                raise BuildError(
                    f"{printable(str(path))} has {status.st_size} bytes; "
                    f"an image can hold files of up to {MAX_FILE} bytes (4 GiB)"
                )
            # One byte more than there should be: a file that never ends is noticed, not followed.
            data = stream.read(status.st_size + 1)
            after = os.fstat(fd)
    except OSError as error:
        raise BuildError(
            f"{printable(str(path))} cannot be read: {error.strerror}",
            hint="Run the build as a user who may read it." if isinstance(error, PermissionError) else "",
        ) from error
    except MemoryError:
        raise BuildError(
            f"{printable(str(path))} has {status.st_size} bytes, more than there is memory for"
        ) from None
    if len(data) != status.st_size or after.st_mtime_ns != status.st_mtime_ns:
        raise BuildError(
            f"{printable(str(path))} changed while it was read: {status.st_size} bytes, then "
            + (f"{len(data)}" if len(data) <= status.st_size else "more"),
            hint="Build again when nothing is being installed.",
        )
    return data, stat.S_IMODE(status.st_mode)


def _refuse_special(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise BuildError(
            f"{printable(str(path))} is not a regular file but {kind}",
            hint="Only regular files, directories and symbolic links can be taken into an image.",
        )
