"""What an image for one machine must know of it: where its root file system lies, and all its devices.

Read from /proc, /sys and the tables in /etc, and written by ``pyinit-image devices``. Nothing that would tell
two machines of one make apart is kept: no serial numbers, no network addresses, no UUIDs but those that
/etc/fstab names, those of kinds of devices, and that of a bcache that the root lies on.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import stat
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pyinit.config import crypttab
from pyinit.kernel import mountinfo
from pyinit.root.mount import PARTS
from pyinit.text import printable

from . import tables
from .errors import BuildError
from .sysroot import Sysroot

SCHEMA = 1

FSTAB = "/etc/fstab"
CRYPTTAB = "/etc/crypttab"
#: Where mdadm looks, as Debian builds it; the first that exists counts, and then the first directory
#: (mdadm.conf(5)).
MDADM = ("/etc/mdadm/mdadm.conf", "/etc/mdadm.conf")

#: What must be mounted before the system can start.
ESSENTIAL_MOUNTS = ("/", "/usr")

_UUID = re.compile(
    r"(?<![0-9a-fA-F])[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}(?![0-9a-fA-F])"
    # A device on the 1-Wire bus is named after its kind and serial number (Documentation/w1/w1-generic.rst).
    r"|(?<=/)[0-9a-f]{2}-[0-9a-f]{12}(?![^/])"
)

_Record = TypeVar("_Record")


@dataclass(frozen=True, slots=True)
class Device:
    """A directory of sysfs with a driver or something to find one by."""

    path: str
    """Below /sys, without what identifies this very machine."""
    modalias: str
    """Empty for none."""
    module: str
    """The module of the driver in use, which may be built in; empty for none."""


@dataclass(frozen=True, slots=True)
class Block:
    """A block device that a file system lies on, directly or with others in between."""

    name: str
    """The kernel's: ``sda1``, ``dm-0``."""
    number: str
    """``major:minor``."""
    kind: str
    """``disk``, ``partition``, ``dm``, ``md``, or ``stack`` for others that lie on block devices."""
    below: tuple[str, ...]
    """Names of the block devices it lies on; none for a disk."""
    mapping: str
    """dm: what dm/uuid starts with and, for LVM, ends with: ``CRYPT-LUKS2-``, ``LVM-``, ``LVM-tpool``."""
    label: str
    """dm: dm/name. bcache: the UUID of its backing device, by which alone it can be asked for."""
    level: str
    """md: ``raid1``, ``container`` and so on."""
    configured: str
    """The line that sets it up: ``/etc/crypttab line 2``; empty when none is known."""
    devices: tuple[Device, ...]
    """disk: itself, its controller, and the buses above, from the lowest up; then what those depend on."""


@dataclass(frozen=True, slots=True)
class Mounted:
    """A mounted file system that matters at boot."""

    target: str
    source: str
    number: str
    """``major:minor``; major 0 for file systems without one block device."""
    fstype: str
    options: tuple[str, ...]
    """Those of the mount, then those of the file system."""
    blocks: tuple[str, ...]
    """Names of the block devices it is on; several with btrfs, none when it is on no disk here."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of fstab that matters at boot: / and /usr, x-initrd.mount, swap (which may hold an image)."""

    line: int
    spec: str
    file: str
    type: str
    options: tuple[str, ...]
    """Names only."""
    blocks: tuple[str, ...]
    """Names of the block devices that ``spec`` means now; none when it cannot be told."""


@dataclass(frozen=True, slots=True)
class Unlocked:
    """A line of crypttab for a device in use here, or with x-initrd.attach."""

    line: int
    name: str
    options: tuple[str, ...]
    """Names only: a value may hold a PIN."""


@dataclass(frozen=True, slots=True)
class Assembled:
    """A line of mdadm.conf, or of a file in mdadm.conf.d, for an array in use here."""

    line: int
    device: str


