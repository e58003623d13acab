"""A boot hook: leaves a note about the root file system in /run, where the booted system can read it.

    pyinit-image build --hook docs/examples/50-last-boot.py -o IMAGE

With ``last-boot.require=/PATH`` on the kernel command line the boot stops unless the root has that file.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyinit.hooks import Moment

NOTE = "/run/last-boot.json"


def pre_pivot(moment: Moment) -> None:
    """The root is mounted on ``moment.sysroot``, and nothing of the initramfs is gone yet."""
    required = moment.command_line.last("last-boot.require")
    if required is not None and required.value:
        _require(moment.sysroot, required.value)
    root = os.statvfs(moment.sysroot)
    note = {
        "device": moment.root.node if moment.root else "",
        "free": root.f_bavail * root.f_frsize,
        "names": sorted(os.listdir(moment.sysroot)),
    }
    with open(NOTE, "w", encoding="ascii") as file:
        json.dump(note, file)
    moment.log(f"wrote {NOTE}")


def _require(sysroot: str, path: str) -> None:
    if not os.path.lexists(sysroot + path):
        raise FileNotFoundError(f"the root has no {path}")
