"""What is mounted beside the root, from its fstab and the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.config.fstab import parse
from pyinit.config.options import boot_config
from pyinit.root.belongs import Wanted, in_order, place_inside, read_fstab, wanted


def targets(fstab: bytes, line: bytes = b"") -> list[tuple[str, str, str]]:
    found, _ = wanted(parse(fstab), boot_config(line))
    return [(one.target, one.source, one.options) for one in found]


def test_usr_and_what_asks_for_it_parents_first() -> None:
    fstab = (
        b"UUID=c /usr/local ext4 x-initrd.mount\nUUID=a / ext4\nUUID=d /home ext4\n"
        b"UUID=b /usr ext4 noatime\nUUID=e /srv ext4 noauto,x-initrd.mount\n"
    )
    assert targets(fstab, b"rw") == [
        ("/usr", "UUID=b", "noatime"),
        ("/usr/local", "UUID=c", "x-initrd.mount"),
    ]


def test_usr_is_read_only_when_the_root_is() -> None:
    assert targets(b"UUID=b /usr ext4 noatime\n", b"ro") == [("/usr", "UUID=b", "noatime,ro")]


def test_the_command_line_takes_the_place_of_the_line() -> None:
    fstab = b"UUID=b /usr ext4 noatime\n"
    assert targets(fstab, b"rw mount.usr=LABEL=x") == [("/usr", "LABEL=x", "noatime")]
    assert targets(fstab, b"rw mount.usr=LABEL=x mount.usrflags=sync") == [("/usr", "LABEL=x", "sync")]
    assert targets(b"", b"rw mount.usr=LABEL=x") == [("/usr", "LABEL=x", "")]


def test_fstab_can_be_left_to_the_real_system() -> None:
    assert targets(b"UUID=b /usr ext4 noatime\nbroken\n", b"rd.fstab=0") == []
    assert wanted(parse(b"broken"), boot_config(b"rd.fstab=0"))[1] == []
    assert targets(b"UUID=b /usr ext4\n", b"rw rd.fstab=0 mount.usr=LABEL=x") == [("/usr", "LABEL=x", "")]


def test_what_a_bound_directory_lies_on_is_mounted_before_it() -> None:
    fstab = (
        b"/srv/data/a /opt none bind,x-initrd.mount\nUUID=1 /srv/data ext4 x-initrd.mount\n"
        b"/usr/b /a none bind,x-initrd.mount\nUUID=2 /usr ext4\n/x /x none bind,x-initrd.mount\n"
    )
    assert [target for target, _, _ in targets(fstab, b"rw")] == ["/srv/data", "/opt", "/usr", "/a", "/x"]


PLACES = st.sampled_from(["/", "/a", "/a/b", "/a/b/c", "/b", "/b/a", "/ab"])


@given(st.lists(st.tuples(PLACES, PLACES, st.booleans()), max_size=6, unique_by=lambda row: row[0]))
def test_an_order_is_found_for_anything(rows: list[tuple[str, str, bool]]) -> None:
    found = [Wanted(to, of, "", "bind" if bind else "", "", False, False) for to, of, bind in rows]
    ordered = in_order(found)
    assert sorted(ordered) == sorted(found)
    if not any(one.is_bind for one in found):
        for before, one in enumerate(ordered):
            assert not any(other.target.startswith(f"{one.target}/") for other in ordered[:before])


@pytest.mark.parametrize("line", [b"h:/x /usr nfs", b"UUID=b /usr ext4 _netdev"])
def test_what_is_on_a_network_is_left_to_the_real_system(line: bytes) -> None:
    found, warnings = wanted(parse(line), boot_config())
    assert found == []
    assert "/usr is on a network" in warnings[0]


def test_a_bind_mount_is_no_device() -> None:
    (one,) = wanted(parse(b"/opt=x /usr none bind\n"), boot_config())[0]
    assert one.is_bind and not one.on_device


@pytest.mark.effects
def test_links_of_the_root_do_not_lead_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "usr").symlink_to("/../../etc")
    (tmp_path / "etc/fstab").symlink_to("/etc/real")
    (tmp_path / "etc/real").write_bytes(b"inside")
    assert place_inside(str(tmp_path), "/usr") == f"{tmp_path}/etc"
    assert place_inside(str(tmp_path), "/") == str(tmp_path)
    assert read_fstab(str(tmp_path)) == b"inside"
    os.unlink(tmp_path / "etc/real")
    assert read_fstab(str(tmp_path)) == b""
