"""Kernel modules: which ones, what they need, in which order they are loaded.

Everything modprobe would look up at boot is resolved here, once: dependencies, soft dependencies (which may
be aliases: ext4 asks for ``crypto-crc32c``), options, blacklists, firmware. See modprobe.d(5) and
modules.dep(5).
"""

from __future__ import annotations

import fnmatch
import gzip
import lzma
import os
import posixpath
import re
import struct
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property

import zstandard

from pyinit.config.distance import closest
from pyinit.config.sealed import (
    DRIVERS_PATH,
    MODULES_PATH,
    Aliases,
    ModuleEntry,
    ModuleIndex,
    dump_drivers,
    dump_modules,
)
from pyinit.text import printable

from . import kmodindex
from .elf import Walker
from .errors import BuildError
from .kinds import COMMON, GENERIC, GENERIC_EXCLUDED, MARGIN
from .plan import Plan
from .sysroot import Sysroot
from .unsign import SIGNED, unsigned

#: Suffix of a compressed module, and what the kernel's configuration calls the method.
COMPRESSED = {".xz": "XZ", ".zst": "ZSTD", ".gz": "GZIP"}

#: What modules are packed with: modprobe of nearly every system reads it, and so does Python. The check is
#: the only one that the kernel verifies (Documentation/staging/xz.rst).
PACKED = ".xz"
PACKING = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 20}]
#: Below this a packed module, with its header and its blocks, gains too little.
WORTH_PACKING = 8 << 10

#: The devices whose absent drivers an explanation can name, and where the drivers are below kernel/drivers/.
DISK_ALIASES = ("pci:", "virtio:", "vmbus:", "xen:", "scsi:t-", "usb:v*")
DISK_DRIVERS = (
    "ata/",
    "block/",
    "message/",
    "mmc/host/",
    "nvme/host/",
    "pci/controller/",
    "scsi/",
    "ufs/",
    "usb/host/",
    "usb/storage/",
    "virtio/",
)

REGENERATE = "Write it again with depmod in the target system, or install its kernel package again."

MODPROBE_DIRECTORIES = (
    "/etc/modprobe.d",
    "/usr/local/lib/modprobe.d",
    "/usr/lib/modprobe.d",
    "/lib/modprobe.d",
)

#: What each mode takes without being told a name, and how that is called in reasons.
PATTERNS = {"generic": GENERIC, "host": MARGIN}
MODES = {"generic": "generic mode", "host": "safety margin"}


@dataclass(frozen=True, slots=True)
class Modprobe:
    """The settings of modprobe.d."""

    options: dict[str, str] = field(default_factory=dict)
    blacklist: frozenset[str] = frozenset()
    aliases: tuple[tuple[str, str], ...] = ()
    before: dict[str, tuple[str, ...]] = field(default_factory=dict)
    after: dict[str, tuple[str, ...]] = field(default_factory=dict)
    files: tuple[str, ...] = ()


#: Bytes of signed modules from which on loading one more, for a faster hash, pays for itself: measured, the
#: kernel tests such a driver for 0.02 s when it is loaded and saves 0.05 s with every megabyte.
WORTH_A_HASH_DRIVER = 1 << 20


def canonical(name: str) -> str:
    """A module name or alias with underscores for dashes, except within brackets, as kmod compares them."""
    return re.sub(r"\[[^]]*\]|-", lambda match: match[0] if match[0] != "-" else "_", name)


def module_name(path: str) -> str:
    """``kernel/fs/ext4/ext4.ko.xz``: ``ext4``."""
    return canonical(posixpath.basename(path).partition(".ko")[0])


