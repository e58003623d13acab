"""Which disks with several paths the command line names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from pyinit.config.cmdline import CommandLine
from pyinit.text import printable

#: How udev calls a map, and a partition of one (multipath-tools, kpartx).
_BY_UUID = re.compile(r"/dev/disk/by-id/dm-uuid-(?:part[0-9]{1,3}-)?mpath-(.+)")


class MultipathWords(NamedTuple):
    """The words ``rd.multipath``, ``nompath`` and ``multipath=off``."""

    enabled: bool = True
    everything: bool = False
    """Whether every SCSI disk is taken for one of several paths."""
    configured: bool = True
    """Whether multipath.conf of the image counts."""
    wwids: tuple[str, ...] = ()
    """Disks, by the identifier that all of their paths tell."""


def multipath_words(line: CommandLine, warnings: list[str]) -> MultipathWords:
    """Read the words; ``warnings`` gets what is not understood."""
    words = MultipathWords()
    wwids: list[str] = []
    for word in line.all("rd.multipath"):
        value = word.value or ""
        if value.lower() in ("", "1", "yes", "on", "true", "default"):
            words = MultipathWords(everything=True, configured=value.lower() != "default")
        elif value.lower() in ("0", "no", "off", "false"):
            words = MultipathWords(enabled=False)
        elif is_wwid(value):
            wwids.append(value)
        else:
            warnings.append(f"{printable(word.raw)[:80]} is not understood: the WWID of a disk is expected")
    # What multipathd of the real system obeys, too (multipathd.service).
    off = line.last("multipath")
    if line.last("nompath") is not None or (off is not None and off.value == "off"):
        words = MultipathWords(enabled=False)
    return words._replace(wwids=tuple(dict.fromkeys(wwids)))


def is_wwid(text: str) -> bool:
    """Whether a text may be the identifier of a disk: it is the name of a file, too."""
    return bool(re.fullmatch("[!-.0-~]{1,200}", text)) and text not in (".", "..")


def wwids_of_paths(paths: Iterable[str]) -> list[str]:
    """The disks that paths below /dev/disk/by-id mean."""
    found = (match[1] for path in paths if (match := _BY_UUID.fullmatch(path)))
    return [wwid for wwid in found if is_wwid(wwid)]
