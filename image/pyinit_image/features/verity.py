"""A root whose every block is checked (dm-verity): veritysetup and the kernel's part of it."""

from __future__ import annotations

import os
from collections.abc import Iterable

from pyinit.config.options import boot_config

from ..plan import Plan
from ..tools import DIRECTORIES
from . import devmapper
from .base import Feature, Need, Target

VERITYSETUP = Need(tuple(f"{directory}/veritysetup" for directory in DIRECTORIES), package="cryptsetup-bin")
MODULES = ("dm-mod", "dm-verity", "crypto-sha256", "crypto-sha512")


class Verity(Feature):
    """Wanted when the sealed command line has ``roothash=``, or the root is checked so now."""

    name = "verity"
    summary = "opens a root that is checked against a hash, for roothash="

    def wanted(self, target: Target) -> str:
        if boot_config(os.fsencode(target.cmdline)).verity is not None:
            return "roothash= is sealed into the image"
        for block in target.facts.blocks if target.facts is not None else ():
            if block.mapping.startswith("CRYPT-VERITY"):
                return f"the checked device {block.name} is in use for the root"
        return ""

    def needs(self, target: Target) -> Iterable[Need]:
        return (VERITYSETUP, devmapper.DMSETUP)

    def modules(self, target: Target) -> Iterable[str]:
        return [name for name in MODULES if target.kernel.find(name)]

    def add(self, plan: Plan, target: Target, reason: str) -> None:
        place = target.sysroot.find(*VERITYSETUP.paths)
        assert place is not None  # It is among the needs.
        devmapper.collect(plan, plan.file(place, reason))
