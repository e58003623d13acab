"""A root is checked before it is mounted; what its check says decides what follows."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu import Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.shell import Shell
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

Testimony = Callable[[Machine], Witness]

#: Stands for a check with every outcome: what it is to do is in /run/check.
STUB = r"""#!/bin/sh
echo "the stub looked at $5 with $1"
read -r what < /run/check
case $what in
hang) printf '2 50 100 %s\n' "$5" >&3; sleep 1000 & trap 'kill $!; exit 32' INT; wait $! ;;
work)
    read -r begin rest < /proc/uptime
    until read -r now rest < /proc/uptime; [ "${now%.*}" -gt $((${begin%.*} + 20)) ]; do :; done
    exit 0 ;;
signal) kill -9 $$ ;;
*) exit "$what" ;;
esac
"""
PARTITION = 1 << 20


@pytest.fixture(scope="module")
def stubbed(image: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image whose fsck.ext4 is the stub."""
    stub = tmp_path_factory.mktemp("stub") / "fsck.ext4"
    stub.write_text(STUB)
    stub.chmod(0o755)
    return image(
        mode="list",
        modules=("virtio_pci", "virtio_blk", "ext4"),
        features=("watchdog",),
        includes=((stub, "/usr/sbin/fsck.ext4"),),
    )


@pytest.fixture
def start(
    boot: Callable[..., Machine], bookworm: DebianRoot, stubbed: Path, small_disk: Callable[..., Path]
) -> Callable[..., tuple[Machine, Shell]]:
    """Boot up to the shell before the check, and tell the stub what to do."""

    def go(what: str, append: str = "", **fields: object) -> tuple[Machine, Shell]:
        vm = boot(
            kernel=bookworm.kernel,
            initrd=stubbed,
            disks=(Disk(small_disk()),),
            append=f"quiet root=LABEL=small-root rw rd.break=pre-mount fsck.mode=force {append}",
            allow=("banner",),
            **fields,
        )
        shell = Shell.rescue(vm, "pre-mount")
        shell.check(f"echo {what} > /run/check")
        return vm, shell

    return go


@pytest.mark.fault("F2", "F3")
def test_a_check_that_needs_a_person_stops_the_boot_before_the_root_is_mounted(
    start: Callable[..., tuple[Machine, Shell]], witness_of: Testimony
) -> None:
    vm, shell = start("4")
    for status, cause in (
        (4, "/dev/vda1 (ext4) has errors that its check did not correct (exit status 4)"),
        (6, "/dev/vda1 (ext4) has errors that its check did not correct (exit status 6)"),
        (12, "/dev/vda1 (ext4) has errors that its check did not correct (exit status 12)"),
        (2, "the check of /dev/vda1 asks for a restart of the machine (exit status 2)"),
        (3, "the check of /dev/vda1 asks for a restart of the machine (exit status 3)"),
        (32, "the check of /dev/vda1 was stopped before its end (exit status 32)"),
    ):
        shell.check(f"echo {status} > /run/check")
        shell.leave()
        shell = Shell.rescue(vm, "mount")
        explanation = shell.check("pyinit explain")
        assert explanation.splitlines()[0] == f"E-FSCK root: {cause}"
        assert "/usr/sbin/fsck.ext4 -a -C 3 -f /dev/vda1" in explanation
        assert "fsck: the stub looked at /dev/vda1 with -a" in explanation
        assert "/sysroot" not in shell.check("cat /proc/mounts")

    shell.check("echo hang > /run/check")
    shell.leave()
    vm.expect(r"pyinit: checking the file system on /dev/vda1 since \d+ s, 80 % done; Ctrl-C stops it")
    vm.send_bytes(b"\x03")
    shell = Shell.rescue(vm, "mount")
    assert "E-FSCK root: the check of /dev/vda1 was stopped" in shell.check("pyinit explain")

    shell.check("echo 1 > /run/check")
    shell.leave()
    seen = witness_of(vm)
    assert "pyinit: /dev/vda1 was repaired (exit status 1): the stub looked at /dev/vda1" in vm.console
    assert not seen.root.read_only
    assert "/run/initramfs/fsck-root" in seen.run


