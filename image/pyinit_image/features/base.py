"""What a feature is, and what it is told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from ..facts import Facts
from ..kmods import Kernel
from ..plan import Plan
from ..sysroot import Sysroot


@dataclass(frozen=True, slots=True)
class Target:
    """What the image is built for."""

    sysroot: Sysroot
    """The target's tree; its paths are absolute, as the target sees them."""
    kernel: Kernel
    mode: str
    """``generic``, ``host`` or ``list``."""
    rescue: str
    """The policy of the rescue shell; empty while it is not decided, when features are chosen."""
    cmdline: str
    """The sealed words of the kernel command line."""
    facts: Facts | None = None
    """What the machine is made of, in mode ``host``."""


class Need(NamedTuple):
    """Something that the target system must have: a file at any of ``paths``."""

    paths: tuple[str, ...]
    package: str = ""
    """What to install when it is missing."""


class Feature:
    """The base of all features. A subclass sets ``name`` and ``summary`` and overrides what it needs to."""

    name: ClassVar[str] = ""
    """What follows ``--feature``."""
    summary: ClassVar[str] = ""
    """What it is for, in one line."""

    def wanted(self, target: Target) -> str:
        """Why this image should have it although nobody asked; empty when it should not."""
        return ""

    def needs(self, target: Target) -> Iterable[Need]:
        """What it takes from the target system.

        A missing one is an error when the feature was asked for; when it is only wanted, the image is built
        without it, with a warning.
        """
        return ()

    def modules(self, target: Target) -> Iterable[str]:
        """Kernel modules or aliases that it works with: they come along, with what they need.

        One that the kernel does not have is an error; ``target.kernel.find`` tells beforehand.
        """
        return ()

    def words(self, target: Target) -> str:
        """Words of the kernel command line to seal into the image, in front of those of --cmdline."""
        return ""

    def encrypted_root(self, target: Target) -> str:
        """Why the root of this system cannot be reached without a secret; empty when that is not known.

        Asked of the features of an image. Such an image has no rescue shell without a password, unless
        somebody asks for one.
        """
        return ""

    def add(self, plan: Plan, target: Target, reason: str) -> None:
        """Add its entries; ``reason`` is why the feature is there."""
