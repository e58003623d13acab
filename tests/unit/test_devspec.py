"""Which devices a specification means, and what is said about those it does not."""

from __future__ import annotations

import os
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.config.cmdline import parse
from pyinit.config.devspec import DeviceSpec, Kind, decode, describe, incomplete, nearest, parse_spec, resolve
from pyinit.devices.view import DeviceView
from pyinit.errors import BootError

UUID = "0a3407de-014b-458b-b5c1-848e92a327a3"
OTHER = "7f6a1c11-8c1c-4a5e-9a48-5f0d6b7f5a21"


def encode(label: str) -> str:
    """Encode a label as udev does (systemd's encode_devnode_name())."""
    plain = string.ascii_letters + string.digits + "#+-.:=@_"
    return "".join(
        c if c in plain or ord(c) > 0x7F else "".join(f"\\x{byte:02x}" for byte in c.encode()) for c in label
    )


def block(name: str, number: tuple[int, int], **properties: str) -> DeviceView:
    return DeviceView(
        sys_path=f"/sys/devices/x/block/{name}",
        name=name,
        subsystem="block",
        devtype="disk",
        node=f"/dev/{name}",
        number=number,
        links=(),
        properties=properties,
        initialized=True,
    )


def partition(name: str, minor: int, number: int, **properties: str) -> DeviceView:
    defaults = {
        "ID_PART_ENTRY_DISK": "254:0",
        "ID_PART_ENTRY_NUMBER": str(number),
        "ID_PART_ENTRY_UUID": f"4f1a9c3e-0{number}",
    }
    return block(name, (254, minor), **(defaults | properties))


def names(text: str, *devices: DeviceView) -> list[str]:
    return [device.name for device in resolve(parse_spec(text), devices)]


def remarks(text: str, *devices: DeviceView) -> list[tuple[str, str]]:
    return [(device.name, remark) for device, remark in nearest(parse_spec(text), devices)]


LABEL = 'my "big" disk/ü'
VDA = block("vda", (254, 0), ID_PART_TABLE_TYPE="dos")
VDA1 = partition("vda1", 1, 1, ID_FS_UUID="ABCD-1234", ID_FS_TYPE="vfat", ID_PART_ENTRY_NAME="EFI\\x20System")
VDA2 = partition(
    "vda2",
    2,
    2,
    ID_FS_UUID=UUID,
    ID_FS_TYPE="ext4",
    ID_FS_USAGE="filesystem",
    ID_FS_LABEL_ENC=encode(LABEL),
    ID_PART_ENTRY_NAME="root",
)._replace(
    links=(
        f"/dev/disk/by-uuid/{UUID}",
        f"/dev/disk/by-label/{encode(LABEL)}",
        "/dev/disk/by-id/virtio-ROOT-part2",
        "/dev/mapper/vg-root",
    )
)
DISKS = (VDA, VDA2, VDA1)


@pytest.mark.parametrize(
    "text",
    [
        "/dev/vda2",
        "/dev//vda2/",
        "block:/dev/vda2",
        f"/dev/disk/by-uuid/{UUID}",
        f"block:/dev/disk/by-uuid/{UUID}",
        f"/dev/disk/by-label/{encode(LABEL)}",
        f"/dev/disk/by-label/{LABEL.replace('/', encode('/'))}",
        "/dev/disk/by-id/virtio-ROOT-part2",
        "/dev/mapper/vg-root",
        f"UUID={UUID}",
        f"UUID={UUID.upper()}",
        f'UUID="{UUID}"',
        f"'UUID={UUID}'",
        f"block:UUID={UUID}",
        f"LABEL={LABEL}",
        f'LABEL="{LABEL}"',
        f"LABEL={encode(LABEL)}",
        "PARTUUID=4f1a9c3e-02",
        "PARTUUID=4F1A9C3E-02",
        "PARTUUID=4f1a9c3e-01/PARTNROFF=1",
        "PARTUUID=4f1a9c3e-02/PARTNROFF=0",
        "PARTLABEL=root",
        "254:2",
        "0254:02",
        "fe02",
        "FE02",
        "0000fe02",
    ],
)
def test_spellings_of_one_device(text: str) -> None:
    assert names(text, *DISKS) == ["vda2"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("UUID=ABCD-1234", "vda1"),
        ("UUID=abcd-1234", "vda1"),
        ("PARTLABEL=EFI System", "vda1"),
        ("PARTUUID=4f1a9c3e-02/PARTNROFF=-1", "vda1"),
        ("/dev/vda", "vda"),
    ],
)
def test_other_devices(text: str, name: str) -> None:
    assert names(text, *DISKS) == [name]


