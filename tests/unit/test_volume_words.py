"""Names of logical volumes and arrays, as they are typed and sealed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.config.options import boot_config
from pyinit.config.volumes import (
    Array,
    Volume,
    VolumeWords,
    array_uuid,
    dump,
    parse_sealed_arrays,
    parse_sealed_volumes,
    parse_volume,
    show_array,
    volume_of_path,
)
from pyinit.storage.md import exported
from pyinit.storage.wanted import wanted_arrays, wanted_volumes

UUID = "0123abcd4567ef890123abcd4567ef89"


@pytest.mark.parametrize(
    ("path", "volume"),
    [
        ("/dev/v/root", Volume("v", "root")),
        ("/dev/mapper/v-root", Volume("v", "root")),
        ("/dev/mapper/my--group-my--root", Volume("my-group", "my-root")),
        ("/dev/my-group/my-root", Volume("my-group", "my-root")),
        ("/dev/mapper/luks", None),
        ("/dev/mapper/control", None),
        ("/dev/md/0", None),
        ("/dev/disk/by-uuid", None),
        ("/dev/vda1", None),
        ("/dev/a/b/c", None),
        ("/dev/-a/b", None),
        ("v/root", None),
    ],
)
def test_paths_that_mean_a_volume(path: str, volume: Volume | None) -> None:
    assert volume_of_path(path) == volume


@pytest.mark.parametrize(
    "text",
    ["0123abcd:4567ef89:0123abcd:4567ef89", "0123ABCD-4567-ef89-0123-abcd4567ef89", UUID, f"md-uuid-{UUID}"],
)
def test_the_uuid_of_an_array_however_it_is_written(text: str) -> None:
    assert array_uuid(text) == UUID
    assert show_array(array_uuid(text)) == "0123abcd:4567ef89:0123abcd:4567ef89"


def test_words_of_the_command_line() -> None:
    assert boot_config(b"root=/dev/vda1").volumes is None
    config = boot_config(
        b"rd.lvm.vg=v rd.lvm.lv=w/root rd.lvm.lv=w rd.md.uuid=x rd.md=0 rd.auto rd.lvm.conf=0"
    )
    assert config.volumes == VolumeWords(
        auto=True, lvm_conf=False, md=False, volumes=(Volume("v", ""), Volume("w", "root"))
    )
    assert config.warnings == (
        "rd.lvm.lv=w is not understood: GROUP/VOLUME is expected",
        "rd.md.uuid=x is not understood: the UUID of an array is expected",
    )


def test_what_the_builder_found_counts_when_nothing_else_is_asked_for() -> None:
    sealed = [Volume("v", "root")]
    assert wanted_volumes(VolumeWords(), [], sealed) == sealed
    assert wanted_volumes(VolumeWords(), ["/dev/w/x"], sealed) == [Volume("w", "x")]
    arrays = [Array(UUID, "host:0", "/dev/md/0"), Array("", "host:1", "/dev/md/1")]
    assert wanted_arrays(VolumeWords(), ["/dev/md127"], arrays) == ({UUID}, {"host:1", "127"})
    assert wanted_arrays(VolumeWords(md_conf=False), [], arrays) == (set(), set())


def test_what_is_sealed_is_read_again() -> None:
    assert parse_sealed_volumes(dump([["v/root"], ["w"]])) == [Volume("v", "root"), Volume("w", "")]
    assert parse_sealed_arrays(dump([[UUID, "a", ""]])) == [Array(UUID, "a", "")]


@given(st.binary(max_size=100) | st.text(alphabet='[]",a', max_size=30).map(str.encode))
def test_damaged_files_are_value_errors(data: bytes) -> None:
    for parse in (parse_sealed_volumes, parse_sealed_arrays):
        try:
            parse(data)
        except ValueError:
            pass


@given(st.text(max_size=60))
def test_any_text_is_judged(text: str) -> None:
    for volume in (parse_volume(text), volume_of_path(text), volume_of_path(f"/dev/mapper/{text}")):
        if volume is not None:
            assert volume.group and not volume.group.startswith("-") and not volume.name.startswith("-")
    assert array_uuid(text) == "" or len(array_uuid(text)) == 32
    exported(text.splitlines())


def test_what_mdadm_exports() -> None:
    lines = ["MD_DEVICE=md127", "MD_DEVNAME='0'", "mdadm: /dev/vda1 attached to /dev/md/0", "MD_STARTED=yes"]
    assert exported(lines) == {"MD_DEVICE": "md127", "MD_DEVNAME": "0", "MD_STARTED": "yes"}
