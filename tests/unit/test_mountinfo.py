"""The mount table is read as the kernel writes it, whatever names it holds."""

from __future__ import annotations

import os

import libmount
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pyinit.kernel.mountinfo import Mount, parse, read, subtree, topmost

# show_mountinfo() and mangle() in the kernel escape exactly these.
ESCAPED = b" \t\n\\#"

names = st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name)
options = st.lists(
    st.binary(min_size=1, max_size=8).filter(lambda o: not set(o) & set(b"\0,")), min_size=1, max_size=4
)
numbers = st.integers(0, 2**31 - 1)
mounts = st.builds(
    lambda i, p, d, r, t, o, f, y, s, so: Mount(
        i, p, d, "/" + r, "/" + t, tuple(o), tuple(f), y, s, tuple(so)
    ),
    numbers,
    numbers,
    st.tuples(st.integers(0, 0xFFF), st.integers(0, 0xFFFFF)),
    names.map(os.fsdecode),
    names.map(os.fsdecode),
    options.map(lambda words: [os.fsdecode(word) for word in words]),
    st.lists(st.sampled_from(["shared:7", "master:3", "propagate_from:2", "unbindable"]), max_size=3),
    st.sampled_from(["ext4", "fuse.sshfs", "overlay", "tmpfs"]),
    names.map(os.fsdecode),
    options.map(lambda words: [os.fsdecode(word) for word in words]),
)


def escape(text: str) -> bytes:
    return b"".join(b"\\%03o" % byte if byte in ESCAPED else bytes((byte,)) for byte in os.fsencode(text))


def line(mount: Mount) -> bytes:
    return b" ".join(
        [
            b"%d" % mount.id,
            b"%d" % mount.parent,
            b"%d:%d" % mount.device,
            escape(mount.root),
            escape(mount.target),
            b",".join(map(escape, mount.options)),
            *map(escape, mount.propagation),
            b"-",
            escape(mount.fstype),
            escape(mount.source),
            b",".join(map(escape, mount.super_options)),
        ]
    )


@given(st.lists(mounts, max_size=5))
def test_every_mount_comes_back(table: list[Mount]) -> None:
    assert parse(b"".join(line(mount) + b"\n" for mount in table)) == tuple(table)


@given(table=st.lists(mounts, max_size=5))
def test_libmount_reads_the_same(tmp_path_factory: pytest.TempPathFactory, table: list[Mount]) -> None:
    data = b"".join(line(mount) + b"\n" for mount in table)
    assume(b"\r\n" not in data)  # It takes both for the end of the line, as in a file that a person wrote.
    rows = libmount.read(tmp_path_factory.getbasetemp() / "mountinfo", data)
    assert rows == [
        libmount.Row(
            mount.id,
            mount.parent,
            os.makedev(*mount.device),
            mount.root,
            mount.target,
            ",".join(mount.options),
            " ".join(mount.propagation),
            mount.fstype,
            mount.source,
            ",".join(mount.super_options),
        )
        for mount in parse(data)
    ]


@given(st.binary(max_size=300))
def test_no_input_raises(data: bytes) -> None:
    parse(data)


@given(st.lists(st.sampled_from([b"1", b"-", b"0:1", b"/", b"rw", b"", b"\\04", b"\\777"]), max_size=14))
def test_lines_that_look_nearly_right_raise_nothing(fields: list[bytes]) -> None:
    parse(b" ".join(fields))


def test_a_malformed_line_costs_only_itself() -> None:
    data = (
        b"garbage\n22 1 0:5 / /run rw,nosuid shared:2 - tmpfs tmpfs rw,mode=755\n23 x 0:6 / /y rw - a b c\n"
    )
    (mount,) = parse(data)
    assert mount == Mount(
        22, 1, (0, 5), "/", "/run", ("rw", "nosuid"), ("shared:2",), "tmpfs", "tmpfs", ("rw", "mode=755")
    )


def test_an_empty_source_and_a_target_called_dash() -> None:
    (mount,) = parse(b"22 1 0:5 / - rw - tmpfs  rw")
    assert (mount.target, mount.source) == ("-", "")


def test_of_stacked_mounts_the_covering_one_is_seen() -> None:
    # The order of lines is no help: since Linux 6.8 it is that of creation.
    table = parse(
        b"30 29 0:9 / /run rw - tmpfs above rw\n"
        b"29 1 0:8 / /run rw - tmpfs below rw\n"
        b"31 30 0:7 / /run/user rw - tmpfs user rw\n"
    )
    seen = topmost(table, "/run")
    assert seen is not None
    assert seen.source == "above"
    assert [mount.source for mount in subtree(table, seen)] == ["above", "user"]
    assert topmost(table, "/runner") is None


def test_a_damaged_table_whose_parents_form_a_circle_ends() -> None:
    table = parse(b"2 3 0:1 / /a rw - t s rw\n3 2 0:1 / /b rw - t s rw\n4 4 0:1 / /c rw - t s rw")
    assert {mount.id for mount in subtree(table, table[0])} == {2, 3}
    assert [mount.id for mount in subtree(table, table[2])] == [4]


def test_the_table_of_this_machine_is_read_whole() -> None:
    with open("/proc/self/mountinfo", "rb") as file:
        data = file.read()
    assert len(parse(data)) == len(data.splitlines())
    assert topmost(read(), "/proc") is not None
