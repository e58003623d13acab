"""The commands that look into images: ls, cat, explain, diff, extract."""

from __future__ import annotations

import argparse
import dataclasses
import json
import stat
import sys
from collections.abc import Mapping
from typing import Any

from pyinit.config.distance import closest
from pyinit.config.sealed import CONFIG_PATH, MODULES_PATH, parse_config, parse_modules
from pyinit.text import printable

from .. import archive, cpio, diff, kmods
from ..errors import BuildError
from ..plan import MANIFEST_PATH, Manifest, chain, parse_manifest
from . import show


def ls(options: argparse.Namespace) -> int:
    """``pyinit-image ls``."""
    segments = show.segments(options, options.image)
    members = archive.tree(segments)
    manifest = (
        parse_manifest(show.content(members, MANIFEST_PATH))
        if MANIFEST_PATH in members
        else Manifest({}, {}, ())
    )
    if options.by_reason and not manifest.entries:
        raise BuildError(
            "this image has no manifest: it was made by another program",
            hint="ls -l shows the size of each file.",
        )
    packed = _packed(segments) if options.by_reason or options.json else {}
    if options.by_reason:
        return _by_reason(options, members, manifest, packed)
    if options.json:
        print(json.dumps([_row(path, member, manifest, packed) for path, member in sorted(members.items())]))
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


def cat(options: argparse.Namespace) -> int:
    """``pyinit-image cat``."""
    rest = memoryview(show.content(show.members(options, options.image), options.path))
    # With PYTHONUNBUFFERED a write may take a part only, and say nothing of a reader that went away.
    while rest:
        rest = rest[sys.stdout.buffer.write(rest) :]
    return 0


def explain(options: argparse.Namespace) -> int:
    """``pyinit-image explain``; status 1 for what is not in the image."""
    members = show.members(options, options.image)
    if MANIFEST_PATH not in members:
        raise BuildError(
            "this image has no manifest: it was made by another program, which does not say why",
            hint="pyinit-image ls shows what is in it, pyinit-image diff what another image has.",
        )
    manifest = parse_manifest(show.content(members, MANIFEST_PATH))
    paths = _find(members, manifest, options.what)
    if not paths:
        return _absent(options, members, manifest)
    if options.json:
        print(json.dumps([_chain(manifest, path) for path in paths]))
        return 0
    for path in paths:
        for depth, (step, reason) in enumerate(_steps(manifest, path)):
            shown = f"{printable(step)}: {printable(reason)}" if step else printable(reason)
            print(f"{'  ' * depth}{'<- ' if depth else ''}{shown}")
        if stat.S_ISLNK(members[path].mode) and archive.lookup(members, path) is not None:
            print(f"  (a symbolic link to {printable(members[path].data)})")
    return 0


def compare(options: argparse.Namespace) -> int:
    """``pyinit-image diff``."""
    try:
        changes = diff.compare(show.members(options, options.old), show.members(options, options.new))
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


def extract(options: argparse.Namespace) -> int:
    """``pyinit-image extract``."""
    for line in archive.extract(show.members(options, options.image), options.directory):
        print(f"pyinit-image: left out {printable(line)}", file=sys.stderr)
    return 0


def _by_reason(
    options: argparse.Namespace,
    members: Mapping[str, cpio.Member],
    manifest: Manifest,
    packed: Mapping[str, int],
) -> int:
    totals: dict[str, list[int]] = {}
    for path, member in members.items():
        source = manifest.entries[path]["source"] if path in manifest.entries else "base"
        total = totals.setdefault(source, [0, 0, 0])
        total[0] += 1
        total[1] += len(member.data)
        total[2] += packed.get(path, 0)
    rows = sorted(totals.items(), key=lambda item: (-item[1][2], item[0]))
    if options.json:
        names = ("entries", "bytes", "packed")
        print(json.dumps({source: dict(zip(names, total, strict=True)) for source, total in rows}))
        return 0
    print(f"{'packed':>10} {'bytes':>10} {'entries':>7}  for")
    for source, (count, size, small) in rows:
        print(f"{small:>10} {size:>10} {count:>7}  {printable(source)}")
    return 0


