"""Why a device is not there, or no longer, as far as that can be found out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from errno import EIO, ENODEV, ENXIO, ESHUTDOWN
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from pyinit.config import devspec
from pyinit.devices.view import DeviceView
from pyinit.devices.waiting import describe
from pyinit.errors import BootError
from pyinit.kernel.files import names, read_if_there
from pyinit.kernel.messages import kernel_messages
from pyinit.kernel.modules import Modules, claims, driverless_devices
from pyinit.rescue.working import work
from pyinit.text import printable

if TYPE_CHECKING:
    from pyinit.config.options import BootConfig

_CONTROLLER = "pci:*bc01sc*"
# What leads to disks, by modalias: PCI mass storage (base class 01, the controllers), SD hosts (0805), USB
# hosts (0c03); block and SCSI devices of virtio (version 1.2, section 5); Xen's and Hyper-V's disks; USB mass
# storage (interface class 08); SCSI disks.
_STORAGE = (
    _CONTROLLER,
    "pci:*bc08sc05*",
    "pci:*bc0Csc03*",
    "virtio:d00000002v*",
    "virtio:d00000008v*",
    "xen:vbd",
    "vmbus:d96361baa104294d*",
    "usb:*ic08*",
    "scsi:t-0x00*",
)
# What is there without a disk, and counts when there is something on it.
_NO_DISKS = re.compile("(fd|loop|nbd|ram|sr|zram)[0-9]+")
_BUSES = ("pci", "virtio", "vmbus", "xen", "usb", "scsi")
_PCI = re.compile(r"pci:v0000([0-9A-F]{4})d0000([0-9A-F]{4})sv")
_PCI_DEVICES = "/sys/bus/pci/devices"
_CLAIMS = 3
# The words that name the devices.
_WORDS = {"root": "root", "/usr": "mount.usr", "overlay": "rd.overlay"}


def missing_device(
    cause: str,
    name: str,
    spec: devspec.DeviceSpec,
    known: list[DeviceView],
    modules: Modules,
    record: Mapping[str, Any],
    waiting: Iterable[str] = (),
    root: DeviceView | None = None,
) -> BootError:
    """Explain that ``name``, the root or a mount point, has no device.

    Found is what is there, the nearest device, what has no driver, and who is still at work.

    ``record`` is the boot record, ``waiting`` what the storage stacks lack, printable, and ``root`` the
    device of the root, which is no place for anything else.
    """
    found = present(known)
    near = [one for one in devspec.nearest(spec, known) if not root or one[0].sys_path != root.sys_path][:3]
    found += [f"nearest: {printable(view.node)}: {difference}" for view, difference in near]
    idle, advice = _without_driver(modules)
    nothing = _no_disk(known, idle)
    found += [*idle, *nothing[1:], *waiting, *work(record)]
    opened = " ".join(view.properties.get("DM_UUID", "") for view in known)
    for view in known:
        uuid = view.properties.get("ID_FS_UUID", "")
        if view.properties.get("ID_FS_TYPE") == "crypto_LUKS" and uuid.replace("-", "") not in opened:
            advice.append(f"It may be inside the encrypted volume: pyinit set rd.luks.uuid={printable(uuid)}")
    if members := [view for view in known if _is_firmware_raid(view)]:
        names = ", ".join(f"{printable(v.node)} ({printable(v.properties['ID_FS_TYPE'])})" for v in members)
        advice.append(
            f"It may be on the firmware's RAID, of which {names} is a part: that is not assembled here; only "
            "MD's own format is (docs/storage.md)."
        )
    right = _name(near[0][0]) if near else "UUID=..."
    correct = f"Correct the line for {printable(name)} in /sysroot/etc/fstab, then leave the shell."
    if name in _WORDS:
        correct = f"Correct it here: pyinit set {_WORDS[name]}={right}, then leave the shell."
    if nothing:
        advice.insert(0, nothing[0])
    else:
        advice.insert(0 if near else len(advice), correct)
    if devspec.incomplete(spec, known) and name == "root":
        advice.append(
            "To boot without the missing devices, once: pyinit set rootflags=degraded, then leave the shell."
        )
    if name == "overlay":
        advice.append("To keep changes in memory for this time: pyinit set rd.overlay=tmpfs.")
    advice.append("If the device only needs longer: rd.timeout=SECONDS, or rootwait for ever.")
    events = record["events"]["read"]
    tried = (f"waited for udev to announce {devspec.describe(spec)}; {events} events came",)
    return BootError("E-DEV", cause, tried=tried, found=tuple(found), advice=tuple(advice))


def _is_firmware_raid(view: DeviceView) -> bool:
    """Whether a disk has the metadata of a RAID that is not MD's own, by the names that blkid(8) gives."""
    kind = view.properties.get("ID_FS_TYPE", "")
    return kind.endswith("_raid_member") and kind != "linux_raid_member"


