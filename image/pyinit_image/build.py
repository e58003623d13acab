"""Building an image: collect, plan, write."""

from __future__ import annotations

import os
import posixpath
import re
import stat
import sys
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import lz4
import zstandard

from pyinit.config.sealed import CONFIG_PATH, SENTINEL_PATH, SealedConfig, dump_config
from pyinit.text import printable

from . import (
    access,
    base,
    compress,
    cpio,
    facts,
    features,
    genlist,
    host,
    kmods,
    microcode,
    python,
    stand_in,
    tools,
    udev,
    unsign,
)
from . import hooks as boot_hooks
from . import layers as layers_module
from .elf import parse
from .errors import BuildError
from .facts import Facts
from .install import check, install
from .layers import Layer, Store
from .plan import Entry, Plan, make_entry, members
from .sysroot import Sysroot, read_regular
from .trace import Trace

MODES = ("generic", "host", "list")
FORMATS = ("image", "list")

#: Short name that pyudev and ctypes ask for: file name in the image.
LIBRARIES = {"udev": "libudev.so.1", "c": "libc.so.6"}

#: First kernel that takes archives with checksums.
SUMMED_SINCE = (5, 19)


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """What to build. ``output`` None builds in memory only."""

    output: Path | None = None
    sysroot: Path = Path("/")
    kernel_version: str | None = None
    """Release of the kernel; None takes the only one there is, or the running one for ``/``."""
    mode: str = "generic"
    modules: tuple[str, ...] = ()
    devices: Path | None = None
    """The devices of the machine to build for, in mode host; None takes those of this machine."""
    unsigned_modules: bool = False
    """Leave out the signatures of modules and the symbols that only debugging needs."""
    compress: str = "zstd"
    format: str = "image"
    """``image``, or ``list``: a directory with the files and a list for the kernel's own build."""
    microcode: str = "auto"
    """``auto`` puts the target's microcode in front, ``none`` does not."""
    rescue: str = ""
    """One of ``access.RESCUE``; empty: what fits the root file system and whether there is a password."""
    rescue_password_file: Path | None = None
    """Holds the hash of the password for the rescue shell."""
    cmdline: str = ""
    """Words that stand before those of the kernel's own command line."""
    includes: tuple[tuple[Path | str | bytes, str], ...] = ()
    """(file or directory of this machine, or content; absolute place in the image)."""
    features: tuple[str, ...] = ()
    """Names of features to add whether they are wanted or not."""
    without: tuple[str, ...] = ()
    """Names of features to leave out even if they are wanted."""
    hooks: tuple[Path, ...] = ()
    """Files of boot hooks, beside those in /etc/pyinit/hooks.d of the target system."""
    cache: Path | None = None
    """Where layers are kept; None keeps none."""


