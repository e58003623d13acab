"""What a program needs in order to be executed: its loader, its libraries, its interpreter.

Shared libraries are found by the rules of ld.so(8), inside a sysroot and without running anything:
``DT_NEEDED``, ``DT_RUNPATH``/``DT_RPATH`` with ``$ORIGIN``, ``/etc/ld.so.conf``, default directories. Since
systemd 257 many libraries are opened with dlopen() and only announced in the ELF note ``.note.dlopen``
(https://uapi-group.org/specifications/specs/elf_dlopen_metadata/); without them udev neither loads a module
nor finds a file system.
"""

from __future__ import annotations

import fnmatch
import io
import json
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from pyinit.text import printable

from .errors import BuildError
from .sysroot import Sysroot

#: Owner and type of the dlopen metadata note.
DLOPEN_NOTE = ("FDO", 0x407C0C0A)
#: Priorities of that note that are followed. "suggested" ones serve features an initramfs has no use for:
#: libsystemd-shared alone suggests a score of them.
DLOPEN_PRIORITIES = ("required", "recommended")

MULTIARCH = {
    "EM_X86_64": "x86_64-linux-gnu",
    "EM_AARCH64": "aarch64-linux-gnu",
    "EM_RISCV": "riscv64-linux-gnu",
}

#: What pyelftools raises for a damaged file: its own error, or whatever its parser stumbled over.
DAMAGED = (
    ELFError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OverflowError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, slots=True)
