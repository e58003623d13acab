"""Roots on logical volumes and arrays: activated when complete, degraded with a loud line, nothing else."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu import Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks.declare import gpt
from pyinit_qemu.disks.filesystems import Ext4
from pyinit_qemu.disks.stacks import Stack, Volume, luks, lvm, md
from pyinit_qemu.shell import Shell
from pyinit_qemu.smallroot import LABEL, small_root
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

ARRAY = "0123abcd:4567ef89:0123abcd:4567ef89"
#: Where partitions begin, in bytes; offset and size of magic, event count and number of members.
PARTITION = 1 << 20
FIELDS = ((0, 4), (200, 8), (220, 4))
Start = Callable[..., Machine]


@pytest.fixture(scope="module")
def root(storage: DebianRoot) -> Ext4:
    return Ext4(small_root(storage), label=LABEL)


@pytest.fixture(scope="module")
def assembling(storage: DebianRoot, image: Callable[..., Path]) -> Path:
    modules = ("virtio_pci", "virtio_blk", "ext4")
    return image(storage, mode="list", modules=modules, features=("lvm", "md", "luks"), rescue="open")


@pytest.fixture
def start(boot: Callable[..., Machine], storage: DebianRoot, assembling: Path) -> Start:
    def go(append: str, *disks: Path | Disk, **options: object) -> Machine:
        return boot(
            kernel=storage.kernel,
            initrd=assembling,
            disks=tuple(disk if isinstance(disk, Disk) else Disk(disk) for disk in disks),
            append=f"quiet {append}",
            **options,
        )

    return go


def disks(stack: Stack) -> list[Path]:
    return [gpt(stack.member(number)).build() for number in range(stack.members)]


def test_a_volume_is_activated_when_its_group_is_complete(
    start: Start, root: Ext4, witness_of: Callable[[Machine], Witness]
) -> None:
    group = lvm(vg="one-two", pvs=2, root=Volume(root, "striped"), other=root)
    other = lvm(vg="foreign", secret=root)
    first, second = disks(group)
    (foreign,) = disks(other)
    before = hashlib.sha256(foreign.read_bytes()).digest()
    vm = start("root=/dev/mapper/one--two-root rd.timeout=60", foreign, first, second)
    seen = witness_of(vm)
    assert seen.root.device.startswith("dm-")
    assert "/dev/disk/by-id/dm-name-one--two-root" in seen.root.links
    assert "/dev/one-two/root" in seen.dev
    # Nobody asked for these.
    assert "/dev/mapper/one--two-other" not in seen.dev
    assert "/dev/foreign/secret" not in seen.dev
    assert hashlib.sha256(foreign.read_bytes()).digest() == before


@pytest.mark.fault("S4")
def test_a_group_without_one_of_its_devices_is_explained_with_its_uuid(
    start: Start, root: Ext4, witness_of: Callable[[Machine], Witness]
) -> None:
    first, second = disks(lvm(vg="v", pvs=2, root=Volume(root, "striped")))
    late = Disk(second, late=True)
    vm = start("root=/dev/v/root rd.timeout=6", first, late, allow=("banner",))
    shell = Shell.rescue(vm, "initqueue")
    explanation = shell.check("pyinit explain")
    assert explanation.startswith("E-DEV root: /dev/v/root did not appear within 6 s")
    assert "Couldn't find device with uuid" in vm.console
    vm.plug(late)
    shell.leave()
    assert witness_of(vm).root.device.startswith("dm-")


@pytest.mark.fault("S1")
def test_a_mirror_without_one_leg_is_started_after_a_while_and_says_so(
    start: Start, root: Ext4, witness_of: Callable[[Machine], Witness]
) -> None:
    mirror = md(1, root, uuid=ARRAY, name="0")
    first, _ = disks(mirror)
    vm = start(f"root=LABEL={LABEL} rd.md.uuid={ARRAY}", first)
    seen = witness_of(vm)
    assert seen.root.device.startswith("md")
    assert (
        f"warning: array {ARRAY} is not complete; its members here: /dev/vda1; started without the others "
        "after 30 s" in vm.console
    )


def ahead(disk: Path, folder: Path) -> Path:
    """A copy of a member's disk that has seen what the others have missed.

    Fields of the superblock, metadata 1.2: the kernel's include/uapi/linux/raid/md_p.h.
    """
    copy = folder / f"ahead-{disk.name}"
    shutil.copyfile(disk, copy)
    with copy.open("r+b") as file:
        file.seek(PARTITION + 4096)
        block = bytearray(file.read(4096))
        magic, events, members = (int.from_bytes(block[at : at + n], "little") for at, n in FIELDS)
        assert magic == 0xA92B4EFC
        block[200:208] = (events + 4).to_bytes(8, "little")
        block[216:220] = bytes(4)
        size = 256 + 2 * members
        words = (int.from_bytes(block[at : min(at + 4, size)], "little") for at in range(0, size, 4))
        total = sum(words)
        block[216:220] = ((total + (total >> 32)) & 0xFFFFFFFF).to_bytes(4, "little")
        file.seek(PARTITION + 4096)
        file.write(block)
    return copy


@pytest.mark.fault("S2")
def test_a_leg_that_is_out_of_date_is_left_alone(
    start: Start, root: Ext4, witness_of: Callable[[Machine], Witness], tmp_path: Path
) -> None:
    first, second = disks(md(1, root, uuid=ARRAY, name="0"))
    stale = tmp_path / "stale"
    shutil.copyfile(first, stale)
    before = hashlib.sha256(stale.read_bytes()).digest()
    vm = start(f"root=LABEL={LABEL} rd.md.uuid={ARRAY}", Disk(stale, snapshot=False), ahead(second, tmp_path))
    assert witness_of(vm).root.device.startswith("md")
    assert f"warning: array {ARRAY} is not complete" in vm.console
    assert hashlib.sha256(stale.read_bytes()).digest() == before


@pytest.mark.fault("S2")
def test_an_array_of_which_too_many_members_are_out_of_date_is_not_started(
    start: Start, root: Ext4, tmp_path: Path
) -> None:
    first, second, third = disks(md(5, root, 3, uuid=ARRAY, name="0"))
    vm = start(
        f"root=LABEL={LABEL} rd.md.uuid={ARRAY} rd.timeout=40",
        first,
        second,
        ahead(third, tmp_path),
        allow=("banner",),
    )
    shell = Shell.rescue(vm, "initqueue")
    told = shell.check("pyinit explain")
    assert told.startswith(f"E-DEV root: LABEL={LABEL} did not appear within 40 s")
    assert f"md: array {ARRAY} is not complete; its members here:" in told
    assert "md: kernel: md: kicking non-fresh vda1 from array!" in told
    assert "md: kernel: md/raid:md0: not enough operational devices" in told
    vm.stop()


def test_volumes_in_an_encrypted_mirror(
    start: Start, root: Ext4, witness_of: Callable[[Machine], Witness]
) -> None:
    uuid = "1c0de5ea-0000-4000-8000-00000000000b"
    stack = md(1, luks(lvm(vg="v", root=root), uuid=uuid, passphrase="secret"), name="safe")
    vm = start(f"root=/dev/v/root rd.luks.uuid={uuid} rd.auto", *disks(stack))
    vm.expect(r"Passphrase for luks-\S+ \(/dev/md\S+\): ")
    vm.send_line("secret")
    seen = witness_of(vm)
    assert seen.root.device.startswith("dm-")
    assert "/dev/v/root" in seen.dev


def test_an_image_without_the_programs_says_which_are_missing(
    boot: Callable[..., Machine],
    storage: DebianRoot,
    listed: Path,
    root: Ext4,
    expect_screen: Callable[[Machine, str], None],
) -> None:
    group, array = disks(lvm(vg="v", root=root)), disks(md(1, root, uuid=ARRAY, name="0"))
    vm = boot(
        kernel=storage.kernel,
        initrd=listed,
        disks=(Disk(group[0]), Disk(array[0])),
        append=f"quiet root=/dev/v/root rd.md.uuid={ARRAY}",
        allow=("banner",),
    )
    shell = Shell.rescue(vm, "initqueue")
    expect_screen(vm, "E-MD")
    shell.check("pyinit set rd.md=0")
    shell.leave()
    Shell.rescue(vm, "initqueue")
    expect_screen(vm, "E-LVM")
    vm.stop()


@pytest.mark.fault("A5", "row-7")
@pytest.mark.parametrize(
    "order", ["volumes in an encrypted one", "array in an encrypted one", "encrypted in a volume"]
)
def test_whatever_lies_on_what_the_encrypted_volume_is_closed_before_a_shell(
    order: str, start: Start, root: Ext4, witness_of: Callable[[Machine], Witness]
) -> None:
    uuid = "1c0de5ea-0000-4000-8000-00000000000c"
    if order.startswith("volumes"):
        stack: Stack = luks(lvm(vg="v", root=root), uuid=uuid, passphrase="secret")
        words = f"root=/dev/v/root rd.luks.uuid={uuid}"
    elif order.startswith("array"):
        # One of its two members: it is started after a while, and again after the shell.
        stack = luks(md(1, root, uuid=ARRAY, name="0").member(0), uuid=uuid, passphrase="secret")
        words = f"root=LABEL={LABEL} rd.luks.uuid={uuid} rd.md.uuid={ARRAY}"
    else:
        stack = lvm(vg="v", vault=luks(root, uuid=uuid, passphrase="secret"))
        words = f"root=LABEL={LABEL} rd.lvm.lv=v/vault rd.luks.uuid={uuid}"
    vm = start(f"{words} rd.break=pre-pivot", gpt(stack).build())
    vm.expect(r"Passphrase for luks-\S+ \(/dev/\S+\): ")
    vm.send_line("secret")
    shell = Shell.rescue(vm, "pre-pivot")
    assert "luks-" not in shell.check("ls /dev/mapper")
    assert " /sysroot " not in shell.check("cat /proc/mounts")
    shell.leave()
    vm.expect(r"Passphrase for luks-\S+ \(/dev/\S+\): ")
    vm.send_line("secret")
    assert witness_of(vm).root.device.startswith(("dm-", "md"))


def test_a_member_of_a_raid_of_firmware_is_named_and_not_touched(start: Start, tmp_path: Path) -> None:
    disk = tmp_path / "member"
    content = bytearray(8 << 20)
    # Intel's metadata begins in the last sector but one.
    content[-1024:-994] = b"Intel Raid ISM Cfg Sig. 1.1.00"
    disk.write_bytes(content)
    words = "root=LABEL=far rd.dm.uuid=isw_far rd.auto rd.timeout=2"
    vm = start(words, Disk(disk, snapshot=False), allow=("banner",))
    shell = Shell.rescue(vm, "initqueue")
    assert "rd.dm.uuid: no effect, this initramfs does not handle BIOS RAID" in vm.console
    told = shell.check("pyinit explain")
    assert told.startswith("E-DEV root: LABEL=far did not appear within 2 s")
    assert "the firmware's RAID, of which /dev/vda (isw_raid_member) is a part" in told
    vm.stop()
    assert disk.read_bytes() == content
