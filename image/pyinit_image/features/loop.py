"""A root in a file: the drivers for ``loop=`` and live images."""

from __future__ import annotations

import os
from collections.abc import Iterable

from pyinit.config.options import boot_config

from .base import Feature, Target

#: What such files and media hold, besides what the device with them has.
MODULES = ("loop", "squashfs", "erofs", "isofs", "overlay")


class Loop(Feature):
    """Wanted when the sealed command line asks for it; its counterpart is ``pyinit/root/imagefile.py``."""

    name = "loop"
    summary = "boots a root that is a file on another file system, for loop= and root=live:"

    def wanted(self, target: Target) -> str:
        asked = boot_config(os.fsencode(target.cmdline)).image is not None
        return "loop= or a live image is sealed into the image" if asked else ""

    def modules(self, target: Target) -> Iterable[str]:
        return [name for name in MODULES if target.kernel.find(name)]
