"""The modules of an image for one machine, and what its devices would miss in an image.

An image for one machine has three parts: what its root file system needs (:func:`wanted`), what its owner
would miss after a change of hardware (:data:`MARGIN`), and the dependencies of both.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass

from pyinit.text import printable

from .errors import BuildError
from .facts import CRYPTTAB, FSTAB, Block, Device, Facts
from .kmods import canonical

Find = Callable[[str], list[str]]
"""Module name or alias to modules: ``kmods.Kernel.find``."""

MOUNTINFO = "/proc/self/mountinfo"
GENERIC_HINT = "Build with --mode generic for an image that fits any machine."

#: Modules for kinds of mappings: what dm/uuid says (facts.Block.mapping), what is mapped, the modules.
MAPPINGS = (
    ("CRYPT-LUKS*", "LUKS", ("dm-crypt",)),
    ("CRYPT-VERITY-", "verity", ("dm-verity",)),
    ("CRYPT-INTEGRITY-", "integrity", ("dm-integrity",)),
    ("CRYPT-*", "encryption", ("dm-crypt",)),
    # Names of the layers: lib/activate/dev_manager.c and lib/misc/lvm-string.c of LVM2. A snapshot or a move
    # of data may be begun after the image was built and must not keep the volume from being activated.
    ("LVM-*", "LVM", ("dm-snapshot", "dm-mirror")),
    ("LVM-tpool", "LVM thin pool", ("dm-thin-pool",)),
    ("LVM-tdata", "LVM thin pool", ("dm-thin-pool",)),
    ("LVM-tmeta", "LVM thin pool", ("dm-thin-pool",)),
    ("LVM-pool", "LVM thin pool", ("dm-thin-pool",)),
    ("LVM-cdata", "LVM cache", ("dm-cache", "dm-cache-smq")),
    ("LVM-cmeta", "LVM cache", ("dm-cache", "dm-cache-smq")),
    ("LVM-cvol", "LVM cache", ("dm-cache", "dm-cache-smq", "dm-writecache")),
    ("LVM-vdata", "LVM deduplication", ("dm-vdo", "kvdo")),
    ("LVM-vpool", "LVM deduplication", ("dm-vdo", "kvdo")),
    ("*mpath-", "multipath", ("dm-multipath", "dm-round-robin", "dm-queue-length", "dm-service-time")),
)

#: The same for LVM's names of hidden volumes (lvmraid(7), lvmcache(7)).
HIDDEN_VOLUMES = (
    ("*_rimage_[0-9]*", "LVM RAID", ("dm-raid",)),
    ("*_rmeta_[0-9]*", "LVM RAID", ("dm-raid",)),
    ("*_mimage_[0-9]*", "LVM mirror", ("dm-mirror",)),
    ("*_corig", "LVM cache", ("dm-cache", "dm-cache-smq")),
    ("*_wcorig", "LVM write cache", ("dm-writecache",)),
    ("*_iorig", "LVM integrity", ("dm-integrity",)),
)

#: The cipher that LUKS takes unless told otherwise is aes-xts-plain64. cryptsetup opens the key slots with
#: the kernel's ciphers, too, through sockets (AF_ALG).
LUKS_CIPHERS = ("crypto-aes", "crypto-xts", "algif_skcipher")

#: Stacked devices that are neither dm nor md, by name.
STACKS = (("bcache*", ("bcache",)), ("drbd*", ("drbd",)))

#: File system types of fstab that name none.
NO_TYPES = ("auto", "none", "swap")

_KEYBOARD = "another keyboard"
_USB_PORT = "a keyboard or disk at another USB port"
_PORT = "the disk at another port, or the controller in another mode"
_ENCLOSURE = "the disk in a USB enclosure"
_VIRTUAL = "the disk moved into a virtual machine"
_RESCUE = "rescue media"

#: What an image for one machine has beyond that machine: paths below kernel/, and the change it is for. What
#: a pattern selects brings its dependencies. docs/host-mode.md argues each.
MARGIN = (
    ("drivers/usb/host/xhci-pci.*", _USB_PORT),
    ("drivers/usb/host/xhci-pci-renesas*", _USB_PORT),
    ("drivers/usb/host/ehci-pci*", _USB_PORT),
    ("drivers/usb/host/ohci-pci*", _USB_PORT),
    ("drivers/usb/host/uhci-hcd*", _USB_PORT),
    ("drivers/hid/usbhid/usbhid*", _KEYBOARD),
    ("drivers/hid/hid-generic*", _KEYBOARD),
    ("drivers/hid/hid-apple.*", _KEYBOARD),
    ("drivers/hid/hid-cherry.*", _KEYBOARD),
    ("drivers/hid/hid-corsair.*", _KEYBOARD),
    ("drivers/hid/hid-lenovo.*", _KEYBOARD),
    ("drivers/hid/hid-logitech*", _KEYBOARD),
    ("drivers/hid/hid-microsoft.*", _KEYBOARD),
    ("drivers/input/serio/i8042*", _KEYBOARD),
    ("drivers/input/keyboard/atkbd*", _KEYBOARD),
    ("drivers/ata/ahci.*", _PORT),
    ("drivers/nvme/host/nvme.*", _PORT),
    ("drivers/pci/controller/vmd*", _PORT),
    ("drivers/scsi/sd_mod*", _PORT),
    ("drivers/usb/storage/usb-storage*", _ENCLOSURE),
    ("drivers/usb/storage/uas*", _ENCLOSURE),
    ("drivers/virtio/virtio_pci.*", _VIRTUAL),
    ("drivers/block/virtio_blk*", _VIRTUAL),
    ("drivers/scsi/virtio_scsi*", _VIRTUAL),
    ("drivers/hv/hv_vmbus*", _VIRTUAL),
    ("drivers/scsi/hv_storvsc*", _VIRTUAL),
    ("drivers/input/serio/hyperv-keyboard*", _VIRTUAL),
    ("drivers/block/xen-blkfront*", _VIRTUAL),
    ("drivers/scsi/vmw_pvscsi*", _VIRTUAL),
    ("drivers/message/fusion/mptspi*", _VIRTUAL),
    ("drivers/ata/ata_piix*", _VIRTUAL),
    ("drivers/cdrom/cdrom*", _RESCUE),
    ("drivers/scsi/sr_mod*", _RESCUE),
    ("fs/isofs/*", _RESCUE),
    ("fs/fat/vfat*", _RESCUE),
    ("fs/nls/nls_cp437*", _RESCUE),
    ("fs/nls/nls_iso8859-1.*", _RESCUE),
    ("fs/nls/nls_ascii*", _RESCUE),
)

_DISK = "leads to disks"
_KEYS = "is a keyboard or leads to one"
_BOTH = "leads to disks and keyboards"

#: Modaliases of devices that a boot may need, on any machine, and why.
ESSENTIAL = (
    # PCI classes (include/linux/pci_ids.h): storage, SD hosts, USB hosts UHCI, OHCI, EHCI and xHCI.
    ("pci:*bc01sc*", _DISK),
    ("pci:*bc08sc05*", _DISK),
    ("pci:*bc0Csc03i[0-3]0*", _BOTH),
    # Devices and bridges of virtual machines: those of virtio have whatever class the device has.
    ("pci:v00001AF4d*", _BOTH),
    ("virtio:d00000002v*", _DISK),
    ("virtio:d00000008v*", _DISK),
    ("virtio:d00000012v*", _KEYS),
    ("virtio:d0000001Bv*", _DISK),
    ("usb:*ic08isc*", _DISK),
    ("usb:*ic03isc01ip01*", _KEYS),
    ("usb:*ic09isc*", _BOTH),
    # SCSI disks, and those that say they are of the kinds RBC, optical or zoned (include/scsi/scsi_proto.h).
    ("scsi:t-0x00*", _DISK),
    ("scsi:t-0x07*", _DISK),
    ("scsi:t-0x0e*", _DISK),
    ("scsi:t-0x14*", _DISK),
    ("mmc:block*", _DISK),
    ("nd:t*", _DISK),
    # Hyper-V (include/linux/hyperv.h): the bus, SCSI, Fibre Channel, IDE, PCI, the keyboard.
    ("acpi*:VMBUS:*", _BOTH),
    ("acpi*:MSFT1000:*", _BOTH),
    ("vmbus:d96361baa104294db60572e2ffb1dc7f*", _DISK),
    ("vmbus:4acc9b2f6900f34ab76b6fd0be528cda*", _DISK),
    ("vmbus:32264132cb86a2449b5c50d1417354f5*", _DISK),
    ("vmbus:1df6c444444400449d52802e27ede19f*", _DISK),
    ("vmbus:6dad12f9172bea48bd65f927a61c7684*", _KEYS),
    ("xen:vbd*", _DISK),
    ("xen:vscsi*", _DISK),
    ("xen:vkbd*", _KEYS),
    # Keyboard controllers: the names that ACPI and PNP have for them, and the port of the keyboard.
    ("acpi*:PNP030[0-9A-Fa-f]:*", _KEYS),
    ("pnp:dPNP030[0-9A-Fa-f]*", _KEYS),
    ("platform:i8042*", _KEYS),
    ("serio:ty06*", _KEYS),
)

#: An input device with keys that repeat, as those of keyboards do: it has event 0x14 (EV_REP in
#: input-event-codes.h). The letters are not in a modalias (struct input_device_id has keys from 0x71 on).
KEYBOARD = re.compile(r"input:[^-]*-e(?:[0-9A-F]+,)*14,")


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A device for which the kernel has a module that is not in an image."""

    path: str
    """Below /sys."""
    modalias: str
    modules: tuple[str, ...]
    """Those that are missing."""
    essential: bool
    """Whether a boot may fail without it, or nobody be able to type."""
    why: str
    """Why it is essential, or why not."""


