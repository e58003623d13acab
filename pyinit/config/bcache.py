"""Which bcache devices the command line asks for, and what the superblock of one says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pyinit.config.cmdline import CommandLine
from pyinit.config.volumes import array_uuid
from pyinit.text import printable

#: Where a superblock begins in its device, in bytes, and how much of it is read here.
SUPERBLOCK = 4096
LENGTH = 4096
FOLDER = "/dev/bcache/by-uuid/"

# The kernel's drivers/md/bcache/bcache_ondisk.h, struct cache_sb_disk: where fields begin, in bytes. All
# numbers have 64 bits, the first byte being the lowest.
_OFFSET, _VERSION, _MAGIC_AT, _UUID, _SET, _FLAGS, _KNOWN = 8, 16, 24, 40, 56, 104, 112
_MAGIC = bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")
_SECTOR = 8
_BACKING_VERSIONS = (1, 4, 6)
_VERSIONS = range(7)
_STATES = ("none", "clean", "dirty", "stale")


class BcacheWords(NamedTuple):
    """The words ``rd.bcache*``, and ``rd.auto``."""

    enabled: bool = True
    everything: bool = False
    uuids: tuple[str, ...] = ()
    """UUIDs of backing devices, as :func:`backing_uuid` has them."""
    degraded: bool = False
    """Whether a backing device is used without its cache."""


class Superblock(NamedTuple):
    """What is known of a device of bcache."""

    backing: bool
    """Whether it holds the data; if not, it is a cache."""
    uuid: str
    cache_set: str
    """The UUID of the set of caches that it belongs to; empty when a backing device has none."""
    state: str
    """Of a backing device: ``none`` (it never had a cache), ``clean``, ``dirty``, ``stale``."""


def bcache_words(line: CommandLine, warnings: list[str]) -> BcacheWords:
    """Read the words; ``warnings`` gets what is not understood."""
    words = BcacheWords(
        everything=line.flag("rd.auto", False), degraded=line.flag("rd.bcache.degraded", False)
    )
    uuids: list[str] = []
    for word in line.all("rd.bcache"):
        value = word.value or ""
        if uuid := backing_uuid(value):
            uuids.append(uuid)
        elif value.lower() in ("", "1", "yes", "on", "true"):
            words = words._replace(enabled=True, everything=True)
        elif value.lower() in ("0", "no", "off", "false"):
            words = words._replace(enabled=False)
        else:
            warnings.append(
                f"{printable(word.raw)[:80]} is not understood: the UUID of a backing device is expected"
            )
    return words._replace(uuids=tuple(dict.fromkeys(uuids)))


def backing_uuid(text: str) -> str:
    """A UUID in the usual form, however it is written; empty when it is none."""
    digits = array_uuid(text) if not text.startswith("md-") else ""
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])) if digits else ""


def uuids_of_paths(paths: Iterable[str]) -> list[str]:
    """The backing devices that paths below /dev/bcache/by-uuid mean."""
    names = (path.removeprefix(FOLDER) for path in paths if path.startswith(FOLDER))
    return [uuid for name in names if (uuid := backing_uuid(name))]


def parse_superblock(data: bytes) -> Superblock | None:
    """The superblock in ``data``, which begins with it; None when there is none.

    Its checksum is left to the kernel, which looks at it before it takes the device.
    """

    def number(place: int) -> int:
        return int.from_bytes(data[place : place + 8], "little")

    version, cache_set = number(_VERSION), data[_SET : _SET + 16]
    if (
        len(data) < _KNOWN
        or data[_MAGIC_AT:_UUID] != _MAGIC
        or number(_OFFSET) != _SECTOR
        or version not in _VERSIONS
    ):
        return None
    backing = version in _BACKING_VERSIONS
    return Superblock(
        backing,
        backing_uuid(data[_UUID:_SET].hex()),
        backing_uuid(cache_set.hex()) if any(cache_set) else "",
        _STATES[number(_FLAGS) >> 61 & 3] if backing else "",
    )