class Step(NamedTuple):
    """Something that took time: seconds since the build began."""

    name: str
    start: float
    end: float
    beside: bool
    """Whether it was done at the same time as others, by another thread or process."""


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What was built. Sizes in bytes."""

    kernel_version: str
    image: bytes = field(repr=False)
    entries: tuple[Entry, ...] = field(repr=False)
    """All entries, parents first; of layers out of the cache without the content of files."""
    layers: tuple[Layer, ...]
    unpacked: int
    warnings: tuple[str, ...]
    steps: tuple[Step, ...]
    """What was done when, in the order in which it began."""
    rescue: access.Decision
    """Who gets a rescue shell."""


def build(spec: BuildSpec, progress: Callable[[str], None] = lambda step: None) -> BuildResult:
    """Build an image and, if ``spec.output`` is given, put it into place.

    ``progress`` is told what comes next. Raises :class:`BuildError`; nothing is written then.
    """
    _check(spec)
    if spec.output is not None and spec.format == "image":
        check(Path(spec.output))
    clock = _Clock(progress)
    with ThreadPoolExecutor(1) as pool:
        clock.step("looking at the target system")
        work = _Build(spec, clock, pool)
        try:
            layers = work.layers()
        finally:
            work.cancel()
    entries = tuple(sorted({e.path: e for layer in layers for e in layer.entries}.values(), key=_order))
    image = b"".join(compress.padded(layer.packed) for layer in layers)
    if spec.output is not None:
        clock.step("installation")
        if spec.format == "list":
            genlist.write(entries, Path(spec.output), mtime=work.mtime)
        else:
            install(Path(spec.output), image, secrets=work.settings.secrets)
    clock.step("")
    return BuildResult(
        work.kernel.release,
        image,
        entries,
        tuple(layers),
        sum(layer.unpacked for layer in layers),
        tuple(dict.fromkeys(warning for layer in layers for warning in layer.warnings)),
        tuple(sorted(clock.steps, key=lambda step: step.start)),
        work.access,
    )


def _order(entry: Entry) -> tuple[bool, list[str]]:
    """Parents first, the sentinel last."""
    return entry.path == SENTINEL_PATH, entry.path.split("/")


def _alike(entry: Entry) -> tuple[bool, bool, int]:
    """Programs and libraries beside each other, the largest first: compressed, they are 1 % smaller."""
    program = entry.data[:4] == b"\x7fELF"
    return not stat.S_ISDIR(entry.mode), not program, -entry.size if program else 0


class _Clock:
    """Tells the steps of a build, and when each began and ended."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self.steps: list[Step] = []
        self._progress = progress
        self._begin = time.monotonic()
        self._before, self._current = 0.0, ""

    def step(self, name: str) -> None:
        """Go on to the next step; an empty name ends the last one."""
        now = self.now()
        if self._current:
            self.steps.append(Step(self._current, self._before, now, False))
        self._before, self._current = now, name
        if name:
            self._progress(name)

    def now(self) -> float:
        return time.monotonic() - self._begin

    def beside(self, name: str, start: float) -> None:
        """Note what began at ``start`` and has just ended, while other steps were done."""
        self.steps.append(Step(name, start, self.now(), True))


