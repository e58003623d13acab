"""The plan of an image: every entry, and why it is there."""

from __future__ import annotations

import hashlib
import json
import posixpath
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pyinit.config.sealed import SENTINEL_PATH
from pyinit.text import printable

from . import cpio
from .elf import Item, Walker
from .errors import BuildError
from .sysroot import MAX_LINKS, Sysroot

MANIFEST_PATH = "/usr/lib/pyinit/manifest.json"
SCHEMA = 1

_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link", stat.S_IFCHR: "device"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the image. ``mode`` includes the file type bits."""

    path: str
    mode: int
    data: bytes
    """The content of a file, the target of a symbolic link. Empty for a file that comes out of the cache."""
    device: tuple[int, int]
    reason: str
    """Why it is there, in a few words."""
    parent: str | None
    """The entry that wants this one; None when the build itself does."""
    source: str
    """Which source added it: the unit of ``ls --by-reason``."""
    size: int
    """Bytes of content."""
    digest: str
    """SHA-256 of the content, in hexadecimal."""

    def same(self, other: Entry) -> bool:
        """Whether both would be unpacked to the same."""
        return (self.mode, self.digest, self.device) == (other.mode, other.digest, other.device)


class Plan:
    """Collects the entries of a layer, each path once, with the first reason that was given.

    ``below`` are the entries of the layers that are unpacked before this one.
    """

    def __init__(self, sysroot: Sysroot, below: Mapping[str, Entry] | None = None) -> None:
        self.sysroot = sysroot
        self.walker = Walker(sysroot)
        self.below: Mapping[str, Entry] = below or {}
        self.entries: dict[str, Entry] = {}
        self.absent: dict[str, str] = {}
        """What was left out on purpose, and why: a path, the name of a file or of a kernel module."""
        self.others: tuple[str, ...] = ()
        """The kernel modules that the image could have but has not."""
        self.stand_ins: frozenset[str] = frozenset()
        """Paths in ``below`` whose file only stands in for the real one, which may take its place."""
        self.warnings: list[str] = []
        self.secrets: list[str] = []
        """Paths of what nobody but root may read: such an image is not written where others can read it."""
        self.source = "base"
        """The name of the source that is adding entries now."""

    def warn(self, message: str) -> None:
        """Note something that the user should know but that does not stop the build."""
        if message not in self.warnings:
            self.warnings.append(message)

    def leave_out(self, name: str, reason: str) -> None:
        """Note why something is not in the image, for ``pyinit-image explain``."""
        self.absent.setdefault(name, reason)

    def directory(self, path: str, reason: str, *, mode: int = 0o755) -> None:
        """Add a directory."""
        self._add(path, stat.S_IFDIR | mode, b"", reason, None)

    def link(self, path: str, target: str, reason: str, parent: str | None = None) -> None:
        """Add a symbolic link; ``target`` is stored as it is."""
        self._add(path, stat.S_IFLNK | 0o777, _encode(target), reason, parent)

    def device(self, path: str, major: int, minor: int, mode: int, reason: str) -> None:
        """Add a character device node."""
        self._add(path, stat.S_IFCHR | mode, b"", reason, None, (major, minor))

    def data(
        self, path: str, content: bytes, reason: str, parent: str | None = None, *, mode: int = 0o644
    ) -> None:
        """Add a file with the given content."""
        self._add(path, stat.S_IFREG | mode, content, reason, parent)

    def secret(self, path: str, content: bytes, reason: str) -> None:
        """Add a file that nobody but root may read, a key."""
        self.data(path, content, reason, mode=0o400)
        self.secrets.append(path)

    def include(self, path: str, content: bytes, mode: int, reason: str) -> None:
        """Add a file of the user's, in the place of any other file, with the libraries it needs."""
        path = self.canonical(path)
        old = self.entry(path)
        if old is None or stat.S_ISREG(old.mode):
            self.entries.pop(path, None)
            self._put(path, stat.S_IFREG | mode & 0o755, content, reason, None, (0, 0))
        else:
            self._add(path, stat.S_IFREG | mode & 0o755, content, reason, None)
        self._items(self.walker.walk_foreign(content, path))

    def file(self, path: str, reason: str, parent: str | None = None) -> str:
        """Add a file of the sysroot at the same place, with all it takes to execute or load it.

        Returns the resolved path. Raises :class:`BuildError` when it or a library of it is missing.
        """
        self._items(self.walker.walk(path, reason, parent))
        found = self.sysroot.resolve(path)
        if found is None:
            raise BuildError(f"{printable(path)} is missing in {printable(str(self.sysroot.root))}")
        return found.path

    def foreign(self, path: str, content: bytes, reason: str, parent: str | None = None) -> None:
        """Add a program or library that is not of the sysroot, with the libraries of the sysroot it needs."""
        self.data(path, content, reason, parent, mode=0o755)
        self._items(self.walker.walk_foreign(content, self.canonical(path)))

    def entry(self, path: str) -> Entry | None:
        """What is at ``path``, in this layer or below it."""
        return self.entries.get(path) or self.below.get(path)

    def canonical(self, path: str) -> str:
        """``path`` with the links of the plan resolved in its directory part: /sbin/x is /usr/sbin/x."""
        todo = [part for part in path.split("/") if part]
        here = "/"
        for _ in range(MAX_LINKS + len(todo)):
            if not todo:
                return here
            part = todo.pop(0)
            if part in (".", ".."):
                here = posixpath.dirname(here) if part == ".." else here
                continue
            step = posixpath.join(here, part)
            entry = self.entry(step)
            if not todo or entry is None or not stat.S_ISLNK(entry.mode):
                here = step
                continue
            target = entry.data.decode("utf-8", "surrogateescape")
            here = "/" if target.startswith("/") else here
            todo = [part for part in target.split("/") if part] + todo
        raise BuildError(f"{printable(path)}: a loop of symbolic links in the image")

    def finish(self) -> list[Entry]:
        """The entries of this layer, parents first."""
        self.source = "base"
        for path in list(self.entries):
            child = path
            while (parent := posixpath.dirname(child)) != "/" and self.entry(parent) is None:
                self.directory(parent, f"holds {posixpath.basename(child)}")
                child = parent
        for path, entry in self.entries.items():
            above = self.entry(posixpath.dirname(path))
            if above is not None and not stat.S_ISDIR(above.mode):
                raise BuildError(
                    f"{printable(path)} ({entry.reason}) cannot be in the image: "
                    f"{printable(above.path)} is not a directory ({above.reason})"
                )
        return sorted(self.entries.values(), key=lambda entry: entry.path.split("/"))

    def seal(self) -> list[Entry]:
        """The entries of the last layer, with the manifest of all and, at the very end, the sentinel."""
        self.finish()
        self.source = "base"
        self.directory(posixpath.dirname(MANIFEST_PATH), "holds what pyinit brings along")
        everything = {**self.below, **self.entries}
        manifest = dump_manifest(everything.values(), self.absent, self.others)
        self.data(MANIFEST_PATH, manifest, "every entry with its reason, for pyinit-image explain")
        content = f"entries {len(everything) + 1}\nmanifest sha256 {hashlib.sha256(manifest).hexdigest()}\n"
        reason = "the last member: without it the archive was cut short"
        sentinel = make_entry(SENTINEL_PATH, stat.S_IFREG | 0o444, content.encode(), reason, None, "base")
        return [*self.finish(), sentinel]

    def _items(self, items: Iterable[Item]) -> None:
        for item in items:
            if item.target is not None:
                self.link(item.path, item.target, item.reason, item.parent)
                continue
            content, mode = self.walker.content(item.path)
            # Everything runs as root here: set-user-ID bits mean nothing, and unreadable files are no use.
            self._add(item.path, stat.S_IFREG | mode & 0o755 | 0o444, content, item.reason, item.parent)

    def _add(
        self,
        path: str,
        mode: int,
        data: bytes,
        reason: str,
        parent: str | None,
        device: tuple[int, int] = (0, 0),
    ) -> None:
        path = self.canonical(path)
        old = self.entry(path)
        if old is None:
            self._put(path, mode, data, reason, parent, device)
            return
        new = make_entry(path, mode, data, reason, parent, self.source, device)
        if path in self.stand_ins and path not in self.entries:
            self.entries[path] = new
        elif not old.same(new):
            raise BuildError(
                f"{printable(path)} is wanted twice with different content: {old.reason}; {reason}",
                hint="If you include it with --include, choose another destination.",
            )

    def _put(
        self, path: str, mode: int, data: bytes, reason: str, parent: str | None, device: tuple[int, int]
    ) -> None:
        self.entries[path] = make_entry(path, mode, data, reason, parent, self.source, device)


