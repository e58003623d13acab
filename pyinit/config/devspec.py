"""Device specifications: what ``root=`` and its like may name, and which devices that is."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from typing import NamedTuple, NoReturn

from pyinit.config.distance import distance
from pyinit.devices.view import DeviceView
from pyinit.errors import BootError
from pyinit.text import printable


class Kind(enum.Enum):
    """How a device is named."""

    PATH = "path"
    UUID = "UUID"
    LABEL = "LABEL"
    PARTUUID = "PARTUUID"
    PARTLABEL = "PARTLABEL"
    NUMBER = "device number"


class DeviceSpec(NamedTuple):
    """A block device, named. The text is whatever was typed: show it with :func:`describe`."""

    kind: Kind
    value: str
    """What follows ``KIND=``, without quotes; the normalised path; or ``major:minor``."""
    spellings: tuple[str, ...]
    """What a device may call itself to be meant: ``value``, and other readings of what was typed."""
    offset: int = 0
    """``PARTNROFF``: so many places after the partition with this PARTUUID."""


_FORMS = (
    "What is understood: a path below /dev, UUID=, LABEL=, PARTUUID= (and /PARTNROFF=), PARTLABEL=, "
    "a device number (8:1 or 0801)"
)
TAGS = (Kind.UUID, Kind.LABEL, Kind.PARTUUID, Kind.PARTLABEL)
_TAGS = tuple(kind.value for kind in TAGS)

# Roots that dracut, systemd or the kernel know and that are no block device: (pattern, what it is).
_OTHER_ROOTS = (
    (r"nfs[34]?:.*|/dev/nfs", "a root on NFS"),
    (r"cifs:.*|/dev/cifs", "a root on SMB/CIFS"),
    (r"iscsi:.*", "a root on iSCSI"),
    (r"nbd:.*", "a root on a network block device"),
    (r"dhcp6?|/dev/root", "a root that DHCP or netroot= names"),
    (r"(virtiofs|virtfs|9p):.*", "a root shared by a hypervisor"),
    (r"(live|https?|ftp|tftp|torrent):.*", "a live image that is not on a device of its own"),
    (r"zfs(:.*)?|ZFS=.*|zfs=.*", "a root on ZFS"),
    (r"(mtd|ubi)[0-9:].*", "a root on flash memory without a block device"),
    (r"gpt-auto(-force)?|fstab|tmpfs|bind:.*|dissect|off", "a root that only systemd can find"),
    (r"([a-z0-9.-]+|\[[0-9a-f:]+\]):/.*", "a root on a file server"),
)


def parse_spec(text: str) -> DeviceSpec:
    """Understand the value of ``root=``; :class:`BootError` ``E-CMDLINE`` says why it cannot be.

    The forms are those of the kernel (block/early-lookup.c), libblkid's tags, and dracut's prefix ``block:``.
    """
    spec = _unquote(text).removeprefix("block:")
    if not spec:
        _refuse(text, "names no device")
    if spec.startswith("/dev/"):
        for pattern, what in _OTHER_ROOTS:
            if re.fullmatch(pattern, spec):
                _refuse(text, f"asks for {what}, which this initramfs does not handle")
        return _path(text, spec)
    tag, equals, value = spec.partition("=")
    if equals and tag in _TAGS:
        return _tagged(text, Kind(tag), value)
    number = _number(spec)
    if number is not None:
        value = f"{number[0]}:{number[1]}"
        return DeviceSpec(Kind.NUMBER, value, (value,))
    for pattern, what in _OTHER_ROOTS:
        if re.fullmatch(pattern, spec, re.DOTALL):
            _refuse(text, f"asks for {what}, which this initramfs does not handle")
    if equals and tag.upper() in _TAGS:
        _refuse(
            text,
            f"is not understood: the name in front of = is written {tag.upper()}",
            spec=f"{tag.upper()}=...",
        )
    if equals and tag in ("ID", "PATH"):
        _refuse(text, "is not understood", spec=f"/dev/disk/by-{tag.lower()}/...")
    if re.fullmatch("[A-Za-z0-9!._-]+", spec):
        _refuse(text, "is not understood", spec=f"/dev/{spec}")
    if re.fullmatch("(dev|disk|mapper)/.+", spec):
        _refuse(text, "is not understood", spec="/dev/" + printable(spec).removeprefix("dev/"))
    return _refuse(text, "is not understood")


def _refuse(text: str, why: str, spec: str = "") -> NoReturn:
    raise BootError(
        "E-CMDLINE",
        f"root={_short(text)} {why}",
        advice=(*((f"Did you mean root={spec} ?",) if spec else ()), _FORMS),
    )


def _short(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= 120 else shown[:117] + "..."


def _unquote(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    return text


def _path(text: str, spec: str) -> DeviceSpec:
    parts = [part for part in spec.split("/") if part not in ("", ".")]
    if ".." in parts:
        _refuse(text, "has .. in it")
    if len(parts) < 2:
        _refuse(text, "is a directory")
    path = "/" + "/".join(parts)
    return DeviceSpec(Kind.PATH, path, _spellings(path))


def _tagged(text: str, kind: Kind, given: str) -> DeviceSpec:
    value, offset = _unquote(given), 0
    if kind is Kind.PARTUUID:
        value, slash, rest = value.partition("/")
        match = re.fullmatch("PARTNROFF=([+-]?[0-9]{1,6})", rest, re.ASCII)
        if slash and match is None:
            _refuse(text, "is not understood after the slash", spec=f"PARTUUID={_short(value)}/PARTNROFF=1")
        offset = int(match[1]) if match else 0
    if not value:
        _refuse(text, "has nothing after =")
    # Quotes that the kernel's rules leave in place may be the typist's or the label's own.
    return DeviceSpec(kind, value, _spellings(value, given) if "LABEL" in kind.value else (value,), offset)


def _spellings(*values: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*values, decode(values[0]))))


def _number(text: str) -> tuple[int, int] | None:
    # Linux has 12 bits for the major and 20 for the minor number; the hexadecimal form is new_decode_dev()'s.
    match = re.fullmatch("([0-9]{1,8}):([0-9]{1,8})", text, re.ASCII)
    if match:
        major, minor = int(match[1]), int(match[2])
    elif re.fullmatch("[0-9A-Fa-f]{3,8}", text, re.ASCII):
        device = int(text, 16)
        major, minor = (device & 0xFFF00) >> 8, (device & 0xFF) | ((device >> 12) & 0xFFF00)
    else:
        return None
    return (major, minor) if major < 1 << 12 and minor < 1 << 20 else None


# Compiled when they are needed, which mostly they are not.
_BY_TAG = "/dev/disk/by-(uuid|label|partuuid|partlabel)/([^/]+)"
_ENCODED = rb"\\x([0-9a-fA-F]{2})"


def decode(text: str) -> str:
    """Undo the ``\\xNN`` encoding of udev's ``*_ENC`` properties and link names."""
    if "\\x" not in text:
        return text
    raw = text.encode("utf-8", "surrogateescape")
    return re.sub(_ENCODED, lambda match: bytes((int(match[1], 16),)), raw).decode("utf-8", "surrogateescape")


