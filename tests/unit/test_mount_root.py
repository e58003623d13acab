"""From the command line's words to the arguments of mount(2)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyinit.kernel.syscalls import MS
from pyinit.root.mount import parse_options, root_mount


def test_flags_are_taken_out_and_the_rest_is_the_file_systems() -> None:
    assert parse_options("noatime,subvol=@,compress=zstd:1") == (MS.NOATIME, "subvol=@,compress=zstd:1")


def test_the_last_of_opposite_options_wins() -> None:
    assert parse_options("ro,rw")[0] == 0
    assert parse_options("rw,ro")[0] == MS.RDONLY


def test_words_of_fstab_for_programs_are_dropped() -> None:
    assert parse_options("defaults,x-systemd.automount,_netdev,nofail,comment=a") == (0, "")


def test_commas_in_quotes_do_not_split() -> None:
    assert parse_options('context="a:b,c",ro') == (MS.RDONLY, 'context="a:b,c"')


def test_root_is_read_only_unless_rw() -> None:
    assert root_mount("/dev/vda", "ext4", "", writable=False).flags == MS.RDONLY
    assert root_mount("/dev/vda", "ext4", "", writable=True).flags == 0
    assert root_mount("/dev/vda", "ext4", "rw", writable=False).flags == MS.RDONLY
    assert root_mount("/dev/vda", "ext4", "ro", writable=True).flags == MS.RDONLY


def test_description_is_a_command_that_can_be_typed() -> None:
    spec = root_mount("/dev/vda", "btrfs", "subvol=@\x1b", writable=False)
    assert spec.describe() == "mount -t btrfs -o ro,subvol=@\\x1b /dev/vda /sysroot"


@given(st.text())
def test_any_text_is_split_without_an_error(text: str) -> None:
    flags, data = parse_options(text)
    assert isinstance(flags, int)
    assert len(data) <= len(text)