@dataclass(frozen=True, slots=True, order=True)
class Cpu:
    """A kind of processor, as /proc/cpuinfo names it; -1 for a number it does not give."""

    vendor: str
    family: int
    model: int
    stepping: int


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything a build wants to know of a machine."""

    release: str
    """The running kernel."""
    cpus: tuple[Cpu, ...]
    mounts: tuple[Mounted, ...]
    fstab: tuple[Line, ...]
    crypttab: tuple[Unlocked, ...]
    mdadm: tuple[Assembled, ...]
    blocks: tuple[Block, ...]
    devices: tuple[Device, ...]
    """All devices with a modalias, sorted by path."""
    mappers: tuple[str, ...]
    """Modules of the device mapper with tables in use. Which device uses which is not in sysfs."""
    ciphers: tuple[str, ...]
    """Modules of ciphers and hashes in use."""
    warnings: tuple[str, ...]


def record(top: Path = Path("/")) -> Facts:
    """Look at the machine whose /proc, /sys, /dev and /etc are below ``top``.

    What is missing there is left out; :class:`BuildError` for a table in /etc that cannot be read.
    """
    machine = _Machine(Path(os.path.abspath(top)))
    etc = Sysroot(machine.top)
    warnings: list[str] = []

    def table(path: str) -> bytes:
        return etc.read(path) if etc.is_file(path) else b""

    def told(path: str, found: Iterable[str]) -> None:
        warnings.extend(f"{path} {text}" for text in found)

    all_lines, found = tables.parse_fstab(table(FSTAB))
    told(FSTAB, found)
    lines = [entry for entry in all_lines if _matters(entry)]
    all_encrypted, found = crypttab.parse(table(CRYPTTAB))
    told(CRYPTTAB, found)
    arrays = []
    for mdadm in mdadm_files(etc):
        some, found = tables.parse_mdadm(table(mdadm))
        told(mdadm, found)
        arrays += [(f"{mdadm} line {array.line}", array) for array in some]

    mounts = mountinfo.parse(machine.read("proc/self/mountinfo"))
    # A root that an initramfs made of several layers is on what these are on.
    parts = [mount for place in PARTS if (mount := mountinfo.topmost(mounts, place)) is not None]
    targets = (
        *ESSENTIAL_MOUNTS,
        *(entry.file for entry in lines if not entry.is_swap),
        *(mount.target for mount in parts),
    )
    mounted = []
    for target in dict.fromkeys(targets):
        mount = mountinfo.topmost(mounts, target)
        if mount is not None:
            layers = parts if target == "/" and mount.fstype == "overlay" else [mount]
            places = dict.fromkeys(place for layer in layers for place in machine.of_mount(layer))
            mounted.append((mount, tuple(places)))
    specs = [(entry, machine.of_spec(entry.spec)) for entry in lines]
    directories = machine.closure(
        [place for _, places in mounted for place in places]
        + [place for _, places in specs for place in places]
    )
    configured: dict[str, str] = {}
    for where, array in arrays:
        for place in machine.of_spec(array.device) if array.device.startswith("/") else ():
            configured.setdefault(place, where)
    for entry in all_encrypted:
        for place in directories:
            if machine.attribute(f"{place}/dm/name") == entry.name:
                configured.setdefault(place, f"{CRYPTTAB} line {entry.line}")
    blocks = tuple(machine.block(place, configured.get(place, "")) for place in directories)
    used = {block.configured for block in blocks}
    return Facts(
        release=machine.text("proc/sys/kernel/osrelease").strip(),
        cpus=parse_cpus(machine.text("proc/cpuinfo")),
        mounts=tuple(
            Mounted(
                mount.target,
                _anonymous(mount.source),
                "{}:{}".format(*mount.device),
                mount.fstype,
                tuple(map(_anonymous, dict.fromkeys(mount.options + mount.super_options))),
                tuple(map(_name, places)),
            )
            for mount, places in mounted
        ),
        fstab=tuple(
            Line(
                entry.line,
                entry.spec,
                entry.file,
                entry.type,
                _names(entry.options),
                tuple(map(_name, places)),
            )
            for entry, places in specs
        ),
        crypttab=tuple(
            Unlocked(entry.line, _anonymous(entry.name), _names(entry.options))
            for entry in all_encrypted
            if f"{CRYPTTAB} line {entry.line}" in used or "x-initrd.attach" in entry.options
        ),
        mdadm=tuple(
            Assembled(array.line, _anonymous(array.device)) for where, array in arrays if where in used
        ),
        blocks=blocks,
        devices=tuple(sorted(machine.devices(), key=lambda device: (device.path, device.modalias))),
        mappers=parse_mappers(machine.text("proc/modules")),
        ciphers=parse_ciphers(machine.text("proc/crypto")),
        warnings=tuple(warnings),
    )


def mdadm_files(sysroot: Sysroot) -> list[str]:
    """The files that mdadm reads, in its order: mdadm.conf, and those of a directory beside it."""
    main = sysroot.find(*MDADM)
    folders = ((f"{path}.d", sysroot.list(f"{path}.d")) for path in MDADM)
    folder, names = next((found for found in folders if found[1]), ("", []))
    more = (f"{folder}/{name}" for name in names if name.endswith(".conf") and not name.startswith("."))
    return [*([main] if main else []), *filter(sysroot.is_file, more)]


def parse_cpus(text: str) -> tuple[Cpu, ...]:
    """The kinds of processors in /proc/cpuinfo, sorted; none where it gives no vendor, as on ARM."""
    found = set()
    for paragraph in text.split("\n\n"):
        fields = _fields(paragraph)
        if fields.get("vendor_id"):
            numbers = (_integer(fields.get(name, "")) for name in ("cpu family", "model", "stepping"))
            found.add(Cpu(fields["vendor_id"], *numbers))
    return tuple(sorted(found))


def parse_mappers(text: str) -> tuple[str, ...]:
    """The modules of the device mapper in /proc/modules with users: each table holds those of its targets."""
    rows = (line.split() for line in text.splitlines())
    names = (row[0] for row in rows if len(row) > 2 and row[0].startswith("dm_") and _integer(row[2]) > 0)
    return tuple(sorted({*names} - {"dm_mod"}))


def parse_ciphers(text: str) -> tuple[str, ...]:
    """The modules in /proc/crypto whose ciphers or hashes have users, one user being the kernel's list."""
    found = set()
    for paragraph in text.split("\n\n"):
        fields = _fields(paragraph)
        kind = fields.get("type", "")
        if kind in ("skcipher", "lskcipher", "cipher", "aead", "ahash", "shash", "async"):
            module = fields.get("module", "kernel")
            if module != "kernel" and _integer(fields.get("refcnt", "")) > 1:
                found.add(module)
    return tuple(sorted(found))