def describe(spec: DeviceSpec) -> str:
    """Return what is meant, printable, as it would be typed."""
    if spec.kind in (Kind.PATH, Kind.NUMBER):
        return printable(spec.value)
    offset = f"/PARTNROFF={spec.offset}" if spec.offset else ""
    return f"{spec.kind.value}={printable(spec.value)}{offset}"


def value_of(device: DeviceView, kind: Kind) -> str:
    """Return what a device calls itself in one kind of name, decoded; empty if it has no such name."""
    get = device.properties.get
    if kind is Kind.UUID:
        return get("ID_FS_UUID", "")
    if kind is Kind.LABEL:
        return decode(get("ID_FS_LABEL_ENC", "")) or get("ID_FS_LABEL", "")
    if kind is Kind.PARTUUID:
        return get("ID_PART_ENTRY_UUID", "")
    if kind is Kind.PARTLABEL:
        return decode(get("ID_PART_ENTRY_NAME", ""))
    if kind is Kind.NUMBER:
        return f"{device.number[0]}:{device.number[1]}"
    return device.node


def resolve(spec: DeviceSpec, devices: Iterable[DeviceView], *, degraded: bool = False) -> list[DeviceView]:
    """Return the block devices that are meant and can be used, by device number.

    Devices that udevd has not processed are left out. Tags are compared with udev's properties, not with its
    links: when two devices have one name, the link tells of one of them only. More than one result therefore
    is an ambiguity that the caller has to refuse.

    A tag never means a container: a RAID member or LUKS volume can carry the label of the file system that
    will appear inside it, and may be seen first. A path device of a multipath map is not meant either. The
    members of one btrfs or bcachefs are one file system; the first stands for all, once all are there, or
    before that if it may be ``degraded``.
    """
    blocks, found = _meant(spec, devices)
    return [device for device in found if degraded or not _is_incomplete(device, blocks)]


