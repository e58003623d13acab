"""The layouts that installers make, as whole Debian systems: every unit starts, and they go down cleanly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from test_debian import PATIENCE

from pyinit.config.volumes import dump
from pyinit_qemu import MIB, Disk, Machine
from pyinit_qemu.debian import LABEL, DebianRoot
from pyinit_qemu.disks.declare import blank, ext4, gpt, swap
from pyinit_qemu.disks.filesystems import Ext4, Tree
from pyinit_qemu.disks.stacks import BtrfsPool, Stack, luks, lvm, md
from pyinit_qemu.shell import Shell
from pyinit_qemu.timing import Timeout

pytestmark = pytest.mark.boot

UUID = "1c0de5ea-0000-4000-8000-0000000000bb"
SWAP, BOOT = "5a5a0000-0000-4000-8000-000000000002", "b0070000-0000-4000-8000-000000000002"
ARRAY, OTHER = "0123abcd:4567ef89:0123abcd:00000001", "0123abcd:4567ef89:0123abcd:00000002"
PASSPHRASE = "correct horse"
CRYPTTAB = f"sda_crypt UUID={UUID} none luks,discard\n"
SWAP_SIZE = 32 * MIB


@dataclass(frozen=True)
class Layout:
    """What an installer makes of one or two disks."""

    fstab: str
    disks: Callable[[Tree], tuple[Path, ...]]
    append: str
    source: str
    """What findmnt(8) says / is."""
    mounts: tuple[str, ...] = ()
    """What else fstab has mounted."""
    swaps: int = 1
    files: dict[str, bytes] = field(default_factory=dict)
    """What the system has beside fstab, which the image gets too."""
    sealed: dict[str, bytes] = field(default_factory=dict)
    """What the image has, for the builder would find it on such a machine."""
    device: str = ""
    """The unit of the root's device."""


def root(tree: Tree) -> Ext4:
    return Ext4(tree, label=LABEL, free=64 * MIB)


def boot_partition() -> Ext4:
    return ext4(label="boot", uuid=BOOT, size=64 * MIB)


def pair(*stacks: Stack) -> tuple[Path, ...]:
    """Two disks with a member of each array in a partition."""
    return tuple(gpt(*(stack.member(number) for stack in stacks)).build() for number in range(2))


def table_of(*uuids: str) -> bytes:
    """mdadm.conf with these arrays."""
    arrays = (f"ARRAY /dev/md{n} UUID={uuid}\n" for n, uuid in enumerate(uuids))
    return f"MAILADDR root\n{''.join(arrays)}".encode()


def sealed_arrays(*uuids: str) -> bytes:
    """What the builder makes of it."""
    return dump((uuid.replace(":", ""), "", f"/dev/md{n}") for n, uuid in enumerate(uuids))


LAYOUTS = {
    "debian guided lvm": Layout(
        "/dev/mapper/pc--vg-root / ext4 errors=remount-ro 0 1\n"
        f"UUID={BOOT} /boot ext4 defaults 0 2\n"
        "/dev/mapper/pc--vg-swap_1 none swap sw 0 0\n",
        lambda tree: (
            gpt(boot_partition(), lvm(vg="pc-vg", root=root(tree), swap_1=swap(SWAP_SIZE))).build(),
        ),
        "root=/dev/mapper/pc--vg-root ro",
        "/dev/mapper/pc--vg-root",
        ("/boot",),
        device="dev-mapper-pc\\x2d\\x2dvg\\x2droot.device",
    ),
    "debian encrypted lvm": Layout(
        "/dev/mapper/pc--vg-root / ext4 errors=remount-ro 0 1\n"
        f"UUID={BOOT} /boot ext4 defaults 0 2\n"
        "/dev/mapper/pc--vg-swap_1 none swap sw 0 0\n",
        lambda tree: (
            gpt(
                boot_partition(),
                luks(
                    lvm(vg="pc-vg", root=root(tree), swap_1=swap(SWAP_SIZE)),
                    uuid=UUID,
                    passphrase=PASSPHRASE,
                ),
            ).build(),
        ),
        "root=/dev/mapper/pc--vg-root ro",
        "/dev/mapper/pc--vg-root",
        ("/boot",),
        files={"/etc/crypttab": CRYPTTAB.encode()},
        device="dev-mapper-pc\\x2d\\x2dvg\\x2droot.device",
    ),
    "fedora btrfs": Layout(
        f"LABEL={LABEL} / btrfs subvol=root 0 0\n"
        f"UUID={BOOT} /boot ext4 defaults 1 2\n"
        f"LABEL={LABEL} /home btrfs subvol=home 0 0\n",
        lambda tree: (
            gpt(
                boot_partition(),
                BtrfsPool(subvolumes={"root": tree, "home": None}, label=LABEL),
            ).build(),
        ),
        f"root=LABEL={LABEL} ro rootflags=subvol=root",
        "/dev/vda2[/root]",
        ("/boot", "/home"),
        swaps=0,
    ),
    "ubuntu lvm": Layout(
        "/dev/disk/by-id/dm-name-ubuntu--vg-ubuntu--lv / ext4 defaults 0 1\n"
        f"/dev/disk/by-uuid/{BOOT} /boot ext4 defaults 0 1\n",
        lambda tree: (
            gpt(
                blank(MIB, name="bios"), boot_partition(), lvm("ubuntu-vg", **{"ubuntu-lv": root(tree)})
            ).build(),
        ),
        "root=/dev/mapper/ubuntu--vg-ubuntu--lv ro",
        "/dev/mapper/ubuntu--vg-ubuntu--lv",
        ("/boot",),
        swaps=0,
        device="dev-mapper-ubuntu\\x2d\\x2dvg\\x2dubuntu\\x2d\\x2dlv.device",
    ),
    "raid1 server": Layout(
        f"LABEL={LABEL} / ext4 errors=remount-ro 0 1\nUUID={SWAP} none swap sw 0 0\n",
        lambda tree: pair(
            md(1, root(tree), uuid=ARRAY, name="0"),
            md(1, swap(SWAP_SIZE, uuid=SWAP), uuid=OTHER, name="1"),
        ),
        f"root=LABEL={LABEL} ro",
        "/dev/md0",
        files={"/etc/mdadm/mdadm.conf": table_of(ARRAY, OTHER)},
        sealed={"/etc/pyinit/arrays.json": sealed_arrays(ARRAY, OTHER)},
        device="dev-md0.device",
    ),
    "raid1 luks lvm": Layout(
        "/dev/mapper/pc--vg-root / ext4 errors=remount-ro 0 1\n"
        "/dev/mapper/pc--vg-swap_1 none swap sw 0 0\n",
        lambda tree: pair(
            md(
                1,
                luks(
                    lvm(vg="pc-vg", root=root(tree), swap_1=swap(SWAP_SIZE)),
                    uuid=UUID,
                    passphrase=PASSPHRASE,
                ),
                uuid=ARRAY,
                name="0",
            )
        ),
        "root=/dev/mapper/pc--vg-root ro",
        "/dev/mapper/pc--vg-root",
        files={
            "/etc/crypttab": CRYPTTAB.encode(),
            "/etc/mdadm/mdadm.conf": table_of(ARRAY),
        },
        sealed={"/etc/pyinit/arrays.json": sealed_arrays(ARRAY)},
        device="dev-mapper-pc\\x2d\\x2dvg\\x2droot.device",
    ),
}


