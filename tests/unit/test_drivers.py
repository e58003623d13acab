"""Drivers are loaded beside everything else, and everybody knows when that is over."""

from __future__ import annotations

import select
import threading
from collections.abc import Iterator

import pytest

from pyinit.config.sealed import EMPTY_INDEX
from pyinit.kernel import drivers as module
from pyinit.kernel.console import Console
from pyinit.kernel.drivers import Drivers
from pyinit.kernel.modules import Modules
from pyinit.record import Record


class SlowModules(Modules):
    """Loading goes on until it is let go."""

    def __init__(self, console: Console) -> None:
        super().__init__(EMPTY_INDEX, console)
        self.started = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)
        self.passes = 0
        self.failure: Exception | None = None

    def load_for_devices(self) -> None:
        self.inserting[threading.get_ident()] = "ahci"
        self.passes += 1
        self.started.release()
        self.go_on.acquire()
        if self.failure:
            raise self.failure


class Told(Console):
    """Lets the driver go on when its slowness was told."""

    def __init__(self) -> None:
        super().__init__(Record("1", "6"))
        self.lines: list[str] = []
        self.slow: SlowModules | None = None

    def notice(self, text: str) -> None:
        self.lines.append(text)
        if self.slow:
            self.slow.go_on.release()


@pytest.fixture
def console() -> Told:
    return Told()


@pytest.fixture
def slow(console: Told) -> Iterator[SlowModules]:
    modules = SlowModules(console)
    yield modules
    modules.go_on.release(9)


def readable(drivers: Drivers, timeout: float | None = None) -> bool:
    return bool(select.select([drivers.fileno()], [], [], timeout)[0])


def test_nothing_waits_for_a_driver(console: Told, slow: SlowModules) -> None:
    drivers = Drivers(console)
    assert not drivers.busy and drivers.loading() == ""
    drivers.look(slow)
    slow.started.acquire()
    assert drivers.busy and drivers.loading() == "ahci" and not readable(drivers, 0)
    slow.go_on.release()
    assert readable(drivers)
    drivers.woken()
    assert not drivers.busy and drivers.loading() == "" and not readable(drivers, 0)


def test_what_came_meanwhile_is_looked_at_once_more(console: Told, slow: SlowModules) -> None:
    drivers = Drivers(console)
    drivers.look(slow)
    slow.started.acquire()
    drivers.look(slow)
    drivers.look(slow)
    slow.go_on.release()
    slow.started.acquire()
    assert drivers.busy
    slow.go_on.release()
    assert readable(drivers)
    assert slow.passes == 2 and not drivers.busy


def test_a_failure_is_the_main_threads(console: Told, slow: SlowModules) -> None:
    drivers = Drivers(console)
    slow.failure = ValueError("what no module should do")
    slow.go_on.release()
    drivers.look(slow)
    assert readable(drivers)
    with pytest.raises(ValueError, match="what no module should do"):
        drivers.woken()
    assert not drivers.busy
    drivers.woken()


def test_the_end_waits_and_tells_which_driver_is_slow(
    console: Told, slow: SlowModules, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    drivers = Drivers(console)
    drivers.finish()
    drivers.look(slow)
    console.slow = slow
    drivers.finish()
    assert not drivers.busy
    assert console.lines[0] == "waiting for the driver ahci to find its devices"
