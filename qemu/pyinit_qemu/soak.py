"""Boots with a fault drawn by chance, and what may come of each: values and pure functions.

A scenario depends on the seed and its number only, so that each one can be booted again alone. It says which
fault begins at which moment on which disk, kernel and file system; :func:`expected` says what may come of it,
and :func:`judge` holds what was seen against that. :mod:`pyinit_qemu.soak_boot` boots them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pyinit_qemu.channel import Frame
from pyinit_qemu.debian import SUITES, Suite
from pyinit_qemu.spec import Interface

TIMEOUT = 10
"""Seconds that the guests wait for their root (``rd.timeout=``)."""
GRACE = 5.0
"""Guest seconds beyond that until a failure must be explained."""

BOOTED = "booted"
"""The real init ran and reported."""
HANDED_OVER = "handed over"
"""The real init was executed, and could not report because of the fault."""

FILESYSTEMS = ("ext4", "xfs", "btrfs")
SPELLINGS = ("UUID", "LABEL", "PARTUUID", "PARTLABEL")

LABEL = "soak-root"
PARTUUID = "5b4a7c10-93ab-4f0e-8c5e-0f6c3ad1e2f7"
UUIDS = {
    "ext4": "1c1ed0a4-7b6c-4a0e-9d43-1f2e3d4c5b6a",
    "xfs": "2d2fe1b5-8c7d-4b1f-ae54-2a3f4e5d6c7b",
    "btrfs": "3e30f2c6-9d8e-4c20-bf65-3b405f6e7d8c",
}

_DRIVERS: Mapping[Interface, str] = {
    "virtio": "virtio_blk",
    "scsi": "virtio_scsi",
    "nvme": "nvme",
    "ahci": "ahci",
    # uas claims every such disk, too, and needs usb_storage.
    "usb": "usb_storage,uas",
}
# What a list image has beside the file system.
_MODULES = ("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "nvme", "ahci", "xhci_pci", "usb_storage")
_EARLY = ("power", "pre-udev", "pre-trigger", "initqueue")
_ANY = (*_EARLY, "pre-mount", "mount", "pre-pivot", "cleanup", "switch-root")
_ALL: tuple[Interface, ...] = ("virtio", "scsi", "nvme", "ahci", "usb")
_PLUGGED: tuple[Interface, ...] = ("virtio", "scsi", "nvme", "usb")
# Taken out without being asked; a PCI slot's button is asked for five seconds first.
_PULLED: tuple[Interface, ...] = ("scsi", "usb")
_MISSING = frozenset({"E-DEV"})
# What a disk that answers with errors can break: the search for it, the mount, what is read from it then.
_UNREADABLE = frozenset({"E-DEV", "E-MOUNT", "E-IO"})


@dataclass(frozen=True)
class Fault:
    """A kind of fault."""

    name: str
    codes: frozenset[str] = frozenset()
    """The codes by which it may be explained."""
    boots: bool = False
    """Whether a boot may go well in spite of it."""
    stages: tuple[str, ...] = ("power",)
    """When it may begin: before the machine runs, or when one of these stages does."""
    delay: float = 0.0
    """At most so many seconds after that."""
    lasts: tuple[float, float] | None = None
    """For how many seconds; None: until the failure was explained, if at all."""
    takes_root: bool = False
    """Whether the real init may lack its disk."""
    interfaces: tuple[Interface, ...] = _ALL
    recovers: bool = True
    """Whether the boot has to go on when the cause was removed in the rescue shell."""


FAULTS: Mapping[str, Fault] = {
    fault.name: fault
    for fault in (
        Fault("nothing", boots=True),
        Fault("wrong root", _MISSING),
        Fault("no root", frozenset({"E-NOROOT"})),
        Fault("root of another kind", frozenset({"E-CMDLINE"})),
        Fault("wrong rootflags", frozenset({"E-MOUNT"})),
        Fault("wrong init", frozenset({"E-INIT"})),
        Fault("driver forbidden", _MISSING),
        Fault("copy of the root", frozenset({"E-AMBIG"}), interfaces=_PLUGGED),
        Fault("late copy", frozenset({"E-AMBIG"}), True, _ANY, 3.0, interfaces=_PLUGGED),
        Fault("late disk", boots=True, stages=_EARLY, delay=6.0, interfaces=_PLUGGED),
        Fault("no disk", _MISSING, interfaces=_PLUGGED),
        Fault("disk pulled and back", _UNREADABLE, True, _ANY, 2.0, (1.0, 6.0), True, _PULLED),
        Fault("disk pulled", _UNREADABLE, True, _ANY, 2.0, takes_root=True, interfaces=_PULLED),
        Fault("read errors", _UNREADABLE, True, _ANY, 2.0, takes_root=True),
        Fault("read errors for a while", _UNREADABLE, True, _ANY, 2.0, (0.5, 5.0), True),
        Fault("write errors", boots=True, stages=_ANY, delay=2.0),
        Fault("slow disk", boots=True, stages=_ANY, delay=1.0),
        # A driver that asks a silent disk does not come back.
        Fault("hang for a while", _MISSING | {"E-HANG"}, True, _ANY, 2.0, (1.0, 8.0)),
        Fault("hang", _MISSING | {"E-HANG"}, stages=("power",)),
        Fault("udevd killed", boots=True, stages=("pre-trigger", "initqueue", "pre-mount"), delay=0.5),
        Fault(
            "udevd stopped",
            frozenset({"E-DEV", "E-UDEV"}),
            True,
            ("pre-trigger", "initqueue", "pre-mount"),
            0.5,
        ),
        Fault("clock jumps", boots=True, stages=("pre-trigger", "initqueue", "pre-mount"), delay=0.5),
        Fault("power cut", boots=True, stages=_ANY, delay=2.0),
        Fault("superblock destroyed", frozenset({"E-MOUNT"}), recovers=False),
        Fault("empty root", frozenset({"E-ROOTFS"}), recovers=False),
        Fault("damaged second disk", boots=True),
    )
}

_BY_NODE = (
    "nothing",
    "driver forbidden",
    "no disk",
    "late disk",
    "read errors",
    "hang for a while",
    "power cut",
)
# Its label and UUID are gone.
_BY_PARTITION = ("superblock destroyed",)
# Its partition has the names of the root's.
_BY_FILESYSTEM = ("damaged second disk",)


@dataclass(frozen=True)
class Scenario:
    """One boot: everything that is drawn."""

    number: int
    fault: str
    suite: Suite
    """Whose kernel, udev and python3."""
    generic: bool
    """Whether the image is for any machine; if not, for those of these scenarios."""
    interface: Interface
    filesystem: str
    spelling: str
    """How ``root=`` names the disk."""
    writable: bool
    quiet: bool
    stage: str
    delay: float
    lasts: float | None
    shell: bool
    """Whether a shell may open after a failure; if not, the machine powers off."""
    dice: int
    """For what else has to be chosen: which character is wrong, which signal is sent."""

    def describe(self) -> str:
        """One line for a person."""
        words = [f"{self.fault}, {self.filesystem} on {self.interface}, {self.suite}, by {self.spelling}"]
        if self.stage != "power" or self.delay:
            words.append(f"{self.delay:.1f} s after {self.stage}")
        if self.lasts is not None:
            words.append(f"for {self.lasts:.1f} s")
        words += ["generic"] * self.generic + ["rw"] * self.writable + ["no shell"] * (not self.shell)
        return ", ".join(words)


def draw(seed: str, number: int, faults: Sequence[str] = tuple(FAULTS)) -> Scenario:
    """Scenario ``number`` of a seed. ``faults``: those to choose from."""
    rng = random.Random(f"{seed}/{number}")
    fault = FAULTS[rng.choice(faults)]
    spellings: tuple[str, ...] = SPELLINGS
    if fault.name in _BY_NODE:
        spellings = (*SPELLINGS, "node")
    elif fault.name in _BY_PARTITION:
        spellings = ("PARTUUID", "PARTLABEL")
    elif fault.name in _BY_FILESYSTEM:
        spellings = ("UUID", "LABEL")
    drawn = Scenario(
        number=number,
        fault=fault.name,
        suite=rng.choice(SUITES),
        generic=rng.random() < 0.2,
        interface=rng.choice(fault.interfaces),
        filesystem=rng.choice(FILESYSTEMS),
        spelling=rng.choice(spellings),
        writable=rng.random() < 0.3,
        quiet=rng.random() < 0.7,
        stage=rng.choice(fault.stages),
        delay=round(rng.uniform(0, fault.delay), 1),
        lasts=None if fault.lasts is None else round(rng.uniform(*fault.lasts), 1),
        shell=rng.random() < 0.85,
        dice=rng.randrange(1 << 30),
    )
    # QEMU itself stands still when an NVMe controller is reset that owes an answer, so such a machine can
    # neither power off nor restart.
    return replace(drawn, shell=True) if (fault.name, drawn.interface) == ("hang", "nvme") else drawn


def root_word(scenario: Scenario) -> str:
    """The value of ``root=`` that is right."""
    match scenario.spelling:
        case "UUID":
            return f"UUID={UUIDS[scenario.filesystem]}"
        case "PARTUUID":
            return f"PARTUUID={PARTUUID}"
        case "node":
            return {"virtio": "/dev/vda1", "nvme": "/dev/nvme0n1p1"}.get(scenario.interface, "/dev/sda1")
        case spelling:
            return f"{spelling}={LABEL}"


def wrong_root_word(scenario: Scenario) -> str:
    """The same with one character replaced."""
    name, _, value = root_word(scenario).partition("=")
    places = [place for place, character in enumerate(value) if character.isalnum()]
    place = places[scenario.dice % len(places)]
    other = next(character for character in "0a1b" if character != value[place])
    return f"{name}={value[:place]}{other}{value[place + 1 :]}"


def modules(scenario: Scenario) -> tuple[str, ...]:
    """The modules of the image; none for a generic one."""
    if scenario.generic:
        return ()
    return (*_MODULES, scenario.filesystem)


def words(scenario: Scenario) -> str:
    """The words of the kernel command line."""
    chosen = ["quiet"] * scenario.quiet + ["rw"] * scenario.writable + [f"rd.timeout={TIMEOUT}"]
    if not scenario.shell:
        chosen += ["rd.shell=0", "rd.emergency=poweroff"]
    match scenario.fault:
        case "wrong root":
            chosen.append(f"root={wrong_root_word(scenario)}")
        case "no root":
            # The partitions have the type of a root.
            chosen.append("rd.systemd.gpt_auto=0")
        case "root of another kind":
            chosen.append("root=nfs:server:/path")
        case _:
            chosen.append(f"root={root_word(scenario)}")
    match scenario.fault:
        case "wrong rootflags":
            chosen.append("rootflags=nonsense=1")
        case "wrong init":
            chosen.append("init=/sbin/missing")
        case "driver forbidden":
            chosen.append(f"rd.driver.blacklist={_DRIVERS[scenario.interface]}")
        case "udevd killed" | "udevd stopped" | "clock jumps":
            # A hook in the image does it.
            chosen.append(f"soak.do={scenario.stage},{scenario.delay},{guest_action(scenario)}")
    return " ".join(chosen)


def guest_action(scenario: Scenario) -> str:
    """What the hook has to do: a signal for udevd, or seconds for the clock."""
    match scenario.fault:
        case "udevd killed":
            return ("KILL", "TERM", "SEGV")[scenario.dice % 3]
        case "udevd stopped":
            return "STOP"
        case _:
            # 1970, 2038: before and after what fits into 32 bits.
            return ("60", "2147483640", "2200000000")[scenario.dice % 3]


HOOK = '''
"""Does to this boot what the word soak.do=STAGE,SECONDS,WHAT of the kernel command line says."""

import os
import signal
import time


def _do(moment):
    word = moment.command_line.last("soak.do")
    if word is None:
        return
    stage, seconds, what = word.value.split(",")
    if stage.replace("-", "_") != moment.stage:
        return
    if os.fork():
        return
    try:
        time.sleep(float(seconds))
        if what.isdigit():
            time.clock_settime(time.CLOCK_REALTIME, float(what))
        else:
            for pid in filter(str.isdigit, os.listdir("/proc")):
                _signal(int(pid), signal.Signals["SIG" + what])
    finally:
        os._exit(0)


def _signal(pid, number):
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            _, name, rest = file.read().replace(b"(", b")").split(b")", 2)
        # The daemon, not its workers.
        if name in (b"systemd-udevd", b"udevd") and rest.split()[1] == b"1":
            os.kill(pid, number)
    except (OSError, ValueError):
        pass


def pre_trigger(moment):
    _do(moment)


def initqueue(moment):
    _do(moment)


def pre_mount(moment):
    _do(moment)
'''


def expected(scenario: Scenario) -> frozenset[str]:
    """What may come of it."""
    fault = FAULTS[scenario.fault]
    outcomes = fault.codes
    if fault.boots:
        outcomes |= {BOOTED}
    if fault.takes_root:
        outcomes |= {HANDED_OVER}
    if scenario.fault == "write errors" and (scenario.writable or scenario.filesystem == "xfs"):
        # The superblock is to say that it is mounted; an xfs also has its journal cleared.
        outcomes |= {"E-MOUNT", "E-IO", HANDED_OVER}
    if scenario.fault == "wrong init" and not scenario.shell:
        # Who may have no shell may not name one as the real init: init= is ignored.
        outcomes = frozenset({BOOTED})
    if scenario.stage == "power" and not scenario.delay and scenario.fault in ("read errors", "disk pulled"):
        # From the very start the disk cannot be read: it is never found.
        outcomes = _MISSING
    return outcomes


@dataclass(frozen=True)
class Seen:
    """What was seen of a boot."""

    frames: tuple[Frame, ...]
    trouble: str = ""
    """Why the machine was given up: a panic, a hang, QEMU's own failure."""
    answered: bool | None = None
    """Whether the rescue shell answered or the machine powered off after a failure; None: there was none."""
    recovered: bool | None = None
    """Whether the boot went on when the cause had been removed; None: that was not tried."""
    changed: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """By disk: the offsets in bytes of blocks that were written though nobody may."""


