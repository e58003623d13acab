"""A kernel without its decompressor.

Under TCG the decompressor that a ``bzImage`` starts with takes longer than most of what follows (XZ: 7 s).
QEMU boots the uncompressed ELF file inside it as well, by the PVH entry that x86 kernels built with
CONFIG_PVH announce in an ELF note. What differs for the guest: no address randomisation, and no boot_params
from a boot loader.

Formats: ``Documentation/arch/x86/boot.rst`` (setup header), ``include/xen/interface/elfnote.h``.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from pathlib import Path

import zstandard

from pyinit_qemu.disks.cache import Cache, digest_file

_PHYS32_ENTRY = 18
_PT_NOTE = 4


class KernelError(Exception):
    """Not a kernel that can be unpacked."""


def vmlinux(image: bytes) -> bytes:
    """Return the ELF kernel inside a bzImage. KernelError if there is none that QEMU can start."""
    if image[:4] == b"\x7fELF":
        return image
    if len(image) < 0x260 or image[0x202:0x206] != b"HdrS":
        raise KernelError("no x86 bzImage: the setup header is missing")
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[(sectors + 1) * 512 + offset :][:length]
    try:
        if payload.startswith(b"\xfd7zXZ\0"):
            kernel = lzma.LZMADecompressor().decompress(payload)
        elif payload.startswith(b"\x28\xb5\x2f\xfd"):
            kernel = zstandard.ZstdDecompressor().decompressobj().decompress(payload)
        elif payload.startswith(b"\x1f\x8b"):
            kernel = zlib.decompressobj(wbits=31).decompress(payload)
        else:
            raise KernelError(f"unknown compression, the data begin with {payload[:6].hex()}")
    except (lzma.LZMAError, zstandard.ZstdError, zlib.error) as error:
        raise KernelError(f"damaged: {error}") from error
    if kernel[:4] != b"\x7fELF":
        raise KernelError("what is compressed is no ELF file")
    if not _has_pvh_note(kernel):
        raise KernelError("built without CONFIG_PVH")
    return kernel


def _has_pvh_note(kernel: bytes) -> bool:
    if len(kernel) < 64 or kernel[4:6] != b"\x02\x01":  # 64 bits, little endian
        return False
    table, size, count = (
        *struct.unpack_from("<Q", kernel, 0x20),
        *struct.unpack_from("<HH", kernel, 0x36),
    )
    for number in range(count):
        header = kernel[table + number * size :][:56]
        if len(header) < 56 or struct.unpack_from("<I", header)[0] != _PT_NOTE:
            continue
        offset, length = struct.unpack_from("<Q", header, 8)[0], struct.unpack_from("<Q", header, 32)[0]
        notes = kernel[offset:][: min(length, 1 << 20)]
        place = 0
        while place + 12 <= len(notes):
            name, description, kind = struct.unpack_from("<III", notes, place)
            if kind == _PHYS32_ENTRY and notes[place + 12 :][:name] == b"Xen\0":
                return True
            place += 12 + -(-name // 4) * 4 + -(-description // 4) * 4
    return False


def unpacked(kernel: Path | str, cache: Cache | None = None) -> Path:
    """Return an ELF file of the same kernel, made once and kept; or ``kernel`` itself if it has none."""
    path = Path(kernel)

    def build(folder: Path) -> None:
        try:
            (folder / "vmlinux").write_bytes(vmlinux(path.read_bytes()))
        except KernelError as error:
            (folder / "reason").write_text(f"{error}\n")

    made = (cache or Cache()).entry("kernel", {"sha256": digest_file(path), "format": 1}, build) / "vmlinux"
    return made if made.exists() else path
