"""Changes laid over the root: the driver for ``rd.overlay``."""

from __future__ import annotations

import os
from collections.abc import Iterable

from pyinit.config.options import boot_config

from .base import Feature, Target


class Overlay(Feature):
    """Wanted when the sealed command line asks for it; its counterpart is ``pyinit/root/layers.py``."""

    name = "overlay"
    summary = "lays changes over the root, for rd.overlay="

    def wanted(self, target: Target) -> str:
        asked = boot_config(os.fsencode(target.cmdline)).overlay is not None
        return "rd.overlay is sealed into the image" if asked else ""

    def modules(self, target: Target) -> Iterable[str]:
        return ("overlay",)
