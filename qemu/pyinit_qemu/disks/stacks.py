"""Encrypted devices, volumes, arrays and pools: declared as values, made by the real tools in a machine.

>>> gpt(esp(), luks(lvm(vg="v", root=ext4(tree)))).build()

What is inside another is made in the same machine; what lies on several devices is declared once, and its
members are put where they belong:

>>> array = md(1, ext4(tree))
>>> disks = [gpt(esp(), array.member(0)).build(), gpt(array.member(1)).build()]
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal
from uuid import UUID

from pyinit_qemu.debian import STORAGE
from pyinit_qemu.disks import maker
from pyinit_qemu.disks.cache import Cache, digest_file
from pyinit_qemu.disks.filesystems import MIB, Filesystem, Squashfs, Tree
from pyinit_qemu.disks.image import Image
from pyinit_qemu.disks.maker import Plan
from pyinit_qemu.disks.tools import Progress, silent

PASSPHRASE = "pyinit"
"""Opens what is encrypted unless another one is declared."""

_EXTENT = 4 * MIB
# What reads as zeros as long as nothing was written to it: a fresh disk does, a decrypted one does not.
Sparse = bool


class Stack(ABC):
    """Something that a kernel makes of one or more block devices."""

    fstype: ClassVar[str]

    @property
    @abstractmethod
    def recipe(self) -> dict[str, object]:
        """Everything the content depends on, for the cache key."""

    @abstractmethod
    def describe(self) -> str:
        """What it is, for people."""

    @property
    def members(self) -> int:
        """How many devices it lies on."""
        return 1

    @abstractmethod
    def sizes(self, work: Work) -> list[int]:
        """How many bytes each device needs."""

    @abstractmethod
    def make(self, work: Work, devices: Sequence[str], sparse: Sparse) -> None:
        """Add the steps that make it on these devices."""

    def disks(self, *, cache: Cache | None = None, progress: Progress = silent) -> tuple[Path, ...]:
        """The image of each device: raw, sparse, mode 0444. Give them to a VM with a snapshot on top."""
        store = cache or Cache()

        def build(folder: Path) -> None:
            progress(f"making {self.describe()}")
            work = Work(store, progress)
            work.plan.targets[:] = self.sizes(work)
            self.make(work, [f"@target{number}" for number in range(self.members)], True)
            work.plan.close()
            for image in maker.make(work.plan, folder, cache=store, progress=progress):
                image.chmod(0o444)

        recipe = {
            **self.recipe,
            "packages": STORAGE,
            "maker": [digest_file(Path(path)) for path in (__file__, maker.__file__, maker.GUEST)],
        }
        folder = store.entry("stack", recipe, build, progress)
        return tuple(folder / f"{number}.img" for number in range(self.members))

    def build(self, *, cache: Cache | None = None, progress: Progress = silent) -> Path:
        """The image of a disk that holds this and nothing else. ValueError when it lies on several."""
        if self.members != 1:
            raise ValueError(f"{self.describe()} lies on {self.members} devices: use disks() or member()")
        return self.disks(cache=cache, progress=progress)[0]

    def member(self, index: int) -> Member:
        """One of its devices, to be put into a partition, or into something else."""
        return Member(self, index)

    def write(self, target: Path, sector: int) -> None:
        """Create ``target`` with it, for a disk with this logical sector size (bytes)."""
        if self.members != 1:
            raise ValueError(f"{self.describe()} lies on {self.members} devices: name one by member(index)")
        Member(self, 0).write(target, sector)


@dataclass(frozen=True)
class Member:
    """One device of a stack."""

    stack: Stack
    index: int

    fstype: ClassVar[str] = "member"

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.stack.members:
            raise ValueError(
                f"{self.stack.describe()} has no device {self.index}, it has {self.stack.members}"
            )

    @property
    def recipe(self) -> dict[str, object]:
        return {"fstype": self.fstype, "stack": self.stack.recipe, "index": self.index}

    def describe(self) -> str:
        return (
            f"device {self.index} of {self.stack.describe()}"
            if self.stack.members > 1
            else self.stack.describe()
        )

    def write(self, target: Path, sector: int) -> None:
        """Create ``target`` with it. ValueError for a sector size that it was not made for."""
        if sector != 512:
            raise ValueError(f"{self.stack.describe()} is made for sectors of 512 bytes, not {sector}")
        # The copy is as sparse as what it copies, coreutils(1) cp; shutil's is not.
        source = self.stack.disks()[self.index]
        with source.open("rb") as reader, target.open("wb") as writer:
            end = os.fstat(reader.fileno()).st_size
            writer.truncate(end)
            at = 0
            while at < end:
                try:
                    at = os.lseek(reader.fileno(), at, os.SEEK_DATA)
                except OSError:  # ENXIO: nothing but a hole up to the end
                    return
                hole = os.lseek(reader.fileno(), at, os.SEEK_HOLE)
                while at < hole:
                    at += os.copy_file_range(reader.fileno(), writer.fileno(), hole - at, at, at)


Content = Filesystem | Stack | Member | None
"""What can be put into a device; None: nothing."""


class Work:
    """What is known while a plan is made: images of what is copied in, names that are taken."""

    def __init__(self, cache: Cache, progress: Progress) -> None:
        self.plan = Plan([])
        self.cache = cache
        self.progress = progress
        self._count = 0

    def name(self, prefix: str) -> str:
        """A name that nothing else in the machine has."""
        self._count += 1
        return f"{prefix}{self._count}"

    def image(self, content: Filesystem | Member) -> Path:
        return Image(whole=content).build(cache=self.cache, progress=self.progress)

    def size(self, content: Content, least: int = 0) -> int:
        """How many bytes a device with this content must have."""
        if content is None:
            return least or MIB
        if isinstance(content, Stack):
            _single(content)
            return max(least, content.sizes(self)[0])
        return max(least, self.image(content).stat().st_size)

    def fill(self, content: Content, device: str, sparse: Sparse) -> None:
        """Put the content onto a device."""
        if isinstance(content, Stack):
            content.make(self, [device], sparse)
        elif content is not None:
            self.plan.copy(self.image(content), device, sparse=sparse)


def _single(content: Stack) -> None:
    if content.members != 1:
        raise ValueError(f"{content.describe()} lies on {content.members} devices: name one by member(index)")


def _recipe(value: Any) -> object:
    """A declaration as JSON."""
    if isinstance(value, Tree):
        return value.digest
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return [(name, _recipe(item)) for name, item in value.items()]
    if isinstance(value, tuple):
        return [_recipe(item) for item in value]
    recipe = getattr(value, "recipe", None)
    return value if recipe is None else recipe


@dataclass(frozen=True)
class _Declared(Stack):
    @property
    def recipe(self) -> dict[str, object]:
        return {"fstype": self.fstype} | {
            item.name: _recipe(getattr(self, item.name)) for item in fields(self)
        }


@dataclass(frozen=True)
class Luks(_Declared):
    """An encrypted device, cryptsetup(8). With ``detached`` it lies on two: the data, and its header."""

    fstype: ClassVar[str] = "crypto_LUKS"

    content: Content
    version: Literal[1, 2] = 2
    passphrase: str = PASSPHRASE
    key: bytes = b""
    """The content of a key file that opens it too."""
    uuid: str = ""
    label: str = ""
    """LUKS2 only."""
    cipher: str = ""
    detached: bool = False
    options: tuple[str, ...] = ()
    """Further words for ``cryptsetup luksFormat``."""

    def __post_init__(self) -> None:
        if self.version not in (1, 2):
            raise ValueError(f"LUKS has versions 1 and 2, not {self.version}")
        if self.label and self.version == 1:
            raise ValueError("LUKS1 has no label")
        if not self.passphrase:
            raise ValueError("a LUKS device needs a passphrase")

    @property
    def members(self) -> int:
        return 2 if self.detached else 1

    @property
    def _header(self) -> int:
        return 16 * MIB if self.version == 2 else 2 * MIB

    def describe(self) -> str:
        return f"LUKS{self.version} of {_describe(self.content)}"

    def sizes(self, work: Work) -> list[int]:
        data = work.size(self.content)
        return [data, self._header] if self.detached else [data + self._header]

    def make(self, work: Work, devices: Sequence[str], sparse: Sparse) -> None:
        plan, name = work.plan, work.name("luks")
        apart = ["--header", devices[1]] if self.detached else []
        options = [*apart, "--offset", "0" if self.detached else str(self._header // 512), *self.options]
        for flag, value in (("--uuid", self.uuid), ("--label", self.label), ("--cipher", self.cipher)):
            options += [flag, value] if value else []
        # The derivation that costs least: this protects nothing, and is undone by an emulated processor.
        cheap = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
        start = ["cryptsetup", "--batch-mode", "--key-file", "-"]
        plan.run(
            *start, "luksFormat", "--type", f"luks{self.version}", *cheap, *options, devices[0],
            stdin=self.passphrase,
        )  # fmt: skip
        if self.key:
            file = f"/run/{name}.key"
            plan.write(file, self.key)
            plan.run(*start, "luksAddKey", *cheap, *apart, devices[0], file, stdin=self.passphrase)
        plan.run(*start, "open", *apart, devices[0], name, stdin=self.passphrase)
        plan.finally_run("cryptsetup", "close", name)
        work.fill(self.content, f"/dev/mapper/{name}", False)


@dataclass(frozen=True)
class Volume:
    """A logical volume, lvmraid(7), lvmthin(7), lvmcache(7)."""

    content: Content = None
    kind: Literal["linear", "striped", "raid1", "mirror", "thin", "cached", "snapshot"] = "linear"
    size: int = 0
    """Bytes; at least what the content takes. Of a snapshot: what may differ from its origin."""
    origin: str = ""
    """Of a snapshot: the volume that it is one of, declared before it."""

    @property
    def recipe(self) -> dict[str, object]:
        return {item.name: _recipe(getattr(self, item.name)) for item in fields(self)}


@dataclass(frozen=True)
class Lvm(_Declared):
    """A volume group, on ``pvs`` devices of which each has room for everything."""

    fstype: ClassVar[str] = "LVM2_member"

    vg: str
    volumes: Mapping[str, Volume]
    pvs: int = 1

    def __post_init__(self) -> None:
        if not self.volumes:
            raise ValueError(f"volume group {self.vg!r} has no volumes")
        for name in (self.vg, *self.volumes):
            if not re.fullmatch(r"[A-Za-z0-9_+.][A-Za-z0-9_+.-]{0,126}", name) or name in (".", ".."):
                raise ValueError(f"{name!r} is no name of a volume or a group: letters, digits and _ + . -")
        for name, volume in self.volumes.items():
            if volume.kind in ("striped", "raid1", "mirror") and self.pvs < 2:
                raise ValueError(f"{volume.kind} volume {name!r} needs pvs=2 or more")
            if volume.kind == "snapshot" and volume.origin not in self.volumes:
                raise ValueError(
                    f"snapshot {name!r} is of {volume.origin!r}, which is no volume of {self.vg!r}"
                )

    @property
    def members(self) -> int:
        return self.pvs

    def describe(self) -> str:
        names = (f"{name} ({_describe(volume.content)})" for name, volume in self.volumes.items())
        return f"LVM {self.vg}: {', '.join(names)}"

    def _size(self, work: Work, volume: Volume) -> int:
        least = volume.size or (4 * _EXTENT if volume.kind == "snapshot" else 0)
        size = work.size(volume.content, least)
        return size + -size % (_EXTENT * self.pvs)

    def sizes(self, work: Work) -> list[int]:
        volumes = self.volumes.values()
        # A pool has metadata, a spare of it, and a bit more than is written to it; a mirror has a log.
        beside = {"thin": 6, "cached": 12, "raid1": 2, "mirror": 2}
        extra = sum(beside.get(volume.kind, 0) * _EXTENT for volume in volumes)
        data = sum(self._size(work, volume) for volume in volumes)
        return [data + extra + 2 * _EXTENT] * self.pvs

    def make(self, work: Work, devices: Sequence[str], sparse: Sparse) -> None:
        plan = work.plan
        plan.run("lvm", "pvcreate", "-ff", "-y", *devices)
        plan.run("lvm", "vgcreate", "-y", "-s", f"{_EXTENT}b", self.vg, *devices)
        plan.finally_run("lvm", "vgchange", "-an", self.vg)
        for name, volume in self.volumes.items():
            size = f"{self._size(work, volume)}b"
            # Old signatures are not looked for: the devices are new.
            create = ["lvm", "lvcreate", "-y", "-Wn"]
            named = ["-n", name, self.vg]
            match volume.kind:
                case "linear" | "cached":
                    plan.run(*create, "-L", size, *named)
                case "striped":
                    plan.run(*create, "-L", size, "-i", str(self.pvs), *named)
                case "raid1" | "mirror":
                    # All copies are as empty as each other: nothing has to be synchronised.
                    plan.run(*create, "-L", size, "--type", volume.kind, "-m1", "--nosync", *named)
                case "thin":
                    pool = f"{name}_pool"
                    plan.run("lvm", "lvcreate", "-y", "-L", size, "--type", "thin-pool", "-n", pool, self.vg)
                    plan.run("lvm", "lvcreate", "-y", "-V", size, "-T", f"{self.vg}/{pool}", "-n", name)
                case "snapshot":
                    plan.run(
                        "lvm", "lvcreate", "-y", "-L", size, "-s", "-n", name, f"{self.vg}/{volume.origin}"
                    )
                    continue
            work.fill(volume.content, self.node(name), sparse)
            if volume.kind == "cached":
                pool = f"{name}_cache"
                plan.run(
                    "lvm", "lvcreate", "-y", "-L", f"{4 * _EXTENT}b", "--type", "cache-pool",
                    "-n", pool, self.vg,
                )  # fmt: skip
                plan.run(
                    "lvm", "lvconvert", "-y", "--type", "cache", "--cachemode", "writethrough",
                    "--cachepool", f"{self.vg}/{pool}", f"{self.vg}/{name}",
                )  # fmt: skip

    def node(self, volume: str) -> str:
        """The device node of a volume: a dash in a name is written twice there."""
        return "/dev/mapper/" + "-".join(part.replace("-", "--") for part in (self.vg, volume))


_MD_OFFSET = MIB
_MD_CHUNK = MIB // 2


@dataclass(frozen=True)
class Md(_Declared):
    """A software array, md(4)."""

    fstype: ClassVar[str] = "linux_raid_member"

    level: Literal[0, 1, 4, 5, 6, 10]
    content: Content
    count: int = 2
    name: str = "root"
    uuid: str = ""
    metadata: Literal["0.90", "1.0", "1.1", "1.2"] = "1.2"
    homehost: str = "any"
    """``any``: every host takes the array for its own."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,31}", self.name):
            raise ValueError(f"{self.name!r} is no name of an array: at most 32 letters, digits and _ . -")
        least = {0: 2, 1: 2, 4: 3, 5: 3, 6: 4, 10: 2}.get(self.level)
        if least is None:
            raise ValueError(f"md has levels 0, 1, 4, 5, 6 and 10, not {self.level}")
        if self.count < least:
            raise ValueError(f"an array of level {self.level} has at least {least} members, not {self.count}")

    @property
    def members(self) -> int:
        return self.count

    def describe(self) -> str:
        return f"MD level {self.level} of {_describe(self.content)}"

    def sizes(self, work: Work) -> list[int]:
        data = work.size(self.content)
        share = {0: self.count, 1: 1, 4: self.count - 1, 5: self.count - 1, 6: self.count - 2}
        # Level 10 keeps two copies of everything.
        each = data * 2 / self.count if self.level == 10 else data / share[self.level]
        size = int(each) + _MD_CHUNK
        return [size + -size % MIB + 2 * _MD_OFFSET] * self.count

    def make(self, work: Work, devices: Sequence[str], sparse: Sparse) -> None:
        plan, node = work.plan, f"/dev/md{work.name('')}"
        options = ["--metadata", self.metadata, "--homehost", self.homehost]
        if self.metadata != "0.90":
            options += ["--name", self.name]
        if self.metadata in ("1.1", "1.2"):
            options += ["--data-offset", f"{_MD_OFFSET >> 10}K"]
        if self.uuid:
            options += ["--uuid", self.uuid]
        if self.level != 0:
            options.append("--bitmap=none")
            # Of a new disk all bytes are zeros, and so is their parity.
            options += ["--assume-clean"] if sparse else []
        if self.level != 1:
            options += ["--chunk", f"{_MD_CHUNK >> 10}K"]
        plan.run(
            "mdadm", "--create", node, "--run", "--level", str(self.level),
            "--raid-devices", str(self.count), *options, *devices,
        )  # fmt: skip
        plan.finally_run("mdadm", "--stop", node)
        work.fill(self.content, node, sparse)


