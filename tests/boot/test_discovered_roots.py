"""Roots that root= does not name: found by the type of their partition, or explained."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu import Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks.filesystems import Ext4, Tree
from pyinit_qemu.disks.gpt import ESP
from pyinit_qemu.disks.image import ROOT_X86_64, Image, Partition
from pyinit_qemu.disks.stacks import luks
from pyinit_qemu.shell import Shell
from pyinit_qemu.smallroot import small_root
from pyinit_qemu.timing import Timeout
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

READ_ONLY, NO_AUTO = 1 << 60, 1 << 63
FIRMWARE = "/usr/share/ovmf/OVMF.fd"
VARIABLE = "/sys/firmware/efi/efivars/LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
USR_X86_64 = "8484680c-9521-48c6-9c11-b0720656f69e"
Start = Callable[..., Machine]


@pytest.fixture
def start(boot: Callable[..., Machine], bookworm: DebianRoot, listed: Path) -> Start:
    def go(append: str, *disks: Image) -> Machine:
        return boot(
            kernel=bookworm.kernel,
            initrd=listed,
            disks=tuple(Disk(disk.build()) for disk in disks),
            append=append,
            allow=("banner",),
        )

    return go


def disk(root: Tree, attributes: int = 0, esp: str = "") -> Image:
    """A disk as installers make it; ``attributes`` are those of the root's partition."""
    return Image(
        gpt=(
            Partition(size=1 << 20, type=ESP, name="esp", partuuid=esp),
            Partition(Ext4(root), type=ROOT_X86_64, name="root", attributes=attributes),
        )
    )


def test_without_a_word_the_only_partition_of_the_type_is_the_root(
    start: Start, bookworm: DebianRoot, witness_of: Callable[[Machine], Witness]
) -> None:
    tree = small_root(bookworm)
    vm = start("rw rd.info", disk(tree, NO_AUTO), disk(tree, READ_ONLY))
    root = witness_of(vm).root
    # The first is not to be used by itself, the second not to be written, rw or not.
    assert (root.device, root.read_only) == ("vdb2", True)
    (line,) = (line for line in vm.console.splitlines() if "root is /dev/vdb2" in line)
    assert line.endswith("the only partition with the GPT type of a root")


def test_two_that_may_be_meant_are_both_named(
    start: Start, bookworm: DebianRoot, witness_of: Callable[[Machine], Witness]
) -> None:
    tree = small_root(bookworm)
    vm = start("quiet root=gpt-auto", disk(tree), disk(tree))
    shell = Shell.rescue(vm, "initqueue")
    lines = shell.check("pyinit explain").splitlines()
    assert lines[0] == f"E-AMBIG 2 devices match root: a partition of the GPT type {ROOT_X86_64}"
    assert "/dev/vda2" in lines[2] and "/dev/vdb2" in lines[3]
    shell.check("pyinit set root=/dev/vdb2")
    shell.leave()
    assert witness_of(vm).root.device == "vdb2"


def test_one_is_not_taken_while_a_slow_disk_may_hold_another(
    boot: Callable[..., Machine], bookworm: DebianRoot, listed: Path
) -> None:
    tree = small_root(bookworm)
    fast, slow = Disk(disk(tree).build()), Disk(disk(tree).build())
    vm = boot(
        kernel=bookworm.kernel,
        initrd=listed,
        disks=(fast, slow),
        append="quiet root=gpt-auto",
        allow=("banner",),
    )
    vm.faults.slow(slow, iops=10)
    vm.expect("root: /dev/vd[ab]2 would do; vd.* may, too, and is looked at first")
    shell = Shell.rescue(vm, "initqueue")
    assert shell.check("pyinit explain").startswith("E-AMBIG 2 devices match root: a partition of the GPT")
    vm.stop()


def test_the_disk_that_was_booted_from_decides(
    boot: Callable[..., Machine], bookworm: DebianRoot, generic: Path
) -> None:
    tree, esp = small_root(bookworm), "5c0ffee5-0000-4000-8000-00000000e59f"
    vm = boot(
        kernel=bookworm.kernel,
        initrd=generic,
        disks=(Disk(disk(tree).build()), Disk(disk(tree, esp=esp).build())),
        append="quiet rd.info rd.break=initqueue",
        extra=("-bios", FIRMWARE),
        unpack=False,
    )
    # What a boot loader does: it was not one that started this kernel.
    shell = Shell.rescue(vm, "initqueue")
    shell.check("mount -t efivarfs efivarfs /sys/firmware/efi/efivars")
    value = "".join(f"{letter}\\000" for letter in esp.upper())
    shell.check(f"printf '\\007\\000\\000\\000{value}\\000\\000' > {VARIABLE}")
    shell.check("umount /sys/firmware/efi/efivars")
    shell.leave()
    # The firmware writes to the result channel, too, before anybody else does.
    vm.wait_event("SHUTDOWN", Timeout.BOOT)
    (report,) = (frame for frame in vm.frames if frame["kind"] == "witness")
    vm.power_cut()
    seen = Witness.parse(report)
    assert seen.root.device == "vdb2"
    (line,) = (line for line in vm.console.splitlines() if "root is /dev/vdb2" in line)
    assert line.endswith("with the GPT type of a root on the disk that was booted from")
    assert "/sys/firmware/efi/efivars" not in {mount.target for mount in seen.mounts}


def test_why_there_is_none(start: Start, bookworm: DebianRoot) -> None:
    vm = start("quiet root=gpt-auto rd.timeout=3", disk(small_root(bookworm), NO_AUTO))
    text = Shell.rescue(vm, "initqueue").check("pyinit explain")
    assert text.startswith(f"E-DEV root: a partition of the GPT type {ROOT_X86_64} did not appear within 3 s")
    assert "/dev/vda2 has the type of a root, and is marked as not to be used by itself" in text
    vm.stop()


def test_a_usr_is_found_in_the_same_way(
    start: Start,
    bookworm: DebianRoot,
    tmp_path: Path,
    witness_of: Callable[[Machine], Witness],
) -> None:
    root, usr = tmp_path / "root", tmp_path / "usr"
    shutil.copytree(small_root(bookworm).path, root, symlinks=True)
    (root / "usr").rename(usr)
    (root / "usr").mkdir()
    made = Image(
        gpt=(
            Partition(Ext4(Tree(usr)), type=USR_X86_64, name="usr"),
            Partition(Ext4(Tree(root)), type=ROOT_X86_64, name="root"),
        )
    )
    seen = witness_of(start("quiet rw", made))
    (mounted,) = (mount for mount in seen.mounts if mount.target == "/usr")
    assert (seen.root.device, mounted.source) == ("vda2", "/dev/vda1")


def test_an_encrypted_root_is_found_and_opened(
    boot: Callable[..., Machine],
    storage: DebianRoot,
    image: Callable[..., Path],
    witness_of: Callable[[Machine], Witness],
) -> None:
    initrd = image(
        storage,
        mode="list",
        modules=("virtio_pci", "virtio_blk", "ext4"),
        features=("luks",),
        rescue="open",
    )
    uuid = "1c0de5ea-0000-4000-8000-00000000000e"
    stack = luks(Ext4(small_root(storage)), uuid=uuid, passphrase="secret")
    made = Image(gpt=(Partition(stack.member(0), type=ROOT_X86_64, name="root"),))
    vm = boot(kernel=storage.kernel, initrd=initrd, disks=(Disk(made.build()),), append="quiet")
    vm.expect(rf"Passphrase for luks-{uuid} \(/dev/vda1\): ")
    vm.send_line("secret")
    assert witness_of(vm).root.device.startswith("dm-")
