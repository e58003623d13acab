"""System calls that the standard library does not offer; with udev's shim the only user of ctypes.

Every function raises ``OSError(errno, text, path)`` on failure. Constants carry the names of the kernel's
headers (include/uapi/linux/mount.h, openat2.h, reboot.h, magic.h).
"""

from __future__ import annotations

import ctypes
import os
import sys
from errno import EINTR, ENOSYS
from typing import NoReturn


class MS:
    """Flags of mount(2): plain numbers, for making an enumeration takes longer than mounting."""

    RDONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    SYNCHRONOUS = 16
    REMOUNT = 32
    MANDLOCK = 64
    DIRSYNC = 128
    NOSYMFOLLOW = 256
    NOATIME = 1024
    NODIRATIME = 2048
    BIND = 4096
    MOVE = 8192
    REC = 16384
    SILENT = 32768
    UNBINDABLE = 1 << 17
    PRIVATE = 1 << 18
    SLAVE = 1 << 19
    SHARED = 1 << 20
    RELATIME = 1 << 21
    STRICTATIME = 1 << 24
    LAZYTIME = 1 << 25


MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_IN_ROOT = 0x10

TMPFS_MAGIC = 0x01021994
RAMFS_MAGIC = 0x858458F6

MODULE_INIT_COMPRESSED_FILE = 4

REBOOT_AUTOBOOT = 0x01234567
REBOOT_HALT = 0xCDEF0123
REBOOT_POWER_OFF = 0x4321FEDC
REBOOT_CAD_ON = 0x89ABCDEF
REBOOT_KEXEC = 0x45584543
REBOOT_CAD_OFF = 0

# The numbers of the calls that glibc 2.36 has no wrapper for. The two entered the kernel after numbers were
# unified, so they are the same on every architecture; finit_module is not, but glibc exports it nowhere.
_NR_OPENAT2 = 437
_NR_FINIT_MODULE = {
    "x86_64": 313,
    "aarch64": 273,
    "riscv64": 273,
    "ppc64le": 353,
    "s390x": 344,
    "armv7l": 379,
}
_NR_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217, "armv7l": 218}

_NR_RENAMEAT2 = {"x86_64": 316, "aarch64": 276, "riscv64": 276, "ppc64le": 357, "s390x": 347, "armv7l": 382}
_RENAME_EXCHANGE = 2

_NR_RT_SIGPROCMASK = {
    "x86_64": 14,
    "aarch64": 135,
    "riscv64": 135,
    "ppc64le": 174,
    "s390x": 175,
    "armv7l": 175,
}
_NR_RT_SIGACTION = {
    "x86_64": 13,
    "aarch64": 134,
    "riscv64": 134,
    "ppc64le": 173,
    "s390x": 174,
    "armv7l": 174,
}
_SIG_SETMASK = 2
SIG_DFL, SIG_IGN = 0, 1
# What glibc keeps to itself: to cancel a thread, and to change the user of all threads.
LIBRARY_SIGNALS = (32, 33)
ALL_SIGNALS = (1 << 64) - 1

# include/linux/socket.h, include/linux/net.h
_AF_UNIX, _SOCK_DGRAM, _SOCK_CLOEXEC = 1, 2, 0o2000000

# sizeof(struct crypt_data) of libxcrypt, in bytes.
_CRYPT_DATA = 32768

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.reboot.argtypes = (ctypes.c_int,)
_libc.syscall.restype = ctypes.c_long


def mount(
    source: str | None, target: str, fstype: str | None = None, flags: int = 0, data: str | None = None
) -> None:
    """mount(2). ``data`` is the file system's own option string."""
    arguments = (_bytes(source), os.fsencode(target), _bytes(fstype), int(flags), _bytes(data))
    while _libc.mount(*arguments):
        _fail_unless_interrupted(target)