def make_entry(
    path: str,
    mode: int,
    data: bytes,
    reason: str,
    parent: str | None,
    source: str,
    device: tuple[int, int] = (0, 0),
) -> Entry:
    """An entry with its size and digest."""
    digest = hashlib.sha256(data).hexdigest()
    return Entry(path, mode, data, device, reason, parent, source, len(data), digest)


def members(entries: Iterable[Entry]) -> Iterator[cpio.Member]:
    """The archive members of ``entries``."""
    for entry in entries:
        yield cpio.Member(_encode(entry.path[1:]), entry.mode, entry.data, entry.device)


class Manifest(NamedTuple):
    """Why everything is in an image, and other things are not."""

    entries: dict[str, Mapping[str, Any]]
    absent: dict[str, str]
    """See :attr:`Plan.absent`."""
    others: tuple[str, ...]
    """See :attr:`Plan.others`."""


def dump_manifest(
    entries: Iterable[Entry], absent: Mapping[str, str] | None = None, others: Iterable[str] = ()
) -> bytes:
    """Encode the manifest; it cannot list itself and the sentinel that covers it."""
    table = {}
    for entry in entries:
        row: dict[str, object] = {
            "kind": _KINDS[stat.S_IFMT(entry.mode)],
            "reason": entry.reason,
            "source": entry.source,
        }
        if entry.parent is not None:
            row["parent"] = entry.parent
        if stat.S_ISREG(entry.mode):
            row["size"] = entry.size
            row["sha256"] = entry.digest
        table[entry.path] = row
    raw = {
        "schema": SCHEMA,
        "entries": table,
        "absent": dict(absent or {}),
        "others": " ".join(sorted(others)),
    }
    return json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()


