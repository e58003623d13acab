"""What a virtual machine is made of, and the QEMU command line that makes it: values and pure functions.

Everything that a guest could see and that QEMU would otherwise choose is fixed: devices, their places on the
bus, serial numbers, the clock. The builders hold for QEMU 7.2 and later.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

MIB = 1 << 20

Interface = Literal["virtio", "scsi", "nvme", "ahci", "usb"]
AcceleratorName = Literal["tcg", "kvm"]
MachineType = Literal["q35", "pc"]
Operation = Literal["read", "write", "flush", "discard", "write-zeroes"]
Program = tuple[str, ...]

INTERFACES: tuple[str, ...] = get_args(Interface)
OPERATIONS: tuple[str, ...] = get_args(Operation)
PROGRAM: Program = ("qemu-system-x86_64",)

_SERIAL_LIMIT = {"virtio": 20, "nvme": 20, "ahci": 20, "scsi": 36, "usb": 36}
NETWORK = "net0"
MAC = "52:54:00:70:79:69"

_AHCI_PORTS = 6
_PCI_PORTS = 15 * 8


@dataclass(frozen=True)
class IoError:
    """Requests of a disk that fail, as QEMU's blkdebug makes them."""

    sector: int | None = None
    """Only requests that touch this sector of 512 bytes; None: all."""
    on: Operation = "read"
    error: str = "EIO"
    """Its name in errno(3)."""
    once: bool = False
    """The first such request fails, and no other."""

    def __post_init__(self) -> None:
        if self.on not in OPERATIONS:
            raise ValueError(f"operation {self.on!r} is not one of {', '.join(OPERATIONS)}")
        if not hasattr(errno, self.error):
            raise ValueError(f"{self.error!r} is no error of errno(3); EIO, ENOSPC, ETIMEDOUT are some")
        if self.sector is not None and self.sector < 0:
            raise ValueError(f"a disk has no sector {self.sector}")


@dataclass(frozen=True)
class Disk:
    """A disk image and how the guest sees it."""

    path: Path | str
    """A raw image, or a block device of the host."""
    interface: Interface = "virtio"
    serial: str = ""
    """Printable ASCII, at most 20 characters (scsi and usb: 36). Empty: ``disk0``, ``disk1``..."""
    readonly: bool = False
    """The medium cannot be written; not possible for ahci."""
    snapshot: bool = True
    """Writes go to an overlay that lives as long as the machine; False: they go to the image."""
    late: bool = False
    """Absent until plugged in."""
    errors: tuple[IoError, ...] = ()
    """Requests that fail from the start; ``vm.faults`` changes that."""

    def clone(self, serial: str) -> Disk:
        """Return another disk with the same content: the same labels and UUIDs."""
        return replace(self, serial=serial)

    def __post_init__(self) -> None:
        if self.interface not in INTERFACES:
            raise ValueError(f"disk interface {self.interface!r} is not one of {', '.join(INTERFACES)}")
        if not re.fullmatch(rf"[!-~]{{0,{_SERIAL_LIMIT[self.interface]}}}", self.serial):
            raise ValueError(
                f"disk serial {self.serial!r}: at most {_SERIAL_LIMIT[self.interface]} of printable ASCII"
            )
        if self.interface == "ahci" and (self.readonly or self.late):
            raise ValueError("an ahci disk can be neither read-only nor late in QEMU: use scsi")


