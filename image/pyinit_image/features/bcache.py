"""bcache: devices with a cache in front of them. The kernel does it all; no program is needed."""

from __future__ import annotations

from collections.abc import Iterable

from pyinit.config.volumes import dump
from pyinit.storage import SEALED_BCACHE

from ..facts import Block
from ..plan import Plan
from .base import Feature, Target

OWN_RULES = "/usr/lib/udev/rules.d/65-pyinit-bcache.rules"
#: The kernel tells the UUID once, when the device starts (drivers/md/bcache/super.c); later events have it
#: from udev's database, which the real system goes on with, and which keeps only what a rule has set.
#: bcache-tools' own rules are left out: they register whatever appears.
RULES = b"""# Written by pyinit-image: links of devices with a cache.
SUBSYSTEM!="block", GOTO="pyinit_bcache_end"
KERNEL!="bcache[0-9]*", GOTO="pyinit_bcache_end"
ACTION=="remove", GOTO="pyinit_bcache_end"
ENV{CACHED_UUID}=="?*", ENV{CACHED_UUID}="$env{CACHED_UUID}"
ENV{CACHED_LABEL}=="?*", ENV{CACHED_LABEL}="$env{CACHED_LABEL}"
ENV{CACHED_UUID}!="?*", IMPORT{db}="CACHED_UUID"
ENV{CACHED_LABEL}!="?*", IMPORT{db}="CACHED_LABEL"
ENV{DEVTYPE}=="disk", ENV{CACHED_UUID}=="?*", SYMLINK+="bcache/by-uuid/$env{CACHED_UUID}"
ENV{DEVTYPE}=="disk", ENV{CACHED_LABEL}=="?*", SYMLINK+="bcache/by-label/$env{CACHED_LABEL}"
OPTIONS+="db_persist"
LABEL="pyinit_bcache_end"
"""


class Bcache(Feature):
    """Wanted when the root is on a bcache."""

    name = "bcache"
    summary = "devices with a cache in front of them (bcache)"

    def wanted(self, target: Target) -> str:
        return next((f"{block.name} is in use for the root" for block in _blocks(target)), "")

    def modules(self, target: Target) -> Iterable[str]:
        return ("bcache",)

    def add(self, plan: Plan, target: Target, reason: str) -> None:
        plan.data(OWN_RULES, RULES, reason)
        if uuids := sorted({block.label for block in _blocks(target) if block.label}):
            plan.data(SEALED_BCACHE, dump([uuid] for uuid in uuids), "the backing devices the root is on")


def _blocks(target: Target) -> list[Block]:
    blocks = target.facts.blocks if target.facts is not None else ()
    return [block for block in blocks if block.kind == "stack" and block.name.startswith("bcache")]
