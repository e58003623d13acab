"""When a file system is checked, and what its program's exit status means."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.config.options import boot_config
from pyinit.root.fsck import ext_is_clean, meaning, percent


@pytest.mark.fault("F2")
@pytest.mark.parametrize("status", range(256))
def test_the_worst_bit_of_an_exit_status_counts(status: int) -> None:
    expected = (
        "damaged" if status & 4
        else "restart" if status & 2
        else "cancelled" if status & 32
        else "unsure" if status & (8 | 16 | 64 | 128)
        else "fixed" if status & 1
        else "clean"
    )  # fmt: skip
    assert meaning(status) == expected


def test_a_program_that_was_killed_has_said_nothing() -> None:
    assert meaning(-9) == meaning(-11) == "unsure"


def superblock(**fields: int) -> bytes:
    """A superblock of 1024 bytes; offsets: Documentation/filesystems/ext4/super.rst."""
    values = {
        "mounts": 3,
        "most": -1,
        "magic": 0xEF53,
        "state": 1,
        "interval": 0,
        "incompat": 0x2C2,
        **fields,
    }
    data = bytearray(1024)
    struct.pack_into("<HhHH", data, 52, values["mounts"], values["most"], values["magic"], values["state"])
    struct.pack_into("<I", data, 68, values["interval"])
    struct.pack_into("<I", data, 96, values["incompat"])
    struct.pack_into("<I", data, 404, values.get("errors", 0))
    return bytes(data)


def test_a_file_system_that_was_unmounted_well_is_clean() -> None:
    assert ext_is_clean(superblock())
    assert ext_is_clean(superblock(most=4))


@pytest.mark.parametrize(
    "fields",
    [
        {"state": 0}, {"state": 3}, {"state": 5}, {"magic": 0}, {"incompat": 0x2C6}, {"errors": 1},
        {"interval": 86400}, {"most": 3}, {"most": 2},
    ],
)  # fmt: skip
def test_everything_else_is_for_the_program_to_decide(fields: dict[str, int]) -> None:
    assert not ext_is_clean(superblock(**fields))


@given(st.binary(max_size=1100))
def test_any_bytes_are_judged(data: bytes) -> None:
    assert ext_is_clean(data) in (True, False)


def test_progress_is_told_in_percent_of_the_whole() -> None:
    assert percent(b"1 50 100 /dev/vda1") == 35
    assert percent(b"5 100 100 /dev/vda1") == 100
    assert percent(b"2 0 10 /dev/vda1") == 70


@given(st.binary(max_size=60))
def test_any_line_of_progress_is_read(line: bytes) -> None:
    done = percent(line)
    assert done is None or 0 <= done <= 100


@pytest.mark.parametrize(
    ("line", "mode"),
    [
        (b"", "auto"),
        (b"fsck.mode=force", "force"),
        (b"rd.skipfsck", "skip"),
        (b"rd.skipfsck=0", "auto"),
        (b"forcefsck", "force"),
        (b"forcefsck rd.skipfsck", "skip"),
        (b"forcefsck fsck.mode=auto", "auto"),
        (b"fsck.mode=nonsense", "auto"),
    ],
)
def test_words_for_the_mode(line: bytes, mode: str) -> None:
    assert boot_config(line).fsck_mode == mode
