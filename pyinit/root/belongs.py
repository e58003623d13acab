"""What belongs to the root and is mounted before the switch: /usr, and fstab lines with x-initrd.mount."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

from pyinit.config.fstab import Fstab, Line, normalise
from pyinit.config.options import BootConfig
from pyinit.errors import BootError
from pyinit.kernel.executable import open_inside
from pyinit.text import printable

FSTAB = "etc/fstab"
_BINDS = ("bind", "rbind")


class Wanted(NamedTuple):
    """A file system that is to be mounted inside the new root."""

    target: str
    """Where, as the real system sees it: ``/usr``."""
    source: str
    fstype: str
    """``auto`` or empty for what udev finds."""
    options: str
    origin: str
    """Who asks for it, printable."""
    optional: bool
    """Whether the boot goes on without it (``nofail``)."""
    checked: bool
    """Whether it is checked before it is mounted (fs_passno of fstab(5))."""

    @property
    def on_device(self) -> bool:
        """Whether it lies on a block device."""
        return self.source.startswith("/dev/") or ("=" in self.source and not self.is_bind)

    @property
    def is_bind(self) -> bool:
        """Whether it is a directory of the new root that appears somewhere else, too (mount(8))."""
        return any(name in self.options.split(",") for name in _BINDS)


def wanted(fstab: Fstab, config: BootConfig) -> tuple[list[Wanted], list[str]]:
    """What is to be mounted, parents first, and warnings about what is not.

    ``rd.fstab=0`` leaves the lines out. ``mount.usr=`` takes the place of the line for /usr. It is mounted
    read-only when the root is: the real system remounts both (systemd-remount-fs.service(8)).
    """
    found: dict[str, Wanted] = {}
    warnings = list(fstab.warnings) if config.fstab else []
    for line in fstab.lines if config.fstab else ():
        if line.target in ("/", "none") or not (line.target == "/usr" or line.has("x-initrd.mount")):
            continue
        if line.has("noauto"):
            continue
        if line.has("_netdev") or line.fstype.startswith(("nfs", "cifs", "9p", "ceph")):
            warnings.append(
                f"fstab line {line.number}: {printable(line.target)} is on a network: not mounted here"
            )
            continue
        found[line.target] = _of_line(line)
    if config.usr:
        before = found.get("/usr")
        flags = config.usrflags or (before.options if before else "")
        fstype = config.usrfstype or (before.fstype if before else "")
        found["/usr"] = Wanted("/usr", config.usr, fstype, flags, "mount.usr=", False, True)
    if "/usr" in found and config.read_only:
        usr = found["/usr"]
        found["/usr"] = usr._replace(options=",".join(filter(None, (usr.options, "ro"))))
    return in_order(found.values()), warnings


def in_order(found: Iterable[Wanted]) -> list[Wanted]:
    """Parents before what lies on them, and before a directory is bound what is mounted on the way to it."""
    left = sorted(found, key=lambda one: one.target.split("/"))
    ordered: list[Wanted] = []
    while left:
        # Two that need each other are taken as they come.
        ready = (one for one in left if not any(_needs(one, other) for other in left if other is not one))
        one = next(ready, left[0])
        left.remove(one)
        ordered.append(one)
    return ordered


def _needs(one: Wanted, other: Wanted) -> bool:
    paths = [one.target, *([normalise(one.source)] if one.is_bind else [])]
    return any(f"{path}/".startswith(f"{other.target}/") for path in paths)


def read_fstab(root: str) -> bytes:
    """The fstab of a root file system, found as it would be from inside; empty when there is none."""
    try:
        top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with open(open_inside(top, FSTAB, os.O_RDONLY), "rb") as file:
                return file.read(1 << 20)
        finally:
            os.close(top)
    except OSError:
        return b""


def place_inside(root: str, path: str) -> str:
    """Where a path of the new root lies, seen from here, with no symbolic link leading out of the root.

    OSError when there is no such thing.
    """
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = open_inside(top, path.lstrip("/") or ".", os.O_PATH)
    finally:
        os.close(top)
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def explain(one: Wanted, error: BootError, root: str) -> BootError:
    """A failure of one of them, told as what it means for the boot."""
    where = printable(one.target)
    advice = (
        f"Mount it by hand on {root}{where}, or correct {one.origin}; then leave the shell.",
        *(("mount.usr=UUID=... names another /usr.",) if one.target == "/usr" else ()),
        *error.advice,
    )
    code = "E-USR" if one.target == "/usr" else error.code
    return BootError(
        code,
        f"{where} ({one.origin}) cannot be mounted: {error.cause}",
        tried=error.tried,
        found=error.found,
        advice=advice,
    )


def _of_line(line: Line) -> Wanted:
    return Wanted(
        line.target,
        line.source,
        line.fstype,
        ",".join(line.options),
        f"fstab line {line.number}",
        line.has("nofail"),
        line.passno > 0,
    )
