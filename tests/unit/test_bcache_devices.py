"""bcache: which devices are asked for, and what their superblocks say."""

from __future__ import annotations

import uuid
from math import inf
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_machine import MadeUpMachine

from pyinit.config import bcache as config
from pyinit.config.cmdline import parse
from pyinit.config.options import boot_config
from pyinit.config.sealed import EMPTY_INDEX
from pyinit.config.volumes import parse_sealed_uuids
from pyinit.devices.view import DeviceView
from pyinit.kernel.console import Console
from pyinit.kernel.modules import Modules
from pyinit.kernel.patience import Patience
from pyinit.record import Record
from pyinit.storage import SEALED_BCACHE, bcache
from pyinit_image import facts
from pyinit_image.features import Target
from pyinit_image.features.bcache import Bcache
from pyinit_image.plan import Plan
from pyinit_image.sysroot import Sysroot
from pyinit_qemu.disks import stacks

UUID = "c0ffee00-0000-4000-8000-0000000000bc"
OTHER = "c0ffee00-0000-4000-8000-0000000000bd"
SET = "c0ffee00-0000-4000-8000-00000000005e"
BACKING = config.Superblock(True, UUID, SET, "clean")
CACHE = config.Superblock(False, OTHER, SET, "")


def words(line: str) -> config.BcacheWords:
    found = boot_config(line.encode()).bcache
    assert found is not None
    return found


def test_words() -> None:
    assert boot_config(b"root=/dev/sda1").bcache is None
    assert words("rd.bcache").everything
    assert words("rd.bcache=1").everything
    assert words("rd.auto").everything
    assert not words("rd.auto rd.bcache=0").enabled
    assert words(f"rd.bcache={UUID.upper()} rd.bcache={UUID}") == config.BcacheWords(uuids=(UUID,))
    assert words("rd.bcache.degraded") == config.BcacheWords(degraded=True)
    assert "rd.bcache=sda is not understood" in boot_config(b"rd.bcache=sda").warnings[0]


@given(st.binary())
def test_any_command_line_is_read(line: bytes) -> None:
    warnings: list[str] = []
    found = config.bcache_words(parse(b"rd.bcache=" + line), warnings)
    assert all(str(uuid.UUID(name)) == name for name in found.uuids)
    assert all(text.isprintable() for text in warnings)


@given(st.uuids(), st.uuids(), st.sampled_from(("none", "clean", "dirty", "stale")), st.binary())
def test_a_superblock_is_read_as_it_was_written(
    name: uuid.UUID, cache_set: uuid.UUID, state: str, rest: bytes
) -> None:
    if state != "stale":
        data = stacks._bcache_head(1, name, cache_set, state, 0)
        shown = str(cache_set) if cache_set.int else ""
        assert config.parse_superblock(data + rest) == config.Superblock(True, str(name), shown, state)
    data = stacks._bcache_head(0, name, cache_set, "", 256)
    found = config.parse_superblock(data)
    assert found is not None and not found.backing and found.uuid == str(name)


@given(st.binary(max_size=300), st.integers(0, 200))
def test_no_damaged_superblock_surprises(data: bytes, place: int) -> None:
    good = stacks._bcache_head(1, uuid.UUID(UUID), uuid.UUID(SET), "clean", 0)
    for hostile in (data, good[:place], good[:place] + data + good[place + len(data) :]):
        found = config.parse_superblock(hostile)
        assert found is None or str(uuid.UUID(found.uuid)) == found.uuid


@given(st.text())
def test_only_a_uuid_is_one(text: str) -> None:
    found = config.backing_uuid(text)
    assert found == "" or str(uuid.UUID(found)) == found


def test_a_path_names_its_backing_device() -> None:
    paths = [
        f"/dev/bcache/by-uuid/{UUID}",
        "/dev/bcache/by-uuid/x",
        "/dev/sda1",
        f"/dev/disk/by-uuid/{OTHER}",
    ]
    assert config.uuids_of_paths(paths) == [UUID]


