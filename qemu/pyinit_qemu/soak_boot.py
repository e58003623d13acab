"""Booting the scenarios of :mod:`pyinit_qemu.soak`: on copies of disks, which are compared afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from pyinit_qemu import soak
from pyinit_qemu.accel import decide
from pyinit_qemu.channel import Frame
from pyinit_qemu.debian import SUITES, provision
from pyinit_qemu.disks.cache import Cache
from pyinit_qemu.disks.filesystems import Btrfs, Ext4, Filesystem, Tree, Xfs
from pyinit_qemu.disks.image import ROOT_X86_64, Image, Partition
from pyinit_qemu.disks.tools import Progress, silent
from pyinit_qemu.images import initramfs
from pyinit_qemu.kernel import unpacked
from pyinit_qemu.machine import Machine
from pyinit_qemu.shell import Shell
from pyinit_qemu.slots import Slots
from pyinit_qemu.smallroot import small_root
from pyinit_qemu.spec import MIB, Disk, IoError, VmSpec
from pyinit_qemu.timing import TimeScale
from pyinit_qemu.verdict import BootFailed, MachineError

_KINDS: dict[str, Callable[..., Filesystem]] = {"ext4": Ext4, "xfs": Xfs, "btrfs": Btrfs}
_BLOCK = 4096
# The partition begins at 1 MiB; behind it are the backup of the table and what is left of the last MiB.
_BEFORE_PARTITION = _BEHIND_PARTITION = MIB
_WAKE_UDEVD = (
    "for d in /proc/[0-9]*; do read -r pid name rest < $d/stat; "
    "case $name in *udevd*) kill -CONT $pid;; esac; done"
)
_OUTCOMES = ("failure", "done")
_QUIET_SECONDS = 60.0
_BOOT_SECONDS = 180.0
_SHELL_SECONDS = 60.0
# What a failure behind the point of no return says: there is nothing left to give a shell with.
_STRANDED = "the initramfs is gone"
# A power-off that a dead disk holds up becomes a restart, pyinit.kernel.ending.
_END_SECONDS = 180.0


@dataclass(frozen=True)
class Stock:
    """What all boots are made of."""

    kernels: dict[str, Path]
    """By suite."""
    images: dict[tuple[str, tuple[str, ...]], Path]
    """By suite and modules."""
    disks: dict[str, Path]
    """By file system."""
    empty: dict[str, Path]
    """The same with nothing in the file system."""
    scale: TimeScale


@dataclass(frozen=True)
class Result:
    """What came of one scenario."""

    scenario: soak.Scenario
    outcome: str
    wrong: tuple[str, ...]
    seconds: float
    """Wall time."""
    folder: Path
    """Console, frames and the rest; it is kept when something was wrong."""


def stock(scenarios: Collection[soak.Scenario], progress: Progress = silent) -> Stock:
    """Everything that they need, out of the cache or made now."""
    debians = {suite: provision(suite, progress=progress) for suite in SUITES}
    hook = Cache().root / "soak" / "60-soak.py"
    hook.parent.mkdir(parents=True, exist_ok=True)
    hook.write_text(soak.HOOK)
    oldest = debians[SUITES[0]]
    full, bare = small_root(oldest, progress=progress), Tree(_empty_folder())
    return Stock(
        {suite: unpacked(debian.kernel) for suite, debian in debians.items()},
        {
            (suite, modules): initramfs(
                debians[suite],
                mode="list" if modules else "generic",
                modules=modules,
                hooks=(hook,),
                progress=progress,
            )
            for suite, modules in sorted({(one.suite, soak.modules(one)) for one in scenarios})
        },
        {kind: _disk(kind, full).build(progress=progress) for kind in soak.FILESYSTEMS},
        {kind: _disk(kind, bare).build(progress=progress) for kind in soak.FILESYSTEMS},
        decide("tcg", oldest.kernel).scale,
    )


def soak_boots(
    scenarios: list[soak.Scenario], stock: Stock, folder: Path, *, workers: int = 2
) -> Iterator[Result]:
    """Boot them, ``workers`` at a time, in one place of this host for virtual machines: they mostly wait."""
    slots = Slots()
    slots.acquire()
    try:
        with ProcessPoolExecutor(workers) as pool:
            jobs = [
                pool.submit(boot, scenario, stock, folder / str(scenario.number)) for scenario in scenarios
            ]
            for job in as_completed(jobs):
                yield job.result()
    finally:
        slots.release()


def boot(scenario: soak.Scenario, stock: Stock, folder: Path) -> Result:
    """Boot one scenario and judge it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "scenario.txt").write_text(f"{scenario.describe()}\n{scenario}\n")
    begin = time.monotonic()
    seen = _Boot(scenario, stock, folder).run()
    wrong = soak.judge(scenario, seen)
    if wrong:
        (folder / "wrong.txt").write_text("".join(f"{line}\n" for line in wrong))
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return Result(scenario, soak.outcome(seen), tuple(wrong), time.monotonic() - begin, folder)


