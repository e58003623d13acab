"""Hibernation: the same processes go on after the power was off, or a person is told why they do not."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_image.sysroot import Sysroot
from pyinit_qemu import MIB, Disk, Machine, smallroot
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks.cache import digest_file
from pyinit_qemu.disks.declare import gpt, swap
from pyinit_qemu.disks.filesystems import Ext4, Tree
from pyinit_qemu.disks.stacks import Stack, Volume, bcache, luks, lvm, md
from pyinit_qemu.shell import Shell
from pyinit_qemu.smallroot import make_tree

pytestmark = pytest.mark.boot

LABEL, SWAP = "sleeper", "5a5a0000-0000-4000-8000-000000000001"
UUID = "1c0de5ea-0000-4000-8000-0000000000aa"
PASSPHRASE = "correct horse"
ROOM = 160 * MIB

#: The real init: says which life this is, hibernates to the device or into the file that its argument names,
#: and tells what it is when it goes on.
SLEEPER = """#!/bin/sh
PATH=/usr/sbin:/usr/bin
read -r life < /proc/sys/kernel/random/boot_id
echo "life $life begins, words: $*"
sleep 1000 &
case $1 in
/dev/*) swapon "$1";;
file)
    dd if=/dev/zero of=/swapfile bs=1M count=128 2>/dev/null
    chmod 600 /swapfile
    mkswap -q /swapfile
    swapon /swapfile
    offset=$(filefrag -v /swapfile | awk '$1 == "0:" { print $4 + 0 }')
    echo "the file begins at page $offset."
    echo "$offset" > /sys/power/resume_offset
    echo "$2" > /sys/power/resume
    ;;
esac
if [ -n "$1" ]; then
    sync
    echo shutdown > /sys/power/disk
    echo disk > /sys/power/state || echo "did not hibernate"
    if kill -0 $!; then echo "life $life goes on, its child $! too"; fi
fi
sync
echo o > /proc/sysrq-trigger
sleep 1000
"""

TOOLS = ("/usr/sbin/swapon", "/usr/sbin/mkswap", "/usr/sbin/filefrag", "/usr/bin/sleep", "/usr/bin/sync")
TOOLS += ("/usr/bin/dd", "/usr/bin/chmod", "/usr/bin/mawk", "/usr/bin/cat")

Start = Callable[..., Machine]


def digest_of(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@pytest.fixture(scope="module")
def root(storage: DebianRoot, tmp_path_factory: pytest.TempPathFactory) -> Ext4:
    """A root whose init hibernates."""
    folder = tmp_path_factory.mktemp("sleeper") / "root"
    make_tree(folder, Sysroot(storage.tree), programs=TOOLS)
    (folder / "usr/bin/awk").symlink_to("mawk")
    (folder / "usr/sbin/sleeper").write_text(SLEEPER)
    (folder / "usr/sbin/sleeper").chmod(0o755)
    parts = (storage.source.digest, digest_file(Path(smallroot.__file__)), SLEEPER, TOOLS)
    return Ext4(Tree(folder, digest=digest_of(*parts)), label=LABEL, free=ROOM)


@pytest.fixture(scope="module")
def initrd(storage: DebianRoot, image: Callable[..., Path]) -> Path:
    modules = ("virtio_pci", "virtio_blk", "ext4")
    features = ("lvm", "luks", "md", "bcache")
    return image(storage, mode="list", modules=modules, features=features, rescue="open")


@pytest.fixture
def start(boot: Callable[..., Machine], storage: DebianRoot, initrd: Path, tmp_path: Path) -> Start:
    """``start(words, image, sleep="/dev/vda2")``: boot with disks that keep what is written to them."""

    def go(words: str, *images: Path, sleep: str = "", memory: int = 256, **options: object) -> Machine:
        return boot(
            kernel=storage.kernel,
            initrd=initrd,
            disks=tuple(Disk(path, snapshot=False) for path in images),
            memory=memory * MIB,
            append=f"quiet root=LABEL={LABEL} rw init=/usr/sbin/sleeper {words} -- {sleep}",
            **options,
        )

    return go


@pytest.fixture
def kept(tmp_path: Path) -> Callable[[Path], Path]:
    """``kept(image)``: a copy of a disk that can be written."""

    def copy(image: Path) -> Path:
        target = tmp_path / f"{len(list(tmp_path.iterdir()))}.img"
        shutil.copyfile(image, target)
        target.chmod(0o644)
        return target

    return copy


def sleeps(vm: Machine, typed: str = "") -> str:
    """Wait until the machine is off; return which life it was."""
    if typed:
        vm.expect("Passphrase for ")
        vm.send_line(typed)
    life = vm.expect(r"life (\S+) begins")[1]
    vm.finish(goal="shutdown").check()
    assert "did not hibernate" not in vm.console
    assert f"life {life} goes on" not in vm.console
    return life


def test_the_same_process_goes_on_after_the_power_was_off(
    start: Start, root: Ext4, kept: Callable[[Path], Path]
) -> None:
    disk = kept(gpt(root, swap(ROOM, uuid=SWAP)).build())
    words = f"resume=UUID={SWAP}"
    life = sleeps(start(words, disk, sleep="/dev/vda2"))
    vm = start(words, disk)
    vm.expect("pyinit: resuming the system that is hibernated on /dev/vda2")
    assert vm.expect(r"life (\S+) goes on, its child [0-9]+ too")[1] == life
    vm.finish(goal="shutdown").check()
    assert "begins" not in vm.console
    # It goes on once.
    vm = start(words, disk)
    assert vm.expect(r"life (\S+) begins")[1] != life
    vm.finish(goal="shutdown").check()
    assert "warning" not in vm.console


def test_it_goes_on_from_encrypted_swap(start: Start, root: Ext4, kept: Callable[[Path], Path]) -> None:
    vault = luks(swap(ROOM, uuid=SWAP), uuid=UUID, passphrase=PASSPHRASE)
    disk = kept(gpt(root, vault).build())
    words = f"resume=/dev/mapper/luks-{UUID}"
    life = sleeps(start(words, disk, sleep=f"/dev/mapper/luks-{UUID}"), PASSPHRASE)
    vm = start(words, disk)
    vm.expect(r"Passphrase for luks-\S+ \(/dev/vda2\): ")
    vm.send_line(PASSPHRASE)
    assert vm.expect(r"life (\S+) goes on, its child [0-9]+ too")[1] == life
    vm.finish(goal="shutdown").check()


@pytest.mark.parametrize("order", ["in a group", "in a group in an encrypted volume"])
def test_it_goes_on_with_root_and_swap_in_volumes(
    order: str, start: Start, root: Ext4, kept: Callable[[Path], Path]
) -> None:
    stack: Stack = lvm(vg="deb", root=root, swap_1=swap(ROOM))
    words, typed = "root=/dev/mapper/deb-root resume=/dev/mapper/deb-swap_1", ""
    if "encrypted" in order:
        stack = luks(stack, uuid=UUID, passphrase=PASSPHRASE)
        words, typed = f"{words} rd.luks.uuid={UUID}", PASSPHRASE
    disk = kept(gpt(stack).build())
    life = sleeps(start(words, disk, sleep="/dev/mapper/deb-swap_1"), typed)
    vm = start(words, disk)
    if typed:
        vm.expect("Passphrase for ")
        vm.send_line(typed)
    assert vm.expect(r"life (\S+) goes on, its child [0-9]+ too")[1] == life
    vm.finish(goal="shutdown").check()


def test_it_goes_on_from_a_swap_file(start: Start, root: Ext4, kept: Callable[[Path], Path]) -> None:
    disk = kept(gpt(root).build())
    vm = start(f"resume=LABEL={LABEL}", disk, sleep="file 254:1")
    offset = vm.expect("the file begins at page ([0-9]+)[.]")[1]
    vm.finish(goal="shutdown").check()
    life = re.search(r"life (\S+) begins", vm.console)
    assert "resume= names /dev/vda1, which is no swap space but a file system (ext4)" in vm.console
    vm = start(f"resume=LABEL={LABEL} resume_offset={offset}", disk)
    assert vm.expect(r"life (\S+) goes on, its child [0-9]+ too")[1] == (life and life[1])
    vm.finish(goal="shutdown").check()


@pytest.fixture
def asleep(start: Start, root: Ext4, kept: Callable[[Path], Path]) -> Path:
    """A disk with a hibernated system."""
    disk = kept(gpt(root, swap(ROOM, uuid=SWAP)).build())
    sleeps(start("", disk, sleep="/dev/vda2"))
    return disk


def refused(vm: Machine) -> str:
    """The console of a machine that boots another life and goes off."""
    vm.expect(r"life \S+ begins")
    vm.finish(goal="shutdown").check()
    assert not re.search(r"life \S+ goes on", vm.console)
    return vm.console


def mark(disk: Path, partition: int) -> bytes:
    """The mark of swap space, from the partition table to the last bytes of the first page."""
    with disk.open("rb") as file:
        file.seek(1024 + 128 * (partition - 1))
        start = int.from_bytes(file.read(128)[32:40], "little")
        file.seek(start * 512 + 4096 - 10)
        return file.read(10)


def test_the_memory_of_a_machine_with_other_memory_is_refused_and_never_used_again(
    start: Start, asleep: Path
) -> None:
    assert mark(asleep, 2) == b"S1SUSPEND\0"
    said = refused(start("resume=/dev/vda2", asleep, memory=320))
    assert (
        "pyinit: warning: the system that is hibernated on /dev/vda2 was not resumed: the kernel refused it. "
        "What it had not saved is lost" in said
    )
    assert re.search("warning: kernel: .*(Image mismatch|memory map)", said)
    assert mark(asleep, 2) == b"SWAPSPACE2"
    assert "warning" not in refused(start("resume=/dev/vda2", asleep))


def test_damaged_memory_is_refused(start: Start, asleep: Path) -> None:
    with asleep.open("r+b") as file:
        file.seek(1024 + 128)
        place = int.from_bytes(file.read(128)[32:40], "little") * 512 + 2 * MIB
        file.seek(place)
        assert file.read(4 * MIB).strip(b"\0")
        file.seek(place)
        file.write(bytes(4 * MIB))
    said = refused(start("resume=/dev/vda2", asleep))
    assert "was not resumed: the kernel refused it" in said
    assert mark(asleep, 2) == b"SWAPSPACE2"


@pytest.mark.parametrize("words", ["resume=/dev/vda2 noresume", "resume=/dev/vda2 hibernate=noresume", ""])
def test_what_nobody_resumes_is_told_and_left(words: str, start: Start, asleep: Path) -> None:
    said = refused(start(words, asleep))
    why = "the kernel command line says so" if words else "no resume= names it"
    assert f"warning: a system is hibernated on /dev/vda2, and is not resumed: {why}. If it is this" in said
    assert mark(asleep, 2) == b"S1SUSPEND\0"


def test_a_kernel_that_may_not_hibernate_leaves_the_mark_and_that_is_said(start: Start, asleep: Path) -> None:
    vm = start("resume=/dev/vda2 rd.break=initqueue", asleep, allow=("banner",))
    shell = Shell.rescue(vm, "initqueue")
    shell.check("mount -t securityfs securityfs /sys/kernel/security")
    shell.check("echo integrity > /sys/kernel/security/lockdown")
    shell.leave()
    said = refused(vm)
    assert (
        "pyinit: warning: the system that is hibernated on /dev/vda2 is not resumed: hibernation is disabled "
        "in this kernel" in said
    )
    assert "/dev/vda2 keeps its mark. Never resume it after this boot" in said
    assert mark(asleep, 2) == b"S1SUSPEND\0"


def unsynchronised(member: Path) -> None:
    """Have the superblock of an array say that nothing is synchronised (struct mdp_superblock_1)."""
    with member.open("r+b") as file:
        file.seek(4096)
        block = bytearray(file.read(1024))
        assert block[:4] == (0xA92B4EFC).to_bytes(4, "little")
        del block[256 + 2 * int.from_bytes(block[220:224], "little") :]
        block[208:216] = bytes(8)
        block[216:220] = bytes(4)
        words = [int.from_bytes(block[at : at + 4], "little") for at in range(0, len(block) // 4 * 4, 4)]
        total = sum(words) + int.from_bytes(block[len(words) * 4 :], "little")
        block[216:220] = ((total & 0xFFFFFFFF) + (total >> 32) & 0xFFFFFFFF).to_bytes(4, "little")
        file.seek(4096)
        file.write(block)


@pytest.mark.parametrize("kind", ["array", "thin", "raid1", "bcache"])
def test_nothing_is_written_to_what_the_root_lies_on_until_it_is_decided(
    kind: str, start: Start, root: Ext4, kept: Callable[[Path], Path]
) -> None:
    stacks: dict[str, tuple[Stack, str, str]] = {
        "array": (md(1, root, name="system"), "root=/dev/md/system", ""),
        "thin": (lvm(vg="v", root=Volume(root, "thin")), "root=/dev/v/root", "v/root is activated when"),
        "raid1": (
            lvm(vg="v", pvs=2, root=Volume(root, "raid1")), "root=/dev/v/root", "v/root is activated when"
        ),
        "bcache": (bcache(root, UUID), f"rd.bcache={UUID}", "/dev/vda is used when"),
    }  # fmt: skip
    stack, words, said = stacks[kind]
    members = [kept(path) for path in stack.disks()]
    for member in members if kind == "array" else ():
        unsynchronised(member)
    before = [digest_file(member) for member in members]
    vm = start(f"{words} resume=UUID={SWAP} rd.timeout=15", *members)
    vm.expect(f"waiting for resume: UUID={SWAP}.*{said}")
    assert [digest_file(member) for member in members] == before
    refused(vm)
    assert [digest_file(member) for member in members] != before


def test_it_goes_on_with_the_root_in_a_pool(start: Start, root: Ext4, kept: Callable[[Path], Path]) -> None:
    stack = lvm(vg="v", root=Volume(root, "thin"), swap=swap(ROOM))
    disk = kept(gpt(stack).build())
    words = "root=/dev/v/root resume=/dev/v/swap"
    life = sleeps(start(words, disk, sleep="/dev/v/swap"))
    vm = start(words, disk)
    assert vm.expect(r"life (\S+) goes on, its child [0-9]+ too")[1] == life
    vm.finish(goal="shutdown").check()


def test_nothing_is_resumed_once_something_is_mounted(
    start: Start,
    asleep: Path,
    expect_screen: Callable[[Machine, str], None],
) -> None:
    vm = start("resume=/dev/vda2 rd.break=initqueue", asleep, allow=("banner",))
    shell = Shell.rescue(vm, "initqueue")
    shell.check("mkdir /tmp/x; mount -t ext4 /dev/vda1 /tmp/x")
    shell.leave()
    shell = Shell.rescue(vm, "initqueue")
    expect_screen(vm, "E-RESUME")
    assert mark(asleep, 2) == b"S1SUSPEND\0"
    shell.check("umount /tmp/x; pyinit set noresume")
    shell.leave()
    assert "is not resumed: the kernel command line says so" in refused(vm)


def test_nothing_is_resumed_once_the_root_was_mounted(start: Start, asleep: Path) -> None:
    """Not even when it is not mounted any more: its log was replayed."""
    vm = start("rw rd.break=pre-pivot", asleep, allow=("banner",))
    shell = Shell.rescue(vm, "pre-pivot")
    shell.check("pyinit set resume=/dev/vda2")
    shell.leave()
    shell = Shell.rescue(vm, "initqueue")
    assert (
        "E-RESUME the system that is hibernated on /dev/vda2 cannot be resumed any more: the root was mounted"
        in shell.check("pyinit explain")
    )
    vm.stop()


def test_without_the_device_the_boot_goes_on_and_says_so(
    start: Start, root: Ext4, kept: Callable[[Path], Path]
) -> None:
    disk = kept(gpt(root, swap(ROOM, uuid=SWAP)).build())
    other = SWAP.replace("5a", "5b")
    said = refused(start(f"resume=UUID={other} rd.timeout=5", disk))
    assert (
        f"warning: resume: UUID={other} did not appear within 5 s: a hibernated system would not be resumed; "
        "the boot goes on" in said
    )
    assert f"swap space here: /dev/vda2  swap  UUID={SWAP}" in said


def test_a_name_of_no_device_is_told(start: Start, root: Ext4, kept: Callable[[Path], Path]) -> None:
    said = refused(start("resume=swap", kept(gpt(root).build())))
    assert "warning: resume=swap names no device: the boot goes on without looking for" in said
