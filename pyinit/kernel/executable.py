"""Would execve(2) succeed in another root? Asked before the way back is closed.

Paths are resolved as they will be after the switch: an absolute symbolic link such as /sbin/init ->
/usr/lib/systemd/systemd or -> /nix/store/... starts again at the new root, and ``..`` does not leave it.
The rules for programs are those of fs/binfmt_elf.c and fs/binfmt_script.c.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from errno import EAGAIN, ELOOP, ENOENT, ENOSYS, ENOTDIR
from functools import cache
from typing import NamedTuple

from pyinit.kernel.syscalls import RESOLVE_IN_ROOT, openat2
from pyinit.text import printable

_MAX_LINKS = 40  # path_resolution(7)
_MAX_SCRIPTS = 5  # exec_binprm(): "This allows 4 levels of binfmt rewrites before failing hard."
_SCRIPT_LINE = 256  # BINPRM_BUF_SIZE
_PATH_MAX = 4096
_MAX_SEGMENT_TABLE = 65536
_PT_INTERP = 3
_ET_EXEC, _ET_DYN = 2, 3

_MACHINES = {
    3: "i386",
    8: "MIPS",
    20: "PowerPC",
    21: "PowerPC 64",
    22: "S/390",
    40: "ARM",
    62: "x86-64",
    183: "AArch64",
    243: "RISC-V",
    258: "LoongArch",
}
# 64-bit kernels run these too when they were built for it, which cannot be asked.
_COMPATIBLE = {62: 3, 183: 40, 21: 20}

Reader = Callable[[int, int], bytes]
"""(offset, size) -> at most that many bytes."""


class NotExecutable(Exception):
    """Why execve would fail, as the end of a sentence that starts with the path."""


class Program(NamedTuple):
    """A program that can be executed."""

    path: str
    """Where it is once every symbolic link is followed, seen from its root."""
    warnings: tuple[str, ...]


class Elf(NamedTuple):
    """What the kernel asks an ELF file."""

    bits: int
    byteorder: str
    machine: int
    interpreter: str | None


def check_program(root: str, path: str) -> Program:
    """Check everything that execve(``path``) needs inside ``root``; NotExecutable says what is missing."""
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _check(fd, path, 0)
    finally:
        os.close(fd)


def open_inside(root: int, path: str, flags: int) -> int:
    """Open ``path`` as if the directory ``root`` were ``/``; the descriptor is closed by exec."""
    if "\0" in path:
        raise ValueError("a path cannot hold a null byte")
    try:
        return openat2(root, path, flags, RESOLVE_IN_ROOT)
    except OSError as error:
        # EAGAIN: some process renamed or mounted something while ".." was followed, so that the kernel cannot
        # vouch for it. udevd renames files all the time.
        if error.errno not in (ENOSYS, EAGAIN):
            raise
    return walk_inside(root, path, flags)


def walk_inside(root: int, path: str, flags: int) -> int:
    """RESOLVE_IN_ROOT of openat2(2), component by component, where the kernel cannot or will not."""
    trail = [os.dup(root)]
    rest = _components(path)
    links = 0
    try:
        while rest:
            name = rest.pop()
            if name == "..":
                if len(trail) > 1:
                    os.close(trail.pop())
                continue
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=trail[-1])
            trail.append(fd)
            mode = os.fstat(fd).st_mode
            last = not rest and not path.endswith("/")
            if stat.S_ISLNK(mode) and not (last and flags & os.O_NOFOLLOW):
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(ELOOP, os.strerror(ELOOP), path)
                target = os.readlink("", dir_fd=fd)
                os.close(trail.pop())
                if target.startswith("/"):
                    while len(trail) > 1:
                        os.close(trail.pop())
                rest += _components(target)
            elif last:
                os.close(trail.pop())
                return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=trail[-1])
            elif not stat.S_ISDIR(mode):
                raise OSError(ENOTDIR, os.strerror(ENOTDIR), path)
        return os.open(".", flags | os.O_CLOEXEC, dir_fd=trail[-1])
    finally:
        for fd in trail:
            os.close(fd)


def read_elf(read: Reader) -> Elf:
    """Read an ELF header and the name of its loader; ValueError says what the kernel would object to."""
    header = read(0, 64)
    if header[:4] != b"\x7fELF" or len(header) < 52:
        raise ValueError("is not an ELF file")
    order = {1: "<", 2: ">"}.get(header[5])
    bits = {1: 32, 2: 64}.get(header[4])
    if order is None or bits is None or (bits == 64 and len(header) < 64):
        raise ValueError("is a damaged ELF file")
    kind, machine = struct.unpack_from(order + "HH", header, 16)
    if kind not in (_ET_EXEC, _ET_DYN):
        raise ValueError("is an ELF file, but not a program")
    if bits == 64:
        offset, size, count = *struct.unpack_from(order + "Q", header, 32), *_two(order, header, 54)
        layout, width = order + "I4xQ16xQ", 56
    else:
        offset, size, count = *struct.unpack_from(order + "I", header, 28), *_two(order, header, 42)
        layout, width = order + "II8xI", 32
    # load_elf_phdrs() in fs/binfmt_elf.c has the same limit; a damaged file could ask for gigabytes.
    table = read(offset, size * count) if size == width and size * count <= _MAX_SEGMENT_TABLE else b""
    if not table or len(table) < size * count:
        raise ValueError("is a damaged ELF file: it has no complete table of segments")
    interpreter = None
    for position in range(0, size * count, size):
        segment, start, length = struct.unpack_from(layout, table, position)
        if segment == _PT_INTERP:
            name = read(start, length) if 2 <= length <= _PATH_MAX else b""
            if len(name) < length or not name.endswith(b"\0") or name.startswith(b"\0"):
                raise ValueError("is a damaged ELF file: the name of its loader is cut off")
            interpreter = os.fsdecode(name.split(b"\0", 1)[0])
            break
    return Elf(bits, {"<": "little", ">": "big"}[order], machine, interpreter)


def read_script(data: bytes) -> str | None:
    """The interpreter of a ``#!`` line, or None when the file is no script; ValueError when it names none."""
    if not data.startswith(b"#!"):
        return None
    head = data[2:_SCRIPT_LINE]
    line, newline, _ = head.partition(b"\n")
    line, zero, _ = line.partition(b"\0")
    words = line.lstrip(b" \t").replace(b"\t", b" ").split(b" ", 1)
    if not words[0]:
        raise ValueError("is a script whose first line names no interpreter")
    # Without an end in sight the name may be cut off, and the kernel refuses to guess (ENOEXEC).
    if not newline and not zero and len(words) < 2 and len(data) >= _SCRIPT_LINE:
        raise ValueError("is a script whose first line is too long")
    return os.fsdecode(words[0])


