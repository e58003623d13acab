"""Mounting the root file system."""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import EACCES, EBUSY, EINVAL, EIO, ENODEV, ENXIO, EROFS
from typing import NamedTuple

from pyinit.config.fstab import split_options
from pyinit.errors import BootError
from pyinit.kernel import mountinfo
from pyinit.kernel.console import Console
from pyinit.kernel.messages import kernel_messages
from pyinit.kernel.modules import Modules
from pyinit.kernel.patience import Patience
from pyinit.kernel.syscalls import MNT_DETACH, MS, mount, umount2
from pyinit.record import now
from pyinit.text import printable

SYSROOT = "/sysroot"
# What a root of several layers is made of: the medium with the file that it is in, what that file holds, the
# root below the changes, what keeps these. The places are dracut's, for programs of live systems look there.
MEDIUM = "/run/initramfs/live"
CONTENT = "/run/initramfs/squashfs"
LOWER = "/run/rootfsbase"
BACKING = "/run/overlayfs-backing"
# What lies on others comes first.
PARTS = (LOWER, CONTENT, MEDIUM, BACKING)

# mount(8), "FILESYSTEM-INDEPENDENT MOUNT OPTIONS": those that are flags of mount(2). Value: (set, clear).
_FLAG_OPTIONS: dict[str, tuple[int, int]] = {
    "defaults": (0, 0),
    "ro": (MS.RDONLY, 0),
    "rw": (0, MS.RDONLY),
    "nosuid": (MS.NOSUID, 0),
    "suid": (0, MS.NOSUID),
    "nodev": (MS.NODEV, 0),
    "dev": (0, MS.NODEV),
    "noexec": (MS.NOEXEC, 0),
    "exec": (0, MS.NOEXEC),
    "sync": (MS.SYNCHRONOUS, 0),
    "async": (0, MS.SYNCHRONOUS),
    "dirsync": (MS.DIRSYNC, 0),
    "noatime": (MS.NOATIME, 0),
    "atime": (0, MS.NOATIME),
    "nodiratime": (MS.NODIRATIME, 0),
    "diratime": (0, MS.NODIRATIME),
    "relatime": (MS.RELATIME, 0),
    "norelatime": (0, MS.RELATIME),
    "strictatime": (MS.STRICTATIME, 0),
    "nostrictatime": (0, MS.STRICTATIME),
    "lazytime": (MS.LAZYTIME, 0),
    "nolazytime": (0, MS.LAZYTIME),
    "bind": (MS.BIND, 0),
    "rbind": (MS.BIND | MS.REC, 0),
    "silent": (MS.SILENT, 0),
    "loud": (0, MS.SILENT),
    "mand": (MS.MANDLOCK, 0),
    "nomand": (0, MS.MANDLOCK),
}
# Read by mount(8) and systemd from fstab, never by a file system.
_USERSPACE_OPTIONS = ("auto", "noauto", "nofail", "_netdev", "user", "nouser", "users", "owner", "group")


class MountSpec(NamedTuple):
    """A mount that is to be made."""

    source: str
    target: str
    fstype: str
    flags: int
    data: str

    def adding(self, option: str) -> MountSpec:
        """The same with one more option of the file system's own; empty for none."""
        return self._replace(data=",".join(filter(None, (self.data, option))))

    def describe(self) -> str:
        """The mount(8) command that does the same."""
        options = ",".join(filter(None, ("ro" if self.flags & MS.RDONLY else "rw", self.data)))
        words = ("mount", "-t", self.fstype, "-o", options, self.source, self.target)
        return printable(" ".join(words))


def parse_options(options: str, flags: int = 0) -> tuple[int, str]:
    """Split mount options into the flags of mount(2), starting from ``flags``, and the file system's own."""
    data = []
    for option in split_options(options):
        if option in _FLAG_OPTIONS:
            added, removed = _FLAG_OPTIONS[option]
            flags = flags & ~removed | added
        elif option not in _USERSPACE_OPTIONS and not option.startswith(("x-", "comment=")):
            data.append(option)
    return flags, ",".join(data)


def root_mount(device: str, found_type: str, options: str, writable: bool) -> MountSpec:
    """Plan the mount of the root: read-only unless ``rw``, of the type that udev found (empty: not known).

    ``rootflags=`` may say ``ro`` too, but it cannot make writable what the command line did not.
    """
    flags, data = parse_options(options)
    if not writable:
        flags |= MS.RDONLY
    return MountSpec(device, SYSROOT, found_type, flags, data)


