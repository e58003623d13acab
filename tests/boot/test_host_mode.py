"""An image for one machine, made on that machine, boots it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from test_debian import PATIENCE

from pyinit_image import archive, facts, host, kmods
from pyinit_image.build import BuildSpec, build
from pyinit_image.sysroot import Sysroot
from pyinit_qemu import MIB, Disk, Machine
from pyinit_qemu.debian import LABEL, DebianRoot
from pyinit_qemu.disks.filesystems import Ext4, Tree
from pyinit_qemu.disks.image import Image
from pyinit_qemu.shell import Shell
from pyinit_qemu.timing import Timeout

pytestmark = pytest.mark.boot

#: The package and what it is installed with.
PACKAGES = ("pyinit", "pyinit_image", "pyudev", "psutil", "elftools", "zstandard")
PACKAGES += ("lz4", "lzallright", "shtab")
SITE = "/usr/local/lib/python3.11/dist-packages"
ROOM = 128 * MIB


@dataclass(frozen=True)
class Made:
    """What was made inside of the machine."""

    image: Path
    report: dict[str, Any]
    devices: bytes
    explained: str


def packages(folder: Path) -> Path:
    """Copy what is needed to build into a new folder."""
    folder.mkdir()
    for name in PACKAGES:
        spec = find_spec(name)
        assert spec is not None and spec.submodule_search_locations
        source = spec.submodule_search_locations[0]
        shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "tests"))
    return folder


@pytest.fixture(scope="module")
def made(
    boot_module: Callable[..., Machine],
    generic: Path,
    bookworm: DebianRoot,
    tmp_path_factory: pytest.TempPathFactory,
) -> Made:
    folder = tmp_path_factory.mktemp("host")
    site = packages(folder / "site")
    output = folder / "image"
    with open(output, "wb") as stream:
        os.truncate(stream.fileno(), ROOM)
    vm = boot_module(
        kernel=bookworm.kernel,
        initrd=generic,
        disks=(
            Disk(bookworm.disk()),
            Disk(Image(whole=Ext4(Tree(site))).build(), serial="site"),
            Disk(output, serial="output", snapshot=False),
        ),
        memory=1024 * MIB,
        append=f"quiet root=LABEL={LABEL} ro {PATIENCE}",
    )
    shell = Shell.login(vm)
    disk = "/dev/disk/by-id/virtio-"
    shell.check(f"mount -o ro {disk}site /mnt && cp -r /mnt/* {SITE} && umount /mnt", Timeout.LOGIN)
    command = "python3 -m pyinit_image.cli"
    built = shell.check(
        f"{command} build --no-cache --mode host --compress none -o /root/host.img --json 2>/dev/null",
        Timeout.LOGIN,
    )
    explained = shell.check(f"{command} explain /root/host.img virtio_blk", Timeout.LOGIN)
    explained += shell.check(f"{command} explain /root/host.img ext4", Timeout.LOGIN)
    recorded = shell.check(f"{command} devices", Timeout.LOGIN)
    shell.check(f"dd if=/root/host.img of={disk}output bs=1M conv=fsync", Timeout.LOGIN)
    vm.stop().check()
    report = json.loads(built)
    image = folder / "host.img"
    image.write_bytes(output.read_bytes()[: report["bytes"]])
    return Made(image, report, recorded.encode(), explained)


def test_it_boots_the_machine_it_was_made_on(
    boot: Callable[..., Machine], made: Made, bookworm: DebianRoot
) -> None:
    vm = boot(
        kernel=bookworm.kernel,
        initrd=made.image,
        disks=(Disk(bookworm.disk()),),
        memory=1024 * MIB,
        append=f"quiet root=LABEL={LABEL} ro {PATIENCE}",
    )
    shell = Shell.login(vm)
    assert json.loads(shell.check("cat /run/pyinit/boot.json"))["handover"]["init"] == "/sbin/init"
    assert shell.check("systemctl is-system-running --wait; true", Timeout.LOGIN).strip() == "running"
    vm.stop().check()


def test_it_has_what_the_machine_needs_and_says_why(made: Made) -> None:
    assert made.report["mode"] == "host"
    modules = {
        kmods.module_name(path)
        for path in archive.tree(archive.read(made.image.read_bytes()))
        if ".ko" in path
    }
    assert {"virtio_blk", "virtio_pci", "ext4"} <= modules
    # A margin for changes of hardware, but not every controller there is.
    assert {"ahci", "nvme", "usbhid", "usb_storage"} <= modules
    assert not {"mpt3sas", "xfs", "btrfs", "megaraid_sas"} & modules
    assert "<- disk vda" in made.explained
    assert "file system of /" in made.explained and "/etc/fstab line 1" in made.explained


def test_what_was_recorded_there_is_enough_elsewhere(made: Made, bookworm: DebianRoot) -> None:
    """The record of the machine's devices leads to the same modules on another one."""
    seen = facts.parse(made.devices)
    kernel = kmods.Kernel(Sysroot(bookworm.tree), bookworm.release)
    selected = kmods.select(kernel, "host", (), host.wanted(seen, kernel.find))
    inside = archive.tree(archive.read(made.image.read_bytes()))
    modules = {kmods.module_name(path) for path in inside if ".ko" in path}
    assert set(selected) <= modules
    unanswered = host.replay(seen, kernel.find, frozenset(modules), kernel.builtin)
    assert [row for row in unanswered if row.essential] == []


def test_B5_lines_of_tables_that_make_no_sense_are_told(
    made: Made, bookworm: DebianRoot, tmp_path: Path
) -> None:
    record = json.loads(made.devices)
    record["warnings"] = ["/etc/fstab line 7: three words are no line of it"]
    (tmp_path / "devices.json").write_text(json.dumps(record))
    spec = BuildSpec(sysroot=bookworm.tree, mode="host", devices=tmp_path / "devices.json", compress="none")
    assert record["warnings"][0] in build(spec).warnings
