"""A root in a file: the file becomes a block device, without losetup."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOENT, ENXIO

from pyinit.config.image import ImageFile
from pyinit.errors import BootError
from pyinit.kernel.executable import open_inside
from pyinit.kernel.files import names
from pyinit.kernel.modules import Modules
from pyinit.kernel.patience import Patience
from pyinit.text import printable

# include/uapi/linux/loop.h. struct loop_config: descriptor, block size, struct loop_info64, reserved.
_LOOP_CONFIGURE, _LOOP_CTL_GET_FREE = 0x4C0A, 0x4C82
_LO_FLAGS_READ_ONLY, _LO_FLAGS_AUTOCLEAR = 1, 4
_CONFIG = struct.Struct("=II 5Q 4I 64s 64s 32s 2Q 8Q")
_CONTROL = "/dev/loop-control"
_HEAD = 65664
_SHOWN = 8

# Where file systems have their names: (offset, bytes, type).
_MARKS = (
    (0, b"hsqs", "squashfs"),
    (1024, b"\xe2\xe1\xf5\xe0", "erofs"),
    (1024 + 56, b"\x53\xef", "ext4"),
    (0, b"XFSB", "xfs"),
    (32769, b"CD001", "iso9660"),
    (65536 + 64, b"_BHRfS_M", "btrfs"),
)


def recognise(head: bytes) -> str:
    """The type of the file system that begins so; empty when it is none of those that roots have.

    ext2 and ext3 are ext4's, too: one driver mounts all three.
    """
    for offset, mark, fstype in _MARKS:
        if head[offset : offset + len(mark)] == mark:
            return fstype
    return ""


def exists(top: str, path: str) -> bool:
    """Whether a file system, mounted on ``top``, has this file."""
    try:
        root = os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.close(open_inside(root, path.lstrip("/"), os.O_PATH))
        finally:
            os.close(root)
    except OSError:
        return False
    return True


@contextmanager
def attached(
    top: str, image: ImageFile, writable: bool, modules: Modules, patience: Patience
) -> Iterator[tuple[str, str]]:
    """The block device of an image on the file system mounted on ``top``, and the type of what is in it.

    It vanishes with its last user: what is mounted within the block keeps it. ``E-MOUNT`` when the file is
    not there or cannot be attached.
    """
    what = f"reading {printable(image.path)}"
    file, head = patience.call(what, _open, top, image, os.O_RDWR if writable else os.O_RDONLY)
    try:
        modules.load("loop")
        node, device = _configure(file, image, writable)
        try:
            yield node, image.fstype or recognise(head)
        finally:
            os.close(device)
    finally:
        os.close(file)


def _open(top: str, image: ImageFile, flags: int) -> tuple[int, bytes]:
    """The file, and what it begins with."""
    root = os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        file = open_inside(root, image.path.lstrip("/"), flags)
        try:
            return file, os.pread(file, _HEAD, 0)
        except OSError:
            os.close(file)
            raise
    except OSError as error:
        words = "rd.live.dir= and rd.live.squashimg=" if image.live else "loop="
        raise BootError(
            "E-MOUNT",
            f"the image {printable(image.path)} cannot be read: {error.strerror}",
            tried=(f"looked for it in the file system on {top}",),
            found=_looked_at(top, image.path),
            advice=(
                f"Correct {words} here with pyinit set, or root=, then leave the shell.",
                f"To look at the file system: pyinit set rd.break=mount, or mount it on {top}.",
            ),
        ) from error
    finally:
        os.close(root)


def _looked_at(top: str, path: str) -> tuple[str, ...]:
    """What is in the lowest folder of the path that is there."""
    folder = path
    while folder != "/":
        folder = os.path.dirname(folder)
        if (folder == "/" or exists(top, folder)) and (there := names(f"{top}{folder}")):
            shown = ", ".join(printable(name)[:40] for name in there[:_SHOWN])
            more = f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else ""
            return (f"{printable(folder)} holds {shown}{more}",)
    return ("the file system is empty",)


def _configure(file: int, image: ImageFile, writable: bool) -> tuple[str, int]:
    flags = _LO_FLAGS_AUTOCLEAR | (0 if writable else _LO_FLAGS_READ_ONLY)
    name = os.fsencode(image.path)[:63]
    config = _CONFIG.pack(file, 0, 0, 0, 0, 0, 0, 0, 0, 0, flags, name, b"", b"", 0, 0, *[0] * 8)
    try:
        control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
        try:
            node = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
        finally:
            os.close(control)
        device = os.open(node, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        try:
            fcntl.ioctl(device, _LOOP_CONFIGURE, config)
        except BaseException:
            os.close(device)
            raise
    except OSError as error:
        missing = error.errno in (ENOENT, ENXIO)
        raise BootError(
            "E-MOUNT",
            f"the image {printable(image.path)} cannot be made a block device: {error.strerror}",
            tried=(f"LOOP_CONFIGURE after {_CONTROL}",),
            advice=("This image has no driver for loop devices: build one with --feature loop.",)
            if missing
            else ("The kernel's log may say more: dmesg.",),
        ) from error
    return node, device
