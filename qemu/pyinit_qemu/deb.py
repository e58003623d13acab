"""What a Debian archive publishes: indices, their hashes, and binary packages. Pure functions.

Formats: deb-control(5), deb(5), and the repository format, https://wiki.debian.org/DebianRepository/Format.
Everything here has come over the network, so it may be anything: :class:`DebError` is the only exception.
"""

from __future__ import annotations

import email.utils
import gzip
import io
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, cast

import zstandard

from pyinit.text import printable

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60
_LARGEST = 1 << 29


class DebError(Exception):
    """Data that are not what they should be."""


@dataclass(frozen=True)
class Index:
    """A file that a Release file vouches for."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Release:
    """A Release file."""

    fields: Mapping[str, str]
    """By lower-case name; only the first line of each."""
    files: Mapping[str, Index]
    """By path below the suite's folder."""

    @property
    def valid_until(self) -> datetime | None:
        """When it is to be replaced by a newer one; None for a suite that does not expire."""
        return _date(self.fields.get("valid-until", ""))

    @property
    def names(self) -> frozenset[str]:
        """What the suite calls itself."""
        return frozenset(self.fields[name] for name in ("suite", "codename") if name in self.fields)


@dataclass(frozen=True)
class Package:
    """A binary package of an index."""

    name: str
    version: str
    depends: tuple[str, ...]
    """Names of what it depends on, alternatives included."""
    path: str
    """Below the mirror's top."""
    size: int
    sha256: str


def parse_release(text: str) -> Release:
    """Read a Release file, or what a signature was found to be of."""
    fields: dict[str, str] = {}
    files: dict[str, Index] = {}
    section = ""
    for line in text.splitlines():
        if line[:1] in (" ", "\t"):
            words = line.split()
            if section == "sha256" and len(words) == 3 and _is_sha256(words[0]) and _is_number(words[1]):
                files[words[2]] = Index(words[0], int(words[1]))
            continue
        name, colon, value = line.partition(":")
        section = name.strip().lower() if colon else ""
        if section:
            fields[section] = value.strip()
    if not files:
        raise DebError("no Release file: it has no list of SHA256 sums")
    return Release(fields, files)


def parse_packages(text: str, wanted: re.Pattern[str]) -> dict[str, Package]:
    """The packages whose names match, by name; of several versions the last one stands."""
    found = {}
    for paragraph in re.split(r"\n[ \t]*\n", text):
        fields = dict(re.findall(r"^([A-Za-z0-9-]+):[ \t]*(.*?)[ \t]*$", paragraph, re.MULTILINE))
        name = fields.get("Package", "")
        if not wanted.fullmatch(name):
            continue
        if not (
            _is_sha256(fields.get("SHA256", ""))
            and _is_number(fields.get("Size", ""))
            and re.fullmatch(r"[A-Za-z0-9.+~:-]+", fields.get("Version", ""))
            and fields.get("Filename", "")
        ):
            raise DebError(f"package {printable(name)} has no usable Version, Filename, Size and SHA256")
        words = re.split(r"[,|]", fields.get("Depends", ""))
        depends = tuple(
            match[0] for word in words if (match := re.match(r"[a-z0-9][a-z0-9.+-]+", word.strip()))
        )
        found[name] = Package(
            name, fields["Version"], depends, fields["Filename"], int(fields["Size"]), fields["SHA256"]
        )
    return found


def decompress(data: bytes, suffix: str) -> bytes:
    """Unpack an index by the suffix of its name: ``.xz``, ``.gz`` or none."""
    try:
        if suffix == ".xz":
            return lzma.decompress(data)
        if suffix == ".gz":
            return gzip.decompress(data)
    except (lzma.LZMAError, OSError, EOFError, zlib.error) as error:
        raise DebError(f"it cannot be unpacked: {error}") from error
    return data


def ar_members(data: bytes) -> dict[str, memoryview]:
    """The members of an archive of ar(1), of the common format as deb(5) restricts it."""
    if not data.startswith(_AR_MAGIC):
        raise DebError(f"no ar archive: it begins with {data[:8].hex() or 'nothing'}")
    members: dict[str, memoryview] = {}
    view = memoryview(data)
    place = len(_AR_MAGIC)
    while place < len(data):
        header = data[place : place + _AR_HEADER]
        size_field = header[48:58].strip()
        if len(header) < _AR_HEADER or header[58:] != b"`\n" or not re.fullmatch(rb"[0-9]+", size_field):
            raise DebError(f"damaged ar archive: no member's header at byte {place}")
        size = int(size_field)
        place += _AR_HEADER
        if place + size > len(data):
            raise DebError(f"truncated ar archive: {size} bytes announced, {len(data) - place} there")
        name = header[:16].rstrip(b" ").removesuffix(b"/").decode("latin-1")
        members[name] = view[place : place + size]
        place += size + size % 2
    return members


def files(deb: bytes) -> Iterator[tuple[tuple[str, ...], bytes]]:
    """Path and content of each regular file in a binary package.

    The parts of a path are names: no ``..``, nothing absolute. Links and devices are left out.
    """
    members = ar_members(deb)
    name = next((name for name in members if name.startswith("data.tar")), None)
    if "debian-binary" not in members or name is None:
        raise DebError(f"no Debian package: it holds {printable(', '.join(members)) or 'nothing'}")
    with _damage():
        stream = _unpacked(io.BytesIO(members[name]), name.removeprefix("data.tar"))
        # As a stream: what is unpacked may be larger than the memory.
        archive = tarfile.open(fileobj=stream, mode="r|")
    while True:
        with _damage():
            member = archive.next()
            if member is None:
                return
            parts = tuple(part for part in member.name.split("/") if part not in ("", "."))
            if not member.isreg() or not parts:
                continue
            if ".." in parts or "\0" in member.name or member.size > _LARGEST:
                raise DebError(f"not a file of a package: {printable(member.name)}, {member.size} bytes")
            file = archive.extractfile(member)
            content = file.read() if file is not None else b""
        yield parts, content


def _unpacked(packed: io.BytesIO, suffix: str) -> IO[bytes]:
    match suffix:
        case "":
            return packed
        case ".xz":
            return lzma.LZMAFile(packed)
        case ".gz":
            return cast(IO[bytes], gzip.GzipFile(fileobj=packed))
        case ".zst":
            return zstandard.ZstdDecompressor().stream_reader(packed)
    raise DebError(f"unknown compression: data.tar{printable(suffix)}")


_DAMAGE = (tarfile.TarError, lzma.LZMAError, zlib.error, zstandard.ZstdError, gzip.BadGzipFile, EOFError)


@contextmanager
def _damage() -> Iterator[None]:
    """Says of whatever goes wrong inside that the package is damaged."""
    try:
        yield
    except (*_DAMAGE, ValueError, OverflowError) as error:
        raise DebError(f"damaged package: {printable(str(error))}") from error


def _is_sha256(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,15}", text) is not None


def _date(text: str) -> datetime | None:
    try:
        # RFC 2822, but "UTC" is written where that has "+0000" or "GMT".
        when = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when