@dataclass(frozen=True)
class VmSpec:
    """A virtual machine, complete."""

    kernel: Path | str
    initrd: Path | str | None
    append: str = ""
    """Kernel command line words; they come after :func:`command_line`'s defaults and so win over them."""
    disks: tuple[Disk, ...] = ()
    memory: int = 512 * MIB
    """Bytes."""
    smp: int = 1
    accel: AcceleratorName = "tcg"
    cpu: str | None = None
    """QEMU's CPU model; None: ``host`` with KVM, else ``max`` (has RDRAND: no waiting for entropy)."""
    icount: bool = False
    """The guest's clock counts instructions (TCG, one CPU): durations repeat, idle time is skipped."""
    instant_disks: bool = False
    """Reading a disk takes the guest no time: with ``icount``, a machine has this wherever the host can do it
    (:mod:`pyinit_qemu.icount`)."""
    machine: MachineType = "q35"
    vga: bool = False
    watchdog: bool = False
    """An i6300esb that resets the guest."""
    network: bool = False
    """A network card, :data:`MAC`, on a network with nobody but a DHCP server (10.0.2.2)."""
    report: bool = True
    """Ask a pyinit image to report on the result channel."""
    extra: tuple[str, ...] = ()
    """Further words of QEMU's command line."""

    def __post_init__(self) -> None:
        if self.icount and (self.accel != "tcg" or self.smp != 1):
            raise ValueError("icount needs accel=tcg and smp=1")
        if self.machine not in get_args(MachineType):
            raise ValueError(f"machine {self.machine!r} is not one of {', '.join(get_args(MachineType))}")
        if self.memory < MIB or self.memory % MIB:
            raise ValueError(f"memory of {self.memory} bytes is not a whole number of MiB")
        if sum(disk.interface == "ahci" for disk in self.disks) > _AHCI_PORTS:
            raise ValueError(f"more than {_AHCI_PORTS} ahci disks")
        if sum(disk.interface in ("virtio", "nvme") for disk in self.disks) > _PCI_PORTS:
            raise ValueError(f"more than {_PCI_PORTS} virtio and nvme disks: use scsi")
        serials = [serial_of(self, index) for index in range(len(self.disks))]
        if len(set(serials)) != len(serials):
            raise ValueError(f"two disks have the same serial: {', '.join(serials)}")

    def replace(self, **changes: Any) -> VmSpec:
        """Return a copy with the given fields changed."""
        return replace(self, **changes)


@dataclass(frozen=True)
class Endpoints:
    """Where the machine's outside ends are: QEMU character device back-ends, and a folder."""

    console: str = "stdio,mux=on,signal=off"
    """First serial port. The default is this terminal, with QEMU's monitor on Ctrl-A C."""
    channel: str = "null"
    """Second serial port, the result channel."""
    qmp: str | None = None
    """Control connection."""
    overlays: Path = field(default_factory=lambda: Path("."))
    """Folder with an empty overlay for each disk that has one (:func:`overlays`)."""
    paused: bool = False
    """Start with the CPUs stopped."""


def serial_of(spec: VmSpec, index: int) -> str:
    return spec.disks[index].serial or f"disk{index}"


def cpu_model(spec: VmSpec) -> str:
    return spec.cpu or ("host" if spec.accel == "kvm" else "max")


def command_line(spec: VmSpec) -> str:
    """Return the guest's kernel command line.

    Defaults come first, so that a word in ``append`` wins: the console (unless ``append`` names one),
    ``panic=-1``, by which a panic ends QEMU at once instead of leaving a dead guest to be waited for, and the
    result channel.
    """
    words = ["panic=-1"]
    if not re.search(r"(?:^|\s)console=", spec.append):
        words.insert(0, "console=ttyS0")
    if spec.report:
        words.append("rd.pyinit.report=/dev/ttyS1")
    if spec.append:
        words.append(spec.append)
    return " ".join(words)


def node_name(index: int) -> str:
    """The block node that the disk's device is attached to."""
    return f"disk{index}"


def device_id(index: int) -> str:
    return f"dev{index}"


def overlay_name(index: int) -> str:
    return f"disk{index}.qcow2"


def overlays(spec: VmSpec) -> dict[str, Path]:
    """Return the overlays that the machine needs: file name to the disk image below it."""
    return {
        overlay_name(index): Path(disk.path)
        for index, disk in enumerate(spec.disks)
        if disk.snapshot and not disk.readonly
    }


def block_nodes(spec: VmSpec, index: int, folder: Path) -> list[dict[str, Any]]:
    """Return the ``-blockdev`` objects of one disk, lowest first; the last one is :func:`node_name`.

    A throttle without limits is always there: faults can be chosen when the machine runs.
    """
    disk = spec.disks[index]
    name = node_name(index)
    layered = disk.snapshot and not disk.readonly
    path = os.path.abspath(disk.path)
    # /dev/shm is a file system in memory.
    device = path.startswith("/dev/") and not path.startswith("/dev/shm/")
    method = {"aio": "io_uring"} if spec.instant_disks else {}
    data = f"{name}-data"
    nodes: list[dict[str, Any]] = [
        {
            "driver": "raw",
            "node-name": f"{name}-image" if layered else data,
            "read-only": disk.readonly or layered,
            "file": {
                "driver": "host_device" if device else "file",
                "filename": path,
                "read-only": disk.readonly or layered,
                **method,
            },
        }
    ]
    if layered:
        nodes.append(
            {
                "driver": "qcow2",
                "node-name": data,
                "file": {"driver": "file", "filename": str(folder / overlay_name(index)), **method},
                "backing": f"{name}-image",
                # What is thrown away need not reach the medium.
                "cache": {"no-flush": True},
            }
        )
    nodes.append(
        {
            "driver": "throttle",
            "node-name": f"{name}-throttle",
            "throttle-group": throttle_group(index),
            "read-only": disk.readonly,
            "file": data,
        }
    )
    if disk.errors:
        nodes.append(error_node(index, disk.errors) | {"read-only": disk.readonly})
    return [*nodes, top_node(index, disk, erring=bool(disk.errors))]


