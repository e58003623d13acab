"""An empty qcow2 image, to be laid over a disk image that must not change.

QEMU's ``snapshot=on`` exists for ``-drive`` only, and a drive's contents are forgotten when its device is
unplugged. An overlay of our own goes with ``-blockdev``, and outlives an unplug. Format: qcow2 version 2,
https://gitlab.com/qemu-project/qemu/-/blob/master/docs/interop/qcow2.txt. The header names no backing file:
QEMU is told about it on its command line.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

_CLUSTER_BITS = 16
_CLUSTER = 1 << _CLUSTER_BITS
MAX_SIZE = (_CLUSTER // 8) ** 2 * _CLUSTER
"""Bytes that an L1 table of one cluster covers: 4 TiB."""


def empty_overlay(size: int) -> bytes:
    """Return an empty qcow2 image for a disk of ``size`` bytes. ValueError above :data:`MAX_SIZE`."""
    if not 0 < size <= MAX_SIZE:
        raise ValueError(f"a disk of {size} bytes cannot have an overlay (1 to {MAX_SIZE} bytes)")
    sectors = -(-size // 512) * 512
    entries = -(-sectors // (_CLUSTER // 8 * _CLUSTER))
    header = struct.pack(
        ">4sIQIIQIIQQIIQ",
        b"QFI\xfb",
        2,
        0,
        0,  # no backing file name
        _CLUSTER_BITS,
        sectors,
        0,  # not encrypted
        entries,
        3 * _CLUSTER,  # L1 table
        _CLUSTER,  # refcount table
        1,
        0,
        0,  # no snapshots
    )
    refcount_table = struct.pack(">Q", 2 * _CLUSTER)
    refcount_block = struct.pack(">4H", 1, 1, 1, 1)
    return b"".join(part.ljust(_CLUSTER, b"\0") for part in (header, refcount_table, refcount_block, b""))


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(empty_overlay(int(sys.argv[2])))
