"""An image as the kernel's own build takes it (``CONFIG_INITRAMFS_SOURCE``): a list, and the files it names.

Format: ``Documentation/driver-api/early-userspace/early_userspace_support.rst`` and the help of the program
that reads it, ``usr/gen_init_cpio``. One line an entry:

    dir NAME MODE UID GID
    file NAME LOCATION MODE UID GID
    slink NAME TARGET MODE UID GID
    nod NAME MODE UID GID TYPE MAJOR MINOR

Fields are words between blanks, and nothing quotes a blank. Files are stored under numbers, so that it does
not matter what the build system thinks of the characters in their names.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from pyinit.text import printable

from . import cpio
from .errors import BuildError
from .install import HINTS
from .plan import Entry, members

LIST = "initramfs.list"
FILES = "files"

#: What isspace(3) takes for a blank: it ends a word of scanf(3), a newline the whole line. And the zero byte.
_BLANK = re.compile(rb"[\t-\r \0]")

#: The location of a file passes through gen_init_cpio, which replaces ${NAME}, and, as that of the list does,
#: through usr/gen_initramfs.sh, the shell and make: only what means nothing to any of them is let through.
_PLAIN = re.compile(r"[A-Za-z0-9/._@+-]*")


def listing(entries: Iterable[Entry], directory: str) -> bytes:
    """The text of the list, in the order of ``entries``: parents must come first.

    The content of a regular file that is entry N, counted from 0, is taken to be in ``directory`` at
    :func:`stored` (N). Raises :class:`BuildError` for what the format, the kernel's build system or an
    initramfs cannot hold.
    """
    entries = list(entries)
    _check_directory(directory)
    text = b"".join(
        _line(entry, member.name, f"{directory}/{stored(number)}")
        for number, (entry, member) in enumerate(zip(entries, members(entries), strict=True))
    )
    # The list becomes an archive: what is wrong in one (order, duplicates, lengths) is wrong here.
    deque(cpio.write(members(entries), summed=False), maxlen=0)
    return text


def stored(number: int) -> str:
    """Where the content of the entry of this number is, below the directory."""
    return f"{FILES}/{number:05}"


def write(entries: Iterable[Entry], directory: Path, *, mtime: int = 0) -> Path:
    """Write the list and the files below ``directory``, which must be new or empty; return the list's path.

    The directory and all in it are for the user alone: an image may hold keys. ``mtime`` (seconds since 1970)
    is that of the files, which gen_init_cpio copies into the archive; the list has the time of now, by which
    make sees that it is new. Raises :class:`BuildError`; then the directory is as it was before.
    """
    entries = list(entries)
    directory = Path(os.path.realpath(directory))
    shown = printable(str(directory))
    text = listing(entries, str(directory))
    try:
        if directory.exists() and any(directory.iterdir()):
            raise BuildError(f"{shown} is not empty", hint="Name a new directory.")
        work = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        try:
            (work / FILES).mkdir(mode=0o700)
            for number, entry in enumerate(entries):
                if stat.S_ISREG(entry.mode):
                    place = work / stored(number)
                    _create(place, entry.data)
                    os.utime(place, (mtime, mtime))
            _create(work / LIST, text)
            # A power cut must not leave empty files under names that look right.
            os.sync()
            # Takes the place of an empty directory and of nothing else (rename(2)).
            work.rename(directory)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    except OSError as error:
        hint = HINTS.get(error.errno or 0, "Name a new directory in one that exists.")
        raise BuildError(f"{shown} cannot be written: {error.strerror}", hint=hint) from error
    return directory / LIST


def _line(entry: Entry, name: bytes, location: str) -> bytes:
    path = printable(entry.path)
    hint = f"Rename it or leave it out (it is there for: {printable(entry.reason)}), or build an image file."
    if _BLANK.search(name):
        raise BuildError(
            f"{path} has a blank in its name: a list for the kernel's build cannot say that", hint=hint
        )
    place = b"/" + name
    rights = b"%04o 0 0" % stat.S_IMODE(entry.mode)
    match stat.S_IFMT(entry.mode):
        case stat.S_IFDIR:
            return b"dir %b %b\n" % (place, rights)
        case stat.S_IFREG:
            if name.endswith(b"\\"):
                # gen_initramfs.sh reads the lines of files once more, with the shell's "read" (POSIX), for
                # which a backslash makes the blank behind it a part of the word.
                raise BuildError(
                    f"{path} ends in a backslash: the kernel's usr/gen_initramfs.sh misreads that", hint=hint
                )
            return b"file %b %b %b\n" % (place, location.encode(), rights)
        case stat.S_IFLNK:
            if not entry.data or _BLANK.search(entry.data) or len(entry.data) >= cpio.MAX_NAME:
                raise BuildError(
                    f"{path} is a link to {printable(entry.data[:80])!r} ({len(entry.data)} bytes): "
                    f"a list for the kernel's build takes 1 to {cpio.MAX_NAME - 1} bytes without blanks",
                    hint=hint,
                )
            return b"slink %b %b %b\n" % (place, entry.data, rights)
        case stat.S_IFCHR | stat.S_IFBLK as kind:
            letter = b"c" if kind == stat.S_IFCHR else b"b"
            return b"nod %b %b %b %d %d\n" % (place, rights, letter, *entry.device)
    raise BuildError(f"{path} is no file, directory, link or device node (mode {entry.mode:o})", hint=hint)


def _check_directory(directory: str) -> None:
    shown = printable(directory)
    advice = "Name a directory whose absolute path has only letters of ASCII, digits and / . _ @ + -"
    if not directory.startswith("/") or not _PLAIN.fullmatch(directory):
        raise BuildError(f"the kernel's build cannot take files from {shown!r}", hint=advice)
    # usr/Makefile takes a source with ".cpio." in its name for an archive.
    if ".cpio." in f"{directory}/":
        raise BuildError(f"the kernel's build takes everything below {shown} for an archive", hint=advice)
    if len(f"{directory}/{FILES}/") + 20 > cpio.MAX_NAME:
        raise BuildError(f"{shown[:60]}... is too long a path ({len(directory)} characters)", hint=advice)


def _create(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "wb") as stream:
        stream.write(data)