class Dlopen:
    """One library that a program opens by itself: any of ``sonames`` will do."""

    feature: str
    priority: str
    sonames: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Object:
    """The part of an ELF file that decides what else must be there."""

    machine: str
    bits: int
    interpreter: str
    needed: tuple[str, ...]
    rpath: tuple[str, ...]
    runpath: tuple[str, ...]
    dlopen: tuple[Dlopen, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """One file or symbolic link of a closure. ``parent`` is the path of the file that wants it."""

    path: str
    target: str | None
    """What a symbolic link points to; None for a file."""
    reason: str
    parent: str | None


def parse(data: bytes, name: str = "file") -> Object | None:
    """Read the dynamic section and the notes of an ELF file; None when it is not ELF at all.

    Program headers are used throughout, never section headers, which a stripped file need not have.
    """
    if data[:4] != b"\x7fELF":
        return None
    interpreter = ""
    needed: list[str] = []
    rpath: list[str] = []
    runpath: list[str] = []
    dlopen: list[Dlopen] = []
    try:
        elf = ELFFile(io.BytesIO(data))
        segment: Any
        for segment in elf.iter_segments():
            kind = segment.header.p_type
            if kind == "PT_INTERP":
                interpreter = segment.get_interp_name()
            elif kind == "PT_DYNAMIC":
                for tag in segment.iter_tags():
                    if tag.entry.d_tag == "DT_NEEDED":
                        needed.append(tag.needed)
                    elif tag.entry.d_tag == "DT_RPATH":
                        rpath += tag.rpath.split(":")
                    elif tag.entry.d_tag == "DT_RUNPATH":
                        runpath += tag.runpath.split(":")
            elif kind == "PT_NOTE" and DLOPEN_NOTE[0].encode() in segment.data():
                for note in segment.iter_notes():
                    if (note.n_name, note.n_type) == DLOPEN_NOTE:
                        dlopen += parse_dlopen(bytes(note.n_descdata))
        return Object(
            elf.header.e_machine,
            elf.elfclass,
            interpreter,
            tuple(needed),
            tuple(rpath),
            tuple(runpath),
            tuple(dlopen),
        )
    except DAMAGED as error:
        raise BuildError(f"{printable(name)} is a damaged ELF file: {printable(str(error))}") from error


def parse_dlopen(note: bytes) -> list[Dlopen]:
    """Decode the JSON of one dlopen note; what does not follow the specification is left out."""
    try:
        raw = json.loads(note.rstrip(b"\0"))
    except (ValueError, RecursionError):
        return []
    found = []
    for entry in raw if isinstance(raw, list) else []:
        if not isinstance(entry, dict):
            continue
        sonames = entry.get("soname")
        if not isinstance(sonames, list) or not all(isinstance(name, str) and name for name in sonames):
            continue
        feature, priority = entry.get("feature", ""), entry.get("priority", "recommended")
        found.append(Dlopen(str(feature), str(priority), tuple(sonames)))
    return found


def closure(sysroot: Sysroot | Path, paths: Iterable[str]) -> list[Item]:
    """Everything that must be copied so that each of ``paths`` can be executed (or loaded) elsewhere.

    The result holds the files themselves, script interpreters, loaders and libraries, and every symbolic
    link on the way to them, each once, in an order in which ``parent`` comes before what it wants. Missing
    libraries raise :class:`BuildError`; a missing *recommended* one does not.
    """
    walker = Walker(sysroot if isinstance(sysroot, Sysroot) else Sysroot(sysroot))
    return [item for path in paths for item in walker.walk(path, "asked for", None)]


class Need(NamedTuple):
    """One path that a file needs, with the DT_RPATH that its own libraries inherit."""

    path: str
    reason: str
    parent: str | None
    rpath: tuple[str, ...] = ()


class Walker:
    """Walks closures of one sysroot, and remembers what it gave: nothing is read or given twice."""

    def __init__(self, sysroot: Sysroot) -> None:
        self.sysroot = sysroot
        self.contents: dict[str, tuple[bytes, int]] = {}
        self._given: set[str] = set()
        self._objects: dict[str, Object | None] = {}
        self._configured = tuple(_configured_directories(sysroot))

    def walk(self, path: str, reason: str, parent: str | None) -> Iterator[Item]:
        """Yield ``path`` and what it needs, as far as earlier walks have not given it already."""
        yield from self._walk([Need(path, reason, parent)])

    def walk_foreign(self, data: bytes, path: str) -> Iterator[Item]:
        """Yield what a file from outside the sysroot will need in it when it is put at ``path``."""
        binary = parse(data, path)
        if binary is not None:
            yield from self._walk(list(self._binary(binary, path, ())))

    def _walk(self, todo: list[Need]) -> Iterator[Item]:
        while todo:
            need = todo.pop(0)
            found = self.sysroot.resolve(need.path)
            if found is None:
                wanted_by = f"; {printable(need.parent)} needs it ({need.reason})" if need.parent else ""
                raise BuildError(
                    f"{printable(need.path)} is missing in {printable(str(self.sysroot.root))}{wanted_by}"
                )
            for link, target in found.links:
                if link not in self._given:
                    self._given.add(link)
                    name = posixpath.basename(found.path)
                    yield Item(link, target, f"leads to {name}: {need.reason}", need.parent)
            if found.path in self._given:
                continue
            self._given.add(found.path)
            yield Item(found.path, None, need.reason, need.parent)
            binary = self.object(found.path)
            if binary is None:
                todo += self._script(found.path)
                continue
            for library in self._binary(binary, found.path, need.rpath):
                todo.append(library)
                yield from self._shortcut(library, binary)

    def content(self, path: str) -> tuple[bytes, int]:
        """Content and mode of a resolved file, read once."""
        if path not in self.contents:
            self.contents[path] = self.sysroot.read_with_mode(path)
        return self.contents[path]

    def object(self, path: str) -> Object | None:
        """The parsed ELF headers of a resolved file."""
        if path not in self._objects:
            self._objects[path] = parse(self.content(path)[0], path)
        return self._objects[path]

    def library(self, soname: str, user: str) -> str | None:
        """Where the loader would find ``soname`` for the resolved file ``user``."""
        binary = self.object(user)
        return None if binary is None else self._library(soname, binary, user, ())

    def _script(self, path: str) -> list[Need]:
        data, _ = self.content(path)
        if data[:2] != b"#!":
            return []
        words = data[2:256].split(b"\n")[0].split()
        interpreter = words[0].decode("utf-8", "surrogateescape") if words else ""
        return [Need(interpreter, "interpreter of the script", path)] if interpreter else []

    def _binary(self, binary: Object, path: str, inherited: tuple[str, ...]) -> Iterator[Need]:
        # DT_RPATH is inherited by what is loaded; DT_RUNPATH is not, and switches DT_RPATH off (ld.so(8)).
        rpath = () if binary.runpath else (*expand(binary.rpath, path), *inherited)
        if binary.interpreter:
            yield Need(binary.interpreter, "program loader", path)
        root = printable(str(self.sysroot.root))
        for soname in binary.needed:
            library = self._library(soname, binary, path, rpath)
            if library is None:
                raise BuildError(
                    f"{printable(soname)} is missing in {root}; {printable(path)} is linked against it",
                    hint="Install the package that has the library, or build without what needs it.",
                )
            yield Need(library, "shared library", path, rpath)
        for wish in binary.dlopen:
            if wish.priority not in DLOPEN_PRIORITIES:
                continue
            places = (self._library(soname, binary, path, rpath) for soname in wish.sonames)
            library = next((place for place in places if place is not None), None)
            if library is not None:
                why = f"opened at run time for {printable(wish.feature)} ({wish.priority})"
                yield Need(library, why, path, rpath)
            elif wish.priority == "required":
                names = printable(" or ".join(wish.sonames))
                raise BuildError(
                    f"{names} is missing in {root}; {printable(path)} requires it for "
                    f"{printable(wish.feature)}"
                )

    def _library(self, soname: str, user: Object, path: str, rpath: tuple[str, ...]) -> str | None:
        if "/" in soname:
            return soname if self.sysroot.is_file(soname) else None
        directories = (*rpath, *expand(user.runpath, path), *self._configured, *default_directories(user))
        for directory in dict.fromkeys(directories):
            candidate = posixpath.join(directory, soname)
            found = self.sysroot.resolve(candidate)
            if found is None or not self.sysroot.host(found.path).is_file():
                continue
            other = self.object(found.path)
            if other is not None and (other.machine, other.bits) == (user.machine, user.bits):
                return candidate
        return None

    def _shortcut(self, library: Need, user: Object) -> Iterator[Item]:
        """A link in a default directory to a library that only ld.so.cache leads to.

        So the image needs no ld.so.cache, which only the target's ldconfig could write.
        """
        directory, _, soname = library.path.rpartition("/")
        defaults = default_directories(user)
        if library.reason == "program loader" or directory not in self._configured or directory in defaults:
            return
        default = next(directory for directory in defaults if self.sysroot.is_dir(directory))
        found = self.sysroot.resolve(default)
        link = posixpath.join(found.path if found else default, soname)
        if link not in self._given and self.sysroot.resolve(link) is None:
            self._given.add(link)
            yield Item(link, library.path, f"found through ld.so.conf: {library.reason}", library.parent)


def default_directories(user: Object) -> tuple[str, ...]:
    """Where the loader looks without any configuration: Debian's multiarch directories, lib64, lib."""
    multiarch = MULTIARCH.get(user.machine)
    names = (f"lib/{multiarch}", "lib64", "lib") if multiarch else ("lib64", "lib")
    return tuple(f"{prefix}/{name}" for name in names for prefix in ("/usr", ""))


def expand(directories: Iterable[str], path: str) -> tuple[str, ...]:
    """Search directories of the file ``path``, with its own directory in the place of ``$ORIGIN``."""
    origin = posixpath.dirname(path)
    return tuple(
        directory.replace("${ORIGIN}", origin).replace("$ORIGIN", origin)
        for directory in directories
        if directory
    )


def _configured_directories(sysroot: Sysroot) -> Iterator[str]:
    """The directories of ``/etc/ld.so.conf`` and of the files it includes, in order (ldconfig(8))."""
    todo = ["/etc/ld.so.conf"]
    seen: set[str] = set()
    while todo:
        path = todo.pop(0)
        if path in seen:
            continue
        seen.add(path)
        for line in sysroot.read_text(path).splitlines():
            words = line.split("#")[0].replace(",", " ").split()
            if words[:1] == ["include"]:
                for pattern in words[1:]:
                    directory, _, name = posixpath.join("/etc", pattern).rpartition("/")
                    todo += [
                        f"{directory}/{found}" for found in fnmatch.filter(sysroot.list(directory), name)
                    ]
            elif words[:1] != ["hwcap"]:
                yield from (word for word in words if word.startswith("/"))