def _two(order: str, header: bytes, offset: int) -> tuple[int, int]:
    size, count = struct.unpack_from(order + "HH", header, offset)
    return size, count


def _components(path: str) -> list[str]:
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _check(root: int, path: str, depth: int, *, loader: bool = False) -> Program:
    try:
        fd = open_inside(root, path, os.O_PATH)
    except (OSError, ValueError) as error:
        raise NotExecutable(_why_unreachable(root, path, error)) from error
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise NotExecutable("is a directory")
        if not stat.S_ISREG(mode):
            raise NotExecutable("is not a regular file")
        # The right to ignore permissions does not help when no execute bit is set at all (execve(2), EACCES).
        if not mode & 0o111:
            raise NotExecutable(f"has no execute permission (mode {stat.S_IMODE(mode):04o})")
        if os.fstatvfs(fd).f_flag & os.ST_NOEXEC:
            raise NotExecutable("lies on a file system that is mounted noexec")
        real = _path_of(root, fd) or path
    except OSError as error:
        raise NotExecutable(f"cannot be examined: {error.strerror}") from error
    finally:
        os.close(fd)
    try:
        fd = open_inside(root, path, os.O_RDONLY)
    except OSError as error:
        raise NotExecutable(f"cannot be read: {error.strerror}") from error
    try:
        size = os.fstat(fd).st_size
        return _check_contents(
            root,
            lambda offset, length: os.pread(fd, length, offset) if offset < size else b"",
            real,
            depth,
            loader,
        )
    except OSError as error:
        raise NotExecutable(f"cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)


def _check_contents(root: int, read: Reader, path: str, depth: int, loader: bool) -> Program:
    head = read(0, _SCRIPT_LINE)
    try:
        interpreter = None if loader else read_script(head)
        if interpreter is not None:
            if depth >= _MAX_SCRIPTS:
                raise NotExecutable("is a script of a script of a script, deeper than the kernel goes")
            return Program(path, _check_interpreter(root, interpreter, depth + 1, loader=False))
        if not head:
            raise NotExecutable("is empty")
        if not head.startswith(b"\x7fELF"):
            raise NotExecutable("is neither an ELF program nor a script that starts with #!")
        elf = read_elf(read)
    except ValueError as error:
        raise NotExecutable(str(error)) from error
    warnings = _check_machine(elf, path)
    if elf.interpreter is not None and not loader:
        warnings += _check_interpreter(root, elf.interpreter, depth, loader=True)
    return Program(path, warnings)


def _check_interpreter(root: int, path: str, depth: int, *, loader: bool) -> tuple[str, ...]:
    # A relative name counts from the working directory, which is the root when init is executed.
    try:
        return _check(root, path, depth, loader=loader).warnings
    except NotExecutable as error:
        raise NotExecutable(f"needs the interpreter {printable(path)}, which {error}") from error


def _check_machine(elf: Elf, path: str) -> tuple[str, ...]:
    own = _own_elf()
    if own is None or (elf.machine == own.machine and elf.byteorder == own.byteorder):
        return ()
    theirs = _MACHINES.get(elf.machine, f"machine {elf.machine}")
    ours = _MACHINES.get(own.machine, f"machine {own.machine}")
    if elf.byteorder == own.byteorder and _COMPATIBLE.get(own.machine) == elf.machine:
        return (f"{printable(path)} is a 32-bit program ({theirs}); not every {ours} kernel can execute it",)
    raise NotExecutable(f"is built for {theirs} ({elf.bits}-bit), this machine is {ours} ({own.bits}-bit)")


@cache
def _own_elf() -> Elf | None:
    try:
        with open("/proc/self/exe", "rb", buffering=0) as file:
            return read_elf(lambda offset, size: os.pread(file.fileno(), size, offset))
    except (OSError, ValueError):
        return None


def _path_of(root: int, fd: int) -> str | None:
    """The path of an open file seen from ``root``, as far as /proc can tell."""
    try:
        top = os.readlink(f"/proc/self/fd/{root}").rstrip("/")
        path = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return None
    return path[len(top) :] if path.startswith(f"{top}/") else None


def _why_unreachable(root: int, path: str, error: OSError | ValueError) -> str:
    if not isinstance(error, OSError):
        return "is not a possible path"
    if error.errno == ELOOP:
        return "is a symbolic link that leads in a circle"
    if error.errno not in (ENOENT, ENOTDIR):
        return f"cannot be opened: {error.strerror}"
    try:
        link = open_inside(root, path, os.O_PATH | os.O_NOFOLLOW)
    except OSError:
        return "is missing"
    try:
        return f"is a symbolic link to {printable(os.readlink('', dir_fd=link))}, which is missing"
    except OSError:
        return "is missing"
    finally:
        os.close(link)