@dataclass(frozen=True)
class BtrfsPool(_Declared):
    """A btrfs over ``count`` devices, with subvolumes, btrfs(5)."""

    fstype: ClassVar[str] = "btrfs"

    tree: Tree | None = None
    count: int = 1
    data: str = ""
    """Profile of data, and of metadata: ``single``, ``raid0``, ``raid1``... Empty: mkfs.btrfs' choice."""
    metadata: str = ""
    subvolumes: Mapping[str, Tree | None] = field(default_factory=dict)
    """Their trees; a path in the pool each, those above others first."""
    default: str = ""
    """The subvolume that is mounted when none is named."""
    label: str = ""
    uuid: str = ""

    def __post_init__(self) -> None:
        for path in self.subvolumes:
            if not path or any(part in ("", ".", "..") for part in path.split("/")):
                raise ValueError(f"{path!r} is no path of a subvolume: names with / between them")
        if self.default and self.default not in self.subvolumes:
            raise ValueError(f"{self.default!r} is not one of the subvolumes")

    @property
    def members(self) -> int:
        return self.count

    def describe(self) -> str:
        inside = f" with {', '.join(self.subvolumes)}" if self.subvolumes else ""
        return f"btrfs {self.label!r}{inside}" if self.label else f"btrfs{inside}"

    def sizes(self, work: Work) -> list[int]:
        trees = [tree for tree in (self.tree, *self.subvolumes.values()) if tree is not None]
        size = 256 * MIB + 2 * sum(tree.size() for tree in trees)
        return [size + -size % MIB] * self.count

    def make(self, work: Work, devices: Sequence[str], sparse: Sparse) -> None:
        plan, top = work.plan, f"/run/{work.name('btrfs')}"
        options = []
        for flag, value in (
            ("--data", self.data),
            ("--metadata", self.metadata),
            ("--label", self.label),
            ("--uuid", self.uuid),
        ):
            options += [flag, value] if value else []
        plan.run("modprobe", "btrfs")
        plan.run("mkfs.btrfs", "--quiet", "--force", "--nodiscard", *options, *devices)
        plan.run("btrfs", "device", "scan", *devices)
        plan.run("mount", "--mkdir", "-t", "btrfs", devices[0], top)
        for name, tree in (("", self.tree), *self.subvolumes.items()):
            if name:
                plan.run("btrfs", "subvolume", "create", f"{top}/{name}")
            if tree is not None:
                source = f"/run/{work.name('tree')}"
                image = plan.source(work.image(Squashfs(tree)))
                plan.run("mount", "--mkdir", "-t", "squashfs", "-o", "ro", image, source)
                plan.run("cp", "--archive", f"{source}/.", f"{top}/{name}")
                plan.run("umount", source)
        if self.default:
            plan.run("btrfs", "subvolume", "set-default", f"{top}/{self.default}")
        plan.run("umount", top)