def outcome(seen: Seen) -> str:
    """In one word."""
    kinds = [frame["kind"] for frame in seen.frames]
    first = next((frame for frame in seen.frames if frame["kind"] in ("failure", "record", "done")), None)
    if first is not None and first["kind"] == "failure":
        return str(first.get("code"))
    if "done" in kinds and "witness" in kinds:
        return BOOTED
    return HANDED_OVER if "record" in kinds else "nothing"


def judge(scenario: Scenario, seen: Seen) -> list[str]:
    """What was wrong, a line each; nothing when all was as it must be."""
    wrong = []
    came, may = outcome(seen), expected(scenario)
    if came not in may:
        wrong.append(f"came to {came}, which is none of {', '.join(sorted(may))}")
    gone = came == HANDED_OVER and HANDED_OVER in may
    if seen.trouble and not gone:
        wrong.append(seen.trouble)
    if seen.answered is False:
        wrong.append(
            f"after the failure {'no shell answered' if scenario.shell else 'the machine did not end'}"
        )
    if seen.recovered is False:
        wrong.append("the cause was removed, and the boot did not go on")
    for disk, offsets in seen.changed.items():
        if offsets:
            wrong.append(f"disk {disk}: {len(offsets)} blocks were written, the first at byte {offsets[0]}")
    for number, frame in enumerate(seen.frames):
        if frame["kind"] == "failure":
            wrong += _late(seen.frames[:number], frame)
            if came == frame.get("code"):
                wrong += _unexplained(scenario, frame)
    return wrong


def _late(before: Sequence[Frame], failure: Frame) -> list[str]:
    """Whether a failure was explained too long after its stage began."""
    begun = [frame["at"] for frame in before if frame["kind"] in ("stage", "hello")]
    took = (failure["at"] - begun[-1]) / 1e6 if begun else 0.0
    if took <= TIMEOUT + GRACE:
        return []
    return [f"{failure.get('code')} was explained {took:.1f} s after stage {failure.get('stage')} began"]


def _unexplained(scenario: Scenario, failure: Frame) -> list[str]:
    """What the explanation must name and does not."""
    text = "\n".join(failure["lines"])
    needed = {
        "wrong root": ["nearest: /dev/"],
        "no root": [LABEL],
        "wrong rootflags": ["kernel: "],
        "wrong init": ["/sbin/missing"],
        "copy of the root": [LABEL, "2 devices match"],
    }.get(scenario.fault, [])
    if scenario.fault == "driver forbidden":
        needed = [_DRIVERS[scenario.interface].partition(",")[0], "rd.driver.blacklist"]
    return [f"the explanation lacks {need!r}" for need in needed if need not in text]
