"""Compression of images, in the variants that the kernel's decompressors take (``lib/decompress_*.c``).

Compressed data are foreign data. :func:`decompress` raises nothing but :class:`BuildError` because of them
and stops as soon as there is more than the caller has room for.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import struct
import zlib
from collections.abc import Callable, Generator, Iterator

import lz4.block
import lzallright
import zstandard

from pyinit.text import printable

from .errors import BuildError

METHODS = ("zstd", "gzip", "xz", "lz4", "none")

#: Methods of which the kernel verifies a checksum. Summing up the bytes of each file as well would take it a
#: fifth of the time that it unpacks for.
CHECKED = ("zstd", "xz")

#: Level 19 with a shorter search: within 1.5 % of level 19 in two thirds of its time. Decompression costs the
#: same, and unchanged layers come out of the cache.
ZSTD_LEVEL = 19
ZSTD_SEARCH = {"search_log": 3, "target_length": 64, "strategy": zstandard.STRATEGY_BTULTRA2}
#: Bytes that one thread compresses: small enough that both cores of a small machine have work with the
#: largest layer of a small image. It sees an eighth of the window (8 MiB) of what comes before them: to look
#: at all of it, as zstd would have it at this level, takes longer and gains next to nothing.
ZSTD_JOB = {"job_size": 9 << 20, "overlap_log": 6}

#: By how many bytes at a time data are decompressed, where the format leaves a choice.
STEP = 1 << 20
#: The largest window in bytes, which a decompressor keeps beside its output: that of the kernel for zstd
#: (``lib/decompress_unzstd.c``). What xz needs beyond its dictionary fits in, too.
MAX_WINDOW = 1 << 27

#: Bytes in a block of the legacy format, all but the last (doc/lz4_Frame_format.md of lz4); the kernel
#: unpacks no other (``lib/decompress_unlz4.c``).
LZ4_BLOCK = 8 << 20
#: The longest that such a block can be when it is compressed (LZ4_COMPRESSBOUND in lz4.h).
LZ4_BOUND = LZ4_BLOCK + LZ4_BLOCK // 255 + 16
#: The largest block in bytes that the kernel unpacks (``lib/decompress_unlzo.c``), and what lzop writes.
LZO_BLOCK = 256 << 10

#: What a stream starts with. Of LZMA alone: the byte for the usual parameters, and the lowest one of the
#: size of the dictionary; the kernel looks at no more (``lib/decompress.c``), either.
MAGIC = {
    "zstd": b"\x28\xb5\x2f\xfd",
    "gzip": b"\x1f\x8b",
    "xz": b"\xfd7zXZ\x00",
    "lz4": b"\x02\x21\x4c\x18",
    "lzma": b"\x5d\x00",
    "bzip2": b"BZh",
    "lzo": b"\x89LZO\x00\r\n\x1a\n",
}


class TooLarge(BuildError):
    """Data that decompress to more than there is room for."""


def check_kernel(method: str, config: frozenset[str]) -> None:
    """Refuse a method that the kernel with this configuration (its lines; empty: unknown) cannot unpack."""
    if config and method != "none" and f"CONFIG_RD_{method.upper()}=y" not in config:
        able = [name for name in METHODS if f"CONFIG_RD_{name.upper()}=y" in config]
        raise BuildError(
            f"the kernel was built without CONFIG_RD_{method.upper()}: it cannot unpack --compress {method}",
            hint="It can unpack: " + ", ".join([*able, "none"]),
        )


def compress(data: bytes, method: str) -> bytes:
    """Compress ``data``; equal data and method give equal bytes on every machine."""
    if method == "none":
        return data
    if method == "zstd":
        # Given at least one worker thread, the result does not depend on how many there are.
        threads = max(1, min(os.cpu_count() or 1, 8))
        parameters = zstandard.ZstdCompressionParameters.from_level(
            ZSTD_LEVEL,
            threads=threads,
            source_size=len(data),
            write_checksum=True,
            **ZSTD_JOB,
            **ZSTD_SEARCH,
        )
        return zstandard.ZstdCompressor(compression_params=parameters).compress(data)
    if method == "gzip":
        return gzip.compress(data, 9, mtime=0)
    if method == "xz":
        # The kernel verifies no other check (Documentation/staging/xz.rst).
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 23}]
        return lzma.compress(data, lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=filters)
    if method == "lz4":
        return MAGIC["lz4"] + b"".join(_lz4_blocks(data))
    raise BuildError(f"unknown compression {method}", hint="Known are: " + ", ".join(METHODS))


def padded(packed: bytes) -> bytes:
    """``packed`` with zero bytes behind it, so that another archive can follow.

    What is not compressed must start at a multiple of four. The legacy format of lz4 has no end: the kernel
    takes the next four bytes for the length of a block, unless they are all zero.
    """
    return packed + bytes((4 if packed.startswith(MAGIC["lz4"]) else 0) + -len(packed) % 4)


def detect(data: bytes) -> str | None:
    """The name of the compression ``data`` starts with."""
    return next((name for name, magic in MAGIC.items() if data.startswith(magic)), None)


def decompress(data: bytes, offset: int, method: str, room: int) -> tuple[bytes, int]:
    """Decompress the one stream at ``offset`` of ``data``; return what was in it, and where it ends.

    Raises :class:`TooLarge` when that is more than ``room`` bytes, without unpacking much more than those
    (one block of lz4 is 8 MiB), and :class:`BuildError` for a damaged stream.
    """
    pieces: list[bytes] = []
    size = 0
    stream = _STREAMS[method](memoryview(data), offset)
    while True:
        try:
            piece = next(stream)
        except StopIteration as end:
            return b"".join(pieces), end.value
        except (
            ValueError,
            LookupError,
            EOFError,
            OSError,
            MemoryError,
            struct.error,
            zlib.error,
            lzma.LZMAError,
            zstandard.ZstdError,
            lz4.block.LZ4BlockError,
            lzallright.LZOError,
        ) as error:
            what = printable(str(error)) or type(error).__name__
            raise BuildError(f"the {method} stream at byte {offset} is damaged: {what}") from error
        size += len(piece)
        if size > room:
            raise TooLarge(f"the {method} stream at byte {offset} has more than {room} bytes in it")
        pieces.append(piece)


#: Yields what is in the stream at a place, in bounded pieces; returns where the stream ends.
_Stream = Generator[bytes, None, int]


def _portions(data: memoryview, at: int) -> Iterator[tuple[memoryview, int]]:
    """All from ``at`` on, in portions, each with its end: few bytes first, for there may be many streams."""
    size = 1 << 12
    while at < len(data):
        end = min(at + size, len(data))
        yield data[at:end], end
        at, size = end, min(2 * size, STEP)


def _ungzip(data: memoryview, at: int) -> _Stream:
    stream = zlib.decompressobj(31)
    for portion, end in _portions(data, at):
        rest: bytes | memoryview = portion
        while True:
            piece = stream.decompress(rest, STEP)
            rest = stream.unconsumed_tail
            yield piece
            if stream.eof:
                return end - len(stream.unused_data)
            if not rest and len(piece) < STEP:
                break
    raise ValueError("the stream is cut short")


def _until_eof(stream: lzma.LZMADecompressor | bz2.BZ2Decompressor, data: memoryview, at: int) -> _Stream:
    for portion, end in _portions(data, at):
        piece = stream.decompress(portion, STEP)
        while True:
            yield piece
            if stream.eof:
                return end - len(stream.unused_data)
            if stream.needs_input:
                break
            piece = stream.decompress(b"", STEP)
    raise ValueError("the stream is cut short")


def _unxz(data: memoryview, at: int) -> _Stream:
    return _until_eof(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=2 * MAX_WINDOW), data, at)


def _unlzma(data: memoryview, at: int) -> _Stream:
    return _until_eof(lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=2 * MAX_WINDOW), data, at)


def _unbzip2(data: memoryview, at: int) -> _Stream:
    return _until_eof(bz2.BZ2Decompressor(), data, at)


def _unzstd(data: memoryview, at: int) -> _Stream:
    end = _zstd_end(data, at)
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    with decompressor.stream_reader(data[at:end], read_across_frames=False) as stream:
        while piece := stream.read(STEP):
            yield piece
    return end


def _zstd_end(data: memoryview, at: int) -> int:
    """Where the frame at ``at`` ends: the reader of zstandard, which alone has a bound, does not tell.

    A header, blocks with 3 bytes in front (bit 0: the last one; bits 1 and 2: type; the others: size),
    perhaps a checksum of 4 bytes (RFC 8878, section 3.1.1).
    """
    head = data[at : at + 18]
    checked = zstandard.get_frame_parameters(head).has_checksum
    at += zstandard.frame_header_size(head)
    last = False
    while not last:
        block = int.from_bytes(data[at : at + 3], "little")
        last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
        # Type 1 is one byte and how often it comes.
        at += 3 + (1 if kind == 1 else size)
        if at > len(data):
            raise ValueError("the stream is cut short")
    at += 4 if checked else 0
    if at > len(data):
        raise ValueError("the stream is cut short")
    return at


def _unlz4(data: memoryview, at: int) -> _Stream:
    # Magic, then blocks of (size, bytes). Nothing says where the last one ends but the end of the data, zero
    # bytes, or the magic of what follows, all of which are larger numbers than a block can have bytes.
    at += 4
    while at + 4 <= len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        if not 0 < size <= LZ4_BOUND:
            break
        at += 4
        if at + size > len(data):
            raise ValueError("the stream is cut short")
        yield lz4.block.decompress(data[at : at + size], uncompressed_size=LZ4_BLOCK)
        at += size
    return at


def _lz4_blocks(data: bytes) -> Iterator[bytes]:
    view = memoryview(data)
    for at in range(0, len(data), LZ4_BLOCK):
        block = lz4.block.compress(
            view[at : at + LZ4_BLOCK], mode="high_compression", compression=9, store_size=False
        )
        yield len(block).to_bytes(4, "little")
        yield block


# Flags of the header of lzop. A sum is of the bytes as they were (D) or as they are in the file (C).
_LZO_ADLER_D, _LZO_ADLER_C, _LZO_EXTRA = 0x1, 0x2, 0x40
_LZO_CRC_D, _LZO_CRC_C, _LZO_FILTER, _LZO_HEADER_CRC = 0x100, 0x200, 0x800, 0x1000
#: LZO1X-1, LZO1X-1(15) and LZO1X-999: three ways to write what one decompressor reads.
_LZO_METHODS = (1, 2, 3)


def _unlzo(data: memoryview, at: int) -> _Stream:
    flags, at = _lzo_header(data, at)

    def sums(plain: int, packed: int) -> list[Callable[[bytes | memoryview], int]]:
        nonlocal flags
        return [
            *([zlib.adler32] if flags & plain else []),
            *([zlib.crc32] if flags & packed else []),
        ]

    of_plain, of_packed = sums(_LZO_ADLER_D, _LZO_CRC_D), sums(_LZO_ADLER_C, _LZO_CRC_C)
    while True:
        (size,) = struct.unpack_from(">I", data, at)
        at += 4
        if size == 0:
            return at
        (length,) = struct.unpack_from(">I", data, at)
        at += 4
        if size > LZO_BLOCK or not 0 < length <= size:
            raise ValueError(f"a block of {length} bytes for {size}; the kernel unpacks up to {LZO_BLOCK}")
        # What does not get smaller is stored as it is, and has no second sum.
        count = len(of_plain) + (len(of_packed) if length < size else 0)
        expected = struct.unpack_from(f">{count}I", data, at)
        at += 4 * count
        packed = data[at : at + length]
        if len(packed) != length:
            raise ValueError("the stream is cut short")
        at += length
        found = [function(packed) for function in of_packed] if length < size else []
        plain = lzallright.LZOCompressor.decompress(packed, size) if length < size else bytes(packed)
        found = [function(plain) for function in of_plain] + found
        if len(plain) != size or found != list(expected):
            raise ValueError("a block does not match its checksum")
        yield plain


def _lzo_header(data: memoryview, at: int) -> tuple[int, int]:
    """The flags of the lzop header at ``at``, and where it ends."""
    start = at + len(MAGIC["lzo"])
    version, _ = struct.unpack_from(">HH", data, start)
    at = start + 4
    # Before 0.940 there was neither the version that is needed nor a level.
    new = version >= 0x0940
    if new:
        at += 2
    method, flags = data[at], struct.unpack_from(">I", data, at + (2 if new else 1))[0]
    at += 6 if new else 5
    if method not in _LZO_METHODS or flags & _LZO_FILTER:
        raise ValueError(f"method {method} and flags {flags:#x} of lzop, which the kernel does not know")
    # Mode and time of the file, then its name.
    at += 12 if new else 8
    at += 1 + data[at]
    (expected,) = struct.unpack_from(">I", data, at)
    found = (zlib.crc32 if flags & _LZO_HEADER_CRC else zlib.adler32)(data[start:at])
    if found != expected:
        raise ValueError("the header does not match its checksum")
    at += 4
    if flags & _LZO_EXTRA:
        (length,) = struct.unpack_from(">I", data, at)
        at += 4 + length + 4
    return flags, at


_STREAMS: dict[str, Callable[[memoryview, int], _Stream]] = {
    "zstd": _unzstd,
    "gzip": _ungzip,
    "xz": _unxz,
    "lzma": _unlzma,
    "lz4": _unlz4,
    "bzip2": _unbzip2,
    "lzo": _unlzo,
}
