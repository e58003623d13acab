from __future__ import annotations

import gzip
import lzma
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pyinit_qemu.disks.cache import Cache
from pyinit_qemu.kernel import KernelError, unpacked, vmlinux

NOTE = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", 0x1000000)
OTHER_NOTE = struct.pack("<III4sI", 4, 1, 6, b"Xen\0", 0)


def elf(notes: bytes = OTHER_NOTE + NOTE) -> bytes:
    """A 64-bit ELF file whose second program header is its notes."""
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 2)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 0, 0, 0)
    note = struct.pack("<IIQQQQQQ", 4, 4, 176, 0, 0, len(notes), len(notes), 4)
    return header.ljust(64, b"\0") + load + note + notes + b"code" * 100


def bzimage(payload: bytes, sectors: int = 2) -> bytes:
    setup = bytearray((sectors + 1) * 512)
    setup[0x1F1] = sectors
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", setup, 0x248, 16, len(payload))
    return bytes(setup) + b"decompressor 16." + payload + b"trailing"


COMPRESSORS: list[Callable[[bytes], bytes]] = [
    lambda data: lzma.compress(data, check=lzma.CHECK_CRC32) + b"\0\1\0\0",
    lambda data: zstandard.ZstdCompressor().compress(data) + b"\0\1\0\0",
    lambda data: gzip.compress(data) + b"\0\1\0\0",
]


@pytest.mark.parametrize("compress", COMPRESSORS)
def test_the_kernel_inside(compress: Callable[[bytes], bytes]) -> None:
    assert vmlinux(bzimage(compress(elf()))) == elf()


def test_an_elf_kernel_is_itself() -> None:
    assert vmlinux(elf()) == elf()


@pytest.mark.parametrize(
    "image, reason",
    [
        (b"", "setup header"),
        (bytes(4096), "setup header"),
        (bzimage(b"\x02\x21\x4c\x18lz4"), "unknown compression, the data begin with 02214c18"),
        (bzimage(gzip.compress(elf())[:30]), "no ELF|without CONFIG_PVH"),
        (bzimage(b"\xfd7zXZ\0" + bytes(50)), "damaged"),
        (bzimage(gzip.compress(b"something else")), "no ELF"),
        (bzimage(gzip.compress(elf(OTHER_NOTE))), "without CONFIG_PVH"),
    ],
)
def test_what_cannot_be_unpacked(image: bytes, reason: str) -> None:
    with pytest.raises(KernelError, match=reason):
        vmlinux(image)


@given(st.binary(max_size=200), st.integers(0, 300))
def test_hostile_kernels(noise: bytes, place: int) -> None:
    damaged = bytearray(elf())
    damaged[place : place + len(noise)] = noise
    for image in (bzimage(noise), bzimage(gzip.compress(bytes(damaged)))):
        try:
            assert vmlinux(image)[:4] == b"\x7fELF"
        except KernelError:
            pass


def test_unpacked_once(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(bzimage(gzip.compress(elf())))
    cache = Cache(tmp_path / "cache")
    made = unpacked(kernel, cache)
    assert made.read_bytes() == elf()
    kernel.touch()
    assert unpacked(kernel, cache) == made


def test_a_kernel_that_cannot_be_unpacked_is_used_as_it_is(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(bzimage(b"\x02\x21\x4c\x18"))
    cache = Cache(tmp_path / "cache")
    assert unpacked(kernel, cache) == unpacked(kernel, cache) == kernel