@pytest.mark.fault("F2", "F3")
@pytest.mark.parametrize(
    ("what", "how"), [("8", "exit status 8"), ("128", "exit status 128"), ("signal", "signal 9")]
)
def test_a_check_that_did_not_work_makes_the_root_read_only_and_the_real_system_checks(
    what: str, how: str, start: Callable[..., tuple[Machine, Shell]], witness_of: Testimony
) -> None:
    vm, shell = start(what)
    shell.leave()
    seen = witness_of(vm)
    assert f"pyinit: warning: /dev/vda1 could not be checked ({how}): the stub looked at" in vm.console
    assert seen.root.read_only
    assert "/run/initramfs/fsck-root" not in seen.run


@pytest.mark.fault("F2")
def test_errors_can_be_booted_with_read_only(
    start: Callable[..., tuple[Machine, Shell]], witness_of: Testimony
) -> None:
    vm, shell = start("4", "rd.pyinit.fsck.on-fail=ro")
    shell.leave()
    seen = witness_of(vm)
    assert "pyinit: warning: /dev/vda1 has errors that need a person" in vm.console
    assert seen.root.read_only
    assert "norecovery" in seen.root.options or "noload" in seen.root.options
    assert "/run/initramfs/fsck-root" not in seen.run


@pytest.mark.fault("F4")
def test_damage_that_only_a_person_repairs_is_repaired_with_the_command_that_is_named(
    boot: Callable[..., Machine],
    bookworm: DebianRoot,
    generic: Path,
    small_disk: Callable[..., Path],
    tmp_path: Path,
    witness_of: Testimony,
    expect_screen: Callable[[Machine, str], None],
) -> None:
    broken = tmp_path / "disk.img"
    shutil.copyfile(small_disk(), broken)
    broken.chmod(0o644)
    # Two files that claim the same block: nothing can be known about whose it is.
    place = subprocess.run(
        ["debugfs", "-R", "blocks /usr/lib/os-release", f"{broken}?offset={PARTITION}"],
        capture_output=True, text=True, check=True,
    ).stdout.split()[0]  # fmt: skip
    script = "/usr/sbin/init-script"
    request = (
        f"set_super_value state 2\nset_inode_field {script} flags 0\n"
        f"set_inode_field {script} block[0] {place}\n"
    )
    subprocess.run(
        ["debugfs", "-w", "-f", "-", f"{broken}?offset={PARTITION}"],
        input=request, text=True, capture_output=True, check=True,
    )  # fmt: skip
    vm = boot(
        kernel=bookworm.kernel,
        initrd=generic,
        disks=(Disk(broken),),
        append="quiet root=LABEL=small-root rw",
        allow=("banner",),
    )
    shell = Shell.rescue(vm, "mount")
    expect_screen(vm, "E-FSCK")
    assert "/sysroot" not in shell.check("cat /proc/mounts")
    assert shell.run("/usr/sbin/fsck.ext4 -y /dev/vda1").status == 1
    shell.leave()
    seen = witness_of(vm)
    assert not seen.root.read_only
    assert "/run/initramfs/fsck-root" in seen.run


@pytest.mark.fault("X5", "F2")
def test_a_check_that_works_keeps_the_watchdog_from_resetting_the_machine(
    start: Callable[..., tuple[Machine, Shell]], witness_of: Testimony
) -> None:
    vm, shell = start("work", "rd.pyinit.watchdog=15", watchdog=True)
    shell.leave()
    seen = witness_of(vm)
    assert seen.boot is not None
    (check,) = (child for child in seen.boot["children"] if child["argv"][0].endswith("fsck.ext4"))
    assert check["status"] == 0
    assert check["end"] - check["start"] > 20_000_000
