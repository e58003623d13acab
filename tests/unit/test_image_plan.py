"""The plan of an image, the manifest, and the sysroot below them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit_image import elf, plan, udev
from pyinit_image.errors import BuildError
from pyinit_image.plan import Plan
from pyinit_image.sysroot import Sysroot


@pytest.fixture
def empty(tmp_path: Path) -> Plan:
    return Plan(Sysroot(tmp_path))


def paths(collected: Plan) -> list[str]:
    return [entry.path for entry in collected.seal()]


def test_parents_come_first_and_the_sentinel_last(empty: Plan) -> None:
    empty.data("/z/deep/file", b"", "a reason")
    empty.data("/a-b", b"", "a reason")
    empty.data("/a/b", b"", "a reason")
    found = paths(empty)
    assert found[:3] == ["/a", "/a/b", "/a-b"]
    assert found.index("/z") < found.index("/z/deep") < found.index("/z/deep/file")
    assert found[-1] == "/.pyinit-complete"


def test_files_land_where_links_lead(empty: Plan) -> None:
    empty.link("/sbin", "usr/sbin", "merged")
    empty.link("/usr/sbin", "bin", "merged")
    empty.data("/sbin/tool", b"", "a reason")
    assert "/usr/bin/tool" in empty.entries
    empty.link("/loop", "loop", "a reason")
    with pytest.raises(BuildError, match="loop of symbolic links"):
        empty.canonical("/loop/x")


def test_the_first_reason_stays_and_a_conflict_is_an_error(empty: Plan) -> None:
    empty.data("/a", b"1", "the first")
    empty.data("/a", b"1", "the second")
    assert empty.entries["/a"].reason == "the first"
    with pytest.raises(BuildError, match="/a is wanted twice with different content: the first; the third"):
        empty.data("/a", b"2", "the third")
    empty.include("/a", b"2", 0o644, "--include")
    assert empty.entries["/a"].data == b"2"


def test_a_file_in_the_place_of_a_directory_is_an_error(empty: Plan) -> None:
    empty.data("/a", b"", "a file")
    empty.data("/a/b", b"", "below it")
    with pytest.raises(BuildError, match="/a is not a directory"):
        empty.finish()


def test_chains_end_even_if_they_are_circles(empty: Plan) -> None:
    empty.data("/a", b"", "because of b", "/b")
    empty.data("/b", b"", "because of a", "/a")
    manifest = plan.parse_manifest(plan.dump_manifest(empty.entries.values())).entries
    assert plan.chain(manifest, "/a") == [("/a", "because of b"), ("/b", "because of a")]
    assert plan.chain(manifest, "/none") == []


@given(st.one_of(st.binary(max_size=80), st.text(max_size=80).map(str.encode)))
def test_a_damaged_manifest_is_an_error_of_our_own(data: bytes) -> None:
    with pytest.raises(BuildError, match="is damaged"):
        plan.parse_manifest(data)


@pytest.mark.parametrize(
    "text",
    [
        '{"schema":1,"entries":{"/a":{}}}',
        '{"schema":1,"entries":{"/a":[]}}',
        '{"schema":1,"entries":[]}',
        '{"schema":1,"entries":{"/a":{"reason":"","source":"","parent":1}}}',
        '{"schema":2,"entries":{}}',
        "[" * 100_000,
    ],
)
def test_a_manifest_of_another_shape(text: str) -> None:
    with pytest.raises(BuildError, match="is damaged"):
        plan.parse_manifest(text.encode())


def test_sysroot_links_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/real").write_text("inside")
    (tmp_path / "bin").symlink_to("/usr/bin")
    (tmp_path / "usr/bin/up").symlink_to("../../../../bin/real")
    (tmp_path / "usr/bin/away").symlink_to("/etc/passwd")
    sysroot = Sysroot(tmp_path)
    found = sysroot.resolve("/bin/up")
    assert found is not None
    assert found.path == "/usr/bin/real"
    assert found.links == (("/bin", "/usr/bin"), ("/usr/bin/up", "../../../../bin/real"))
    assert sysroot.read("/bin/up") == b"inside"
    assert sysroot.resolve("/bin/away") is None


def test_what_is_no_file_does_not_hang_the_build(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(BuildError, match="is not a regular file"):
        Sysroot(tmp_path).read("/fifo")
    with pytest.raises(BuildError, match="/none is missing in"):
        Sysroot(tmp_path).read("/none")
    with pytest.raises(BuildError, match="is not a directory"):
        Sysroot(tmp_path / "none")


@given(st.binary(max_size=300))
def test_no_bytes_break_the_elf_reader(data: bytes) -> None:
    for content in (data, b"\x7fELF" + data, b"\x7fELF\x02\x01\x01" + data):
        try:
            elf.parse(content)
        except BuildError as error:
            assert str(error).isprintable()


@given(st.one_of(st.binary(max_size=80), st.text(max_size=80).map(str.encode)))
def test_no_bytes_break_the_dlopen_notes(data: bytes) -> None:
    elf.parse_dlopen(data)


def test_dlopen_notes() -> None:
    note = (
        b'[{"feature":"kmod","priority":"recommended","soname":["libkmod.so.2"]},'
        b'{"soname":["a","b"]},{"soname":"c"},{"soname":[1]},7]\0\0'
    )
    assert elf.parse_dlopen(note) == [
        elf.Dlopen("kmod", "recommended", ("libkmod.so.2",)),
        elf.Dlopen("", "recommended", ("a", "b")),
    ]


def test_programs_and_owners_of_udev_rules() -> None:
    rules = (
        '# PROGRAM="commented"\n'
        'KERNEL=="sd*", IMPORT{program}="ata_id --export $devnode"\n'
        'PROGRAM=="scsi_id -g", RUN{program}+="/usr/bin/tool", \\\n  RUN+="other"\n'
        'RUN{builtin}+="kmod load", RUN+="$env{REMOVE_CMD}", IMPORT{builtin}="blkid"\n'
        'GROUP="disk", OWNER="user", GROUP:="tty"\n'
    )
    assert udev.programs(rules) == ["ata_id", "scsi_id", "/usr/bin/tool", "other"]
    assert udev.owners(rules) == ({"user"}, {"disk", "tty"})


@given(st.text(max_size=200), st.sets(st.text(max_size=5), max_size=3))
def test_no_text_breaks_the_account_files(text: str, names: set[str]) -> None:
    assert udev.passwd(text, names, "/bin/sh").startswith(b"root:x:0:0:root:/root:/bin/sh\n")
    assert udev.group(text, names).startswith(b"root:x:0:\n")
    udev.programs(text)


def test_account_files_have_no_secrets() -> None:
    passwd = udev.passwd(
        "root:hash:0:0:root:/root:/bin/bash\nuser:hash:7:8:Name:/home:/bin/sh\n", {"user"}, ""
    )
    assert passwd == b"root:x:0:0:root:/root:\nuser:x:7:8::/:\n"
    assert udev.group("disk:x:6:me\ntty:x:5:\nother:x:9:\n", {"disk", "tty"}) == (
        b"root:x:0:\ndisk:x:6:\ntty:x:5:\n"
    )