@pytest.mark.parametrize(
    "text",
    [
        "/dev/vda3",
        "/dev/disk/by-uuid/ABCD-1234",
        "UUID=0a3407de",
        "LABEL=root",
        "LABEL=" + LABEL.upper(),
        "PARTLABEL=ROOT",
        "PARTUUID=4f1a9c3e",
        "PARTUUID=4f1a9c3e-02/PARTNROFF=1",
        "254:3",
        "fe03",
    ],
)
def test_no_device(text: str) -> None:
    assert names(text, *DISKS) == []


def test_partnroff_stays_on_its_disk() -> None:
    elsewhere = partition("vdb2", 18, 2, ID_PART_ENTRY_DISK="254:16", ID_PART_ENTRY_UUID="99999999-02")
    assert names("PARTUUID=4f1a9c3e-01/PARTNROFF=1", VDA, VDA1, elsewhere) == []


def test_the_hexadecimal_number_is_the_kernels() -> None:
    assert parse_spec("b302").value == "179:2"
    assert parse_spec("801").value == "8:1"
    assert parse_spec("08:01").value == "8:1"
    # Above 8 bits the minor number goes around the major, as in the C library's 32-bit device numbers.
    assert parse_spec("00110302").value == f"{os.major(0x110302)}:{os.minor(0x110302)}" == "259:258"


def test_label_as_typed_in_quotes() -> None:
    word = parse(f'"root=LABEL={LABEL}" ro'.encode()).last("root")
    assert word and word.value and names(word.value, *DISKS) == ["vda2"]


def test_quotes_may_belong_to_the_label() -> None:
    quoted = block("sda", (8, 0), ID_FS_LABEL_ENC=encode('"x"'))
    word = parse(b'"root=LABEL="x""').last("root")
    assert word and word.value and names(word.value, quoted) == ["sda"]
    assert names('LABEL="x"', block("sdb", (8, 16), ID_FS_LABEL_ENC="x")) == ["sdb"]


def test_devices_that_cannot_be_meant() -> None:
    assert names(f"UUID={UUID}", VDA2._replace(initialized=False)) == []
    assert names("/dev/vda2", VDA2._replace(initialized=False)) == []
    assert names("/dev/vda2", VDA2._replace(subsystem="net")) == []


def test_two_devices_of_one_name_are_both_returned() -> None:
    copy = VDA2._replace(name="vdb2", sys_path="/sys/b", node="/dev/vdb2", number=(254, 18))
    assert names(f"UUID={UUID}", copy, *DISKS) == ["vda2", "vdb2"]
    assert names(f"LABEL={LABEL}", copy, *DISKS) == ["vda2", "vdb2"]
    assert names("/dev/vda2", copy, *DISKS) == ["vda2"]


