"""Device events that do not come from udevd are not believed, with real netlink sockets."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.fault("H3", "row-20")


@pytest.fixture(scope="module")
def facts(isolated: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("uevents")
    result = isolated(Path(__file__).with_name("uevent_stage.py"), str(directory))
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads((directory / "facts.json").read_text())
    return found


def test_what_udevd_sends_is_seen_and_nothing_else(facts: dict[str, Any]) -> None:
    assert facts["outcomes"]["first"] == facts["outcomes"]["last"] == "sent"
    assert facts["seen"] == [["add", name, f"/dev/{name}"] for name in ("first", "last")]


def test_the_kernel_lets_no_user_send_events(facts: dict[str, Any]) -> None:
    if os.geteuid() == 0:
        assert facts["outcomes"]["user"] == "EPERM"
    # In a namespace of their own people may send, but only to whoever listens there.
    assert facts["outcomes"]["namespace"] in ("sent", "ECONNREFUSED")


def test_forged_events_that_the_kernel_delivers_are_dropped(facts: dict[str, Any]) -> None:
    """CVE-2009-1185: another user's, one for this listener alone; and messages that are cut off or lie."""
    delivered = ["unicast", "kernel", "long", "empty", "offset"]
    if os.geteuid() == 0:
        # Without root there is only one user in the namespace of the test.
        delivered.append("capable")
    assert {name: facts["outcomes"][name] for name in delivered} == dict.fromkeys(delivered, "sent")
    names = [name for _, name, _ in facts["seen"]]
    assert not set(names) & {*delivered, "user", "namespace"}
