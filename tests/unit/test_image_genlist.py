"""The list from which the kernel's own build makes an initramfs, and the files beside it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit_image import genlist
from pyinit_image.errors import BuildError
from pyinit_image.plan import Entry, make_entry

DIRECTORY, FILE, LINK = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777


def entry(path: str, mode: int = FILE, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> Entry:
    return make_entry(path, mode, data, "a reason", None, "base", device)


ENTRIES = (
    entry("/dev", DIRECTORY),
    entry("/dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
    entry("/dev/vda", stat.S_IFBLK | 0o660, device=(254, 0)),
    entry("/init", stat.S_IFREG | 0o755, b"\x7fELF"),
    entry("/lib", LINK, b"usr/lib"),
    entry("/tmp", stat.S_IFDIR | 0o1777),
)


def parse(text: bytes) -> list[tuple[bytes, ...]]:
    """Read a list as the kernel's document describes it: words of lines, lines with "#" in front ignored."""
    fields = {b"dir": 5, b"file": 6, b"slink": 6, b"nod": 8}
    lines = [tuple(line.split()) for line in text.split(b"\n") if line and not line.startswith(b"#")]
    for words in lines:
        assert len(words) == fields[words[0]], words
    return lines


def test_every_kind_has_its_line() -> None:
    assert genlist.listing(ENTRIES, "/work").decode().splitlines() == [
        "dir /dev 0755 0 0",
        "nod /dev/console 0600 0 0 c 5 1",
        "nod /dev/vda 0660 0 0 b 254 0",
        "file /init /work/files/00003 0755 0 0",
        "slink /lib usr/lib 0777 0 0",
        "dir /tmp 1777 0 0",
    ]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (entry("/a b"), "/a b has a blank in its name"),
        (entry("/a\tb", DIRECTORY), "has a blank"),
        (entry("/a\nfile /x /etc/shadow 0644 0 0"), "has a blank"),
        (entry("/a\x0b", LINK, b"x"), "has a blank"),
        (entry("/a\\"), "ends in a backslash"),
        (entry("/a", LINK, b"b c"), "/a is a link to 'b c'"),
        (entry("/a", LINK, b""), "0 bytes"),
        (entry("/a", LINK, b"x" * 4096), "4096 bytes"),
        (entry("/a", stat.S_IFIFO | 0o600), "/a is no file, directory, link or device node"),
    ],
)
def test_what_the_format_cannot_say_is_refused_with_its_name(bad: Entry, message: str) -> None:
    with pytest.raises(BuildError) as caught:
        genlist.listing([bad], "/work")
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert "a reason" in caught.value.hint


@pytest.mark.parametrize(
    "bad",
    [
        [entry("/a/b")],
        [entry("/a"), entry("/a")],
        [entry("/TRAILER!!!")],
        [entry("/" + "x" * 4096)],
        [entry("/a", DIRECTORY), entry("/a/../b")],
    ],
)
def test_what_no_archive_can_hold_is_refused(bad: list[Entry]) -> None:
    with pytest.raises(BuildError):
        genlist.listing(bad, "/work")


def test_the_longest_names_fit_into_the_buffers_of_the_kernels_program() -> None:
    # PATH_MAX characters a word, and a line of twice that and 50 (usr/gen_init_cpio.c).
    directory = "/" + "d" * (4096 - 30)
    text = genlist.listing([entry("/" + "x" * 4095), entry("/l", LINK, b"x" * 4095)], directory)
    assert all(len(word) <= 4096 for line in parse(text) for word in line)
    assert all(len(line) < 2 * 4096 + 49 for line in text.split(b"\n"))


@pytest.mark.parametrize(
    "directory",
    [
        *("relative", "/a b", "/a${HOME}", "/a$b", "/a#b", "/a:b", "/a\\b", "/a'b", "/a\nb", "/é", "/a*"),
        *("/a.cpio.d", "/a.cpio./b", "/" + "d" * 4090),
    ],
)
def test_a_place_that_the_kernels_build_would_misread_is_refused(directory: str) -> None:
    with pytest.raises(BuildError) as caught:
        genlist.listing(ENTRIES, directory)
    assert str(caught.value).isprintable()
    assert "Name a directory" in caught.value.hint