def parse_dep(text: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Decode modules.dep: name to (path, names of all modules it depends on, in loading order).

    Raises :class:`BuildError` with the line for what is not ``path: path...``, for a dependency that has no
    line of its own (a truncated file) and for modules that depend on themselves or on each other.
    """
    modules: dict[str, tuple[str, tuple[str, ...]]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        path, colon, rest = line.partition(":")
        if not colon or ".ko" not in path:
            raise BuildError(
                f"modules.dep line {number}: no module and colon: {printable(line[:80])}", hint=REGENERATE
            )
        # depmod writes them in the order in which modprobe -r would remove them.
        needs = tuple(module_name(need) for need in reversed(rest.split()))
        name = module_name(path)
        if name in needs:
            raise BuildError(
                f"modules.dep line {number}: {printable(name)} depends on itself", hint=REGENERATE
            )
        modules[name] = (path.strip(), needs)
    for name, (_, needs) in modules.items():
        for need in needs:
            if need not in modules:
                raise BuildError(
                    f"modules.dep: {printable(name)} needs {printable(need)}, which is not listed",
                    hint=REGENERATE,
                )
    circle = _circle(modules)
    if circle:
        chain = " needs ".join(printable(name) for name in (*circle, circle[0]))
        raise BuildError(f"modules.dep: modules that need each other: {chain}", hint=REGENERATE)
    return modules


def _circle(modules: dict[str, tuple[str, tuple[str, ...]]]) -> list[str]:
    """Names of modules each of which needs the next one, the last the first; none in a good file."""
    finished: set[str] = set()
    for start in modules:
        way = {start: None}
        todo = [(start, iter(modules[start][1]))] if start not in finished else []
        while todo:
            name, needs = todo[-1]
            need = next((need for need in needs if need not in finished), None)
            if need is None:
                finished.add(name)
                del way[name]
                todo.pop()
            elif need in way:
                names = list(way)
                return names[names.index(need) :]
            else:
                way[need] = None
                todo.append((need, iter(modules[need][1])))
    return []


def parse_alias(text: str) -> list[tuple[str, str]]:
    """Decode modules.alias or modules.symbols: (pattern, module name) in the order of the file."""
    words = (line.split() for line in text.splitlines())
    return [(word[1], canonical(word[2])) for word in words if len(word) == 3 and word[0] == "alias"]


def parse_softdep(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Decode what follows the name in a ``softdep`` line: what to load before and after. Words before the
    first ``pre:`` or ``post:`` mean nothing."""
    lists: dict[str, list[str]] = {"pre:": [], "post:": []}
    current: list[str] | None = None
    for word in words:
        if word in lists:
            current = lists[word]
        elif current is not None:
            current.append(word)
    return tuple(lists["pre:"]), tuple(lists["post:"])


def parse_modprobe(texts: Iterable[str]) -> Modprobe:
    """Decode configuration files; commands that are not known are passed over, as modprobe does."""
    options: dict[str, list[str]] = {}
    blacklist: set[str] = set()
    aliases: list[tuple[str, str]] = []
    before: dict[str, tuple[str, ...]] = {}
    after: dict[str, tuple[str, ...]] = {}
    for text in texts:
        for line in text.replace("\\\n", " ").splitlines():
            words = line.split()
            if len(words) < 2 or words[0].startswith("#"):
                continue
            name = canonical(words[1])
            if words[0] == "options":
                options.setdefault(name, []).extend(words[2:])
            elif words[0] == "blacklist":
                blacklist.add(name)
            elif words[0] == "alias" and len(words) >= 3:
                aliases.append((words[1], canonical(words[2])))
            elif words[0] == "softdep":
                pre, post = parse_softdep(words[2:])
                before[name] = before.get(name, ()) + pre
                after[name] = after.get(name, ()) + post
            elif words[0] == "install" and words[2:3] in (["/bin/false"], ["/bin/true"], ["/usr/bin/false"]):
                # The usual way of forbidding a module altogether.
                blacklist.add(name)
    joined = {name: " ".join(values) for name, values in options.items()}
    return Modprobe(joined, frozenset(blacklist), tuple(aliases), before, after)


def modinfo(data: bytes) -> Iterator[tuple[str, str]]:
    """The (tag, value) pairs in the ``.modinfo`` section of a plain module; none for anything else."""
    try:
        if data[:5] != b"\x7fELF\x02":
            return
        little = data[5] == 1
        order = "<" if little else ">"
        (table,) = struct.unpack_from(order + "Q", data, 40)
        size, count, names_at = struct.unpack_from(order + "HHH", data, 58)

        def section(index: int) -> tuple[int, int, int]:
            header = struct.unpack_from(order + "IIQQQQ", data, table + index * size)
            return header[0], header[4], header[5]

        _, names, _ = section(names_at)
        for index in range(count):
            name, offset, length = section(index)
            if data[names + name : names + name + 9] == b".modinfo\0":
                for word in data[offset : offset + length].split(b"\0"):
                    tag, equals, value = word.decode("utf-8", "surrogateescape").partition("=")
                    if equals:
                        yield tag, value
    except (struct.error, IndexError, OverflowError):
        return


def decompress(data: bytes, suffix: str, path: str) -> bytes:
    """The plain bytes of a compressed module or firmware file; :class:`BuildError` when it is damaged."""
    try:
        if suffix == ".xz":
            return lzma.decompress(data)
        if suffix == ".zst":
            return zstandard.ZstdDecompressor().decompressobj().decompress(data)
        if suffix == ".gz":
            return gzip.decompress(data)
    except (lzma.LZMAError, zstandard.ZstdError, OSError, EOFError, zlib.error) as error:
        raise BuildError(f"{printable(path)} cannot be decompressed: {printable(str(error))}") from error
    return data


def pack(data: bytes) -> bytes:
    """A plain module as a file with the suffix :data:`PACKED`; equal data give equal bytes."""
    return lzma.compress(data, lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=PACKING)


class Kernel:
    """The modules of one kernel release in a sysroot, and the settings that go with them."""

    def __init__(self, sysroot: Sysroot, release: str | None) -> None:
        self.sysroot = sysroot
        self.release = release = release or detect_release(sysroot)
        root = printable(str(sysroot.root))
        found = sysroot.resolve(f"/lib/modules/{release}") or sysroot.resolve(f"/usr/lib/modules/{release}")
        if "/" in release or found is None or not sysroot.is_file(f"{found.path}/modules.dep"):
            raise BuildError(
                f"no modules for kernel {printable(release)} in {root}: /lib/modules/{printable(release)}/"
                "modules.dep is missing; there is: " + printable(", ".join(releases(sysroot)) or "no kernel"),
                hint="Name an installed kernel with --kernel-version, or run depmod for this one.",
            )
        self.directory = found.path

    # All of these are only looked up when somebody asks: an image whose layer of modules is in the cache
    # needs none of them.

    @cached_property
    def modules(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Name to (path below the module directory, names of all modules it depends on)."""
        return parse_dep(self._text("modules.dep"))

    @cached_property
    def builtin(self) -> frozenset[str]:
        """The modules that are part of the kernel itself."""
        return frozenset(module_name(line) for line in self._text("modules.builtin").split())

    @cached_property
    def modprobe(self) -> Modprobe:
        """The settings of modprobe.d."""
        return read_modprobe(self.sysroot)

    @cached_property
    def alias_table(self) -> list[tuple[str, str]]:
        """(pattern, module), the ones of modprobe.d first."""
        return [*self.modprobe.aliases, *parse_alias(self._text("modules.alias"))]

    @cached_property
    def softdep_lines(self) -> list[list[str]]:
        """The words of the lines of modules.softdep."""
        return [line.split() for line in self._text("modules.softdep").splitlines()]

    @cached_property
    def _soft(self) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
        before, after = dict(self.modprobe.before), dict(self.modprobe.after)
        for words in self.softdep_lines:
            if words[:1] == ["softdep"] and len(words) > 1:
                pre, post = parse_softdep(words[2:])
                name = canonical(words[1])
                before[name] = before.get(name, ()) + pre
                after[name] = after.get(name, ()) + post
        return before, after

    @cached_property
    def _aliases(self) -> tuple[dict[str, list[str]], list[tuple[str, str, str]]]:
        exact: dict[str, list[str]] = {}
        patterns: list[tuple[str, str, str]] = []
        for pattern, name in self.alias_table:
            alias = canonical(pattern)
            literal = re.split(r"[*?[]", alias, maxsplit=1)[0]
            if literal == alias:
                exact.setdefault(alias, []).append(name)
            else:
                patterns.append((literal, alias, name))
        return exact, patterns

    @cached_property
    def config(self) -> frozenset[str]:
        """Lines of the kernel's configuration; empty when it is not known."""
        places = (
            f"/boot/config-{self.release}",
            f"{self.directory}/config",
            f"{self.directory}/build/.config",
        )
        place = self.sysroot.find(*places)
        return frozenset(self.sysroot.read_text(place).splitlines()) if place else frozenset()

    @cached_property
    def decompressors(self) -> frozenset[str]:
        """Suffixes of compressed modules that the kernel loads as they are."""
        return frozenset(
            suffix
            for suffix, method in COMPRESSED.items()
            if "CONFIG_MODULE_DECOMPRESS=y" in self.config
            and f"CONFIG_MODULE_COMPRESS_{method}=y" in self.config
        )

    def find(self, name: str) -> list[str]:
        """The modules that a module name or alias stands for; none when it is built in or unknown.

        Aliases come before what is built in, as with kmod: ``crc32``, which f2fs asks for, is a built-in
        library and an alias of modules.
        """
        name = canonical(name)
        if name in self.modules:
            return [name]
        exact, patterns = self._aliases
        names = list(exact.get(name, ()))
        if not names:
            names = [
                module
                for literal, pattern, module in patterns
                if name.startswith(literal) and fnmatch.fnmatchcase(name, pattern)
            ]
        return [
            found
            for found in dict.fromkeys(names)
            if found in self.modules and found not in self.modprobe.blacklist
        ]

    def before(self, name: str) -> list[str]:
        """The modules of the soft dependencies to be loaded before ``name``."""
        return [module for alias in self._soft[0].get(name, ()) for module in self.find(alias)]

    def after(self, name: str) -> list[str]:
        """The modules of the soft dependencies to be loaded after ``name``."""
        return [module for alias in self._soft[1].get(name, ()) for module in self.find(alias)]

    def needs(self, name: str) -> tuple[str, ...]:
        """Everything to be loaded before ``name``, in loading order."""
        order: dict[str, None] = {}
        visiting: set[str] = set()

        def visit(module: str) -> None:
            # Soft dependencies may form a circle: whoever is being visited comes later anyway.
            if module in order or module in visiting:
                return
            visiting.add(module)
            for need in (*self.before(module), *self.modules[module][1]):
                visit(need)
            visiting.remove(module)
            order[module] = None

        visit(name)
        del order[name]
        return tuple(order)

    def _text(self, name: str) -> str:
        return self.sysroot.read_text(f"{self.directory}/{name}")


def releases(sysroot: Sysroot) -> list[str]:
    """The kernel releases that have modules in ``sysroot``."""
    return [
        name for name in sysroot.list("/lib/modules") if sysroot.is_file(f"/lib/modules/{name}/modules.dep")
    ]


def detect_release(sysroot: Sysroot) -> str:
    """The running kernel when building for this machine, the only one installed in another sysroot."""
    found = releases(sysroot)
    running = os.uname().release
    if str(sysroot.root) == "/" and running in found:
        return running
    if len(found) == 1:
        return found[0]
    root = printable(str(sysroot.root))
    if not found:
        raise BuildError(
            f"no kernel modules in {root}: no /lib/modules/*/modules.dep",
            hint="Install a kernel package in the target system.",
        )
    raise BuildError(
        f"several kernels in {root}: {printable(', '.join(found))}",
        hint="Choose one with --kernel-version.",
    )


def read_modprobe(sysroot: Sysroot) -> Modprobe:
    """The modprobe.d settings of a sysroot. A file hides those of the same name in later directories."""
    files: dict[str, str] = {}
    for directory in MODPROBE_DIRECTORIES:
        for name in sysroot.list(directory):
            if name.endswith(".conf"):
                files.setdefault(name, f"{directory}/{name}")
    settings = parse_modprobe(sysroot.read_text(files[name]) for name in sorted(files))
    places = tuple(files[name] for name in sorted(files))
    return Modprobe(
        settings.options, settings.blacklist, settings.aliases, settings.before, settings.after, places
    )


def select(
    kernel: Kernel, mode: str, wanted: Sequence[str], others: Sequence[tuple[str, str]] = ()
) -> dict[str, tuple[str, str | None]]:
    """The modules of an image: name to (reason, the module that wants it).

    ``others`` are (name, reason) of modules that somebody else than the user wants. Raises
    :class:`BuildError` for a wanted module that the kernel does not have.
    """
    selected: dict[str, tuple[str, str | None]] = {}
    patterns = PATTERNS.get(mode, ())
    for name, asked in (*((name, f"--module {printable(name)}") for name in wanted), *others):
        found = kernel.find(name)
        if not found and canonical(name) not in kernel.builtin:
            raise _unknown(kernel, name)
        for module in found:
            selected.setdefault(module, (asked, None))
    for name, (path, _) in kernel.modules.items() if patterns else ():
        reason = _match(path, patterns)
        if reason and not left_out(kernel, name):
            selected.setdefault(name, (f"{MODES[mode]}: {reason}", None))
    todo = list(selected)
    while todo:
        name = todo.pop(0)
        for wants, reason in (
            (kernel.before(name), "soft dependency, loaded before"),
            (kernel.modules[name][1], "dependency"),
            (kernel.after(name), "soft dependency, loaded after"),
        ):
            for need in wants:
                if need not in selected:
                    selected[need] = (reason, name)
                    todo.append(need)
    return selected


def _match(path: str, patterns: Sequence[tuple[str, str]]) -> str:
    below = path.removeprefix("kernel/")
    return next((why for glob, why in patterns if fnmatch.fnmatchcase(below, glob)), "")


def left_out(kernel: Kernel, name: str) -> str:
    """Why a module is not taken although its kind is; empty when it is."""
    if name in kernel.modprobe.blacklist:
        return f"it is blacklisted by {', '.join(kernel.modprobe.files)}"
    reason = _match(kernel.modules[name][0], GENERIC_EXCLUDED)
    return f"mode generic leaves it out: {reason}" if reason else ""


def packs(sysroot: Sysroot, walker: Walker, interpreter: str, library: str) -> bool:
    """Whether what is in the image of a system can unpack modules: modprobe, and its Python."""
    kmod = walker.library("libkmod.so.2", interpreter)
    binary = walker.object(kmod) if kmod is not None else None
    if binary is None or "liblzma.so.5" not in binary.needed:
        return False
    return any(name.startswith("_lzma.") for name in sysroot.list(f"{library}/lib-dynload"))


def common(kernel: Kernel, selected: Iterable[str]) -> frozenset[str]:
    """Those of ``selected`` that most machines load, with what they need."""
    found: set[str] = set()
    for name in selected:
        below = kernel.modules[name][0].removeprefix("kernel/")
        if any(fnmatch.fnmatchcase(below, glob) for glob in COMMON):
            found |= {*kernel.needs(name), name, *kernel.after(name)}
    return frozenset(found)


def hash_driver(kernel: Kernel) -> str:
    """The module with which this CPU computes the hash of module signatures faster; empty for none.

    The kernel hashes every byte of a signed module with the driver of the highest priority
    (Documentation/crypto/architecture.rst, Documentation/admin-guide/module-signing.rst), which is the
    generic one in C until another is loaded. Kernels that have the fast ones built in have no such module.
    """
    for line in kernel.config:
        name, _, value = line.partition("=")
        if name == "CONFIG_MODULE_SIG_HASH":
            driver = f"{canonical(value.strip(chr(34)))}_ssse3"
            if driver in kernel.modules and driver not in kernel.modprobe.blacklist:
                return driver
    return ""


def collect(
    plan: Plan,
    kernel: Kernel,
    mode: str,
    wanted: Sequence[str],
    others: Sequence[tuple[str, str]] = (),
    *,
    strip: bool = False,
    packed: bool = False,
) -> ModuleIndex:
    """Add the modules with their firmware, the indexes for kmod, and the index for PID 1.

    ``strip``: without signatures (:mod:`.unsign`). ``packed``: the modules that few machines
    load are packed one by one.
    """
    selected = select(kernel, mode, wanted, others)
    asked = {name for word in wanted for name in kernel.find(word)}
    asked |= {need for name in asked for need in kernel.needs(name)}
    plain_ones = common(kernel, selected) | asked
    places: dict[str, str] = {}
    plan.source = "modules"
    firmware: dict[str, list[str]] = {}
    signed = 0
    contents: dict[str, Callable[[], bytes]] = {}

    def where(name: str) -> str:
        path = kernel.modules[name][0]
        suffix = posixpath.splitext(path)[1]
        if suffix in COMPRESSED:
            # When the kernel cannot unpack it by itself, it is in the image as it was before.
            return path.removesuffix(suffix) if strip or suffix not in kernel.decompressors else path
        size = plan.sysroot.host(f"{kernel.directory}/{path}").stat().st_size
        return path + PACKED if packed and name not in plain_ones and size >= WORTH_PACKING else path

    def add(name: str) -> None:
        nonlocal signed
        path = kernel.modules[name][0]
        content = plan.sysroot.read(f"{kernel.directory}/{path}")
        suffix = posixpath.splitext(path)[1]
        plain = decompress(content, suffix, path) if suffix in COMPRESSED else content
        if strip:
            plain = unsigned(plain, f"{kernel.directory}/{path}")
        path = where(name)
        if not plain.startswith(b"\x7fELF"):
            raise BuildError(f"{printable(kernel.directory)}/{printable(path)} is no kernel module")
        places[name] = path
        if suffix not in COMPRESSED and path.endswith(PACKED):
            contents[name] = pool.submit(pack, plain).result
        else:
            kept = content if path.endswith(suffix) and not strip else plain
            contents[name] = lambda: kept
        for tag, value in modinfo(plain):
            if tag == "firmware":
                firmware.setdefault(value, []).append(name)
        if plain.endswith(SIGNED):
            signed += len(plain)

    # Packing lets other threads work meanwhile.
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for name in sorted(selected):
            add(name)
        driver = hash_driver(kernel) if signed >= WORTH_A_HASH_DRIVER else ""
        first = (*kernel.needs(driver), driver) if driver else ()
        for name in first:
            plain_ones |= {name}
            if name not in selected:
                selected[name] = ("the kernel checks the signatures of the others faster with it", None)
            if name not in contents or places[name] != where(name):
                add(name)
        for name, content in contents.items():
            reason, parent = selected[name]
            above = f"{kernel.directory}/{where(parent)}" if parent is not None else None
            plan.data(f"{kernel.directory}/{places[name]}", content(), reason, above)
    plan.others = tuple(name for name in kernel.modules if name not in selected)
    for name in plan.others:
        if name in kernel.modprobe.blacklist or _match(kernel.modules[name][0], PATTERNS.get(mode, ())):
            plan.leave_out(name, left_out(kernel, name))
    plan.source = "firmware"
    _firmware(plan, kernel, firmware, places)
    plan.source = "modules"
    index = _index(kernel, selected, places, [name for word in wanted for name in kernel.find(word)], first)
    plan.data(MODULES_PATH, dump_modules(index), "loading order and aliases of the modules, for pyinit")
    plan.data(
        DRIVERS_PATH,
        dump_drivers(absent_drivers(kernel, places)),
        "names the driver when a disk does not appear",
    )
    for name, data in kmod_files(kernel, places).items():
        plan.data(f"{kernel.directory}/{name}", data, "module look-up of modprobe and udevd")
    for place in kernel.modprobe.files:
        plan.file(place, "module options for modprobe and udevd")
    return index


def absent_drivers(kernel: Kernel, places: Collection[str]) -> dict[str, tuple[str, ...]]:
    """The drivers of disks and their controllers that are not in the image: module to device aliases."""
    found: dict[str, list[str]] = {}
    for pattern, name in kernel.alias_table:
        if name in places or not pattern.startswith(DISK_ALIASES) or not pattern.isascii():
            continue
        path = kernel.modules.get(name, ("", ()))[0]
        if path.removeprefix("kernel/drivers/").startswith(DISK_DRIVERS):
            found.setdefault(name, []).append(pattern)
    return {name: tuple(sorted(patterns)) for name, patterns in found.items()}


def kmod_files(kernel: Kernel, places: dict[str, str]) -> dict[str, bytes]:
    """The index files of libkmod for the modules in ``places`` (name to path below the module directory)."""
    order = {name: number for number, name in enumerate(kernel.modules)}
    dep = []
    for name in sorted(places, key=order.__getitem__):
        line = f"{places[name]}:"
        for need in reversed(kernel.modules[name][1]):
            line += f" {places[need]}"
        dep.append((name, line, order[name]))
    aliases = parse_alias(kernel._text("modules.alias"))
    symbols = parse_alias(kernel._text("modules.symbols"))
    softdep = [" ".join(words) for words in kernel.softdep_lines if canonical("".join(words[1:2])) in places]
    files = {
        "modules.dep.bin": kmodindex.write(dep),
        "modules.alias.bin": kmodindex.write(
            (canonical(pattern), name, order[name]) for pattern, name in aliases if name in places
        ),
        "modules.symbols.bin": kmodindex.write(
            (pattern, name, order[name]) for pattern, name in symbols if name in places
        ),
        "modules.builtin.bin": kmodindex.write((name, "", 0) for name in sorted(kernel.builtin)),
        "modules.softdep": "".join(f"{line}\n" for line in softdep).encode(),
    }
    place = f"{kernel.directory}/modules.builtin.alias.bin"
    if kernel.sysroot.is_file(place):
        files["modules.builtin.alias.bin"] = kernel.sysroot.read(place)
    return files


def _index(
    kernel: Kernel,
    selected: Iterable[str],
    places: dict[str, str],
    wanted: Sequence[str],
    first: tuple[str, ...],
) -> ModuleIndex:
    modules = {
        name: ModuleEntry(places[name], kernel.needs(name), kernel.modprobe.options.get(name, ""))
        for name in selected
    }
    # modprobe, too, lets a blacklist hide the aliases of a module, not its name.
    aliases = {
        (pattern, name)
        for pattern, name in kernel.alias_table
        if name in modules and name not in kernel.modprobe.blacklist
    }
    preload = dict.fromkeys(need for name in wanted for need in (*modules[name].needs, name))
    buses = sorted({pattern.partition(":")[0].rstrip("*") for pattern, _ in aliases if ":" in pattern})
    return ModuleIndex(
        kernel.directory,
        modules,
        Aliases.of(aliases),
        kernel.builtin,
        tuple(preload),
        first,
        tuple(buses),
    )


def _firmware(plan: Plan, kernel: Kernel, wanted: dict[str, list[str]], places: dict[str, str]) -> None:
    """Add firmware where the kernel looks for it (Documentation/driver-api/firmware/fw_search_path.rst)."""
    missing: dict[str, list[str]] = {}
    for name, modules in sorted(wanted.items()):
        places_found = [
            place
            for top in ("updates/" + kernel.release, "updates", kernel.release, "")
            for place in _matches(plan.sysroot, posixpath.normpath(f"/lib/firmware/{top}/{name}"))
        ]
        if not places_found:
            missing.setdefault(modules[0], []).append(name)
            plan.leave_out(name, f"firmware for {modules[0]}, not installed in the target system")
        for place in places_found:
            plan.file(place, "firmware", f"{kernel.directory}/{places[modules[0]]}")
    if missing:
        examples = ", ".join(f"{module} ({names[0]})" for module, names in sorted(missing.items())[:4])
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        plan.warn(
            f"devices of these drivers may not work at boot, for their firmware is not installed: "
            f"{printable(examples)}{more}. It matters if the root is behind one of them: then install its "
            "firmware (Debian: packages named firmware-*) and build again"
        )


def _matches(sysroot: Sysroot, path: str) -> list[str]:
    """``path``, which may be a pattern, as it is or compressed."""
    directory, _, name = path.rpartition("/")
    return [
        f"{directory}/{found}"
        for found in sysroot.list(directory)
        if any(fnmatch.fnmatchcase(found, name + suffix) for suffix in ("", ".xz", ".zst"))
    ]


def _unknown(kernel: Kernel, name: str) -> BuildError:
    close = closest(canonical(name), sorted(kernel.modules), 2)
    hint = f"Did you mean {close}?" if close else "See modinfo(8) for the modules of a kernel."
    return BuildError(f"kernel {printable(kernel.release)} has no module {printable(name)}", hint=hint)