def _describe(content: Content) -> str:
    return "nothing" if content is None else content.describe()


def luks(content: Content = None, **options: Any) -> Luks:
    """An encrypted device; options as in :class:`Luks`."""
    return Luks(content, **options)


def lvm(vg: str = "vg", pvs: int = 1, **volumes: Volume | Content) -> Lvm:
    """A volume group; each further word is a volume: its content, or a :class:`Volume`."""
    return Lvm(
        vg,
        {name: value if isinstance(value, Volume) else Volume(value) for name, value in volumes.items()},
        pvs,
    )


def md(level: Literal[0, 1, 4, 5, 6, 10], content: Content = None, members: int = 2, **options: Any) -> Md:
    """A software array; options as in :class:`Md`."""
    return Md(level, content, members, **options)


def btrfs_pool(tree: Tree | None = None, devices: int = 1, **options: Any) -> BtrfsPool:
    """A btrfs over several devices, or with subvolumes; options as in :class:`BtrfsPool`."""
    return BtrfsPool(tree, devices, **options)


@dataclass(frozen=True)
class Bcache(_Declared):
    """A device with a cache in front of it, bcache.rst: two devices, the data and the cache.

    The superblocks are written as the kernel has them (drivers/md/bcache/bcache_ondisk.h); the cache is
    empty, and the kernel fills in the rest when it sees it first.
    """

    fstype: ClassVar[str] = "bcache"

    content: Filesystem
    uuid: str
    """Of the backing device."""
    state: Literal["none", "clean", "dirty"] = "clean"
    """What the backing device says; unless it is ``none`` it waits for its cache."""

    @property
    def members(self) -> int:
        return 2

    @property
    def recipe(self) -> dict[str, object]:
        return {**super().recipe, "buckets": [_BCACHE_BUCKETS, _BCACHE_BUCKET]}

    @property
    def cache_set(self) -> str:
        """The UUID of the set that the cache is."""
        return str(UUID(bytes=hashlib.sha256(f"set of {self.uuid}".encode()).digest()[:16]))

    def describe(self) -> str:
        return f"bcache of {self.content.describe()}"

    def sizes(self, work: Work) -> list[int]:
        return [work.size(self.content) + _BCACHE_DATA, _BCACHE_BUCKETS * _BCACHE_BUCKET]

    def make(self, work: Work, devices: Sequence[str], sparse: Sparse) -> None:
        raise ValueError(f"{self.describe()} lies on disks and nothing else")

    def disks(self, *, cache: Cache | None = None, progress: Progress = silent) -> tuple[Path, ...]:
        store = cache or Cache()

        def build(folder: Path) -> None:
            work = Work(store, progress)
            source = work.image(self.content)
            heads = (
                _bcache_head(1, UUID(self.uuid), UUID(self.cache_set), self.state, 0),
                _bcache_head(0, UUID(int=UUID(self.uuid).int ^ 1), UUID(self.cache_set), "", _BCACHE_BUCKETS),
            )
            for number, (head, size) in enumerate(zip(heads, self.sizes(work), strict=True)):
                with (folder / f"{number}.img").open("wb") as file:
                    file.truncate(size + -size % MIB)
                    file.seek(_BCACHE_SECTOR * 512)
                    file.write(head)
                    if number == 0:
                        file.seek(_BCACHE_DATA)
                        with source.open("rb") as reader:
                            while data := reader.read(MIB):
                                if any(data):
                                    file.write(data)
                                else:
                                    file.seek(len(data), os.SEEK_CUR)
                (folder / f"{number}.img").chmod(0o444)

        folder = store.entry("stack", {**self.recipe, "maker": digest_file(Path(__file__))}, build, progress)
        return tuple(folder / f"{number}.img" for number in range(2))


