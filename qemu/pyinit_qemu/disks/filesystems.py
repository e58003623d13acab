"""File systems in files, from a directory tree, with label and UUID; and swap areas.

None needs root or a loop device; all are sparse, and reproducible as far as the tools allow.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from pyinit_qemu.disks.cache import digest_tree, remove
from pyinit_qemu.disks.tools import run, version

MIB = 1 << 20
# The times of a new file system itself; files keep those of the tree.
_TIME = {"E2FSPROGS_FAKE_TIME": "1700000000"}
_CHANGED = 1700000000

# Under fakeroot a file that was *created* without permission to read it, as copies of /etc/shadow are, cannot
# be read, while one whose mode was *changed* so can: its real mode keeps the owner's permissions.
_UNPACK = """
tar --extract --same-owner --numeric-owner --preserve-permissions --file "$1" --directory "$2" || exit
find "$2" -type f ! -perm -400 -exec sh -c 'for file; do
    chmod "$(stat --format %a "$file")" "$file"
done' sh {} +
cp --recursive --preserve=timestamps --remove-destination "$3/." "$2" || exit
shift 3
exec "$@"
"""


class Tree:
    """What goes into a file system: a directory, and an archive of it when this user cannot own its files."""

    def __init__(
        self,
        path: Path,
        *,
        archive: Path | None = None,
        digest: str | None = None,
        changes: Mapping[str, bytes] | None = None,
    ) -> None:
        """``digest`` identifies the content; without it the directory is read."""
        self.path = path
        self.archive = archive
        self.changes = dict(changes or {})
        plain = digest_tree(path) if digest is None else digest
        self._plain = plain
        self.digest = plain
        if self.changes:
            self.digest = hashlib.sha256(repr((plain, sorted(self.changes.items()))).encode()).hexdigest()

    def changed(self, changes: Mapping[str, bytes]) -> Tree:
        """The same with other contents of some files (mode 0644), by their paths; new ones are added."""
        return Tree(self.path, archive=self.archive, digest=self._plain, changes={**self.changes, **changes})

    def size(self) -> int:
        """Bytes that the files take in blocks of 4 KiB, with an inode each."""
        return sum((path.lstat().st_size + 4095) // 4096 * 4096 + 256 for path in self.path.rglob("*"))

    @contextmanager
    def opened(self, beside: Path) -> Iterator[tuple[Path, list[str | Path]]]:
        """A directory to copy from, and the words to put before the copying tool's command line.

        An archive is unpacked again, under the fakeroot in which the tool then runs, so that the tool sees
        the owners and the device nodes.
        """
        if self.archive is None and not self.changes:
            yield self.path, []
            return
        work, changes = (beside.with_name(f"{beside.name}.{name}") for name in ("tree", "changes"))
        changes.mkdir()
        try:
            for name, data in self.changes.items():
                place = changes / name.lstrip("/")
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)
                place.chmod(0o644)
            for path in (changes, *changes.rglob("*")):
                os.utime(path, (_CHANGED, _CHANGED))
            if self.archive is not None:
                work.mkdir()
                yield work, ["sh", "-c", _UNPACK, "sh", self.archive, work, changes]
            else:
                # The copy shares the files' contents; those that change are removed from it first.
                run(["cp", "--archive", "--link", self.path, work])
                how = ["--recursive", "--preserve=timestamps", "--remove-destination"]
                run(["cp", *how, f"{changes}/.", work])
                yield work, []
        finally:
            for folder in (work, changes):
                if folder.exists():
                    remove(folder)


class Filesystem(Protocol):
    """A file system that can be written into a file."""

    fstype: ClassVar[str]

    @property
    def recipe(self) -> dict[str, object]:
        """Everything the content depends on, for the cache key."""

    def describe(self) -> str:
        """Kind and label, for people."""

    def write(self, target: Path, sector: int) -> None:
        """Create ``target`` with the file system in it, for a disk with this logical sector size (bytes)."""


@dataclass(frozen=True)
class _Base:
    """The options that all kinds share. ``size`` is in bytes; without it the tree's size plus ``free``."""

    fstype: ClassVar[str]
    tool: ClassVar[str]
    least: ClassVar[int]

    tree: Tree | None = None
    label: str = ""
    uuid: str = ""
    size: int = 0
    free: int = 16 * MIB
    options: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The UUID; made from the declaration if none was given, so that equal ones give equal bytes."""
        tree = self.tree and self.tree.digest
        content = (self.fstype, tree, self.label, self.size, self.free, self.options)
        return self.uuid or str(uuid.uuid5(uuid.NAMESPACE_DNS, repr(content)))

    @property
    def recipe(self) -> dict[str, object]:
        return {
            "fstype": self.fstype,
            "tool": version(self.tool) if self.tool else "",
            "tree": self.tree and self.tree.digest,
            "label": self.label,
            "uuid": self.id,
            "size": self.size,
            "free": self.free,
            "options": self.options,
        }

    def describe(self) -> str:
        return f"{self.fstype} {self.label!r}" if self.label else self.fstype

    def write(self, target: Path, sector: int) -> None:
        raise NotImplementedError

    def _create(self, target: Path) -> None:
        size = self.size
        if size == 0:
            content = self.tree.size() if self.tree else 0
            size = max(self.least, content + content // 16 + self.free)
            size += -size % MIB
        with target.open("wb") as file:
            file.truncate(size)

    def _run(self, target: Path, argv: Callable[[Path], list[str | Path]]) -> None:
        """Run the tool whose command line ``argv`` makes from the directory to copy."""
        assert self.tree is not None
        with self.tree.opened(target) as (directory, prefix):
            run([*prefix, *argv(directory)], env=_TIME, owners=True)


@dataclass(frozen=True)
class Ext4(_Base):
    """ext4. The label has at most 16 bytes."""

    fstype: ClassVar[str] = "ext4"
    tool: ClassVar[str] = "mke2fs"
    least: ClassVar[int] = 8 * MIB

    def write(self, target: Path, sector: int) -> None:
        self._create(target)
        _fits(self, 16)
        extended = "root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1,nodiscard"
        argv: list[str | Path] = ["mke2fs", "-q", "-F", "-t", self.fstype, "-b", "4096"]
        if self.label:
            argv += ["-L", self.label]
        argv += ["-U", self.id]
        extended += f",hash_seed={self.id}"
        argv += ["-E", extended, *self.options]
        if self.tree is None:
            run([*argv, target], env=_TIME)
        else:
            self._run(target, lambda tree: [*argv, "-d", tree, target])


@dataclass(frozen=True)
class Ext3(Ext4):
    """ext3. The label has at most 16 bytes."""

    fstype: ClassVar[str] = "ext3"


@dataclass(frozen=True)
class Ext2(Ext4):
    """ext2. The label has at most 16 bytes."""

    fstype: ClassVar[str] = "ext2"


@dataclass(frozen=True)
class Btrfs(_Base):
    """btrfs, one device. The label has at most 255 bytes."""

    fstype: ClassVar[str] = "btrfs"
    tool: ClassVar[str] = "mkfs.btrfs"
    least: ClassVar[int] = 128 * MIB

    def write(self, target: Path, sector: int) -> None:
        self._create(target)
        argv: list[str | Path] = ["mkfs.btrfs", "--quiet", "--force", "--nodiscard", "--sectorsize", "4096"]
        if self.label:
            argv += ["--label", self.label]
        argv += ["--uuid", self.id]
        argv += self.options
        if self.tree is None:
            run([*argv, target])
        else:
            self._run(target, lambda tree: [*argv, "--rootdir", tree, target])


@dataclass(frozen=True)
class Squashfs(_Base):
    """squashfs: read-only, as small as its content, without label and UUID."""

    fstype: ClassVar[str] = "squashfs"
    tool: ClassVar[str] = "mksquashfs"
    least: ClassVar[int] = 0

    def write(self, target: Path, sector: int) -> None:
        if self.label or self.uuid:
            raise ValueError("squashfs has neither label nor UUID; name the partition instead")
        if self.tree is None:
            raise ValueError("squashfs needs a tree")
        # Debian's kernels read zstd; gzip, the default, takes several times as long to write.
        fixed = [
            "-noappend",
            "-no-progress",
            "-quiet",
            "-comp",
            "zstd",
            "-Xcompression-level",
            "3",
            "-mkfs-time",
            "0",
        ]
        self._run(target, lambda tree: ["mksquashfs", tree, target, *fixed, *self.options])


@dataclass(frozen=True)
class Xfs(_Base):
    """xfs. The label has at most 12 bytes. mkfs.xfs refuses to make one below 300 MiB.

    mkfs.xfs reads a "proto" file, whose words cannot hold white space, and whose modes cannot hold the sticky
    bit: a tree with such a name is refused, and sticky bits are set afterwards. All files belong to root
    unless this process is root.
    """

    fstype: ClassVar[str] = "xfs"
    tool: ClassVar[str] = "mkfs.xfs"
    least: ClassVar[int] = 300 * MIB

    def write(self, target: Path, sector: int) -> None:
        self._create(target)
        argv: list[str | Path] = ["mkfs.xfs", "-q", "-f", "-K", "-s", f"size={sector}"]
        if self.label:
            argv += ["-L", self.label]
        argv += ["-m", f"uuid={self.id}"]
        if self.tree is None:
            run([*argv, *self.options, target])
            return
        prototype = target.with_name(f"{target.name}.proto")
        sticky: list[tuple[str, str]] = []
        try:
            prototype.write_bytes(b"\n".join(_prototype(os.fsencode(self.tree.path), sticky)) + b"\n")
            run([*argv, "-p", prototype, *self.options, target])
        finally:
            prototype.unlink(missing_ok=True)
        if sticky:
            commands = [
                w for path, mode in sticky for w in ("-c", f"path {path}", "-c", f"write core.mode {mode}")
            ]
            run(["xfs_db", "-x", *commands, target])


@dataclass(frozen=True)
class F2fs(_Base):
    """f2fs. The label has at most 512 characters.

    Of ``free`` its cleaner takes about a half. Its tools set neither sticky bits nor capabilities; files
    belong to root unless this process is root.
    """

    fstype: ClassVar[str] = "f2fs"
    tool: ClassVar[str] = "mkfs.f2fs"
    least: ClassVar[int] = 128 * MIB

    free: int = 128 * MIB

    def write(self, target: Path, sector: int) -> None:
        self._create(target)
        argv: list[str | Path] = ["mkfs.f2fs", "-q", "-f", "-r", "-t", "0", "-T", "1700000000"]
        argv += ["-w", str(sector), "-U", self.id]
        argv += ["-l", self.label] if self.label else []
        run([*argv, *self.options, target])
        if self.tree is not None:
            self._run(target, lambda tree: ["sload.f2fs", "-P", "-T", "1700000000", "-f", tree, target])


@dataclass(frozen=True)
class Erofs(_Base):
    """erofs: read-only, as small as its content, without label."""

    fstype: ClassVar[str] = "erofs"
    tool: ClassVar[str] = "mkfs.erofs"
    least: ClassVar[int] = 0

    def write(self, target: Path, sector: int) -> None:
        if self.label:
            raise ValueError("erofs has no label that these tools can set; name the partition instead")
        if self.tree is None:
            raise ValueError("erofs needs a tree")
        argv = ["mkfs.erofs", "--quiet", "-zlz4", "-T1700000000", f"-U{self.id}", *self.options]
        self._run(target, lambda tree: [*argv, target, tree])


@dataclass(frozen=True)
class Vfat(_Base):
    """FAT, of the width that the size asks for. The label has at most 11 characters, without ``.``.

    The UUID is ``XXXX-XXXX``. It has neither owners, modes, nor links: a tree with something else than
    files and directories is refused.
    """

    fstype: ClassVar[str] = "vfat"
    tool: ClassVar[str] = "mkfs.vfat"
    least: ClassVar[int] = 34 * MIB

    @property
    def id(self) -> str:
        if not self.uuid:
            made = super().id.replace("-", "")[:8].upper()
            return f"{made[:4]}-{made[4:]}"
        if not re.fullmatch(r"[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}", self.uuid):
            raise ValueError(f"the UUID of a vfat is XXXX-XXXX in hexadecimal digits, not {self.uuid!r}")
        return self.uuid.upper()

    def write(self, target: Path, sector: int) -> None:
        if not re.fullmatch(r"""[^\x00-\x1f\x7f-\U0010ffff"*+,./:;<=>?\[\\\]|]{0,11}""", self.label):
            raise ValueError(
                f"{self.label!r} is no label of a vfat: at most 11 characters of ASCII, no . or /"
            )
        self._create(target)
        argv = ["mkfs.vfat", "--invariant", "-S", str(sector), "-i", self.id.replace("-", "")]
        argv += ["-n", self.label] if self.label else []
        run([*argv, *self.options, str(target)])
        if self.tree is None:
            return
        with self.tree.opened(target) as (directory, prefix):
            if prefix:
                raise ValueError("a vfat has no owners: it is made of a plain directory")
            for path in directory.rglob("*"):
                if path.is_symlink() or not (path.is_dir() or path.is_file()):
                    raise ValueError(f"{path} is neither a file nor a directory: a vfat cannot hold it")
            names = sorted(directory.iterdir())
            if names:
                run(["mcopy", "-i", target, "-s", "-m", "-Q", *names, "::/"], env={"MTOOLS_SKIP_CHECK": "1"})


