"""What a verification finds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pyinit.text import printable

#: Every code, and what it is about.
CODES = {
    "archive": "the file is no image, or a damaged one",
    "name": "a member whose name leads upwards",
    "parent": "a member comes before its directory",
    "twice": "one archive has a name twice, with different content",
    "init": "the program that the kernel starts",
    "console": "the terminal that the kernel opens for it",
    "sentinel": "the last member, which shows that nothing was cut off",
    "manifest": "the list of all entries, or an entry that is not as listed",
    "elf": "a damaged program or library",
    "machine": "a program, library or module for another processor",
    "library": "a shared library or program loader that is not there",
    "interpreter": "an interpreter that is not there or cannot be executed",
    "python": "a Python module that cannot be imported",
    "kernel": "modules for another kernel",
    "vermagic": "a module that was made for another kernel than its directory says",
    "module": "a kernel module that is missing or damaged",
    "index": "the index of the kernel modules",
    "udev": "a program that udev rules call",
    "memory": "the memory that unpacking takes",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with an image. All text is printable."""

    code: str
    """A key of :data:`CODES`."""
    path: str
    """The entry of the image that it is about, or ``/``."""
    message: str
    """What is wrong, and what fails at boot because of it."""
    hint: str
    """What to do."""
    fatal: bool
    """The boot fails for certain, or an image of ours is not what was built."""


def some(names: Iterable[str], most: int = 4) -> str:
    """A few of the names, printable, and how many more there are."""
    ordered = sorted(names)
    shown = ", ".join(printable(name) for name in ordered[:most])
    return shown if len(ordered) <= most else f"{shown} and {len(ordered) - most} more"
