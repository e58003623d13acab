"""Boots kernels and initramfs images in QEMU and says what happened."""

from __future__ import annotations

from pyinit_qemu.accel import Accelerator, AcceleratorError, decide
from pyinit_qemu.appended import with_files
from pyinit_qemu.channel import Frame
from pyinit_qemu.faults import many
from pyinit_qemu.kernel import unpacked
from pyinit_qemu.machine import Machine
from pyinit_qemu.qmp import QmpError
from pyinit_qemu.spec import MIB, Disk, IoError, VmSpec
from pyinit_qemu.timing import Timeout, TimeScale
from pyinit_qemu.verdict import BootFailed, MachineError, Outcome, Verdict

__all__ = [
    "MIB",
    "Accelerator",
    "AcceleratorError",
    "BootFailed",
    "Disk",
    "Frame",
    "IoError",
    "Machine",
    "MachineError",
    "Outcome",
    "QmpError",
    "TimeScale",
    "Timeout",
    "Verdict",
    "VmSpec",
    "decide",
    "many",
    "unpacked",
    "with_files",
]
