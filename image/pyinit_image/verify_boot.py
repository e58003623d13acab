"""The proof that an image boots: it is booted, in a virtual machine, to a root file system made for that.

The root is small and thrown away. It is made of a system's own python3; its init is the witness of the
harness, which tells what it was handed. The image and the kernel are the very files that were named.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyinit.text import printable

from . import archive
from .errors import BuildError
from .sysroot import Sysroot
from .verify import modules
from .verify.unpacked import Unpacked

if TYPE_CHECKING:
    from pyinit_qemu.disks.filesystems import Filesystem, Tree
    from pyinit_qemu.spec import Interface
    from pyinit_qemu.verdict import Outcome

INSTALL = "pip install 'pyinit-initramfs[qemu]'"

#: How the disk may be attached: the name of the harness for it, and the drivers that takes.
BUSES: tuple[tuple[Interface, tuple[str, ...]], ...] = (
    ("virtio", ("virtio_pci", "virtio_blk")),
    ("scsi", ("virtio_pci", "virtio_scsi", "sd_mod")),
    ("ahci", ("ahci", "sd_mod")),
    ("nvme", ("nvme",)),
    ("usb", ("xhci_pci", "usb_storage", "sd_mod")),
)
FILE_SYSTEMS = ("ext4", "xfs", "btrfs", "squashfs")

#: Nobody looks for damage of a file system that is new: some initramfs would, and need programs for it.
WORDS = "ro fsck.mode=skip rd.skipfsck"

MIB = 1 << 20
#: Bytes of memory of the machine: at least; beyond what the image takes packed and unpacked.
LEAST_MEMORY = 512 * MIB
SPARE_MEMORY = 256 * MIB

_CONSOLE_LINES = 20


@dataclass(frozen=True, slots=True)
class Booted:
    """A boot that reached the real init."""

    seconds: float
    """From the kernel's start to the execution of the real init, in time of the guest."""
    bus: str
    """How the disk was attached: a name of :data:`BUSES`."""
    filesystem: str
    """The root file system's type."""
    accelerator: str
    """How the machine was run, and why: ``accelerator tcg, timeouts x1: ...``"""


