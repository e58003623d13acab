"""The layers of an image, and the cache that keeps them.

The kernel unpacks one archive after another, each compressed by itself (``Documentation/driver-api/
early-userspace/buffer-format.rst``), so an image is made of layers:

======== ===================================================== =====================================
early    microcode, uncompressed as the kernel wants it        made every time, nothing but copied
system   Python, pyinit, udev, the tools of the rescue shell   kept
modules  kernel modules, their firmware and indexes            kept
settings configuration, features, included files, the manifest made every time
======== ===================================================== =====================================

A layer is kept with everything that was looked at when it was made (:mod:`.trace`), and used again as long as
all of that is the same. It never matters whether one comes from the cache: the bytes are equal.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyinit.text import printable

from .errors import BuildError
from .plan import Entry
from .trace import Trace

#: Of the files in the cache; another one is not read.
SCHEMA = 1
#: Bytes that the cache may take; the layers that were not used for the longest time go first.
MAX_BYTES = 512 << 20
SUFFIX = ".layer"


@dataclass(frozen=True, slots=True)
class Layer:
    """One archive of an image."""

    name: str
    entries: tuple[Entry, ...]
    packed: bytes = field(repr=False)
    """The archive as it is in the image."""
    unpacked: int
    """Bytes of the archive before compression."""
    warnings: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What later layers want to know of it."""
    cached: bool = False


class Store:
    """A directory with layers. Nothing that goes wrong in it stops a build: the layer is made again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problem = self._problem()
        """Why the cache is not used; empty when it is."""

    def get(self, name: str, key: Mapping[str, Any]) -> Layer | None:
        """The layer that was made with ``key``, if everything it was made of is unchanged."""
        if self.problem:
            return None
        path = self._path(name, key)
        try:
            with open(path, "rb") as stream:
                raw = json.loads(stream.readline())
                packed = stream.read()
            trace = Trace(raw["looked"], raw["listed"])
            if raw["schema"] != SCHEMA or not trace.holds():
                return None
            if hashlib.sha256(packed).hexdigest() != raw["sha256"]:
                return None
            entries = tuple(_entry(row) for row in raw["entries"])
            layer = Layer(name, entries, packed, raw["unpacked"], tuple(raw["warnings"]), raw["notes"], True)
            os.utime(path)
            return layer
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError):
            return None

    def put(self, key: Mapping[str, Any], layer: Layer, traces: Iterable[Trace]) -> None:
        """Keep ``layer``, unless a change of what it was made of could go unnoticed."""
        traces = list(traces)
        if self.problem or not all(trace.sure for trace in traces):
            return
        head = {
            "schema": SCHEMA,
            "looked": {path: mark for trace in traces for path, mark in trace.looked.items()},
            "listed": {path: mark for trace in traces for path, mark in trace.listed.items()},
            "sha256": hashlib.sha256(layer.packed).hexdigest(),
            "unpacked": layer.unpacked,
            "warnings": layer.warnings,
            "notes": layer.notes,
            "entries": [_row(entry) for entry in layer.entries],
        }
        temporary = ""
        try:
            fd, temporary = tempfile.mkstemp(dir=self.folder, prefix=".new-")
            with open(fd, "wb") as stream:
                stream.write(json.dumps(head, separators=(",", ":")).encode() + b"\n")
                stream.write(layer.packed)
            os.rename(temporary, self._path(layer.name, key))
            self._prune()
        except OSError:
            if temporary:
                Path(temporary).unlink(missing_ok=True)

    def _path(self, name: str, key: Mapping[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{name}-{digest[:32]}{SUFFIX}"

    def _problem(self) -> str:
        """Make the directory. What others can write to would let them choose what root boots."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.folder.stat()
        except OSError as error:
            return f"{printable(str(self.folder))}: {error.strerror}"
        if status.st_uid != os.geteuid():
            return f"{printable(str(self.folder))} belongs to user {status.st_uid}, not to {os.geteuid()}"
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"{printable(str(self.folder))} can be written to by others"
        return ""

    def _prune(self) -> None:
        found = [(path.stat(), path) for path in self.folder.glob(f"*{SUFFIX}")]
        total = sum(status.st_size for status, _ in found)
        for status, path in sorted(found, key=lambda item: item[0].st_mtime_ns):
            if total <= MAX_BYTES:
                return
            path.unlink(missing_ok=True)
            total -= status.st_size


def default_folder() -> Path:
    """Where the command keeps layers (https://specifications.freedesktop.org/basedir-spec/)."""
    if os.geteuid() == 0:
        return Path("/var/cache/pyinit-image")
    above = os.environ.get("XDG_CACHE_HOME", "")
    return Path(above if above.startswith("/") else os.path.expanduser("~/.cache"), "pyinit-image")


def own_places() -> list[str]:
    """Where the code is that makes layers and that goes into them: another copy of it makes other layers."""
    import pyinit

    return [str(Path(__file__).parent), str(Path(pyinit.__file__).parent), sys.prefix]


def own_trace() -> Trace:
    """The code that makes layers and that goes into them."""
    trace = Trace()
    for top in own_places()[:2]:
        for directory, names, files in os.walk(top):
            names[:] = sorted(name for name in names if name != "__pycache__")
            sources = sorted(name for name in files if name.endswith(".py"))
            trace.list(directory, [*names, *files])
            for name in sources:
                trace.look(os.path.join(directory, name))
    # The code is not read again by a process that has already imported it.
    trace.sure = True
    return trace


def merge(layers: Iterable[Layer]) -> dict[str, Entry]:
    """The entries of several layers; :class:`BuildError` when two want the same path differently."""
    merged: dict[str, Entry] = {}
    for layer in layers:
        for entry in layer.entries:
            old = merged.setdefault(entry.path, entry)
            if not old.same(entry):
                raise BuildError(
                    f"{printable(entry.path)} is wanted twice with different content: "
                    f"{old.reason}; {entry.reason}"
                )
    return merged


def _row(entry: Entry) -> list[Any]:
    data = entry.data if stat.S_ISLNK(entry.mode) else b""
    row = dataclasses.replace(entry, data=b"")
    return [data.hex(), *(getattr(row, item.name) for item in dataclasses.fields(row) if item.name != "data")]


def _entry(row: list[Any]) -> Entry:
    data, path, mode, device, *rest = row
    return Entry(path, mode, bytes.fromhex(data), (device[0], device[1]), *rest)