def mount_filesystem(
    spec: MountSpec,
    fstypes: tuple[str, ...],
    modules: Modules,
    console: Console,
    patience: Patience,
    what: str = "the root file system",
) -> None:
    """Mount ``what``; ``E-MOUNT`` explains a failure with the kernel's own words.

    ``fstypes`` (``rootfstype=``) are tried in order, then the type that udev found.
    """
    failures = []
    last: OSError | None = None
    candidates = (*fstypes, spec.fstype) if spec.fstype and spec.fstype not in fstypes else fstypes
    for fstype in candidates:
        attempt = spec._replace(fstype=fstype)
        try:
            mount_one(attempt, modules, console, patience)
        except OSError as error:
            failures.append(f"{attempt.describe()}: {error.strerror}")
            last = error
            continue
        return
    raise BootError(
        "E-MOUNT",
        f"{printable(spec.source)} cannot be mounted as {what}: "
        + (str(last.strerror) if last else "no file system was recognised on it"),
        tried=tuple(failures),
        found=tuple(_found(spec, candidates)),
        advice=_advice(last, spec),
    )


def mount_one(spec: MountSpec, modules: Modules, console: Console, patience: Patience) -> None:
    """Mount something that is known to be of its type, and record it; OSError as the kernel says it."""
    os.makedirs(spec.target, 0o755, exist_ok=True)
    fstype = printable(spec.fstype)
    modules.load_for_filesystem(spec.fstype)
    begin = now()
    patience.call(f"mounting {printable(spec.source)} ({fstype})", _mount, spec)
    options = ",".join(filter(None, ("ro" if spec.flags & MS.RDONLY else "rw", spec.data)))
    console.record.add(
        "mounts",
        source=printable(spec.source),
        target=spec.target,
        type=fstype,
        options=printable(options),
        start=begin,
        end=now(),
    )
    console.info(f"mounted {printable(spec.source)} ({fstype}) on {spec.target}")


def unmount_root(flags: int = 0) -> None:
    """Unmount the root and what it is made of; what somebody looks at goes when they look away.

    OSError when something stays.
    """
    there = {mount.target for mount in mountinfo.read()}
    for place in (SYSROOT, *PARTS):
        if place in there:
            try:
                umount2(place, flags)
            except OSError:
                umount2(place, MNT_DETACH)


def _found(spec: MountSpec, fstypes: tuple[str, ...]) -> Iterator[str]:
    """What is there instead of what was asked for, and what the kernel says of it."""
    if not spec.fstype:
        yield f"udev recognises no file system on {printable(spec.source)}"
    elif fstypes[0] != spec.fstype:
        wanted = printable(fstypes[0])
        yield f"{printable(spec.source)} holds {printable(spec.fstype)} as udev sees it, not {wanted}"
    else:
        yield f"{printable(spec.source)} holds {printable(spec.fstype)}, as udev sees it"
    name = os.path.basename(os.path.realpath(spec.source))
    # The kernel names what it has trouble with: a partition, its disk, or the type of the file system.
    disk = name.rstrip("0123456789")
    # nvme0n1p1: where a disk's name ends with a digit, partitions have a p before theirs.
    disk = disk.removesuffix("p") if disk[-2:-1].isdigit() else disk
    words = {name, disk, *fstypes}
    messages = [line for line in kernel_messages(500) if any(word in line.lower() for word in words if word)]
    yield from (f"kernel: {line}" for line in messages[-4:] or ["(nothing about it)"])


def _mount(spec: MountSpec) -> None:
    if spec.flags & MS.BIND:
        # A new bind mount has the flags of its origin; they are changed afterwards (mount(2), "Remounting").
        mount(spec.source, spec.target, None, spec.flags & (MS.BIND | MS.REC))
        if changes := spec.flags & ~(MS.BIND | MS.REC):
            mount(None, spec.target, None, MS.REMOUNT | MS.BIND | changes)
        return
    try:
        mount(spec.source, spec.target, spec.fstype, spec.flags, spec.data)
    except OSError as error:
        # The file system (squashfs, erofs, iso9660: EROFS) or the medium (EACCES) cannot be written; mount(8)
        # does the same.
        if error.errno not in (EROFS, EACCES) or spec.flags & MS.RDONLY:
            raise
        mount(spec.source, spec.target, spec.fstype, spec.flags | MS.RDONLY, spec.data)


def _advice(error: OSError | None, spec: MountSpec) -> tuple[str, ...]:
    if error is None:
        return ("Name its type with rootfstype=, or correct root=.",)
    fstype = printable(spec.fstype)
    if error.errno == ENODEV:
        return (f"This image has no driver for {fstype}: build one with --module {fstype}.",)
    if error.errno == EINVAL:
        return ("Check rootflags= and rootfstype=; the file system may be damaged: check it with fsck.",)
    if error.errno in (EIO, ENXIO):
        return ("The device does not answer: look at its cable, its controller, its health.",)
    if error.errno == EBUSY:
        return ("Something else uses the device: look at `pyinit devices`.",)
    return ("Mount it by hand on /sysroot and leave the shell to go on.",)
