from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu import MIB, Disk, IoError, VmSpec, many
from pyinit_qemu.cli import parse_disk, parser
from pyinit_qemu.machine import replay_script
from pyinit_qemu.overlay import MAX_SIZE, empty_overlay
from pyinit_qemu.spec import Endpoints, argv, boot_command, command_line

SOCKETS = Endpoints("socket,fd=3", "socket,fd=4", "socket,fd=5", Path("/tmp/x"), paused=True)

PLAIN = """\
qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot
-machine q35 -accel tcg -cpu max
-smp 1 -m 512M
-rtc base=2024-01-01T00:00:00,clock=vm
-kernel /k -initrd /i
-append 'console=ttyS0 panic=-1 rd.pyinit.report=/dev/ttyS1'
-chardev socket,id=console,fd=3 -serial chardev:console
-chardev socket,id=channel,fd=4 -serial chardev:channel
-chardev socket,id=qmp,fd=5 -mon chardev=qmp,mode=control
-device '{"driver":"virtio-rng-pci","addr":"0x2"}'
-S"""

FULL = """\
qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot
-machine q35 -accel tcg -cpu qemu64
-smp 1 -m 256M
-rtc base=2024-01-01T00:00:00,clock=vm
-icount shift=0,sleep=off
-kernel /k
-append 'panic=-1 console=tty0 quiet'
-chardev socket,id=console,fd=3 -serial chardev:console
-chardev socket,id=channel,fd=4 -serial chardev:channel
-chardev socket,id=qmp,fd=5 -mon chardev=qmp,mode=control
-action watchdog=reset
-netdev user,id=net0,restrict=on
-device '{"driver":"virtio-rng-pci","addr":"0x2"}'
-device '{"driver":"virtio-scsi-pci","id":"scsi","addr":"0x3"}'
-device '{"driver":"qemu-xhci","id":"usb","addr":"0x4","p2":15,"p3":15}'
-device '{"driver":"VGA","addr":"0x6"}'
-device '{"driver":"i6300esb","addr":"0x7"}'
-device '{"driver":"virtio-net-pci","netdev":"net0","mac":"52:54:00:70:79:69","addr":"0x8"}'
-device '{"driver":"pcie-root-port","id":"port0","chassis":1,"addr":"0x10.0","multifunction":true}'
-device '{"driver":"pcie-root-port","id":"port2","chassis":3,"addr":"0x10.1"}'
-object throttle-group,id=limits0
-blockdev '{"driver":"raw","node-name":"disk0-image","read-only":true,"file":{"driver":"file",\
"filename":"/a","read-only":true}}'
-blockdev '{"driver":"qcow2","node-name":"disk0-data",\
"file":{"driver":"file","filename":"/tmp/x/disk0.qcow2"},\
"backing":"disk0-image","cache":{"no-flush":true}}'
-blockdev '{"driver":"throttle","node-name":"disk0-throttle","throttle-group":"limits0",\
"read-only":false,"file":"disk0-data"}'
-blockdev '{"driver":"blkdebug","node-name":"disk0-errors","image":"disk0-throttle",\
"inject-error":[{"event":"none","iotype":"read","errno":5,"once":false,"sector":8},\
{"event":"none","iotype":"write","errno":28,"once":true}],"read-only":false}'
-blockdev '{"driver":"raw","node-name":"disk0","read-only":false,"file":"disk0-errors"}'
-device '{"driver":"virtio-blk-pci","id":"dev0","drive":"disk0","bus":"port0","serial":"root"}'
-object throttle-group,id=limits1
-blockdev '{"driver":"raw","node-name":"disk1-data","read-only":true,"file":{"driver":"host_device",\
"filename":"/dev/loop9","read-only":true}}'
-blockdev '{"driver":"throttle","node-name":"disk1-throttle","throttle-group":"limits1",\
"read-only":true,"file":"disk1-data"}'
-blockdev '{"driver":"raw","node-name":"disk1","read-only":true,"file":"disk1-throttle"}'
-device '{"driver":"scsi-hd","id":"dev1","drive":"disk1","bus":"scsi.0","scsi-id":1,"serial":"disk1"}'
-object throttle-group,id=limits2
-blockdev '{"driver":"raw","node-name":"disk2-data","read-only":false,"file":{"driver":"file",\
"filename":"/c","read-only":false}}'
-blockdev '{"driver":"throttle","node-name":"disk2-throttle","throttle-group":"limits2",\
"read-only":false,"file":"disk2-data"}'
-blockdev '{"driver":"raw","node-name":"disk2","read-only":false,"file":"disk2-throttle"}'
-object throttle-group,id=limits3
-blockdev '{"driver":"raw","node-name":"disk3-data","read-only":false,"file":{"driver":"file",\
"filename":"/d","read-only":false}}'
-blockdev '{"driver":"throttle","node-name":"disk3-throttle","throttle-group":"limits3",\
"read-only":false,"file":"disk3-data"}'
-blockdev '{"driver":"raw","node-name":"disk3","read-only":false,"file":"disk3-throttle"}'
-device '{"driver":"ide-hd","id":"dev3","drive":"disk3","bus":"ide.0","serial":"disk3"}'
-object throttle-group,id=limits4
-blockdev '{"driver":"raw","node-name":"disk4-data","read-only":false,"file":{"driver":"file",\
"filename":"/e","read-only":false}}'
-blockdev '{"driver":"throttle","node-name":"disk4-throttle","throttle-group":"limits4",\
"read-only":false,"file":"disk4-data"}'
-blockdev '{"driver":"raw","node-name":"disk4","read-only":false,"file":"disk4-throttle"}'
-device '{"driver":"usb-storage","id":"dev4","drive":"disk4","bus":"usb.0","serial":"disk4"}'
-S -d int"""

