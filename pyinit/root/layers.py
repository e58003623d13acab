"""A root of several layers: the changes that are laid over it.

The places are dracut's, for programs of live systems look there. All of them are below /run, which moves into
the new root with what is mounted on it, so that the lower root stays within reach of the real system.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from errno import EINVAL, ENODEV

from pyinit.config.overlay import Overlay
from pyinit.errors import BootError
from pyinit.kernel.executable import open_inside
from pyinit.kernel.files import link_if_possible, write_if_possible
from pyinit.kernel.messages import kernel_messages
from pyinit.kernel.syscalls import MS, mount
from pyinit.root.belongs import FSTAB, read_fstab
from pyinit.root.mount import BACKING, LOWER, SYSROOT, MountSpec
from pyinit.switch_root import empty_directory
from pyinit.text import printable

UPPER, WORK = f"{BACKING}/overlay", f"{BACKING}/ovlwork"
# Where dracut's users look for them.
LINKS = ((UPPER, "/run/overlayfs"), (WORK, "/run/ovlwork"))
#: What live systems know the overlay by in the table of mounts.
SOURCE = "LiveOS_rootfs"
FSTAB_COPY = "/run/pyinit/fstab"
_MARK = b"# Not with rd.overlay: "

Mount = Callable[[MountSpec], None]


def memory_mount(overlay: Overlay) -> MountSpec:
    """Where changes are kept that nobody asked to survive."""
    data = ",".join(filter(None, ("mode=0755", overlay.data)))
    return MountSpec("tmpfs", BACKING, "tmpfs", MS.NOSUID | MS.NODEV | MS.STRICTATIME, data)


def overlay_mount(overlay: Overlay) -> MountSpec:
    """Plan the overlay (Documentation/filesystems/overlayfs.rst); read-only it has lower layers only."""
    if overlay.readonly:
        return MountSpec(SOURCE, SYSROOT, "overlay", MS.RDONLY, f"lowerdir={UPPER}:{LOWER}")
    return MountSpec(SOURCE, SYSROOT, "overlay", 0, f"lowerdir={LOWER},upperdir={UPPER},workdir={WORK}")


def lay_over(overlay: Overlay, mount_it: Mount, warn: Callable[[str], None]) -> None:
    """Mount the overlay on /sysroot; its parts are mounted already.

    Raises :class:`BootError` ``E-MOUNT``.
    """
    spec = overlay_mount(overlay)
    holder = f"rd.overlay={printable(overlay.device)}" if overlay.device else "the memory for changes"
    try:
        _prepare(overlay)
    except OSError as error:
        raise BootError(
            "E-MOUNT",
            f"{holder} cannot keep the changes to the root: {error.strerror}",
            tried=(f"made the directories {UPPER} and {WORK}",),
            advice=_ADVICE,
        ) from error
    try:
        mount_it(spec)
    except OSError as error:
        lines = [line for line in kernel_messages(500) if "overlay" in line.lower()]
        advice: tuple[str, ...] = _ADVICE
        if error.errno == ENODEV:
            advice = ("This image has no driver for overlay: build one with --feature overlay.", *_ADVICE[1:])
        elif error.errno == EINVAL:
            advice = ("The layer for changes must be on ext4, xfs, btrfs, f2fs or in memory.", *_ADVICE)
        raise BootError(
            "E-MOUNT",
            f"the changes in {holder} cannot be laid over the root: {error.strerror}",
            tried=(spec.describe(),),
            found=tuple(f"kernel: {line}" for line in lines[-4:]) or ("the kernel says nothing about it",),
            advice=advice,
        ) from error
    for place, link in LINKS:
        link_if_possible(place, link)
    _take_root_out_of_fstab(overlay, warn)


_ADVICE = (
    "To keep changes in memory for this time: pyinit set rd.overlay=tmpfs, then leave the shell.",
    "To boot without them: pyinit set rd.overlay=off, then leave the shell.",
)


def _prepare(overlay: Overlay) -> None:
    if overlay.reset and not overlay.readonly:
        for place in (UPPER, WORK):
            _empty(place)
    for place in (UPPER,) if overlay.readonly else (UPPER, WORK):
        if not os.path.isdir(place):
            os.mkdir(place)
            # What the root directory itself is like is told by the topmost layer.
            below = os.stat(LOWER)
            os.chmod(place, below.st_mode & 0o7777)
            os.chown(place, below.st_uid, below.st_gid)


def _empty(place: str) -> None:
    try:
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if failures := empty_directory(fd, os.fstat(fd).st_dev):
            raise OSError(0, printable(failures[0]))
    finally:
        os.close(fd)


def without_root(fstab: bytes) -> bytes:
    """An fstab whose line for / is a comment: its options are those of another file system.

    systemd-remount-fs.service(8) would give them to the overlay, which refuses ``errors=remount-ro``.
    """
    return re.sub(rb"(?m)^(?=[ \t]*[^ \t\n#]+[ \t]+/[ \t])", _MARK, fstab)


def _take_root_out_of_fstab(overlay: Overlay, warn: Callable[[str], None]) -> None:
    before = read_fstab(SYSROOT)
    after = without_root(before)
    if after == before:
        return
    try:
        top = os.open(SYSROOT, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if not overlay.readonly:
                with open(open_inside(top, FSTAB, os.O_WRONLY | os.O_TRUNC), "wb") as file:
                    file.write(after)
                return
            fd = open_inside(top, FSTAB, os.O_PATH)
        finally:
            os.close(top)
        try:
            if write_if_possible(FSTAB_COPY, after):
                os.chmod(FSTAB_COPY, 0o644)
                mount(FSTAB_COPY, os.readlink(f"/proc/self/fd/{fd}"), None, MS.BIND)
        finally:
            os.close(fd)
    except OSError as error:
        warn(f"the line for / stays in fstab: {error.strerror}; its options are not those of an overlay")
