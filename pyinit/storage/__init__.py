"""Storage stacks: which of them a boot needs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

#: What the builder knows of the root's volumes and of the system's arrays (pyinit.config.volumes).
SEALED_VOLUMES = "/etc/pyinit/volumes.json"
SEALED_ARRAYS = "/etc/pyinit/arrays.json"
#: The backing devices that the root lies on.
SEALED_BCACHE = "/etc/pyinit/bcache.json"
#: The disks that the system reaches in several ways, by WWID, and what was made of the request.
SEALED_MULTIPATH = "/etc/pyinit/multipath.json"
MULTIPATH_MARKS = "/run/pyinit/multipath"

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from pyinit.context import Context
    from pyinit.devices.waiting import Assembler

    Row = TypeVar("Row")


def assemblers(context: Context) -> list[Assembler]:
    """The stacks that may have something to do, those that others may lie on first.

    Looks are cheap here and nothing is imported for a boot without them: most have none.
    """
    found: list[Assembler] = []
    config = context.config
    if (
        config.multipath
        or any(map(os.path.exists, (SEALED_MULTIPATH, MULTIPATH_MARKS)))
        or any(path.startswith("/dev/disk/by-id/dm-uuid-") for path in asked_paths(context))
    ):
        from pyinit.storage.multipath import make as make_multipath

        found += filter(None, (make_multipath(context),))
    volumes = (
        config.volumes or _names_volume(context) or any(map(os.path.exists, (SEALED_VOLUMES, SEALED_ARRAYS)))
    )
    if volumes:
        from pyinit.storage.wanted import make_md

        found += filter(None, (make_md(context),))
    if config.bcache or os.path.exists(SEALED_BCACHE) or _names_bcache(context):
        from pyinit.storage.bcache import make as make_bcache

        found += filter(None, (make_bcache(context),))
    if (
        os.path.exists("/etc/crypttab")
        or config.luks
        or any(path.startswith("/dev/mapper/luks-") for path in asked_paths(context))
    ):
        from pyinit.storage.luks import make

        if (luks := make(context)) is not None:
            found.append(luks)
    if volumes:
        from pyinit.storage.wanted import make_lvm

        # Stacks are closed from the last to the first: logical volumes on encrypted ones go before these.
        # Those below an encrypted volume hold no secret and stay.
        found += filter(None, (make_lvm(context),))
    if "degraded" in config.rootflags:
        from pyinit.storage.btrfs import make as make_btrfs

        found += filter(None, (make_btrfs(context),))
    if config.verity:
        from pyinit.storage.verity import make as make_verity

        found.append(make_verity(context))
    return found


def _names_volume(context: Context) -> bool:
    """Whether a device is asked for by a path that may be a volume's or an array's."""
    return any(
        path.startswith(("/dev/mapper/", "/dev/md")) or path.count("/") == 3
        for path in asked_paths(context)
        if not path.startswith("/dev/disk/")
    )


def _names_bcache(context: Context) -> bool:
    return any(path.startswith("/dev/bcache/") for path in asked_paths(context))


def asked_paths(context: Context) -> dict[str, str]:
    """The paths below /dev by which devices are asked for, each with the word that does so."""
    config = context.config
    asked = {config.resume: "resume=", config.usr: "mount.usr="}
    if config.overlay:
        asked[config.overlay.device] = "rd.overlay="
    if config.verity:
        asked[config.verity.data] = "systemd.verity_root_data="
        asked[config.verity.hashes] = "systemd.verity_root_hash="
    asked[context.spec.value if context.spec else ""] = "root="
    return {path: word for path, word in asked.items() if path.startswith("/dev/")}


def read_sealed(path: str, parse: Callable[[bytes], list[Row]]) -> list[Row]:
    """What the builder found, empty when it wrote no such file; ``E-IMAGE`` for one that is damaged."""
    from pyinit.errors import BootError
    from pyinit.kernel.files import read_if_there

    data = read_if_there(path)
    try:
        return parse(data) if data else []
    except ValueError as error:
        raise BootError(
            "E-IMAGE",
            f"{path} cannot be read: {error}",
            advice=("Build the image again: pyinit-image build -o IMAGE",),
        ) from error
