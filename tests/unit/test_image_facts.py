"""What is seen of a machine, and that it comes back from the file it is kept in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_machine import MadeUpMachine

from pyinit_image import facts
from pyinit_image.errors import BuildError
from pyinit_image.facts import Block, Cpu, Device, Facts, Line, Mounted, Unlocked
from pyinit_image.features import Target
from pyinit_image.features.md import Md
from pyinit_image.plan import Plan
from pyinit_image.sysroot import Sysroot

PCI = "pci:v00001AF4d00001042sv00001AF4sd00001042bc01sc80i00"
VIRTIO = "virtio:d00000002v00001AF4"
NVME = "pci:v0000144Dd0000A808sv0000144Dsd0000A801bc01sc08i02"
AHCI = "pci:v00008086d0000A102sv00001043sd00008694bc01sc06i01"
UUID = "0fc63daf-8483-4772-8e79-3d69d8477de4"


@pytest.fixture
def machine(tmp_path: Path) -> MadeUpMachine:
    return MadeUpMachine(tmp_path)


def test_a_virtual_machine(machine: MadeUpMachine) -> None:
    machine.device("pci0000:00/0000:00:02.0", PCI, "virtio_pci")
    machine.device("pci0000:00/0000:00:02.0/virtio1", VIRTIO, "virtio_blk")
    machine.device("pci0000:00/0000:00:00.0", "pci:v00008086d00000D57sv00000000sd00000000bc06sc00i00")
    disk = "pci0000:00/0000:00:02.0/virtio1/block/vda"
    machine.block(disk, "254:0", serial="very-secret")
    machine.block(f"{disk}/vda1", "254:1", partition="1")
    machine.mount("254:1", "/", "ext4", "/dev/vda1", "rw,errors=remount-ro")
    machine.mount("0:5", "/proc", "proc", "proc")
    machine.file("etc/fstab", f"# root\nUUID={UUID} / ext4 rw,x-pin=1234 0 1\nproc /proc proc\nbad\n")
    machine.link(f"dev/disk/by-uuid/{UUID}", "dev/vda1")
    seen = facts.record(machine.top)
    path = (
        Device("devices/pci0000:00/0000:00:02.0/virtio1", VIRTIO, "virtio_blk"),
        Device("devices/pci0000:00/0000:00:02.0", PCI, "virtio_pci"),
    )
    assert seen.mounts == (
        Mounted("/", "/dev/vda1", "254:1", "ext4", ("rw", "errors=remount-ro"), ("vda1",)),
    )
    assert seen.blocks == (
        Block("vda1", "254:1", "partition", ("vda",), "", "", "", "", ()),
        Block("vda", "254:0", "disk", (), "", "", "", "", path),
    )
    assert seen.fstab == (Line(2, f"UUID={UUID}", "/", "ext4", ("rw", "x-pin"), ("vda1",)),)
    assert [device.path for device in seen.devices] == [
        "devices/pci0000:00/0000:00:00.0",
        "devices/pci0000:00/0000:00:02.0",
        "devices/pci0000:00/0000:00:02.0/virtio1",
    ]
    assert seen.release == "6.1.0-test"
    assert seen.warnings == ("/etc/fstab line 4: no device, mount point and type: bad",)
    assert b"secret" not in facts.dump(seen)
    assert b"1234" not in facts.dump(seen)


def test_arrays_of_files_beside_mdadm_conf(machine: MadeUpMachine) -> None:
    disk = machine.block("pci0000:00/0000:00:02.0/virtio2/block/vda", "254:0")
    machine.block("virtual/block/md0", "9:0", disk, md_level="raid1")
    machine.mount("9:0", "/", "ext4", "/dev/md0")
    machine.file("etc/mdadm/mdadm.conf", "MAILADDR root\n")
    own = "0123abcd:4567ef89:0123abcd:00000001"
    machine.file("etc/mdadm/mdadm.conf.d/root.conf", f"# Ours.\nARRAY /dev/md0 UUID={own}\n")
    machine.file("etc/mdadm/mdadm.conf.d/old.conf.bak", "ARRAY /dev/md0 UUID=old\n")
    machine.file("etc/mdadm/mdadm.conf.d/.hidden.conf", "ARRAY /dev/md0 UUID=hidden\n")
    # The directory beside the other file counts only when there is none beside this one.
    machine.file("etc/mdadm.conf.d/other.conf", "ARRAY /dev/md0 UUID=other\n")
    machine.file("usr/sbin/mdadm", "")
    seen = facts.record(machine.top)
    assert seen.warnings == ()
    assert seen.blocks[0].configured == "/etc/mdadm/mdadm.conf.d/root.conf line 2"
    assert seen.mdadm == (facts.Assembled(2, "/dev/md0"),)
    plan = Plan(Sysroot(machine.top))
    target = Target(plan.sysroot, cast(Any, None), "generic", "open", "", None)
    assert Md().wanted(target) == "/etc/mdadm/mdadm.conf.d/root.conf names arrays"
    assert facts.mdadm_files(plan.sysroot) == [
        "/etc/mdadm/mdadm.conf",
        "/etc/mdadm/mdadm.conf.d/root.conf",
    ]


@pytest.mark.parametrize(("lines", "warnings"), [("", 1), (f"ARRAY /dev/md0 UUID={UUID}\n", 0)])
def test_a_root_on_an_array_that_nothing_names_is_told(
    lines: str, warnings: int, machine: MadeUpMachine
) -> None:
    disk = machine.block("pci0000:00/0000:00:02.0/virtio2/block/vda", "254:0")
    machine.block("virtual/block/md0", "9:0", disk, md_level="raid1")
    machine.mount("9:0", "/", "ext4", "/dev/md0")
    machine.file("etc/mdadm/mdadm.conf", lines)
    machine.file("usr/sbin/mdadm", "")
    plan = Plan(Sysroot(machine.top))
    target = Target(plan.sysroot, cast(Any, None), "host", "open", "", facts.record(machine.top))
    Md().add(plan, target, "why")
    told = [text for text in plan.warnings if "the array md0 is in use for the root, and no" in text]
    assert len(told) == warnings


def test_luks_on_lvm_on_md_over_two_sata_disks(machine: MadeUpMachine) -> None:
    machine.device("pci0000:00/0000:00:17.0", AHCI, "ahci")
    parts = []
    for number, name in ((1, "sda"), (2, "sdb")):
        scsi = f"pci0000:00/0000:00:17.0/ata{number}/host{number}/target{number}:0:0/{number}:0:0:0"
        machine.device(scsi, "scsi:t-0x00", "sd_mod")
        machine.block(f"{scsi}/block/{name}", f"8:{16 * number}")
        part = f"{scsi}/block/{name}/{name}2"
        parts.append(machine.block(part, f"8:{16 * number + 2}", partition="2"))
    md = machine.block("virtual/block/md0", "9:0", *parts, md_level="raid1")
    lvm = machine.block("virtual/block/dm-0", "253:0", md, dm_name="vg-root", dm_uuid="LVM-" + "aB3x" * 16)
    machine.block(
        "virtual/block/dm-1",
        "253:1",
        lvm,
        dm_name=f"luks-{UUID}",
        dm_uuid=f"CRYPT-LUKS2-{UUID.replace('-', '')}-luks-{UUID}",
    )
    machine.mount("253:1", "/", "xfs", f"/dev/mapper/luks-{UUID}")
    machine.file(
        "etc/crypttab", f"luks-{UUID} UUID={UUID} none luks,x-initrd.attach,tpm2-pin=1234\nb /dev/b\n"
    )
    machine.file(
        "etc/mdadm/mdadm.conf", "DEVICE partitions\nARRAY /dev/md/0 name=host:0\nARRAY /dev/md9 name=x\n"
    )
    machine.link("dev/md/0", "dev/md0")
    seen = facts.record(machine.top)
    kinds = [(block.name, block.kind, block.mapping, block.level, block.below) for block in seen.blocks]
    assert kinds == [
        ("dm-1", "dm", "CRYPT-LUKS2-", "", ("dm-0",)),
        ("dm-0", "dm", "LVM-", "", ("md0",)),
        ("md0", "md", "", "raid1", ("sda2", "sdb2")),
        ("sda2", "partition", "", "", ("sda",)),
        ("sdb2", "partition", "", "", ("sdb",)),
        ("sda", "disk", "", "", ()),
        ("sdb", "disk", "", "", ()),
    ]
    assert [(device.modalias, device.module) for device in seen.blocks[-1].devices] == [
        ("scsi:t-0x00", "sd_mod"),
        (AHCI, "ahci"),
    ]
    assert seen.crypttab == (Unlocked(1, "luks-*", ("luks", "x-initrd.attach", "tpm2-pin")),)
    assert [block.configured for block in seen.blocks[:3]] == [
        "/etc/crypttab line 1",
        "",
        "/etc/mdadm/mdadm.conf line 2",
    ]
    assert [array.line for array in seen.mdadm] == [2]
    text = facts.dump(seen)
    assert UUID.encode() not in text
    assert UUID.replace("-", "").encode() not in text
    assert b"aB3x" not in text
    assert b"1234" not in text


def test_a_disk_with_two_ways_to_it(machine: MadeUpMachine) -> None:
    """The kernel shows an NVMe disk that may have several controllers below none of them."""
    for number in (1, 2):
        machine.device(f"pci0000:00/0000:00:0{number}.0", NVME, "nvme")
        controller = machine.device(f"pci0000:00/0000:00:0{number}.0/nvme/nvme{number}")
        machine.link(f"sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme{number}", controller)
    machine.block("virtual/nvme-subsystem/nvme-subsys0/nvme0n1", "259:0")
    machine.block("virtual/nvme-subsystem/nvme-subsys0/nvme0n1/nvme0n1p1", "259:1", partition="1")
    machine.mount("259:1", "/", "ext4", "/dev/nvme0n1p1")
    disk = facts.record(machine.top).blocks[1]
    assert [(device.path, device.module) for device in disk.devices] == [
        ("devices/pci0000:00/0000:00:01.0", "nvme"),
        ("devices/pci0000:00/0000:00:02.0", "nvme"),
    ]


def test_btrfs_over_two_disks(machine: MadeUpMachine) -> None:
    for number, name in ((0, "sda"), (16, "sdb")):
        place = machine.block(f"pci0000:00/host0/block/{name}", f"8:{number}")
        machine.link(f"sys/fs/btrfs/{UUID}/devices/{name}", place)
    machine.mount("0:25", "/", "btrfs", "/dev/mapper/pool", "rw,subvol=/@")
    machine.link("dev/mapper/pool", "dev/sda")
    seen = facts.record(machine.top)
    assert seen.mounts[0].blocks == ("sda", "sdb")
    assert UUID.encode() not in facts.dump(seen)


def test_an_xfs_log_on_another_disk_and_swap_by_label(machine: MadeUpMachine) -> None:
    for number, name in enumerate(("sda", "sdb", "sdc")):
        machine.block(f"pci0000:00/host0/block/{name}", f"8:{number * 16}")
    machine.mount("8:0", "/", "xfs", "/dev/sda", "rw,logdev=/dev/sdb")
    machine.file("etc/fstab", "LABEL=my\\040swap none swap sw\nLABEL=gone /var ext4 x-initrd.mount\n")
    machine.link("dev/disk/by-label/my\\x20swap", "dev/sdc")
    seen = facts.record(machine.top)
    assert seen.mounts[0].blocks == ("sda", "sdb")
    assert [line.blocks for line in seen.fstab] == [("sdc",), ()]


def test_what_a_controller_depends_on(machine: MadeUpMachine) -> None:
    """On small boards the clocks and regulators of the controller have drivers of their own."""
    machine.device("platform/soc/mmc", "of:NmmcT(null)Cvendor,mmc", "vendor_mmc")
    clock = machine.device("platform/soc/clock", "of:NclockT(null)Cvendor,clock", "vendor_clk")
    machine.link("sys/devices/virtual/devlink/clock--mmc/supplier", clock)
    machine.link("sys/devices/platform/soc/mmc/supplier:clock", "sys/devices/virtual/devlink/clock--mmc")
    machine.device("platform/soc/mmc/mmc_host/mmc0/mmc0:0001", "mmc:block", "mmc_block")
    machine.block("platform/soc/mmc/mmc_host/mmc0/mmc0:0001/block/mmcblk0", "179:0")
    machine.mount("179:0", "/", "ext4", "/dev/mmcblk0")
    (disk,) = facts.record(machine.top).blocks
    assert [device.module for device in disk.devices] == ["mmc_block", "vendor_mmc", "vendor_clk"]


def test_what_identifies_a_device_is_not_kept(machine: MadeUpMachine) -> None:
    machine.device(f"LNXSYSTM:00/VMBUS:01/{UUID}", "vmbus:d96361baa104294db60572e2ffb1dc7f", "hv_storvsc")
    machine.block(f"LNXSYSTM:00/VMBUS:01/{UUID}/host0/block/sda", "8:0")
    machine.device("w1_bus_master1/28-0123456789ab", "w1-family-0x28")
    machine.mount("8:0", "/", "ext4", "/dev/sda")
    seen = facts.record(machine.top)
    assert {device.path for device in (*seen.devices, *seen.blocks[0].devices)} == {
        "devices/LNXSYSTM:00/VMBUS:01/*",
        "devices/w1_bus_master1/*",
    }


def test_no_machine_at_all(tmp_path: Path) -> None:
    seen = facts.record(tmp_path)
    assert (seen.mounts, seen.blocks, seen.devices) == ((), (), ())
    assert facts.parse(facts.dump(seen)) == seen


def test_processors_mappings_and_ciphers() -> None:
    cpu = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 158\nstepping\t: 10\n"
    assert facts.parse_cpus(f"{cpu}\n{cpu}\n") == (Cpu("GenuineIntel", 6, 158, 10),)
    assert facts.parse_cpus("processor\t: 0\nCPU implementer\t: 0x41\n") == ()
    modules = (
        "dm_thin_pool 8 2 - Live 0x0\ndm_crypt 8 0 - Live 0x0\ndm_mod 8 9 dm_crypt, Live 0x0\next4 8 1 -"
    )
    assert facts.parse_mappers(modules) == ("dm_thin_pool",)
    crypto = (
        "name: xts(aes)\nmodule: aesni_intel\nrefcnt: 2\ntype: skcipher\n\n"
        "name: crc32c\nmodule: idle\nrefcnt: 1\ntype: shash\n\n"
        "name: sha1\nmodule: kernel\nrefcnt: 3\ntype: shash\n"
    )
    assert facts.parse_ciphers(crypto) == ("aesni_intel",)


@pytest.mark.parametrize(
    ("uuid", "kind"),
    [
        ("CRYPT-LUKS2-0123456789abcdef0123456789abcdef-root", "CRYPT-LUKS2-"),
        ("CRYPT-PLAIN-root", "CRYPT-PLAIN-"),
        ("LVM-" + "x" * 64, "LVM-"),
        ("LVM-" + "x" * 64 + "-tpool", "LVM-tpool"),
        ("mpath-3600508b400105e21", "mpath-"),
        ("part1-mpath-3600508b400105e21", "part1-mpath-"),
        ("3600508b400105e21", ""),
        ("", ""),
    ],
)
def test_what_kind_of_mapping(uuid: str, kind: str) -> None:
    assert facts.mapping_kind(uuid) == kind


TEXT = st.text(max_size=6) | st.binary(max_size=6).map(lambda data: data.decode("utf-8", "surrogateescape"))
NAMES = ("vda", "dm-0")
#: Block devices are named by mounts, so only names that are there may be drawn.
BLOCKS = st.lists(st.sampled_from(NAMES), max_size=2).map(tuple)
TEXTS = st.lists(TEXT, max_size=2).map(tuple)
DEVICES = st.lists(st.builds(Device, TEXT, TEXT, TEXT), max_size=2).map(tuple)
FACTS = st.builds(
    Facts,
    release=TEXT,
    cpus=st.lists(st.builds(Cpu, TEXT, st.integers(), st.integers(), st.integers())).map(tuple),
    mounts=st.lists(st.builds(Mounted, TEXT, TEXT, TEXT, TEXT, TEXTS, BLOCKS), max_size=2).map(tuple),
    fstab=st.lists(st.builds(Line, st.integers(), TEXT, TEXT, TEXT, TEXTS, BLOCKS), max_size=2).map(tuple),
    crypttab=st.lists(st.builds(Unlocked, st.integers(), TEXT, TEXTS), max_size=2).map(tuple),
    mdadm=st.lists(st.builds(facts.Assembled, st.integers(), TEXT), max_size=2).map(tuple),
    blocks=st.tuples(
        *(
            st.builds(Block, st.just(name), TEXT, TEXT, BLOCKS, TEXT, TEXT, TEXT, TEXT, DEVICES)
            for name in NAMES
        )
    ),
    devices=DEVICES,
    mappers=TEXTS,
    ciphers=TEXTS,
    warnings=TEXTS,
)


@given(FACTS)
def test_facts_come_back_from_their_file(seen: Facts) -> None:
    assert facts.parse(facts.dump(seen)) == seen


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value, as container and key."""
    inner = list(value.items() if isinstance(value, dict) else enumerate(value))
    places = [(value, key) for key, _ in inner]
    for _, item in inner:
        places += _places(item) if isinstance(item, dict | list) else []
    return places


