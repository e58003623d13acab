"""The command ``pyinit-image``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import stat
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pyinit import VERSION
from pyinit.config.distance import closest
from pyinit.config.sealed import CONFIG_PATH, MODULES_PATH, parse_config, parse_modules
from pyinit.errors import BootError
from pyinit.text import printable

from . import archive, configuration, cpio, diff, kmods
from .build import BuildSpec, build
from .errors import BuildError
from .layers import default_folder
from .plan import MANIFEST_PATH, chain, parse_manifest
from .sysroot import read_regular

EPILOG = """\
examples:
  pyinit-image build -o /boot/initrd.img-pyinit
  pyinit-image build -o small.img --mode list --module ext4 --module virtio_blk --module virtio_pci
  pyinit-image ls --by-reason small.img
  pyinit-image explain small.img libcrypto.so.3

exit status: 0 done, 1 it could not be done, 2 the command was not understood
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except BuildError as error:
        print(f"pyinit-image: {error}", file=sys.stderr)
        if error.hint:
            print(f"pyinit-image: {error.hint}", file=sys.stderr)
        return 1
    except BootError as error:
        print(f"pyinit-image: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader, a pager for example, has seen enough. Nothing may be flushed into the pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        name = printable(str(error.filename)) + ": " if error.filename else ""
        print(f"pyinit-image: {name}{error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pyinit-image: interrupted; no image was written", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyinit-image",
        description="Build initramfs images with pyinit as init, and look into images.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pyinit-image {VERSION}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = commands.add_parser(
        "build",
        help="build an image",
        description="Build an image for a kernel of this system, or of another one below --sysroot.",
    )
    command.add_argument(
        "-o", "--output", type=Path, required=True, metavar="IMAGE", help="the image; the old one: IMAGE.old"
    )
    configuration.add_arguments(command)
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(run=_build)

    command = commands.add_parser("config", help="print the effective configuration and where it is from")
    configuration.add_arguments(command)
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(run=_config)

    command = commands.add_parser("ls", help="list an image", description="List what is in an image.")
    command.add_argument("image", type=Path, metavar="IMAGE")
    command.add_argument("-l", "--long", action="store_true", help="with modes, sizes and targets of links")
    command.add_argument("--by-reason", action="store_true", help="how much of the image is there for what")
    command.set_defaults(run=_ls)

    command = commands.add_parser("cat", help="print a file of an image")
    command.add_argument("image", type=Path, metavar="IMAGE")
    command.add_argument("path", metavar="PATH")
    command.set_defaults(run=_cat)

    command = commands.add_parser("explain", help="why something is in an image")
    command.add_argument("image", type=Path, metavar="IMAGE")
    command.add_argument("what", metavar="PATH|MODULE|NAME", help="a path, a kernel module or a file name")
    command.set_defaults(run=_explain)

    command = commands.add_parser(
        "diff",
        help="what changed between two images, and why",
        epilog="exit status: 0 the same content, 1 there are differences, 2 an image could not be read",
    )
    command.add_argument("old", type=Path, metavar="OLD")
    command.add_argument("new", type=Path, metavar="NEW")
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(run=_diff)

    command = commands.add_parser("extract", help="unpack an image into a new directory")
    command.add_argument("image", type=Path, metavar="IMAGE")
    command.add_argument("directory", type=Path, metavar="DIR")
    command.set_defaults(run=_extract)
    return parser


def _build(options: argparse.Namespace) -> int:
    settings = configuration.effective(options)
    mode = configuration.value(settings, "mode")
    quiet = bool(settings["quiet"][0].value)
    if mode == "list" and not settings["module"]:
        raise BuildError(
            "an image of mode list has no driver at all unless they are named",
            hint="Name them: --module ext4 --module virtio_blk --module virtio_pci",
        )
    folder = configuration.value(settings, "cache")
    includes: list[tuple[Path | str | bytes, str]] = []
    for item in configuration.values(settings, "include"):
        source, _, target = item.partition(":")
        includes.append((source, target or os.path.abspath(source)))
    spec = BuildSpec(
        output=options.output,
        sysroot=Path(configuration.value(settings, "sysroot")),
        kernel_version=configuration.value(settings, "kernel-version") or None,
        mode=mode,
        modules=configuration.values(settings, "module"),
        compress=configuration.value(settings, "compress"),
        rescue=configuration.value(settings, "rescue"),
        cmdline=configuration.value(settings, "cmdline"),
        includes=tuple(includes),
        features=configuration.values(settings, "feature"),
        without=configuration.values(settings, "no-feature"),
        hooks=tuple(Path(name) for name in configuration.values(settings, "hook")),
        cache=None if settings["no-cache"][0].value else Path(folder) if folder else default_folder(),
    )
    live = sys.stderr.isatty() and not quiet

    def progress(step: str) -> None:
        if live:
            print(f"\r\033[K{step} ...", end="", file=sys.stderr, flush=True)

    start = time.monotonic()
    try:
        result = build(spec, progress)
    finally:
        if live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
    for warning in result.warnings:
        print(f"pyinit-image: warning: {warning}", file=sys.stderr)
    seconds = time.monotonic() - start
    if options.json:
        report = {
            "image": os.fsencode(options.output).decode("utf-8", "replace"),
            "kernel": result.kernel_version,
            "mode": mode,
            "bytes": len(result.image),
            "unpacked": result.unpacked,
            "entries": len(result.entries),
            "layers": [
                {"name": layer.name, "bytes": len(layer.packed), "cached": layer.cached}
                for layer in result.layers
            ],
            "seconds": round(seconds, 3),
            "warnings": list(result.warnings),
        }
        print(json.dumps(report))
    elif not quiet:
        print(
            f"{printable(str(options.output))}: kernel {printable(result.kernel_version)}, {mode}, "
            f"{_size(len(result.image))} ({_size(result.unpacked)} unpacked), {len(result.entries)} entries, "
            f"{seconds:.1f} s"
        )
    return 0


def _config(options: argparse.Namespace) -> int:
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


def _ls(options: argparse.Namespace) -> int:
    members = _members(options.image)
    if options.by_reason:
        manifest = parse_manifest(_file(members, MANIFEST_PATH))
        totals: dict[str, list[int]] = {}
        for path, member in members.items():
            source = manifest[path]["source"] if path in manifest else "base"
            total = totals.setdefault(source, [0, 0])
            total[0] += 1
            total[1] += len(member.data)
        print(f"{'bytes':>10} {'entries':>7}  for")
        for source, (count, size) in sorted(totals.items(), key=lambda item: -item[1][1]):
            print(f"{size:>10} {count:>7}  {printable(source)}")
        return 0
    for path, member in sorted(members.items()):
        if not options.long:
            print(printable(path))
            continue
        length = "{}, {}".format(*member.device) if stat.S_ISCHR(member.mode) else str(len(member.data))
        owner = f"{member.uid:>4} {member.gid:>4}"
        target = f" -> {printable(member.data)}" if stat.S_ISLNK(member.mode) else ""
        print(f"{stat.filemode(member.mode)} {owner} {length:>9} {printable(path)}{target}")
    return 0


def _cat(options: argparse.Namespace) -> int:
    sys.stdout.buffer.write(_file(_members(options.image), options.path))
    return 0


def _explain(options: argparse.Namespace) -> int:
    members = _members(options.image)
    manifest = parse_manifest(_file(members, MANIFEST_PATH))
    what = options.what
    found = archive.lookup(members, what) if "/" in what else None
    paths = [found] if found else [path for path in manifest if path.rpartition("/")[2] == what]
    if not paths and "/" not in what:
        name = kmods.canonical(what)
        paths = [path for path in manifest if ".ko" in path and kmods.module_name(path) == name]
    paths = [path for path in paths if path in manifest]
    if not paths:
        config = parse_config(_file(members, CONFIG_PATH))
        of = f"mode {printable(config.mode)}, kernel {printable(config.kernel)}"
        print(f"{printable(what)}: not in this image ({of})", file=sys.stderr)
        if MODULES_PATH in members and "/" not in what:
            index = parse_modules(members[MODULES_PATH].data)
            name = kmods.canonical(what)
            if name in index.builtin:
                print("It is a module that is built into the kernel.", file=sys.stderr)
                return 1
            near = closest(name, sorted(index.modules), 2)
            if near:
                print(f"Did you mean {printable(near)}?", file=sys.stderr)
        if "/" not in what:
            print("If it is a kernel module, add it with --module; a file, with --include.", file=sys.stderr)
        return 1
    for path in sorted(paths):
        for depth, (step, reason) in enumerate(chain(manifest, path)):
            print(f"{'  ' * depth}{'<- ' if depth else ''}{printable(step)}: {printable(reason)}")
        member = members[path]
        target = archive.lookup(members, path)
        if stat.S_ISLNK(member.mode) and target is not None:
            print(f"  (a symbolic link to {printable(member.data)})")
    return 0


def _diff(options: argparse.Namespace) -> int:
    try:
        changes = diff.compare(_members(options.old), _members(options.new))
    except BuildError as error:
        print(f"pyinit-image: {error}", file=sys.stderr)
        if error.hint:
            print(f"pyinit-image: {error.hint}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps([dataclasses.asdict(change) for change in changes]))
        return 1 if changes else 0
    for change in changes:
        why = f"  ({printable(' <- '.join(change.reasons))})" if change.reasons else ""
        print(f"{change.kind:<7} {change.after - change.before:>+10} {printable(change.path)}{why}")
    if changes:
        print(f"{len(changes)} differences, {sum(c.after - c.before for c in changes):+} bytes unpacked")
    return 1 if changes else 0


def _extract(options: argparse.Namespace) -> int:
    for line in archive.extract(_members(options.image), options.directory):
        print(f"pyinit-image: left out {printable(line)}", file=sys.stderr)
    return 0


def _members(image: Path) -> dict[str, cpio.Member]:
    content, _ = read_regular(image)
    return archive.tree(archive.read(content))


def _file(members: dict[str, cpio.Member], path: str) -> bytes:
    """The content of a file; links are followed."""
    here: str | None = path
    for _ in range(40):
        here = archive.lookup(members, here) if here is not None else None
        member = members.get(here or "")
        if here is None or member is None:
            raise BuildError(f"{printable(path)} is not in this image")
        if stat.S_ISREG(member.mode):
            return member.data
        if not stat.S_ISLNK(member.mode):
            break
        target = member.data.decode("utf-8", "surrogateescape")
        here = target if target.startswith("/") else f"{here.rpartition('/')[0]}/{target}"
    raise BuildError(f"{printable(path)} is not a regular file")


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