_BCACHE_SECTOR = 8
_BCACHE_DATA = 16 * 512
_BCACHE_BUCKET = 64 << 10
# With fewer the kernel says that the device is too small (cache_alloc in drivers/md/bcache/super.c).
_BCACHE_BUCKETS = 1024


def _bcache_head(version: int, uuid: UUID, cache_set: UUID, state: str, buckets: int) -> bytes:
    """The superblock of a backing device (version 1) or of a cache (version 0)."""
    flags = ("none", "clean", "dirty").index(state) << 61 if state else 0
    body = struct.pack(
        "<QQ16s16s16s32sQQ64x",
        _BCACHE_SECTOR, version, bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81"), uuid.bytes,
        cache_set.bytes, b"", flags, 0,
    )  # fmt: skip
    place = buckets or _BCACHE_DATA // 512
    body += struct.pack("<QHHHHIHH", place, 1, _BCACHE_BUCKET // 512 if buckets else 0, 1, 0, 0, 1, 0)
    # The CRC of ECMA-182, begun with ones and inverted at the end (crc64_be in lib/crc64.c).
    crc = (1 << 64) - 1
    for byte in body:
        crc ^= byte << 56
        for _ in range(8):
            crc = (crc << 1 ^ (0x142F0E1EBA9EA3693 if crc >> 63 else 0)) & ((1 << 64) - 1)
    return (struct.pack("<Q", crc ^ ((1 << 64) - 1)) + body).ljust(4096, b"\0")


def bcache(content: Filesystem, uuid: str, **options: Any) -> Bcache:
    """A device with a cache; options as in :class:`Bcache`."""
    return Bcache(content, uuid, **options)
