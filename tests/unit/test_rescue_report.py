"""Where a report may be copied to."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyinit.config.discoverable import ROOT
from pyinit.config.options import boot_config
from pyinit.devices.view import DeviceView
from pyinit.kernel.mountinfo import parse
from pyinit.rescue.report import doubts, is_removable, look_at_target, obstacle

MOUNTS = parse(b"21 1 8:1 / /sysroot ro,relatime - ext4 /dev/sda1 rw\n")


def device(name: str, minor: int, path: str = "", **properties: str) -> DeviceView:
    kind = "partition" if name[-1].isdigit() else "disk"
    place = path or f"/sys/devices/pci0/ata1/{name}"
    return DeviceView(place, name, "block", kind, f"/dev/{name}", (8, minor), (), properties, True)


def filesystem(name: str, minor: int, kind: str, **properties: str) -> DeviceView:
    return device(name, minor, ID_FS_USAGE="filesystem", ID_FS_TYPE=kind, **properties)


STICK = filesystem("sdb1", 17, "vfat", ID_FS_LABEL="stick")
ROOT_DEVICE = filesystem("sda1", 1, "ext4", ID_FS_LABEL="the-root")
SWAP = device("sda2", 2, ID_FS_USAGE="other", ID_FS_TYPE="swsuspend")


@pytest.mark.parametrize(
    ("view", "holders", "why"),
    [
        (STICK, [], ""),
        (ROOT_DEVICE, [], "in use: mounted on /sysroot; to copy it there: cp /run/initramfs/"),
        (STICK, ["dm-0", "md\x1b"], r"in use: dm-0, md\x1b is made of it"),
        (SWAP, [], "holds a hibernated system"),
        (device("sdc", 32, ID_FS_USAGE="raid", ID_FS_TYPE="LVM2_member"), [], "a container (LVM2_member)"),
        (device("sdc", 32, ID_FS_USAGE="crypto", ID_FS_TYPE="crypto_LUKS"), [], "container (crypto_LUKS)"),
        (device("sdc", 32, ID_FS_USAGE="other", ID_FS_TYPE="swap"), [], "no file system to write to: swap"),
        (device("sdc", 32), [], "/dev/sdc holds no file system to write to"),
    ],
)
def test_what_nothing_can_be_copied_to(view: DeviceView, holders: list[str], why: str) -> None:
    said = obstacle(view, MOUNTS, holders)
    assert why in said and bool(why) == bool(said)


def test_what_cannot_be_is_said_before_what_should_not_be() -> None:
    with pytest.raises(OSError, match="/dev/sda2 holds a hibernated system"):
        look_at_target(SWAP, [SWAP], boot_config(b"root=/dev/sda2"))


def test_a_stick_that_the_boot_has_no_use_for_needs_no_force() -> None:
    config = boot_config(b"root=LABEL=the-root resume=LABEL=other rd.overlay=tmpfs")
    assert doubts(STICK, [STICK, ROOT_DEVICE], config, True) == []


@pytest.mark.parametrize(
    ("view", "line", "why"),
    [
        (STICK, b"root=LABEL=stick", "root=LABEL=stick names it"),
        (STICK, b"root=live:LABEL=stick", "root=LABEL=stick names it"),
        (STICK, b"root=/dev/sdb1", "root=/dev/sdb1 names it"),
        (STICK, b"rd.overlay=LABEL=stick", "rd.overlay=LABEL=stick names it"),
        (STICK, b"mount.usr=LABEL=stick", "mount.usr=LABEL=stick names it"),
        (filesystem("sdb1", 17, "xfs"), b"", "it is not one of vfat, exfat, ext2, ext3, ext4 but xfs"),
        (
            filesystem("sdb1", 17, "ext4", ID_PART_ENTRY_TYPE=ROOT["x86_64"].upper()),
            b"root=gpt-auto",
            "its partition has the type of a root or a /usr",
        ),
    ],
)
def test_what_may_be_meant_for_the_boot_is_not_touched(view: DeviceView, line: bytes, why: str) -> None:
    assert doubts(view, [view, ROOT_DEVICE], boot_config(line), True) == [why]


def test_a_disk_of_the_machine_and_one_of_a_hibernated_system_are_not_touched() -> None:
    config = boot_config(b"root=nonsense resume=/dev/sda2")
    assert doubts(ROOT_DEVICE, [ROOT_DEVICE], config, False) == [
        "it is no stick or card, but a disk of this machine"
    ]
    (why,) = doubts(STICK, [STICK, SWAP], config, True)
    assert why.startswith("a system is hibernated on /dev/sda2, and is destroyed when")


@pytest.mark.parametrize(
    ("files", "path", "removable"),
    [
        ({"removable": "0"}, "pci0/ata1/sda", False),
        ({"removable": "0"}, "pci0/usb1/1-1/sda", True),
        ({"removable": "1"}, "pci0/ata1/sda", True),
        ({"removable": "0", "device/type": "SD"}, "mmc0/mmcblk0", True),
        ({"removable": "0", "device/type": "MMC"}, "mmc0/mmcblk0", False),
    ],
)
def test_what_can_be_taken_out(files: dict[str, str], path: str, removable: bool, tmp_path: Path) -> None:
    disk = tmp_path / path
    (disk / "device").mkdir(parents=True)
    for name, text in files.items():
        (disk / name).write_text(f"{text}\n")
    assert is_removable(device("sda", 1, str(disk))) is removable
    assert is_removable(device("sda1", 1, f"{disk}/sda1")) is removable
