"""A feature of pyinit images: findmnt(8), to look at mounts in the rescue shell."""

from __future__ import annotations

from collections.abc import Iterable

from pyinit_image.features import Feature, Need, Target
from pyinit_image.plan import Plan


class Findmnt(Feature):
    """The program with its libraries, wanted by every image that has a rescue shell."""

    name = "findmnt"
    summary = "shows what is mounted, as a tree"

    def wanted(self, target: Target) -> str:
        return "the image has a rescue shell" if target.rescue != "none" else ""

    def needs(self, target: Target) -> Iterable[Need]:
        return [Need(("/usr/bin/findmnt", "/bin/findmnt"), package="util-linux")]

    def add(self, plan: Plan, target: Target, reason: str) -> None:
        place = target.sysroot.find("/usr/bin/findmnt", "/bin/findmnt")
        assert place is not None  # It is among the needs.
        plan.file(place, f"shows mounts in the rescue shell ({reason})")
