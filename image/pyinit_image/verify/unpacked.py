"""An image as the kernel leaves it in memory, without unpacking it anywhere.

The kernel (``init/initramfs.c``) makes no parent directories, follows the links that it has unpacked, lets a
later member take the place of an earlier one, and gives hard links the content of the one that has any.
Before all that it unpacks an archive of its own, with ``/dev``, ``/dev/console`` and ``/root``
(``usr/default_cpio_list``).
"""

from __future__ import annotations

import dataclasses
import posixpath
import stat
from collections.abc import Iterable

from pyinit_image import archive, cpio
from pyinit_image.sysroot import MAX_LINKS

#: Directories that the kernel itself has made.
KERNELS_OWN = ("/dev", "/root")


class Unpacked:
    """The entries of an image by their path, links in the directory part resolved."""

    def __init__(self, segments: Iterable[archive.Segment]) -> None:
        self.nodes: dict[str, cpio.Member] = {}
        self.implied: set[str] = set()
        """Directories that no member makes."""
        self.orphans: list[str] = []
        """Paths of members that come before their directory."""
        self.twice: list[str] = []
        """Paths that one archive has twice, with different content."""
        self.upwards: list[bytes] = []
        """Names with ``..``, which are in no other list."""
        self.last = ""
        """The path of the last member."""
        for path in KERNELS_OWN:
            self._imply(path)
        for segment in segments:
            self._unpack(segment)

    def _unpack(self, segment: archive.Segment) -> None:
        contents = {m.inode: m.data for m in segment.members if m.links > 1 and m.data}
        here: dict[str, cpio.Member] = {}
        for member in segment.members:
            parts = [part for part in member.name.split(b"/") if part not in (b"", b".")]
            if b".." in parts:
                self.upwards.append(member.name)
                continue
            if not parts:
                continue
            if stat.S_ISREG(member.mode) and member.links > 1 and not member.data:
                member = dataclasses.replace(member, data=contents.get(member.inode, b""))
            path = "/" + b"/".join(parts).decode("utf-8", "surrogateescape")
            directory, _, name = path.rpartition("/")
            if directory:
                found = self.resolve(directory)
                above = self.nodes.get(found or "")
                if found is None or above is None or not stat.S_ISDIR(above.mode):
                    self.orphans.append(path)
                    # As if it were there: what else is wrong is not to be hidden by this.
                    self._imply(directory)
                    found = directory
                path = f"{found}/{name}"
            before = here.get(path)
            if before is not None and not stat.S_ISDIR(before.mode) and not _same(before, member):
                self.twice.append(path)
            here[path] = self.nodes[path] = member
            self.implied.discard(path)
            self.last = path

    def _imply(self, path: str) -> None:
        while path != "/" and path not in self.nodes:
            self.nodes[path] = cpio.Member(path[1:].encode("utf-8", "surrogateescape"), stat.S_IFDIR | 0o755)
            self.implied.add(path)
            path = posixpath.dirname(path)

    def resolve(self, path: str) -> str | None:
        """Where ``path`` ends when all links are followed; None when that is nowhere."""
        for _ in range(MAX_LINKS):
            found = archive.lookup(self.nodes, path)
            node = self.nodes.get(found or "")
            if found is None or node is None:
                return found
            if not stat.S_ISLNK(node.mode):
                return found
            target = node.data.decode("utf-8", "surrogateescape")
            path = posixpath.join(posixpath.dirname(found), target)
        return None

    def file(self, path: str) -> cpio.Member | None:
        """The regular file that ``path`` leads to."""
        node = self.nodes.get(self.resolve(path) or "")
        return node if node is not None and stat.S_ISREG(node.mode) else None

    def text(self, path: str) -> str:
        """The file that ``path`` leads to as text; empty when there is none."""
        node = self.file(path)
        return node.data.decode("utf-8", "surrogateescape") if node is not None else ""

    def files(self) -> list[tuple[str, cpio.Member]]:
        """Path and member of all regular files, sorted."""
        return sorted(
            ((path, node) for path, node in self.nodes.items() if stat.S_ISREG(node.mode)),
            key=lambda item: item[0],
        )

    def names(self, directory: str) -> list[str]:
        """The sorted names in ``directory``."""
        found = self.resolve(directory)
        prefix = f"{found}/"
        return sorted(
            path[len(prefix) :]
            for path in self.nodes
            if path.startswith(prefix) and "/" not in path[len(prefix) :]
        )


def executable(node: cpio.Member | None) -> bool:
    """Whether the kernel would execute it for root: a regular file with any of its x bits."""
    return node is not None and stat.S_ISREG(node.mode) and bool(node.mode & 0o111)


def _same(one: cpio.Member, other: cpio.Member) -> bool:
    return (one.mode, one.data, one.device) == (other.mode, other.data, other.device)
