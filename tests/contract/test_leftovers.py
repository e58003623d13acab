"""Processes that are left when the real init shall start, ended for real in a PID namespace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyinit.errors import BootError
from pyinit.kernel.leftovers import end_leftovers


@pytest.fixture(scope="module")
def facts(isolated: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("leftovers")
    result = isolated(Path(__file__).with_name("leftovers_stage.py"), str(directory))
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads((directory / "facts.json").read_text())
    return found


def test_without_children_nothing_is_looked_for(facts: dict[str, Any]) -> None:
    assert facts["nothing"] == []
    assert not facts["imported"]


def test_a_zombie_is_reaped_and_no_leftover(facts: dict[str, Any]) -> None:
    assert facts["zombie"] == []


def test_every_process_but_storage_daemons_is_asked_to_end(facts: dict[str, Any]) -> None:
    pids = facts["pids"]
    assert sorted(facts["willing"]) == [
        [pids["plain"], "plain\\x1b 1000", "TERM"],
        [pids["stopped"], "stopped 1000", "TERM"],
        [pids["orphan"], "orphan 1000", "TERM"],
    ]


def test_what_does_not_listen_is_killed(facts: dict[str, Any]) -> None:
    assert [(command, outcome) for _, command, outcome in facts["stubborn"]] == [("stubborn 1000", "KILL")]


def test_only_the_storage_daemon_is_left(facts: dict[str, Any]) -> None:
    assert facts["alive"] == [1, facts["pids"]["@daemon"]]


def test_nobody_but_pid_1_may_do_this() -> None:
    with pytest.raises(BootError, match="PID 1 only"):
        end_leftovers(0)