@dataclass(frozen=True)
class Swap(_Base):
    """A swap area, version 1, of pages of 4 KiB. The label has at most 16 bytes. It takes no tree."""

    fstype: ClassVar[str] = "swap"
    tool: ClassVar[str] = ""
    least: ClassVar[int] = 16 * MIB

    def write(self, target: Path, sector: int) -> None:
        if self.tree is not None:
            raise ValueError("a swap area holds no tree")
        _fits(self, 16)
        self._create(target)
        pages = target.stat().st_size // 4096
        label = self.label.encode().ljust(16, b"\0")
        # union swap_header, include/linux/swap.h: version, last page, bad pages, UUID, label.
        header = struct.pack("<III16s16s", 1, pages - 1, 0, uuid.UUID(self.id).bytes, label)
        with target.open("r+b") as file:
            file.seek(1024)
            file.write(header)
            file.seek(4096 - 10)
            file.write(b"SWAPSPACE2")


def _fits(filesystem: _Base, limit: int) -> None:
    if len(filesystem.label.encode()) > limit or "\0" in filesystem.label:
        raise ValueError(
            f"{filesystem.label!r} is no label of {filesystem.fstype}: at most {limit} bytes of UTF-8, no NUL"
        )


def _prototype(root: bytes, sticky: list[tuple[str, str]]) -> Iterator[bytes]:
    """The lines of a proto file, mkfs.xfs(8); ``sticky`` gets what has the sticky bit, and its mode."""
    yield b"/"
    yield b"0 0"
    yield from _prototype_folder(b"", root, b"", sticky)
    yield b"$"


