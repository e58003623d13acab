"""PID 1 goes on, or ends the machine in a bounded time, whatever happens to it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu import MIB, Disk, Machine, VmSpec
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.disks.filesystems import Ext4
from pyinit_qemu.shell import Shell
from pyinit_qemu.spec import command_line
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

Start = Callable[..., Machine]
Testimony = Callable[[Machine], Witness]

MODULES = ("virtio_pci", "virtio_blk", "ext4")
HOOKS = Path(__file__).with_name("hooks")

# Whoever deals with failures cannot have its own dealt with by itself: what happens then is that the policy
# decides without a shell, for which there is a test below. Behind the point of no return there is no way on.
GUARDS = (
    "rescue.guard.*",
    "rescue.shell.*",
    "rescue.sessions.*",
    "config.sealed.strictest",
    "config.sealed.is_password_hash",
    "kernel.keyboard.*",
    "boot.Boot.run",
    "boot.Boot._go_through",
    "boot.Boot._explain_silence",
    "context.Context.close_volumes",
    "kernel.drivers.Drivers._run",
    "kernel.patience.Call.*",
    "switch_root.*",
    "kernel.syscalls.*",
)


@pytest.fixture
def start(
    boot: Callable[..., Machine], bookworm: DebianRoot, listed: Path, small_disk: Callable[..., Path]
) -> Start:
    def go(
        append: str = "", *, initrd: Path = listed, root: str = "LABEL=small-root", **fields: object
    ) -> Machine:
        fields.setdefault("disks", (Disk(small_disk()),))
        fields.setdefault("allow", ("banner",))
        line = f"quiet root={root} {append}" if root else f"quiet {append}"
        return boot(kernel=bookworm.kernel, initrd=initrd, append=line, **fields)

    return go


@pytest.fixture(scope="module")
def with_hooks(image: Callable[..., Path]) -> Callable[[str], Path]:
    """An image with a boot hook of tests/boot/hooks."""
    return lambda name: image(mode="list", modules=MODULES, hooks=(HOOKS / name,))


def send_keys(vm: Machine, *keys: str) -> None:
    vm.qmp("send-key", keys=[{"type": "qcode", "data": key} for key in keys])


# Signals and children.


@pytest.mark.fault("P2")
def test_signals_do_not_disturb_any_stage(start: Start, witness_of: Testimony) -> None:
    """All 64 but SIGINT, which is what Ctrl-Alt-Del sends, over and over from the first stage to the last."""
    vm = start("rd.break=cmdline,switch-root")
    shell = Shell.rescue(vm, "cmdline")
    numbers = " ".join(str(number) for number in range(1, 65) if number != 2)
    shell.check(f"for n in {numbers}; do kill -$n 1 || echo re''fused $n; done")
    # In a session of its own: the shell's end does not end it.
    storm = f"while :; do for n in {numbers}; do kill -$n 1; done; echo > /run/storm; done"
    shell.check(f"echo '{storm}' > /run/storm.sh")
    shell.check(
        "python3 -c \"import os; os.fork() or (os.setsid(), os.execv('/bin/sh', ['sh', '/run/storm.sh']))\""
    )
    shell.check("until [ -e /run/storm ]; do :; done")
    shell.leave()
    shell = Shell.rescue(vm, "switch-root")
    assert "/sysroot" in shell.check("cat /proc/mounts")
    shell.check(f"for n in {numbers}; do kill -$n 1 || echo re''fused $n; done")
    shell.leave()
    seen = witness_of(vm)
    assert "refused" not in vm.console
    assert seen.boot is not None
    assert {stage["outcome"] for stage in seen.boot["stages"]} == {"done"}
    (killed,) = seen.boot["handover"]["killed"]
    assert (killed["outcome"], killed["command"]) == ("TERM", "sh /run/storm.sh")
    assert not seen.signals_blocked and not seen.signals_ignored


@pytest.mark.fault("P1", "R3")
def test_five_thousand_orphans_are_reaped_and_take_no_status_with_them(
    start: Start, witness_of: Testimony
) -> None:
    vm = start("rd.break=initqueue,switch-root")
    shell = Shell.rescue(vm, "initqueue")
    # Nobody waits for them before their parent ends.
    crowd = "import os; [os.fork() or os._exit(0) for _ in range(1700)]"
    shell.check(f'for i in 1 2 3; do python3 -c "{crowd}"; done')
    # Descriptors and processes that somebody left.
    shell.check("sleep 1000 & exec 9< /init")
    shell.leave()
    shell = Shell.rescue(vm, "switch-root")
    zombies = "cat /proc/[0-9]*/stat | while read -r line; do case $line in *') Z '*) echo $line;; esac; done"
    assert shell.check(zombies) == ""
    shell.check("(sleep 1000 &)")
    shell.leave()
    seen = witness_of(vm)
    assert seen.boot is not None
    assert seen.boot["handover"]["orphans"] >= 5000
    ends = {child["argv"][0].rsplit("/", 1)[1]: child["status"] for child in seen.boot["children"]}
    assert ends.pop("systemd-udevd") == 0
    assert set(ends.values()) == {0}
    assert [process for process in seen.processes if process.comm != "pyinit-empty"] == []
    assert set(seen.fds) == {0, 1, 2}


@pytest.mark.fault("P3")
def test_ctrl_alt_del_in_a_shell_writes_everything_out(start: Start, boot: Callable[..., Machine]) -> None:
    vm = start("rw rd.break=pre-pivot")
    shell = Shell.rescue(vm, "pre-pivot")
    shell.check("echo kept > /sysroot/note")
    send_keys(vm, "ctrl", "alt", "delete")
    vm.wait_event("SHUTDOWN")
    vm.power_cut()
    vm = boot.again(vm)  # type: ignore[attr-defined]
    shell = Shell.rescue(vm, "pre-pivot")
    assert shell.check("cat /sysroot/note") == "kept"
    vm.stop()


@pytest.mark.fault("P3", "P5")
def test_sysrq_kills_everything_and_restarts(start: Start) -> None:
    vm = start("rd.timeout=600 sysrq_always_enabled", root="LABEL=none")
    vm.expect("waiting for root: LABEL=none")
    send_keys(vm, "alt", "sysrq", "i")  # SIGKILL to all but PID 1
    vm.expect("udevd ended")
    vm.expect("waiting for root: LABEL=none")
    send_keys(vm, "alt", "sysrq", "b")
    vm.wait_event("SHUTDOWN")
    vm.stop()


@pytest.mark.fault("P3", "X5")
def test_a_program_that_hangs_is_ended_by_ctrl_alt_del_or_by_the_watchdog(
    boot: Callable[..., Machine], start: Start, image: Callable[..., Path], tmp_path: Path
) -> None:
    hook = tmp_path / "50-hang.py"
    hook.write_text(
        "def pre_mount(moment):\n"
        "    moment.warn('about to hang')\n"
        "    moment.run('/bin/sleep', '100000', timeout=None)\n"
    )
    initrd = image(
        mode="list",
        modules=MODULES,
        hooks=(hook,),
        features=("watchdog",),
        includes=(("/bin/sleep", "/bin/sleep"),),
    )
    vm = start(initrd=initrd, watchdog=True)
    vm.expect("about to hang")
    send_keys(vm, "ctrl", "alt", "delete")
    vm.wait_event("SHUTDOWN")
    vm.stop()
    vm = start("rd.pyinit.watchdog=7", initrd=initrd, watchdog=True)
    outcome = vm.finish(goal="shutdown")
    assert "about to hang" in vm.console
    assert outcome.reason.startswith("the watchdog reset the machine")


@pytest.mark.fault("X5")
def test_a_watchdog_is_fed_by_progress_and_handed_over_running(
    start: Start, image: Callable[..., Path], witness_of: Testimony
) -> None:
    initrd = image(mode="list", modules=MODULES, features=("watchdog",))
    vm = start("rd.pyinit.watchdog=60 rd.break=pre-pivot", initrd=initrd, watchdog=True)
    shell = Shell.rescue(vm, "pre-pivot")
    assert "the watchdog resets this machine 60 s after nobody has typed anything for 5 minutes" in vm.console
    shell.leave()
    seen = witness_of(vm)
    # What the kernel says when the device is closed without the magic V.
    assert any("watchdog did not stop!" in line for line in seen.kernel_log)


# Consoles and clocks.


@pytest.mark.fault("P6")
def test_without_any_console_it_boots_in_silence(start: Start, witness_of: Testimony) -> None:
    vm = start("console=tty63 rd.debug")
    assert witness_of(vm).pid == 1
    assert "pyinit" not in vm.console


@pytest.mark.fault("P6")
def test_a_serial_line_that_is_taken_away_does_not_stop_it(start: Start, witness_of: Testimony) -> None:
    vm = start("rd.break=initqueue rd.debug")
    shell = Shell.rescue(vm, "initqueue")
    port = shell.check("python3 -c \"import os; print(os.readlink('/sys/class/tty/ttyS0/device'))\"")
    vm.send_line(f"echo {port.rpartition('/')[2]} > /sys/class/tty/ttyS0/device/driver/unbind")
    assert witness_of(vm).pid == 1


@pytest.mark.fault("P8")
def test_deadlines_are_kept_while_the_clock_jumps(start: Start, witness_of: Testimony) -> None:
    vm = start("rd.break=initqueue rd.timeout=12", root="LABEL=none")
    shell = Shell.rescue(vm, "initqueue")
    jump = (
        "import os, time; os.setsid()\\n"
        "while True:\\n"
        "    for year in (0, 2147483000): time.clock_settime(time.CLOCK_REALTIME, year); time.sleep(0.01)"
    )
    shell.check(f'printf "{jump}" > /run/jump.py; python3 /run/jump.py & cat /proc/uptime')
    begin = float(shell.check("cat /proc/uptime").split()[0])
    shell.leave()
    vm.expect(r"waiting for root: LABEL=none since [56] s, [67] s more")
    shell = Shell.rescue(vm, "initqueue")
    assert "E-DEV root: LABEL=none did not appear within 12 s" in vm.console
    assert 12 <= float(shell.check("cat /proc/uptime").split()[0]) - begin < 30
    shell.check("pyinit set root=LABEL=small-root")
    shell.leave()
    seen = witness_of(vm)
    assert seen.boot is not None
    starts = [stage["start"] for stage in seen.boot["stages"]]
    assert starts == sorted(starts)


# udevd.


@pytest.mark.fault("P5")
def test_udevd_that_was_stopped_is_told_to_go_on(start: Start, witness_of: Testimony) -> None:
    vm = start("rd.break=initqueue")
    shell = Shell.rescue(vm, "initqueue")
    shell.check(
        "cat /proc/[0-9]*/stat | while read pid name rest; do "
        "[ $name != '(systemd-udevd)' ] || kill -STOP $pid; done"
    )
    # Nothing is known of the disk: the next boot's udevd would have to look at it.
    shell.check("rm -rf /run/udev/data/b*")
    shell.leave()
    assert witness_of(vm).root.device == "vda1"
    assert "pyinit: warning: udevd was stopped (SIGSTOP); it is told to go on" in vm.console


# Calls that the kernel does not come back from.


@pytest.mark.fault("P4", "D9")
def test_a_disk_that_hangs_its_driver_is_named_while_it_is_waited_for(
    start: Start,
    small_disk: Callable[..., Path],
    witness_of: Testimony,
    expect_screen: Callable[[Machine, str], None],
) -> None:
    disk = Disk(small_disk())
    vm = start("rd.timeout=12", disks=(disk,), paused=True)
    vm.faults.hang(disk)
    vm.run()
    vm.expect(
        r"loading virtio_blk since 5 s: the kernel has not come back; /dev/vda has not answered 1 request"
    )
    shell = Shell.rescue(vm)
    expect_screen(vm, "E-HANG")
    vm.faults.heal(disk)
    shell.leave()
    assert witness_of(vm).root.device == "vda1"


@pytest.mark.fault("P3")
def test_a_machine_whose_disk_is_dead_is_restarted_all_the_same(
    start: Start, small_disk: Callable[..., Path]
) -> None:
    disk = Disk(small_disk())
    vm = start("rw rd.break=pre-pivot", disks=(disk,))
    shell = Shell.rescue(vm, "pre-pivot")
    shell.check("exec 5<> /sysroot/note; echo before >&5; sync")
    vm.faults.hang(disk)
    shell.check("echo after >&5")
    vm.send_line("sync")
    send_keys(vm, "ctrl", "alt", "delete")
    vm.wait_event("SHUTDOWN", 60.0)
    vm.stop()


# Processes and memory.


def use_up_process_numbers(shell: Shell) -> None:
    """Those below 300 are given out once only (kernel/pid.c, RESERVED_PIDS)."""
    shell.check("i=0; while [ $i -lt 300 ]; do (:); i=$((i+1)); done")


@pytest.mark.fault("X3")
def test_a_process_that_cannot_be_started_is_tried_again(start: Start, witness_of: Testimony) -> None:
    vm = start("rd.break=pre-udev")
    use_up_process_numbers(Shell.rescue(vm, "pre-udev"))
    # The lowest limit leaves one process number, and this process takes it. It
    # gives everything back once PID 1 has said that it tries again.
    wait = (
        "echo 301 > /proc/sys/kernel/pid_max; "
        "(trap '' HUP; while :; do while read -r line; do case $line in *'trying again'*) "
        "echo 32768 > /proc/sys/kernel/pid_max; exit;; esac; done < /run/pyinit/log; done) &"
    )
    vm.send_line(f"{wait} exit")
    seen = witness_of(vm)
    assert "systemd-udevd cannot be started: Resource temporarily unavailable; trying again" in vm.console
    assert seen.pid == 1


@pytest.mark.fault("X3")
def test_without_room_for_a_process_the_policy_decides(
    start: Start, expect_screen: Callable[[Machine, str], None]
) -> None:
    vm = start("rd.break=pre-udev rd.emergency=poweroff")
    use_up_process_numbers(Shell.rescue(vm, "pre-udev"))
    vm.send_line("echo 301 > /proc/sys/kernel/pid_max; (trap '' HUP; while :; do :; done) & exit")
    vm.expect("no rescue shell can be started; poweroff in 10 s")
    expect_screen(vm, "E-FORK")
    assert vm.finish(goal="shutdown").ok


EATER = """
def pre_mount(moment):
    moment.run("/usr/bin/python3", "-c", EAT)


