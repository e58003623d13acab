"""Machines that exist only as the files their kernels would show."""

from __future__ import annotations

import os
from pathlib import Path


class MadeUpMachine:
    """The trees /proc, /sys, /dev and /etc below ``top``, written by and by."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.mounts: list[str] = []
        self.file("proc/sys/kernel/osrelease", "6.1.0-test\n")

    def file(self, path: str, content: str) -> None:
        place = self.top / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)

    def link(self, path: str, target: str) -> None:
        """A link that leads to ``target``, a path below the top."""
        place = self.top / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(self.top / target, place.parent))

    def device(self, path: str, modalias: str = "", module: str = "") -> str:
        """A device below /sys/devices; returns its path below the top."""
        place = f"sys/devices/{path}"
        (self.top / place).mkdir(parents=True, exist_ok=True)
        if modalias:
            self.file(f"{place}/modalias", f"{modalias}\n")
        if module:
            (self.top / "sys/module" / module).mkdir(parents=True, exist_ok=True)
            driver = f"sys/bus/made-up/drivers/{module}"
            if not (self.top / driver).exists():
                self.link(f"{driver}/module", f"sys/module/{module}")
            self.link(f"{place}/driver", driver)
        return place

    def block(self, path: str, number: str, *slaves: str, **attributes: str) -> str:
        """A block device; ``dm_name="x"`` is the attribute dm/name."""
        place = self.device(path)
        name = os.path.basename(path)
        self.file(f"{place}/dev", f"{number}\n")
        self.link(f"sys/dev/block/{number}", place)
        self.link(f"sys/class/block/{name}", place)
        self.file(f"dev/{name}", "")
        for slave in slaves:
            self.link(f"{place}/slaves/{os.path.basename(slave)}", slave)
        for key, value in attributes.items():
            self.file(f"{place}/{key.replace('_', '/')}", f"{value}\n")
        return place

    def mount(self, number: str, target: str, fstype: str, source: str, options: str = "rw") -> None:
        identity = 30 + len(self.mounts)
        self.mounts.append(f"{identity} 1 {number} / {target} rw - {fstype} {source} {options}\n")
        self.file("proc/self/mountinfo", "".join(self.mounts))
