"""The machine that makes what only a kernel can make: volumes, arrays, encrypted devices.

It boots an image of ours with a small Debian that has the real tools, does what a plan says, and powers off.
The host's kernel makes no device and mounts nothing; no privilege is needed.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyinit.text import printable
from pyinit_image.sysroot import Sysroot
from pyinit_qemu.accel import decide, policy_from_environment
from pyinit_qemu.debian import STORAGE, DebianRoot, provision
from pyinit_qemu.disks.cache import Cache, digest_file
from pyinit_qemu.disks.filesystems import MIB, Squashfs, Tree
from pyinit_qemu.disks.image import Image
from pyinit_qemu.disks.tools import Progress, ToolError, silent
from pyinit_qemu.kernel import unpacked
from pyinit_qemu.machine import Machine
from pyinit_qemu.spec import Disk, VmSpec

GUEST = Path(__file__).parents[1] / "guest" / "maker.py"

PROGRAMS = (
    "/usr/bin/btrfs",
    "/usr/bin/cmp",
    "/usr/bin/cp",
    "/usr/bin/kmod",
    "/usr/bin/mount",
    "/usr/bin/umount",
    "/usr/sbin/cache_check",
    "/usr/sbin/cryptsetup",
    "/usr/sbin/lvm",
    "/usr/sbin/mdadm",
    "/usr/sbin/mkfs.btrfs",
    "/usr/sbin/thin_check",
    # The C library opens it when a thread is cancelled, as those of cryptsetup's key derivation are.
    "/usr/lib/x86_64-linux-gnu/libgcc_s.so.1",
)
"""What the machine has beside Python."""

_MODULES = ("arch", "crypto", "drivers/md", "fs/btrfs", "fs/ext4", "fs/jbd2", "fs/mbcache.ko", "lib")
_DRIVERS = ("virtio_pci", "virtio_blk", "squashfs")
_MEMORY = 768 * MIB
# A large content is copied in silence.
_TIMEOUT = 900.0
# The root is read-only: no copies of metadata are kept there. Nobody monitors, nobody lists devices.
_LVM_CONF = """backup { backup = 0 archive = 0 }
devices { use_devicesfile = 0 }
activation { monitoring = 0 udev_sync = 0 udev_rules = 0 }
"""
_START = "#!/bin/sh\nexec /usr/bin/python3 -S -s -P -B /usr/lib/maker/maker.py\n"


@dataclass
class Plan:
    """What the machine is to do. A device is named ``@source0``, ``@target0``, or by its path there."""

    targets: list[int]
    """Sizes in bytes of the disks that are made."""
    sources: list[Path] = field(default_factory=list)
    """Images that it reads; what is written to them is thrown away."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    _undo: list[list[str]] = field(default_factory=list)

    def source(self, image: Path) -> str:
        """Attach an image; return its name."""
        if image not in self.sources:
            self.sources.append(image)
        return f"@source{self.sources.index(image)}"

    def run(self, *words: str, stdin: str = "") -> None:
        self.steps.append({"run": list(words), **({"stdin": stdin} if stdin else {})})

    def write(self, path: str, content: bytes) -> None:
        self.steps.append({"write": path, "hex": content.hex()})

    def copy(self, image: Path, device: str, *, sparse: bool) -> None:
        """Copy an image to a device; ``sparse`` when what is not written there reads as zeros."""
        self.steps.append({"copy": self.source(image), "to": device, "sparse": sparse})

    def finally_run(self, *words: str) -> None:
        """Run this at the end: what was asked for last comes first."""
        self._undo.append(list(words))

    def close(self) -> None:
        """Add what was put off to the end."""
        while self._undo:
            self.run(*self._undo.pop())