class _Boot:
    """One boot."""

    def __init__(self, scenario: soak.Scenario, stock: Stock, folder: Path) -> None:
        self.scenario = scenario
        self.stock = stock
        self.folder = folder
        fault = scenario.fault
        source = (stock.empty if fault == "empty root" else stock.disks)[scenario.filesystem]
        self.originals = {"root": source}
        root = self._copy("root", source)
        late = fault in ("late disk", "no disk")
        errors = (IoError(),) if fault.startswith("read errors") and scenario.stage == "power" else ()
        self.root = Disk(root, scenario.interface, "root", snapshot=False, late=late, errors=errors)
        self.second: Disk | None = None
        if "copy" in fault:
            self.originals["copy"] = source
            path, late = self._copy("copy", source), fault == "late copy"
            self.second = Disk(path, scenario.interface, "copy", snapshot=False, late=late)
        elif fault == "damaged second disk":
            self.originals["second"] = self._damage(source)
            self.second = Disk(
                self._copy("second", self.originals["second"]), "virtio", "second", snapshot=False
            )
        elif fault == "superblock destroyed":
            self.originals["root"] = self._damage(source)
            shutil.copyfile(self.originals["root"], root)
        self.spec = VmSpec(
            stock.kernels[scenario.suite],
            stock.images[scenario.suite, soak.modules(scenario)],
            append=soak.words(scenario),
            disks=(self.root, *((self.second,) if self.second else ())),
        )
        self.frames: tuple[Frame, ...] = ()
        self.pulled = self.cut = False
        self.answered: bool | None = None
        self.recovered: bool | None = None

    def run(self) -> soak.Seen:
        trouble = ""
        machine = self._machine("machine")
        try:
            with machine:
                self._first(machine)
        except BootFailed as failed:
            trouble = f"{failed.verdict.value}: {failed.reason}"
        except MachineError as error:
            trouble = str(error)
        self.frames = machine.frames
        if self.cut and not trouble:
            self.frames, trouble = self._again()
        changed = {name: list(self._changed(name, original)) for name, original in self.originals.items()}
        for name in self.originals:
            (self.folder / f"{name}.img").unlink()
        return soak.Seen(self.frames, trouble, self.answered, self.recovered, changed)

    # The boot

    def _machine(self, name: str) -> Machine:
        return Machine(
            self.spec,
            artifacts=self.folder / name,
            scale=self.stock.scale,
            stall=_QUIET_SECONDS * self.stock.scale.factor,
            allow=("banner", "traceback"),
        )

    def _first(self, vm: Machine) -> None:
        scenario = self.scenario
        at_once = scenario.stage == "power" and not scenario.delay
        if at_once:
            self._begin(vm)
        vm.run()
        if not at_once and self._reached(vm, scenario.stage):
            vm.idle(scenario.delay)
            self._unless_over(vm, self._begin)
        if vm.finished:
            return
        if scenario.lasts is not None:
            vm.idle(scenario.lasts)
            self._unless_over(vm, self._end)
        failure = self._outcome(vm, 1)
        if failure is None:
            self._finish(vm)
        elif not scenario.shell or _STRANDED in str(failure["lines"]):
            self._awaits_end(vm)
        else:
            self._rescue(vm, str(failure["stage"]))

    def _reached(self, vm: Machine, stage: str) -> bool:
        """Wait until a stage begins; False when the boot came to something else before."""
        if stage == "power":
            return True

        def probe() -> bool | None:
            for frame in vm.frames:
                if frame["kind"] in _OUTCOMES:
                    return False
                if frame["kind"] == "stage" and frame["name"] == stage:
                    return True
            return None

        return vm.wait_for(f"stage {stage}", probe, self._seconds(_BOOT_SECONDS))

    def _outcome(self, vm: Machine, count: int) -> Frame | None:
        """Wait for the end of the boot, or for failure number ``count``, which is returned."""

        def probe() -> tuple[Frame | None] | None:
            failures = [frame for frame in vm.frames if frame["kind"] == "failure"]
            if len(failures) >= count:
                return (failures[count - 1],)
            return (None,) if any(frame["kind"] == "done" for frame in vm.frames) else None

        return vm.wait_for("the real init's report or an explanation", probe, self._seconds(_BOOT_SECONDS))[0]

    def _finish(self, vm: Machine) -> None:
        outcome = vm.finish(self._seconds(_END_SECONDS), goal="shutdown")
        if not outcome.ok:
            raise BootFailed(outcome.verdict, outcome.reason, outcome.report)

    def _awaits_end(self, vm: Machine) -> None:
        self.answered = False
        vm.wait_event("SHUTDOWN", self._seconds(_END_SECONDS))
        self.answered = True
        vm.stop()

    def _rescue(self, vm: Machine, stage: str) -> None:
        """The shell must answer; when the cause can be removed, the boot must go on."""
        self.answered = False
        shell = Shell.rescue(vm, stage, self._seconds(_SHELL_SECONDS))
        shell.run("pyinit status", self._seconds(_SHELL_SECONDS))
        self.answered = True
        if soak.FAULTS[self.scenario.fault].recovers and self._cure(vm, shell):
            self.recovered = False
            shell.leave()
            if self._outcome(vm, 2) is None:
                self._finish(vm)
                self.recovered = True
                return
        vm.stop()

    def _again(self) -> tuple[tuple[Frame, ...], str]:
        """Boot again after a power cut."""
        machine = self._machine("machine2")
        try:
            with machine:
                machine.run()
                if self._outcome(machine, 1) is None:
                    self._finish(machine)
                else:
                    machine.stop()
        except BootFailed as failed:
            return machine.frames, f"after the power cut: {failed.verdict.value}: {failed.reason}"
        return machine.frames, ""

    def _seconds(self, seconds: float) -> float:
        return seconds * self.stock.scale.factor

    # The fault

    def _begin(self, vm: Machine) -> None:
        match self.scenario.fault:
            case "late copy":
                assert self.second is not None
                vm.plug(self.second)
            case "late disk":
                vm.plug(self.root)
            case "disk pulled" | "disk pulled and back":
                vm.unplug(self.root)
                self.pulled = True
            case "read errors" | "read errors for a while" if not self.root.errors:
                vm.faults.fail(self.root)
            case "write errors":
                vm.faults.fail(self.root, IoError(on="write"))
            case "slow disk":
                vm.faults.slow(self.root, iops=100 + self.scenario.dice % 400)
            case "hang" | "hang for a while":
                vm.faults.hang(self.root)
            case "power cut":
                vm.power_cut()
                self.cut = True

    def _unless_over(self, vm: Machine, change: Callable[[Machine], None]) -> None:
        """Change something about the machine, which may have ended well by now, or end meanwhile."""
        try:
            change(vm)
        except MachineError:
            if not any(frame["kind"] == "done" for frame in vm.frames):
                raise

    def _end(self, vm: Machine) -> None:
        if self.pulled:
            vm.plug(self.root)
            self.pulled = False
        else:
            vm.faults.heal(self.root)

    def _cure(self, vm: Machine, shell: Shell) -> bool:
        """Remove the cause; False when it cannot be removed."""
        scenario = self.scenario
        match scenario.fault:
            case "wrong root" | "no root" | "root of another kind":
                shell.check(f"pyinit set root={soak.root_word(scenario)}")
            case "wrong rootflags":
                shell.check("pyinit set rootflags=")
            case "wrong init":
                shell.check("pyinit set init=/sbin/init")
            case "no disk":
                vm.plug(self.root)
            case "copy of the root" | "late copy":
                assert self.second is not None
                vm.unplug(self.second)
            case "disk pulled" if self.pulled:
                self._end(vm)
            case "read errors" | "hang":
                if self.root.errors:
                    # The kernel looks for partitions when a disk appears, and not again.
                    return False
                vm.faults.heal(self.root)
            case "udevd stopped":
                shell.check(_WAKE_UDEVD)
            case "disk pulled and back" | "read errors for a while" | "hang for a while":
                pass
            case _:
                return False
        return True

    # The disks

    def _copy(self, name: str, source: Path) -> Path:
        path = self.folder / f"{name}.img"
        subprocess.run(("cp", "--sparse=always", "--reflink=auto", source, path), check=True)
        path.chmod(0o600)
        return path

    def _damage(self, source: Path) -> Path:
        """A copy with other bytes where the superblocks of its file system are."""
        path = self._copy("damaged", source)
        with open(path, "r+b") as file:
            for offset in (0, 1024, 64 << 10):
                file.seek(MIB + offset)
                file.write(bytes((self.scenario.dice >> shift) & 0xFF for shift in (0, 8, 16)) * 1024)
        return path

    def _changed(self, name: str, original: Path) -> Iterator[int]:
        """The blocks that were written though nobody may: all of them, but those of a root that was mounted.

        When it is mounted for reading only, the kernel writes to its journal still if it is an xfs.
        """
        path = self.folder / f"{name}.img"
        free: list[range] = []
        if name == "root" and any(frame.get("name") == "pre-pivot" for frame in self.frames):
            if self.scenario.writable:
                free = [range(_BEFORE_PARTITION, path.stat().st_size - _BEHIND_PARTITION)]
            elif self.scenario.filesystem == "ext4" and self.scenario.fault.startswith("read errors"):
                # The kernel notes in the superblock that there were errors (fs/ext4/super.c).
                free = [range(_BEFORE_PARTITION, _BEFORE_PARTITION + _BLOCK)]
            elif self.scenario.filesystem == "xfs":
                free = xfs_journal(original, _BEFORE_PARTITION)
        for offset in differences(original, path):
            if not any(offset in part for part in free):
                yield offset


