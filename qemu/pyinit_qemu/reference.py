"""The machine that figures of record are of: ext4 by UUID on a virtio disk, 512 MiB, a clock that counts
instructions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks.filesystems import Ext4
from pyinit_qemu.disks.tools import Progress, silent, version
from pyinit_qemu.images import initramfs
from pyinit_qemu.kernel import unpacked
from pyinit_qemu.peers import MODULES, installed_versions
from pyinit_qemu.smallroot import LABEL, small_image
from pyinit_qemu.spec import MIB, Disk, VmSpec

MEMORY = 512 * MIB
UUID = "6f0a3b5e-5d0c-4c53-9c0e-2f7a6d1b9e42"
WORDS = f"quiet ro fsck.mode=skip root=UUID={UUID}"
"""Nobody looks for file system damage: some initramfs would, some would not."""

IMAGES: dict[str, dict[str, Any]] = {
    "pyinit list": {"mode": "list", "modules": MODULES},
    "pyinit list unsigned": {"mode": "list", "modules": MODULES, "unsigned_modules": True},
    "pyinit generic": {"mode": "generic"},
}
"""Our images by name, and how each is built (:class:`pyinit_image.build.BuildSpec`)."""


def machine(debian: DebianRoot, progress: Progress = silent) -> VmSpec:
    """The machine, without an image."""
    disk = small_image(debian, lambda tree: Ext4(tree, label=LABEL, uuid=UUID)).build(progress=progress)
    return VmSpec(
        kernel=unpacked(debian.kernel),
        initrd=None,
        append=WORDS,
        disks=(Disk(disk),),
        memory=MEMORY,
        icount=True,
        # What is written to a serial port takes guest time.
        report=False,
    )


def image(name: str, debian: DebianRoot, progress: Progress = silent) -> Path:
    """One of :data:`IMAGES`."""
    return initramfs(debian, progress=progress, **IMAGES[name])


def versions(debian: DebianRoot) -> dict[str, str]:
    """What decides how long a boot takes, apart from pyinit itself."""
    return {
        "QEMU": re.sub(r"^.*version ([0-9.]+).*$", r"\1", version("qemu-system-x86_64")),
        **installed_versions(debian.tree, (f"linux-image-{debian.release}", "python3", "udev")),
    }
