"""What the kernel makes of an image is what reading it back says."""

from __future__ import annotations

import json
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_image import archive, compress, cpio
from pyinit_image.cpio import Member
from pyinit_qemu import Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks.filesystems import Ext4
from pyinit_qemu.shell import Shell
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

FILE, DIRECTORY, LINK = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK

#: Prints what is below /odd: names and contents as hexadecimal digits.
LOOK = (
    "import os,json,stat;"
    "w=lambda p:[(p.hex(),os.lstat(p).st_mode,(os.readlink(p) if os.path.islink(p) else open(p,'rb').read() "
    "if os.path.isfile(p) else b'').hex())]+([r for n in os.listdir(p) for r in w(p+b'/'+n)] "
    "if os.path.isdir(p) and not os.path.islink(p) else []);"
    "print(json.dumps(w(b'/odd')))"
)


def odd() -> list[Member]:
    """Members with names, modes and contents that are rare, and the same on every run."""
    dice = random.Random(1)
    members = [
        Member(b"odd", DIRECTORY | 0o755),
        Member(b"odd/line\nbreak", FILE | 0o644, b"1"),
        Member(b"odd/\xff\xfe", FILE | 0o600, b"2"),
        Member(b"odd/ blank ", FILE | 0o444, b""),
        Member(b"odd/" + b"n" * 255, FILE | 0o755, bytes(range(256))),
        Member(b"odd/link", LINK | 0o777, b"\xff not there\n"),
        Member(b"odd/deep", DIRECTORY | 0o1777),
        Member(b"odd/deep/set", FILE | 0o6755, b"#!/bin/sh\n"),
        Member(b"odd/TRAILER!!", FILE | 0o644, b"not the end"),
    ]
    for number in range(40):
        name = bytes(dice.choice(range(1, 256)) for _ in range(dice.randint(1, 30))).replace(b"/", b"_")
        content = dice.randbytes(dice.randint(0, 9))
        members.append(Member(b"odd/%d" % number + name, FILE | dice.choice((0o600, 0o644, 0o755)), content))
    return members


@pytest.mark.parametrize("method", ["none", "zstd", "gzip", "xz", "lz4"])
def test_the_kernel_unpacks_what_is_read_back(
    boot: Callable[..., Machine], listed: Path, bookworm: DebianRoot, tmp_path: Path, method: str
) -> None:
    first = compress.compress(b"".join(cpio.write(odd())), method)
    # Whatever a stream ends with, the next archive starts at a multiple of four.
    image = first + bytes(-len(first) % 4 + 4) + listed.read_bytes()
    (tmp_path / "image").write_bytes(image)
    vm = boot(kernel=bookworm.kernel, initrd=tmp_path / "image", append="quiet rd.break=cmdline")
    shell = Shell.rescue(vm)
    seen = json.loads(shell.check(f'/usr/bin/python3 -c "{LOOK}"'))
    vm.stop()
    members = archive.tree(archive.read(image))
    expected = [
        (path.encode("utf-8", "surrogateescape").hex(), member.mode, member.data.hex())
        for path, member in members.items()
        if path == "/odd" or path.startswith("/odd/")
    ]
    assert sorted(map(tuple, seen)) == sorted(expected)


def test_layers_compressed_with_lz4_boot(
    boot: Callable[..., Machine],
    image: Callable[..., Path],
    bookworm: DebianRoot,
    small_disk: Callable[..., Path],
    witness_of: Callable[[Machine], Witness],
) -> None:
    """The one format in which the kernel has to find out where a layer ends."""
    initrd = image(mode="list", modules=("virtio_pci", "virtio_blk", "ext4"), compress="lz4")
    disk = small_disk(lambda tree: Ext4(tree, label="a-root"))
    vm = boot(kernel=bookworm.kernel, initrd=initrd, disks=(Disk(disk),), append="root=LABEL=a-root")
    assert witness_of(vm).root.type == "ext4"