def _packed(segments: list[archive.Segment]) -> dict[str, int]:
    """An estimate of what each path takes in the image."""
    result: dict[str, int] = {}
    for segment in segments:
        weights = [show.weigh(member.data) for member in segment.members]
        total = sum(weights) or 1
        for member, weight in zip(segment.members, weights, strict=True):
            path = "/" + member.name.decode("utf-8", "surrogateescape").lstrip("./")
            result[path] = segment.size * weight // total
    return result


def _row(path: str, member: cpio.Member, manifest: Manifest, packed: Mapping[str, int]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "path": printable(path),
        "mode": stat.filemode(member.mode),
        "uid": member.uid,
        "gid": member.gid,
        "bytes": len(member.data),
        "packed": packed.get(path, 0),
    }
    if stat.S_ISLNK(member.mode):
        row["target"] = printable(member.data)
    if stat.S_ISCHR(member.mode) or stat.S_ISBLK(member.mode):
        row["device"] = list(member.device)
    if path in manifest.entries:
        row |= {"source": manifest.entries[path]["source"], "reason": manifest.entries[path]["reason"]}
    return row


def _find(members: dict[str, cpio.Member], manifest: Manifest, what: str) -> list[str]:
    """The paths that ``what`` stands for: a path, a kernel module, a file name, a directory's name."""
    if "/" in what:
        found = archive.lookup(members, what)
        return [found] if found in manifest.entries else []
    name = kmods.module_name(what)
    modules = [path for path in manifest.entries if ".ko" in path and kmods.module_name(path) == name]
    named = [path for path in manifest.entries if path.rpartition("/")[2] == what and path in members]
    files = [path for path in named if not stat.S_ISDIR(members[path].mode)]
    return sorted({*modules, *files}) or sorted(named)


def _steps(manifest: Manifest, path: str) -> list[tuple[str, str]]:
    """The chain of reasons; a reason that has one itself comes as steps without a path."""
    steps = []
    for step, reason in chain(manifest.entries, path):
        first, *rest = reason.split(" <- ")
        steps.append((step, first))
        steps += [("", text) for text in rest]
    return steps


def _chain(manifest: Manifest, path: str) -> dict[str, Any]:
    steps = [
        {"path": printable(step), "reason": printable(reason)} if step else {"reason": printable(reason)}
        for step, reason in _steps(manifest, path)
    ]
    return {"path": printable(path), "chain": steps}


def _absent(options: argparse.Namespace, members: dict[str, cpio.Member], manifest: Manifest) -> int:
    """Tell why something is not in the image."""
    what = options.what
    config = parse_config(show.content(members, CONFIG_PATH))
    of = f"mode {printable(config.mode)}, kernel {printable(config.kernel)}"
    name = kmods.module_name(what)
    why, hint = "", ""
    if MODULES_PATH in members and name in parse_modules(members[MODULES_PATH].data).builtin:
        why = "it is a module that is built into the kernel"
    elif reason := next((manifest.absent[key] for key in (what, name) if key in manifest.absent), ""):
        why = reason
        hint = f"To have it all the same: --module {name}" if name in manifest.others else ""
    elif name in manifest.others:
        why = {
            "list": "mode list has what is named, and it was not, nor does anything named need it",
            "generic": "mode generic has the drivers of disks, keyboards and file systems, and it is none",
            "host": "mode host: no device of the machine claims it, and the safety margin does not have it",
        }.get(config.mode, "nothing asked for it")
        hint = f"To have it: --module {name}"
    elif "/" not in what:
        near = closest(name, [*manifest.others, *(kmods.module_name(p) for p in members if ".ko" in p)], 2)
        why = f"kernel {printable(config.kernel)} has no module of that name, and no file has it"
        hint = f"Did you mean {printable(near)}?" if near else "To have a file: --include"
    else:
        why = "nothing asked for it"
        hint = f"To have it: --include {printable(what)}"
    if options.json:
        row = {"what": printable(what), "included": False, "reason": printable(why), "hint": hint}
        print(json.dumps(row))
        return 1
    print(f"{printable(what)}: not in this image ({of}): {printable(why)}", file=sys.stderr)
    if hint:
        print(hint, file=sys.stderr)
    return 1