def test_a_container_is_not_what_is_in_it() -> None:
    luks = block(
        "sda",
        (8, 0),
        ID_FS_UUID=OTHER,
        ID_FS_LABEL_ENC="root",
        ID_FS_TYPE="crypto_LUKS",
        ID_FS_USAGE="crypto",
    )
    inside = block(
        "dm-0", (253, 0), ID_FS_UUID=UUID, ID_FS_LABEL_ENC="root", ID_FS_TYPE="ext4", ID_FS_USAGE="filesystem"
    )
    assert names("LABEL=root", luks) == []
    assert names("LABEL=root", luks, inside) == ["dm-0"]
    assert names("/dev/sda", luks) == ["sda"]
    assert remarks("LABEL=root", luks) == [
        ("sda", "has that LABEL but is a container (crypto_LUKS), not a file system")
    ]
    linked = luks._replace(links=("/dev/disk/by-label/root",))
    assert names("/dev/disk/by-label/root", linked) == []
    assert "container" in remarks("/dev/disk/by-label/root", linked)[0][1]


def test_raid_members_share_the_uuid_of_their_array() -> None:
    members = [
        block(
            f"sd{letter}", (8, 16 * i), ID_FS_UUID=OTHER, ID_FS_TYPE="linux_raid_member", ID_FS_USAGE="raid"
        )
        for i, letter in enumerate("ab")
    ]
    array = block("md0", (9, 0), ID_FS_UUID=UUID, ID_FS_TYPE="ext4", ID_FS_USAGE="filesystem")
    assert names(f"UUID={OTHER}", *members, array) == []
    assert names(f"UUID={UUID}", *members, array) == ["md0"]


def test_multipath_is_the_map_not_its_paths() -> None:
    link = ("/dev/disk/by-id/wwn-0x5000",)
    properties = {"ID_FS_UUID": UUID, "ID_FS_TYPE": "ext4", "ID_FS_USAGE": "filesystem"}
    path = block("sda", (8, 0), DM_MULTIPATH_DEVICE_PATH="1", **properties)._replace(links=link)
    whole = block("dm-0", (253, 0), **properties)._replace(links=link)
    assert names(f"UUID={UUID}", path, whole) == ["dm-0"]
    assert names(link[0], path, whole) == ["dm-0"]
    assert names("/dev/sda", path, whole) == ["sda"]


def btrfs(name: str, minor: int, sub: str, ready: str = "1") -> DeviceView:
    return block(
        name, (8, minor), ID_FS_UUID=UUID, ID_FS_TYPE="btrfs", ID_FS_UUID_SUB=sub, ID_BTRFS_READY=ready
    )


def test_members_of_one_btrfs_are_one_file_system() -> None:
    members = (btrfs("sdb", 16, "2"), btrfs("sda", 0, "1"), btrfs("sdc", 32, "3"))
    assert names(f"UUID={UUID}", *members) == ["sda"]
    assert names("/dev/sdc", *members) == ["sdc"]


def test_a_copied_btrfs_member_is_an_ambiguity() -> None:
    assert names(f"UUID={UUID}", btrfs("sda", 0, "1"), btrfs("sdb", 16, "2"), btrfs("sdc", 32, "2")) == [
        "sdb",
        "sdc",
    ]


