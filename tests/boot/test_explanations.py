"""What a person reads when the boot stops: the whole text, as it stands on the console."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_image import archive
from pyinit_image.kmods import SIGNED
from pyinit_qemu import Disk, Machine, with_files
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks.filesystems import Ext4
from pyinit_qemu.disks.image import Image
from pyinit_qemu.shell import Shell
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

Start = Callable[..., Machine]
Testimony = Callable[[Machine], Witness]

UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"


@pytest.fixture
def start(
    boot: Callable[..., Machine], bookworm: DebianRoot, listed: Path, small_disk: Callable[..., Path]
) -> Start:
    """Boot the small root, or other disks, with what leads into the rescue shell."""

    def go(append: str, *disks: Disk, initrd: Path = listed, **fields: object) -> Machine:
        return boot(
            kernel=bookworm.kernel,
            initrd=initrd,
            disks=disks or (Disk(small_disk()),),
            append=f"quiet {append}",
            allow=("banner",),
            **fields,
        )

    return go


def explained(vm: Machine) -> list[str]:
    """The lines of the next explanation, all of which are on the console."""
    lines: list[str] = vm.wait_frame("failure")["lines"]
    shown = vm.console
    assert [line for line in lines if f"pyinit: {line}" not in shown] == []
    return lines


@pytest.mark.fault("K1", "K2", "K7", "F5", "F6")
def test_one_mistake_after_the_other(
    start: Start,
    small_disk: Callable[..., Path],
    witness_of: Testimony,
    expect_screen: Callable[[Machine, str], None],
) -> None:
    vm = start(
        "rd.break=cmdline rd.systemd.gpt_auto=0 rd.timeout=2",
        Disk(small_disk()),
        Disk(Image(whole=Ext4(label="empty")).build()),
    )
    shell = Shell.rescue(vm, "cmdline")
    shell.check("mv /.pyinit-complete /saved")
    shell.leave()

    shell = Shell.rescue(vm, "cmdline")
    expect_screen(vm, "E-IMAGE")
    shell.check("mv /saved /.pyinit-complete")
    shell.leave()

    shell = Shell.rescue(vm, "initqueue")
    expect_screen(vm, "E-NOROOT")
    found = re.search(rf"ext4  UUID=({UUID})  LABEL=small-root", vm.console)
    assert found
    uuid = found[1]
    wrong = uuid[:-1] + ("0" if uuid[-1] != "0" else "1")
    shell.check("pyinit set root=nfs:server:/path")
    shell.leave()

    shell = Shell.rescue(vm, "cmdline")
    expect_screen(vm, "E-CMDLINE")
    shell.check(f"pyinit set root=UUID={wrong}")
    shell.leave()

    shell = Shell.rescue(vm, "initqueue")
    expect_screen(vm, "E-DEV")
    shell.check("pyinit set root=LABEL=empty")
    shell.leave()

    shell = Shell.rescue(vm, "pre-pivot")
    expect_screen(vm, "E-ROOTFS")
    shell.check(f"pyinit set root=UUID={uuid} rootfstype=ext2,ext4 rootflags=nonsense=1")
    shell.leave()

    shell = Shell.rescue(vm, "mount")
    expect_screen(vm, "E-MOUNT")
    shell.check("pyinit set rootfstype= rootflags= init=/etc")
    shell.leave()

    shell = Shell.rescue(vm, "pre-pivot")
    expect_screen(vm, "E-INIT")
    shell.check("pyinit set init=sbin/init")
    shell.leave()

    shell = Shell.rescue(vm, "pre-pivot")
    assert "  tried:  sbin/init is not an absolute path" in shell.check("pyinit explain")
    shell.check("pyinit set init=/sbin/init")
    shell.leave()
    assert witness_of(vm).root.device == "vda1"


@pytest.mark.fault("D4")
def test_a_root_that_goes_before_the_switch_is_looked_for_again(
    start: Start,
    generic: Path,
    small_disk: Callable[..., Path],
    witness_of: Testimony,
    expect_screen: Callable[[Machine, str], None],
) -> None:
    disk = Disk(small_disk(), "usb")
    vm = start("root=LABEL=small-root rd.break=pre-pivot", disk, initrd=generic)
    shell = Shell.rescue(vm, "pre-pivot")
    vm.unplug(disk)
    shell.leave()
    shell = Shell.rescue(vm, "pre-pivot")
    expect_screen(vm, "E-IO")
    vm.plug(disk)
    shell.leave()
    seen = witness_of(vm)
    assert seen.root.device in ("sda1", "sdb1")
    assert seen.boot is not None
    assert [mount["target"] for mount in seen.boot["mounts"]] == ["/sysroot", "/sysroot"]


@pytest.mark.fault("D6")
def test_a_copy_that_comes_after_the_mount_changes_nothing(
    start: Start, small_disk: Callable[..., Path], witness_of: Testimony
) -> None:
    copy = Disk(small_disk(), serial="copy", late=True)
    vm = start("root=LABEL=small-root rd.break=pre-pivot", Disk(small_disk()), copy)
    shell = Shell.rescue(vm, "pre-pivot")
    vm.plug(copy)
    shell.check("while ! [ -e /dev/vdb1 ]; do sleep 0.2; done; udevadm settle", 60)
    shell.leave()
    assert witness_of(vm).root.device == "vda1"


@pytest.mark.fault("D2", "D8")
def test_drivers_that_are_not_there_or_may_not_be_loaded_are_named(
    start: Start, listed: Path, small_disk: Callable[..., Path]
) -> None:
    image = archive.tree(archive.read(listed.read_bytes()))
    path = next(name for name in image if name.endswith("/virtio_blk.ko"))
    module = image[path].data
    assert module.endswith(SIGNED)
    # Without its mark at the end it counts as a module without a signature.
    unsigned = module[: -len(SIGNED)]
    # The release does not count where symbols have versions (same_magic in kernel/module/version.c).
    other = unsigned.replace(b" SMP ", b" SMT ")
    assert other != unsigned
    vm = start(
        "root=LABEL=small-root rd.timeout=1",
        Disk(small_disk(), "nvme"),
        Disk(small_disk(), serial="second"),
        initrd=with_files(listed, {path: other}, mode=0o644),
    )
    Shell.rescue(vm, "initqueue")
    text = "\n".join(explained(vm))
    assert "no block device at all" in text
    assert re.search(
        r"without a driver: PCI \S+ \[1b36:0010\]: nvme would claim it, and is not in this image", text
    )
    refused = r"virtio\d+ \(virtio:\S+\): virtio_blk claims it: refused by the kernel: Exec format error"
    assert re.search(refused, text)
    assert re.search(r"kernel: virtio_blk: version magic '.* SMT .*' should be '", text)
    assert "build the image with --module ahci --module nvme" in text
    vm.stop()

    vm = start(
        "root=LABEL=small-root rd.timeout=1 module.sig_enforce=1",
        initrd=with_files(listed, {path: unsigned}, mode=0o644),
    )
    Shell.rescue(vm, "initqueue")
    text = "\n".join(explained(vm))
    assert re.search(r"virtio_blk claims it: refused by the kernel: (Key was rejected|Required key)", text)
    vm.stop()


def test_the_readme_shows_what_is_on_the_screen(
    start: Start, generic: Path, small_disk: Callable[..., Path]
) -> None:
    vm = start("root=LABEL=smal-root rd.timeout=6", Disk(small_disk()), initrd=generic)
    Shell.rescue(vm, "initqueue")
    screen = vm.console[vm.console.index("pyinit: E-DEV") :].rstrip().splitlines()
    vm.stop()
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    chapter = readme.partition("## When it does not boot\n")[2].partition("\n##")[0]
    shown = [line.removeprefix("    ") for line in chapter.splitlines() if line.startswith("    pyinit:")]
    assert list(map(_settled, shown)) == list(map(_settled, screen)), "\n".join(screen)


def _settled(line: str) -> str:
    """Without what is another on the next disk, or depends on the machine's speed."""
    line = re.sub(UUID, "UUID", line.rstrip())
    return re.sub(r"\d+ (MiB|events)", r"N \1", line)
