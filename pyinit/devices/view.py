"""A device as udev described it at one moment."""

from __future__ import annotations

from typing import NamedTuple


class DeviceView(NamedTuple):
    """A frozen copy of a udev device; it stays true to what was seen, whatever happens to the device."""

    sys_path: str
    """``/sys/devices/...``"""
    name: str
    """The kernel's name, ``vda1``."""
    subsystem: str
    devtype: str
    """``disk``, ``partition`` or empty."""
    node: str
    """``/dev/vda1``, or empty when the device has no node."""
    number: tuple[int, int]
    """(major, minor); (0, 0) without a node."""
    links: tuple[str, ...]
    """Symbolic links that udev made for it, ``/dev/disk/by-uuid/...`` and others."""
    properties: dict[str, str]
    """udev properties. Values come from disks: print them only through :func:`pyinit.text.printable`."""
    initialized: bool
    """Whether udevd has processed the device; before that the properties are the kernel's only."""

    @property
    def path(self) -> str:
        """What tables of mounts call it: a mapping of the device mapper by its name, others by their node."""
        return next((link for link in self.links if link.startswith("/dev/mapper/")), self.node)
