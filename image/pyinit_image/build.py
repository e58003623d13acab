"""Building an image: collect, plan, write."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pyinit.config.sealed import CONFIG_PATH, SealedConfig, dump_config
from pyinit.text import printable

from . import base, compress, cpio, features, kmods, python, tools, udev
from . import hooks as boot_hooks
from .errors import BuildError
from .install import check, install
from .plan import Entry, Plan, members
from .sysroot import Sysroot, read_regular

MODES = ("generic", "list")
RESCUE = ("open", "none")

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
    compress: str = "zstd"
    rescue: str = "open"
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


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What was built. Sizes in bytes."""

    kernel_version: str
    image: bytes = field(repr=False)
    entries: tuple[Entry, ...] = field(repr=False)
    unpacked: int
    warnings: tuple[str, ...]
    seconds: dict[str, float]
    """Wall time of each step."""


def build(spec: BuildSpec, progress: Callable[[str], None] = lambda step: None) -> BuildResult:
    """Build an image and, if ``spec.output`` is given, put it into place.

    ``progress`` is told what comes next. Raises :class:`BuildError`; nothing is written then.
    """
    _check(spec)
    if spec.output is not None:
        check(Path(spec.output))
    seconds: dict[str, float] = {}
    before, current = time.monotonic(), ""

    def step(name: str) -> None:
        nonlocal before, current
        now = time.monotonic()
        if current:
            seconds[current] = now - before
        before, current = now, name
        if name:
            progress(name)

    step("looking at the target system")
    plan = Plan(Sysroot(spec.sysroot))
    # The search for Python modules is another process: it works while we do the rest.
    hooks = boot_hooks.read(plan.sysroot, spec.hooks)
    scan = python.Scan(plan.sysroot, plan.walker, hooks)
    try:
        kernel = kmods.Kernel(plan.sysroot, spec.kernel_version)
        compress.check_kernel(spec.compress, kernel.config)
        target = features.Target(plan.sysroot, kernel, spec.mode, spec.rescue, spec.cmdline)
        chosen = features.choose(plan, target, spec.features, spec.without)
        base.collect(plan, scan.interpreter.path)
        step("kernel modules")
        index = kmods.collect(plan, kernel, spec.mode, spec.modules, features.modules(target, chosen))
        step("programs")
        tools.collect_modprobe(plan)
        shell = tools.collect_rescue(plan, scan.interpreter.path) if spec.rescue == "open" else ""
        daemon = udev.collect(plan, frozenset(index.modules) | index.builtin, shell)
        features.collect(plan, target, chosen)
        step("Python")
        python.collect(plan, scan)
    finally:
        scan.cancel()
    _libraries(plan, scan.interpreter.path)
    config = SealedConfig(
        kernel.release,
        spec.mode,
        spec.rescue,
        spec.cmdline,
        daemon,
        shell,
        dict(LIBRARIES),
        boot_hooks.table(hooks),
    )
    plan.source = "base"
    plan.data(CONFIG_PATH, dump_config(config), "what was decided when the image was built")
    _include(plan, spec.includes)
    entries = plan.finish()

    step("archive")
    release = re.match(r"(\d+)\.(\d+)", kernel.release)
    summed = release is None or (int(release[1]), int(release[2])) >= SUMMED_SINCE
    archive = b"".join(cpio.write(members(entries), mtime=_mtime(), summed=summed))
    step(f"compression ({spec.compress})")
    image = compress.compress(archive, spec.compress)
    if spec.output is not None:
        step("installation")
        install(Path(spec.output), image)
    step("")
    return BuildResult(kernel.release, image, tuple(entries), len(archive), tuple(plan.warnings), seconds)


def _check(spec: BuildSpec) -> None:
    for value, known, option in (
        (spec.mode, MODES, "mode"),
        (spec.compress, compress.METHODS, "compress"),
        (spec.rescue, RESCUE, "rescue"),
    ):
        if value not in known:
            raise BuildError(f"--{option} {printable(value)} is not known", hint="Known: " + ", ".join(known))
    for _, target in spec.includes:
        if not target.startswith("/") or target.endswith("/"):
            raise BuildError(f"--include: {printable(target)} is not an absolute path of a file in the image")


def _mtime() -> int:
    """Seconds since 1970 that all members carry (https://reproducible-builds.org/specs/source-date-epoch/)."""
    value = os.environ.get("SOURCE_DATE_EPOCH", "0")
    if not value.isascii() or not value.isdigit():
        raise BuildError(f"SOURCE_DATE_EPOCH={printable(value)} is not a number of seconds")
    return int(value)


def _libraries(plan: Plan, interpreter: str) -> None:
    plan.source = "python"
    for short, soname in LIBRARIES.items():
        place = plan.walker.library(soname, interpreter)
        if place is None:
            raise BuildError(
                f"{soname} is missing in {printable(str(plan.sysroot.root))}",
                hint="Install the package libudev1 in the target system." if short == "udev" else "",
            )
        plan.file(place, f"loaded by Python as library {short}", interpreter)


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
            plan.directory(place, f"--include {printable(directory)}")
            for name in sorted([*files, *(name for name in names if Path(directory, name).is_symlink())]):
                path = Path(directory, name)
                reason = f"--include {printable(str(path))}"
                if path.is_symlink():
                    plan.link(f"{place}/{name}", os.readlink(path), reason)
                else:
                    plan.include(f"{place}/{name}", *read_regular(path), reason)