def incomplete(spec: DeviceSpec, devices: Iterable[DeviceView]) -> list[DeviceView]:
    """Return the members that are there of what is meant and cannot be used for want of others."""
    blocks, found = _meant(spec, devices)
    families = {_family(device) for device in found if _is_incomplete(device, blocks)}
    return [device for device in blocks if _family(device) in families]


def _meant(spec: DeviceSpec, devices: Iterable[DeviceView]) -> tuple[list[DeviceView], list[DeviceView]]:
    """All block devices that udevd has processed, and those of them that are meant."""
    blocks = sorted((d for d in devices if d.subsystem == "block" and d.initialized), key=_order)
    found = _without_their_disks([device for device in blocks if _is_meant(spec, device)])
    if spec.offset:
        partitions = {_place(device): device for device in blocks if _place(device) != ("", 0)}
        places = [(disk, number + spec.offset) for disk, number in map(_place, found)]
        found = [partitions[place] for place in places if place in partitions]
    return blocks, _one_of_each(found)


def carriers(spec: DeviceSpec, devices: Iterable[DeviceView]) -> list[DeviceView]:
    """Return the block devices that carry the name, containers included, by device number."""
    blocks = sorted((d for d in devices if d.subsystem == "block" and d.initialized), key=_order)
    return [
        device
        for device in _without_their_disks([d for d in blocks if _carries(spec, d)])
        if not is_path(device)
    ]


def _without_their_disks(found: list[DeviceView]) -> list[DeviceView]:
    """Leave out a disk one of whose partitions matches too: both show an isohybrid image's file system."""
    disks = {device.properties.get("ID_PART_ENTRY_DISK") for device in found if device.devtype == "partition"}
    return [device for device in found if f"{device.number[0]}:{device.number[1]}" not in disks]


def _order(device: DeviceView) -> tuple[tuple[int, int], str]:
    return device.number, device.sys_path


def _is_meant(spec: DeviceSpec, device: DeviceView) -> bool:
    if not _carries(spec, device):
        return False
    exactly = spec.kind is Kind.NUMBER or device.node == spec.value
    return exactly or not _obstacle(_as_tag(spec)[0], device)


def _carries(spec: DeviceSpec, device: DeviceView) -> bool:
    if spec.kind is Kind.PATH:
        names = (device.node, *device.links)
        return any(name in spec.spellings or decode(name) in spec.spellings for name in names)
    value = value_of(device, spec.kind)
    if spec.kind in (Kind.UUID, Kind.PARTUUID):
        # Hexadecimal digits, which some tools print in upper case; ABCD-1234 of vfat is still shown as it is.
        return bool(value) and value.lower() in (spelling.lower() for spelling in spec.spellings)
    return value in spec.spellings


def _as_tag(spec: DeviceSpec) -> tuple[Kind, str]:
    """Return kind and value, those of the tag if the specification is a link that udev makes for a tag."""
    match = re.fullmatch(_BY_TAG, spec.value) if spec.kind is Kind.PATH else None
    return (Kind(match[1].upper()), decode(match[2])) if match else (spec.kind, spec.value)


def _obstacle(kind: Kind, device: DeviceView) -> str:
    """Say why a device is not meant though it carries the name; empty if nothing is in the way."""
    get = device.properties.get
    if is_path(device):
        return "is one path of a multipath device"
    if kind in (Kind.UUID, Kind.LABEL) and get("ID_FS_USAGE") in ("raid", "crypto"):
        return f"is a container ({printable(get('ID_FS_TYPE', 'unknown'))}), not a file system"
    return ""


def is_path(device: DeviceView) -> bool:
    """Whether a device is one of several ways to a disk, which is used through the multipath device only."""
    return device.properties.get("DM_MULTIPATH_DEVICE_PATH") == "1"


