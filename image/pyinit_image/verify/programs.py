"""Whether every program of an image can be executed: its loader, its libraries, its interpreter."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pyinit.text import printable
from pyinit_image import elf
from pyinit_image.errors import BuildError

from .finding import Finding, some
from .unpacked import Unpacked, executable

_EXECUTABLE_TYPES = (2, 3)  # ET_EXEC and ET_DYN; modules and objects are neither (elf(5))
#: What the kernel reads of a script's first line (BINPRM_BUF_SIZE, execve(2)).
_SCRIPT_LINE = 256
_FIRMWARE = ("/usr/lib/firmware/", "/lib/firmware/")

REBUILD = "Build the image again; if that does not help, see what pyinit-image explain says of the path."


@dataclass
class _Missing:
    """One file that is not there, and who wants it."""

    path: str
    users: set[str] = field(default_factory=set)
    tops: set[str] = field(default_factory=set)
    """The programs, or libraries that no program names, that cannot be loaded without it."""
    other: bool = False
    """There is one for another machine."""


@dataclass(frozen=True)
class Result:
    """What :func:`check` found out."""

    findings: tuple[Finding, ...]
    missing: frozenset[str]
    """Names of missing libraries and loaders, paths of missing interpreters."""
    broken: frozenset[str]
    """Paths of the programs and libraries that cannot be loaded."""
    machine: int | None
    """``e_machine`` of the program that the kernel starts; None when that is not known."""


def header(data: bytes) -> tuple[int, int] | None:
    """``e_type`` and ``e_machine`` of an ELF file; None for anything else."""
    if data[:4] != b"\x7fELF" or len(data) < 20:
        return None
    order: str = "big" if data[5] == 2 else "little"
    return int.from_bytes(data[16:18], order), int.from_bytes(data[18:20], order)  # type: ignore[arg-type]


def script_interpreter(data: bytes) -> str:
    """The program that a ``#!`` line names; empty when there is none."""
    if data[:2] != b"#!":
        return ""
    words = data[2:_SCRIPT_LINE].split(b"\n")[0].split()
    return words[0].decode("utf-8", "surrogateescape") if words else ""


def check(
    image: Unpacked, start: str, more: Mapping[str, str], roles: Mapping[str, str], ours: bool
) -> Result:
    """Look at every program and library.

    ``start`` is the program that the kernel executes; ``more`` are programs that others execute without a
    ``#!`` line: path to the path of who does. ``roles`` says what fails without a program: its resolved path
    to a clause.
    """
    checker = _Checker(image, start, roles, ours)
    checker.walk()
    checker.scripts(more)
    return checker.result()


