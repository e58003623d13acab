"""The same boot again and again, each time a little different: what depends on who is first comes to light.

Which disk, how slow it is, when it appears and how many CPUs there are follows from a seed and the number of
the boot, so that one that failed can be had again (as far as the host's own timing lets it).
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pyinit_qemu.machine import Machine
from pyinit_qemu.slots import Slots
from pyinit_qemu.spec import Disk, Interface, VmSpec
from pyinit_qemu.timing import Timeout, TimeScale
from pyinit_qemu.verdict import MachineError
from pyinit_qemu.witness import Witness, WitnessError

LATEST = 5.0
"""Seconds after the start at which a disk appears at the latest; times the scale of the host."""
SLOWEST = 60
"""Requests in a second that the slowest disk answers."""


@dataclass(frozen=True)
class Trial:
    """One boot."""

    number: int
    image: str
    """``pyinit list`` or ``pyinit generic``."""
    interface: Interface
    smp: int
    plugged: float | None
    """When the disk is plugged in, as a part of :data:`LATEST`; None: it is there from the start."""
    iops: int
    """Requests that the disk answers in a second; 0: as many as it can."""

    def __str__(self) -> str:
        when = "from the start" if self.plugged is None else f"after {self.plugged * LATEST:.2f} s"
        speed = f"{self.iops} requests/s" if self.iops else "at full speed"
        return f"boot {self.number}: {self.image}, {self.interface} {when}, {speed}, {self.smp} CPU"


def trial(seed: int, number: int) -> Trial:
    """Boot ``number`` of the row that ``seed`` stands for."""
    chance = random.Random(f"{seed} {number}")
    interface: Interface = chance.choice(("virtio", "virtio", "scsi", "nvme", "ahci", "usb"))
    image = chance.choice(("pyinit list", "pyinit generic")) if interface == "virtio" else "pyinit generic"
    late = chance.random() < 0.5 and interface != "ahci"
    iops = chance.choice((0, 0, SLOWEST, 4 * SLOWEST, 16 * SLOWEST))
    return Trial(number, image, interface, chance.choice((1, 2)), chance.random() if late else None, iops)


def boot(trial: Trial, spec: VmSpec, image: Path, scale: TimeScale) -> str:
    """Boot once on a machine like ``spec``; return why the real init did not run on its root, or nothing."""
    (disk,) = spec.disks
    disk = Disk(disk.path, interface=trial.interface, late=trial.plugged is not None)
    spec = spec.replace(initrd=image, smp=trial.smp, disks=(disk,), icount=False, report=True)
    slots = Slots()
    slots.acquire()
    try:
        with Machine(spec, scale=scale) as machine:
            if trial.iops:
                machine.faults.slow(disk, iops=trial.iops)
            machine.run()
            if trial.plugged is not None:
                time.sleep(trial.plugged * LATEST * scale.factor)
                machine.plug(disk)
            outcome = machine.finish(Timeout.BOOT).check()
        frame = next((frame for frame in outcome.frames if frame["kind"] == "witness"), {})
        seen = Witness.parse(frame)
    except (MachineError, WitnessError) as error:
        return str(error)
    finally:
        slots.release()
    if seen.boot is None or seen.boot["handover"] is None:
        return "the boot record does not tell of a handover"
    failed = [stage for stage in seen.boot["stages"] if stage["outcome"] != "done"]
    return f"stages that failed: {failed}" if failed else ""


def summary(trials: Iterable[tuple[Trial, str]], seed: int) -> list[str]:
    """What came of them, in lines for people."""
    trials = list(trials)
    failed = [(one, why) for one, why in trials if why]
    kinds = Counter(f"{one.interface} with {one.smp} CPU" for one, _ in trials)
    late = sum(one.plugged is not None for one, _ in trials)
    slow = sum(one.iops > 0 for one, _ in trials)
    lines = [
        f"seed {seed}: {len(trials)} boots, {len(trials) - len(failed)} reached the real init, "
        f"{len(failed)} did not; disk plugged in late in {late}, slow in {slow}",
        ", ".join(f"{kind}: {count}" for kind, count in sorted(kinds.items())),
    ]
    return lines + [f"{one}\n{why}" for one, why in failed]
