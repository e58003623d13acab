"""An image for one machine whose root is on a stack of devices boots it, and says how the stack goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_host_mode import ROOM, packages
from test_layouts import LAYOUTS, PASSPHRASE, Layout

from pyinit.config.sealed import CONFIG_PATH, parse_config
from pyinit_image import archive
from pyinit_image.build import BuildSpec, build
from pyinit_qemu import MIB, Disk, Machine
from pyinit_qemu.debian import LABEL, DebianRoot
from pyinit_qemu.disks.declare import gpt
from pyinit_qemu.disks.filesystems import Ext4, Tree
from pyinit_qemu.disks.image import Image
from pyinit_qemu.disks.stacks import BtrfsPool
from pyinit_qemu.shell import Shell
from pyinit_qemu.timing import Timeout

pytestmark = pytest.mark.boot

#: The first program of the real system: it has the root as the stack gives it, and takes commands soon.
INIT = "init=/bin/bash"
PROMPT = r"[a-z]+[^\n]*[#] $"
BUILDER = "python3 -m pyinit_image.cli"
SERIAL = "/dev/disk/by-id/virtio-"

#: The programs that put stacks together.
TOOLS = frozenset({"cryptsetup", "lvm", "mdadm"})


@dataclass(frozen=True)
class Case:
    """A layout, and what its owner finds in the image."""

    layout: Layout
    tools: frozenset[str]
    """Those of TOOLS that the stack needs."""
    module: str
    chain: tuple[str, ...]
    """What ``explain`` says of this module, from the bottom up."""
    resume: str = ""
    """Where it hibernates to."""


def over_two_disks(tree: Tree) -> tuple[Path, ...]:
    """A file system that cannot be mounted when either of its disks is missing."""
    pool = BtrfsPool(tree, count=2, data="raid0", metadata="raid1", label=LABEL)
    return tuple(gpt(pool.member(number)).build() for number in range(2))


CASES = {
    "lvm on luks": Case(
        LAYOUTS["debian encrypted lvm"],
        frozenset({"cryptsetup", "lvm"}),
        "virtio_blk",
        (
            "<- disk vda",
            "<- partition vda2",
            "<- LUKS device dm-0 (/etc/crypttab line 1)",
            "<- LVM device dm-1",
            "<- file system of /",
            "<- /etc/fstab line 1",
        ),
        "/dev/mapper/pc--vg-swap_1",
    ),
    "lvm on luks on raid1": Case(
        LAYOUTS["raid1 luks lvm"],
        TOOLS,
        "virtio_blk",
        (
            "<- disk vda",
            "<- partition vda1",
            "<- raid1 array md0 (/etc/mdadm/mdadm.conf line 2)",
            "<- LUKS device dm-0 (/etc/crypttab line 1)",
            "<- LVM device dm-1",
            "<- file system of /",
            "<- /etc/fstab line 1",
        ),
        "/dev/mapper/pc--vg-swap_1",
    ),
    "btrfs over two disks": Case(
        Layout(
            f"LABEL={LABEL} / btrfs defaults 0 0\n",
            over_two_disks,
            f"root=LABEL={LABEL} ro",
            "/dev/vda1",
            swaps=0,
        ),
        frozenset(),
        "btrfs",
        ("root file system type of /dev/vda1, /dev/vdb1", "<- /etc/fstab line 1"),
    ),
}


@pytest.fixture(scope="module")
def starting(storage: DebianRoot, image: Callable[..., Path]) -> Callable[[Layout], Path]:
    """An image that boots a layout and was not made for this machine."""

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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with the builder."""
    return Image(whole=Ext4(Tree(packages(tmp_path_factory.mktemp("stacks") / "site")))).build()


Start = Callable[..., Shell]


@pytest.fixture
def start(boot: Callable[..., Machine], storage: DebianRoot) -> Start:
    """``start(layout, initrd, more)``: a shell in the real root; ``more`` are further disks."""

    def begin(layout: Layout, initrd: Path, more: tuple[Disk, ...] = ()) -> Shell:
        tree = system(layout, storage)
        vm = boot(
            kernel=storage.kernel,
            initrd=initrd,
            disks=(*map(Disk, layout.disks(tree)), *more),
            memory=1024 * MIB,
            append=f"quiet {layout.append} {INIT}",
        )
        if "/etc/crypttab" in layout.files:
            vm.expect("Passphrase for sda_crypt")
            vm.send_line(PASSPHRASE)
        shell = Shell(vm, PROMPT)
        if layout.swaps:
            # As the real system does: all volumes of the group. Its udev does not run here.
            shell.check("DM_DISABLE_UDEV=1 vgchange -ay 2>/dev/null")
        return shell

    return begin