def make(plan: Plan, folder: Path, *, cache: Cache, progress: Progress = silent) -> list[Path]:
    """Do the plan in a machine; return its disks, sparse files ``0.img``, ``1.img``... in ``folder``.

    Raises :class:`ToolError` with the command that failed there and what it said.
    """
    debian = provision("bookworm", packages=STORAGE, progress=progress, cache=cache)
    root = Image(whole=Squashfs(_tree(debian, cache, progress))).build(cache=cache, progress=progress)
    text = json.dumps(plan.steps).encode()
    order = folder / "plan.json"
    # The kernel looks for partition tables of many kinds in the first sectors.
    order.write_bytes(text + bytes(-len(text) % MIB))
    targets = []
    for number, size in enumerate(plan.targets):
        targets.append(folder / f"{number}.img")
        with targets[-1].open("wb") as file:
            file.truncate(size + -size % MIB)
    # Only a machine needs an image, and the builder is not needed to boot others' images.
    from pyinit_qemu.images import initramfs

    accelerator = decide(policy_from_environment(), debian.kernel)
    spec = VmSpec(
        # Its own decompressor takes seconds on an emulated processor.
        kernel=unpacked(debian.kernel, cache),
        initrd=initramfs(debian, cache=cache, progress=progress, mode="list", modules=_DRIVERS),
        append="root=/dev/disk/by-id/virtio-maker rootfstype=squashfs ro init=/usr/sbin/maker quiet",
        disks=(
            Disk(root, serial="maker", readonly=True),
            Disk(order, serial="plan", readonly=True),
            *(Disk(path, serial=f"source{number}") for number, path in enumerate(plan.sources)),
            *(Disk(path, serial=f"target{number}", snapshot=False) for number, path in enumerate(targets)),
        ),
        memory=_MEMORY,
        accel=accelerator.name,
    )
    with Machine(spec, scale=accelerator.scale, stall=_TIMEOUT) as machine:
        machine.run()
        outcome = machine.finish(_TIMEOUT).check()
    made = next((frame for frame in outcome.frames if frame["kind"] == "made"), None)
    if made is None or made.get("ok") is not True:
        raise _failure(plan, made or {})
    order.unlink()
    return targets


def _failure(plan: Plan, made: Any) -> ToolError:
    number, said = made.get("step"), str(made.get("error", "it said nothing"))
    step = plan.steps[number] if isinstance(number, int) and 0 <= number < len(plan.steps) else {}
    words = " ".join(step["run"]) if "run" in step else json.dumps(step)
    lines = "".join(f"\n    {printable(line)}" for line in said.splitlines())
    return ToolError(f"the machine that makes disks failed at: {words}{lines}", said)


def _tree(debian: DebianRoot, cache: Cache, progress: Progress) -> Tree:
    """The machine's root: what the small root has, the tools, their modules."""
    from pyinit_qemu import smallroot

    recipe = {
        "source": debian.source.digest,
        "code": [digest_file(path) for path in (Path(__file__), GUEST, Path(smallroot.__file__))],
        "witness": digest_file(smallroot.WITNESS),
    }

    def build(work: Path) -> None:
        progress("making the system that makes disks")
        tree = work / "tree"
        smallroot.make_tree(tree, Sysroot(debian.tree), programs=PROGRAMS)
        modules = Path("usr/lib/modules") / debian.release
        for name in _MODULES:
            _copy(debian.tree / modules / "kernel" / name, tree / modules / "kernel" / name)
        for path in (debian.tree / modules).glob("modules.*"):
            _copy(path, tree / modules / path.name)
        _copy(debian.tree / "etc/lvm/profile", tree / "etc/lvm/profile")
        (tree / "etc/lvm/lvm.conf").write_text(_LVM_CONF)
        for name in ("modprobe", "insmod"):
            (tree / "usr/sbin" / name).symlink_to("../bin/kmod")
        (tree / "usr/lib/maker").mkdir()
        shutil.copy(GUEST, tree / "usr/lib/maker/maker.py")
        start = tree / "usr/sbin/maker"
        start.write_text(_START)
        start.chmod(0o755)

    folder = cache.entry("maker", recipe, build, progress)
    return Tree(folder / "tree", digest=folder.name)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target)
