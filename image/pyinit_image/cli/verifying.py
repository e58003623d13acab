"""The command that tells whether an image can boot: verify."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from pyinit.text import printable

from .. import archive, facts, host, kmods, verify_boot
from ..errors import BuildError
from ..sysroot import Sysroot, read_regular
from ..verify import CODES, Finding, static, unreadable
from ..verify.unpacked import Unpacked

#: Exit status of the first level that failed.
STATIC, REPLAY, BOOT = 3, 4, 5

EPILOG = (
    "exit status: 0 it passed all levels that were asked for, 1 it could not be verified, 2 the command was "
    "not understood, 3 something is wrong in the image, 4 a driver is missing, 5 it does not boot"
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of ``verify``."""
    command.epilog = EPILOG
    command.add_argument(
        "--sysroot",
        type=Path,
        default=Path("/"),
        metavar="DIR",
        help="the system of the image: its kernel and its modules (default: /)",
    )
    command.add_argument("--memory", type=int, metavar="MIB", help="memory of the machine that is to boot it")
    command.add_argument(
        "--no-execute",
        action="store_true",
        help="for images of strangers: do not run the Python in it, and do not check its imports",
    )
    command.add_argument(
        "--replay", action="store_true", help="look for the drivers of this machine's devices, too"
    )
    command.add_argument(
        "--devices", type=Path, metavar="FILE", help="--replay for the machine that wrote FILE"
    )
    command.add_argument(
        "--boot", action="store_true", help="boot it in QEMU, to a small root that says it was reached"
    )
    command.add_argument(
        "--kernel",
        type=Path,
        metavar="FILE",
        help="the kernel for --boot (default: /boot/vmlinuz-RELEASE of the system)",
    )
    command.add_argument("--json", action="store_true", help="as JSON")


def verify(options: argparse.Namespace) -> int:
    """``pyinit-image verify``."""
    content, _ = read_regular(options.image)
    memory = options.memory << 20 if options.memory is not None else None
    try:
        segments = archive.read(content, limit=options.max_size << 20)
        findings = static(segments, memory=memory, packed=len(content), execute=not options.no_execute)
    except BuildError as error:
        segments, findings = [], [unreadable(error)]
    image = Unpacked(segments)
    release = _release(image)
    report: dict[str, object] = {"static": [_row(finding) for finding in findings]}
    failed = STATIC if any(finding.fatal for finding in findings) else 0
    if not options.json:
        for finding in findings:
            _tell(finding)
    if segments and (options.replay or options.devices is not None):
        rows = _replay(options, image, release)
        essential = [row for row in rows if row.essential]
        failed = failed or (REPLAY if essential else 0)
        report["replay"] = [
            {"path": row.path, "modalias": row.modalias, "modules": list(row.modules), "why": row.why}
            | {"essential": row.essential}
            for row in rows
        ]
        if not options.json:
            for row in essential:
                names = ", ".join(row.modules)
                print(f"driver: {printable(row.path)} {row.why}, and {names} is not in the image")
                print(f"  build it with --module {row.modules[0]}")
            if rest := len(rows) - len(essential):
                print(
                    f"{rest} more devices have drivers that are not in the image; a boot needs none of them"
                )
    if options.boot and not failed:
        try:
            booted = verify_boot.boot(
                options.image,
                options.kernel or _kernel(options.sysroot, release),
                sysroot=options.sysroot,
                memory=memory,
                progress=_progress if sys.stderr.isatty() and not options.json else lambda step: None,
            )
            report["boot"] = {"reached": True, "seconds": round(booted.seconds, 2)}
            if not options.json:
                print(
                    f"boot: the root was reached after {booted.seconds:.1f} s "
                    f"({booted.filesystem} on {booted.bus})"
                )
        except BuildError as error:
            failed = BOOT
            report["boot"] = {"reached": False, "error": str(error)}
            if not options.json:
                print(f"boot: {error}")
                if error.hint:
                    print(f"  {error.hint}")
    if options.json:
        print(json.dumps(report | {"status": failed}))
    elif not failed:
        print(f"{printable(str(options.image))}: passed: {', '.join(report)}")
    return failed


def _progress(step: str) -> None:
    print(f"\r\033[K{step} ...", end="\r\033[K", file=sys.stderr, flush=True)


def _tell(finding: Finding) -> None:
    kind = CODES[finding.code] if finding.fatal else f"perhaps: {CODES[finding.code]}"
    print(f"{finding.code}: {finding.path}: {finding.message}")
    print(f"  ({kind}) {finding.hint}")


def _row(finding: Finding) -> dict[str, object]:
    return {
        "code": finding.code,
        "path": finding.path,
        "message": finding.message,
        "hint": finding.hint,
        "fatal": finding.fatal,
    }


def _release(image: Unpacked) -> str:
    """The kernel that the modules of an image are for; empty when it has none or those of several."""
    names = set(image.names("/lib/modules")) | set(image.names("/usr/lib/modules"))
    return names.pop() if len(names) == 1 else ""


def _replay(options: argparse.Namespace, image: Unpacked, release: str) -> list[host.Unanswered]:
    if options.devices is not None:
        seen = facts.parse(read_regular(options.devices)[0], str(options.devices))
    elif os.path.abspath(options.sysroot) == "/":
        seen = facts.record()
    else:
        raise BuildError(
            f"--replay with --sysroot {printable(str(options.sysroot))}: this is not the machine to boot",
            hint="Run pyinit-image devices there, and give what it prints with --devices.",
        )
    kernel = kmods.Kernel(Sysroot(options.sysroot), release or None)
    has = frozenset(kmods.module_name(path) for path, _ in image.files() if ".ko" in path)
    return host.replay(seen, kernel.find, has, kernel.builtin)


def _kernel(sysroot: Path, release: str) -> Path:
    system = Sysroot(sysroot)
    places = tuple(
        f"{directory}{release}{name}"
        for directory, name in (
            ("/boot/vmlinuz-", ""),
            ("/lib/modules/", "/vmlinuz"),
            ("/usr/lib/modules/", "/vmlinuz"),
        )
    )
    place = system.find(*places) if release else None
    found = system.resolve(place) if place else None
    if found is None:
        raise BuildError(
            f"the kernel of the image is not in {printable(str(system.root))}: none of "
            + printable(", ".join(places if release else ("/boot/vmlinuz-RELEASE",))),
            hint="Name it with --kernel.",
        )
    return system.host(found.path)