def wanted(facts: Facts, find: Find) -> list[tuple[str, str]]:
    """What the boot of this machine needs: (module name or alias, reason), each once, in a stable order.

    A reason is a chain such as ``disk vda <- partition vda1 <- file system of / <- /etc/fstab line 3``. What
    ``find`` knows no module for is left out: it is built in, or nothing drives it.

    Raises :class:`BuildError` when the facts do not lead from / to a disk.
    """
    _check(facts)
    result: dict[str, str] = {}

    def want(names: Iterable[str], reason: str) -> None:
        for name in names:
            if find(name):
                result.setdefault(name, printable(reason))

    def want_device(device: Device, reason: str) -> None:
        here = f"{device.path.removeprefix('devices/')} <- {reason}"
        if device.modalias:
            want((device.modalias,), f"device {here}")
        if device.module and not (device.modalias and device.module in find(device.modalias)):
            want((device.module,), f"driver in use of {here}")

    for kind, reason in _types(facts):
        want((f"fs-{kind}",) if find(f"fs-{kind}") else (kind,), reason)
    reasons = _reasons(facts)
    used = [block for block in facts.blocks if block.name in reasons]
    for block in used:
        reason = reasons[block.name]
        for names, what in _block_modules(block):
            want(names, f"{what} <- {reason}" if what else reason)
        for device in block.devices:
            want_device(device, reason)
    for line in facts.crypttab:
        if "x-initrd.attach" in line.options:
            reason = f"x-initrd.attach of {line.name} <- {CRYPTTAB} line {line.line}"
            want(("dm-mod", "dm-crypt", *LUKS_CIPHERS), reason)
    if any(block.kind == "dm" for block in used):
        want(facts.mappers, "used by the device mapper <- /proc/modules")
    if facts.crypttab or any(block.mapping.startswith("CRYPT-") for block in used):
        want(facts.ciphers, "cipher or hash in use <- /proc/crypto")
    keyboards = _above_keyboards(facts)
    for device in facts.devices:
        if device.path in keyboards:
            want_device(device, "a keyboard of this machine")
    return list(result.items())