class _Checker:
    def __init__(self, image: Unpacked, start: str, roles: Mapping[str, str], ours: bool) -> None:
        self.image = image
        self.roles = roles
        self.ours = ours
        self.findings: list[Finding] = []
        self.libraries: dict[str, _Missing] = {}
        self.interpreters: dict[str, _Missing] = {}
        self.objects: dict[str, elf.Object] = {}
        self.others: set[str] = set()
        """What is for another machine."""
        self.start = self._chain(start)
        """The program that the kernel executes, and the interpreters of scripts it goes through."""
        self.machine = next(
            (found[1] for path in self.start if (found := header(image.nodes[path].data))), None
        )
        self._read()
        cache = image.file("/etc/ld.so.cache")
        places = re.findall(rb"/[^\0]+(?=\0)", cache.data) if cache is not None else ()
        self.cached = tuple(
            dict.fromkeys(posixpath.dirname(p.decode("utf-8", "surrogateescape")) for p in places)
        )
        self.base_names = {posixpath.basename(path) for path in image.nodes if image.file(path)}
        self._found: dict[tuple[str, tuple[str, ...], str, int], str | None] = {}

    def _chain(self, start: str) -> list[str]:
        chain: list[str] = []
        path = self.image.resolve(start)
        while path is not None and path not in chain and self.image.file(path) is not None:
            chain.append(path)
            interpreter = script_interpreter(self.image.nodes[path].data)
            path = self.image.resolve(interpreter) if interpreter else None
        return chain

    def _read(self) -> None:
        others = self.others
        for path, node in self.image.files():
            kind = header(node.data)
            if kind is None or kind[0] not in _EXECUTABLE_TYPES or path.startswith(_FIRMWARE):
                continue
            try:
                parsed = elf.parse(node.data, path)
            except BuildError as error:
                message = f"{error}: it cannot be loaded, so {self._effect({path})}"
                self.findings.append(Finding("elf", printable(path), message, REBUILD, self._fatal({path})))
                continue
            if parsed is not None:
                self.objects[path] = parsed
            if self.machine is not None and kind[1] != self.machine:
                others.add(path)
        if others:
            message = f"for another processor than {printable(self.start[-1])}: {some(others)}"
            self.findings.append(
                Finding(
                    "machine",
                    printable(min(others)),
                    f"{message}; the kernel cannot execute or load that, so {self._effect(others)}",
                    "Build the image from one system; see --include for files of another one.",
                    self._fatal(others),
                )
            )

    def walk(self) -> None:
        """Follow every program through its libraries, then every library that no program leads to."""
        programs = [path for path, found in self.objects.items() if found.interpreter]
        reached: set[str] = set()
        for path in dict.fromkeys([*self.start, *programs]):
            reached |= self._closure(path)
        for path in self.objects:
            if path not in reached and path not in self.others:
                reached |= self._closure(path)

    def _closure(self, top: str) -> set[str]:
        """Load ``top`` as ld.so would; return all that is loaded."""
        seen: set[str] = set()
        loaded: set[str] = set()
        wanted: list[tuple[str, str, bool]] = []
        todo: list[tuple[str, tuple[str, ...]]] = [(top, ())]
        while todo:
            path, inherited = todo.pop(0)
            binary = self.objects.get(path)
            if path in seen or binary is None:
                continue
            seen.add(path)
            loaded.add(posixpath.basename(path))
            # DT_RPATH is inherited by what is loaded; DT_RUNPATH is not, and switches it off (ld.so(8)).
            rpath = () if binary.runpath else (*elf.expand(binary.rpath, path), *inherited)
            if binary.interpreter and not executable(self.image.file(binary.interpreter)):
                self._want(self.libraries, binary.interpreter, path, top)
            for soname in binary.needed:
                place, other = self._library(soname, binary, path, rpath)
                if place is None:
                    wanted.append((soname, path, other))
                else:
                    loaded.add(posixpath.basename(soname))
                    todo.append((place, rpath))
            for wish in binary.dlopen:
                if (
                    wish.priority == "required"
                    and wish.sonames
                    and not any(self._library(soname, binary, path, rpath)[0] for soname in wish.sonames)
                ):
                    wanted.append((wish.sonames[0], path, False))
        for soname, user, other in wanted:
            # What is loaded already is not looked for again.
            if posixpath.basename(soname) not in loaded:
                self._want(self.libraries, soname, user, top).other |= other
        return seen

    def _library(
        self, soname: str, user: elf.Object, path: str, rpath: tuple[str, ...]
    ) -> tuple[str | None, bool]:
        """Where the loader finds ``soname``, and whether there is one for another machine."""
        if "/" in soname:
            return self.image.resolve(soname), False
        other = False
        places = (*rpath, *elf.expand(user.runpath, path), *self.cached, *elf.default_directories(user))
        for directory in dict.fromkeys(places):
            found = self.image.resolve(posixpath.join("/", directory, soname))
            library = self.objects.get(found or "")
            if library is not None and (library.machine, library.bits) == (user.machine, user.bits):
                return found, False
            other |= library is not None
        return None, other

    def scripts(self, more: Mapping[str, str]) -> None:
        """Look for the interpreters of all scripts, and the programs in ``more``."""
        for path, user in more.items():
            if not executable(self.image.file(path)):
                self._want(self.interpreters, path, user, user)
        for path, node in self.image.files():
            interpreter = script_interpreter(node.data) if executable(node) else ""
            if interpreter and not executable(self.image.file(interpreter)):
                self._want(self.interpreters, interpreter, path, path)

    def _want(self, table: dict[str, _Missing], name: str, user: str, top: str) -> _Missing:
        key = name if table is self.interpreters else posixpath.basename(name)
        missing = table.setdefault(key, _Missing(name))
        missing.users.add(user)
        missing.tops.add(top)
        if "/" in name:
            missing.path = name
        return missing

    def result(self) -> Result:
        """Make findings of what is missing."""
        findings = self.findings
        for name, missing in sorted(self.libraries.items()):
            where = "the image has it for another processor only" if missing.other else "it is not there"
            elsewhere = not missing.other and name in self.base_names
            where = "it is in no directory where the loader looks" if elsewhere else where
            findings.append(
                Finding(
                    "library",
                    printable(missing.path),
                    f"{printable(name)} is needed by {some(missing.users)}, and {where}: "
                    f"{self._effect(missing.tops)}",
                    REBUILD,
                    self._fatal(missing.tops) and not (elsewhere and not self._programs(missing.tops)),
                )
            )
        for path, missing in sorted(self.interpreters.items()):
            there = self.image.file(path) is not None
            where = "may not be executed: it has no x bit" if there else "is not there"
            findings.append(
                Finding(
                    "interpreter",
                    printable(path),
                    f"{printable(path)}, which executes {some(missing.users)}, {where}: "
                    f"{self._effect(missing.tops)}",
                    REBUILD,
                    self._fatal(missing.tops),
                )
            )
        tables = (self.libraries, self.interpreters)
        broken = {top for table in tables for missing in table.values() for top in missing.tops}
        names = frozenset(name for table in tables for name in table)
        return Result(tuple(findings), names, frozenset(broken), self.machine)

    def _programs(self, tops: Iterable[str]) -> bool:
        return any(self.objects[top].interpreter for top in tops if top in self.objects)

    def _fatal(self, tops: Iterable[str]) -> bool:
        return self.ours or any(top in self.start for top in tops)

    def _effect(self, tops: Iterable[str]) -> str:
        """What fails when these programs cannot be loaded."""
        tops = set(tops)
        for path in self.start:
            if path in tops:
                return "the kernel cannot execute its first program and panics"
        for path, role in self.roles.items():
            if path in tops:
                return role
        return f"{some(tops, 2)} cannot be used"


def machine_differs(data: bytes, machine: int | None) -> bool:
    """Whether an ELF file is for another machine than this ``e_machine``; False when that is not known."""
    found = header(data)
    return found is not None and machine is not None and found[1] != machine
