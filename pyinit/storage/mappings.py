"""The mappings of the device mapper, and what they lie on (Documentation/ABI/testing/sysfs-block-dm)."""

from __future__ import annotations

import os

from pyinit.kernel.files import names, read_if_there

# More layers of block devices than anybody stacks.
_LAYERS = 8


def on_encrypted(kind: bytes) -> list[str]:
    """The names of mappings that lie on an encrypted volume and that nothing else lies on.

    ``kind`` is what the UUID of those meant begins with: ``LVM-``.
    """
    found = []
    for device in names("/sys/class/block"):
        path = f"/sys/class/block/{device}"
        is_meant = read_if_there(f"{path}/dm/uuid").startswith(kind)
        if is_meant and not names(f"{path}/holders") and _is_encrypted(path, 0):
            found.append(os.fsdecode(read_if_there(f"{path}/dm/name").strip()))
    return found


def _is_encrypted(path: str, depth: int) -> bool:
    return depth < _LAYERS and any(
        read_if_there(f"{path}/slaves/{slave}/dm/uuid").startswith((b"CRYPT-LUKS", b"CRYPT-PLAIN"))
        or _is_encrypted(f"{path}/slaves/{slave}", depth + 1)
        for slave in names(f"{path}/slaves")
    )
