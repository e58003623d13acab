"""Each verdict by a real kernel in a real QEMU. The initramfs is a shell and a program that powers off."""

from __future__ import annotations

import os
import signal
import stat
import struct
from pathlib import Path

import pytest

from pyinit_image.cpio import Member, write
from pyinit_qemu import BootFailed, Disk, Verdict
from pyinit_qemu.channel import encode
from pyinit_qemu.plugin import Boots

pytestmark = pytest.mark.boot

WAIT = 300.0
FOLDERS = (b"bin", b"dev", b"lib64", b"lib", b"lib/x86_64-linux-gnu")

# reboot(LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_POWER_OFF)
POWER_OFF = bytes.fromhex("bfaddee1fe be69191228 badcfe2143 b8a9000000 0f05")


def program(code: bytes) -> bytes:
    """A static ELF program."""
    base, size = 0x400000, 64 + 56 + len(code)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 4096) + code


@pytest.fixture(scope="session")
def initrd(probe_kernel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initramfs with the shell of the Debian system that the kernel belongs to; $1 says what to play."""
    tree = probe_kernel.parent.parent
    frames = [encode({"kind": kind}).decode().strip() for kind in ("hello", "done")]
    script = f"""#!/bin/sh
echo "up: $play"
case $play in
done) echo '{frames[0]}' >/dev/ttyS1
    echo -n 'name? '; read name; echo "<$name>"
    echo '{frames[1]}' >/dev/ttyS1; exec /poweroff;;
off) exec /poweroff;;
loop) while :; do echo loop; done;;
wait) read x;;
esac
"""
    members = [Member(name, stat.S_IFDIR | 0o755) for name in FOLDERS]
    members += [
        Member(b"bin/sh", stat.S_IFREG | 0o755, (tree / "usr/bin/dash").read_bytes()),
        Member(b"dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        Member(b"dev/ttyS1", stat.S_IFCHR | 0o600, device=(4, 65)),
        Member(b"init", stat.S_IFREG | 0o755, script.encode()),
        Member(b"poweroff", stat.S_IFREG | 0o755, program(POWER_OFF)),
    ]
    for place in ("lib64/ld-linux-x86-64.so.2", "lib/x86_64-linux-gnu/libc.so.6"):
        data = (tree / "usr/lib/x86_64-linux-gnu" / Path(place).name).read_bytes()
        members.append(Member(place.encode(), stat.S_IFREG | 0o755, data))
    path = tmp_path_factory.mktemp("initrd") / "initrd"
    path.write_bytes(b"".join(write(members)))
    return path


def test_pass(boot: Boots, probe_kernel: Path, initrd: Path) -> None:
    vm = boot(kernel=probe_kernel, initrd=initrd, append="play=done")
    vm.expect("up: done", WAIT)
    vm.expect("name\\? ", WAIT)
    vm.send_line("Ada")
    vm.expect("^<Ada>$", WAIT)
    outcome = vm.finish(WAIT).check()
    assert [frame["kind"] for frame in outcome.frames] == ["hello", "done"]
    assert outcome.shutdown == "guest-shutdown"


def test_guest_that_powers_off_too_early(boot: Boots, probe_kernel: Path, initrd: Path) -> None:
    outcome = boot(kernel=probe_kernel, initrd=initrd, append="play=off").finish(WAIT)
    assert (outcome.verdict, outcome.shutdown) == (Verdict.GUEST_FAIL, "guest-shutdown")


def test_panic(boot: Boots, probe_kernel: Path, initrd: Path) -> None:
    outcome = boot(kernel=probe_kernel, initrd=initrd, append="play=exit").finish(WAIT)
    assert outcome.verdict is Verdict.PANIC
    assert "Attempted to kill init!" in outcome.reason


def test_hang_and_crash(boot: Boots, probe_kernel: Path, initrd: Path) -> None:
    vm = boot(kernel=probe_kernel, initrd=initrd, append="play=wait")
    vm.expect("up: wait", WAIT)
    with pytest.raises(BootFailed) as failed:
        vm.expect("never", 2.0)
    assert failed.value.verdict is Verdict.HANG
    assert "CPUs running, instruction pointer" in failed.value.report
    os.kill(vm.pid, signal.SIGSEGV)
    assert vm.finish(WAIT).verdict is Verdict.QEMU_CRASH


def test_timeout(boot: Boots, probe_kernel: Path, initrd: Path) -> None:
    vm = boot(kernel=probe_kernel, initrd=initrd, append="play=loop")
    vm.expect("^loop", WAIT)
    assert vm.finish(2.0).verdict is Verdict.TIMEOUT


def test_hot_plug_and_screen(boot: Boots, probe_kernel: Path, initrd: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(1 << 20))
    disks = tuple(Disk(image, name, late=True) for name in ("virtio", "nvme", "scsi", "usb"))
    vm = boot(kernel=probe_kernel, initrd=initrd, append="play=wait", disks=disks, vga=True)
    vm.expect("up: wait", WAIT)
    vm.plug(disks[0])
    vm.expect(r"\[1af4:1042\] type 00 class 0x010000", WAIT)
    vm.plug(disks[1])
    vm.expect(r"\[1b36:0010\] type 00 class 0x010802", WAIT)
    vm.plug(disks[2])
    vm.plug(disks[3])
    vm.unplug(disks[1], WAIT)
    vm.plug(disks[1])
    vm.expect(r"\[1b36:0010\] type 00 class 0x010802", WAIT)
    vm.screen.png(tmp_path / "screen.png")
    assert (tmp_path / "screen.png").read_bytes().startswith(b"\x89PNG")
    vm.power_cut()