def _prototype_folder(
    name: bytes, path: bytes, inside: bytes, sticky: list[tuple[str, str]]
) -> Iterator[bytes]:
    yield _prototype_entry(name, path, inside, sticky)
    with os.scandir(path) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        where = inside + b"/" + entry.name
        if len(entry.name.split()) != 1:
            raise ValueError(
                f"{where!r} has white space in its name, which a proto file of mkfs.xfs cannot hold"
            )
        if entry.is_dir(follow_symlinks=False):
            yield from _prototype_folder(entry.name, entry.path, where, sticky)
            yield b"$"
        else:
            yield _prototype_entry(entry.name, entry.path, where, sticky)


def _prototype_entry(name: bytes, path: bytes, inside: bytes, sticky: list[tuple[str, str]]) -> bytes:
    status = os.lstat(path)
    mode = status.st_mode
    kind = {
        stat.S_IFDIR: b"d",
        stat.S_IFLNK: b"l",
        stat.S_IFBLK: b"b",
        stat.S_IFCHR: b"c",
        stat.S_IFIFO: b"p",
    }
    letter = kind.get(stat.S_IFMT(mode), b"-")
    special = (b"u" if mode & stat.S_ISUID else b"-") + (b"g" if mode & stat.S_ISGID else b"-")
    owner = (status.st_uid, status.st_gid) if os.geteuid() == 0 else (0, 0)
    fields = [name, letter + special + b"%03o" % (mode & 0o777), b"%d %d" % owner]
    if stat.S_ISLNK(mode):
        fields.append(os.readlink(path))
    elif stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
        fields.append(b"%d %d" % (os.major(status.st_rdev), os.minor(status.st_rdev)))
    elif stat.S_ISREG(mode):
        fields.append(path)
    if mode & stat.S_ISVTX and not stat.S_ISLNK(mode):
        sticky.append((os.fsdecode(inside), f"0{mode:o}"))
    return b" ".join(field for field in fields if field)


FILESYSTEMS: dict[str, type[_Base]] = {
    kind.fstype: kind for kind in (Ext4, Ext3, Ext2, Xfs, Btrfs, F2fs, Squashfs, Erofs, Vfat, Swap)
}
