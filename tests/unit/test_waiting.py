"""Waiting for a device: what satisfies a want, what is said meanwhile, how it ends."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from math import inf
from typing import cast

import pytest

from pyinit.devices import waiting
from pyinit.devices.udev import Devices, UdevDaemon
from pyinit.devices.view import DeviceView
from pyinit.devices.waiting import Waiter, Want
from pyinit.errors import BootError
from pyinit.kernel.console import Console
from pyinit.kernel.drivers import Drivers
from pyinit.kernel.process import Children
from pyinit.record import Record


def disk(name: str, uuid: str, *, initialized: bool = True) -> DeviceView:
    return DeviceView(
        f"/sys/devices/{name}", name, "block", "disk", f"/dev/{name}", (254, len(name)), (),
        {"ID_FS_UUID": uuid}, initialized,
    )  # fmt: skip


class FakeDevices:
    """A monitor whose events are given beforehand: each batch is read at one wake-up."""

    def __init__(self, present: list[DeviceView], *batches: list[tuple[str, DeviceView]] | OSError) -> None:
        self.present = present
        self.batches = list(batches)
        self.kernel_names = [view.name for view in present]
        self.reopened = 0
        self._reader, self._writer = os.pipe()
        os.write(self._writer, b"x" * len(self.batches))

    def fileno(self) -> int:
        return self._reader

    def reopen(self) -> None:
        self.reopened += 1

    def events(self) -> Iterator[tuple[str, DeviceView]]:
        os.read(self._reader, 1)
        batch = self.batches.pop(0)
        if isinstance(batch, OSError):
            raise batch
        yield from batch

    def names(self) -> list[str]:
        return self.kernel_names

    def size(self, name: str) -> int:
        return 0 if name.startswith("loop") else 8

    def enumerate(self) -> list[DeviceView]:
        return self.present


class FakeChildren:
    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()

    def watch(self) -> int:
        return self._reader


class FakeDaemon:
    """A udevd that runs."""

    def wake(self) -> None:
        pass

    def restart_if_dead(self) -> bool:
        return False


def with_uuid(uuid: str) -> Callable[[Collection[DeviceView]], list[DeviceView]]:
    return lambda known: [view for view in known if view.properties["ID_FS_UUID"] == uuid]


class FakeDrivers:
    """Drivers that are loaded once so many wake-ups have come."""

    def __init__(self, wakeups: int) -> None:
        self.busy = wakeups > 0
        self.wakeups = wakeups
        self._reader, self._writer = os.pipe()
        os.write(self._writer, b"x" * wakeups)

    def fileno(self) -> int:
        return self._reader

    def loading(self) -> str:
        return "ahci" if self.busy else ""

    def woken(self) -> None:
        os.read(self._reader, 1)
        self.wakeups -= 1
        self.busy = self.wakeups > 0


def wait(
    devices: FakeDevices,
    timeout: float | None = 0.0,
    drivers: FakeDrivers | None = None,
    prepare: Callable[[DeviceView], None] = lambda device: None,
) -> tuple[DeviceView, Record]:
    record = Record("1", "6")
    waiter = Waiter(
        cast(Devices, devices),
        cast(UdevDaemon, FakeDaemon()),
        cast(Children, FakeChildren()),
        Console(record),
        drivers=cast(Drivers | None, drivers),
    )
    return waiter.wait(Want("root", "UUID=a", with_uuid("a"), timeout, prepare)), record


def test_a_device_that_is_there_satisfies_at_once() -> None:
    view, record = wait(FakeDevices([disk("vda", "b"), disk("vdb", "a")]))
    assert view.node == "/dev/vdb"
    (want,) = record.data["wants"]
    assert (want["outcome"], want["by"], want["event"]) == ("satisfied", "/dev/vdb", "enumerated")


def test_the_event_that_brings_the_device_satisfies() -> None:
    devices = FakeDevices([], [("add", disk("vda", "b"))], [("change", disk("vdb", "a"))])
    view, record = wait(devices, None)
    assert view.node == "/dev/vdb"
    assert record.data["wants"][0]["event"] == "change"
    assert record.data["events"]["read"] == 2


def test_a_device_that_udevd_has_not_processed_is_not_used() -> None:
    with pytest.raises(BootError, match=r"E-DEV root: UUID=a did not appear within 0 s"):
        wait(FakeDevices([disk("vda", "a", initialized=False)]))


def test_a_device_that_went_away_is_forgotten() -> None:
    gone = disk("vda", "b")
    devices = FakeDevices([gone], [("remove", gone), ("add", disk("vdb", "a"))])
    view, _ = wait(devices, None)
    assert view.node == "/dev/vdb"


def test_two_devices_that_match_are_both_named() -> None:
    with pytest.raises(BootError) as caught:
        wait(FakeDevices([disk("vda", "a"), disk("vdb2", "a")]))
    assert caught.value.code == "E-AMBIG"
    assert [line.split()[0] for line in caught.value.found] == ["/dev/vda", "/dev/vdb2"]


def test_a_copy_that_is_still_on_its_way_is_not_overlooked() -> None:
    devices = FakeDevices([disk("vda", "a")], [("add", disk("vdb2", "a"))])
    devices.kernel_names = ["loop0", "vda", "vdb2"]
    with pytest.raises(BootError, match="E-AMBIG 2 devices"):
        wait(devices)


def test_a_copy_behind_a_driver_that_is_still_being_loaded_is_not_overlooked() -> None:
    drivers, prepared = FakeDrivers(2), []
    devices = FakeDevices([disk("vda", "a")])
    devices.kernel_names = ["vda", "sdb2"]
    original = drivers.woken

    def woken() -> None:
        original()
        if not drivers.busy:
            devices.batches.append([("add", disk("sdb2", "a"))])
            os.write(devices._writer, b"x")

    drivers.woken = woken  # type: ignore[method-assign]
    with pytest.raises(BootError, match="E-AMBIG 2 devices"):
        wait(devices, None, drivers, prepared.append)
    assert not drivers.busy
    assert [view.name for view in prepared] == ["vda"]


def test_a_device_is_prepared_once_and_used_when_drivers_are_loaded() -> None:
    drivers, prepared = FakeDrivers(3), []
    view, _ = wait(FakeDevices([disk("vda", "a")]), None, drivers, prepared.append)
    assert not drivers.busy and prepared == [view]


def test_a_device_that_udevd_never_processes_does_not_hold_up_the_boot() -> None:
    devices = FakeDevices([disk("vda", "a")])
    devices.kernel_names = ["vda", "hung"]
    view, _ = wait(devices, None)
    assert view.node == "/dev/vda"


def test_a_broken_monitor_is_opened_again_and_nothing_is_lost() -> None:
    devices = FakeDevices([], OSError(105, "No buffer space available"))
    original = devices.reopen

    def reopen() -> None:
        original()
        devices.present = [disk("vda", "a")]

    devices.reopen = reopen  # type: ignore[method-assign]
    view, record = wait(devices, None)
    assert view.node == "/dev/vda"
    assert record.data["events"]["reopened"] == 1
    assert any("events were lost" in message["text"] for message in record.data["messages"])


class Asking:
    """An assembler that asks a person something until a moment of the clock has come."""

    name = "asking"

    def __init__(self, clock: list[float], until: float) -> None:
        self.clock = clock
        self.until = until

    def react(self, known: Collection[DeviceView]) -> None:
        # Between two events time passes.
        self.clock[0] += 100.0

    def wake(self) -> float:
        return inf

    def holds(self) -> bool:
        return self.clock[0] < self.until

    def waits_for(self) -> tuple[str, ...]:
        return ()

    def opened(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None:
        pass

    def forget(self) -> None:
        pass


def wait_while_asking(
    present: list[DeviceView], clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> DeviceView:
    """Wait 1,000 s for a device, beside somebody who is asked from 1,000 to 6,000 on the clock."""
    monkeypatch.setattr(waiting, "monotonic", lambda: clock[0])
    monkeypatch.setattr(waiting, "trigger_devices", lambda everything: None)
    waiter = Waiter(
        cast(Devices, FakeDevices(present, *([] for _ in range(100)))),
        cast(UdevDaemon, FakeDaemon()),
        cast(Children, FakeChildren()),
        Console(Record("1", "6")),
        [Asking(clock, 6000.0)],
    )
    return waiter.wait(Want("root", "UUID=a", with_uuid("a"), 1000.0))


def test_the_time_of_a_person_is_not_that_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    with pytest.raises(BootError, match="did not appear within 1000 s"):
        wait_while_asking([], clock, monkeypatch)
    assert 6900.0 <= clock[0] <= 7100.0


def test_a_device_is_not_used_while_a_person_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    assert wait_while_asking([disk("vda", "a")], clock, monkeypatch).node == "/dev/vda"
    assert clock[0] == 6000.0