def system(layout: Layout, storage: DebianRoot) -> Tree:
    """The real system: the same as in the tests of the layouts."""
    return storage.source.changed({"/etc/fstab": layout.fstab.encode(), **layout.files})


def same_tree(layout: Layout, storage: DebianRoot, folder: Path) -> Path:
    """The real system as a directory to build from."""
    top = folder / "tree"
    subprocess.run(["cp", "--archive", "--link", storage.tree, top], check=True)
    for path, data in {"/etc/fstab": layout.fstab.encode(), **layout.files}.items():
        place = top / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.write_bytes(data)
    return top


def check_image(case: Case, image: Path) -> None:
    """The image has the tools of the stack and not those of others, and says how the stack goes."""
    inside = archive.tree(archive.read(image.read_bytes()))
    assert TOOLS & {os.path.basename(path) for path in inside} == case.tools
    sealed = f"resume={case.resume}" if case.resume else ""
    assert parse_config(inside[CONFIG_PATH].data).cmdline == sealed
    done = subprocess.run(
        [sys.executable, "-m", "pyinit_image.cli", "explain", image, case.module],
        capture_output=True,
        text=True,
        check=True,
    )
    place = 0
    for step in case.chain:
        found = done.stdout.find(step, place)
        assert found >= 0, f"{step} is not in its place in\n{done.stdout}"
        place = found + len(step)


def check_boot(case: Case, image: Path, start: Start) -> None:
    shell = start(case.layout, image)
    assert shell.check("findmnt -no SOURCE /") == case.layout.source
    record = json.loads(shell.check("cat /run/pyinit/boot.json"))
    assert record["handover"]["init"] == "/bin/bash"
    shell.machine.stop().check()


@pytest.mark.parametrize("name", CASES)
def test_what_was_recorded_on_the_machine_makes_an_image_that_boots_it(
    name: str,
    start: Start,
    starting: Callable[[Layout], Path],
    storage: DebianRoot,
    site: Path,
    tmp_path: Path,
) -> None:
    case = CASES[name]
    shell = start(case.layout, starting(case.layout), (Disk(site, serial="site"),))
    shell.check(f"mount -o ro {SERIAL}site /mnt")
    recorded = shell.check(f"PYTHONPATH=/mnt {BUILDER} devices", Timeout.LOGIN)
    shell.machine.stop().check()
    devices, image = tmp_path / "devices.json", tmp_path / "host.img"
    devices.write_text(recorded)
    tree = same_tree(case.layout, storage, tmp_path)
    result = build(BuildSpec(sysroot=tree, mode="host", devices=devices, rescue="open"))
    image.write_bytes(result.image)
    check_image(case, image)
    check_boot(case, image, start)


def test_an_image_is_made_on_a_machine_with_an_encrypted_group(
    start: Start, starting: Callable[[Layout], Path], site: Path, tmp_path: Path
) -> None:
    """The command itself, in the real root on the stack."""
    case, output = CASES["lvm on luks"], tmp_path / "output"
    with open(output, "wb") as stream:
        os.truncate(stream.fileno(), ROOM)
    more = (Disk(site, serial="site"), Disk(output, serial="output", snapshot=False))
    shell = start(case.layout, starting(case.layout), more)
    shell.check(f"mount -t tmpfs tmpfs /tmp && mount -o ro {SERIAL}site /mnt")
    words = "--no-cache --mode host --compress none --rescue open -o /tmp/host.img"
    told = shell.check(f"PYTHONPATH=/mnt {BUILDER} build {words} 2>&1", Timeout.LOGIN)
    assert "host.img: kernel" in told
    size = int(shell.check("stat -c %s /tmp/host.img"))
    shell.check(f"dd if=/tmp/host.img of={SERIAL}output bs=1M conv=fsync", Timeout.LOGIN)
    shell.machine.stop().check()
    image = tmp_path / "host.img"
    image.write_bytes(output.read_bytes()[:size])
    check_image(case, image)
    check_boot(case, image, start)