def boot(
    image: Path,
    kernel: Path,
    *,
    sysroot: Path = Path("/"),
    append: str = "",
    memory: int | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Booted:
    """Boot ``image`` with ``kernel`` in QEMU until the witness in a small root speaks.

    ``sysroot`` is a system with python3 (3.11 or later) and a shell, of which the small root is made; it is
    only read. ``append``: more words for the kernel command line. ``memory``: bytes of the machine, None for
    what the image needs. ``$PYINIT_QEMU_ACCEL`` chooses the accelerator.

    Raises :class:`BuildError` when the image does not boot, with the verdict, the first cause and the end of
    the console; and when it cannot be tried, because the harness, a tool or a driver in the image is missing.
    """
    try:
        from pyinit_qemu.accel import decide, policy_from_environment
        from pyinit_qemu.disks.cache import Cache
        from pyinit_qemu.disks.image import ROOT_X86_64, Image, Partition
        from pyinit_qemu.disks.tools import ToolError
        from pyinit_qemu.kernel import unpacked
        from pyinit_qemu.machine import Machine
        from pyinit_qemu.smallroot import make_tree
        from pyinit_qemu.spec import Disk, VmSpec
        from pyinit_qemu.verdict import MachineError
    except ImportError as error:
        raise BuildError(
            f"the image cannot be booted: the module {printable(error.name or str(error))} is missing",
            hint=INSTALL,
        ) from error
    content = _read(image)
    if not kernel.is_file():
        raise BuildError(
            f"{printable(str(kernel))} is no kernel: there is no such file",
            hint="Name the kernel that the image was built for, such as /boot/vmlinuz-RELEASE.",
        )
    there = Unpacked(archive.read(content))
    bus = choose_bus(drivers(there))
    fstype = choose_filesystem(drivers(there))
    if memory is None:
        size = len(content) + sum(len(node.data) for node in there.nodes.values()) + SPARE_MEMORY
        memory = max(LEAST_MEMORY, -(-size // MIB) * MIB)
    with tempfile.TemporaryDirectory(prefix="pyinit-image-") as folder:
        try:
            progress("small root file system")
            make_tree(Path(folder, "tree"), Sysroot(sysroot))
            filesystem, root = _filesystem(fstype, Path(folder, "tree"))
            part = Partition(filesystem, partuuid=_PARTUUID, type=ROOT_X86_64)
            disk = Image(gpt=(part,)).build(cache=Cache(Path(folder, "cache")))
            progress("virtual machine")
            accelerator = decide(policy_from_environment(), kernel)
            spec = VmSpec(
                kernel=unpacked(kernel),
                initrd=image,
                append=f"{WORDS} root={root} {append}".strip(),
                disks=(Disk(disk, interface=bus),),
                memory=memory,
                accel=accelerator.name,
            )
            progress(f"boot from {fstype} on a {bus} disk")
            with Machine(spec, scale=accelerator.scale) as machine:
                machine.run()
                outcome = machine.finish()
        except (MachineError, ToolError, ValueError, OSError) as error:
            raise BuildError(
                f"{printable(str(image))} could not be booted, which says nothing about it: "
                f"{_lines(str(error))}",
                hint="See that QEMU and the tools that it names are installed, and that there is space.",
            ) from error
    return Booted(_judge(image, outcome, f"{fstype} on a {bus} disk"), bus, fstype, str(accelerator))


_PARTUUID = "7c3f5d0e-5a52-4a3b-9d5e-3f4c1b2a6d70"


def drivers(image: Unpacked) -> frozenset[str]:
    """The names of the modules of an image, and of those that it says are part of the kernel."""
    names: set[str] = set()
    for directory in modules.directories(image):
        names.update(directory.modules, modules.builtin(image, directory))
    return frozenset(names)


def choose_bus(available: frozenset[str]) -> Interface:
    """The first bus whose drivers are all there."""
    for bus, wanted in BUSES:
        if available.issuperset(wanted):
            return bus
    ways = "; ".join(f"{bus}: {', '.join(wanted)}" for bus, wanted in BUSES)
    raise BuildError(
        f"the image cannot be booted in QEMU: it has no driver for any disk there ({ways})",
        hint="For a trial, build it with: --module virtio_pci --module virtio_blk",
    )


def choose_filesystem(available: frozenset[str]) -> str:
    """The first file system whose driver is there and that can be made on this machine."""
    from pyinit_qemu.disks.filesystems import FILESYSTEMS
    from pyinit_qemu.disks.tools import ToolError, find

    problems: list[str] = []
    for fstype in FILE_SYSTEMS:
        if fstype not in available:
            continue
        try:
            find(FILESYSTEMS[fstype].tool)
            return fstype
        except ToolError as error:
            problems.append(str(error))
    if problems:
        raise BuildError(
            f"no root file system can be made that the image can mount: {printable('; '.join(problems))}",
            hint="Install one of these tools.",
        )
    raise BuildError(
        f"the image cannot be booted in QEMU: it has the driver of none of {', '.join(FILE_SYSTEMS)}",
        hint="For a trial, build it with: --module ext4",
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BuildError(f"{printable(str(path))} cannot be read: {error.strerror}") from error


def _filesystem(fstype: str, tree: Path) -> tuple[Filesystem, str]:
    """The file system, and what ``root=`` calls it."""
    from pyinit_qemu.disks.filesystems import FILESYSTEMS, Tree

    content: Tree = Tree(tree, digest="")
    made = FILESYSTEMS[fstype](content)
    # A squashfs has no UUID, and not every initramfs knows partitions by theirs.
    return made, f"PARTUUID={_PARTUUID}" if fstype == "squashfs" else f"UUID={made.id}"


def _judge(image: Path, outcome: Outcome, way: str) -> float:
    """Seconds of the guest until the real init was executed."""
    from pyinit_qemu.verdict import Verdict
    from pyinit_qemu.witness import Witness, WitnessError

    reason = f"{outcome.verdict.value}: {printable(outcome.reason)}"
    if outcome.ok:
        try:
            report = next(frame for frame in outcome.frames if frame["kind"] == "witness")
            return Witness.parse(report).executed / 1e6
        except StopIteration:
            reason = "nobody was there who speaks from the real init"
        except WitnessError as error:
            reason = f"the witness in the real init is not to be believed: {printable(str(error))}"
    console = [printable(line) for line in outcome.console.splitlines() if line.strip()]
    end = "".join(f"\n    {line}" for line in console[-_CONSOLE_LINES:]) or "\n    nothing"
    if outcome.verdict is Verdict.QEMU_CRASH:
        raise BuildError(
            f"{printable(str(image))} could not be booted, which says nothing about it: {reason}",
            hint="Try again; another accelerator is chosen with PYINIT_QEMU_ACCEL=tcg.",
        )
    raise BuildError(
        f"{printable(str(image))} does not boot from {way}: {reason}\nThe end of the console:{end}",
        hint="pyinit-image verify without --boot may name the cause; docs/errors.md explains the codes.",
    )


def _lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.splitlines())