def umount2(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    if _libc.umount2(os.fsencode(target), flags):
        _fail(target)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    _syscall(new_root, _number(_NR_PIVOT_ROOT), os.fsencode(new_root), os.fsencode(put_old))


def openat2(dirfd: int, path: str, flags: int, resolve: int = 0) -> int:
    """openat2(2) without a mode; returns a descriptor that exec closes. ENOSYS before Linux 5.6."""
    how = (ctypes.c_uint64 * 3)(flags | os.O_CLOEXEC, 0, resolve)
    return _syscall(path, _NR_OPENAT2, dirfd, os.fsencode(path), how, ctypes.sizeof(how))


def exchange(dirfd: int, one: str, other: str) -> None:
    """renameat2(2) with RENAME_EXCHANGE: two names in one directory change places at once.

    EINVAL from a file system that cannot do it; vfat can since Linux 6.0.
    """
    names = os.fsencode(one), os.fsencode(other)
    _syscall(one, _number(_NR_RENAMEAT2), dirfd, names[0], dirfd, names[1], _RENAME_EXCHANGE)


def datagram_socket(path: str) -> int:
    """A datagram socket of AF_UNIX that is bound to ``path``, unix(7), as a descriptor that exec closes.

    The module ``socket`` takes as long to import as a disk needs to be found.
    """
    fd = int(_libc.socket(_AF_UNIX, _SOCK_DGRAM | _SOCK_CLOEXEC, 0))
    if fd < 0:
        _fail(path)
    address = _AF_UNIX.to_bytes(2, sys.byteorder) + os.fsencode(path) + b"\0"
    if _libc.bind(fd, address, len(address)):
        code = ctypes.get_errno()
        os.close(fd)
        raise OSError(code, os.strerror(code), path)
    return fd


def finit_module(fd: int, options: str = "", flags: int = 0) -> None:
    """finit_module(2): load the module that ``fd`` is open on, with modprobe.d's ``options``."""
    _syscall(None, _number(_NR_FINIT_MODULE), fd, os.fsencode(options), flags)


def reboot(command: int) -> None:
    """reboot(2); the caller has synced. Returns only from the two commands for Ctrl-Alt-Del."""
    if _libc.reboot(command if command < 1 << 31 else command - (1 << 32)):
        _fail(None)


def crypt(library: str, phrase: bytearray, setting: bytes) -> bytes | None:
    """crypt_rn(3): hash a phrase as ``setting``, a hash of crypt(5), says; None when that cannot be done.

    ``library`` is the file name of libcrypt; OSError when it cannot be used. No copy of the phrase stays.
    """
    try:
        hashed = ctypes.CDLL(library).crypt_rn
    except AttributeError as error:
        raise OSError(ENOSYS, "no crypt_rn", library) from error
    hashed.restype = ctypes.c_char_p
    hashed.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int)
    # Both are zeroed; the phrase has a terminating zero, and struct crypt_data has room for ones to come.
    scratch, typed = (ctypes.c_char * _CRYPT_DATA)(), (ctypes.c_char * (len(phrase) + 1))()
    source = (ctypes.c_char * len(phrase)).from_buffer(phrase)
    ctypes.memmove(typed, source, len(phrase))
    try:
        result: bytes | None = hashed(typed, setting, scratch, _CRYPT_DATA)
        return result
    finally:
        ctypes.memset(typed, 0, len(typed))
        ctypes.memset(scratch, 0, len(scratch))


def set_signal_mask(mask: int) -> int:
    """rt_sigprocmask(2): let the calling thread block the signals whose bits are set; returns those before.

    glibc's own function leaves out 32 and 33, which it keeps to itself.
    """
    new, old = (ctypes.c_uint64 * 1)(mask), (ctypes.c_uint64 * 1)()
    _syscall(None, _number(_NR_RT_SIGPROCMASK), _SIG_SETMASK, new, old, ctypes.sizeof(new))
    return int(old[0])


def set_disposition(number: int, handler: int) -> None:
    """rt_sigaction(2) for a signal that glibc's own function refuses: ``SIG_DFL`` or ``SIG_IGN``."""
    # The handler comes first on every architecture; the rest may be zero (struct sigaction, signal_types.h).
    action = (ctypes.c_uint64 * 8)(handler)
    _syscall(None, _number(_NR_RT_SIGACTION), number, action, None, 8)


def statfs_type(path: str | int) -> int:
    """The magic number of the file system that ``path`` (or an open descriptor) is on (statfs(2) f_type)."""
    buffer = (ctypes.c_long * 32)()
    if isinstance(path, int):
        failed = _libc.fstatfs(path, buffer)
    else:
        failed = _libc.statfs(os.fsencode(path), buffer)
    if failed:
        _fail(None if isinstance(path, int) else path)
    return int(buffer[0]) & 0xFFFFFFFF


def _syscall(path: str | None, number: int, *arguments: object) -> int:
    # Variadic: integers must be widened by hand, or the upper half of the register is undefined.
    widened = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    while (result := int(_libc.syscall(ctypes.c_long(number), *widened))) < 0:
        _fail_unless_interrupted(path)
    return result


def _number(table: dict[str, int]) -> int:
    machine = os.uname().machine
    if machine not in table:
        raise OSError(ENOSYS, f"system call number not known on {machine}")
    return table[machine]


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def _fail_unless_interrupted(path: str | None) -> None:
    # A child ended: its signal ends a call that sleeps (signal(7)), such as loading a module that somebody
    # else is just loading, too.
    if ctypes.get_errno() != EINTR:
        _fail(path)


def _fail(path: str | None) -> NoReturn:
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code), path)