class Told(bcache.Bcache):
    """Has superblocks without disks, and remembers what the kernel would be told."""

    def __init__(self, superblocks: dict[str, config.Superblock | None], **options: bool) -> None:
        console = Console(Record("", ""))
        super().__init__(
            () if options.get("everything") else (UUID,),
            options.get("everything", False),
            options.get("degraded", False),
            Patience(console),
            Modules(EMPTY_INDEX, console),
            console,
        )
        self.superblocks = superblocks
        self.told: list[str] = []

    def _read(self, view: DeviceView) -> config.Superblock | None:
        return self.superblocks[view.name]

    def _register(self, member: bcache._Member) -> None:
        self.told.append(member.view.name)

    def see(self, *names: str) -> None:
        self.react(
            [
                DeviceView(
                    f"/sys/{name}", name, "block", "disk", f"/dev/{name}", (8, number), (),
                    {"ID_FS_TYPE": "bcache"}, True,
                )
                for number, name in enumerate(names)
            ]
        )  # fmt: skip


FOREIGN = config.Superblock(True, OTHER, OTHER, "clean")
FOREIGN_CACHE = config.Superblock(False, UUID, OTHER, "")


def test_only_what_was_asked_for_is_told_to_the_kernel_caches_first() -> None:
    every = {"back": BACKING, "cache": CACHE, "foreign": FOREIGN, "fcache": FOREIGN_CACHE, "broken": None}
    one = Told(every)
    one.see(*every)
    one.see(*every)
    assert one.told == ["cache", "back"]
    all_of_them = Told(every, everything=True)
    all_of_them.see(*every)
    assert sorted(all_of_them.told) == ["back", "cache", "fcache", "foreign"]


def test_a_device_that_comes_again_is_told_again() -> None:
    stack = Told({"back": BACKING, "cache": CACHE})
    stack.see("back", "cache")
    stack.see("back")
    stack.see("back", "cache")
    assert stack.told == ["cache", "back", "cache"]


def test_what_is_missing_is_said() -> None:
    stack = Told({"back": BACKING})
    assert stack.waits_for() == (f"no backing device {UUID}",)
    stack.see("back")
    assert stack.waits_for() == (f"backing device /dev/back ({UUID}) is here, its cache set {SET} is not",)


@pytest.mark.parametrize(
    ("state", "degraded", "at"), [("clean", True, 130.0), ("dirty", True, inf), ("clean", False, inf)]
)
def test_it_is_used_without_its_cache_only_on_request_and_never_when_data_would_be_lost(
    state: str, degraded: bool, at: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bcache, "monotonic", lambda: 100.0)
    stack = Told({"back": BACKING._replace(state=state)}, degraded=degraded)
    stack.see("back")
    assert stack.wake() == at
    assert ("the cache has data that it has not" in stack.waits_for()[0]) == (state == "dirty")


@pytest.mark.parametrize(("told", "sealed"), [(UUID, [UUID]), ("garbage", None)])
def test_an_image_for_a_host_on_a_bcache_has_the_feature_and_the_uuid(
    told: str, sealed: list[str] | None, tmp_path: Path
) -> None:
    machine = MadeUpMachine(tmp_path)
    disk = machine.block("pci0000:00/0000:00:02.0/virtio2/block/vda", "254:0")
    place = machine.block("virtual/block/bcache0", "252:0", disk)
    machine.file(f"{place}/bcache/backing_dev_uuid", f"{told}\n")
    machine.mount("252:0", "/", "ext4", "/dev/bcache0")
    plan = Plan(Sysroot(tmp_path))
    target = Target(plan.sysroot, cast(Any, None), "host", "open", "", facts.record(machine.top))
    feature = Bcache()
    assert feature.wanted(target) == "bcache0 is in use for the root"
    feature.add(plan, target, "why")
    entry = plan.entries.get(SEALED_BCACHE)
    assert (None if entry is None else parse_sealed_uuids(entry.data)) == sealed


def test_an_image_for_another_host_has_not(tmp_path: Path) -> None:
    machine = MadeUpMachine(tmp_path)
    machine.block("pci0000:00/0000:00:02.0/virtio2/block/vda", "254:0")
    machine.mount("254:0", "/", "ext4", "/dev/vda")
    plan = Plan(Sysroot(tmp_path))
    target = Target(plan.sysroot, cast(Any, None), "host", "open", "", facts.record(machine.top))
    assert Bcache().wanted(target) == ""
