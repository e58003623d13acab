"""Which logical volumes and arrays a boot asks for: by words, by root=, by what the builder found."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pyinit.config.volumes import (
    Array,
    Volume,
    VolumeWords,
    array_uuid,
    parse_sealed_arrays,
    parse_sealed_volumes,
    volume_of_path,
)
from pyinit.storage import SEALED_ARRAYS, SEALED_VOLUMES, asked_paths, read_sealed
from pyinit.storage.lvm import Lvm
from pyinit.storage.md import Md

if TYPE_CHECKING:
    from pyinit.context import Context


def make_lvm(context: Context) -> Lvm | None:
    """The assembler for logical volumes; None when nothing is asked for."""
    words = context.config.volumes or VolumeWords()
    if not words.lvm:
        return None
    sealed = read_sealed(SEALED_VOLUMES, parse_sealed_volumes)
    paths = asked_paths(context)
    needed = [path for path, word in paths.items() if word != "resume="]
    volumes = wanted_volumes(words, needed, sealed, beside=paths)
    if not volumes and not words.auto:
        return None
    return Lvm(
        volumes,
        words.auto,
        words.lvm_conf,
        context.children,
        context.modules,
        context.console,
        context.may_resume,
        volume_of_path(context.config.resume),
    )


def make_md(context: Context) -> Md | None:
    """The assembler for arrays; None when nothing is asked for."""
    words = context.config.volumes or VolumeWords()
    if not words.md:
        return None
    sealed = read_sealed(SEALED_ARRAYS, parse_sealed_arrays)
    uuids, labels = wanted_arrays(words, list(asked_paths(context)), sealed)
    if not uuids and not labels and not words.auto:
        return None
    return Md(
        uuids, labels, words.auto, context.children, context.console, context.modules, context.may_resume
    )


def wanted_volumes(
    words: VolumeWords, paths: list[str], sealed: list[Volume], beside: Iterable[str] = ()
) -> list[Volume]:
    """The volumes that are asked for, each once; what the builder found counts when nothing else does.

    ``beside`` are paths of devices that the root does not lie on: they do not say which volumes it needs.
    """
    named, more = ([volume for path in some if (volume := volume_of_path(path))] for some in (paths, beside))
    asked = [*words.volumes, *named]
    return list(dict.fromkeys([*(asked or sealed), *more]))


def wanted_arrays(words: VolumeWords, paths: list[str], sealed: list[Array]) -> tuple[set[str], set[str]]:
    """The UUIDs and the names of the arrays that are asked for."""
    uuids, labels = set(words.arrays), set()
    rows = sealed if words.md_conf else []
    for path in paths:
        if path.startswith("/dev/md"):
            # /dev/md0 and /dev/md/0 are the array of that name, unless mdadm.conf says otherwise.
            labels.add(path.removeprefix("/dev/md").removeprefix("/"))
    for row in rows:
        if uuid := array_uuid(row.uuid):
            uuids.add(uuid)
        elif row.name:
            labels.add(row.name)
    return uuids, {label for label in labels if label}
