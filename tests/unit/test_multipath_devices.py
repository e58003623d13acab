"""Multipath: which disks are asked for, and what an image has for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from made_up_machine import MadeUpMachine

from pyinit.config.multipath import MultipathWords, wwids_of_paths
from pyinit.config.options import boot_config
from pyinit.config.volumes import parse_sealed_uuids
from pyinit.storage import SEALED_MULTIPATH
from pyinit_image import facts
from pyinit_image.features import Target
from pyinit_image.features.multipath import BINDINGS, CONFIGURATION, WWIDS, Multipath, parse_wwids
from pyinit_image.plan import Plan
from pyinit_image.sysroot import Sysroot

WWID, OTHER = "35000c50015ea71aa", "0QEMU_QEMU_HARDDISK_other"
TABLE = f"# Multipath wwids, Version : 1.0\n# Valid WWIDs:\n/{WWID}/\n/{OTHER}/\n/{WWID}/\n"


def words(line: str) -> MultipathWords:
    found = boot_config(line.encode()).multipath
    assert found is not None
    return found


def test_words() -> None:
    assert boot_config(b"root=/dev/sda1").multipath is None
    assert words("rd.multipath") == words("rd.multipath=1") == MultipathWords(everything=True)
    assert words("rd.multipath=default") == MultipathWords(everything=True, configured=False)
    for off in ("rd.multipath=0", "nompath", "multipath=off", "rd.multipath nompath", "nompath rd.multipath"):
        assert not words(off).enabled and not words(off).everything
    assert words(f"rd.multipath={WWID} rd.multipath={WWID}") == MultipathWords(wwids=(WWID,))
    assert words("multipath=on") == MultipathWords()
    assert "is not understood: the WWID" in boot_config(b"rd.multipath=../x").warnings[0]


def test_paths_that_name_a_map_say_which_disk_it_is_of() -> None:
    folder = "/dev/disk/by-id/dm-uuid-"
    paths = [f"{folder}mpath-{WWID}", f"{folder}part2-mpath-{OTHER}", f"{folder}mpath-..", f"{folder}LVM-x"]
    assert wwids_of_paths(paths) == [WWID, OTHER]


def test_the_table_of_multipath() -> None:
    assert parse_wwids(TABLE) == [WWID, OTHER]
    assert parse_wwids("//\n/a/b/\n#/c/\n/d\nd/\n/../\n") == []


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A system with the programs, and with a map."""
    for path, text in {
        **{f"/usr/sbin/{name}": "#!\n" for name in ("multipath", "kpartx", "dmsetup")},
        WWIDS: TABLE,
        BINDINGS: f"mpatha {WWID}\n",
        CONFIGURATION: "defaults {\n}\n",
    }.items():
        place = tmp_path / path.removeprefix("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return tmp_path


def target_of(root: Path, mode: str, found: facts.Facts | None = None) -> Target:
    return Target(Sysroot(root), cast(Any, None), mode, "", "", found)


def test_a_system_that_has_made_maps_gets_the_feature_and_the_disks(system: Path) -> None:
    target = target_of(system, "generic")
    assert Multipath().wanted(target) == f"{WWIDS} names disks with several paths"
    assert not Multipath().wanted(target_of(system, "list"))
    plan = Plan(target.sysroot)
    Multipath().add(plan, target, "a reason")
    entries = plan.entries
    assert parse_sealed_uuids(entries[SEALED_MULTIPATH].data) == [WWID, OTHER]
    assert {BINDINGS, CONFIGURATION, WWIDS} <= set(entries)
    (system / WWIDS.removeprefix("/")).write_text("# Valid WWIDs:\n")
    assert not Multipath().wanted(target_of(system, "generic"))


def test_an_image_for_a_host_has_it_when_the_root_is_on_a_map(tmp_path: Path) -> None:
    machine = MadeUpMachine(tmp_path)
    disk = machine.block("pci0000:00/0000:00:01.0/host0/target0:0:0/0:0:0:0/block/sda", "8:0")
    whole = machine.block("virtual/block/dm-0", "253:0", disk)
    part = machine.block("virtual/block/dm-1", "253:1", whole)
    machine.file(f"{whole}/dm/uuid", f"mpath-{WWID}\n")
    machine.file(f"{part}/dm/uuid", f"part1-mpath-{WWID}\n")
    machine.mount("253:1", "/", "ext4", "/dev/mapper/mpatha-part1")
    target = target_of(tmp_path, "host", facts.record(tmp_path))
    assert Multipath().wanted(target) == "the multipath device dm-1 is in use for the root"