EAT = '''
import os
if not os.path.exists("/run/fed"):
    if os.path.exists("/run/once"):
        open("/run/fed", "w")
    held = []
    while True:
        held.append(bytearray(b"x") * (1 << 20))
'''
"""


@pytest.mark.fault("X4")
def test_a_program_that_is_killed_for_want_of_memory_is_named_and_tried_once_more(
    start: Start, image: Callable[..., Path], tmp_path: Path, witness_of: Testimony
) -> None:
    hook = tmp_path / "50-eater.py"
    hook.write_text(EATER)
    vm = start(initrd=image(mode="list", modules=MODULES, hooks=(hook,)), memory=192 * MIB)
    shell = Shell.rescue(vm, "pre-mount")
    assert "was killed by the kernel for want of memory; it is started once more" in vm.console
    assert "E-MEM /usr/bin/python3 was killed by the kernel, twice: memory is too small for it" in vm.console
    shell.check(": > /run/once")
    shell.leave()
    seen = witness_of(vm)
    assert seen.boot is not None
    eaters = [child["status"] for child in seen.boot["children"] if child["argv"][0].endswith("python3")]
    assert eaters == [-9, -9, -9, 0]


@pytest.mark.fault("X1", "X4", "P4")
def test_when_memory_is_gone_that_is_said_with_figures(
    start: Start, witness_of: Testimony, expect_screen: Callable[[Machine, str], None]
) -> None:
    vm = start("rd.break=cmdline,initqueue rd.timeout=600", root="LABEL=none", memory=160 * MIB)
    shell = Shell.rescue(vm, "cmdline")
    shell.check("mount -o remount,size=100% /run")

    def leave(mebibytes: int) -> None:
        # Not by Python, whose own memory would be free again afterwards.
        available = "while read name value unit; do [ $name != MemAvailable: ] || break; done < /proc/meminfo"
        shell.check(
            f"{available}; dd if=/dev/zero of=/run/fill bs=1024 count=$((value - {mebibytes} * 1024))"
        )

    # So little that it is seen beforehand.
    leave(10)
    shell.leave()
    shell = Shell.rescue(vm, "cmdline")
    expect_screen(vm, "E-MEM")
    shell.check("rm /run/fill")
    shell.leave()
    # It ends on the way, while a device is waited for: somebody fills /run, mebibyte by mebibyte.
    shell = Shell.rescue(vm, "initqueue")
    leave(20)
    fill = "dd if=/dev/zero of=/run/more bs=1024k count=1 oflag=append conv=notrunc"
    vm.send_line(f"(trap '' HUP; until [ -e /run/pyinit/failure ]; do {fill}; done) > /dev/null 2>&1 & exit")
    vm.expect("E-MEM memory ran out: the kernel began to kill processes")
    shell = Shell.rescue(vm, "initqueue")
    shell.check("rm /run/fill /run/more; pyinit set root=LABEL=small-root")
    shell.leave()
    assert witness_of(vm).pid == 1


@pytest.mark.fault("X1")
@pytest.mark.parametrize("size", [96, 112, 128, 144])
def test_every_size_of_memory_boots_or_says_why_not(size: int, start: Start) -> None:
    vm = start("rd.shell=0 rd.emergency=poweroff", memory=size * MIB, allow=("banner", "panic"))
    vm.finish()
    console = vm.console
    booted = any(frame["kind"] == "witness" for frame in vm.frames)
    # Where not even the image can be unpacked the kernel says so itself, before there is a PID 1.
    before = "Kernel panic" in console and all(frame["kind"] != "hello" for frame in vm.frames)
    assert booted or "E-MEM" in console or before
    assert booted == (size >= 128)


@pytest.mark.fault("X1")
@pytest.mark.parametrize("size", [128, 160, 192, 512])
def test_every_size_of_memory_boots_a_generic_image_or_says_why_not(
    size: int, start: Start, generic: Path
) -> None:
    vm = start(
        "rd.shell=0 rd.emergency=poweroff", initrd=generic, memory=size * MIB, allow=("banner", "panic")
    )
    vm.finish()
    booted = any(frame["kind"] == "witness" for frame in vm.frames)
    before = "Kernel panic" in vm.console and all(frame["kind"] != "hello" for frame in vm.frames)
    assert booted or "E-MEM" in vm.console or before
    assert booted == (size >= 160)


@pytest.mark.fault("X1")
def test_an_image_that_had_no_room_to_be_unpacked_is_told_from_a_damaged_one(
    start: Start, image: Callable[..., Path], tmp_path: Path
) -> None:
    """Without root= from the boot loader the kernel unpacks into a tmpfs, and that ends at half of memory."""
    (tmp_path / "large").write_bytes(bytes(80 * MIB))
    sealed = image(
        mode="list",
        modules=MODULES,
        cmdline="root=LABEL=small-root",
        includes=((tmp_path / "large", "/usr/share/large"),),
    )
    vm = start("rd.shell=0 rd.emergency=poweroff", initrd=sealed, root="", memory=192 * MIB)
    vm.expect("E-MEM")
    vm.expect("Put root= on the boot loader's command line")
    vm.finish(goal="shutdown")


@pytest.mark.fault("X2")
def test_full_file_systems_do_not_stop_it(
    start: Start, image: Callable[..., Path], witness_of: Testimony
) -> None:
    sealed = image(mode="list", modules=MODULES, cmdline="root=LABEL=small-root")
    vm = start("rd.break=pre-udev rd.debug", initrd=sealed, root="")
    shell = Shell.rescue(vm, "pre-udev")
    shell.check("mount -o remount,size=2m /run")
    for place in ("", "/run"):
        room = f"(lambda s: s.f_bavail * s.f_frsize)(os.statvfs('{place}/'))"
        shell.check(f"python3 -c \"import os; os.posix_fallocate(os.open('{place}/fill', 66), 0, {room})\"")
    assert shell.run("echo x > /more").status != 0
    assert shell.run("echo x > /run/more").status != 0
    shell.leave()
    seen = witness_of(vm)
    assert seen.root.device == "vda1"


# The switch.


@pytest.mark.fault("K7", "R2", "R5", "F6")
def test_nothing_is_moved_before_init_and_its_root_are_proven(start: Start, witness_of: Testimony) -> None:
    vm = start("rw init=/etc rd.break=pre-pivot")
    shell = Shell.rescue(vm, "pre-pivot")
    shell.check("printf '#!/nonexistent/interpreter\\n' > /sysroot/etc/lost && chmod +x /sysroot/etc/lost")
    shell.check("printf '\\x7fELF' > /sysroot/etc/half && chmod +x /sysroot/etc/half")
    shell.leave()
    for number, (init, why) in enumerate(
        (
            ("/etc", "is a directory"),
            ("sbin/init", "is not an absolute path"),
            ("/missing", "is missing"),
            ("/etc/lost", "/nonexistent/interpreter"),
            ("/etc/half", "/etc/half "),
            ("/etc/fstab", "has no execute permission"),
        )
    ):
        shell = Shell.rescue(vm, "pre-pivot")
        if number:
            shell.check(f"pyinit set init={init}")
            shell.leave()
            shell = Shell.rescue(vm, "pre-pivot")
        told = shell.check("pyinit explain")
        assert told.startswith("E-INIT init= names a program that cannot be executed"), told
        assert why in told, told
        assert "/dev devtmpfs" in shell.check("cat /proc/mounts")
        if number < 5:
            shell.leave()
    # A link that would lead a mount astray.
    shell.check("pyinit set init=/sbin/init")
    lead = "import os; os.rmdir('/sysroot/proc'); os.symlink('/', '/sysroot/proc')"
    shell.check(f'python3 -c "{lead}"')
    shell.leave()
    shell = Shell.rescue(vm, "pre-pivot")
    told = shell.check("pyinit explain")
    assert told.startswith("E-ROOTFS") and "/sysroot/proc is a symbolic link to /" in told
    shell.check("rm /sysroot/proc; mkdir /sysroot/proc")
    shell.leave()
    assert witness_of(vm).argv == ("/sbin/init",)


@pytest.mark.fault("R1", "R3", "R4")
def test_what_is_mounted_in_the_initramfs_keeps_its_files(
    start: Start, small_disk: Callable[..., Path], boot: Callable[..., Machine], witness_of: Testimony
) -> None:
    second = Disk(small_disk(lambda tree: Ext4(tree, label="other")), serial="other")
    vm = start("rw rd.break=switch-root", disks=(Disk(small_disk()), second))
    shell = Shell.rescue(vm, "switch-root")
    # A disk, a tmpfs, and a directory of the root itself, all within what is about to be emptied.
    shell.check("mkdir -p /x/disk /x/memory /x/bound /x/plain; echo kept > /sysroot/note")
    shell.check(
        "mount /dev/vdb1 /x/disk && mount -t tmpfs tmpfs /x/memory && mount --bind /sysroot/etc /x/bound"
    )
    shell.check("echo kept > /x/disk/note; echo kept > /x/memory/note; echo kept > /x/bound/note; sync")
    # Somebody whose working directory and whose open file are in there.
    shell.check("cd /x/disk; sleep 1000 < /x/memory/note & sleep 1000 < /x/plain & cd /")
    shell.leave()
    seen = witness_of(vm)
    assert set(seen.fds) == {0, 1, 2}
    assert [process for process in seen.processes if process.comm != "pyinit-empty"] == []
    assert not [mount for mount in seen.mounts if mount.target.startswith("/x")]
    assert seen.memory["Unevictable"] < 4 * MIB


@pytest.mark.fault("R6")
def test_an_init_that_the_kernel_refuses_after_the_switch_ends_the_machine_with_a_word(start: Start) -> None:
    vm = start("rw rd.break panic=3")
    shell = Shell.rescue(vm, "switch-root")
    # What was proven is replaced, and the other candidates with it.
    shell.check(
        "cd /sysroot; echo nothing > usr/lib/witness/init; rm -f etc/init bin/init bin/sh bin/dash; cd /"
    )
    shell.leave()
    vm.expect("warning: /sbin/init cannot be executed: Exec format error; trying /etc/init")
    vm.expect("E-INIT no init could be executed in the new root, and the initramfs is gone")
    vm.expect("the rescue shell went with the initramfs; reboot in 3 s")
    vm.wait_event("SHUTDOWN")
    vm.stop()


@pytest.mark.fault("K4")
def test_the_longest_command_line_of_any_bytes(start: Start, witness_of: Testimony) -> None:
    # The kernel's limit is 2,048 with the end of the string (arch/x86/include/asm/setup.h).
    defaults = command_line(VmSpec("", None, append="quiet root=LABEL=small-root odd.bytes="))
    room = 2047 - len(defaults)
    every = bytes(range(0x80, 0x100)) * 16
    vm = start(f"odd.bytes={os.fsdecode(every[:room])}")
    seen = witness_of(vm)
    assert seen.cmdline.endswith(os.fsdecode(every[:room]))


# Exceptions.


@pytest.mark.fault("P4")
def test_an_exception_in_any_function_is_survived(
    start: Start, with_hooks: Callable[[str], Path], witness_of: Testimony
) -> None:
    vm = start(
        f"site.sound={','.join(GUARDS)}", initrd=with_hooks("70-mishaps.py"), allow=("banner", "traceback")
    )
    seen = witness_of(vm)
    assert seen.boot is not None
    said = [message["text"].removeprefix("hook 70-mishaps: ") for message in seen.boot["messages"]]
    notes = dict(text.split() for text in said if re.fullmatch(r"[\w.]+ [A-Z]\w+", text))
    assert len(notes) > 120
    assert {"boot.Boot.mount", "devices.waiting.Waiter.wait", "kernel.console.Console.write"} <= set(notes)
    assert {"MemoryError", "RecursionError", "KeyboardInterrupt", "SystemExit"} <= set(notes.values())
    outcomes = [stage["outcome"] for stage in seen.boot["stages"]]
    assert outcomes.count("E-INTERNAL") + outcomes.count("E-MEM") > 80


@pytest.mark.fault("P4")
def test_when_what_deals_with_failures_fails_the_policy_ends_the_machine(
    start: Start, with_hooks: Callable[[str], Path]
) -> None:
    vm = start(
        "rd.timeout=1 rd.emergency=poweroff site.only=rescue.guard.Guard.fail",
        root="LABEL=none",
        initrd=with_hooks("70-mishaps.py"),
    )
    vm.expect("E-INTERNAL pyinit itself failed where nothing catches it: ")
    vm.expect(r"/usr/lib/pyinit/pyinit/boot\.py line \d+, in _go_through")
    vm.expect("pyinit cannot go on; poweroff in 10 s")
    assert vm.finish(goal="shutdown").ok
