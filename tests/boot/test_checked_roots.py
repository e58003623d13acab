"""Roots that are checked against a hash: the right one boots, and nothing of a wrong one is read."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from pyinit.config.verity import halves
from pyinit_qemu import Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks.cache import digest_file
from pyinit_qemu.disks.declare import gpt, luks
from pyinit_qemu.disks.filesystems import Ext4, Squashfs
from pyinit_qemu.disks.image import ROOT_X86_64, Image, Partition
from pyinit_qemu.shell import Shell
from pyinit_qemu.smallroot import small_root
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

ROOT_VERITY_X86_64 = "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5"
Start = Callable[..., Machine]


@dataclass(frozen=True)
class Bytes:
    """A partition's content from a file."""

    fstype: ClassVar[str] = "bytes"
    path: Path

    @property
    def recipe(self) -> dict[str, object]:
        return {"bytes": digest_file(self.path)}

    def describe(self) -> str:
        return self.path.name

    def write(self, target: Path, sector: int) -> None:
        shutil.copy(self.path, target)


@dataclass(frozen=True)
class Checked:
    """A root, its hashes, and the hash of these."""

    data: Path
    hashes: Path
    roothash: str

    def disk(self, data: Path | None = None) -> Disk:
        """A disk with both, found by the hash; ``data`` is a root to take the place of the right one."""
        first, last = halves(self.roothash)
        image = Image(
            gpt=(
                Partition(Bytes(self.hashes), partuuid=last, type=ROOT_VERITY_X86_64, name="hashes"),
                Partition(Bytes(data or self.data), partuuid=first, type=ROOT_X86_64, name="root"),
            )
        )
        return Disk(image.build())


@pytest.fixture(scope="module")
def checked(storage: DebianRoot, tmp_path_factory: pytest.TempPathFactory) -> Checked:
    """The small root as a squashfs, with hashes that Debian's own veritysetup made."""
    folder = tmp_path_factory.mktemp("checked")
    data, hashes = folder / "root.squashfs", folder / "root.verity"
    Squashfs(small_root(storage)).write(data, 512)
    with data.open("ab") as file:
        file.truncate(data.stat().st_size + -data.stat().st_size % 4096)
    libraries = [storage.tree / "usr/lib/x86_64-linux-gnu", storage.tree / "lib/x86_64-linux-gnu"]
    loader = storage.tree / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
    tool = storage.tree / "usr/sbin/veritysetup"
    fixed = ["--salt=00", "--uuid=1c0de5ea-0000-4000-8000-0000000000ff"]
    result = subprocess.run(
        [loader, "--library-path", ":".join(map(str, libraries)), tool, "format", data, hashes, *fixed],
        check=True,
        capture_output=True,
        text=True,
    )
    found = re.search(r"Root hash:\s+([0-9a-f]{64})", result.stdout)
    assert found, result.stdout
    return Checked(data, hashes, found[1])


@pytest.fixture
def start(boot: Callable[..., Machine], storage: DebianRoot, image: Callable[..., Path]) -> Start:
    initrd = image(
        storage,
        mode="list",
        modules=("virtio_pci", "virtio_blk", "squashfs", "overlay"),
        features=("verity",),
        rescue="open",
    )

    def go(append: str, disk: Disk) -> Machine:
        return boot(
            kernel=storage.kernel, initrd=initrd, disks=(disk,), append=f"quiet {append}", allow=("banner",)
        )

    return go


def test_a_root_is_found_and_checked_by_its_hash(
    start: Start, checked: Checked, witness_of: Callable[[Machine], Witness]
) -> None:
    seen = witness_of(start(f"roothash={checked.roothash} rd.overlay", checked.disk()))
    assert seen.root.type == "overlay"
    (lower,) = (mount for mount in seen.mounts if mount.target == "/run/rootfsbase")
    assert (lower.type, lower.source) == ("squashfs", "/dev/mapper/root")
    # The real system must know the mapping.
    assert any(name.startswith(("b253:", "b254:")) for name in seen.udev_database)


def test_another_hash_than_that_of_the_root_is_explained(
    start: Start, checked: Checked, witness_of: Callable[[Machine], Witness]
) -> None:
    wrong = ("0" if checked.roothash[0] != "0" else "1") + checked.roothash[1:]
    devices = "systemd.verity_root_data=/dev/vda2 systemd.verity_root_hash=/dev/vda1"
    vm = start(f"root=LABEL=x roothash={wrong} {devices}", checked.disk())
    shell = Shell.rescue(vm, "cmdline")
    lines = shell.check("pyinit explain").splitlines()
    assert lines[0] == (
        "E-CMDLINE roothash= makes the root /dev/mapper/root, but root=LABEL=x names another device"
    )
    shell.check("pyinit set root=/dev/mapper/root")
    shell.leave()
    shell = Shell.rescue(vm, "initqueue")
    text = shell.check("pyinit explain")
    assert text.startswith(f"E-VERITY the root is not the one that roothash={wrong} belongs to")
    assert "veritysetup: Verity device detected corruption after activation." in text
    assert "root" not in shell.check("ls /dev/mapper").split()
    shell.check(f"pyinit set roothash={checked.roothash}")
    shell.leave()
    assert witness_of(vm).root.device.startswith("dm-")