def parse_manifest(data: bytes) -> Manifest:
    """Decode a manifest; :class:`BuildError` when it is none."""
    try:
        raw = json.loads(data)
        if raw["schema"] != SCHEMA:
            raise ValueError(f"schema {raw['schema']}")
        entries: dict[str, Mapping[str, Any]] = {path: dict(row) for path, row in raw["entries"].items()}
        for row in entries.values():
            if not isinstance(row["reason"], str) or not isinstance(row["source"], str):
                raise ValueError("an entry without a reason")
            if not isinstance(row.get("parent"), str | None):
                raise ValueError("a parent that is not a path")
        absent = {str(name): str(reason) for name, reason in raw["absent"].items()}
        return Manifest(entries, absent, tuple(raw["others"].split()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BuildError(f"{MANIFEST_PATH} is damaged: {printable(str(error))}") from error


def chain(manifest: Mapping[str, Mapping[str, Any]], path: str) -> list[tuple[str, str]]:
    """(path, reason) of ``path``, of the entry that wants it, and so on up to the build itself."""
    steps: list[tuple[str, str]] = []
    here: str | None = path
    while here is not None and here in manifest and here not in (step for step, _ in steps):
        steps.append((here, manifest[here]["reason"]))
        here = manifest[here].get("parent")
    return steps


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
