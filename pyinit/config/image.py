"""The words for a root in a file: ``loop=`` and its like, and live images."""

from __future__ import annotations

from typing import NamedTuple

from pyinit.config.cmdline import CommandLine
from pyinit.config.fstab import normalise
from pyinit.text import printable

# Where the tools that make live media put it.
LIVE_FOLDER, LIVE_NAME = "LiveOS", "squashfs.img"
#: An image may hold another one, which is the root.
LIVE_INSIDE = "/LiveOS/rootfs.img"
_TAGS = ("LABEL=", "UUID=", "PARTUUID=", "PARTLABEL=", "/dev/")


class ImageFile(NamedTuple):
    """A file that holds the root's file system."""

    path: str
    """On the file system of ``root=``, absolute and normalised."""
    fstype: str = ""
    """Empty: what is found in it."""
    flags: str = ""
    """Mount options of the file system in it."""
    live: bool = False
    """Whether it is a live image: one that may hold another one, and has changes laid over it."""


def live_device(root: str) -> str:
    """The device with a live image that ``root=live:...`` names, as ``root=`` does; empty when it names none.

    ``CDLABEL=`` is the label of the file system, of a CD as of anything else.
    """
    device = root.removeprefix("live:")
    if device == root:
        return ""
    if device.startswith("CDLABEL="):
        device = device.removeprefix("CD")
    return device if device.startswith(_TAGS) else ""


def image_words(line: CommandLine, root: str, warnings: list[str]) -> tuple[str, ImageFile | None]:
    """``root=`` without what is no device's name, and the file on it; None when the device is the root.

    ``warnings`` gets what is not understood.
    """
    device = live_device(root)
    if device or line.flag("rd.live.image", False):
        folder = line.text("rd.live.dir") or LIVE_FOLDER
        name = line.text("rd.live.squashimg") or LIVE_NAME
        return device or root, ImageFile(normalise(f"/{folder}/{name}"), live=True)
    path = line.text("loop")
    if not path:
        return root, None
    place = normalise(f"/{path}")
    if place == "/":
        warnings.append(f"loop={printable(path)[:80]} is not understood: the path of a file is expected")
        return root, None
    fstype = line.text("loopfstype")
    return root, ImageFile(place, "" if fstype == "auto" else fstype, line.text("loopflags"))
