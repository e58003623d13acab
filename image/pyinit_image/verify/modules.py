"""Whether the kernel modules of an image fit each other and their kernel."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from dataclasses import dataclass, field

from pyinit.config.sealed import MODULES_PATH, ModuleIndex, parse_modules
from pyinit.errors import BootError
from pyinit.text import printable
from pyinit_image import kmodindex, kmods
from pyinit_image.errors import BuildError

from .finding import Finding, some
from .programs import machine_differs
from .unpacked import Unpacked

_MODULE = re.compile(r"\.ko(?:\.xz|\.zst|\.gz)?$")
_PLACE = re.compile(r"((?:/usr)?/lib/modules/([^/]+))/")

REGENERATE = "Run depmod in the target system, then build the image again."
REBUILD = "Build the image again for this kernel."


@dataclass
class Directory:
    """The modules of one kernel."""

    path: str
    """``/usr/lib/modules/<release>``; empty for modules that are somewhere else."""
    release: str
    modules: dict[str, str] = field(default_factory=dict)
    """Name to path in the image."""


def directories(image: Unpacked) -> list[Directory]:
    """The modules of an image, kernel by kernel; those in no such directory come last."""
    found: dict[str, Directory] = {}
    for path, _ in image.files():
        if not _MODULE.search(path):
            continue
        match = _PLACE.match(path)
        place, release = (match[1], match[2]) if match else ("", "")
        directory = found.setdefault(place, Directory(place, release))
        directory.modules[kmods.module_name(path)] = path
    return sorted(found.values(), key=lambda directory: (not directory.path, directory.path))


def builtin(image: Unpacked, directory: Directory) -> frozenset[str]:
    """The names of modules that are part of the kernel, as far as the image tells."""
    names = {kmods.module_name(line) for line in image.text(f"{directory.path}/modules.builtin").split()}
    node = image.file(f"{directory.path}/modules.builtin.bin")
    if node is not None:
        try:
            names |= {kmods.canonical(name) for name in kmodindex.read(node.data)}
        except BuildError:
            pass  # check() reports it.
    index = image.file(MODULES_PATH)
    if index is not None:
        try:
            parsed = parse_modules(index.data)
        except BootError:
            return frozenset(names)
        if image.resolve(parsed.directory) == directory.path:
            names |= parsed.builtin
    return frozenset(names)


def check(image: Unpacked, ours: bool, kernel: str | None, sealed: str, machine: int | None) -> list[Finding]:
    """Look at every module and index.

    ``kernel`` is the release that the image is to boot, None for any; ``sealed`` the one that it was built
    for, as its configuration says. ``machine`` is ``e_machine`` of the programs.
    """
    places = directories(image)
    findings = _releases(places, ours, kernel, sealed)
    for directory in places:
        findings += _Checker(image, directory, ours, kernel, machine).check()
    if ours and not any(directory.path for directory in places):
        # An index without any module.
        findings += _Checker(image, Directory("", ""), ours, kernel, machine).check_own_index()
    return findings


def _releases(places: list[Directory], ours: bool, kernel: str | None, sealed: str) -> list[Finding]:
    found = {directory.release for directory in places if directory.path}
    if kernel is not None:
        wrong = kernel not in found | {sealed} - {""} and bool(found or sealed)
        expected, others = kernel, found | {sealed} - {""}
    else:
        wrong = bool(sealed and found) and sealed not in found
        expected, others = sealed, found
    if not wrong:
        return []
    path = next((directory.path for directory in places if directory.path), "/")
    message = (
        f"the modules are for Linux {some(others)}, not for {printable(expected)}: none of them can be "
        "loaded, so disks and file systems whose drivers are not part of the kernel are not found"
    )
    hint = f"pyinit-image build --kernel-version {printable(expected)}"
    return [Finding("kernel", printable(path), message, hint, ours)]


class _Checker:
    def __init__(
        self, image: Unpacked, directory: Directory, ours: bool, kernel: str | None, machine: int | None
    ) -> None:
        self.image = image
        self.directory = directory
        self.ours = ours
        self.machine = machine
        self.release = directory.release or kernel or ""
        self.findings: list[Finding] = []
        self.missing: dict[str, set[str]] = defaultdict(set)
        """Module name to who wants it."""
        self.paths: dict[str, str] = {}
        """Where a missing module was to be."""

    def check(self) -> list[Finding]:
        self._modules()
        if self.directory.path:
            self._kmod_index()
        self._index()
        for name, users in sorted(self.missing.items()):
            message = (
                f"the kernel module {printable(name)} is not there; {some(users)} would need it: what "
                "it drives is not found"
            )
            path = self.paths.get(name) or self.directory.path or "/"
            self._add("module", path, message, REBUILD)
        return self.findings

    def check_own_index(self) -> list[Finding]:
        self._index()
        return self.findings

    def _add(self, code: str, path: str, message: str, hint: str) -> None:
        self.findings.append(Finding(code, printable(path), message, hint, self.ours))

    def _modules(self) -> None:
        wrong: dict[str, set[str]] = defaultdict(set)
        others: set[str] = set()
        known = set(self.directory.modules) | builtin(self.image, self.directory)
        for name, path in self.directory.modules.items():
            node = self.image.nodes[path]
            suffix = posixpath.splitext(path)[1]
            try:
                plain = kmods.decompress(node.data, suffix, path)
            except BuildError as error:
                self._add(
                    "module",
                    path,
                    f"{error}: the kernel refuses it, and what it drives is not found",
                    REBUILD,
                )
                continue
            facts: dict[str, str] = {}
            for tag, value in kmods.modinfo(plain):
                facts.setdefault(tag, value)
            if "vermagic" not in facts:
                message = (
                    f"{printable(path)} is no kernel module: the kernel refuses it, and what it drives is "
                    "not found"
                )
                self._add("module", path, message, REBUILD)
                continue
            if machine_differs(plain, self.machine):
                others.add(path)
            made_for = facts["vermagic"].split(" ")[0]
            if self.release and made_for != self.release:
                wrong[made_for].add(path)
            for need in facts.get("depends", "").split(","):
                if need and kmods.canonical(need) not in known:
                    self.missing[kmods.canonical(need)].add(name)
        for made_for, paths in sorted(wrong.items()):
            message = (
                f"made for Linux {printable(made_for)}, not for {printable(self.release)}: {some(paths)}; "
                "the kernel refuses that, and what it drives is not found"
            )
            self._add("vermagic", min(paths), message, REBUILD)
        if others:
            message = f"for another processor than the programs: {some(others)}; the kernel refuses that"
            self._add("machine", min(others), message, REBUILD)

    def _kmod_index(self) -> None:
        """What modprobe and udevd look modules up in."""
        there = set(self.image.names(self.directory.path))
        for index in ("modules.dep.bin", "modules.alias.bin", "modules.builtin.bin", "modules.symbols.bin"):
            node = self.image.file(f"{self.directory.path}/{index}") if index in there else None
            if node is None:
                continue
            path = f"{self.directory.path}/{index}"
            try:
                table = kmodindex.read(node.data)
            except BuildError as error:
                message = f"{printable(path)}: {error}; modprobe and udev can load nothing with it"
                self._add("index", path, message, REGENERATE)
                continue
            if index != "modules.dep.bin":
                continue
            for rows in table.values():
                for _, line in rows:
                    for word in line.replace(":", " ", 1).split():
                        self._must_exist(word, index)

    def _index(self) -> None:
        """What PID 1 looks modules up in."""
        node = self.image.file(MODULES_PATH)
        if node is None:
            return
        try:
            index = parse_modules(node.data)
        except BootError as error:
            message = f"{printable(str(error))}: PID 1 of this version stops with E-IMAGE"
            hint = "Build the image again, or verify it with the version of pyinit that built it."
            self._add("index", MODULES_PATH, message, hint)
            return
        if index.directory and self.image.resolve(index.directory) != self.directory.path:
            if not self.directory.path:
                for entry in index.modules.values():
                    self._must_exist(f"{index.directory}/{entry.path}", "modules.json")
            return
        for name, entry in index.modules.items():
            self._must_exist(entry.path, "modules.json")
            for need in entry.needs:
                if need not in index.modules and need not in index.builtin:
                    self._unknown(index, need, f"needed by {name}")
        for names, what in (
            (index.preload, "to be loaded first"),
            (index.first, "to be loaded first"),
            (tuple(name for _, name in index.aliases), "named by an alias"),
        ):
            for name in dict.fromkeys(names):
                if name not in index.modules:
                    self._unknown(index, name, what)

    def _unknown(self, index: ModuleIndex, name: str, what: str) -> None:
        if name in self.directory.modules:
            message = (
                f"{MODULES_PATH} does not list {printable(name)}, {printable(what)}: PID 1 cannot load it, "
                "and what it drives is not found"
            )
            self._add("index", MODULES_PATH, message, "Build the image again.")
        else:
            self.missing[name].add("modules.json")

    def _must_exist(self, path: str, index: str) -> None:
        path = posixpath.join(self.directory.path or "/", path)
        if self.image.file(path) is None:
            name = kmods.module_name(path)
            self.missing[name].add(index)
            self.paths.setdefault(name, path)
