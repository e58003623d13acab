"""Putting an image into place so that there is a whole one at every moment, the old or the new.

Temporary name in the same directory, mode 0600 before the first byte (an image may hold keys), fsync, read
back and compare, keep the previous one as ``IMAGE.old``, rename, fsync of the directory; all under a lock on
the directory, so that two builders take turns and a killed one leaves at most one temporary file behind.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from pathlib import Path

from pyinit.text import printable

from .errors import BuildError


def install(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``; :class:`BuildError` says what went wrong and leaves the old file alone."""
    path = Path(os.path.abspath(path))
    shown = printable(str(path))
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BuildError(f"{printable(str(path.parent))} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        _replace(directory, path.name, data)
    except OSError as error:
        raise BuildError(
            f"{shown} cannot be written: {error.strerror}; a previous image is untouched",
            hint="Make room there and build again." if error.errno == errno.ENOSPC else "",
        ) from error
    finally:
        os.close(directory)


def _replace(directory: int, name: str, data: bytes) -> None:
    temporary = f".{name}.new"
    old = f"{name}.old"
    exists = _is_regular(directory, name)
    _remove(directory, temporary)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600, dir_fd=directory)
    try:
        try:
            os.fchmod(fd, 0o600)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
            _verify(fd, data)
        finally:
            os.close(fd)
        if exists:
            _keep(directory, name, old)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        _remove(directory, temporary)
        raise
    os.fsync(directory)


def _verify(fd: int, data: bytes) -> None:
    """Read the file back, from the disk as far as the kernel lets us ask for that."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.lseek(fd, 0, os.SEEK_SET)
    digest = hashlib.sha256()
    while chunk := os.read(fd, 1 << 20):
        digest.update(chunk)
    if digest.digest() != hashlib.sha256(data).digest():
        raise OSError(errno.EIO, "what was written reads back differently")


def _keep(directory: int, name: str, old: str) -> None:
    """Give the previous image a second name."""
    spare = f".{name}.spare"
    _remove(directory, spare)
    try:
        os.link(name, spare, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError as error:
        # No hard links, as on vfat: a copy would need the room of a third image, so it changes its name
        # for the moment until the new one takes its place.
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        spare = name
    os.rename(spare, old, src_dir_fd=directory, dst_dir_fd=directory)


def _is_regular(directory: int, name: str) -> bool:
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it exists and is not a regular file")
    return True


def _remove(directory: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