MANY = VmSpec(
    "/k",
    None,
    append="console=tty0 quiet",
    disks=(
        Disk("/a", serial="root", errors=(IoError(8), IoError(on="write", error="ENOSPC", once=True))),
        Disk("/dev/loop9", "scsi", readonly=True),
        Disk("/c", "nvme", late=True, snapshot=False),
        Disk("/d", "ahci", snapshot=False),
        Disk("/e", "usb", snapshot=False),
    ),
    memory=256 * MIB,
    cpu="qemu64",
    icount=True,
    vga=True,
    watchdog=True,
    network=True,
    report=False,
    extra=("-d", "int"),
)


@pytest.mark.parametrize("spec, golden", [(VmSpec("/k", "/i"), PLAIN), (MANY, FULL)])
def test_arguments(spec: VmSpec, golden: str) -> None:
    assert argv(spec, SOCKETS) == shlex.split(golden)


def test_kvm_uses_the_hosts_cpu() -> None:
    arguments = argv(VmSpec("/k", None, accel="kvm"), SOCKETS)
    assert arguments[arguments.index("-accel") :][:4] == ["-accel", "kvm", "-cpu", "host"]


def test_words_of_the_caller_win() -> None:
    # The kernel takes the last panic=; every console= gets the messages, so there must be no second one.
    assert command_line(VmSpec("/k", None, "panic=0 x")).split() == [
        "console=ttyS0",
        "panic=-1",
        "rd.pyinit.report=/dev/ttyS1",
        "panic=0",
        "x",
    ]
    assert "ttyS0" not in command_line(VmSpec("/k", None, "quiet console=hvc0"))
    assert "console=ttyS0" in command_line(VmSpec("/k", None, "netconsole=x"))