def test_a_btrfs_is_there_when_all_its_members_are() -> None:
    first, last = btrfs("sda", 0, "1", ready="0"), btrfs("sdb", 16, "2", ready="1")
    for text in (f"UUID={UUID}", "/dev/sda"):
        assert names(text, first) == []
        assert "missing" in remarks(text, first)[0][1]
        assert names(text, first, last) == ["sda"]
        spec = parse_spec(text)
        assert [device.name for device in resolve(spec, (first,), degraded=True)] == ["sda"]
        assert incomplete(spec, (first,)) == [first]
        assert incomplete(spec, (first, last)) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no device"),
        ("block:", "names no device"),
        ("/dev/", "is a directory"),
        ("/dev/../etc/shadow", ".."),
        ("UUID=", "nothing after ="),
        ("PARTUUID=/PARTNROFF=1", "nothing after ="),
        ("PARTUUID=4f1a9c3e-01/PARTNROFF=x", "after the slash"),
        ("PARTUUID=4f1a9c3e-01/", "after the slash"),
        ("nfs:10.0.2.2:/export", "NFS"),
        ("/dev/nfs", "NFS"),
        ("10.0.2.2:/export", "file server"),
        ("live:CDLABEL=x", "live image"),
        ("virtiofs:root", "hypervisor"),
        ("dhcp", "DHCP"),
        ("ZFS=rpool/ROOT", "ZFS"),
        ("gpt-auto", "systemd"),
        ("99999:1", "not understood"),
    ],
)
def test_what_cannot_be_a_root_is_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(BootError) as caught:
        parse_spec(text)
    assert caught.value.code == "E-CMDLINE"
    assert said in caught.value.cause
    assert any("UUID=" in line for line in caught.value.advice)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("sda1", "root=/dev/sda1"),
        ("dev/sda1", "root=/dev/sda1"),
        ("mapper/vg-root", "root=/dev/mapper/vg-root"),
        (f"uuid={UUID}", "root=UUID="),
        ("PartLabel=x", "root=PARTLABEL="),
        ("ID=virtio-x", "root=/dev/disk/by-id/"),
        ("PARTUUID=4f1a9c3e-01/partnroff=1", "root=PARTUUID=4f1a9c3e-01/PARTNROFF=1"),
    ],
)
def test_a_near_miss_is_told_how_it_is_written(text: str, meant: str) -> None:
    with pytest.raises(BootError) as caught:
        parse_spec(text)
    assert any(meant in line for line in caught.value.advice)


@pytest.mark.parametrize(
    ("text", "name", "remark"),
    [
        (f"UUID={UUID[:-1]}4", "vda2", f"its UUID {UUID} differs in 1 character"),
        (f"UUID={UUID[1:]}", "vda2", f"its UUID {UUID} differs in 1 character"),
        (f"/dev/disk/by-uuid/{UUID[:-1]}4", "vda2", f"its UUID {UUID} differs in 1 character"),
        ("UUID=4f1a9c3e-02", "vda2", "that is its PARTUUID: PARTUUID=4f1a9c3e-02"),
        (f"PARTUUID={UUID}", "vda2", f"that is its UUID: UUID={UUID}"),
        ("LABEL=root", "vda2", "that is its PARTLABEL: PARTLABEL=root"),
        ("LABEL=/dev/vda2", "vda2", "that is its path: /dev/vda2"),
        ("/dev/disk/by-uuid/ABCD-1234", "vda1", "that is its UUID: UUID=ABCD-1234"),
        ("PARTLABEL=Root", "vda2", "its PARTLABEL root differs in upper and lower case"),
        ("PARTLABEL=EFI Sytsem", "vda1", "its PARTLABEL EFI System differs in 1 character"),
        ("/dev/mapper/vg-rot", "vda2", "its path /dev/mapper/vg-root differs in 1 character"),
        ("254:3", "vda", "its device number 254:0 differs in 1 character"),
        ("PARTUUID=4f1a9c3e-02/PARTNROFF=1", "vda2", "has that PARTUUID but its disk has no partition 3"),
    ],
)
def test_the_nearest_device_is_named_with_the_difference(text: str, name: str, remark: str) -> None:
    assert remarks(text, *DISKS)[0] == (name, remark)


def test_a_device_that_udevd_has_not_processed_is_named() -> None:
    (found,) = remarks("/dev/vda2", VDA2._replace(initialized=False))
    assert found == ("vda2", "has that path but udevd has not processed it yet")


def test_nothing_is_near_to_nonsense() -> None:
    assert remarks(f"UUID={OTHER}", *DISKS) == []
    assert remarks("LABEL=x", *DISKS) == []


def test_what_was_found_is_not_called_near() -> None:
    assert all(name != "vda2" for name, _ in remarks("/dev/vda2", *DISKS))