def test_signs_that_mean_something_elsewhere_are_only_characters_in_names() -> None:
    names = ["/#a", "/${HOME}", "/a\\x2db", "/'", "/%", "/\udcff", "/ü"]
    lines = parse(genlist.listing([entry(name) for name in names], "/work"))
    assert [line[1] for line in lines] == [os.fsencode(name) for name in names]


_names = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=6)
_entries = st.builds(
    entry,
    _names.map(lambda name: f"/{name}"),
    st.sampled_from([DIRECTORY, FILE, LINK, stat.S_IFCHR | 0o600, stat.S_IFSOCK]),
    st.binary(max_size=6),
    st.tuples(st.integers(-1, 300), st.integers(0, 300)),
)


@given(st.lists(_entries, max_size=5))
def test_whatever_is_not_refused_is_read_back_as_it_was(entries: list[Entry]) -> None:
    try:
        text = genlist.listing(entries, "/work")
    except BuildError as error:
        assert str(error).isprintable()
        return
    assert text == genlist.listing(iter(entries), "/work")
    lines = parse(text)
    assert [line[1] for line in lines] == [os.fsencode(entry.path) for entry in entries]
    for number, (line, wanted) in enumerate(zip(lines, entries, strict=True)):
        match line[0]:
            case b"file":
                assert line[2] == f"/work/{genlist.stored(number)}".encode()
                rights = line[3]
            case b"slink":
                assert line[2] == wanted.data
                rights = line[3]
            case b"nod":
                assert (line[5], int(line[6]), int(line[7])) == (b"c", *wanted.device)
                rights = line[2]
            case _:
                rights = line[2]
        assert int(rights, 8) == stat.S_IMODE(wanted.mode)


def _tree(top: Path) -> dict[str, bytes]:
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}


def test_files_are_beside_the_list(tmp_path: Path) -> None:
    place = genlist.write(ENTRIES, tmp_path / "new", mtime=1234)
    assert place == tmp_path / "new/initramfs.list"
    assert _tree(tmp_path) == {
        "new/initramfs.list": genlist.listing(ENTRIES, str(tmp_path / "new")),
        "new/files/00003": b"\x7fELF",
    }
    stored = tmp_path / "new/files/00003"
    assert (stat.S_IMODE(stored.stat().st_mode), stored.stat().st_mtime) == (0o600, 1234)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_a_second_time_gives_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    genlist.write(ENTRIES, tmp_path / "new")
    first = _tree(tmp_path)
    (tmp_path / "new").rename(tmp_path / "old")
    genlist.write(iter(ENTRIES), tmp_path / "new")
    assert _tree(tmp_path / "new") == {name.removeprefix("new/"): data for name, data in first.items()}


def test_a_link_to_an_empty_directory_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert genlist.write(ENTRIES, tmp_path / "link") == tmp_path / "real/initramfs.list"


def _unchanged(top: Path, directory: Path, entries: Iterable[Entry], message: str) -> None:
    before = sorted(top.rglob("*"))
    with pytest.raises(BuildError, match=message):
        genlist.write(entries, directory)
    assert sorted(top.rglob("*")) == before


def test_nothing_is_changed_when_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").touch()
    (tmp_path / "file").touch()
    _unchanged(tmp_path, tmp_path / "full", ENTRIES, "full is not empty")
    _unchanged(tmp_path, tmp_path / "file", ENTRIES, "cannot be written: Not a directory")
    _unchanged(tmp_path, tmp_path / "gone/new", ENTRIES, "cannot be written: No such file or directory")
    _unchanged(tmp_path, tmp_path / "new", [entry("/a b")], "a blank")


def test_an_interrupted_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "sync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        genlist.write(ENTRIES, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