@pytest.mark.parametrize(
    "values, reason",
    [
        ({"icount": True, "accel": "kvm"}, "icount needs"),
        ({"icount": True, "smp": 2}, "icount needs"),
        ({"machine": "microvm"}, "not one of q35, pc"),
        ({"memory": 1000}, "whole number of MiB"),
        ({"disks": (Disk("/a", "ahci"),) * 7}, "more than 6 ahci"),
        ({"disks": (Disk("/a", serial="x"), Disk("/b", serial="x"))}, "same serial"),
        ({"disks": tuple(Disk("/a", serial=f"s{n}") for n in range(121))}, "use scsi"),
    ],
)
def test_impossible_machines(values: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        VmSpec("/k", None, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values, reason",
    [
        ({"interface": "floppy"}, "not one of virtio, scsi"),
        ({"serial": "x" * 21}, "at most 20"),
        ({"serial": "a b"}, "printable"),
        ({"interface": "ahci", "readonly": True}, "use scsi"),
        ({"interface": "ahci", "late": True}, "use scsi"),
    ],
)
def test_impossible_disks(values: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Disk("/a", **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text, disk",
    [
        ("a.img", Disk(Path("a.img"))),
        ("a,,b,interface=nvme,serial=S1,readonly", Disk(Path("a,b"), "nvme", "S1", readonly=True)),
        ("/x,write", Disk(Path("/x"), snapshot=False)),
    ],
)
def test_disks_on_the_command_line(text: str, disk: Disk) -> None:
    assert parse_disk(text) == disk


@pytest.mark.parametrize("text", ["a,interface=floppy", "a,serial", "a,readonly=1", "a,fast", "a,"])
def test_bad_disks_on_the_command_line(text: str) -> None:
    with pytest.raises(ValueError):
        parse_disk(text)


def test_the_replay_command_is_understood(tmp_path: Path) -> None:
    image = tmp_path / "a,b c"
    image.write_bytes(b"x")
    spec = VmSpec(image, image, "a b", (Disk(image, "nvme", "S", snapshot=False),), memory=MIB * 300)
    options = parser().parse_args(shlex.split(boot_command(spec))[1:])
    assert (options.kernel, options.initrd, options.append, options.memory) == (image, image, "a b", 300)
    assert options.disk == list(spec.disks)


def test_the_replay_script_is_shell(tmp_path: Path) -> None:
    image = tmp_path / "it's a disk"
    image.write_bytes(bytes(4096))
    script = tmp_path / "cmdline.sh"
    tell = tmp_path / "tell"
    tell.write_text('#!/bin/sh\nfor word; do echo "<$word>"; done\n')
    tell.chmod(0o755)
    script.write_text(replay_script(VmSpec("/k", None, "a 'b'", (Disk(image),)), (str(tell),)))
    run = subprocess.run(["sh", str(script)], capture_output=True, text=True, check=True)
    assert "<console=ttyS0 panic=-1 rd.pyinit.report=/dev/ttyS1 a 'b'>" in run.stdout
    assert (tmp_path / "disk0.qcow2").stat().st_size == 4 * 65536


@pytest.mark.parametrize("size", [0, MAX_SIZE + 1])
def test_sizes_without_an_overlay(size: int) -> None:
    with pytest.raises(ValueError):
        empty_overlay(size)


@pytest.mark.parametrize("size", [512, 10 * MIB + 512, 3 << 30, MAX_SIZE])
def test_qemu_takes_an_overlay(tmp_path: Path, size: int) -> None:
    path = tmp_path / "overlay"
    path.write_bytes(empty_overlay(size))
    node = {"driver": "qcow2", "node-name": "x", "file": {"driver": "file", "filename": str(path)}}
    commands = ["qmp_capabilities", "query-named-block-nodes", "quit"]
    words = "qemu-system-x86_64 -nodefaults -display none -machine none -qmp stdio -blockdev"
    qemu = subprocess.run(
        [*words.split(), json.dumps(node)],
        input="".join(json.dumps({"execute": command, "id": command}) + "\n" for command in commands),
        capture_output=True,
        text=True,
    )
    answers = {line.get("id"): line for line in map(json.loads, qemu.stdout.splitlines())}
    sizes = {
        item["node-name"]: item["image"]["virtual-size"]
        for item in answers["query-named-block-nodes"]["return"]
    }
    assert sizes["x"] == size, qemu.stderr


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IoError(on="seek"), "'seek' is not one of read, write, flush"),  # type: ignore[arg-type]
        (lambda: IoError(error="EBROKEN"), "'EBROKEN' is no error of errno"),
        (lambda: IoError(-1), "no sector -1"),
        (lambda: many(Disk("/a"), 0), "0 disks: a SCSI controller has room for 255"),
        (lambda: many(Disk("/a"), 256), "256 disks"),
    ],
)
def test_faults_that_cannot_be_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_clone_differs_in_its_serial_only() -> None:
    disk = Disk("/a", "scsi", errors=(IoError(),))
    assert disk.clone("other") == Disk("/a", "scsi", "other", errors=(IoError(),))
    # Two disks without a serial get one each.
    VmSpec("/k", None, disks=(disk, disk.clone("other"), *many(Disk("/b"), 200)))
