"""Why a device is not there, or no longer."""

from __future__ import annotations

from errno import EIO, ENOENT
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.config import devspec, sealed
from pyinit.config.options import boot_config
from pyinit.config.sealed import EMPTY_INDEX, Aliases, ModuleIndex, dump_drivers, parse_drivers
from pyinit.devices.view import DeviceView
from pyinit.devices.waiting import describe, size
from pyinit.errors import BootError
from pyinit.kernel.console import Console
from pyinit.kernel.modules import Modules
from pyinit.record import Record
from pyinit.rescue import missing

NVME = "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02"
VIRTIO = "virtio:d00000002v00001AF4"
SOUND = "pci:v00008086d0000293Esv00001AF4sd00001100bc04sc03i00"
UUID = "6f0a3b5e-5d0c-4c53-9c0e-2f7a6d1b9e42"


def partition(**properties: str) -> DeviceView:
    return DeviceView(
        "/sys/devices/vda/vda1", "vda1", "block", "partition", "/dev/vda1", (254, 1), (), properties, True
    )


@pytest.fixture
def record() -> Record:
    return Record("1", "6.1.0-test")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """The devices without a driver, name to alias; nobody is at work and the kernel says nothing."""
    devices: dict[str, str] = {}
    (tmp_path / "drivers.txt").write_bytes(
        dump_drivers({"nvme": ("pci:v*d*sv*sd*bc01sc08i02*",), "virtio_blk": ("virtio:d00000002v*",)})
    )
    monkeypatch.setattr(sealed, "DRIVERS_PATH", str(tmp_path / "drivers.txt"))
    monkeypatch.setattr(missing, "driverless_devices", lambda buses: iter(devices.items()))
    monkeypatch.setattr(missing, "kernel_messages", lambda count: ["other: x", "virtio_blk: no such thing"])
    monkeypatch.setattr(missing, "work", lambda record: ["somebody works"])
    monkeypatch.setattr(missing, "_PCI_DEVICES", str(tmp_path / "pci"))
    return devices


def explain(
    record: Record,
    modules: Modules,
    *known: DeviceView,
    name: str = "root",
    root: DeviceView | None = None,
) -> BootError:
    spec = devspec.parse_spec(f"UUID={UUID}")
    return missing.missing_device(
        "cause", name, spec, list(known), modules, record.data, ("luks: waits",), root
    )


def test_a_driver_that_is_not_in_the_image_is_named_with_what_brings_it(
    record: Record, machine: dict[str, str]
) -> None:
    machine |= {"0000:01:00.0": NVME, "0000:00:1b.0": SOUND}
    error = explain(record, Modules(EMPTY_INDEX, Console(record)))
    assert error.found == (
        "no block device at all",
        "without a driver: PCI 0000:01:00.0 [1b36:0010]: nvme would claim it, and is not in this image",
        "luks: waits",
        "somebody works",
    )
    assert error.advice[0] == "The kernel sees no disk: what leads to disks has no driver, as told above."
    assert "build the image with --module nvme, or --mode generic" in error.advice[1]


@pytest.mark.parametrize(
    ("blacklist", "result", "why"),
    [
        (("virtio_blk",), None, "forbidden by rd.driver.blacklist="),
        ((), "Exec format error", "refused by the kernel: Exec format error"),
        ((), None, "not loaded"),
    ],
)
def test_a_driver_of_the_image_has_its_reason(
    blacklist: tuple[str, ...], result: str | None, why: str, record: Record, machine: dict[str, str]
) -> None:
    machine["virtio1"] = VIRTIO
    index = ModuleIndex("", {}, Aliases.of([("virtio:d00000002v*", "virtio_blk")]), frozenset(), ())
    if result:
        record.add("modules", name="virtio_blk", start=0, end=0, result=result)
    modules = Modules(index, Console(record), blacklist=blacklist, is_live=lambda name: False)
    found = explain(record, modules).found
    assert found[1] == f"without a driver: virtio1 ({VIRTIO}): virtio_blk claims it: {why}"
    assert found[2] == "kernel: virtio_blk: no such thing"


def test_a_controller_that_nobody_claims_is_told(record: Record, machine: dict[str, str]) -> None:
    alias = "pci:v00001000d00000072sv00001AF4sd00001100bc01sc07i00"
    machine["0000:02:00.0"] = alias
    found = explain(record, Modules(EMPTY_INDEX, Console(record))).found
    assert found[1].endswith("[1000:0072]: no module of this kernel is known to claim it")


def controller(folder: Path, name: str, alias: str, driver: str) -> None:
    (folder / "pci" / name).mkdir(parents=True)
    (folder / "pci" / name / "modalias").write_text(f"{alias}\n")
    (folder / "pci" / name / "driver").symlink_to(f"/sys/bus/pci/drivers/{driver}")