def dump(facts: Facts) -> bytes:
    """Encode as JSON, always the same for the same facts."""
    raw = {"schema": SCHEMA, **dataclasses.asdict(facts)}
    return json.dumps(raw, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def parse(data: bytes, name: str = "devices.json") -> Facts:
    """Decode what :func:`dump` wrote to the file ``name``; :class:`BuildError` for anything else."""
    try:
        raw = json.loads(data)
        if not isinstance(raw, dict) or type(raw.get("schema")) is not int:
            raise ValueError("no schema")
        if raw["schema"] != SCHEMA:
            raise ValueError(f"schema {raw['schema']}, not {SCHEMA}")
        facts = _decode(Facts, {name: value for name, value in raw.items() if name != "schema"}, "facts")
        known = {block.name for block in facts.blocks}
        lists = [mount.blocks for mount in facts.mounts] + [line.blocks for line in facts.fstab]
        for names in (*lists, *(block.below for block in facts.blocks)):
            for block in names:
                if block not in known:
                    raise ValueError(f"no block device {block}")
    except (ValueError, RecursionError) as error:
        raise BuildError(
            f"{printable(name)} is no record of devices: {printable(str(error)[:200])}",
            hint="Write it again on the machine it is for: pyinit-image devices > FILE",
        ) from error
    return facts


class _Machine:
    """The trees that the kernel shows. Whatever goes away while it is looked at was never there."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.sys = os.path.realpath(top / "sys")

    def read(self, path: str) -> bytes:
        """The content of a file below the top, or nothing."""
        try:
            # Not with a size: the kernel finds no memory for a long read of what is below /proc/sys.
            with open(os.path.join(self.top, path), "rb", buffering=0) as stream:
                return stream.readall()
        except OSError:
            return b""

    def text(self, path: str) -> str:
        return self.read(path).decode("utf-8", "surrogateescape")

    def attribute(self, path: str) -> str:
        """The value of an attribute, ``path`` being complete; empty when there is none."""
        return self.text(path).removesuffix("\n")

    def of_mount(self, mount: mountinfo.Mount) -> tuple[str, ...]:
        """The directories in sysfs of the block devices that a file system is on."""
        places = self._numbered(*mount.device)
        if not places:
            # btrfs has a number of its own; bcachefs gives its devices with colons.
            places = self.of_spec(mount.source) or tuple(
                place for part in mount.source.split(":") for place in self.of_spec(part)
            )
            places += tuple(other for place in places for other in self._btrfs(place))
        for option in mount.super_options:
            # XFS may have its log and its real-time data elsewhere (Documentation/admin-guide/xfs.rst).
            name, _, value = option.partition("=")
            if name in ("logdev", "rtdev"):
                places += self.of_spec(value)
        return tuple(dict.fromkeys(places))

    def of_spec(self, spec: str) -> tuple[str, ...]:
        """The directory in sysfs of the block device that fstab calls ``spec``; none when it is not there."""
        tag, equals, value = spec.partition("=")
        folder = {"UUID": "uuid", "LABEL": "label", "PARTUUID": "partuuid", "PARTLABEL": "partlabel"}.get(tag)
        if equals and folder:
            path = f"/dev/disk/by-{folder}/{_encode_name(value)}"
        elif spec.startswith("/dev/"):
            path = spec
        else:
            return ()
        # The links that udev makes are relative. The node itself is called as the kernel calls the device.
        found = os.path.realpath(os.path.join(self.top, path.lstrip("/")))
        name = os.path.relpath(found, os.path.join(self.top, "dev")).replace("/", "!")
        return self._directory(f"{self.sys}/class/block/{name}") or self._node(found)

    def closure(self, places: Iterable[str]) -> list[str]:
        """``places`` and the directories of all block devices below, each after one that lies on it."""
        found = list(dict.fromkeys(places))
        for place in found:
            found += [other for other in self._below(place) if other not in found]
        return found

    def block(self, place: str, configured: str) -> Block:
        """What sysfs says of a block device."""
        below = self._below(place)
        mapping = label = level = ""
        if os.path.exists(f"{place}/partition"):
            kind = "partition"
        elif os.path.isdir(f"{place}/dm"):
            kind = "dm"
            mapping = mapping_kind(self.attribute(f"{place}/dm/uuid"))
            label = _anonymous(self.attribute(f"{place}/dm/name"))
        elif os.path.isdir(f"{place}/md"):
            kind = "md"
            level = self.attribute(f"{place}/md/level")
        else:
            kind = "stack" if below else "disk"
            uuid = self.attribute(f"{place}/bcache/backing_dev_uuid")
            label = uuid if below and _UUID.fullmatch(uuid) else ""
        chain = () if below else tuple(dict.fromkeys(self._chain(place)))
        names = tuple(map(_name, below))
        number = self.attribute(f"{place}/dev")
        return Block(_name(place), number, kind, names, mapping, label, level, configured, chain)

    def devices(self) -> Iterator[Device]:
        """Every device with a modalias."""
        for place, _, files in os.walk(f"{self.sys}/devices"):
            if "modalias" in files:
                device = self._device(place)
                if device.modalias:
                    yield device

    def _node(self, path: str) -> tuple[str, ...]:
        """That of a node with a name of its own: libdevmapper makes those where udev makes no links."""
        try:
            status = os.stat(path)
        except OSError:
            return ()
        if not stat.S_ISBLK(status.st_mode):
            return ()
        return self._numbered(os.major(status.st_rdev), os.minor(status.st_rdev))

    def _numbered(self, major: int, minor: int) -> tuple[str, ...]:
        return self._directory(f"{self.sys}/dev/block/{major}:{minor}")

    def _directory(self, link: str) -> tuple[str, ...]:
        place = os.path.realpath(link)
        return (place,) if os.path.isfile(f"{place}/dev") and place.startswith(f"{self.sys}/") else ()

    def _list(self, place: str) -> list[str]:
        try:
            return sorted(os.listdir(place))
        except OSError:
            return []

    def _below(self, place: str) -> list[str]:
        if os.path.exists(f"{place}/partition"):
            return [os.path.dirname(place)]
        links = (f"{place}/slaves/{name}" for name in self._list(f"{place}/slaves"))
        return [other for link in links for other in self._directory(link)]

    def _btrfs(self, place: str) -> list[str]:
        """All devices of the btrfs that has the device ``place``."""
        for name in self._list(f"{self.sys}/fs/btrfs"):
            links = self._list(f"{self.sys}/fs/btrfs/{name}/devices")
            found = [other for link in links for other in self._directory(f"{self.sys}/class/block/{link}")]
            if place in found:
                return found
        return []

    def _chain(self, place: str) -> Iterator[Device]:
        """The devices from ``place`` up, and then those that any of them needs."""
        todo = [place]
        for start in todo:
            here = start
            while here.startswith(f"{self.sys}/devices/"):
                device = self._device(here)
                if device.modalias or device.module:
                    yield device
                for name in self._list(here):
                    if name.startswith("supplier:"):
                        # Clocks, regulators and the like (Documentation/driver-api/device_link.rst).
                        other = os.path.realpath(f"{here}/{name}/supplier")
                    elif re.fullmatch(r"nvme[0-9]+", name) and "/nvme-subsys" in here:
                        # A disk with several ways to it is below none of its controllers.
                        other = os.path.realpath(f"{here}/{name}")
                    else:
                        continue
                    if other not in todo:
                        todo.append(other)
                here = os.path.dirname(here)

    def _device(self, place: str) -> Device:
        module = os.path.realpath(f"{place}/driver/module")
        name = os.path.basename(module) if os.path.isdir(module) else ""
        path = os.path.relpath(place, self.sys)
        return Device(_anonymous(path), self.attribute(f"{place}/modalias"), name)


def mapping_kind(uuid: str) -> str:
    """The part of dm/uuid that says what kind of mapping it is, without what identifies it.

    ``CRYPT-LUKS2-0123...-name`` is ``CRYPT-LUKS2-``, ``LVM-`` with 64 characters and ``-tpool`` is
    ``LVM-tpool``, ``mpath-3600...`` is ``mpath-``.
    """
    match = re.match(r"(?:part[0-9]+-)?(?:CRYPT-[A-Z0-9_]+-|[A-Za-z]+-)", uuid)
    if match is None:
        return ""
    if match[0] == "LVM-":
        return "LVM-" + uuid[4 + 64 :].partition("-")[2]
    return match[0]


def _matters(entry: tables.Filesystem) -> bool:
    return entry.is_swap or entry.file in ESSENTIAL_MOUNTS or "x-initrd.mount" in entry.options


def _name(place: str) -> str:
    return os.path.basename(place)


def _anonymous(text: str) -> str:
    """``text`` with a star for everything that is there once in the world."""
    return _UUID.sub("*", text)


def _names(options: Iterable[str]) -> tuple[str, ...]:
    return tuple(option.partition("=")[0] for option in options)


def _encode_name(value: str) -> str:
    """A value as udev writes it in the names of links: what is not harmless as ``\\x20``."""
    return "".join(
        character
        if character.isascii() and (character.isalnum() or character in "#+-.:=@_") or character > "\x7f"
        else f"\\x{ord(character):02x}"
        for character in value
    )


def _fields(paragraph: str) -> dict[str, str]:
    """``name : value`` of each line."""
    rows = (line.partition(":") for line in paragraph.splitlines())
    return {name.strip(): value.strip() for name, colon, value in rows if colon}


def _integer(text: str) -> int:
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else -1


def _decode(kind: type[_Record], raw: Any, where: str) -> _Record:
    """A dataclass from what JSON has for it; ValueError unless every field is there with its very type."""
    if not isinstance(raw, dict):
        raise ValueError(f"{where} is not an object")
    hints = typing.get_type_hints(kind)
    for name in sorted(hints.keys() ^ raw.keys()):
        raise ValueError(f"{where}: {name} is " + ("missing" if name in hints else "not known"))
    return kind(**{name: _value(hint, raw[name], f"{where}.{name}") for name, hint in hints.items()})


def _value(hint: Any, raw: Any, where: str) -> Any:
    if isinstance(hint, types.GenericAlias):
        if not isinstance(raw, list):
            raise ValueError(f"{where} is not a list")
        return tuple(_value(hint.__args__[0], item, f"{where}[{number}]") for number, item in enumerate(raw))
    if dataclasses.is_dataclass(hint):
        return _decode(typing.cast(type[Any], hint), raw, where)
    if type(raw) is not hint:
        raise ValueError(f"{where} is not {'a number' if hint is int else 'text'}")
    return raw