_PROPERTIES = st.dictionaries(
    st.sampled_from(
        [
            "ID_FS_UUID",
            "ID_FS_LABEL",
            "ID_FS_LABEL_ENC",
            "ID_FS_TYPE",
            "ID_FS_USAGE",
            "ID_FS_UUID_SUB",
            "ID_PART_ENTRY_UUID",
            "ID_PART_ENTRY_NAME",
            "ID_PART_ENTRY_NUMBER",
            "ID_PART_ENTRY_DISK",
            "ID_BTRFS_READY",
            "DM_MULTIPATH_DEVICE_PATH",
        ]
    ),
    st.text() | st.sampled_from(["1", "0", "btrfs", "crypto", "\\xff", "\x1b[2J", "\udcff", "8:0"]),
)
_VIEWS = st.builds(
    DeviceView,
    st.text(),
    st.text(),
    st.sampled_from(["block", "net"]),
    st.sampled_from(["disk", "partition", ""]),
    st.sampled_from(["", "/dev/sda", "/dev/sda1"]) | st.text(),
    st.tuples(st.integers(0, 9), st.integers(0, 9)),
    st.lists(st.text(), max_size=3).map(tuple),
    _PROPERTIES,
    st.booleans(),
)
_SPECS = st.one_of(
    st.text(),
    st.binary().map(lambda data: data.decode("utf-8", "surrogateescape")),
    st.builds(
        "".join,
        st.tuples(
            st.sampled_from(
                [
                    "UUID=",
                    "LABEL=",
                    "PARTUUID=",
                    "PARTLABEL=",
                    "/dev/",
                    "block:",
                    "/dev/disk/by-label/",
                    "nfs:",
                ]
            ),
            st.text() | st.sampled_from(["1", "8:0", "sda", "\\xff", '"x"', "x/PARTNROFF=1"]),
        ),
    ),
    st.sampled_from(["8:0", "800", "/dev/sda"]),
)


@given(_SPECS, st.lists(_VIEWS, max_size=5))
def test_no_text_and_no_device_is_a_surprise(text: str, devices: list[DeviceView]) -> None:
    try:
        spec = parse_spec(text)
    except BootError as error:
        shown = [error.cause, *error.advice]
    else:
        found = resolve(spec, devices)
        assert all(device.initialized and device.subsystem == "block" for device in found)
        near = nearest(spec, devices)
        shown = [describe(spec), *(remark for _, remark in near)]
    for line in shown:
        assert line.isascii() and line.isprintable()


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
def test_every_label_is_found_as_udev_writes_it(label: str) -> None:
    device = block("sda", (8, 0), ID_FS_LABEL_ENC=encode(label))
    assert decode(encode(label)) == label
    assert names(f"LABEL={label}", device) == ["sda"]
    assert names(f"LABEL={encode(label)}", device) == ["sda"]


def test_descriptions() -> None:
    assert describe(parse_spec('LABEL="my disk"')) == "LABEL=my disk"
    assert describe(parse_spec("PARTUUID=4f1a9c3e-01/PARTNROFF=2")) == "PARTUUID=4f1a9c3e-01/PARTNROFF=2"
    assert describe(parse_spec("/dev//vda")) == "/dev/vda"
    assert describe(DeviceSpec(Kind.LABEL, "\x1b[2J", ())) == "LABEL=\\x1b[2J"


def test_of_a_disk_and_its_own_partition_the_partition_is_meant() -> None:
    """An isohybrid image shows its file system on the disk and on the first partition."""
    tags = {"ID_FS_LABEL_ENC": "LIVE", "ID_FS_TYPE": "iso9660"}
    disk = block("vda", (254, 0), **tags)
    first = partition("vda1", 1, 1, **tags)._replace(devtype="partition")
    elsewhere = block("vdb", (254, 16), **tags)
    assert names("LABEL=LIVE", disk, first) == ["vda1"]
    assert names("LABEL=LIVE", disk) == ["vda"]
    assert names("LABEL=LIVE", disk, first, elsewhere) == ["vda1", "vdb"]