def test_without_a_disk_nothing_is_to_be_corrected(
    record: Record, machine: dict[str, str], tmp_path: Path
) -> None:
    modules = Modules(EMPTY_INDEX, Console(record))
    loop = partition()._replace(name="loop0", node="/dev/loop0")
    error = explain(record, modules, loop)
    assert error.advice[0].startswith("The kernel sees no disk: this machine has none, or the firmware")
    assert "pyinit set" not in "".join(error.advice)

    controller(tmp_path, "0000:00:1b.0", SOUND, "snd_hda_intel")
    controller(tmp_path, "0000:01:00.0", NVME, "nvme")
    error = explain(record, modules)
    assert "without a disk: PCI 0000:01:00.0 [1b36:0010]: driven by nvme" in error.found
    assert "snd_hda_intel" not in "".join(error.found)
    assert error.advice[0].startswith("The kernel sees no disk: look at its plug and power")
    error = missing.no_root_given("quiet", [], modules)
    assert error.advice[0].startswith("The kernel sees no disk: look at its plug and power")
    assert "without a disk: PCI 0000:01:00.0 [1b36:0010]: driven by nvme" in error.found

    disc = loop._replace(name="sr0", properties={"ID_FS_TYPE": "iso9660"})
    assert "pyinit set root=UUID=..., then" in explain(record, modules, disc).advice[0]


def test_the_roots_own_device_is_not_proposed_for_something_else(
    record: Record, machine: dict[str, str]
) -> None:
    root = partition(ID_FS_UUID=UUID[:-1] + "3", ID_FS_TYPE="ext4")
    error = explain(record, Modules(EMPTY_INDEX, Console(record)), root, name="overlay", root=root)
    assert error.advice[:2] == (
        "Correct it here: pyinit set rd.overlay=UUID=..., then leave the shell.",
        "To keep changes in memory for this time: pyinit set rd.overlay=tmpfs.",
    )
    assert not any(line.startswith("nearest") for line in error.found)


def test_the_nearest_device_is_what_to_set(record: Record, machine: dict[str, str]) -> None:
    near = partition(ID_FS_UUID=UUID[:-1] + "3", ID_FS_TYPE="ext4")
    error = explain(record, Modules(EMPTY_INDEX, Console(record)), near)
    assert error.found[1].startswith("nearest: /dev/vda1: its UUID")
    assert f"pyinit set root=UUID={UUID[:-1]}3, then" in error.advice[0]
    error = explain(record, Modules(EMPTY_INDEX, Console(record)), near, name="/usr")
    assert "pyinit set mount.usr=UUID=" in error.advice[0]
    error = explain(record, Modules(EMPTY_INDEX, Console(record)), near, name="/srv\x1b")
    assert r"the line for /srv\x1b in /sysroot/etc/fstab" in error.advice[0]


def test_what_is_set_and_is_not_there_is_told_with_what_there_is() -> None:
    known = [partition(ID_FS_UUID=UUID, ID_FS_TYPE="ext4", ID_FS_LABEL="small-root")]

    def said(line: bytes) -> list[str]:
        return missing.not_there(boot_config(line), known)

    assert said(b"root=LABEL=small-root ro quiet resume=UUID=" + UUID.encode()) == []
    assert said(b"root=gpt-auto") == said(b"rw") == []
    assert said(b"root=LABEL=smal-root") == [
        "no device is LABEL=smal-root now. There is:",
        "  nearest: /dev/vda1: its LABEL small-root differs in 1 character",
        f"  /dev/vda1  ext4  UUID={UUID}  LABEL=small-root",
    ]
    assert said(b"root=/dev/mapper/x")[0] == (
        "no device is /dev/mapper/x now, though what is on a volume or an array may come later. There is:"
    )
    assert said(b"rd.overlay=changes") == ["rd.overlay=changes names no device"]
    assert said(b"root=vda1") == ["root=vda1 is not understood; Did you mean root=/dev/vda1 ?"]
    assert missing.not_there(boot_config(b"mount.usr=LABEL=x"), [])[1] == "  no block device at all"


def test_an_error_of_the_device_is_found_below_what_it_led_to(machine: dict[str, str]) -> None:
    root = partition()
    try:
        try:
            raise OSError(EIO, "Input/output error")
        except OSError as error:
            raise BootError("E-INIT", "no init") from error
    except BootError as error:
        said = missing.silent_root(error, root)
    assert said is not None and said.code == "E-IO"
    assert said.cause == "the root file system on /dev/vda1 cannot be read any more: Input/output error"
    assert said.tried == ("no init",)
    assert said.found[0] == "/dev/vda1 is gone"
    assert missing.silent_root(OSError(ENOENT, "No such file"), root) is None
    assert missing.silent_root(BootError("E-INIT", "no init"), None) is None


def test_exceptions_in_a_circle_are_followed_once() -> None:
    one, other = ValueError(), ValueError()
    one.__cause__, other.__cause__ = other, one
    assert missing.silent_root(one, None) is None


def test_a_device_has_its_size() -> None:
    view = partition(ID_FS_TYPE="ext4", ID_FS_LABEL="a\x1b")
    assert describe(view, 2048 * 3) == r"/dev/vda1  3 MiB  ext4  LABEL=a\x1b"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1 << 20, "1 MiB"),
        (1536 << 20, "1.5 GiB"),
        (1000 << 30, "1000 GiB"),
        (1 << 60, "1024 PiB"),
    ],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert size(count) == text


@given(
    st.dictionaries(st.from_regex(r"\A[a-z0-9_]+\Z"), st.lists(st.from_regex(r"\A[a-z:0-9*]+\Z")).map(tuple))
)
def test_a_table_of_drivers_comes_back(drivers: dict[str, tuple[str, ...]]) -> None:
    assert parse_drivers(dump_drivers(drivers)) == drivers


@given(st.binary())
def test_no_table_of_drivers_surprises(data: bytes) -> None:
    parse_drivers(data)
