"""Block devices that are made of others, and what these are (Documentation/ABI/testing/sysfs-block-dm)."""

from __future__ import annotations

import os
from collections.abc import Callable

from pyinit.kernel.files import names, read_if_there

# More layers of block devices than anybody stacks.
_LAYERS = 8
_BLOCK = "/sys/class/block"


def on_encrypted(kind: str) -> list[str]:
    """The names of mappings that lie on an encrypted volume and that nothing else lies on.

    ``kind`` is what the UUID of those meant begins with: ``LVM-``.
    """
    begin = kind.encode()
    found = devices_on_encrypted(lambda path: read_if_there(f"{path}/dm/uuid").startswith(begin))
    return [os.fsdecode(read_if_there(f"{_BLOCK}/{device}/dm/name").strip()) for device in found]


def devices_on_encrypted(is_meant: Callable[[str], bool]) -> list[str]:
    """The devices that lie on an encrypted volume and that nothing else lies on.

    ``is_meant`` is given the folder of a device in sysfs.
    """
    paths = [(device, f"{_BLOCK}/{device}") for device in names(_BLOCK)]
    return [
        device
        for device, path in paths
        if is_meant(path) and not names(f"{path}/holders") and _is_encrypted(path, 0)
    ]


def _is_encrypted(path: str, depth: int) -> bool:
    return depth < _LAYERS and any(
        read_if_there(f"{path}/slaves/{slave}/dm/uuid").startswith((b"CRYPT-LUKS", b"CRYPT-PLAIN"))
        or _is_encrypted(f"{path}/slaves/{slave}", depth + 1)
        for slave in names(f"{path}/slaves")
    )
