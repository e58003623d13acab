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
#: The lines of the small disk and its partition.
DISK = r"/dev/vda  \d+ MiB"
PART = rf"/dev/vda1  \d+ MiB  ext4  UUID={UUID}  LABEL=small-root  PARTUUID={UUID}  PARTLABEL=small-root"
EMPTY = rf"/dev/vdb  16 MiB  ext4  UUID={UUID}  LABEL=empty"


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


def explained(vm: Machine, *expected: str) -> list[str]:
    """The lines of the next explanation; each matches its pattern, and all of them are on the console."""
    lines: list[str] = vm.wait_frame("failure")["lines"]
    if expected:
        unlike = [
            f"{line}\n    is not: {pattern}"
            for line, pattern in zip(lines, expected, strict=False)
            if not re.fullmatch(pattern, line)
        ]
        assert not unlike and len(lines) == len(expected), "\n".join([*unlike, "all of it:", *lines])
    shown = vm.console
    assert [line for line in lines if f"pyinit: {line}" not in shown] == []
    return lines


@pytest.mark.fault("K1", "K2", "K7", "F5", "F6")
def test_one_mistake_after_the_other(
    start: Start, small_disk: Callable[..., Path], witness_of: Testimony
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
    # Nothing of the image is believed: not even where to report to.
    lines = [
        "E-IMAGE the initramfs is not complete: its last part is missing",
        "  in stage cmdline",
        "  tried:  looked for /.pyinit-complete, the last entry of every image",
        "  to do:  Build the image again and see that the disk it is written to is not full.",
        "          The kernel's log says what it thought of the image: dmesg | grep -i initramfs",
    ]
    assert "".join(f"pyinit: {line}\n" for line in lines) in vm.console
    shell.check("mv /saved /.pyinit-complete")
    shell.leave()

    shell = Shell.rescue(vm, "initqueue")
    lines = explained(
        vm,
        "E-NOROOT no root= was given",
        "  in stage initqueue",
        "  tried:  the kernel command line: .* rd.systemd.gpt_auto=0 rd.timeout=2",
        f"  found:  {DISK}",
        f"          {PART}",
        f"          {EMPTY}",
        r"  to do:  Name one of them here: pyinit set root=UUID=\.\.\., then leave the shell.",
        r"          Add root=UUID=\.\.\. \(or LABEL=, PARTUUID=, /dev/\.\.\.\) to the boot loader's kernel "
        "command line.",
    )
    found = re.search(rf"ext4  UUID=({UUID})  LABEL=small-root", "\n".join(lines))
    assert found
    uuid = found[1]
    wrong = uuid[:-1] + ("0" if uuid[-1] != "0" else "1")
    shell.check("pyinit set root=nfs:server:/path")
    shell.leave()

    shell = Shell.rescue(vm, "cmdline")
    assert explained(vm)[0].startswith("E-CMDLINE root=nfs:server:/path")
    shell.check(f"pyinit set root=UUID={wrong}")
    shell.leave()

    shell = Shell.rescue(vm, "initqueue")
    explained(
        vm,
        f"E-DEV root: UUID={wrong} did not appear within 2 s",
        "  in stage initqueue",
        rf"  tried:  waited for udev to announce UUID={wrong}; \d+ events came",
        f"  found:  {DISK}",
        f"          {PART}",
        f"          {EMPTY}",
        rf"          nearest: /dev/vda1: its UUID {uuid} differs in 1 character",
        r"          without a driver: PCI 0000:00:1f\.2 \[8086:2922\]: ahci would claim it, and is not in "
        "this image",
        f"  to do:  Correct it here: pyinit set root=UUID={uuid}, then leave the shell.",
        "          A driver may be missing: build the image with --module ahci, or --mode generic.",
        "          If the device only needs longer: rd.timeout=SECONDS, or rootwait for ever.",
    )
    shell.check("pyinit set root=LABEL=empty")
    shell.leave()

    shell = Shell.rescue(vm, "pre-pivot")
    explained(
        vm,
        "E-ROOTFS what was mounted does not look like a root file system",
        "  in stage pre-pivot",
        "  tried:  looked in /sysroot for .*",
        r"  found:  it holds lost\+found",
        "  to do:  Check that root= names the right device; /proc/mounts shows which one was mounted.",
        "          If the system lives in a subvolume or needs other options, give them with rootflags=.",
    )
    shell.check(f"pyinit set root=UUID={uuid} rootfstype=ext2,ext4 rootflags=nonsense=1")
    shell.leave()

    shell = Shell.rescue(vm, "mount")
    lines = explained(vm)
    assert lines[:4] == [
        "E-MOUNT /dev/vda1 cannot be mounted as the root file system: Invalid argument",
        "  in stage mount",
        "  tried:  mount -t ext2 -o ro,nonsense=1 /dev/vda1 /sysroot: Invalid argument",
        "          mount -t ext4 -o ro,nonsense=1 /dev/vda1 /sysroot: Invalid argument",
    ]
    assert "  found:  /dev/vda1 holds ext4 as udev sees it, not ext2" in lines
    assert any(re.match(r" +kernel: .*: Unknown parameter 'nonsense'", line) for line in lines)
    assert lines[-1] == (
        "  to do:  Check rootflags= and rootfstype=; the file system may be damaged: check it with fsck."
    )
    shell.check("pyinit set rootfstype= rootflags= init=/etc")
    shell.leave()

    for init, why in (("/etc", "is a directory"), ("sbin/init", "is not an absolute path")):
        shell = Shell.rescue(vm, "pre-pivot")
        explained(
            vm,
            "E-INIT init= names a program that cannot be executed",
            "  in stage pre-pivot",
            f"  tried:  {init} {why}",
            "  found:  could be executed instead: /sbin/init.*",
            f"  to do:  Boot with init=/sbin/init, or repair {init} in /sysroot.",
        )
        shell.check(f"pyinit set init={'sbin/init' if init == '/etc' else '/sbin/init'}")
        shell.leave()
    assert witness_of(vm).root.device == "vda1"


@pytest.mark.fault("D4")
def test_a_root_that_goes_before_the_switch_is_looked_for_again(
    start: Start, generic: Path, small_disk: Callable[..., Path], witness_of: Testimony
) -> None:
    disk = Disk(small_disk(), "usb")
    vm = start("root=LABEL=small-root rd.break=pre-pivot", disk, initrd=generic)
    shell = Shell.rescue(vm, "pre-pivot")
    vm.unplug(disk)
    shell.leave()
    shell = Shell.rescue(vm, "pre-pivot")
    lines = explained(vm)
    assert lines[0] == "E-IO the root file system on /dev/sda1 cannot be read any more: Input/output error"
    assert "  found:  /dev/sda1 is gone" in lines
    assert any(line.lstrip().startswith("kernel: ") for line in lines)
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
