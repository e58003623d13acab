"""The commands that make images: build, config, devices."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pyinit.text import printable

from .. import access, configuration, facts
from ..build import BuildResult, BuildSpec, build
from ..errors import BuildError
from ..layers import default_folder
from .show import size


def build_image(options: argparse.Namespace) -> int:
    """``pyinit-image build``."""
    settings = configuration.effective(options)
    quiet = bool(settings["quiet"][0].value)
    spec = _spec(options, settings)
    progress = _Progress(quiet or options.json)
    start = time.monotonic()
    try:
        result = build(spec, progress.step)
    finally:
        progress.end()
    for warning in result.warnings:
        print(f"pyinit-image: warning: {warning}", file=sys.stderr)
    seconds = time.monotonic() - start
    if options.json:
        print(json.dumps(_report(options, spec, result, seconds)))
    elif not quiet:
        kept = [layer.name for layer in result.layers if layer.cached]
        print(
            f"{printable(str(options.output))}: kernel {printable(result.kernel_version)}, {spec.mode}, "
            f"{size(len(result.image))} ({size(result.unpacked)} unpacked), {len(result.entries)} entries, "
            f"{seconds:.1f} s" + (f"; kept: {', '.join(kept)}" if kept else "")
        )
        if result.rescue.reason:
            print(f"rescue {result.rescue.policy}: {result.rescue.reason}")
    return 0


def print_configuration(options: argparse.Namespace) -> int:
    """``pyinit-image config``."""
    settings = configuration.effective(options)
    if options.json:
        print(json.dumps(configuration.table(settings), indent=1))
        return 0
    for option in configuration.OPTIONS:
        if not settings[option.name]:
            print(f"{option.name} = []  # default")
        for setting in settings[option.name]:
            shown = str(setting.value).lower() if option.flag else f'"{printable(str(setting.value))}"'
            equals = "+=" if option.many else "="
            print(f"{option.name} {equals} {shown}  # {printable(setting.origin)}")
    return 0


def print_devices(options: argparse.Namespace) -> int:
    """``pyinit-image devices``."""
    sys.stdout.write(facts.dump(facts.record()).decode())
    return 0


def hash_password(options: argparse.Namespace) -> int:
    """``pyinit-image hash-password``."""
    if sys.stdin.isatty():
        first = getpass.getpass("Password for the rescue shell: ")
        if first != getpass.getpass("Once more: "):
            raise BuildError("the two are not the same")
        phrase = bytearray(first.encode("utf-8", "surrogateescape"))
    else:
        phrase = bytearray(sys.stdin.buffer.readline().rstrip(b"\r\n"))
    if any(byte > 0x7E for byte in phrase):
        print("pyinit-image: warning: at a boot the keys may be those of a US keyboard", file=sys.stderr)
    print(access.make_hash(phrase))
    return 0


class _Progress:
    """The step of a build, in place on a terminal. A log has the result, and what went wrong."""

    def __init__(self, quiet: bool) -> None:
        self._live = sys.stderr.isatty() and not quiet

    def step(self, name: str) -> None:
        if self._live:
            print(f"\r\033[K{name} ...", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _spec(options: argparse.Namespace, settings: configuration.Settings) -> BuildSpec:
    mode = configuration.value(settings, "mode")
    if mode == "list" and not settings["module"]:
        raise BuildError(
            "an image of mode list has no driver at all unless they are named",
            hint="Name them: --module ext4 --module virtio_blk --module virtio_pci",
        )
    folder = configuration.value(settings, "cache")
    devices = configuration.value(settings, "devices")
    password = configuration.value(settings, "rescue-password-file")
    return BuildSpec(
        output=options.output,
        sysroot=Path(configuration.value(settings, "sysroot")),
        kernel_version=configuration.value(settings, "kernel-version") or None,
        mode=mode,
        devices=Path(devices) if devices else None,
        modules=configuration.values(settings, "module"),
        unsigned_modules=bool(settings["unsigned-modules"][0].value),
        compress=configuration.value(settings, "compress"),
        format=configuration.value(settings, "format"),
        microcode=configuration.value(settings, "microcode"),
        rescue=configuration.value(settings, "rescue"),
        rescue_password_file=Path(password) if password else None,
        cmdline=configuration.value(settings, "cmdline"),
        includes=_includes(configuration.values(settings, "include")),
        features=configuration.values(settings, "feature"),
        without=configuration.values(settings, "no-feature"),
        hooks=tuple(Path(name) for name in configuration.values(settings, "hook")),
        cache=None if settings["no-cache"][0].value else Path(folder) if folder else default_folder(),
    )


def _includes(items: Sequence[str]) -> tuple[tuple[Path | str | bytes, str], ...]:
    """``SRC:DST`` apart: at the last colon before a slash, unless there is a file with all of that name."""
    result: list[tuple[Path | str | bytes, str]] = []
    for item in items:
        source, colon, target = item.rpartition(":/")
        if colon and not os.path.lexists(item):
            result.append((source, f"/{target}"))
        else:
            result.append((item, os.path.abspath(item)))
    return tuple(result)


def _report(
    options: argparse.Namespace, spec: BuildSpec, result: BuildResult, seconds: float
) -> dict[str, object]:
    return {
        "image": os.fsencode(options.output).decode("utf-8", "replace"),
        "kernel": result.kernel_version,
        "mode": spec.mode,
        "rescue": result.rescue.policy,
        "bytes": len(result.image),
        "unpacked": result.unpacked,
        "entries": len(result.entries),
        "layers": [
            {
                "name": layer.name,
                "bytes": len(layer.packed),
                "unpacked": layer.unpacked,
                "cached": layer.cached,
            }
            for layer in result.layers
        ],
        "seconds": round(seconds, 3),
        "steps": [
            {
                "name": step.name,
                "start": round(step.start, 3),
                "end": round(step.end, 3),
                "beside": step.beside,
            }
            for step in result.steps
        ],
        "warnings": list(result.warnings),
    }
