"""Files for an initramfs that somebody else has made, without unpacking it or making it again.

The kernel unpacks all archives of an image one after the other, and what comes later takes the place of what
was there (``Documentation/driver-api/early-userspace/buffer-format.rst``). So a second archive behind the
image adds hooks, scripts and configuration.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Mapping
from pathlib import Path

from pyinit.text import printable
from pyinit_image import archive
from pyinit_image.cpio import Member, write
from pyinit_image.errors import BuildError
from pyinit_qemu.disks.cache import Cache, digest_file

_LINKS = 40


def with_files(
    initrd: Path | str, files: Mapping[str, str | bytes], *, mode: int = 0o755, cache: Cache | None = None
) -> Path:
    """Return an image that is ``initrd`` with these files, path to content, added or put in place of others.

    Links of the image are followed, directories made where they are missing; ``mode`` is the permissions of
    the files. The result is kept in the cache. Raises :class:`pyinit_image.errors.BuildError` for an image
    that cannot be read and for a path that cannot be in it.
    """
    initrd = Path(initrd)
    contents = {name: data.encode() if isinstance(data, str) else data for name, data in files.items()}
    recipe = {
        "image": digest_file(initrd),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(contents.items())},
        "mode": mode,
        "format": 1,
    }

    def build(folder: Path) -> None:
        (folder / "initrd.img").write_bytes(append(initrd.read_bytes(), contents, mode))

    return (cache or Cache()).entry("appended", recipe, build) / "initrd.img"


def append(image: bytes, files: Mapping[str, bytes], mode: int = 0o755) -> bytes:
    """Return the bytes of ``image`` with an archive of ``files`` behind it. Errors as :func:`with_files`."""
    there = archive.tree(archive.read(image))
    members: list[Member] = []
    known: set[bytes] = set()
    added: set[str] = set()
    for name, data in files.items():
        try:
            name.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise BuildError(f"{printable(name)} cannot be the name of a file") from None
        path = _resolve(there, name)
        parents = path.split("/")[1:-1]
        for depth in range(1, len(parents) + 1):
            parent = "/" + "/".join(parents[:depth])
            member = there.get(parent)
            if member is None:
                member = Member(_bytes(parent), stat.S_IFDIR | 0o755)
                there[parent] = member
                members.append(member)
            elif not stat.S_ISDIR(member.mode):
                raise BuildError(f"{printable(name)} cannot be added: {printable(parent)} is no directory")
            known.add(_bytes(parent))
        if (old := there.get(path)) is not None and stat.S_ISDIR(old.mode):
            raise BuildError(f"{printable(name)} cannot be added: it is a directory")
        new = Member(_bytes(path), stat.S_IFREG | mode, data)
        if path not in added:
            added.add(path)
            there[path] = new
            members.append(new)
        elif there[path].data != data:
            raise BuildError(f"{printable(name)} and another name lead to the same file, {printable(path)}")
    # An archive that is not compressed begins at a multiple of 4 (init/initramfs.c, unpack_to_rootfs()).
    return image + bytes(-len(image) % 4) + b"".join(write(members, known=frozenset(known)))


def _bytes(path: str) -> bytes:
    return path[1:].encode("utf-8", "surrogateescape")


def _resolve(there: Mapping[str, Member], name: str) -> str:
    """The place in the image where ``name`` leads to, its last part included."""
    todo = [part for part in name.split("/") if part not in ("", ".")]
    if not todo or ".." in todo:
        raise BuildError(f"{printable(name)!r} is no path of a file in an image")
    here = ""
    followed = 0
    while todo:
        part = todo.pop(0)
        if part == "..":
            here = here.rpartition("/")[0]
            continue
        step = f"{here}/{part}"
        member = there.get(step)
        if member is None or not stat.S_ISLNK(member.mode):
            here = step
            continue
        followed += 1
        if followed > _LINKS:
            raise BuildError(f"{printable(name)} cannot be added: too many links on the way")
        target = member.data.decode("utf-8", "surrogateescape")
        here = "" if target.startswith("/") else here
        todo = [word for word in target.split("/") if word not in ("", ".")] + todo
    if not here:
        raise BuildError(f"{printable(name)} cannot be added: it leads to the root directory")
    return here