class _Build:
    """One build: what is shared by the making of its layers."""

    def __init__(self, spec: BuildSpec, clock: _Clock, pool: ThreadPoolExecutor) -> None:
        self.spec = spec
        self.clock = clock
        self.pool = pool
        self.mtime = _mtime()
        # What comes out of the cache has no content any more that a list could refer to.
        keep = spec.cache is not None and spec.format == "image"
        self.store = Store(spec.cache) if spec.cache is not None and keep else None
        # Each layer looks at the target system through its own eyes: what it looks at is noted.
        try:
            self.kernel = kmods.Kernel(Sysroot(spec.sysroot), spec.kernel_version)
        except BuildError:
            # Whoever names a wrong directory is told so by what every system has, before the kernel.
            plan = Plan(Sysroot(spec.sysroot))
            python.find(plan.sysroot, plan.walker)
            raise
        if spec.format == "image":
            compress.check_kernel(spec.compress, self.kernel.config)
        self.settings = Plan(Sysroot(spec.sysroot))
        if spec.unsigned_modules:
            here = Path("/") if os.path.abspath(spec.sysroot) == "/" else None
            for warning in unsign.check(self.kernel.config, spec.cmdline, here):
                self.settings.warn(warning)
        release = re.match(r"(\d+)\.(\d+)", self.kernel.release)
        known = release is None or (int(release[1]), int(release[2])) >= SUMMED_SINCE
        self.summed = known and spec.compress not in compress.CHECKED
        self.hooks = boot_hooks.read(self.settings.sysroot, spec.hooks)
        self.facts = _facts(spec) if spec.mode == "host" else None
        target = features.Target(
            self.settings.sysroot, self.kernel, spec.mode, spec.rescue, spec.cmdline, self.facts
        )
        self.chosen = features.choose(self.settings, target, spec.features, spec.without)
        self.password = ""
        if spec.rescue_password_file is not None:
            self.password = access.read_hash(spec.rescue_password_file, self.settings.sysroot)
        encrypted = features.encrypted_root(target, self.chosen)
        if not encrypted and self.facts is not None:
            encrypted = access.encrypted_root(self.facts)
        self.access = access.decide(spec.rescue, self.password, encrypted)
        self.target = replace(target, rescue=self.access.policy)
        self.wanted = features.modules(self.target, self.chosen)
        if self.facts is not None:
            for warning in self.facts.warnings:
                self.settings.warn(warning)
            self.wanted += host.wanted(self.facts, self.kernel.find)
        self.packed = spec.mode == "generic" and self._packs()
        self.scan: python.Scan | None = None
        self.scan_began = 0.0
        self.own = layers_module.own_trace() if self.store is not None else Trace()

    def _packs(self) -> bool:
        """Whether the target has what it takes to unpack single modules."""
        plan = Plan(Sysroot(self.spec.sysroot))
        interpreter = python.find(plan.sysroot, plan.walker)
        return kmods.packs(plan.sysroot, plan.walker, interpreter.path, interpreter.library)

    def cancel(self) -> None:
        """End what is still going on."""
        if self.scan is not None:
            self.scan.cancel()

    def layers(self) -> list[Layer]:
        """All layers, in the order in which the kernel unpacks them."""
        if self.store is not None and self.store.problem:
            self.settings.warn(f"no layers are kept: {self.store.problem}")
        modules_key = {
            **self._key(),
            "kernel": self.kernel.release,
            "mode": self.spec.mode,
            "modules": self.spec.modules,
            "unsigned": self.spec.unsigned_modules,
            "wanted": self.wanted,
            "packed": self.packed,
            "links": base.merged(self.settings.sysroot),
        }
        modules = self._kept("modules", modules_key)
        making = None
        if modules is None:
            # The search for Python modules is another process: it works while we do the rest.
            self._start_scan(Plan(Sysroot(self.spec.sysroot)))
            making = self._make_modules(modules_key)
            notes = making.notes
        else:
            notes = modules.notes
        system_key = {
            **self._key(),
            "rescue": self.access.policy,
            "hooks": [(hook.name, hook.source.hex(), hook.origin) for hook in self.hooks],
            "drivers": notes["drivers"],
            "compressed": notes["compressed"],
            "packed": self.packed,
        }
        system = self._kept("system", system_key) or self._make_system(system_key).layer()
        if making is not None:
            modules = making.layer()
        assert modules is not None
        early = self._make_early()
        below = [*early, system, modules]
        return [*below, self._make_settings(below, system, modules)]

    def _key(self) -> dict[str, object]:
        spec = self.spec
        return {
            "sysroot": os.path.abspath(spec.sysroot),
            "compress": spec.compress,
            "mtime": self.mtime,
            "summed": self.summed,
            "versions": [sys.version, zstandard.__version__, lz4.__version__],
            "code": layers_module.own_places(),
        }

    def _kept(self, name: str, key: Mapping[str, object]) -> Layer | None:
        return self.store.get(name, key) if self.store is not None else None

    def _start_scan(self, plan: Plan) -> python.Scan:
        if self.scan is None:
            self.scan = python.Scan(plan.sysroot, plan.walker, self.hooks, unpacks=self.packed)
            self.scan_began = self.clock.now()
        return self.scan

    def _make_modules(self, key: Mapping[str, object]) -> _Making:
        self.clock.step("kernel modules")
        sysroot = self.kernel.sysroot
        links = base.merged(sysroot)
        below = {
            path: make_entry(path, stat.S_IFLNK | 0o777, target.encode(), "", None, "")
            for path, target in links
        }
        plan = Plan(sysroot, below)
        spec = self.spec
        index = kmods.collect(
            plan,
            self.kernel,
            spec.mode,
            spec.modules,
            self.wanted,
            strip=spec.unsigned_modules,
            packed=self.packed,
        )
        known = frozenset(index.modules) | index.builtin
        notes: dict[str, Any] = {
            "drivers": sorted({driver for _, _, driver in udev.ALLOWED} & known),
            "compressed": sorted(
                {posixpath.splitext(entry.path)[1] for entry in index.modules.values()} & {*kmods.COMPRESSED}
            ),
        }
        notes |= {"absent": plan.absent, "others": plan.others}
        return _Making(self, "modules", plan.finish(), plan, notes, key, [sysroot.trace])

    def _make_system(self, key: Mapping[str, object]) -> _Making:
        spec = self.spec
        plan = Plan(Sysroot(spec.sysroot))
        scan = self._start_scan(plan)
        interpreter = scan.interpreter.path
        self.clock.step("programs")
        base.collect(plan, interpreter)
        tools.collect_modprobe(plan)
        shell = tools.collect_rescue(plan, interpreter, self.access.policy)
        daemon = udev.collect(plan, frozenset(key["drivers"]), shell)  # type: ignore[call-overload]
        self.clock.step("Python")
        trace = python.collect(plan, scan)
        self.clock.beside("search for Python modules", self.scan_began)
        libraries = _libraries(plan, interpreter)
        if self.access.policy == "password":
            libraries |= access.collect_library(plan, interpreter)
        stand_ins = _stand_ins(plan, key["compressed"], scan.modules)  # type: ignore[arg-type]
        notes = {
            "shell": shell,
            "libraries": libraries,
            "daemon": daemon,
            "stand_ins": stand_ins,
            "absent": plan.absent,
        }
        traces = [plan.sysroot.trace, scan.sysroot.trace, trace]
        return _Making(self, "system", plan.finish(), plan, notes, key, traces)

    def _make_early(self) -> list[Layer]:
        if self.spec.microcode == "none":
            return []
        plan = Plan(Sysroot(self.spec.sysroot))
        vendors = None if self.facts is None else frozenset(cpu.vendor for cpu in self.facts.cpus)
        microcode.collect(plan, vendors)
        self.settings.absent |= plan.absent
        if not plan.entries:
            return []
        entries = plan.finish()
        packed = b"".join(cpio.write(members(entries), mtime=self.mtime, summed=False))
        return [Layer("early", tuple(entries), packed, len(packed), tuple(plan.warnings))]

    def _make_settings(self, below: list[Layer], system: Layer, modules: Layer) -> Layer:
        spec, plan = self.spec, self.settings
        self.clock.step("settings")
        plan.absent |= {**modules.notes["absent"], **system.notes["absent"]}
        plan.others = tuple(modules.notes["others"])
        plan.below = layers_module.merge(below)
        plan.stand_ins = frozenset(system.notes["stand_ins"])
        features.collect(plan, self.target, self.chosen)
        config = SealedConfig(
            self.kernel.release,
            spec.mode,
            self.access.policy,
            self.password if self.access.policy == "password" else "",
            features.words(self.target, self.chosen, spec.cmdline),
            system.notes["daemon"],
            system.notes["shell"],
            system.notes["libraries"],
            boot_hooks.table(self.hooks),
        )
        plan.source = "base"
        plan.data(CONFIG_PATH, dump_config(config), "what was decided when the image was built", mode=0o600)
        _include(plan, spec.includes)
        access.refuse_fallbacks(plan, self.access.policy)
        return _Making(self, "settings", plan.seal(), plan, {}, None, []).layer()


