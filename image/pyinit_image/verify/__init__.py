"""Checks of a finished image, without booting it: what is certain to fail, and what may.

:func:`inspect` takes the bytes of an image, :func:`static` what :func:`pyinit_image.archive.read` made of
them. Images of other makers are looked at, too; of them only is *fatal* what the kernel itself needs.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Callable, Mapping
from typing import Any

from pyinit.config.sealed import CONFIG_PATH, SENTINEL_PATH, SealedConfig, parse_config
from pyinit.errors import BootError
from pyinit.text import printable
from pyinit_image import archive, cpio, udev
from pyinit_image.errors import BuildError
from pyinit_image.plan import MANIFEST_PATH, SCHEMA
from pyinit_image.python import PACKAGES

from . import imports, modules, programs
from .finding import CODES, Finding, some
from .programs import REBUILD
from .unpacked import Unpacked, executable

__all__ = ["CODES", "KERNEL_MEMORY", "Finding", "inspect", "is_ours", "static"]

#: Bytes that a distribution's kernel takes for itself before it unpacks anything.
KERNEL_MEMORY = 90 << 20
#: What the page cache, in which an unpacked image lives, counts in.
PAGE = 4096

#: Device number of /dev/console (Documentation/admin-guide/devices.txt).
CONSOLE = (5, 1)

_OURS = (SENTINEL_PATH, MANIFEST_PATH, CONFIG_PATH, f"{PACKAGES}/pyinit/__main__.py")
_RULES = ("/etc/udev/rules.d", "/run/udev/rules.d", "/usr/lib/udev/rules.d", "/lib/udev/rules.d")
#: The interpreter in the trampoline, a zero-terminated string.
_PYTHON = re.compile(rb"(/usr/(?:local/)?bin/python3[.0-9]*)\0")
_SENTINEL = re.compile(rb"entries (\d+)\nmanifest sha256 ([0-9a-f]{64})\n")


def inspect(
    image: bytes, *, memory: int | None = None, kernel: str | None = None, rdinit: str = "/init"
) -> list[Finding]:
    """The findings for an image file; one that cannot be read is a finding, too. See :func:`static`."""
    try:
        segments = archive.read(image)
    except BuildError as error:
        message = f"{error}: the kernel stops unpacking there, and everything behind it is missing"
        return [Finding("archive", "/", message, error.hint or "Build or copy the image again.", True)]
    return static(segments, memory=memory, kernel=kernel, packed=len(image), rdinit=rdinit)


def static(
    segments: list[archive.Segment],
    *,
    memory: int | None = None,
    kernel: str | None = None,
    packed: int = 0,
    rdinit: str = "/init",
    execute: bool = True,
) -> list[Finding]:
    """Everything that is wrong with an image, the worst first.

    ``memory``: bytes of the machine that is to boot it; ``packed``: bytes of the image file, which lie there
    while it is unpacked; ``kernel``: release of the kernel that is to boot it; ``rdinit``: the program that
    the kernel starts. ``execute`` tries the imports of an image of ours by running its own Python, from a
    temporary copy, as the user who verifies: without it imports are not looked at.
    """
    image = Unpacked(segments)
    ours = is_ours(image)
    config = _config(image) if ours else None
    findings = _structure(image, ours)
    findings += _first_program(image, rdinit)
    if ours:
        findings += _seal(image, config)
    interpreter = _interpreter(image, rdinit) if ours else ""
    roles = _roles(image, config, interpreter)
    result = programs.check(image, rdinit, {interpreter: rdinit} if interpreter else {}, roles, ours)
    findings += result.findings
    place = image.resolve(interpreter) if interpreter else None
    if execute and place is not None and image.file(place) and not result.broken & {place, rdinit}:
        libraries = config.libraries if isinstance(config, SealedConfig) else {}
        findings += imports.check(image, place, libraries, result.missing)
    sealed = config.kernel if isinstance(config, SealedConfig) else ""
    findings += modules.check(image, ours, kernel, sealed, result.machine)
    findings += _rules(image)
    findings += _memory(image, memory, packed)
    return sorted(findings, key=lambda finding: not finding.fatal)


def is_ours(image: Unpacked) -> bool:
    """Whether pyinit made the image: any one of its own files is enough, so that a missing one is noticed."""
    return any(image.file(path) is not None for path in _OURS)


def _structure(image: Unpacked, ours: bool) -> list[Finding]:
    findings = []
    for name in image.upwards:
        message = f"the member {printable(name)} leads upwards: no program but the kernel unpacks that"
        findings.append(Finding("name", printable(name), message, REBUILD, ours))
    if image.orphans:
        message = (
            f"no directory before its content: {some(image.orphans)}; the kernel makes no directories by "
            "itself and leaves that out without a word"
        )
        path = printable(image.orphans[0])
        findings.append(Finding("parent", path, message, "Put directories before what is in them.", ours))
    manifest = _manifest(image)
    for path in dict.fromkeys(image.twice):
        if _as_listed(image.nodes[path], manifest.get(path)):
            continue  # What counts, the last one, is what was meant.
        message = f"{printable(path)} is twice in one archive, with different content: the later one counts"
        findings.append(Finding("twice", printable(path), message, REBUILD, False))
    console = image.nodes.get("/dev/console")
    if console is not None and not (stat.S_ISCHR(console.mode) and console.device == CONSOLE):
        message = (
            "/dev/console is not the character device 5:1: the kernel cannot open it for its first program, "
            "which starts without standard input and output"
        )
        hint = "Leave it out, the kernel has one of its own, or make it with: mknod -m 600 console c 5 1"
        findings.append(Finding("console", "/dev/console", message, hint, ours))
    return findings


def _first_program(image: Unpacked, rdinit: str) -> list[Finding]:
    shown = printable(rdinit)
    node = image.file(rdinit)
    if node is None:
        problem, effect = (
            "is not there",
            "the kernel ignores the image and mounts the root file system itself",
        )
    elif not executable(node):
        problem, effect = "has no x bit", "the kernel may not execute it and panics or ignores the image"
    elif programs.header(node.data) is None and not programs.script_interpreter(node.data):
        problem, effect = "is neither a program nor a script", "the kernel cannot execute it and panics"
    else:
        return []
    hint = "Build the image again, or name another program on the kernel command line: rdinit=PATH"
    return [Finding("init", shown, f"{shown} {problem}: {effect}", hint, True)]


def _config(image: Unpacked) -> SealedConfig | BootError | None:
    node = image.file(CONFIG_PATH)
    if node is None:
        return None
    try:
        return parse_config(node.data)
    except BootError as error:
        return error


def _seal(image: Unpacked, config: SealedConfig | BootError | None) -> list[Finding]:
    findings = _sentinel(image)
    if isinstance(config, BootError):
        message = f"{printable(str(config))}: PID 1 of this version stops with E-IMAGE"
        hint = "Build the image again, or verify it with the version of pyinit that built it."
        findings.append(Finding("manifest", CONFIG_PATH, message, hint, True))
    node = image.file(MANIFEST_PATH)
    if node is None:
        if not any(finding.fatal for finding in findings):
            message = f"{MANIFEST_PATH} is not there: nobody can tell what is missing beside it"
            findings.append(Finding("manifest", MANIFEST_PATH, message, "Build the image again.", True))
        return findings
    try:
        manifest = _listed(node.data)
    except BuildError as error:
        message = f"{error}: nobody can tell what is missing"
        return [*findings, Finding("manifest", MANIFEST_PATH, message, "Build the image again.", True)]
    missing = sorted(path for path in manifest if path not in image.nodes or path in image.implied)
    if missing and image.nodes.get(SENTINEL_PATH) is not None:
        message = (
            f"listed in the manifest, but not there: {some(missing)}; the boot fails where it needs that"
        )
        findings.append(Finding("manifest", printable(missing[0]), message, "Build the image again.", True))
    unlisted = sorted(path for path in _covered(image, manifest) if path not in manifest)
    unlisted = [path for path in unlisted if path != MANIFEST_PATH]
    if unlisted:
        message = (
            f"not listed in the manifest: {some(unlisted)}; a boot may use what nobody meant to be there"
        )
        hint = "Build the image with --include instead of adding to it."
        findings.append(Finding("manifest", printable(unlisted[0]), message, hint, False))
    changed = sorted(
        path
        for path, row in manifest.items()
        if path in image.nodes and path not in image.implied and not _as_listed(image.nodes[path], row)
    )
    if changed:
        message = f"not as the manifest says, so damaged or changed: {some(changed)}; what uses that fails"
        findings.append(Finding("manifest", printable(changed[0]), message, "Build the image again.", True))
    return findings


def _sentinel(image: Unpacked) -> list[Finding]:
    node = image.file(SENTINEL_PATH)
    if node is None:
        message = f"{SENTINEL_PATH} is not there: the image was cut off behind {printable(image.last)}, and "
        message += "PID 1 stops with E-IMAGE"
        return [Finding("sentinel", SENTINEL_PATH, message, "Build or copy the image again.", True)]
    findings = []
    if image.last != SENTINEL_PATH:
        message = (
            f"{SENTINEL_PATH} is not the last member, but {printable(image.last)}: PID 1 cannot tell any "
            "more that nothing was cut off"
        )
        hint = "Put other archives before this image, not behind it."
        findings.append(Finding("sentinel", SENTINEL_PATH, message, hint, False))
    match = _SENTINEL.fullmatch(node.data)
    manifest = image.file(MANIFEST_PATH)
    problem = ""
    if match is None:
        problem = "does not say how many entries there are"
    elif manifest is not None and hashlib.sha256(manifest.data).hexdigest() != match[2].decode():
        problem = f"is for another {MANIFEST_PATH}"
    elif manifest is not None and int(match[1]) != len(_manifest(image)) + 1:
        problem = f"is for {int(match[1])} entries, the manifest has {len(_manifest(image))} and itself"
    if problem:
        message = f"{SENTINEL_PATH} {problem}: parts of different images were mixed, and may not fit"
        findings.append(Finding("sentinel", SENTINEL_PATH, message, "Build the image again.", True))
    return findings


def _manifest(image: Unpacked) -> Mapping[str, Mapping[str, Any]]:
    node = image.file(MANIFEST_PATH)
    try:
        return _listed(node.data) if node is not None else {}
    except BuildError:
        return {}


def _listed(data: bytes) -> dict[str, Mapping[str, Any]]:
    """The entries of a manifest, of which only kind, size and digest matter here."""
    try:
        raw = json.loads(data)
        if raw["schema"] != SCHEMA:
            raise ValueError(f"schema {raw['schema']}")
        return {path: dict(row) for path, row in raw["entries"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BuildError(f"{MANIFEST_PATH} is damaged: {printable(str(error))}") from error


def _covered(image: Unpacked, manifest: Mapping[str, object]) -> list[str]:
    """The paths that the manifest should have: all but the sentinel and what is for the kernel itself.

    Microcode and ACPI tables lie below /kernel in an archive before ours
    (Documentation/arch/x86/microcode.rst), which may have been put there by others.
    """
    early = {path for path in image.nodes if path == "/kernel" or path.startswith("/kernel/")}
    return [
        path for path in image.nodes if path != SENTINEL_PATH and path not in early | image.implied
    ] + sorted(early & set(manifest))


def _as_listed(node: cpio.Member, row: Mapping[str, Any] | None) -> bool:
    kinds: dict[str, Callable[[int], bool]] = {
        "file": stat.S_ISREG,
        "directory": stat.S_ISDIR,
        "link": stat.S_ISLNK,
        "device": stat.S_ISCHR,
    }
    kind = kinds.get(str(row.get("kind"))) if row is not None else None
    if row is None or kind is None or not kind(node.mode):
        return False
    if row["kind"] != "file":
        return True
    return row.get("size") == len(node.data) and row.get("sha256") == hashlib.sha256(node.data).hexdigest()


def _interpreter(image: Unpacked, rdinit: str) -> str:
    """The interpreter that ``/init`` executes; empty when it names none."""
    node = image.file(rdinit)
    match = _PYTHON.search(node.data) if node is not None else None
    return match[1].decode("ascii") if match else ""


def _roles(image: Unpacked, config: SealedConfig | BootError | None, interpreter: str) -> dict[str, str]:
    """What fails without a program, by resolved path; the worst first."""
    roles = {}
    if interpreter:
        place = image.resolve(interpreter) or interpreter
        roles["/init"] = roles[place] = "PID 1 does not start and the kernel panics"
    if isinstance(config, SealedConfig):
        place = image.resolve(config.udevd) or config.udevd
        roles[place] = "the udev daemon does not start, and no disk is found"
        if config.shell:
            shell = image.resolve(config.shell) or config.shell
            roles[shell] = "there is no rescue shell when a boot fails"
    for daemon in udev.DAEMONS:
        roles.setdefault(image.resolve(daemon) or daemon, "the udev daemon does not start")
    modprobe = image.resolve("/sbin/modprobe") or "/sbin/modprobe"
    roles[modprobe] = "the kernel cannot have modules loaded, for a file system for example"
    for path, _ in image.files():
        if path.endswith(".so") and ("/lib-dynload/" in path or path.startswith(f"{PACKAGES}/")):
            roles.setdefault(path, "the Python module cannot be imported, and the boot ends with E-INTERNAL")
    return roles


def _rules(image: Unpacked) -> list[Finding]:
    """The programs that udev rules call. udev itself looks for those without a path in its own directory."""
    missing: dict[str, set[str]] = {}
    seen: set[str] = set()
    for directory in _RULES:
        for name in image.names(directory):
            if not name.endswith(".rules") or name in seen:
                continue
            # A file hides those of the same name in later directories (udev(7)).
            seen.add(name)
            for program in udev.programs(image.text(f"{directory}/{name}")):
                places = (
                    [program] if program.startswith("/") else [f"{top}/{program}" for top in udev.PROGRAMS]
                )
                if not any(executable(image.file(place)) for place in places):
                    missing.setdefault(program, set()).add(name)
    findings = []
    for program, files in sorted(missing.items()):
        message = (
            f"the udev rules {some(files)} call {printable(program)}, which is not there: the rule fails, "
            "and the links or properties that it makes for a device are missing"
        )
        path = program if program.startswith("/") else f"{udev.PROGRAMS[0]}/{program}"
        findings.append(Finding("udev", printable(path), message, "Add it with --include.", False))
    return findings


def _memory(image: Unpacked, memory: int | None, packed: int) -> list[Finding]:
    if memory is None:
        return []
    # Hard links share their pages, but images have few of them.
    unpacked = sum(-(-len(node.data) // PAGE) * PAGE for node in image.nodes.values())
    need = unpacked + packed + KERNEL_MEMORY
    if need <= memory:
        return []
    message = (
        f"unpacking takes {_mib(need)} MiB ({_mib(unpacked)} unpacked, {_mib(packed)} packed, "
        f"{_mib(KERNEL_MEMORY)} for the kernel), and there are {_mib(memory)}: the kernel runs out of memory "
        "and panics, or leaves files out"
    )
    hint = "Build with --mode list and only the modules of this machine."
    return [Finding("memory", "/", message, hint, True)]


def _mib(size: int) -> int:
    return -(-size // (1 << 20))
