"""Which accelerator to use: decided by booting a kernel with it, never by asking for it.

A nested hypervisor may offer a /dev/kvm that can be opened, says the right API version, creates virtual
machines and even runs a few instructions, and yet never boots Linux. So the proof of KVM is a kernel that
boots. ``auto`` falls back to TCG and says why; ``kvm`` never falls back.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from pyinit_qemu.disks.cache import cache_folder, digest_file
from pyinit_qemu.kernel import unpacked
from pyinit_qemu.machine import Machine
from pyinit_qemu.spec import PROGRAM, AcceleratorName, Program, VmSpec, cpu_model
from pyinit_qemu.timing import Deadline, Timeout, TimeScale
from pyinit_qemu.verdict import MachineError

Policy = Literal["auto", "kvm", "tcg"]
POLICIES: tuple[str, ...] = get_args(Policy)
VARIABLE = "PYINIT_QEMU_ACCEL"

_FORMAT = 1
_FIRST_LINE = r"Linux version \S+"
_FIRST_LINE_SECONDS = {"kvm": 10.0, "tcg": 60.0}
_LAST_LINE = r"Unable to mount root fs|end Kernel panic"


class AcceleratorError(MachineError):
    """No kernel can be booted the way that was asked for: trouble of this machine, not of an image."""


@dataclass(frozen=True)
class Proof:
    """What came of booting a kernel with one accelerator."""

    works: bool
    reason: str
    seconds: float = 0.0
    """Wall time until the kernel, given neither initramfs nor disk, gave up."""


@dataclass(frozen=True)
class Accelerator:
    """The decision."""

    name: AcceleratorName
    reason: str
    scale: TimeScale
    fallback: bool = False
    """KVM was wanted if possible, and is not."""

    def __str__(self) -> str:
        slower = "; boots are slower, and otherwise the same" if self.fallback else ""
        return f"accelerator {self.name}, timeouts x{self.scale.factor:g}: {self.reason}{slower}"


def policy_from_environment() -> Policy:
    """Return ``$PYINIT_QEMU_ACCEL``, ``auto`` when unset. ValueError when it is none of auto, kvm, tcg."""
    value = os.environ.get(VARIABLE, "auto")
    if value not in POLICIES:
        raise ValueError(f"{VARIABLE}={value!r} is not one of {', '.join(POLICIES)}")
    return value  # type: ignore[return-value]


def decide(
    policy: Policy,
    kernel: Path | str,
    *,
    cpu: str | None = None,
    program: Program = PROGRAM,
    device: str = "/dev/kvm",
) -> Accelerator:
    """Return the accelerator to boot ``kernel`` with; AcceleratorError when there is none for ``policy``.

    A proof takes some seconds and is kept until the host is rebooted, for this QEMU, kernel and CPU model.
    """
    path = Path(kernel)
    if policy != "tcg":
        proof = _prove("kvm", path, cpu, program, device)
        if proof.works:
            return Accelerator("kvm", proof.reason, TimeScale.from_probe(proof.seconds))
        if policy == "kvm":
            raise AcceleratorError(f"KVM was asked for and does not work here: {proof.reason}")
        denied = f"no KVM here ({_plainly(proof.reason, device)})"
    else:
        denied = "asked for"
    proof = _prove("tcg", path, cpu, program, device)
    if not proof.works:
        raise AcceleratorError(f"not even TCG boots {path}: {proof.reason}")
    return Accelerator("tcg", denied, TimeScale.from_probe(proof.seconds), fallback=policy == "auto")


def _plainly(reason: str, device: str) -> str:
    """Why KVM does not work; an assertion of QEMU's says nothing to whoever only wants to boot."""
    return f"QEMU crashes when it uses {device}" if "Assertion" in reason else reason


def _prove(accel: AcceleratorName, kernel: Path, cpu: str | None, program: Program, device: str) -> Proof:
    if accel == "kvm":
        try:
            os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            return Proof(False, f"{device}: {error.strerror}")
    spec = _probe_spec(kernel, accel, cpu)
    key = {
        "format": _FORMAT,
        "host boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "qemu": _version(program),
        "kernel": digest_file(kernel),
        "accelerator": accel,
        "cpu": cpu_model(spec),
        "device": device,
    }
    with _kept(key) as file:
        try:
            return Proof(**json.loads(file.read_text())["proof"])
        except (OSError, ValueError, TypeError, KeyError):
            pass
        proof = boot_probe(spec, program)
        # A proof that failed under TCG says nothing about the next try.
        if proof.works or accel == "kvm":
            file.write_text(json.dumps({"key": key, "proof": asdict(proof)}, indent=1) + "\n")
    return proof


def canary(
    accelerator: Accelerator, kernel: Path, *, cpu: str | None = None, program: Program = PROGRAM
) -> str:
    """Boot the kernel once more, now; return why that failed, or nothing.

    A proof is kept until the host is rebooted. This says whether the host still works today: room in memory,
    a QEMU that was not upgraded to something broken, a disk that is not full.
    """
    proof = boot_probe(_probe_spec(kernel, accelerator.name, cpu), program)
    return "" if proof.works else proof.reason


def _probe_spec(kernel: Path, accel: AcceleratorName, cpu: str | None) -> VmSpec:
    return VmSpec(kernel, None, append="earlyprintk=ttyS0", accel=accel, cpu=cpu, memory=256 << 20)


def boot_probe(spec: VmSpec, program: Program = PROGRAM) -> Proof:
    """Boot the kernel of ``spec`` to its first line, and to its end for the time that takes.

    KVM is proven with the kernel as it is: its decompressor and real-mode code are part of what must run.
    """
    if spec.accel == "tcg":
        spec = spec.replace(kernel=unpacked(spec.kernel))
    try:
        with Machine(spec, program=program, allow=("panic", "no-root")) as machine:
            start = time.monotonic()
            machine.run()
            line = machine.expect(_FIRST_LINE, _FIRST_LINE_SECONDS[spec.accel])
            machine.expect(_LAST_LINE, Timeout.BOOT)
            seconds = time.monotonic() - start
    except MachineError as error:
        return Proof(False, getattr(error, "reason", str(error)))
    return Proof(True, f"{line[0]} booted in {seconds:.1f} s", seconds)


def _version(program: Program) -> str:
    try:
        text = subprocess.run([*program, "--version"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AcceleratorError(f"{program[0]} cannot be run: {error}; install qemu-system-x86") from error
    match = re.search(r"version (.*)", text)
    return match[1] if match else text.strip()


@contextmanager
def _kept(key: dict[str, object]) -> Iterator[Path]:
    """Give the file for this key, locked: of several test processes one makes the proof."""
    folder = cache_folder() / "accelerator"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / (hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24] + ".json")
    with open(file.with_suffix(".lock"), "w") as lock:
        deadline = Deadline(300)
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if deadline.expired:
                    raise AcceleratorError(f"{lock.name} has been locked for 300 s") from None
                time.sleep(0.1)
        yield file