@given(FACTS, JSON, st.data())
def test_a_file_with_anything_else_in_it_is_refused(seen: Facts, other: Any, data: st.DataObject) -> None:
    raw = json.loads(facts.dump(seen))
    container, key = data.draw(st.sampled_from(_places(raw)))
    before = container[key]
    container[key] = other
    text = json.dumps(raw).encode()
    if type(before) is type(other) and not isinstance(other, dict):
        # Another value of the same kind may be as good.
        try:
            assert isinstance(facts.parse(text), Facts)
        except BuildError as error:
            assert str(error).isprintable()
        return
    with pytest.raises(BuildError, match="devices.json is no record of devices") as caught:
        facts.parse(text)
    assert str(caught.value).isprintable()
    assert caught.value.hint


@given(st.binary(max_size=60) | JSON.map(json.dumps).map(str.encode))
def test_no_bytes_break_it(data: bytes) -> None:
    with pytest.raises(BuildError, match="is no record of devices"):
        facts.parse(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2, not 1"),
        ({"schema": True}, "no schema"),
        ({"more": 1}, "facts: more is not known"),
        ({"release": 6}, "facts.release is not text"),
        ({"mappers": "x"}, "facts.mappers is not a list"),
        ({"cpus": [{}]}, r"facts.cpus\[0\]: .* is missing"),
        ({"blocks": []}, "no block device vda"),
    ],
)
def test_what_is_wrong_is_said(machine: MadeUpMachine, change: dict[str, Any], message: str) -> None:
    machine.block("pci0000:00/host0/block/vda", "254:0")
    machine.mount("254:0", "/", "ext4", "/dev/vda")
    raw = json.loads(facts.dump(facts.record(machine.top)))
    with pytest.raises(BuildError, match=message):
        facts.parse(json.dumps({**raw, **change}).encode())


def test_nesting_without_end() -> None:
    with pytest.raises(BuildError, match="is no record of devices"):
        facts.parse(b"[" * 100_000)
