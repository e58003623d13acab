"""Putting an image into place so that there is a whole one at every moment, the old or the new.

Temporary name in the same directory, mode 0600 before the first byte (an image may hold keys), fsync, read
back and compare, keep the previous one as ``IMAGE.old``, rename, fsync of the directory; all under a lock on
the directory, so that two builders take turns and a killed one leaves one temporary file, which the next run
removes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pyinit.kernel.syscalls import exchange
from pyinit.text import printable

from .errors import BuildError

#: What a file system without hard links answers, vfat for example (link(2)).
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)
NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS)

HINTS = {
    errno.ENOSPC: "Make room there and build again.",
    errno.EDQUOT: "Make room there and build again.",
    errno.EROFS: "Mount that file system writable: mount -o remount,rw",
    errno.EACCES: "Run the build as a user who may write there, or name another place with --output.",
    errno.EPERM: "Run the build as a user who may write there, or name another place with --output.",
    errno.EIO: "The disk has errors: see the kernel's log (dmesg), and do not trust it with the only image.",
}


def check(path: Path) -> None:
    """Tell at once, before a build, that ``path`` cannot become an image."""
    path = Path(os.path.abspath(path))
    shown = printable(str(path))
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _no_directory(path, error) from error
    try:
        _is_regular(directory, path.name)
        if os.fstatvfs(directory).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    except OSError as error:
        raise BuildError(
            f"{shown} cannot be written: {error.strerror}", hint=HINTS.get(error.errno or 0, "")
        ) from error
    finally:
        os.close(directory)


def install(path: Path, data: bytes | Sequence[bytes], *, secrets: Sequence[str] = ()) -> None:
    """Write ``data``, whole or in pieces, to ``path``. ``secrets`` are the paths of keys that are in it.

    :class:`BuildError` says what went wrong and which image is there now: the old one, untouched, or the new
    one when only the last step failed.
    """
    pieces = [data] if isinstance(data, bytes) else list(data)
    path = Path(os.path.abspath(path))
    shown = printable(str(path))
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _no_directory(path, error) from error
    try:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            _replace(directory, path.name, pieces, secrets)
        except OSError as error:
            raise BuildError(
                f"{shown} cannot be written: {error.strerror}; a previous image is untouched",
                hint=HINTS.get(error.errno or 0, ""),
            ) from error
        try:
            os.fsync(directory)
        except OSError as error:
            raise BuildError(
                f"{shown} is the new image, but its directory cannot be synced: {error.strerror}; "
                "after a power cut the previous image may be back",
                hint=HINTS.get(error.errno or 0, ""),
            ) from error
    finally:
        with suppress(OSError):  # Everything has been synced: closing says nothing new.
            os.close(directory)


def _no_directory(path: Path, error: OSError) -> BuildError:
    return BuildError(
        f"{printable(str(path.parent))} cannot be opened: {error.strerror}",
        hint="--output names a file in a directory that exists.",
    )


def _replace(directory: int, name: str, pieces: list[bytes], secrets: Sequence[str] = ()) -> None:
    temporary = f".{name}.new"
    exists = _is_regular(directory, name)
    _remove(directory, f".{name}.spare")
    _remove(directory, temporary)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600, dir_fd=directory)
    try:
        try:
            os.fchmod(fd, 0o600)
            mode = stat.S_IMODE(os.fstat(fd).st_mode)
            if secrets and mode & 0o077:
                # A file system without modes, vfat for example, shows one for all its files.
                raise BuildError(
                    f"the image has {printable(', '.join(secrets))} in it and could be read by everybody "
                    f"where it is to be: its mode there would be {mode:04o}",
                    hint="Name a place on another file system, mount this one with umask=0077, or keep the "
                    "key on a device of its own (PATH:DEVICE in crypttab).",
                )
            for piece in pieces:
                _write(fd, piece)
            os.fsync(fd)
            _verify(fd, pieces)
        finally:
            os.close(fd)
        if exists and not _keep(directory, name):
            _swap(directory, temporary, name)
        else:
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(OSError):  # What went wrong first is what is told; the next run removes it.
            _remove(directory, temporary)
        raise


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _verify(fd: int, pieces: list[bytes]) -> None:
    """Read the file back, from the disk as far as the kernel lets us ask for that."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.lseek(fd, 0, os.SEEK_SET)
    written, read = hashlib.sha256(), hashlib.sha256()
    for piece in pieces:
        written.update(piece)
    while chunk := os.read(fd, 1 << 20):
        read.update(chunk)
    if read.digest() != written.digest():
        raise OSError(errno.EIO, "what was written reads back differently")


def _keep(directory: int, name: str) -> bool:
    """Give the previous image a second name; False where there are no hard links."""
    spare = f".{name}.spare"
    try:
        os.link(name, spare, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return False
    try:
        os.rename(spare, f"{name}.old", src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        _remove(directory, spare)
        raise
    # Two names of one file: rename() then does nothing and leaves both (rename(2)).
    _remove(directory, spare)
    return True


def _swap(directory: int, temporary: str, name: str) -> None:
    """Put the new image into place where no file has two names: the two change places at once."""
    old = f"{name}.old"
    try:
        exchange(directory, temporary, name)
    except OSError as error:
        if error.errno not in NO_EXCHANGE:
            raise
        # vfat before Linux 6.0. A copy takes room, but at no moment is there no image.
        _copy(directory, name, f".{name}.spare")
        os.rename(f".{name}.spare", old, src_dir_fd=directory, dst_dir_fd=directory)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        return
    try:
        os.rename(temporary, old, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        exchange(directory, temporary, name)
        raise


def _copy(directory: int, source: str, target: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    inner = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        outer = os.open(target, flags, 0o600, dir_fd=directory)
        try:
            while chunk := os.read(inner, 1 << 20):
                _write(outer, chunk)
            os.fsync(outer)
        except BaseException:
            _remove(directory, target)
            raise
        finally:
            os.close(outer)
    finally:
        os.close(inner)


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