def test_a_root_that_was_changed_does_not_boot(start: Start, checked: Checked, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copy(checked.data, changed)
    with changed.open("r+b") as file:
        # In the first block, with squashfs's own description of itself.
        file.seek(100)
        file.write(b"\xff")
    vm = start(f"roothash={checked.roothash}", checked.disk(changed))
    text = Shell.rescue(vm, "initqueue").check("pyinit explain")
    assert text.startswith(f"E-VERITY the root is not the one that roothash={checked.roothash} belongs to")
    assert "kernel: device-mapper: verity: " in text and "data block 0 is corrupted" in text
    vm.stop()


def test_damage_that_is_found_when_the_root_is_mounted_is_explained(
    start: Start, checked: Checked, tmp_path: Path, expect_screen: Callable[[Machine, str], None]
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copy(checked.data, damaged)
    with damaged.open("r+b") as file:
        # The inode of the root directory: struct squashfs_super_block, root_inode and inode_table_start.
        head = file.read(96)
        inode, table = (int.from_bytes(head[at : at + 8], "little") for at in (32, 64))
        file.seek(table + (inode >> 16) + 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 0xFF]))
    vm = start(f"roothash={checked.roothash}", checked.disk(damaged))
    text = Shell.rescue(vm, "mount").check("pyinit explain")
    assert text.startswith(f"E-VERITY the root does not fit roothash={checked.roothash}: ")
    assert re.search(r"kernel: device-mapper: verity: \S+ data block [0-9]+ is corrupted", text)
    expect_screen(vm, "E-VERITY")
    vm.stop()


@pytest.mark.fault("row-7")
def test_a_checked_root_in_an_encrypted_volume_is_closed_before_a_shell(
    boot: Callable[..., Machine],
    storage: DebianRoot,
    image: Callable[..., Path],
    checked: Checked,
    witness_of: Callable[[Machine], Witness],
) -> None:
    uuid = "1c0de5ea-0000-4000-8000-0000000000fe"
    disk = gpt(luks(Bytes(checked.data), uuid=uuid, passphrase="secret"), Bytes(checked.hashes))
    vm = boot(
        kernel=storage.kernel,
        initrd=image(
            storage,
            mode="list",
            modules=("virtio_pci", "virtio_blk", "squashfs"),
            features=("luks", "verity"),
            rescue="open",
        ),
        disks=(Disk(disk.build()),),
        append=f"quiet roothash={checked.roothash} systemd.verity_root_data=/dev/mapper/vault "
        f"systemd.verity_root_hash=/dev/vda2 rd.luks.name={uuid}=vault rd.break=pre-pivot",
        allow=("banner",),
    )
    vm.expect("Passphrase for vault")
    vm.send_line("secret")
    shell = Shell.rescue(vm, "pre-pivot")
    assert shell.check("dmsetup ls") == "No devices found"
    shell.leave()
    vm.expect("Passphrase for vault")
    vm.send_line("secret")
    assert witness_of(vm).root.device.startswith("dm-")


def test_a_mapping_that_only_has_the_name_of_the_root_is_not_taken_for_it(
    boot: Callable[..., Machine], storage: DebianRoot, image: Callable[..., Path], checked: Checked
) -> None:
    uuid = "1c0de5ea-0000-4000-8000-0000000000fd"
    disk = gpt(luks(Ext4(small_root(storage), label="small-root"), uuid=uuid, passphrase="secret")).build()
    vm = boot(
        kernel=storage.kernel,
        initrd=image(
            storage,
            mode="list",
            modules=("virtio_pci", "virtio_blk", "squashfs"),
            features=("luks", "verity"),
            rescue="open",
        ),
        disks=(Disk(disk),),
        append=f"quiet roothash={checked.roothash} rd.luks.name={uuid}=root rd.timeout=20",
        allow=("banner",),
    )
    vm.expect("Passphrase for root")
    vm.send_line("secret")
    text = Shell.rescue(vm, "initqueue").check("pyinit explain")
    assert text.startswith("E-VERITY /dev/mapper/root is there already, and was not checked against"), text
    assert "its UUID is CRYPT-LUKS2-" in text
    vm.stop()


def test_an_image_without_the_program_says_so(
    boot: Callable[..., Machine],
    listed: Path,
    storage: DebianRoot,
    checked: Checked,
) -> None:
    vm = boot(
        kernel=storage.kernel,
        initrd=listed,
        disks=(checked.disk(),),
        append=f"quiet roothash={checked.roothash}",
        allow=("banner",),
    )
    text = Shell.rescue(vm, "initqueue").check("pyinit explain")
    assert text.startswith("E-VERITY the root cannot be checked: there is no veritysetup in the image")
    assert "Build the image with --feature verity." in text
    vm.stop()
