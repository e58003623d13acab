"""fstab and mdadm.conf: what they say, and that no bytes break the parsers."""

from __future__ import annotations

import dataclasses

import libmount
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit_image import tables
from pyinit_image.tables import Array, Filesystem

#: Bytes that mean something to one of the parsers, and a few that do not.
PIECES = (
    *(b"/", b"#", b"\n", b" ", b"\t", b"\\040", b"\\000", b"\0", b"=", b'"', b"'", b",", b"\xff", b"none"),
    *(b"ARRAY", b"uuid=", b"name=h:0", b"/dev/md0", b"/dev/sda1", b"ext4", b"arr", b"\r", b"\x0b"),
)
LINES = st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join)
ANY = st.binary(max_size=200) | LINES


def test_fstab() -> None:
    entries, warnings = tables.parse_fstab(
        b"# comment\n"
        b"\n"
        b'UUID="1-2"  /            ext4  errors=remount-ro,noatime 0 1\r\n'
        b"\tLABEL=a\\040b /mnt/\\303\\244\\011x\tvfat\n"
        b"/dev/sda2 none swap sw 0 zero\n"
    )
    assert entries == (
        Filesystem(3, "UUID=1-2", "/", "ext4", ("errors=remount-ro", "noatime")),
        Filesystem(4, "LABEL=a b", "/mnt/\xe4\tx", "vfat", ("defaults",)),
        Filesystem(5, "/dev/sda2", "none", "swap", ("sw",)),
    )
    assert [entry.is_swap for entry in entries] == [False, False, True]
    assert warnings == ()


def test_bad_lines_of_fstab_are_named_and_the_others_are_read() -> None:
    entries, warnings = tables.parse_fstab(
        b"/dev/sda1 /\x1b\n/dev/a\0 / ext4\n/dev\\000 / ext4\nnone /proc proc"
    )
    assert [entry.line for entry in entries] == [4]
    assert warnings == (
        "line 1: no device, mount point and type: /dev/sda1 /\\x1b",
        "line 2: a zero byte in it: /dev/a\\x00 / ext4",
        "line 3: a zero byte in it: /dev\\\\000 / ext4",
    )


UUID = "3aaa0122:29827cfa:5331ad66:ca767371"
PLAIN = "3aaa012229827cfa5331ad66ca767371"


@pytest.mark.parametrize(
    ("text", "array"),
    [
        (f"ARRAY /dev/md0 UUID={UUID}", Array(1, "/dev/md0", PLAIN, "")),
        (f"\nARRAY /dev/md/a\n\tname=host:a\n# no comment ends a line\n  uuid={UUID} # x", None),
        (f"array <ignore> uuid={PLAIN.upper()}", Array(1, "<ignore>", PLAIN, "")),
        ("ARR 'my array' name='host:my array'", Array(1, "my array", "", "host:my array")),
        ("ARRAY /dev/md/b=c devices=/dev/sda,/dev/sdb", Array(1, "/dev/md/b=c", "", "")),
    ],
)
def test_mdadm(text: str, array: Array | None) -> None:
    array = array or Array(2, "/dev/md/a", PLAIN, "host:a")
    assert tables.parse_mdadm(f"DEVICE partitions\n\n{text}\nMAILADDR root\n".encode()) == (
        (Array(array.line + 2, array.device, array.uuid, array.name),),
        (),
    )


def test_bad_lines_of_mdadm_are_named() -> None:
    entries, warnings = tables.parse_mdadm(
        b"ARRAY /dev/md0 UUID=12\nARRAY /dev/md1 metadata=1.2\n  level=raid1\n"
    )
    assert entries == ()
    assert warnings == (
        "line 1: not a UUID: 12",
        "line 2: nothing tells which array it is: ARRAY /dev/md1 metadata=1.2 level=raid1",
    )


@given(ANY)
def test_no_bytes_break_the_parsers(data: bytes) -> None:
    lines = data.count(b"\n") + 1
    for parser in (tables.parse_fstab, tables.parse_mdadm):
        entries, warnings = parser(data)
        numbers = [entry.line for entry in entries]
        assert numbers == sorted(set(numbers))
        assert all(1 <= number <= lines for number in numbers)
        assert all(warning.isascii() and warning.isprintable() for warning in warnings)
        assert all("\0" not in str(value) for entry in entries for value in dataclasses.astuple(entry))


def escaped(text: str) -> bytes:
    """As fstab(5) wants it."""
    return b"".join(
        b"\\%03o" % byte if byte <= 32 or byte in b"\\#" else bytes((byte,)) for byte in text.encode()
    )


WORDS = st.text(st.characters(exclude_characters="\0,=", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(st.lists(st.tuples(WORDS, WORDS, WORDS, WORDS), max_size=5))
def test_fstab_is_read_as_it_was_written(rows: list[tuple[str, str, str, str]]) -> None:
    data = b"\n".join(b" ".join(map(escaped, row)) for row in rows)
    entries, warnings = tables.parse_fstab(data)
    assert [(entry.spec, entry.file, entry.type, ",".join(entry.options)) for entry in entries] == rows
    assert warnings == ()


@given(data=libmount.FSTABS)
def test_fstab_is_what_libmount_reads(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    rows = libmount.read(tmp_path_factory.getbasetemp() / "fstab", data, fstab=True)
    entries, warnings = tables.parse_fstab(data)
    assert warnings == ()
    assert [(entry.spec, entry.file, entry.type, ",".join(entry.options)) for entry in entries] == [
        (row.source, row.target, row.fstype, row.options) for row in rows
    ]
