"""Reading images back, whoever made them, and unpacking them without harm."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit_image import archive, compress, cpio
from pyinit_image.cpio import Member
from pyinit_image.errors import BuildError

FILE, DIRECTORY, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777


def newc(*members: Member) -> bytes:
    return b"".join(cpio.write(members))


def raw(name: bytes, mode: int = FILE, data: bytes = b"") -> bytes:
    """An archive of one member with a name that our own writer refuses."""
    fields = (1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + name + b"\0"
    header += bytes(-len(header) % 4) + data + bytes(-len(data) % 4)
    return header + newc()


def test_archives_one_behind_the_other() -> None:
    early = newc(Member(b"kernel", DIRECTORY), Member(b"kernel/microcode", FILE, b"early"))
    image = early + bytes(512 - len(early) % 512)
    image += compress.compress(newc(Member(b"a", FILE, b"first")), "zstd")
    image += gzip.compress(newc(Member(b"b", FILE, b"second")) + newc(Member(b"a", FILE, b"later"))) + bytes(
        7
    )
    image += lzma.compress(newc(Member(b"c", FILE)), check=lzma.CHECK_CRC32)
    image += bz2.compress(newc(Member(b"d", FILE)))
    segments = archive.read(image)
    assert [segment.compression for segment in segments] == ["none", "zstd", "gzip", "gzip", "xz", "bzip2"]
    members = archive.tree(segments)
    assert sorted(members) == ["/a", "/b", "/c", "/d", "/kernel", "/kernel/microcode"]
    # As with the kernel, the later one wins.
    assert members["/a"].data == b"later"


@pytest.mark.effects  # lz4 is a program
@given(st.binary(max_size=60), st.sampled_from([*compress.MAGIC.values(), b"", cpio.MAGIC]))
def test_no_bytes_raise_another_error(garbage: bytes, magic: bytes) -> None:
    try:
        archive.tree(archive.read(magic + garbage))
    except BuildError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize("method", ["zstd", "gzip", "xz"])
def test_a_cut_stream_is_damage(method: str) -> None:
    image = compress.compress(newc(Member(b"a", FILE, os.urandom(4000))), method)
    for size in (12, len(image) // 2, len(image) - 1):
        with pytest.raises(BuildError, match=f"the {method} stream at byte 0 is damaged"):
            archive.read(image[:size])


def test_names_of_other_makers_are_brought_into_one_form(tmp_path: Path) -> None:
    image = raw(b".", DIRECTORY) + raw(b"./etc/", DIRECTORY) + raw(b"./etc/x", FILE, b"x") + raw(b"/y")
    members = archive.tree(archive.read(image))
    assert sorted(members) == ["/etc", "/etc/x", "/y"]
    archive.extract(members, tmp_path / "new")
    assert (tmp_path / "new/etc/x").read_text() == "x"


@pytest.mark.parametrize("name", [b"../x", b"a/../../x", b"/../x", b".."])
def test_names_that_leave_the_root_are_refused(name: bytes) -> None:
    with pytest.raises(BuildError, match="hostile archive"):
        archive.tree(archive.read(raw(name)))


@pytest.mark.parametrize("target", ["/", "..", "/tmp", "."])
def test_nothing_is_written_through_a_link(tmp_path: Path, target: str) -> None:
    image = raw(b"dir", LINK, target.encode()) + raw(b"dir/x", FILE, b"x")
    with pytest.raises(BuildError, match="passes through dir"):
        archive.extract(archive.tree(archive.read(image)), tmp_path / "new")
    assert os.listdir(tmp_path) == ["new"]
    assert os.listdir(tmp_path / "new") == ["dir"]


def test_extracted_modes(tmp_path: Path) -> None:
    image = newc(
        Member(b"closed", stat.S_IFDIR | 0o500),
        Member(b"closed/suid", stat.S_IFREG | 0o4755, b"x"),
        Member(b"null", stat.S_IFCHR | 0o666, device=(1, 3)),
    )
    skipped = archive.extract(archive.tree(archive.read(image)), tmp_path / "new")
    assert skipped == ["/null: a device node"]
    assert stat.S_IMODE((tmp_path / "new/closed").stat().st_mode) == 0o500
    assert stat.S_IMODE((tmp_path / "new/closed/suid").stat().st_mode) == 0o755


def test_a_directory_in_use_is_not_extracted_into(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(BuildError, match="is not empty"):
        archive.extract({}, tmp_path)


def test_lookup_follows_links() -> None:
    members = archive.tree(
        archive.read(
            newc(
                Member(b"bin", LINK, b"usr/bin"),
                Member(b"loop", LINK, b"loop"),
                Member(b"usr", DIRECTORY),
                Member(b"usr/bin", DIRECTORY),
                Member(b"usr/bin/sh", LINK, b"dash"),
            )
        )
    )
    assert archive.lookup(members, "/bin/sh") == "/usr/bin/sh"
    assert archive.lookup(members, "/bin/../bin/./sh") == "/usr/bin/sh"
    assert archive.lookup(members, "/loop/x") is None
    assert archive.lookup(members, "/usr/bin/none") is None


@pytest.mark.parametrize("method", ["zstd", "gzip", "xz", "none"])
def test_compression_round_trip(method: str) -> None:
    data = newc(Member(b"a", FILE, b"content " * 1000))
    packed = compress.compress(data, method)
    assert packed == compress.compress(data, method)
    assert archive.tree(archive.read(packed))["/a"].data == b"content " * 1000
    if method != "none":
        assert compress.detect(packed) == method


@pytest.mark.effects
def test_lz4_round_trip() -> None:
    data = newc(Member(b"a", FILE, os.urandom(100_000)))
    packed = compress.compress(data, "lz4")
    assert packed.startswith(compress.MAGIC["lz4"])
    assert archive.tree(archive.read(packed + bytes(8) + newc(Member(b"b", FILE)))).keys() == {"/a", "/b"}


@pytest.mark.parametrize("length", range(1, 6))
def test_an_archive_can_follow_each_method(length: int) -> None:
    """Uncompressed at a multiple of four; behind lz4 the next four bytes are no length of a block."""
    for packed in (compress.MAGIC["lz4"] + bytes([length]) * length, b"x" * length):
        padded = compress.padded(packed)
        assert padded.startswith(packed) and len(padded) % 4 == 0 and not padded[len(packed) :].strip(b"\0")
        needed = 4 if packed[:1] != b"x" else 0
        assert needed <= len(padded) - len(packed) < needed + 4


@pytest.mark.effects
def test_zstd_does_not_depend_on_the_number_of_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * 4096 * 12
    results = set()
    for processors in (1, 2, 7):
        monkeypatch.setattr(os, "cpu_count", lambda processors=processors: processors)
        results.add(compress.compress(data, "zstd"))
    assert len(results) == 1


def test_a_kernel_that_cannot_unpack_it_is_named() -> None:
    config = frozenset({"CONFIG_RD_GZIP=y", "CONFIG_RD_LZ4=y", "# CONFIG_RD_ZSTD is not set"})
    compress.check_kernel("gzip", config)
    compress.check_kernel("none", config)
    compress.check_kernel("zstd", frozenset())
    with pytest.raises(BuildError, match="without CONFIG_RD_ZSTD") as caught:
        compress.check_kernel("zstd", config)
    assert caught.value.hint == "It can unpack: gzip, lz4, none"