def throttle_group(index: int) -> str:
    return f"limits{index}"


def error_node(index: int, errors: Sequence[IoError]) -> dict[str, Any]:
    """Return the filter that makes requests fail; it stands on the throttle."""
    rules = []
    for error in errors:
        rule = {"event": "none", "iotype": error.on, "errno": getattr(errno, error.error), "once": error.once}
        # A rule without a sector is for requests everywhere.
        rules.append(rule if error.sector is None else rule | {"sector": error.sector})
    name = node_name(index)
    return {
        "driver": "blkdebug",
        "node-name": f"{name}-errors",
        "image": f"{name}-throttle",
        "inject-error": rules,
    }


def top_node(index: int, disk: Disk, *, erring: bool) -> dict[str, Any]:
    """Return the node that the device is attached to: of the raw format, because its ``file`` can be changed
    while the machine runs (``blockdev-reopen``), and a filter's cannot."""
    name = node_name(index)
    below = f"{name}-errors" if erring else f"{name}-throttle"
    return {"driver": "raw", "node-name": name, "read-only": disk.readonly, "file": below}


def disk_device(spec: VmSpec, index: int) -> dict[str, Any]:
    """Return the ``-device`` object of one disk; ``device_add`` takes the same."""
    disk = spec.disks[index]
    device: dict[str, Any] = {"driver": "", "id": device_id(index), "drive": node_name(index)}
    serial = serial_of(spec, index)
    match disk.interface:
        case "virtio":
            device |= {"driver": "virtio-blk-pci", "bus": _pci_bus(spec, index), "serial": serial}
        case "nvme":
            device |= {"driver": "nvme", "bus": _pci_bus(spec, index), "serial": serial}
        case "scsi":
            device |= {"driver": "scsi-hd", "bus": "scsi.0", "scsi-id": index, "serial": serial}
        case "ahci":
            port = sum(other.interface == "ahci" for other in spec.disks[:index])
            bus = f"ide.{port}" if spec.machine == "q35" else f"ahci.{port}"
            device |= {"driver": "ide-hd", "bus": bus, "serial": serial}
        case "usb":
            device |= {"driver": "usb-storage", "bus": "usb.0", "serial": serial}
    if spec.instant_disks and disk.interface == "virtio":
        device["ioeventfd"] = False
    return device


def _pci_bus(spec: VmSpec, index: int) -> str:
    return f"port{index}" if spec.machine == "q35" else "pci.0"


def controllers(spec: VmSpec) -> list[dict[str, Any]]:
    """Return the devices that are there before any disk.

    On q35 every PCI disk, late or not, has a PCIe root port of its own, as NVMe disks have in real machines:
    only behind such a port can a device come and go. The ports are functions of the slots from 0x10 on.
    """
    devices: list[dict[str, Any]] = [{"driver": "virtio-rng-pci", "addr": "0x2"}]
    used = {disk.interface for disk in spec.disks}
    if "scsi" in used:
        method = {"ioeventfd": False} if spec.instant_disks else {}
        devices.append({"driver": "virtio-scsi-pci", "id": "scsi", "addr": "0x3", **method})
    if "usb" in used:
        devices.append({"driver": "qemu-xhci", "id": "usb", "addr": "0x4", "p2": 15, "p3": 15})
    if "ahci" in used and spec.machine != "q35":
        devices.append({"driver": "ahci", "id": "ahci", "addr": "0x5"})
    if spec.vga:
        devices.append({"driver": "VGA", "addr": "0x6"})
    if spec.watchdog:
        devices.append({"driver": "i6300esb", "addr": "0x7"})
    if spec.network:
        devices.append({"driver": "virtio-net-pci", "netdev": NETWORK, "mac": MAC, "addr": "0x8"})
    if spec.machine == "q35":
        pci = [index for index, disk in enumerate(spec.disks) if disk.interface in ("virtio", "nvme")]
        for place, index in enumerate(pci):
            slot, function = 0x10 + place // 8, place % 8
            port = {
                "driver": "pcie-root-port",
                "id": f"port{index}",
                "chassis": index + 1,
                "addr": f"{slot:#x}.{function}",
            }
            if function == 0:
                port["multifunction"] = True
            devices.append(port)
    return devices


