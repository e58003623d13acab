"""Compression of images, in the variants that the kernel's decompressors take (``lib/decompress_*.c``)."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import subprocess
import zlib
from collections.abc import Callable

import zstandard

from .errors import BuildError

METHODS = ("zstd", "gzip", "xz", "lz4", "none")

#: Level 19 with a shorter search: 23 % smaller than level 9 and 2 % larger than 19 itself, in 40 % of its
#: time. Decompression costs the same, and unchanged layers come out of the cache.
ZSTD_LEVEL = 19
ZSTD_SEARCH = {"search_log": 2, "target_length": 32, "strategy": zstandard.STRATEGY_BTULTRA}
#: Bytes per job: small enough that the two cores of a small machine both have work.
ZSTD_JOB = 5 << 20

MAGIC = {
    "zstd": b"\x28\xb5\x2f\xfd",
    "gzip": b"\x1f\x8b",
    "xz": b"\xfd7zXZ\x00",
    "lz4": b"\x02\x21\x4c\x18",
    "lzma": b"\x5d\x00\x00",
    "bzip2": b"BZh",
    "lzo": b"\x89LZO",
}


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
            job_size=ZSTD_JOB,
            source_size=len(data),
            write_checksum=True,
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
        return _lz4(["-9", "-l", "-c"], data)
    raise BuildError(f"unknown compression {method}", hint="Known are: " + ", ".join(METHODS))


def decompressors() -> dict[str, Callable[[bytes], tuple[bytes, int]]]:
    """By name: a function that decompresses the stream data starts with and tells how many bytes it was."""
    return {"zstd": _unzstd, "gzip": _ungzip, "xz": _unxz, "lzma": _unlzma, "lz4": _unlz4, "bzip2": _unbzip2}


def detect(data: bytes) -> str | None:
    """The name of the compression ``data`` starts with."""
    return next((name for name, magic in MAGIC.items() if data.startswith(magic)), None)


def _unzstd(data: bytes) -> tuple[bytes, int]:
    stream = zstandard.ZstdDecompressor().decompressobj()
    result = stream.decompress(data)
    if not stream.eof:
        raise ValueError("the stream is cut short")
    return result, len(data) - len(stream.unused_data)


def _ungzip(data: bytes) -> tuple[bytes, int]:
    stream = zlib.decompressobj(31)
    result = stream.decompress(data)
    if not stream.eof:
        raise ValueError("the stream is cut short")
    return result, len(data) - len(stream.unused_data)


def _lzma(data: bytes, kind: int) -> tuple[bytes, int]:
    stream = lzma.LZMADecompressor(kind)
    result = stream.decompress(data)
    if not stream.eof:
        raise ValueError("the stream is cut short")
    return result, len(data) - len(stream.unused_data)


def _unxz(data: bytes) -> tuple[bytes, int]:
    return _lzma(data, lzma.FORMAT_XZ)


def _unlzma(data: bytes) -> tuple[bytes, int]:
    return _lzma(data, lzma.FORMAT_ALONE)


def _unbzip2(data: bytes) -> tuple[bytes, int]:
    import bz2

    stream = bz2.BZ2Decompressor()
    result = stream.decompress(data)
    if not stream.eof:
        raise ValueError("the stream is cut short")
    return result, len(data) - len(stream.unused_data)


def _unlz4(data: bytes) -> tuple[bytes, int]:
    # Legacy frames: magic, then blocks of (size, bytes) until the end or the magic of another stream.
    at = 4
    while at + 4 <= len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        if size == 0 or at + 4 + size > len(data):
            break
        at += 4 + size
    return _lz4(["-d", "-c"], data[:at]), at


def _lz4(options: list[str], data: bytes) -> bytes:
    program = shutil.which("lz4")
    if program is None:
        raise BuildError(
            "lz4 compression needs the program lz4, which is not installed",
            hint="Install the package lz4, or use --compress zstd.",
        )
    done = subprocess.run([program, *options, "-"], input=data, capture_output=True, check=False)
    if done.returncode != 0:
        message = done.stderr.decode("utf-8", "replace").strip()
        raise BuildError(f"lz4 failed with status {done.returncode}: {message}")
    return done.stdout
