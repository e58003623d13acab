"""Why a device is not there, as far as that can be found out."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from pyinit.config import devspec
from pyinit.devices.view import DeviceView
from pyinit.devices.waiting import describe
from pyinit.errors import BootError
from pyinit.kernel.modules import Modules, driverless_modaliases
from pyinit.text import printable

# What leads to disks, by modalias: PCI mass storage (base class 01) and USB hosts (0c03), virtio block and
# SCSI devices (virtio 1.2, section 5), Xen's and Hyper-V's disks.
_STORAGE = (
    "pci:*bc01sc*",
    "pci:*bc0Csc03*",
    "virtio:d00000002v*",
    "virtio:d00000008v*",
    "xen:vbd",
    "vmbus:d96361baa104294d*",
)


def missing_device(
    cause: str,
    spec: devspec.DeviceSpec,
    known: list[DeviceView],
    modules: Modules,
    events: int,
    waiting: Iterable[str] = (),
) -> BootError:
    """Explain an expired want: the block devices there are, the nearest one, controllers without a driver.

    ``waiting`` says, printable, what the storage stacks lack.
    """
    found = _present(known)
    advice: list[str] = []
    for view, difference in devspec.nearest(spec, known)[:3]:
        found.append(f"nearest: {printable(view.node)}: {difference}")
    idle = [
        alias
        for alias in sorted(set(driverless_modaliases(("pci", "virtio", "vmbus", "xen"))))
        if any(fnmatchcase(alias, pattern) for pattern in _STORAGE)
    ]
    for alias in idle:
        claims = ", ".join(modules.matching(alias))
        state = f"not taken by {claims}" if claims else "no module of this image claims it"
        found.append(f"controller without a driver: {printable(alias)}: {state}")
    found += waiting
    opened = " ".join(view.properties.get("DM_UUID", "") for view in known)
    for view in known:
        uuid = view.properties.get("ID_FS_UUID", "")
        if view.properties.get("ID_FS_TYPE") == "crypto_LUKS" and uuid.replace("-", "") not in opened:
            advice.append(f"It may be inside the encrypted volume: pyinit set rd.luks.uuid={printable(uuid)}")
    if idle:
        advice.append("A driver may be missing: build the image with --mode generic or --module NAME.")
    advice.append("Correct root= here: pyinit set root=UUID=..., then leave the shell.")
    advice.append("If the device only needs longer: rd.timeout=SECONDS, or rootwait for ever.")
    tried = (f"waited for udev to announce {devspec.describe(spec)}; {events} events came",)
    return BootError("E-DEV", cause, tried=tried, found=tuple(found), advice=tuple(advice))


def no_root_given(line: str, known: list[DeviceView]) -> BootError:
    """Explain a command line without ``root=``; ``line`` is printable."""
    return BootError(
        "E-NOROOT",
        "no root= was given",
        tried=(f"the kernel command line: {line}",),
        found=tuple(_present(known)),
        advice=(
            "Name one of them here: pyinit set root=UUID=..., then leave the shell.",
            "Add root=UUID=... (or LABEL=, PARTUUID=, /dev/...) to the boot loader's kernel command line.",
        ),
    )


def _present(known: list[DeviceView]) -> list[str]:
    return [describe(view) for view in sorted(known, key=lambda view: view.number)] or [
        "no block device at all"
    ]
