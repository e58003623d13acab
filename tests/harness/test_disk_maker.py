"""Encrypted devices, volumes, arrays: made by one machine, opened by another, with the real tools."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pyinit_qemu.disks import maker
from pyinit_qemu.disks.cache import Cache
from pyinit_qemu.disks.filesystems import MIB, Ext4, Tree
from pyinit_qemu.disks.image import Image, Partition
from pyinit_qemu.disks.maker import Plan
from pyinit_qemu.disks.stacks import PASSPHRASE, Stack, Volume, btrfs_pool, luks, lvm, md
from pyinit_qemu.disks.tools import ToolError

KEY = b"not text: \x00\xff\n"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    folder = tmp_path_factory.mktemp("tree")
    (folder / "etc").mkdir()
    (folder / "etc" / "hello").write_text("hello\n")
    return Tree(folder)


class Check:
    """Opens disks in a machine; what is not as it should be fails there, with the tool's words."""

    def __init__(self) -> None:
        self.plan = Plan([])

    def attach(self, stack: Stack) -> list[str]:
        return [self.plan.source(path) for path in stack.disks()]

    def same(self, image: Path, device: str) -> None:
        self.plan.run("cmp", "--bytes", str(image.stat().st_size), self.plan.source(image), device)

    def luks(self, name: str, *words: str) -> str:
        self.plan.run("cryptsetup", "open", "--readonly", "--key-file", "-", *words, name, stdin=PASSPHRASE)
        self.plan.finally_run("cryptsetup", "close", name)
        return f"/dev/mapper/{name}"

    def run(self, folder: Path) -> None:
        self.plan.close()
        maker.make(self.plan, folder, cache=Cache())


def test_volumes_and_encryption(tree: Tree, tmp_path: Path) -> None:
    content = Ext4(tree, label="inside")
    image = Image(whole=content).build()
    check = Check()

    inner = luks(lvm(vg="one-two", root=content), uuid="11111111-2222-3333-4444-555555555555", key=KEY)
    (disk,) = check.attach(inner)
    opened = check.luks("a", disk)
    check.plan.write("/run/key", KEY)
    check.plan.run("cryptsetup", "open", "--test-passphrase", "--key-file", "/run/key", disk)
    check.plan.run("lvm", "vgchange", "-ay", "one-two")
    check.same(image, "/dev/mapper/one--two-root")
    check.plan.finally_run("lvm", "vgchange", "-an", "one-two")
    del opened

    old = luks(content, version=1)
    check.same(image, check.luks("b", *check.attach(old)))

    apart = luks(content, detached=True)
    data, header = check.attach(apart)
    check.same(image, check.luks("c", "--header", header, data))

    many = lvm(
        vg="many",
        pvs=2,
        striped=Volume(content, "striped"),
        raid=Volume(content, "raid1"),
        mirror=Volume(content, "mirror"),
        thin=Volume(content, "thin"),
        cached=Volume(content, "cached"),
        plain=content,
        old=Volume(kind="snapshot", origin="plain"),
    )
    check.attach(many)
    check.plan.run("lvm", "vgchange", "-ay", "many")
    for name in ("striped", "raid", "mirror", "thin", "cached", "plain", "old"):
        check.same(image, f"/dev/mapper/many-{name}")
    check.plan.finally_run("lvm", "vgchange", "-an", "many")
    check.run(tmp_path)


def test_arrays_and_pools(tree: Tree, tmp_path: Path) -> None:
    content = Ext4(tree, label="inside")
    image = Image(whole=content).build()
    check = Check()
    arrays = {
        "0": md(0, content, name="striped"),
        "1": md(1, luks(content), name="mirror", metadata="1.0"),
        "5": md(5, content, members=3, name="five"),
        "10": md(10, content, members=3, name="ten", metadata="0.90"),
    }
    for level, array in arrays.items():
        node = f"/dev/md{level}"
        check.plan.run("mdadm", "--assemble", "--readonly", node, *check.attach(array))
        check.plan.finally_run("mdadm", "--stop", node)
        check.same(image, check.luks("in-array", node) if level == "1" else node)
    # One member is enough for a mirror, two of three for a level 5.
    check.plan.run("mdadm", "--stop", "/dev/md5")
    check.plan.run("mdadm", "--assemble", "--run", "--readonly", "/dev/md5", *check.attach(arrays["5"])[1:])
    check.same(image, "/dev/md5")

    pool = btrfs_pool(
        tree, 2, data="raid1", label="pool", subvolumes={"@": tree, "@/home": None}, default="@"
    )
    first, second = check.attach(pool)
    check.plan.run("modprobe", "btrfs")
    check.plan.run("btrfs", "device", "scan", first, second)
    check.plan.run("mount", "--mkdir", "-o", "ro,subvol=/", second, "/run/top")
    check.plan.run("mount", "--mkdir", "-o", "ro", first, "/run/default")
    for path in ("/run/top/etc/hello", "/run/top/@/etc/hello", "/run/default/etc/hello"):
        check.plan.run("cmp", "/run/top/etc/hello", path)
    check.plan.run("btrfs", "subvolume", "show", "/run/default/home")
    check.plan.finally_run("umount", "/run/top")
    check.plan.finally_run("umount", "/run/default")
    check.run(tmp_path)


def test_members_go_into_partitions(tree: Tree) -> None:
    array = md(1, Ext4(tree), uuid="01234567:89abcdef:01234567:89abcdef")
    for number in range(2):
        disk = Image(gpt=(Partition(size=MIB), Partition(array.member(number), name="array"))).build()
        with disk.open("rb") as file:
            # Version 1.2 has its superblock 4 KiB behind the start of the device.
            file.seek(2 * MIB + 4096)
            block = file.read(256)
        assert block[:4] == bytes.fromhex("fc4e2ba9")
        assert block[16:32].hex() == "0123456789abcdef" * 2
        # dev_number, the place of the member in the array.
        assert int.from_bytes(block[160:164], "little") == number


def test_disks_are_made_once_and_stay_small(tree: Tree) -> None:
    array = md(5, Ext4(tree, size=200 * MIB), members=3)
    before = [path.stat().st_mtime_ns for path in array.disks()]
    assert [path.stat().st_mtime_ns for path in array.disks()] == before
    for path in array.disks():
        status = path.stat()
        assert status.st_mode & 0o777 == 0o444
        assert status.st_blocks * 512 < 20 * MIB < 100 * MIB < status.st_size


def test_a_tool_that_fails_is_named_with_its_words(tmp_path: Path) -> None:
    plan = Plan([4 * MIB])
    plan.run("mdadm", "--examine", "@target0")
    with pytest.raises(ToolError) as caught:
        maker.make(plan, tmp_path, cache=Cache())
    assert "failed at: mdadm --examine @target0" in str(caught.value)
    assert "No md superblock detected" in str(caught.value)


def test_the_hosts_kernel_is_left_alone(tree: Tree) -> None:
    """No device, no mount, no module of this machine has anything to do with it."""

    def state() -> tuple[str, str, str]:
        blocks = subprocess.run(["ls", "/sys/block"], capture_output=True, text=True, check=True).stdout
        modules = Path("/proc/modules")
        # A container may hide the list.
        names = modules.read_text() if modules.exists() else ""
        return blocks, names, Path("/proc/mounts").read_text()

    before = state()
    md(1, luks(Ext4(tree), label="unseen")).disks()
    assert state() == before
