"""fstab as libmount reads it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import libmount
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.config.devspec import parse_spec
from pyinit.config.fstab import normalise, parse, split_options

EXAMPLE = rb"""# /etc/fstab: static file system information.
UUID=0a3407de-014b-458b-b5c1-848e92a327a3 /               ext4    errors=remount-ro 0       1
/dev/sr0        /media/cd\040rom   udf,iso9660 user,noauto     0       0
	LABEL=usr	/usr//	xfs	x-initrd.mount,context="a:b,c"	0 2

tmpfs /tmp/../var/tmp tmpfs
UUID=1 none swap sw 0 0
"""


def test_an_fstab_is_read() -> None:
    fstab = parse(EXAMPLE)
    assert fstab.warnings == ()
    assert [(line.number, line.target, line.fstype, line.passno) for line in fstab.lines] == [
        (2, "/", "ext4", 1),
        (3, "/media/cd rom", "udf,iso9660", 0),
        (4, "/usr", "xfs", 2),
        (6, "/var/tmp", "tmpfs", 0),
        (7, "none", "swap", 0),
    ]
    assert fstab.lines[2].options == ("x-initrd.mount", 'context="a:b,c"')
    assert fstab.lines[2].has("x-initrd.mount", "noauto")
    assert not fstab.lines[2].has("noauto")


@pytest.mark.parametrize("line", [b"/dev/vda1", b"/dev/vda1 /usr", b"/dev/vda1 usr ext4", b"x /a\\000b ext4"])
def test_a_line_that_makes_no_sense_is_named(line: bytes) -> None:
    fstab = parse(b"\n" + line + b"\nproc /proc proc\n")
    assert [one.target for one in fstab.lines] == ["/proc"]
    (warning,) = fstab.warnings
    assert warning.startswith("fstab line 2")


@given(st.binary(max_size=300))
def test_any_bytes_are_read_without_an_error(data: bytes) -> None:
    for line in parse(data).lines:
        assert line.target == "none" or line.target.startswith("/")
        assert ".." not in line.target.split("/")
    assert all(warning.isascii() and warning.isprintable() for warning in parse(data).warnings)


@given(st.text(max_size=60))
def test_normalising_twice_changes_nothing(path: str) -> None:
    assert normalise(normalise(path) or "/") == (normalise(path) or "/")


@given(st.text(alphabet='ab,"=', max_size=30))
def test_options_are_split_and_not_lost(text: str) -> None:
    parts = split_options(text)
    assert sum(map(len, parts)) + text.count(",") >= len(text)
    assert all(parts)


@pytest.mark.effects
@pytest.mark.skipif(not shutil.which("findmnt"), reason="findmnt(8) is part of every Debian")
def test_libmount_reads_the_same(tmp_path: Path) -> None:
    table = tmp_path / "fstab"
    table.write_bytes(EXAMPLE)
    output = subprocess.run(
        ["findmnt", "--fstab", "--tab-file", table, "--json", "--list", "-o", "SOURCE,TARGET,FSTYPE,OPTIONS"],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    theirs = [
        (one["source"], one["target"].rstrip("/") or "/", one["fstype"])
        for one in json.loads(output)["filesystems"]
    ]
    ours = [(line.source, line.target, line.fstype) for line in parse(EXAMPLE).lines]
    assert [(source, fstype) for source, _, fstype in theirs] == [
        (source, fstype) for source, _, fstype in ours
    ]


@given(data=libmount.FSTABS)
def test_escapes_and_quotes_are_those_of_libmount(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    rows = libmount.read(tmp_path_factory.getbasetemp() / "fstab", data, fstab=True)
    read = parse(data)
    assert read.warnings == ()
    assert [(line.target, line.fstype, line.options) for line in read.lines] == [
        (normalise(row.target), row.fstype, tuple(split_options(row.options))) for row in rows
    ]
    # Quotes around the value of a tag are taken off where it is looked up.
    for line, row in zip(read.lines, rows, strict=True):
        if not line.source.startswith("/"):
            spec = parse_spec(line.source)
            assert f"{spec.kind.value}={spec.value}" == row.source
        else:
            assert line.source == row.source