@pytest.fixture(scope="module")
def assembling(storage: DebianRoot, image: Callable[..., Path]) -> Callable[[Layout], Path]:
    """The image for a layout."""

    def make(layout: Layout) -> Path:
        given = {**layout.files, **layout.sealed}
        return image(
            storage,
            mode="list",
            modules=("virtio_pci", "virtio_blk", "ext4", "btrfs"),
            features=("lvm", "md", "luks"),
            rescue="open",
            includes=tuple((data, path) for path, data in sorted(given.items())),
        )

    return make


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_starts_with_no_unit_failed_and_goes_down_cleanly(
    name: str,
    boot: Callable[..., Machine],
    storage: DebianRoot,
    assembling: Callable[[Layout], Path],
    tmp_path: Path,
) -> None:
    layout = LAYOUTS[name]
    tree = storage.source.changed({"/etc/fstab": layout.fstab.encode(), **layout.files})
    disks = []
    for built in layout.disks(tree):
        disks.append(tmp_path / f"{len(disks)}.img")
        shutil.copyfile(built, disks[-1])
        disks[-1].chmod(0o644)
    vm = boot(
        kernel=storage.kernel,
        initrd=assembling(layout),
        disks=tuple(Disk(path, snapshot=False) for path in disks),
        memory=1024 * MIB,
        append=f"quiet {layout.append} {PATIENCE}",
    )
    if "/etc/crypttab" in layout.files:
        vm.expect("Passphrase for sda_crypt")
        vm.send_line(PASSPHRASE)
    shell = Shell.login(vm)
    state = shell.run("systemctl is-system-running --wait", Timeout.LOGIN).output.strip()
    assert (shell.check("systemctl --failed --no-legend --plain"), state) == ("", "running")
    assert shell.check("findmnt -no SOURCE /") == layout.source
    assert "rw" in shell.check("findmnt -no OPTIONS /").split(",")
    for target in layout.mounts:
        assert shell.check(f"findmnt -no TARGET {target}") == target
    assert len(shell.check("swapon --noheadings").splitlines()) == layout.swaps
    record = json.loads(shell.check("cat /run/pyinit/boot.json"))
    assert record["handover"]["killed"] == []
    if layout.device:
        # Its udev knows what the initramfs made: the root is not lost when units are loaded anew.
        assert shell.check(f"systemctl is-active '{layout.device}'") == "active"
        shell.check(
            "udevadm trigger --action=change --subsystem-match=block --settle && systemctl daemon-reload"
        )
        assert shell.check(f"systemctl is-active '{layout.device}' -- -.mount") == "active\nactive"
    vm.send_line("systemctl poweroff")
    vm.finish(Timeout.LOGIN, goal="shutdown").check()
    if layout.device:
        goes_back(vm, layout)
    for disk in disks if "raid1" in name else ():
        assert array_state(disk) == "clean"


def goes_back(vm: Machine, layout: Layout) -> None:
    """What lies below the root was taken apart when it was out of use."""
    said = vm.console
    assert "pyinit: back in the initramfs to take the storage of the root apart" in said
    assert "pyinit: the root file system (/dev/" in said and "is unmounted" in said
    assert "stays: " not in said and "cannot be unmounted" not in said
    for mapping in ("pc--vg-root", "sda_crypt", "array md0"):
        there = {"pc--vg-root": "pc--vg" in layout.append, "sda_crypt": "/etc/crypttab" in layout.files}
        if there.get(mapping, bool(layout.sealed)):
            assert f"pyinit: {mapping}" in said


def array_state(disk: Path) -> str:
    """What the superblock of the first partition's array says (struct mdp_superblock_1, md_p.h)."""
    with disk.open("rb") as file:
        file.seek(1024)
        place = int.from_bytes(file.read(128)[32:40], "little") * 512 + 4096
        file.seek(place)
        block = file.read(256)
    assert block[:4] == b"\xfc\x4e\x2b\xa9"
    return "clean" if block[208:216] == b"\xff" * 8 else "dirty"
