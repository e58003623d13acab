"""Files behind an image that somebody else has made."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit_image import archive
from pyinit_image.cpio import Member, write
from pyinit_image.errors import BuildError
from pyinit_qemu.appended import append

MEMBERS = (
    Member(b"usr", stat.S_IFDIR | 0o755),
    Member(b"usr/lib", stat.S_IFDIR | 0o755),
    Member(b"usr/lib/hooks", stat.S_IFDIR | 0o700),
    Member(b"usr/lib/hooks/old", stat.S_IFREG | 0o644, b"old"),
    Member(b"lib", stat.S_IFLNK | 0o777, b"usr/lib"),
    Member(b"etc", stat.S_IFLNK | 0o777, b"/lib/../lib/hooks/."),
    Member(b"loop", stat.S_IFLNK | 0o777, b"loop"),
    Member(b"top", stat.S_IFLNK | 0o777, b"/"),
    Member(b"file", stat.S_IFREG | 0o644, b"x"),
)
IMAGE = b"".join(write(MEMBERS))


def tree(image: bytes) -> dict[str, Member]:
    return archive.tree(archive.read(image))


def test_links_are_followed_and_directories_made() -> None:
    image = append(IMAGE + b"\0\0", {"/lib/hooks/new": b"1", "etc/deep/er": b"2", "/opt/x/y": b"3"}, 0o700)
    after = tree(image)
    added = {path: member for path, member in after.items() if path not in tree(IMAGE)}
    assert sorted(added) == [
        "/opt",
        "/opt/x",
        "/opt/x/y",
        "/usr/lib/hooks/deep",
        "/usr/lib/hooks/deep/er",
        "/usr/lib/hooks/new",
    ]
    assert added["/usr/lib/hooks/new"].data == b"1"
    assert added["/usr/lib/hooks/new"].mode == stat.S_IFREG | 0o700
    # What was there is not touched: neither the modes of directories nor links.
    assert len(archive.read(image)) == 2
    names = {member.name for member in archive.read(image)[1].members}
    assert names.isdisjoint({b"usr", b"usr/lib", b"usr/lib/hooks", b"lib", b"etc"})


def test_a_file_takes_the_place_of_another() -> None:
    assert tree(append(IMAGE, {"lib/hooks/old": b"new"}))["/usr/lib/hooks/old"].data == b"new"


@pytest.mark.parametrize(
    "path, reason",
    [
        ("", "no path"),
        ("a/../b", "no path"),
        ("usr/lib", "it is a directory"),
        ("file/x", "/file is no directory"),
        ("loop/x", "too many links"),
        ("top", "leads to the root directory"),
        ("a\0b", "cannot be the name"),
        ("\ud800", "cannot be the name"),
    ],
)
def test_what_cannot_be_added_is_refused(path: str, reason: str) -> None:
    with pytest.raises(BuildError, match=reason):
        append(IMAGE, {path: b""})


names = st.lists(st.sampled_from(["usr", "lib", "etc", "loop", "top", "file", "a", "b", ".", ""]), max_size=5)


@given(st.dictionaries(names.map("/".join) | st.text(max_size=8), st.binary(max_size=9), max_size=4))
def test_what_was_added_is_found_where_it_was_put(files: dict[str, bytes]) -> None:
    try:
        after = tree(append(IMAGE, files))
    except BuildError:
        return
    for path, data in files.items():
        place = archive.lookup(after, path)
        member = after[place or ""]
        while stat.S_ISLNK(member.mode):
            place = archive.lookup(after, f"{(place or '').rpartition('/')[0]}/{member.data.decode()}")
            member = after[place or ""]
        assert member.data == data


@given(st.binary(max_size=200))
def test_a_broken_image_is_refused(image: bytes) -> None:
    try:
        append(image, {"a": b""})
    except BuildError:
        return


def test_two_names_of_one_file_must_agree() -> None:
    image = append(IMAGE, {"/lib/hooks/new": b"1", "/usr/lib/hooks/new": b"1"})
    assert [member.name for member in archive.read(image)[1].members] == [b"usr/lib/hooks/new"]
    with pytest.raises(BuildError, match="/lib/hooks/new and another name lead to the same file"):
        append(IMAGE, {"/usr/lib/hooks/new": b"1", "/lib/hooks/new": b"2"})