def margin(
    modules: Mapping[str, tuple[str, tuple[str, ...]]], blacklist: frozenset[str] = frozenset()
) -> list[tuple[str, str]]:
    """The modules that :data:`MARGIN` selects of ``kmods.Kernel.modules``: (name, reason), in their order."""
    result = []
    for name, (path, _) in modules.items():
        below = path.removeprefix("kernel/")
        reason = next((why for glob, why in MARGIN if fnmatch.fnmatchcase(below, glob)), None)
        if reason is not None and name not in blacklist:
            result.append((name, f"for a change of hardware: {reason}"))
    return result


def replay(facts: Facts, claims: Find, has: frozenset[str], builtin: frozenset[str]) -> list[Unanswered]:
    """The devices of a machine for which an image lacks a module that ``claims``, the kernel's, has for them.

    ``has`` are the names of the modules in the image, ``builtin`` those in the kernel. The essential ones
    come first, otherwise in the order of their paths.
    """
    there = {canonical(name) for name in has | builtin}
    root = {device.path for block in facts.blocks for device in block.devices}
    keyboards = _above_keyboards(facts)
    found = []
    for device in facts.devices:
        claimed = claims(device.modalias)
        missing = tuple(module for module in claimed if canonical(module) not in there)
        if not missing:
            continue
        why = _need(device, root, keyboards)
        essential = bool(why)
        # Several modules may claim a device, and one of them drive it.
        drivers = [canonical(device.module)] if device.module else claimed
        present = next((module for module in drivers if canonical(module) in there), None)
        if present is not None:
            essential = False
            why = f"{present} is there for it"
        elif not essential:
            why = "no disk and no keyboard"
        found.append(Unanswered(device.path, device.modalias, missing, essential, why))
    return sorted(found, key=lambda row: not row.essential)


