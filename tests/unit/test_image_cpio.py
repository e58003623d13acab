"""The archive format: what is written reads back, and nothing hostile gets through or breaks the reader."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit_image import cpio
from pyinit_image.cpio import CpioError, Member

NAME_PART = st.binary(min_size=1, max_size=20).filter(
    lambda part: not set(part) & {0, ord("/")} and part not in (b".", b"..", b"TRAILER!!!")
)
KINDS = st.sampled_from((stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR))


@st.composite
def trees(draw: st.DrawFn) -> list[Member]:
    """Members with their parents in front, as the writer wants them."""
    directories = [b""]
    members: dict[bytes, Member] = {}
    for _ in range(draw(st.integers(0, 12))):
        above = draw(st.sampled_from(directories))
        name = above + b"/" * bool(above) + draw(NAME_PART)
        kind = draw(KINDS)
        mode = kind | draw(st.integers(0, 0o7777))
        if name in members:
            continue
        if kind == stat.S_IFDIR:
            directories.append(name)
        data = b"" if kind in (stat.S_IFDIR, stat.S_IFCHR) else draw(st.binary(max_size=600))
        numbers = st.integers(0, cpio.MAX_SIZE)
        device = (draw(numbers), draw(numbers)) if kind == stat.S_IFCHR else (0, 0)
        members[name] = Member(name, mode, data, device)
    return list(members.values())


@given(trees(), st.integers(0, cpio.MAX_SIZE), st.booleans(), st.binary(max_size=40))
def test_round_trip(members: list[Member], mtime: int, summed: bool, behind: bytes) -> None:
    data = b"".join(cpio.write(members, mtime=mtime, summed=summed))
    assert len(data) % 4 == 0
    found, end = cpio.read(b"before__" + data + behind, 8)
    assert end == 8 + len(data)
    assert [(m.name, m.mode, m.data, m.device) for m in found] == [
        (m.name, m.mode, m.data, m.device) for m in members
    ]
    assert all((m.uid, m.gid, m.mtime) == (0, 0, mtime) for m in found)
    assert [m.inode for m in found] == list(range(1, len(found) + 1))


@given(trees(), st.data())
def test_damage_is_an_error_of_our_own(members: list[Member], data: st.DataObject) -> None:
    archive = bytearray(b"".join(cpio.write(members)))
    for _ in range(data.draw(st.integers(1, 5))):
        archive[data.draw(st.integers(0, len(archive) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(archive[: data.draw(st.integers(0, len(archive)))])
    try:
        cpio.read(damaged)
    except CpioError as error:
        assert str(error).isprintable()


@given(st.binary(max_size=300))
def test_garbage_is_an_error_of_our_own(garbage: bytes) -> None:
    with pytest.raises(CpioError):
        cpio.read(garbage)


@given(trees(), st.integers(1, 400))
def test_every_truncation_is_noticed(members: list[Member], cut: int) -> None:
    data = b"".join(cpio.write(members))
    # The padding behind the trailer is not part of what must be there.
    with pytest.raises(CpioError):
        cpio.read(data[: -min(cut + 3, len(data))])


def test_changed_content_is_noticed() -> None:
    data = b"".join(cpio.write([Member(b"file", stat.S_IFREG | 0o644, b"precious")]))
    with pytest.raises(CpioError, match="file: the content does not match its checksum"):
        cpio.read(data.replace(b"precious", b"previous"))


@given(st.binary(max_size=2000))
def test_checksum_is_the_sum_of_all_bytes(data: bytes) -> None:
    assert cpio.byte_sum(data) == sum(data)


def test_checksum_of_many_high_bytes() -> None:
    assert cpio.byte_sum(b"\xff" * 1_000_001) == 255 * 1_000_001


@pytest.mark.parametrize(
    ("name", "what"),
    [
        (b"", "cannot be the name"),
        (b"a\0b", "cannot be the name"),
        (b"/etc", "cannot be the name"),
        (b"TRAILER!!!", "cannot be the name"),
        (b"a/../b", "dot components"),
        (b"a//b", "empty or dot"),
        (b"./a", "dot components"),
        (b"x" * 4096, "a name of 4096 bytes"),
        (b"missing/file", "comes before its directory"),
    ],
)
def test_names_the_kernel_would_lose_are_refused(name: bytes, what: str) -> None:
    with pytest.raises(CpioError, match=what):
        list(cpio.write([Member(name, stat.S_IFREG | 0o644)]))


def test_the_same_name_twice_is_refused() -> None:
    member = Member(b"a", stat.S_IFREG | 0o644)
    with pytest.raises(CpioError, match="twice"):
        list(cpio.write([member, member]))


def test_a_file_of_4_gib_is_refused() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 2**32

    with pytest.raises(CpioError, match="below 4 GiB"):
        list(cpio.write([Member(b"huge", stat.S_IFREG | 0o644, Huge())]))
