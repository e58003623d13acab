"""Hardware that fails, made to by the harness, and what a person at the console then sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu import Disk, IoError, Machine, Timeout, Verdict, many
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.shell import Shell
from pyinit_qemu.witness import Witness

pytestmark = [pytest.mark.boot]

Testimony = Callable[[Machine], Witness]

#: The superblock of the root: 1 KiB behind the start of the partition at 1 MiB.
SUPERBLOCK = 2050


@pytest.fixture
def start(boot: Callable[..., Machine], bookworm: DebianRoot, listed: Path) -> Callable[..., Machine]:
    def go(*disks: Disk, append: str = "quiet root=LABEL=small-root", **options: object) -> Machine:
        options.setdefault("initrd", listed)
        return boot(kernel=bookworm.kernel, disks=disks, append=append, **options)

    return go


@pytest.fixture
def disk(small_disk: Callable[..., Path]) -> Disk:
    return Disk(small_disk())


@pytest.mark.fault("F5")
def test_an_unreadable_superblock_is_explained_and_the_boot_goes_on_once_it_is_read(
    start: Callable[..., Machine], disk: Disk, witness_of: Testimony
) -> None:
    bad = Disk(disk.path, errors=(IoError(SUPERBLOCK),))
    vm = start(bad, append="quiet root=/dev/vda1 rootfstype=ext4", allow=("banner",))
    shell = Shell.rescue(vm, "mount")
    assert "E-MOUNT /dev/vda1 cannot be mounted" in vm.console
    assert "I/O error" in vm.console
    vm.faults.heal(bad)
    shell.leave()
    assert witness_of(vm).root.device == "vda1"


def test_a_disk_that_hangs_is_waited_for_until_it_answers(
    start: Callable[..., Machine], disk: Disk, generic: Path, witness_of: Testimony
) -> None:
    vm = start(disk, initrd=generic, paused=True)
    vm.faults.hang(disk)
    vm.run()
    vm.expect(r"waiting for root: LABEL=small-root since [56] s")
    vm.faults.heal(disk)
    assert witness_of(vm).root.device == "vda1"


def test_another_disk_that_hangs_its_driver_is_named_at_the_deadline(
    start: Callable[..., Machine], disk: Disk, generic: Path, tmp_path: Path, witness_of: Testimony
) -> None:
    (tmp_path / "blank").write_bytes(bytes(1 << 20))
    other = Disk(tmp_path / "blank")
    vm = start(
        disk, other, initrd=generic, paused=True, allow=("banner",),
        append="quiet root=LABEL=small-root rd.timeout=12",
    )  # fmt: skip
    vm.faults.hang(other)
    vm.run()
    shell = Shell.rescue(vm, "initqueue")
    explanation = shell.check("pyinit explain")
    # Who asked it first decides: the driver that looks for partitions, or udevd's worker.
    assert explanation.startswith(("E-HANG loading virtio_blk does not end", "E-DEV root: LABEL=small-root"))
    assert "/dev/vdb has not answered" in explanation or "a device does not answer" in explanation
    vm.faults.heal(other)
    shell.leave()
    assert witness_of(vm).root.device == "vda1"


def test_errors_at_a_chosen_moment_leave_a_shell_that_can_tell(
    start: Callable[..., Machine], disk: Disk, witness_of: Testimony
) -> None:
    vm = start(disk, append="quiet root=LABEL=small-root rd.break=pre-mount", allow=("traceback",))
    shell = Shell.rescue(vm, "pre-mount")
    vm.faults.fail(disk)
    shell.check("echo 3 > /proc/sys/vm/drop_caches")
    read = "python3 -c \"open('/dev/vda', 'rb').read(512)\""
    assert "Errno 5" in shell.run(read).output
    vm.faults.slow(disk, iops=200)
    assert "Errno 5" in shell.run(read).output
    vm.faults.heal(disk)
    shell.check(read)
    vm.faults.slow(disk, iops=400)
    shell.leave()
    assert witness_of(vm).pid == 1


@pytest.mark.fault("D3")
def test_a_root_that_is_pulled_out_and_comes_back_is_found(
    start: Callable[..., Machine], disk: Disk, generic: Path, witness_of: Testimony
) -> None:
    stick = Disk(disk.path, "usb")
    vm = start(stick, initrd=generic, append="quiet root=LABEL=small-root rd.break=pre-trigger")
    shell = Shell.rescue(vm, "pre-trigger")
    vm.unplug(stick)
    shell.leave()
    vm.expect(r"waiting for root: LABEL=small-root since [56] s, 17[45] s more; block devices: none")
    vm.plug(stick)
    assert witness_of(vm).root.device == "sda1"


@pytest.mark.fault("D7")
def test_the_root_is_found_among_two_hundred_disks(
    start: Callable[..., Machine],
    disk: Disk,
    generic: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "blank").write_bytes(bytes(1 << 20))
    crowd = many(Disk(tmp_path / "blank"), 200)
    vm = start(*crowd, disk, initrd=generic)
    outcome = vm.finish(Timeout.LOGIN).check()
    (report,) = (frame for frame in outcome.frames if frame["kind"] == "witness")
    assert Witness.parse(report).root.device == "vda1"


@pytest.mark.fault("F1")
def test_after_a_power_cut_the_disk_has_what_was_synced_and_the_watchdog_resets(
    boot: Callable[..., Machine],
    start: Callable[..., Machine],
    disk: Disk,
    image: Callable[..., Path],
    bookworm: DebianRoot,
) -> None:
    initrd = image(mode="list", modules=("virtio_pci", "virtio_blk", "ext4", "virtio_net", "i6300esb"))
    vm = start(
        disk,
        initrd=initrd,
        append="quiet root=LABEL=small-root rw rd.break=pre-pivot",
        watchdog=True,
        network=True,
    )
    shell = Shell.rescue(vm, "pre-pivot")
    carrier = "cat /sys/class/net/eth0/carrier"
    # SIOCSIFFLAGS with IFF_UP, netdevice(7).
    request = "b'eth0'.ljust(16, bytes(1)) + bytes([1]).ljust(24, bytes(1))"
    program = f"import fcntl, socket; fcntl.ioctl(socket.socket(), 0x8914, {request})"
    shell.check(f'python3 -c "{program}"')
    assert shell.check(carrier) == "1"
    vm.faults.cut_network()
    assert shell.check(carrier) == "0"
    vm.faults.restore_network()
    assert shell.check(carrier) == "1"

    shell.check("echo before the cut > /sysroot/note && sync")
    vm.send_line("echo after >> /sysroot/note; echo writ''ten")
    vm.power_cut(at="written\n")

    vm = boot.again(vm)  # type: ignore[attr-defined]
    shell = Shell.rescue(vm, "pre-pivot")
    assert shell.check("cat /sysroot/note").startswith("before the cut")
    assert "EXT4-fs (vda1): recovery complete" in shell.check("dmesg")
    # Opened, and never fed.
    vm.send_line("modprobe i6300esb heartbeat=1; : > /dev/watchdog")
    outcome = vm.finish(goal="shutdown")
    assert outcome.verdict is Verdict.GUEST_FAIL
    assert outcome.reason.startswith("the watchdog reset the machine, because the guest did not feed it,")