def _without_driver(modules: Modules) -> tuple[list[str], list[str]]:
    """What leads to disks and has no driver, with the modules that claim it; and what to do about it."""
    from pyinit.config.sealed import DRIVERS_PATH, parse_drivers

    absent = parse_drivers(read_if_there(DRIVERS_PATH))
    lines: list[str] = []
    build: dict[str, None] = {}
    refused: dict[str, None] = {}
    for device, alias in sorted(set(driverless_devices(_BUSES))):
        ours = modules.matching(alias)
        others = [
            name
            for name, patterns in absent.items()
            if name not in ours and any(claims(pattern, alias) for pattern in patterns)
        ]
        if not others and not any(fnmatchcase(alias, pattern) for pattern in _STORAGE):
            continue
        states = [f"{name} claims it: {modules.why_not(name)}" for name in ours[:_CLAIMS]]
        states += [f"{name} would claim it, and is not in this image" for name in others[:_CLAIMS]]
        lines.append(
            f"without a driver: {_device(device, alias)}: "
            + ("; ".join(map(printable, states)) or "no module of this kernel is known to claim it")
        )
        build |= dict.fromkeys(others[:_CLAIMS])
        refused |= dict.fromkeys(ours)
    messages = kernel_messages(500) if refused else []
    lines += [f"kernel: {line}" for name in refused for line in messages if line.startswith(f"{name}: ")][-4:]
    advice = []
    if build:
        words = " ".join(f"--module {name}" for name in build)
        advice.append(f"A driver may be missing: build the image with {printable(words)}, or --mode generic.")
    return lines, advice


def _no_disk(known: Iterable[DeviceView], idle: Iterable[str]) -> list[str]:
    """When there is no disk whose name could be typed: what to do, then what has a driver and shows none.

    ``idle`` tell what has no driver.
    """
    if not all(_NO_DISKS.fullmatch(view.name) and "ID_FS_TYPE" not in view.properties for view in known):
        return []
    lines = []
    for name in names(_PCI_DEVICES):
        alias = read_if_there(f"{_PCI_DEVICES}/{name}/modalias").strip().decode("ascii", "backslashreplace")
        driver = f"{_PCI_DEVICES}/{name}/driver"
        if fnmatchcase(alias, _CONTROLLER) and os.path.lexists(driver):
            by = printable(os.path.basename(os.path.realpath(driver)))
            lines.append(f"without a disk: {_device(name, alias)}: driven by {by}")
    if idle:
        why = "what leads to disks has no driver, as told above."
    elif lines:
        why = "look at its plug and power, and at the firmware's settings: RAID or VMD may hide it."
    else:
        why = "this machine has none, or the firmware has switched off what it is plugged into."
    return [f"The kernel sees no disk: {why}", *lines]


def _device(name: str, alias: str) -> str:
    """A device as a person finds it elsewhere: ``PCI 0000:00:1f.2 [8086:2922]``."""
    if numbers := _PCI.match(alias):
        return f"PCI {printable(name)} [{numbers[1].lower()}:{numbers[2].lower()}]"
    return f"{printable(name)} ({printable(alias)})"


def _name(view: DeviceView) -> str:
    """How to name a device so that it is the only one and will be tomorrow."""
    for tag, key in (("UUID", "ID_FS_UUID"), ("PARTUUID", "ID_PART_ENTRY_UUID")):
        if value := view.properties.get(key):
            return f"{tag}={printable(value)}"
    return printable(view.node)


