"""Which volume groups, logical volumes and arrays the command line names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pyinit.config.cmdline import CommandLine
from pyinit.text import printable

# lvm(8), "VALID NAMES"; a name that starts with a hyphen would be an option.
_NAME = "[A-Za-z0-9_.+][A-Za-z0-9_.+-]{0,126}"
# What /dev/NAME/... is that is no volume group.
_OTHER_FOLDERS = frozenset(
    ("disk", "mapper", "md", "block", "char", "dri", "input", "net", "pts", "shm", "snd")
)


class Volume(NamedTuple):
    """A logical volume; without a name, all of its group."""

    group: str
    name: str


class VolumeWords(NamedTuple):
    """The words ``rd.auto``, ``rd.lvm*`` and ``rd.md*``."""

    auto: bool = False
    lvm: bool = True
    lvm_conf: bool = True
    volumes: tuple[Volume, ...] = ()
    md: bool = True
    md_conf: bool = True
    arrays: tuple[str, ...] = ()
    """UUIDs of arrays as :func:`array_uuid` has them."""


def volume_words(line: CommandLine, warnings: list[str]) -> VolumeWords:
    """Read the words; ``warnings`` gets what is not understood."""
    volumes: list[Volume] = []
    arrays: list[str] = []
    for word in line.all("rd.lvm.vg"):
        volume = parse_volume(word.value or "")
        if volume and not volume.name:
            volumes.append(volume)
        else:
            warnings.append(
                f"{printable(word.raw)[:80]} is not understood: the name of a volume group is expected"
            )
    for word in line.all("rd.lvm.lv"):
        volume = parse_volume(word.value or "")
        if volume and volume.name:
            volumes.append(volume)
        else:
            warnings.append(f"{printable(word.raw)[:80]} is not understood: GROUP/VOLUME is expected")
    for word in line.all("rd.md.uuid"):
        if uuid := array_uuid(word.value or ""):
            arrays.append(uuid)
        else:
            warnings.append(f"{printable(word.raw)[:80]} is not understood: the UUID of an array is expected")
    return VolumeWords(
        auto=line.flag("rd.auto", False),
        lvm=line.flag("rd.lvm", True),
        lvm_conf=line.flag("rd.lvm.conf", True),
        volumes=tuple(dict.fromkeys(volumes)),
        md=line.flag("rd.md", True),
        md_conf=line.flag("rd.md.conf", True),
        arrays=tuple(dict.fromkeys(arrays)),
    )


def parse_volume(text: str) -> Volume | None:
    """``GROUP`` or ``GROUP/VOLUME``; None when it is neither."""
    group, slash, name = text.partition("/")
    if not re.fullmatch(_NAME, group) or group in (".", "..") or (slash and not re.fullmatch(_NAME, name)):
        return None
    return Volume(group, name)


def volume_of_path(path: str) -> Volume | None:
    """The logical volume that a path means: ``/dev/GROUP/VOLUME`` or ``/dev/mapper/GROUP-VOLUME``."""
    parts = path.removeprefix("/dev/").split("/")
    if not path.startswith("/dev/") or len(parts) != 2:
        return None
    if parts[0] == "mapper":
        # A hyphen in a name is doubled there (device-mapper's dm_split_lvm_name).
        match = re.fullmatch(r"((?:[^-]|--)+)-((?:[^-]|--)+)", parts[1])
        if not match:
            return None
        return parse_volume("/".join(half.replace("--", "-") for half in match.groups()))
    if parts[0] in _OTHER_FOLDERS:
        return None
    return parse_volume("/".join(parts))


def array_uuid(text: str) -> str:
    """The UUID of an array as 32 lower-case digits, however it is written; empty when it is none.

    mdadm groups them by eight with colons, udev as other UUIDs.
    """
    digits = re.sub("[:-]", "", text.removeprefix("md-uuid-")).lower()
    return digits if re.fullmatch("[0-9a-f]{32}", digits) else ""


def show_array(uuid: str) -> str:
    """A UUID as mdadm prints it."""
    return ":".join(uuid[at : at + 8] for at in range(0, 32, 8))


class Array(NamedTuple):
    """An array of the system, as its mdadm.conf(5) has it; what is not known is empty."""

    uuid: str
    """As :func:`array_uuid` has it."""
    name: str
    """The name in its superblock, often ``HOST:NAME``."""
    device: str
    """``/dev/md0``, ``/dev/md/NAME`` or ``NAME``."""


def parse_sealed_volumes(data: bytes) -> list[Volume]:
    """The volumes that the builder knows to be the root's; ValueError for a damaged file."""
    return [volume for text in _strings(data, 1) if (volume := parse_volume(text[0]))]


def parse_sealed_arrays(data: bytes) -> list[Array]:
    """The arrays that the builder found in mdadm.conf; ValueError for a damaged file."""
    return [Array(*row) for row in _strings(data, 3)]


def parse_sealed_uuids(data: bytes) -> list[str]:
    """The UUIDs that the builder found, as it wrote them; ValueError for a damaged file."""
    return [row[0] for row in _strings(data, 1)]


def dump(rows: Iterable[Sequence[str]]) -> bytes:
    """What the functions above read."""
    return json.dumps([list(row) for row in rows], separators=(",", ":")).encode("ascii") + b"\n"


def _strings(data: bytes, width: int) -> list[list[str]]:
    try:
        rows = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(rows, list) or not all(
        isinstance(row, list) and len(row) == width and all(isinstance(part, str) for part in row)
        for row in rows
    ):
        raise ValueError(f"not a list of {width} strings each")
    return rows