def _place(device: DeviceView) -> tuple[str, int]:
    number = device.properties.get("ID_PART_ENTRY_NUMBER", "")
    disk = device.properties.get("ID_PART_ENTRY_DISK", "")
    return (disk, int(number)) if re.fullmatch("[0-9]{1,6}", number, re.ASCII) and disk else ("", 0)


def _family(device: DeviceView) -> str:
    """Return the UUID that the members of one file system on several devices share; empty for others."""
    if device.properties.get("ID_FS_TYPE") in ("btrfs", "bcachefs"):
        return device.properties.get("ID_FS_UUID", "")
    return ""


def _one_of_each(found: list[DeviceView]) -> list[DeviceView]:
    families: dict[str, list[DeviceView]] = {}
    for device in found:
        families.setdefault(_family(device) or device.sys_path, []).append(device)
    kept: list[DeviceView] = []
    for members in families.values():
        parts = [member.properties.get("ID_FS_UUID_SUB", "") for member in members]
        # The same member twice is a copied disk: that is for the caller to refuse.
        kept += [m for m, part in zip(members, parts, strict=True) if parts.count(part) > 1] or members[:1]
    return sorted(kept, key=_order)


def _is_incomplete(device: DeviceView, devices: Iterable[DeviceView]) -> bool:
    # Members seen before the last one keep ID_BTRFS_READY=0 until somebody triggers them again, so one
    # member that says 1 speaks for all (udev's 64-btrfs.rules).
    def ready(member: DeviceView) -> bool:
        return member.properties.get("ID_BTRFS_READY", "1") != "0"

    family = _family(device)
    return bool(family) and not any(ready(d) for d in devices if d is device or _family(d) == family)


def nearest(spec: DeviceSpec, devices: Iterable[DeviceView], limit: int = 4) -> list[tuple[DeviceView, str]]:
    """Return the block devices that come closest to what is meant, and for each, printable, what differs.

    First those that are meant but cannot be used, then those that carry the value under another kind, then
    those whose value looks like it. Devices that :func:`resolve` returns are not among them.
    """
    blocks = sorted((device for device in devices if device.subsystem == "block"), key=_order)
    resolved = {device.sys_path for device in resolve(spec, blocks)}
    found: list[tuple[int, int, DeviceView, str]] = []
    for index, device in enumerate(blocks):
        if device.sys_path not in resolved:
            remark = _compare(spec, device, blocks)
            if remark:
                found.append((remark[0], index, device, remark[1]))
    return [(device, text) for _, _, device, text in sorted(found)[:limit]]


def _compare(spec: DeviceSpec, device: DeviceView, blocks: list[DeviceView]) -> tuple[int, str] | None:
    kind, value = _as_tag(spec)
    if _carries(spec, device):
        remark = _why_not(spec, kind, device, blocks)
        return (0, remark) if remark else None
    if kind.value in _TAGS:
        for tag in map(Kind, _TAGS):
            own = value_of(device, tag)
            if own and own.lower() == value.lower() and (tag is not kind or spec.kind is Kind.PATH):
                return 1, f"that is its {tag.value}: {tag.value}={printable(own)}"
        if value in (device.node, *device.links):
            return 1, f"that is its path: {printable(value)}"
    names = (device.node, *device.links) if kind is Kind.PATH else (value_of(device, kind),)
    # Of a path the last part must be alike: the directories in front of it are the same everywhere.
    limit = max(1, min(8, len(value.rpartition("/")[2]) // 3))
    apart, name = min((distance(name.lower(), value.lower(), limit), name) for name in names)
    if not name or apart > limit:
        return None
    what = f"{apart} character{'s' * (apart != 1)}" if apart else "upper and lower case"
    return 10 + apart, f"its {kind.value} {printable(name)} differs in {what}"


def _why_not(spec: DeviceSpec, kind: Kind, device: DeviceView, blocks: list[DeviceView]) -> str:
    """Say why a device that carries the name was not taken; empty if another one stands for it."""
    has = f"has that {spec.kind.value} but "
    obstacle = _obstacle(kind, device)
    if obstacle:
        return has + obstacle
    if not device.initialized:
        return has + "udevd has not processed it yet"
    if spec.offset:
        return f"{has}its disk has no partition {_place(device)[1] + spec.offset}"
    if _is_incomplete(device, blocks):
        return has + "other devices of its file system are missing"
    return ""