def no_root_given(
    line: str, known: list[DeviceView], modules: Modules, remarks: Iterable[str] = ()
) -> BootError:
    """Explain a command line without ``root=``; ``line`` is printable.

    ``remarks`` say why no partition was found to be the root by its type.
    """
    idle, advice = _without_driver(modules)
    nothing = _no_disk(known, idle)
    return BootError(
        "E-NOROOT",
        "no root= was given",
        tried=(f"the kernel command line: {line}",),
        found=(*present(known), *((*idle, *nothing[1:]) if nothing else ()), *remarks),
        advice=(
            *(
                (nothing[0], *advice)
                if nothing
                else ("Name one of them here: pyinit set root=UUID=..., then leave the shell.",)
            ),
            "Add root=UUID=... (or LABEL=, PARTUUID=, /dev/...) to the boot loader's kernel command line.",
        ),
    )


def named(config: BootConfig) -> list[tuple[str, str]]:
    """The words that name devices, and what they name; ``gpt-auto`` names none."""
    overlay = config.overlay.device if config.overlay else ""
    words = {"root": config.root, "mount.usr": config.usr, "rd.overlay": overlay, "resume": config.resume}
    return [(word, value) for word, value in words.items() if value and not value.startswith("gpt-auto")]


def not_there(config: BootConfig, known: list[DeviceView]) -> list[str]:
    """What to say, a line each, of words that name a device which is not there now."""
    lines: list[str] = []
    for word, value in named(config):
        try:
            spec = devspec.parse_spec(value)
        except BootError as error:
            why = "; ".join((error.cause, *error.advice[:-1]))
            lines.append(why if word == "root" else f"{word}={printable(value)[:80]} names no device")
            continue
        if devspec.resolve(spec, known):
            continue
        near = [f"nearest: {printable(view.node)}: {text}" for view, text in devspec.nearest(spec, known, 3)]
        later = ", though what is on a volume or an array may come later" * (spec.kind is devspec.Kind.PATH)
        lines.append(f"no device is {devspec.describe(spec)} now{later}. There is:")
        lines += [f"  {line}" for line in (*near, *present(known))]
    return lines


def silent_root(exception: BaseException, root: DeviceView | None) -> BootError | None:
    """Explain a failure that came of the root's device: it is gone, or answers with errors.

    None when it came of something else. ``root`` is None for a root that a person mounted.
    """
    error = _io_error(exception)
    if error is None:
        return None
    name = f" on {printable(root.node)}" if root else ""
    found = [f"kernel: {line}" for line in kernel_messages(4)]
    if root:
        there = os.path.exists(root.sys_path)
        found.insert(0, f"{printable(root.node)} is {'still there' if there else 'gone'}")
    what = exception.cause if isinstance(exception, BootError) else str(exception)
    return BootError(
        "E-IO",
        f"the root file system{name} cannot be read any more: {error.strerror}",
        tried=(printable(what),),
        found=tuple(found),
        advice=(
            "Look at the disk, its cable, its controller; plug it in again if it was pulled out.",
            "Leaving the shell unmounts it, looks for the root again and mounts it.",
        ),
    )


def _io_error(exception: BaseException | None) -> OSError | None:
    """The error of a device from which an exception came, if it did."""
    seen: set[int] = set()
    while exception is not None and id(exception) not in seen:
        if isinstance(exception, OSError) and exception.errno in (EIO, ENXIO, ENODEV, ESHUTDOWN):
            return exception
        seen.add(id(exception))
        exception = exception.__cause__ or exception.__context__
    return None


def present(known: Iterable[DeviceView]) -> list[str]:
    """The block devices, a line each."""
    return [describe(view, _sectors(view)) for view in sorted(known, key=lambda view: view.number)] or [
        "no block device at all"
    ]


def _sectors(view: DeviceView) -> int:
    """Its size, from the kernel; 0 when it has none or is gone."""
    data = read_if_there(f"{view.sys_path}/size").strip()
    return int(data) if data.isdigit() else 0
