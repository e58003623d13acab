"""The kernel's own file systems, mounted before anything else, and the names people expect in /dev."""

from __future__ import annotations

import os
from collections.abc import Callable
from errno import EBUSY
from typing import NamedTuple

from pyinit.errors import BootError
from pyinit.kernel.syscalls import MS, mount


class ApiMount(NamedTuple):
    """A file system of the kernel and where programs look for it."""

    source: str
    target: str
    fstype: str
    flags: int
    data: str


# Flags and modes as systemd mounts them (src/shared/mount-setup.c documents its reasons), so that the real
# init finds what it would have made. /run stays executable: /run/initramfs/shutdown is run from there.
API_MOUNTS = (
    ApiMount("proc", "/proc", "proc", MS.NOSUID | MS.NODEV | MS.NOEXEC, ""),
    ApiMount("sysfs", "/sys", "sysfs", MS.NOSUID | MS.NODEV | MS.NOEXEC, ""),
    ApiMount("devtmpfs", "/dev", "devtmpfs", MS.NOSUID | MS.STRICTATIME, "mode=0755"),
    ApiMount("devpts", "/dev/pts", "devpts", MS.NOSUID | MS.NOEXEC, "mode=0620,gid=5"),
    ApiMount("tmpfs", "/dev/shm", "tmpfs", MS.NOSUID | MS.NODEV | MS.STRICTATIME, "mode=1777"),
    ApiMount("tmpfs", "/run", "tmpfs", MS.NOSUID | MS.NODEV | MS.STRICTATIME, "mode=0755,size=20%"),
)

# Documentation/admin-guide/devices.rst, "Compulsory links".
DEV_LINKS = (
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/core", "/proc/kcore"),
)


# Without these two a boot is poorer; without the others there is none.
_OPTIONAL = ("/dev/pts", "/dev/shm")


def mount_api_filesystems(warn: Callable[[str], None]) -> None:
    """Mount /proc, /sys, /dev, /dev/pts, /dev/shm and /run; what is mounted already stays as it is."""
    for entry in API_MOUNTS:
        try:
            if not os.path.isdir(entry.target):
                os.mkdir(entry.target, 0o755)
            if os.path.ismount(entry.target):
                continue
            mount(entry.source, entry.target, entry.fstype, entry.flags, entry.data)
        except OSError as error:
            if entry.target in _OPTIONAL:
                warn(f"{entry.fstype} cannot be mounted on {entry.target}: {error.strerror}")
            elif error.errno != EBUSY:
                raise BootError(
                    "E-MOUNT",
                    f"the kernel's {entry.fstype} cannot be mounted on {entry.target}: {error.strerror}",
                    advice=(f"Boot a kernel that was built with {entry.fstype}.",),
                ) from error
    for link, target in DEV_LINKS:
        try:
            os.symlink(target, link)
        except FileExistsError:
            pass
    for directory in ("/run/pyinit", "/run/initramfs", "/run/udev"):
        os.makedirs(directory, 0o755, exist_ok=True)


def read_only_data(fstype: str) -> str:
    """The option without which mounting read-only would still write: the log would be replayed."""
    return {"ext3": "noload", "ext4": "noload", "xfs": "norecovery"}.get(fstype, "")
