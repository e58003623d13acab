"""Runs the installer in real processes and lets its calls fail, or its process die, one after the other.

``python install_faults.py WHAT DIRECTORY [without-links]`` prints one line of JSON for each case. Every case
is a process of its own on a real file system; what is left behind is looked at by another one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyinit_image import install as module
from pyinit_image.errors import BuildError

OLDER, OLD, NEW = (bytes([byte]) * 200_000 for byte in (1, 2, 3))
NAMES = "open fchmod write fsync posix_fadvise lseek read close stat link rename unlink".split()
DONE, REFUSED = 0, 1

#: Whether the file system is to look like vfat.
without_links = False


def lay_out(directory: Path) -> None:
    """What a machine with two images has."""
    for entry in directory.iterdir():
        entry.unlink()
    (directory / "image").write_bytes(OLD)
    (directory / "image.old").write_bytes(OLDER)


def state(directory: Path) -> dict[str, Any]:
    """What is there now."""
    kinds = {OLDER: "older", OLD: "old", NEW: "new"}
    names = sorted(os.listdir(directory))
    return {
        "image": kinds.get((directory / "image").read_bytes(), "broken"),
        "previous": kinds.get((directory / "image.old").read_bytes(), "broken"),
        "mode": stat.S_IMODE((directory / "image").stat().st_mode),
        "litter": [name for name in names if name not in ("image", "image.old")],
        # A second name of the previous image takes no room.
        "inodes": len({(directory / name).stat().st_ino for name in names}),
    }


def child(work: Callable[[], object]) -> int:
    """Run ``work`` in a process of its own; its exit status, or the signal's negative number."""
    pid = os.fork()
    if not pid:
        status = REFUSED
        try:
            work()
            status = DONE
        except BuildError:
            pass
        except BaseException as error:
            print(f"unexpected {error!r}", file=sys.stderr, flush=True)
            status = 99
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def every_call(before: Callable[[str], None], after: Callable[[str], None]) -> None:
    """Put something before and after every system call that the installer makes."""

    def wrap(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            before(name)
            if name == "write":
                # A disk may take less than it is given.
                arguments = (arguments[0], bytes(arguments[1])[: 64 << 10])
            try:
                if name == "link" and without_links:
                    raise OSError(errno.EPERM, os.strerror(errno.EPERM))
                return real(*arguments, **options)
            finally:
                after(name)

        setattr(owner, name, call)

    for name in NAMES:
        wrap(os, name)
    wrap(fcntl, "flock")
    wrap(module, "exchange")


def install_new(directory: Path) -> None:
    module.install(directory / "image", NEW)


def trace(directory: Path) -> list[str]:
    """The calls of one installation."""
    reader, writer = os.pipe()
    write = os.write

    def work() -> None:
        every_call(lambda name: write(writer, f"{name}\n".encode()) and None, lambda name: None)
        install_new(directory)

    lay_out(directory)
    assert child(work) == DONE
    os.close(writer)
    with open(reader) as stream:
        return stream.read().split()


def fault(directory: Path, number: int, action: str) -> dict[str, Any]:
    """One installation whose call ``number`` fails, or in which the process dies before or after it."""
    count = -1

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def before(name: str) -> None:
        nonlocal count
        count += 1
        if count == number and action == "kill before":
            die()
        if count == number and action in errno.errorcode.values():
            code = getattr(errno, action)
            raise OSError(code, os.strerror(code))

    def after(name: str) -> None:
        if count == number and action == "kill after":
            die()

    def work() -> None:
        every_call(before, after)
        install_new(directory)

    lay_out(directory)
    status = child(work)
    found = state(directory)
    again = child(lambda: install_new(directory))
    return {
        "call": number,
        "action": action,
        "status": status,
        **found,
        "again": again,
        "then": state(directory),
    }


def calls(directory: Path) -> None:
    names = trace(directory)
    for number, name in enumerate(names):
        for action in ("kill before", "kill after", "ENOSPC", "EIO", "EROFS", "EINTR"):
            print(json.dumps({"name": name, **fault(directory, number, action)}))


def order(directory: Path) -> None:
    """The calls of one installation, in order."""
    print(json.dumps({"calls": trace(directory)}))


def full(directory: Path) -> None:
    """``directory`` is on a file system that has room for both images and, step by step, for a third."""
    lay_out(directory)
    page = os.sysconf("SC_PAGE_SIZE")
    filler = directory.parent / "filler"
    room = os.statvfs(directory)
    free = room.f_bavail * room.f_frsize
    for left in range(0, len(NEW) + 2 * (64 << 10), 16 << 10):
        lay_out(directory)
        filler.write_bytes(b"x" * max(0, free - left // page * page))
        status = child(lambda: install_new(directory))
        print(json.dumps({"left": left, "status": status, **state(directory)}))
        filler.unlink()


def killed(directory: Path) -> None:
    """A builder that is killed from outside, wherever it happens to be."""
    steps = len(trace(directory))
    for number in range(2 * steps):
        lay_out(directory)
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            write = os.write
            every_call(lambda name, fd=writer, write=write: write(fd, b"x") and None, lambda name: None)  # type: ignore[misc]
            os.close(reader)
            try:
                install_new(directory)
            finally:
                os._exit(DONE)
        os.close(writer)
        for _ in range(1 + number // 2):
            os.read(reader, 1)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        found = state(directory)
        again = child(lambda: install_new(directory))
        print(json.dumps({"steps": number // 2, **found, "again": again, "then": state(directory)}))


if __name__ == "__main__":
    without_links = "without-links" in sys.argv
    {"calls": calls, "order": order, "full": full, "killed": killed}[sys.argv[1]](Path(sys.argv[2]))