class _Making:
    """A layer whose archive is being compressed."""

    def __init__(
        self,
        work: _Build,
        name: str,
        entries: list[Entry],
        plan: Plan,
        notes: Mapping[str, Any],
        key: Mapping[str, object] | None,
        traces: list[Trace],
    ) -> None:
        self.notes = notes
        self._work = work
        self._name = name
        self._entries = entries
        self._warnings = tuple(plan.warnings)
        self._key = key
        self._traces = traces
        # Uncompressed layers follow each other without anything between them: one archive for every reader.
        last = key is None or work.spec.compress != "none"
        known = frozenset(path[1:].encode("utf-8", "surrogateescape") for path in plan.below)
        if name == "system":
            entries = sorted(entries, key=_alike)
        writer = cpio.write(members(entries), mtime=work.mtime, summed=work.summed, known=known, trailer=last)
        archive = b"".join(writer)
        self._unpacked = len(archive)
        # The libraries that compress let other threads work meanwhile.
        self._packed = work.pool.submit(self._compress, archive)

    def _compress(self, archive: bytes) -> bytes:
        start = self._work.clock.now()
        packed = compress.compress(archive, self._work.spec.compress)
        self._work.clock.beside(f"compression of {self._name}", start)
        return packed

    def layer(self) -> Layer:
        """The layer, when it is compressed; kept for the next time."""
        self._work.clock.step(f"compression ({self._work.spec.compress})")
        layer = Layer(
            self._name,
            tuple(self._entries),
            self._packed.result(),
            self._unpacked,
            self._warnings,
            self.notes,
        )
        if self._work.store is not None and self._key is not None:
            self._work.store.put(self._key, layer, [*self._traces, self._work.own])
        return layer


