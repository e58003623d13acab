"""Which modules an image for one machine has, and what its devices would miss in an image."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_machine import MadeUpMachine

from pyinit_image import facts, host
from pyinit_image.errors import BuildError
from pyinit_image.facts import Device, Facts
from pyinit_image.host import Unanswered
from pyinit_image.kmods import canonical

#: Aliases as kernels have them, without those of the modules' own names.
ALIASES = {
    "fs-ext4": ("ext4",),
    "fs-ext3": ("ext4",),
    "fs-xfs": ("xfs",),
    "md-raid1": ("raid1",),
    "md-raid5": ("raid456",),
    "crypto-aes": ("aesni_intel", "aes_generic"),
    "crypto-xts": ("xts",),
    "block-major-8-*": ("sd_mod",),
    "block-major-7-*": ("loop",),
    "scsi:t-0x00*": ("sd_mod",),
    "virtio:d00000002v*": ("virtio_blk",),
    "virtio:d00000001v*": ("virtio_net",),
    "pci:v00001AF4d*sv*sd*bc*sc*i*": ("virtio_pci",),
    "pci:v*d*sv*sd*bc01sc08i02*": ("nvme",),
    "pci:v*d*sv*sd*bc01sc06i01*": ("ahci",),
    "pci:v*d*sv*sd*bc0Csc03i30*": ("xhci_pci",),
    "pci:v00008086d00009A49*": ("i915",),
    "usb:v*p*d*dc*dsc*dp*ic03isc*ip*in*": ("usbhid",),
    "hid:b*g*v*p*": ("hid_generic",),
    "hid:b0003g*v000005ACp00000250": ("hid_apple",),
    "input:b*v*p*e*-e*k*r*a*m*l*s*f*w*": ("evdev",),
}
MODULES = {
    *(name for names in ALIASES.values() for name in names),
    *(
        "dm_mod",
        "dm_crypt",
        "dm_snapshot",
        "dm_mirror",
        "dm_thin_pool",
        "dm_raid",
        "dm_cache",
        "dm_cache_smq",
    ),
    *("algif_skcipher", "vendor_ctl", "bcache", "md_mod"),
}


def find(name: str) -> list[str]:
    """What a kernel with these modules and aliases has for a name."""
    if canonical(name) in MODULES:
        return [canonical(name)]
    found = [module for glob, names in ALIASES.items() if fnmatch.fnmatchcase(name, glob) for module in names]
    return list(dict.fromkeys(found))


@pytest.fixture
def machine(tmp_path: Path) -> MadeUpMachine:
    return MadeUpMachine(tmp_path)


@pytest.fixture
def virtual(machine: MadeUpMachine) -> MadeUpMachine:
    """A root file system on the partition of a virtio disk, and a network card."""
    pci = "pci:v00001AF4d0000104%dsv00001AF4sd00001042bc0%dsc00i00"
    for number, kind, driver in ((1, 1, "virtio_net"), (2, 2, "virtio_blk")):
        bus = f"pci0000:00/0000:00:0{number}.0"
        machine.device(bus, pci % (number, 3 - kind), "virtio_pci")
        machine.device(f"{bus}/virtio{number}", f"virtio:d0000000{kind}v00001AF4", driver)
    machine.block("pci0000:00/0000:00:02.0/virtio2/block/vda", "254:0")
    machine.block("pci0000:00/0000:00:02.0/virtio2/block/vda/vda1", "254:1", partition="1")
    machine.mount("254:1", "/", "ext3", "/dev/vda1")
    machine.file("etc/fstab", "\n\n/dev/vda1 / auto defaults\n")
    return machine


def names_of(machine: MadeUpMachine, find: Callable[[str], list[str]] = find) -> set[str]:
    """The modules that what is wanted stands for."""
    rows = host.wanted(facts.record(machine.top), find)
    return {module for name, _ in rows for module in find(name)}


def test_a_virtual_machine(virtual: MadeUpMachine) -> None:
    rows = host.wanted(facts.record(virtual.top), find)
    assert rows == [
        ("fs-ext3", "root file system type of /dev/vda1 <- /etc/fstab line 3"),
        (
            "virtio:d00000002v00001AF4",
            "device pci0000:00/0000:00:02.0/virtio2 <- disk vda <- partition vda1 <- file system of / "
            "<- /etc/fstab line 3",
        ),
        (
            "pci:v00001AF4d00001042sv00001AF4sd00001042bc01sc00i00",
            "device pci0000:00/0000:00:02.0 <- disk vda <- partition vda1 <- file system of / "
            "<- /etc/fstab line 3",
        ),
    ]


def test_what_is_built_in_is_not_wanted(virtual: MadeUpMachine) -> None:
    assert host.wanted(facts.record(virtual.top), lambda name: []) == []


def test_an_nvme_disk_and_a_separate_usr_without_fstab(machine: MadeUpMachine) -> None:
    machine.device("pci0000:00/0000:00:1d.0", "pci:v0000144Dd0000A808sv0sd0bc01sc08i02", "nvme")
    disk = "pci0000:00/0000:00:1d.0/nvme/nvme0/nvme0n1"
    machine.block(disk, "259:0")
    machine.block(f"{disk}/nvme0n1p1", "259:1", partition="1")
    machine.block(f"{disk}/nvme0n1p2", "259:2", partition="2")
    machine.mount("259:1", "/", "ext4", "/dev/nvme0n1p1")
    machine.mount("259:2", "/usr", "xfs", "/dev/nvme0n1p2")
    rows = host.wanted(facts.record(machine.top), find)
    assert rows[:2] == [
        ("fs-ext4", "root file system type of /dev/nvme0n1p1 <- /proc/self/mountinfo"),
        ("fs-xfs", "type of the file system /usr of /dev/nvme0n1p2 <- /proc/self/mountinfo"),
    ]
    assert names_of(machine) == {"ext4", "xfs", "nvme"}


@pytest.fixture
def layered(machine: MadeUpMachine) -> MadeUpMachine:
    """LUKS on LVM on MD over two SATA disks."""
    machine.device("pci0000:00/0000:00:17.0", "pci:v00008086d0000A102sv0sd0bc01sc06i01", "ahci")
    parts = []
    for number, name in ((0, "sda"), (1, "sdb")):
        scsi = f"pci0000:00/0000:00:17.0/ata{number}/host{number}/target{number}:0:0/{number}:0:0:0"
        machine.device(scsi, "scsi:t-0x00", "sd_mod")
        machine.block(f"{scsi}/block/{name}", f"8:{16 * number}")
        part = f"{scsi}/block/{name}/{name}1"
        parts.append(machine.block(part, f"8:{16 * number + 1}", partition="1"))
    md = machine.block("virtual/block/md0", "9:0", *parts, md_level="raid1")
    lvm = machine.block("virtual/block/dm-0", "253:0", md, dm_name="vg-root", dm_uuid="LVM-" + "x" * 64)
    uuid = "CRYPT-LUKS2-" + "0" * 32 + "-root"
    machine.block("virtual/block/dm-1", "253:1", lvm, dm_name="root", dm_uuid=uuid)
    machine.mount("253:1", "/", "ext4", "/dev/mapper/root")
    machine.file("etc/crypttab", "# name\nroot /dev/vg/root none luks\n")
    return machine


def test_luks_on_lvm_on_md(layered: MadeUpMachine) -> None:
    rows = dict(host.wanted(facts.record(layered.top), find))
    chain = "LUKS device dm-1 (/etc/crypttab line 2) <- file system of / <- /proc/self/mountinfo"
    assert rows["dm-crypt"] == f"LUKS <- {chain}"
    assert rows["dm-snapshot"] == f"LVM <- LVM device dm-0 <- {chain}"
    array = f"raid1 array md0 <- LVM device dm-0 <- {chain}"
    assert rows["md-raid1"] == f"RAID level raid1 <- {array}"
    assert rows["scsi:t-0x00"].endswith(f" <- disk sda <- partition sda1 <- {array}")
    assert names_of(layered) == {
        *("ext4", "dm_mod", "dm_crypt", "aesni_intel", "aes_generic", "xts", "algif_skcipher"),
        *("dm_snapshot", "dm_mirror", "md_mod", "raid1", "sd_mod", "ahci"),
    }


def test_mappings_and_ciphers_in_use(layered: MadeUpMachine) -> None:
    """What sysfs does not show of a mapping is taken from what is loaded and has users."""
    layered.file("proc/modules", "dm_thin_pool 1 1 - Live 0x0\ndm_cache 1 0 - Live 0x0\n")
    layered.file("proc/crypto", "name: xts(x)\nmodule: vendor_ctl\nrefcnt: 2\ntype: skcipher\n")
    rows = dict(host.wanted(facts.record(layered.top), find))
    assert rows["dm_thin_pool"] == "used by the device mapper <- /proc/modules"
    assert rows["vendor_ctl"] == "cipher or hash in use <- /proc/crypto"
    assert "dm_cache" not in rows


@pytest.mark.parametrize(
    ("layer", "name", "module"),
    [
        ("-tpool", "vg-pool-tpool", "dm_thin_pool"),
        ("-cdata", "vg-c_cdata", "dm_cache_smq"),
        ("", "vg-root_rimage_0", "dm_raid"),
    ],
)
def test_layers_of_lvm(machine: MadeUpMachine, layer: str, name: str, module: str) -> None:
    disk = machine.block("pci0000:00/host0/block/sda", "8:0")
    uuid = "LVM-" + "x" * 64
    hidden = machine.block("virtual/block/dm-0", "253:0", disk, dm_name=name, dm_uuid=uuid + layer)
    machine.block("virtual/block/dm-1", "253:1", hidden, dm_name="vg-root", dm_uuid=uuid)
    machine.mount("253:1", "/", "ext4", "/dev/mapper/vg-root")
    assert module in names_of(machine)


def test_a_driver_that_was_bound_by_hand_is_wanted_too(virtual: MadeUpMachine) -> None:
    """An alias need not lead to the driver in use (driver_override, new_id)."""
    virtual.device("pci0000:00", "", "vendor_ctl")
    rows = dict(host.wanted(facts.record(virtual.top), find))
    assert rows["vendor_ctl"].startswith("driver in use of pci0000:00 <- disk vda <- ")


def test_swap_and_what_is_mounted_in_the_initramfs(virtual: MadeUpMachine) -> None:
    virtual.block("pci0000:00/host0/block/sdb", "8:16")
    virtual.block("virtual/block/loop0", "7:0")
    virtual.file(
        "etc/fstab",
        "/dev/sdb none swap sw\n/dev/loop0 /data xfs x-initrd.mount\n/dev/sdz /home ext4 defaults\n",
    )
    rows = dict(host.wanted(facts.record(virtual.top), find))
    assert rows["block-major-8-16"] == "disk sdb <- swap, for hibernation <- /etc/fstab line 1"
    assert rows["fs-xfs"] == "type of the file system /data <- /etc/fstab line 2"
    assert rows["block-major-7-0"] == "disk loop0 <- file system of /data <- /etc/fstab line 2"


def test_an_encrypted_device_for_the_initramfs_that_is_closed_now(virtual: MadeUpMachine) -> None:
    virtual.file("etc/crypttab", "data /dev/sdx none x-initrd.attach\n")
    rows = dict(host.wanted(facts.record(virtual.top), find))
    assert rows["dm-crypt"] == "x-initrd.attach of data <- /etc/crypttab line 1"


XHCI = "pci:v00008086d0000A0EDsv0sd0bc0Csc03i30"
USB = "usb:v05ACp0250d0074dc00dsc00dp00ic03isc01ip01in00"
HID = "hid:b0003g0001v000005ACp00000250"


@pytest.fixture
def keyboard(virtual: MadeUpMachine) -> MadeUpMachine:
    """The virtual machine with a USB keyboard passed through to it, and a power button."""
    bus = "pci0000:00/0000:00:14.0"
    virtual.device(bus, XHCI, "xhci_pci")
    virtual.device(f"{bus}/usb1/1-1/1-1:1.0", USB, "usbhid")
    virtual.device(f"{bus}/usb1/1-1/1-1:1.0/0003:05AC:0250.0001", HID, "hid_apple")
    keys = "input:b0003v05ACp0250e0111-e0,1,4,11,14,k71,72,73,ram4,l0,1,2,3,4,sfw"
    virtual.device(f"{bus}/usb1/1-1/1-1:1.0/0003:05AC:0250.0001/input/input5", keys)
    virtual.device("LNXSYSTM:00/LNXPWRBN:00/input/input0", "input:b0019v0000p0001e0000-e0,1,k74,ramlsfw")
    return virtual


def test_the_keyboard_of_the_machine_is_wanted(keyboard: MadeUpMachine) -> None:
    rows = dict(host.wanted(facts.record(keyboard.top), find))
    assert {XHCI, USB, HID} <= set(rows)
    assert rows[USB].endswith("1-1:1.0 <- a keyboard of this machine")
    assert "evdev" not in names_of(keyboard)


def test_a_root_that_is_on_no_disk(machine: MadeUpMachine) -> None:
    machine.mount("0:40", "/", "overlay", "overlay")
    with pytest.raises(BuildError, match="overlay from overlay, is on no disk that /sys shows") as caught:
        host.wanted(facts.record(machine.top), find)
    assert "--mode generic" in caught.value.hint


def test_a_root_of_layers_is_on_what_its_layers_are_on(virtual: MadeUpMachine) -> None:
    virtual.block("virtual/block/loop0", "7:0")
    virtual.mounts.clear()
    virtual.mount("0:40", "/", "overlay", "LiveOS_rootfs")
    virtual.mount("7:0", "/run/rootfsbase", "squashfs", "/dev/loop0", "ro")
    virtual.mount("254:1", "/run/initramfs/live", "ext4", "/dev/vda1", "ro")
    virtual.mount("0:41", "/run/overlayfs-backing", "tmpfs", "tmpfs")
    rows = dict(host.wanted(facts.record(virtual.top), lambda name: [name]))
    assert {"fs-overlay", "fs-squashfs", "fs-ext4", "block-major-7-0"} <= set(rows)
    assert any("vda1" in reason and "/run/initramfs/live" in reason for reason in rows.values())


def test_a_chroot(machine: MadeUpMachine) -> None:
    with pytest.raises(BuildError, match="no mount at /, as in a chroot"):
        host.wanted(facts.record(machine.top), find)


def test_terminals_are_safe_from_reasons(virtual: MadeUpMachine) -> None:
    virtual.file("etc/fstab", "/dev/vda1 /\x1b[2J ext4 x-initrd.mount\n")
    assert all(reason.isprintable() for _, reason in host.wanted(facts.record(virtual.top), find))


def test_an_image_with_all_that_is_wanted_answers_all_that_is_essential(keyboard: MadeUpMachine) -> None:
    seen = facts.record(keyboard.top)
    rows = host.replay(seen, find, frozenset(names_of(keyboard)), frozenset())
    assert {(row.modules, row.essential) for row in rows} == {(("evdev",), False), (("virtio_net",), False)}


def test_what_an_image_lacks(keyboard: MadeUpMachine) -> None:
    keyboard.device("pci0000:00/0000:00:1f.0", "pci:v00008086d00009A49sv0sd0bc03sc00i00", "i915")
    rows = host.replay(
        facts.record(keyboard.top), find, frozenset({"virtio-pci", "evdev"}), frozenset({"usbhid"})
    )
    bus = "devices/pci0000:00"
    assert rows == [
        Unanswered(
            f"{bus}/0000:00:02.0/virtio2",
            "virtio:d00000002v00001AF4",
            ("virtio_blk",),
            True,
            "leads to the disk of the root file system",
        ),
        Unanswered(f"{bus}/0000:00:14.0", XHCI, ("xhci_pci",), True, "leads to disks and keyboards"),
        Unanswered(
            f"{bus}/0000:00:14.0/usb1/1-1/1-1:1.0/0003:05AC:0250.0001",
            HID,
            ("hid_generic", "hid_apple"),
            True,
            "is a keyboard or leads to one",
        ),
        Unanswered(
            f"{bus}/0000:00:01.0/virtio1",
            "virtio:d00000001v00001AF4",
            ("virtio_net",),
            False,
            "no disk and no keyboard",
        ),
        Unanswered(
            f"{bus}/0000:00:1f.0",
            "pci:v00008086d00009A49sv0sd0bc03sc00i00",
            ("i915",),
            False,
            "no disk and no keyboard",
        ),
    ]


def test_one_of_several_modules_for_a_device_is_enough(keyboard: MadeUpMachine) -> None:
    seen = facts.record(keyboard.top)
    has = frozenset(names_of(keyboard) - {"hid_generic"})
    (row,) = (row for row in host.replay(seen, find, has, frozenset()) if row.modalias == HID)
    assert (row.modules, row.essential, row.why) == (("hid_generic",), False, "hid_apple is there for it")
    has = frozenset(names_of(keyboard) - {"hid_apple"})
    (row,) = (row for row in host.replay(seen, find, has, frozenset()) if row.modalias == HID)
    assert (row.modules, row.essential) == (("hid_apple",), True)


@pytest.mark.parametrize(
    "modalias",
    [
        "pci:v00008086d0000A102sv00001043sd00008694bc01sc06i01",
        "pci:v0000144Dd0000A808sv0000144Dsd0000A801bc01sc08i02",
        "pci:v00008086d0000A0EDsv00001028sd00000A38bc0Csc03i30",
        "pci:v00001217d00008621sv00000000sd00000000bc08sc05i01",
        "virtio:d00000008v00001AF4",
        "usb:v0781p5567d0100dc00dsc00dp00ic08isc06ip50in00",
        "usb:v046DpC31Cd6400dc00dsc00dp00ic03isc01ip01in00",
        "scsi:t-0x00",
        "mmc:block",
        "vmbus:d96361baa104294db60572e2ffb1dc7f",
        "xen:vbd",
        "acpi:PNP0303:",
        "acpi:LEN0071:PNP0303:",
        "serio:ty06pr00id00ex00",
    ],
)
def test_essential_devices(modalias: str) -> None:
    assert essential(modalias)


@pytest.mark.parametrize(
    "modalias",
    [
        "pci:v00008086d00009A49sv00001028sd00000A38bc03sc00i00",
        "pci:v00008086d0000BC01sv0000BC01sd00000000bc02sc00i00",
        "pci:v00008086d00009A1Bsv00002222sd00001111bc0Csc03i40",
        "usb:v046Dp0825d0012dc00dsc00dp00ic0Eisc01ip00in00",
        "usb:v046DpC077d7200dc00dsc00dp00ic03isc01ip02in00",
        "virtio:d00000001v00001AF4",
        "serio:ty01pr00id00ex00",
        "scsi:t-0x05",
        "acpi:PNP0C0A:",
    ],
)
def test_other_devices(modalias: str) -> None:
    assert not essential(modalias)


EMPTY = Facts("", (), (), (), (), (), (), (), (), (), ())


def essential(modalias: str) -> bool:
    """Whether a device that nothing in the image drives is held to be essential."""
    seen = replace(EMPTY, devices=(Device("devices/made/up", modalias, ""),))
    (row,) = host.replay(seen, lambda name: ["driver"], frozenset(), frozenset())
    return row.essential


@given(st.text(max_size=40) | st.from_regex(host.KEYBOARD), st.text(max_size=20))
def test_no_modalias_breaks_the_replay(modalias: str, path: str) -> None:
    seen = replace(EMPTY, devices=(Device(path, modalias, ""), Device(f"{path}/x", modalias, "")))
    assert len(host.replay(seen, lambda name: ["driver"], frozenset(), frozenset())) == 2
    assert host.replay(seen, lambda name: ["driver"], frozenset(), frozenset({"driver"})) == []
