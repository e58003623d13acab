"""The rescue shell on every console that may have a person, however it ends."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyinit_image.access import make_hash
from pyinit_qemu import Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.shell import Shell
from pyinit_qemu.spec import PROGRAM
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

LISTED_MODULES = ("virtio_pci", "virtio_blk", "ext4")

Start = Callable[..., Machine]
Testimony = Callable[[Machine], Witness]

# tty_ioctl(4) does not tell of TIOCVHANGUP, asm-generic/ioctls.h does.
HANG_UP = (
    "python3 -c \"import fcntl, os; fcntl.ioctl(os.open('/dev/ttyS0', os.O_RDWR | os.O_NOCTTY), 0x5437)\""
)


@pytest.fixture
def start(
    boot: Callable[..., Machine], bookworm: DebianRoot, listed: Path, small_disk: Callable[..., Path]
) -> Start:
    def go(append: str, *, initrd: Path = listed, **options: object) -> Machine:
        return boot(
            kernel=bookworm.kernel,
            initrd=initrd,
            disks=(Disk(small_disk()),),
            append=f"quiet {append}",
            allow=("banner",),
            **options,
        )

    return go


@pytest.mark.fault("P7")
def test_each_console_has_a_shell_and_the_first_that_is_left_goes_on(
    start: Start, witness_of: Testimony
) -> None:
    vm = start("root=LABEL=gone rd.timeout=1 console=ttyS0 console=tty0", vga=True)
    vm.screen.wait_for(r"^pyinit:initqueue# *$")
    shell = Shell.rescue(vm, "initqueue")
    assert " /dev/pts/" in shell.check("ls -l /proc/self/fd/0")
    vm.keyboard.type("stty size; cd /dev; echo $((6 * 7)) $TERM\n")
    vm.screen.wait_for(r"^25 80\n42 linux\npyinit:initqueue/dev# *$")
    assert "42" not in vm.console and shell.check("echo $TERM") == "vt220"

    # The line is edited, remembered and completed.
    vm.send_line("pyinit stat\t\x01\x1b[1;5C\x0b\x19")
    vm.expect(r"^stopped:   in initqueue\n")
    shell.wait()
    vm.send_line("\x10\x01echo before; ")
    vm.expect_in_order([r"^before\n", r"^stopped:   in initqueue\n"])
    shell.wait()

    # A terminal that goes away takes its shell along, and no other one.
    vm.keyboard.type(f"{HANG_UP}; while [ -e pts/0 ] && [ -e pts/1 ]; do sleep 0.1; done; echo al''one\n")
    vm.screen.wait_for(r"^alone\npyinit:initqueue/dev# *$")
    vm.keyboard.type("exit\n")
    Shell.rescue(vm, "initqueue")

    # However a shell ends, the boot is tried again and tells the same; the other console is told.
    for end in ("exit 255", "kill -9 $$", "kill -9 $PPID", "kill -11 $$", "exec cat /dev/null"):
        vm.send_line(end)
        vm.expect("pyinit: the rescue shell was left on /dev/ttyS0")
        shell = Shell.rescue(vm, "initqueue")
    vm.screen.wait_for(r"the rescue shell was left on /dev/ttyS0(.*\n)*pyinit:initqueue# *$")
    assert vm.console.count("pyinit: E-DEV root: LABEL=gone did not appear") == 7

    vm.keyboard.type("pyinit set root=LABEL=small-root; exit\n")
    vm.expect("pyinit: the rescue shell was left on /dev/tty1")
    seen = witness_of(vm)
    assert seen.boot is not None
    assert [s["outcome"] for s in seen.boot["stages"] if s["name"] == "initqueue"] == ["E-DEV"] * 7 + ["done"]
    assert [process for process in seen.processes if process.comm != "pyinit-empty"] == []


@pytest.mark.fault("P7")
def test_rd_words_of_the_shell(start: Start) -> None:
    vm = start("root=LABEL=gone rd.timeout=1 rd.ctty=hvc9 rd.emergency=reboot rd.memdebug=3 rd.debug")
    shell = Shell.rescue(vm, "initqueue")
    assert "pyinit: warning: there is no /dev/hvc9, which rd.ctty asks for" in vm.console
    figures = r"MemFree \d+ kB, MemAvailable \d+ kB, Cached \d+ kB, Slab \d+ kB"
    told = re.findall(rf"^pyinit: before ([a-z-]+): {figures}$", vm.console, re.MULTILINE)
    assert told == ["cmdline", "pre-udev", "pre-trigger", "initqueue"]
    written = shell.check("cat /run/initramfs/memdebug.txt")
    assert re.search(rf"=== before pre-trigger: {figures}\n--- /proc/meminfo\nMemTotal: ", written)
    assert re.search(r"^kmalloc-64 ", written, re.MULTILINE)
    # rd.debug tells the logs, and with quiet not the console.
    assert "module virtio_blk: loaded" not in vm.console
    assert "module virtio_blk: loaded" in shell.check("cat /run/initramfs/init.log")
    assert "pyinit: module virtio_blk: loaded" in shell.check("dmesg")

    # A terminal that hangs up is no person who leaves; it is tried again, and rd.emergency does not come yet.
    vm.send_line(HANG_UP)
    vm.expect("^pyinit: before initqueue: ")
    shell = Shell.rescue(vm, "initqueue")
    assert "exit: reboot, as rd.emergency asks; `pyinit retry` goes on with initqueue" in vm.console
    vm.send_line("pyinit retry")
    shell = Shell.rescue(vm, "initqueue")
    shell.leave()
    vm.expect("the rescue shell was left; reboot in 10 s")
    assert vm.finish(goal="shutdown").shutdown == "guest-reset"


@pytest.mark.fault("A6")
def test_a_password_opens_the_shell_only_where_it_was_typed(
    start: Start, image: Callable[..., Path], tmp_path: Path, witness_of: Testimony
) -> None:
    hashed = tmp_path / "rescue.hash"
    hashed.write_text(f"{make_hash(bytearray(b'open sesame'))}\n")
    sealed = image(mode="list", modules=LISTED_MODULES, rescue="password", rescue_password_file=hashed)
    vm = start("root=LABEL=gone rd.timeout=90 console=tty0 console=ttyS0", vga=True, initrd=sealed)
    question = "Password of the rescue shell: "
    vm.expect(r"keys: s opens a shell, w waits 90 s longer\n")
    vm.send_bytes(b"s")
    vm.expect(question)
    vm.send_bytes(b"\x03")
    vm.expect("no shell is opened; the boot goes on")
    vm.expect(r"waiting for root: LABEL=gone since [56] s")
    vm.send_bytes(b"s")
    vm.expect(question)
    vm.screen.wait_for(rf"^{question.rstrip()}$")
    vm.send_line("open sesame")
    shell = Shell.rescue(vm, "initqueue")
    vm.keyboard.type("echo in''side\n")
    shell.check("pyinit set root=LABEL=small-root")
    assert "inside" not in vm.screen.text() and "initqueue#" not in vm.screen.text()
    shell.leave()
    witness_of(vm)


@pytest.fixture
def stuck_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A third serial port whose other end takes nothing, as with flow control and nobody there."""
    for end in ("in", "out"):
        os.mkfifo(tmp_path / f"line.{end}")
    full = os.open(tmp_path / "line.out", os.O_RDWR | os.O_NONBLOCK)
    for size in (4096, 1):
        with pytest.raises(BlockingIOError):
            while True:
                os.write(full, b"x" * size)
    qemu = tmp_path / "bin" / PROGRAM[0]
    qemu.parent.mkdir()
    qemu.write_text(
        f'#!/bin/sh\nexec {shutil.which(PROGRAM[0])} "$@" -chardev pipe,id=stuck,path={tmp_path}/line '
        "-device isa-serial,chardev=stuck,index=2\n"
    )
    qemu.chmod(0o755)
    monkeypatch.setenv("PATH", f"{qemu.parent}:{os.environ['PATH']}")
    yield
    os.close(full)


@pytest.mark.fault("P6")
@pytest.mark.usefixtures("stuck_line")
def test_a_serial_console_that_takes_nothing_stops_nobody(
    boot: Callable[..., Machine],
    bookworm: DebianRoot,
    listed: Path,
    small_disk: Callable[..., Path],
    witness_of: Callable[[Machine], Witness],
) -> None:
    seen = witness_of(
        boot(
            kernel=bookworm.kernel,
            initrd=listed,
            disks=(Disk(small_disk()),),
            vga=True,
            append="quiet console=ttyS2 console=tty0 root=LABEL=small-root rd.info",
        )
    )
    assert seen.boot is not None
    shown = [message for message in seen.boot["messages"] if message["level"] == "info"]
    # The kernel would wait for 30 s after each line, and once more when the real init is executed.
    assert len(shown) >= 3
    assert seen.boot["handover"]["at"] - seen.boot["started"] < 60_000_000
    assert seen.started - seen.boot["handover"]["at"] < 25_000_000
