"""Small files of /proc, /sys and /run, read and written by code that must go on whatever comes of it."""

from __future__ import annotations

import os


def read_if_there(path: str) -> bytes:
    """The content of a file; empty when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def write_if_possible(path: str, data: bytes) -> bool:
    """Write a file for root's eyes only; False when that failed: a full /run does not stop a boot.

    Half of a file would be worse than none, so then there is none.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        with open(fd, "wb") as file:
            file.write(data)
    except OSError:
        remove_if_there(path)
        return False
    return True


def link_if_possible(target: str, path: str) -> None:
    """Make a symbolic link, if that can be done."""
    try:
        os.symlink(target, path)
    except OSError:
        pass


def remove_if_there(path: str) -> None:
    """Remove a file, if that can be done."""
    try:
        os.unlink(path)
    except OSError:
        pass


def names(path: str) -> list[str]:
    """The names in a directory, sorted; none when it cannot be read, or the path is none."""
    try:
        return sorted(os.listdir(path))
    except (OSError, ValueError):  # A zero byte, or what is no Unicode.
        return []


def is_mounted(path: str) -> bool:
    """Whether a file system other than that of / is mounted on a directory of /."""
    try:
        return os.stat(path).st_dev != os.stat("/").st_dev
    except FileNotFoundError:
        return False
    except OSError:
        # One whose device is gone cannot be looked at, but it is still there (proc_pid_mountinfo(5)).
        lines = read_if_there("/proc/self/mountinfo").splitlines()
        return any(line.split(b" ")[4:5] == [os.fsencode(path)] for line in lines)
