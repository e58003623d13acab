"""When a btrfs is used that lacks devices."""

from __future__ import annotations

from math import inf

import pytest

from pyinit.config.devspec import parse_spec
from pyinit.devices.view import DeviceView
from pyinit.kernel.console import Console
from pyinit.record import Record
from pyinit.storage import btrfs

UUID = "c0ffee00-0000-4000-8000-00000000000b"


def member(name: str, minor: int, ready: str) -> DeviceView:
    properties = {
        "ID_FS_TYPE": "btrfs",
        "ID_FS_UUID": UUID,
        "ID_FS_UUID_SUB": name,
        "ID_BTRFS_READY": ready,
    }
    node = f"/dev/{name}"
    return DeviceView(f"/sys/{name}", name, "block", "disk", node, (8, minor), (), properties, True)


def test_it_is_used_incomplete_after_a_while_unless_the_last_one_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = 100.0
    monkeypatch.setattr(btrfs, "monotonic", lambda: clock)
    said: list[str] = []
    console = Console(Record("", ""))
    monkeypatch.setattr(console, "warning", said.append)
    accepted: list[bool] = []
    decides = btrfs.Btrfs(parse_spec(f"UUID={UUID}"), lambda: accepted.append(True), console)
    assert decides.wake() == inf
    first, last = member("sda", 0, "0"), member("sdb", 16, "1")
    decides.react([first])
    assert decides.wake() == 130.0
    assert decides.waits_for() == ("the file system is not complete; its devices here: /dev/sda",)
    clock = 120.0
    decides.react([first, last])
    assert decides.wake() == inf and decides.waits_for() == ()
    decides.react([first])
    assert decides.wake() == 150.0
    clock = 150.0
    decides.react([first])
    assert accepted == [True]
    assert said == [
        "the file system is not complete; its devices here: /dev/sda; it is mounted without the others "
        "after 30 s"
    ]
    decides.react([first])
    assert accepted == [True] and decides.wake() == inf and decides.waits_for() == ()