def differences(one: Path, other: Path) -> Iterator[int]:
    """The offsets of the blocks of 4 KiB that are not the same in two files; only data is read, no holes."""
    with open(one, "rb") as first, open(other, "rb") as second:
        size = max(os.fstat(first.fileno()).st_size, os.fstat(second.fileno()).st_size)
        offsets = sorted({*_data(first.fileno(), size), *_data(second.fileno(), size)})
        for offset in offsets:
            if os.pread(first.fileno(), MIB, offset) != os.pread(second.fileno(), MIB, offset):
                for block in range(offset, min(offset + MIB, size), _BLOCK):
                    if os.pread(first.fileno(), _BLOCK, block) != os.pread(second.fileno(), _BLOCK, block):
                        yield block


def xfs_journal(image: Path, start: int) -> list[range]:
    """The bytes of an image that mounting the xfs at ``start`` writes: its superblock and its journal.

    Fields of the superblock: "XFS Algorithms & Data Structures", chapter 15.
    """
    with open(image, "rb") as file:
        block = os.pread(file.fileno(), _BLOCK, start)
    size, in_group, blocks = (int.from_bytes(block[at : at + 4]) for at in (4, 84, 96))
    place, shift = int.from_bytes(block[48:56]), block[124]
    group, within = place >> shift, place & ((1 << shift) - 1)
    journal = start + (group * in_group + within) * size
    return [range(start, start + _BLOCK), range(journal, journal + blocks * size)]


def _data(descriptor: int, size: int) -> Iterator[int]:
    """The offsets of the mebibytes that are not all hole, lseek(2)."""
    place = 0
    while place < size:
        try:
            place = os.lseek(descriptor, place, os.SEEK_DATA) // MIB * MIB
        except OSError:
            return
        yield place
        place += MIB


def _disk(kind: str, tree: Tree) -> Image:
    filesystem = _KINDS[kind](tree, label=soak.LABEL, uuid=soak.UUIDS[kind])
    part = Partition(filesystem, partuuid=soak.PARTUUID, name=soak.LABEL, type=ROOT_X86_64)
    return Image(gpt=(part,))


def _empty_folder() -> Path:
    folder = Cache().root / "soak" / "empty"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
