"""Things that take long to make, made once: a folder per recipe, shared by all processes of a user.

An entry is built under a temporary name, synced, and renamed; a lock keeps two processes from building the
same one. So an interrupted build leaves nothing that could be taken for a finished one, and the next builder
removes the rest.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pyinit_qemu.disks.tools import Progress, silent

GIB = 1 << 30
_RECENT = 6 * 3600


def cache_folder() -> Path:
    """``$PYINIT_CACHE``, else ``$XDG_CACHE_HOME/pyinit``, else ``~/.cache/pyinit``."""
    if own := os.environ.get("PYINIT_CACHE"):
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification: a relative path is to be ignored.
    folder = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return folder / "pyinit"


def digest_file(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_tree(root: Path) -> str:
    """SHA-256 of a directory: names, modes, owners, times, link targets, device numbers and contents."""
    total = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        mark: list[object] = [str(path.relative_to(root)), status.st_mode, status.st_uid, status.st_gid]
        if stat.S_ISREG(status.st_mode):
            mark += [int(status.st_mtime), digest_file(path)]
        elif stat.S_ISLNK(status.st_mode):
            mark.append(os.readlink(path))
        elif stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode):
            mark.append(status.st_rdev)
        total.update(repr(mark).encode() + b"\n")
    return total.hexdigest()


class Cache:
    """A folder of entries ``<kind>/<key>/``; the least recently used go when ``cap`` bytes are exceeded."""

    def __init__(self, root: Path | None = None, cap: int = 24 * GIB) -> None:
        self.root = cache_folder() if root is None else root
        self.cap = cap

    def entry(
        self,
        kind: str,
        recipe: Mapping[str, object],
        build: Callable[[Path], None],
        progress: Progress = silent,
        *,
        prefix: str = "",
    ) -> Path:
        """The folder that ``build`` filled for this recipe, now or earlier.

        ``recipe`` holds everything the result depends on and must be JSON; ``build`` gets an empty folder.
        What it raises is passed on, and the folder is removed. ``prefix`` begins the folder's name, for
        people.
        """
        text = json.dumps(recipe, sort_keys=True, default=str)
        key = prefix + hashlib.sha256(text.encode()).hexdigest()[: 8 if prefix else 24]
        final = self.root / kind / key
        stamp = final / ".complete"
        if not _touch(stamp):
            final.parent.mkdir(parents=True, exist_ok=True)
            with self._lock(final, progress):
                if not _touch(stamp):
                    self._make(final, text, build)
                    self.prune(keep=final)
        return final

    def _make(self, final: Path, recipe: str, build: Callable[[Path], None]) -> None:
        work = final.with_name(f"{final.name}.new")
        remove(work)
        remove(final)
        work.mkdir()
        try:
            build(work)
            size = _allocated(work)
            (work / ".recipe.json").write_text(recipe + "\n")
            (work / ".complete").write_text(f"{size}\n")
            os.sync()
            work.rename(final)
        except BaseException:
            remove(work)
            raise

    @contextmanager
    def _lock(self, final: Path, progress: Progress) -> Iterator[None]:
        descriptor = os.open(
            final.with_name(f".{final.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress(f"waiting for another process that makes {final.parent.name}/{final.name}")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def prune(self, keep: Path | None = None) -> None:
        """Remove the least recently used entries until the cap holds; those of the last six hours stay."""
        entries: list[tuple[float, int, Path]] = []
        for stamp in self.root.glob("*/*/.complete"):
            try:
                entries.append((stamp.stat().st_mtime, int(stamp.read_text()), stamp.parent))
            except (OSError, ValueError):
                continue
        total = sum(size for _, size, _ in entries)
        for used, size, folder in sorted(entries):
            if total <= self.cap or used > time.time() - _RECENT:
                break
            if folder != keep:
                remove(folder)
                total -= size


def remove(path: Path) -> None:
    """Remove a file or a tree, read-only folders included; nothing there is fine.

    Raises ``OSError`` (EBUSY) and removes nothing when something is mounted in the tree: it would be emptied.
    """
    if not path.is_symlink() and path.is_dir():
        inside = os.fsencode(path.resolve()) + b"/"
        with open("/proc/self/mountinfo", "rb") as mounts:
            if any(_unescape(line.split(b" ")[4]).startswith(inside) for line in mounts):
                raise OSError(errno.EBUSY, "not removed, because something is mounted in it", str(path))
        # The stamp goes first: a removal that is interrupted must not leave an entry that looks complete.
        (path / ".complete").unlink(missing_ok=True)
        if os.geteuid() != 0:
            path.chmod(0o700)
            for folder, names, _ in os.walk(path):
                for name in names:
                    if not os.path.islink(closed := os.path.join(folder, name)):
                        os.chmod(closed, 0o700)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _unescape(field: bytes) -> bytes:
    """Undo the octal escapes of proc_pid_mountinfo(5)."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)


def _touch(stamp: Path) -> bool:
    try:
        os.utime(stamp)
    except OSError:
        return False
    return True


def _allocated(root: Path) -> int:
    """Bytes that a folder takes on the disk: images are sparse."""
    return sum(path.lstat().st_blocks * 512 for path in root.rglob("*"))
