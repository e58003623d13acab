"""Roots that nobody named, by the type of their partitions."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.config.discoverable import NO_AUTO, READ_ONLY, ROOT, USR, attributes, parse_loader_variable
from pyinit.devices.view import DeviceView
from pyinit.root.discover import Discovery

BOOTED = "5c0ffee5-0000-4000-8000-00000000f00d"


def partition(
    name: str, disk: int, kind: str = ROOT["x86_64"], flags: int = 0, uuid: str = "", scheme: str = "gpt"
) -> DeviceView:
    number = int(name[-1])
    properties = {
        "ID_PART_ENTRY_SCHEME": scheme,
        "ID_PART_ENTRY_TYPE": kind,
        "ID_PART_ENTRY_DISK": f"8:{disk}",
        "ID_PART_ENTRY_NUMBER": str(number),
        "ID_PART_ENTRY_UUID": uuid or f"0000000{number}-0000-4000-8000-00000000000{disk // 16}",
    }
    if flags:
        properties["ID_PART_ENTRY_FLAGS"] = hex(flags)
    return DeviceView(
        f"/sys/{name}", name, "block", "partition", f"/dev/{name}", (8, disk + number), (), properties, True
    )


ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
A1 = partition("sda1", 0, ESP, uuid=BOOTED)
A2, A3 = partition("sda2", 0), partition("sda3", 0)
B1 = partition("sdb1", 16)


def found(booted: str, *known: DeviceView) -> list[str]:
    return [view.name for view in Discovery(booted, "x86_64").root(known)]


def test_the_only_one_is_it() -> None:
    assert found("", A1, B1) == ["sdb1"]
    other = partition("sdc1", 32, ROOT["aarch64"])
    assert found("", A1, B1, other, partition("sdd1", 48, scheme="dos")) == ["sdb1"]


def test_several_are_all_named_when_it_is_not_known_what_was_booted_from() -> None:
    assert found("", A1, A2, B1) == ["sda2", "sdb1"]


def test_on_the_disk_that_was_booted_from_it_is_the_first() -> None:
    known = (B1, A3, A2, A1)
    assert found(BOOTED, *known) == ["sda2"]
    assert "the first partition" in (Discovery(BOOTED, "x86_64").reason(known))


def test_another_disk_is_not_taken_while_the_one_that_was_booted_from_is_not_there() -> None:
    assert found(BOOTED, B1) == []
    assert Discovery(BOOTED, "x86_64").remarks([B1])[0] == (
        f"the partition that was booted from, PARTUUID={BOOTED}, is not there"
    )
    assert Discovery(BOOTED, "x86_64").remarks([A1, B1]) == [
        "/dev/sdb1 has the type of a root, and is on another disk than was booted from"
    ]


def test_what_is_marked_is_left_alone() -> None:
    marked = partition("sdb1", 16, flags=NO_AUTO | READ_ONLY)
    assert found("", marked) == []
    assert Discovery("", "x86_64").remarks([marked]) == [
        "/dev/sdb1 has the type of a root, and is marked as not to be used by itself"
    ]


def test_a_root_may_be_marked_as_read_only() -> None:
    discovery = Discovery("", "x86_64")
    for flags in (0, READ_ONLY):
        discovery.choose(partition("sdb1", 16, flags=flags))
        assert discovery.read_only == bool(flags)


@pytest.mark.effects
def test_usr_is_taken_from_the_same_disk_when_the_root_has_none(tmp_path: Path) -> None:
    own, other = partition("sda4", 0, USR["x86_64"], READ_ONLY), partition("sdb2", 16, USR["x86_64"])
    discovery = Discovery("", "x86_64")
    discovery.choose(A2)
    (one,) = discovery.usr([other, own, A2], str(tmp_path))
    assert (one.target, one.source, one.options) == (
        "/usr",
        f"PARTUUID={own.properties['ID_PART_ENTRY_UUID']}",
        "ro",
    )
    (tmp_path / "usr/bin").mkdir(parents=True)
    assert discovery.usr([other, own, A2], str(tmp_path)) == []


def test_the_variable_of_the_boot_loader() -> None:
    text = BOOTED.upper() + "\0"
    assert parse_loader_variable(b"\6\0\0\0" + text.encode("utf-16-le")) == BOOTED
    assert parse_loader_variable(b"\6\0\0\0" + b"\x1b[2J") == ""


@given(st.binary(max_size=200))
def test_any_bytes_are_a_uuid_or_nothing(data: bytes) -> None:
    uuid = parse_loader_variable(data)
    assert uuid == "" or len(uuid) == 36


@given(st.text(max_size=20))
def test_any_attributes_are_a_number(text: str) -> None:
    view = partition("sda1", 0)
    view.properties["ID_PART_ENTRY_FLAGS"] = text
    assert 0 <= attributes(view) < 1 << 64