def _check(spec: BuildSpec) -> None:
    for value, known, option in (
        (spec.mode, MODES, "mode"),
        (spec.compress, compress.METHODS, "compress"),
        (spec.rescue, ("", *access.RESCUE), "rescue"),
        (spec.format, FORMATS, "format"),
        (spec.microcode, microcode.CHOICES, "microcode"),
    ):
        if value not in known:
            names = ", ".join(filter(None, known))
            raise BuildError(f"--{option} {printable(value)} is not known", hint=f"Known: {names}")
    for _, target in spec.includes:
        if not target.startswith("/") or target.endswith("/"):
            raise BuildError(f"--include: {printable(target)} is not an absolute path of a file in the image")


def _facts(spec: BuildSpec) -> Facts:
    """What a host-mode image is built for. Of this machine only when it is the one that will boot it."""
    if spec.devices is not None:
        return facts.parse(read_regular(spec.devices)[0], str(spec.devices))
    if os.path.abspath(spec.sysroot) != "/":
        raise BuildError(
            f"mode host with --sysroot {printable(str(spec.sysroot))}: "
            "this is not the machine that will boot it",
            hint="Run pyinit-image devices there and give its output with --devices, or use --mode generic.",
        )
    return facts.record()


def _mtime() -> int:
    """Seconds since 1970 that all members carry (https://reproducible-builds.org/specs/source-date-epoch/)."""
    value = os.environ.get("SOURCE_DATE_EPOCH", "0")
    if not value.isascii() or not value.isdigit():
        raise BuildError(f"SOURCE_DATE_EPOCH={printable(value)} is not a number of seconds")
    return int(value)


def _libraries(plan: Plan, interpreter: str) -> dict[str, str]:
    plan.source = "python"
    for short, soname in LIBRARIES.items():
        place = plan.walker.library(soname, interpreter)
        if place is None:
            raise BuildError(
                f"{soname} is missing in {printable(str(plan.sysroot.root))}",
                hint="Install the package libudev1 in the target system." if short == "udev" else "",
            )
        plan.file(place, f"loaded by Python as library {short}", interpreter)
    return dict(LIBRARIES)


def _stand_ins(plan: Plan, compressed: Collection[str], modules: Collection[str]) -> list[str]:
    """Put stand-ins in the place of libraries that only serve what no image does; return their paths."""
    files = {path: entry.data for path, entry in plan.entries.items() if entry.data[:4] == b"\x7fELF"}
    needed = {}
    for path, data in files.items():
        binary = parse(data, path)
        needed[path] = binary.needed if binary is not None else ()
    chosen = stand_in.choose(files, needed, plan.sysroot.is_file, compressed, modules)
    for path, data in chosen.items():
        old = plan.entries[path]
        reason = f"{old.reason}; a stand-in: the real one {stand_in.reason(path)}"
        plan.entries[path] = make_entry(path, old.mode, data, reason, old.parent, old.source)
    return sorted(chosen)


def _include(plan: Plan, includes: tuple[tuple[Path | str | bytes, str], ...]) -> None:
    plan.source = "include"
    for source, target in includes:
        if isinstance(source, bytes):
            mode = 0o755 if source[:4] == b"\x7fELF" or source[:2] == b"#!" else 0o644
            plan.include(target, source, mode, "--include")
            continue
        top = Path(source)
        if not top.is_dir():
            plan.include(target, *read_regular(top), f"--include {printable(str(top))}")
            continue
        for directory, names, files in os.walk(top):
            names.sort()
            below = os.path.relpath(directory, top)
            place = target if below == "." else f"{target}/{below}"
            # One that is there already keeps its mode: /root is for its owner alone.
            if plan.entry(plan.canonical(place)) is None:
                plan.directory(place, f"--include {printable(directory)}")
            for name in sorted([*files, *(name for name in names if Path(directory, name).is_symlink())]):
                path = Path(directory, name)
                reason = f"--include {printable(str(path))}"
                if path.is_symlink():
                    plan.link(f"{place}/{name}", os.readlink(path), reason)
                else:
                    plan.include(f"{place}/{name}", *read_regular(path), reason)