def argv(spec: VmSpec, endpoints: Endpoints, program: Program = PROGRAM) -> list[str]:
    """Return QEMU's argument list, the program first."""
    arguments = [*program, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    arguments += ["-machine", spec.machine, "-accel", spec.accel, "-cpu", cpu_model(spec)]
    arguments += ["-smp", str(spec.smp), "-m", f"{spec.memory // MIB}M"]
    arguments += ["-rtc", "base=2024-01-01T00:00:00,clock=vm"]
    if spec.icount:
        # sleep=off: while the guest idles its clock jumps to the next timer instead of waiting for it.
        arguments += ["-icount", "shift=0,sleep=off"]
    arguments += ["-kernel", os.path.abspath(spec.kernel)]
    if spec.initrd is not None:
        arguments += ["-initrd", os.path.abspath(spec.initrd)]
    arguments += ["-append", command_line(spec)]
    arguments += ["-chardev", _chardev(endpoints.console, "console"), "-serial", "chardev:console"]
    arguments += ["-chardev", _chardev(endpoints.channel, "channel"), "-serial", "chardev:channel"]
    if endpoints.qmp is not None:
        arguments += ["-chardev", _chardev(endpoints.qmp, "qmp"), "-mon", "chardev=qmp,mode=control"]
    elif endpoints.console.startswith("stdio"):
        arguments += ["-mon", "chardev=console,mode=readline"]
    if spec.watchdog:
        arguments += ["-action", "watchdog=reset"]
    if spec.network:
        arguments += ["-netdev", f"user,id={NETWORK},restrict=on"]
    for device in controllers(spec):
        arguments += ["-device", _json(device)]
    for index, disk in enumerate(spec.disks):
        arguments += ["-object", f"throttle-group,id={throttle_group(index)}"]
        for node in block_nodes(spec, index, endpoints.overlays):
            arguments += ["-blockdev", _json(node)]
        if not disk.late:
            arguments += ["-device", _json(disk_device(spec, index))]
    if endpoints.paused:
        arguments.append("-S")
    return arguments + list(spec.extra)


def boot_command(spec: VmSpec) -> str:
    """Return the ``pyinit-qemu boot`` command for this machine.

    Screen, network, watchdog, faults and ``extra`` cannot be said there; ``cmdline.sh`` among a test's
    artifacts has them.
    """
    words = ["pyinit-qemu", "boot", "--kernel", str(spec.kernel), "--accel", spec.accel]
    if spec.initrd is not None:
        words += ["--initrd", str(spec.initrd)]
    for disk in spec.disks:
        options = [str(disk.path).replace(",", ",,"), f"interface={disk.interface}"]
        options += [f"serial={disk.serial}"] if disk.serial else []
        options += ["readonly"] if disk.readonly else [] if disk.snapshot else ["write"]
        words += ["--disk", ",".join(options)]
    words += ["--append", spec.append] if spec.append else []
    words += ["--cpu", spec.cpu] if spec.cpu else []
    words += ["--machine", spec.machine, "--memory", str(spec.memory // MIB), "--smp", str(spec.smp)]
    words += ["--icount"] if spec.icount else []
    return shlex.join(words)


def to_json(spec: VmSpec) -> str:
    """Return the specification as JSON text, for a person to read beside a failed boot."""
    values = {item.name: getattr(spec, item.name) for item in fields(spec)}
    values["disks"] = [asdict(disk) for disk in spec.disks]
    return json.dumps(values, indent=2, default=str) + "\n"


def _chardev(backend: str, identity: str) -> str:
    kind, _, options = backend.partition(",")
    return f"{kind},id={identity}" + (f",{options}" if options else "")


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))