def _need(device: Device, root: Container[str], keyboards: Container[str]) -> str:
    """Why a boot may need ``device``; empty when it does not."""
    if device.path in root:
        return "leads to the disk of the root file system"
    for pattern, why in ESSENTIAL:
        if fnmatch.fnmatchcase(device.modalias, pattern):
            return why
    return _KEYS if device.path in keyboards else ""


def _above_keyboards(facts: Facts) -> frozenset[str]:
    """The paths of all devices that a keyboard hangs on."""
    found = set()
    for device in facts.devices:
        if KEYBOARD.match(device.modalias):
            path = device.path
            while "/" in path:
                path = path.rpartition("/")[0]
                found.add(path)
    return frozenset(found)


def _check(facts: Facts) -> None:
    root = next((mount for mount in facts.mounts if mount.target == "/"), None)
    if root is None:
        raise BuildError(
            "nothing tells what this machine's root file system lies on: /proc/self/mountinfo has no mount "
            "at /, as in a chroot",
            hint=GENERIC_HINT,
        )
    if not root.blocks:
        raise BuildError(
            f"this machine's root file system, {printable(root.fstype)} from {printable(root.source)}, is on "
            "no disk that /sys shows",
            hint=GENERIC_HINT,
        )


def _types(facts: Facts) -> Iterator[tuple[str, str]]:
    """The file system types, each with a reason."""
    lines = {line.file: line for line in facts.fstab}
    for mount in facts.mounts:
        origin = f"{FSTAB} line {lines[mount.target].line}" if mount.target in lines else MOUNTINFO
        place = ", ".join(f"/dev/{name}" for name in mount.blocks) or mount.source
        what = "root file system type" if mount.target == "/" else f"type of the file system {mount.target}"
        yield mount.fstype, f"{what} of {place} <- {origin}"
    for line in facts.fstab:
        for kind in line.type.split(","):
            if kind not in NO_TYPES:
                yield kind, f"type of the file system {line.file} <- {FSTAB} line {line.line}"


def _reasons(facts: Facts) -> dict[str, str]:
    """The names of all block devices in use, with the chain of reasons that leads to each."""
    blocks = {block.name: block for block in facts.blocks}
    lines = {line.file: line for line in facts.fstab}
    reasons: dict[str, str] = {}
    tops = []
    for mount in facts.mounts:
        origin = f"{FSTAB} line {lines[mount.target].line}" if mount.target in lines else MOUNTINFO
        tops += [(name, f"file system of {mount.target} <- {origin}") for name in mount.blocks]
    for line in facts.fstab:
        what = "swap, for hibernation" if line.type == "swap" else f"file system of {line.file}"
        tops += [(name, f"{what} <- {FSTAB} line {line.line}") for name in line.blocks]
    for top in tops:
        todo = [top]
        for name, above in todo:
            if name not in reasons:
                reasons[name] = f"{_describe(blocks[name])} <- {above}"
                todo += [(below, reasons[name]) for below in blocks[name].below]
    return reasons


def _describe(block: Block) -> str:
    if block.kind == "dm":
        text = f"{_mapping(block)} device {block.name}"
    elif block.kind == "md":
        text = f"{block.level} array {block.name}"
    else:
        text = f"{'stacked device' if block.kind == 'stack' else block.kind} {block.name}"
    return f"{text} ({block.configured})" if block.configured else text


def _mapping(block: Block) -> str:
    return next((what for glob, what, _ in MAPPINGS if fnmatch.fnmatchcase(block.mapping, glob)), "mapped")


def _block_modules(block: Block) -> Iterator[tuple[tuple[str, ...], str]]:
    """Module names or aliases for a block device, and what they are for."""
    if block.kind == "dm":
        yield ("dm-mod",), ""
        for table, text in ((MAPPINGS, block.mapping), (HIDDEN_VOLUMES, block.label)):
            for glob, what, modules in table:
                if fnmatch.fnmatchcase(text, glob):
                    yield modules, what
        if block.mapping.startswith("CRYPT-LUKS"):
            yield LUKS_CIPHERS, "default cipher of LUKS"
    elif block.kind == "md":
        # Every personality has the alias md-LEVEL (drivers/md/raid1.c and others).
        yield ("md-mod",), ""
        yield (f"md-{block.level}",), f"RAID level {block.level}"
    elif block.kind == "stack":
        for glob, modules in STACKS:
            if fnmatch.fnmatchcase(block.name, glob):
                yield modules, ""
    elif block.kind == "disk":
        yield (f"block-major-{block.number.replace(':', '-')}",), ""
