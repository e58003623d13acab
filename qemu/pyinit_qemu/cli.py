"""The command pyinit-qemu: boots kernels and images, measures boots, fetches kernels to boot."""

from __future__ import annotations

import argparse
import os
import re
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from pyinit_qemu import bench_command, debian_command, guest_command, image_command, kernel_command
from pyinit_qemu.accel import POLICIES, decide, policy_from_environment
from pyinit_qemu.console import Cleaner
from pyinit_qemu.kernel import unpacked
from pyinit_qemu.machine import Machine
from pyinit_qemu.spec import INTERFACES, MIB, PROGRAM, Disk, MachineType, Program, VmSpec
from pyinit_qemu.timing import Timeout, TimeScale
from pyinit_qemu.verdict import BootFailed, MachineError, Outcome, Verdict

EXIT = {
    Verdict.PASS: 0,
    Verdict.GUEST_FAIL: 1,
    Verdict.PANIC: 1,
    Verdict.HANG: 1,
    Verdict.TIMEOUT: 1,
    Verdict.QEMU_CRASH: 3,
}
"""Exit status for a verdict; 2 is for wrong usage."""

_ESCAPE = 0x01  # Ctrl-A
_KEYS = b"Ctrl-A X ends the machine, Ctrl-A Ctrl-A types a Ctrl-A.\r\n"


def interactive(
    spec: VmSpec,
    *,
    until: str | None = None,
    timeout: float | Timeout = Timeout.LOGIN,
    scale: TimeScale | None = None,
    program: Program = PROGRAM,
    artifacts: Path | None = None,
    terminal: bool | None = None,
) -> Outcome:
    """Boot with the console on standard input and output; return how it ended.

    On a terminal a person is in charge: no timeout, Ctrl-A X ends the machine, Ctrl-A Ctrl-A types a Ctrl-A,
    and it passed when the guest powered off or the person left, unless the last thing that pyinit reported by
    then was a failure. Otherwise the console is printed as plain text, and it passed when ``until`` (a
    regular expression) showed, or without one when the result channel was ended by its last frame;
    ``timeout`` bounds that. ``terminal`` overrides what the standard streams say.
    """
    if terminal is None:
        terminal = os.isatty(0) and os.isatty(1)
    if terminal:
        return _on_terminal(spec, scale, program, artifacts)
    cleaner = Cleaner()

    def echo(data: bytes) -> None:
        sys.stdout.write(cleaner.feed(data))
        sys.stdout.flush()

    with Machine(spec, program=program, artifacts=artifacts, scale=scale, echo=echo) as machine:
        machine.run()
        if until is None:
            return machine.finish(timeout)
        try:
            machine.expect(until, timeout)
        except BootFailed:
            assert machine.outcome is not None
            return machine.outcome
        return machine.stop(f"/{until}/ on the console")


def _on_terminal(spec: VmSpec, scale: TimeScale | None, program: Program, artifacts: Path | None) -> Outcome:
    # A person looks at what goes wrong, and may have put it right since: only a panic is final.
    allow = ("banner", "traceback", "oops")
    with Machine(spec, program=program, artifacts=artifacts, scale=scale, allow=allow) as machine:
        if relay(machine, start=True):
            return _unless_failed(machine.stop("Ctrl-A X"))
        done = any(frame["kind"] == "done" for frame in machine.frames)
        return _unless_failed(machine.finish(goal="done" if done else "shutdown"))


def _unless_failed(outcome: Outcome) -> Outcome:
    """A machine that ended where pyinit had given up booting it did not pass, however it ended."""
    told = [frame for frame in outcome.frames if frame["kind"] in ("failure", "record", "done")]
    if not outcome.ok or not told or told[-1]["kind"] != "failure":
        return outcome
    reason = f"the boot did not get past {told[-1]['lines'][0]}"
    verdict = Verdict.GUEST_FAIL
    return replace(outcome, verdict=verdict, reason=reason, report=f"{verdict.value}: {reason}")


def relay(machine: Machine, *, start: bool = False) -> bool:
    """Give this terminal to the console of a machine until it ends, or the person ends it: then True.

    ``start``: the CPUs are let go first.
    """

    def echo(data: bytes) -> None:
        while data:
            data = data[os.write(1, data) :]

    saved = termios.tcgetattr(0)
    # The settings must come back even if the terminal goes away or somebody ends us.
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        tty.setraw(0)
        # Said when it holds: what is typed before is thrown away.
        echo(_KEYS)
        machine.attach(echo)
        if start:
            machine.run()
        return _relay(machine, echo)
    finally:
        machine.attach(None)
        termios.tcsetattr(0, termios.TCSADRAIN, saved)
        signal.signal(signal.SIGTERM, previous)
        print(flush=True)


def _relay(machine: Machine, echo: Callable[[bytes], None]) -> bool:
    """Carry typed bytes to the console until the machine ends; True if the person ended it."""
    ended = os.pidfd_open(machine.pid)
    escaped = False
    try:
        while True:
            readable, _, _ = select.select([0, ended], [], [])
            if ended in readable:
                return False
            typed = os.read(0, 1024)
            if not typed:
                return True
            keys = bytearray()
            for key in typed:
                if escaped:
                    escaped = False
                    if key in b"xX":
                        return True
                    if key == _ESCAPE:
                        keys.append(key)
                    else:
                        echo(b"\r\n" + _KEYS)
                elif key == _ESCAPE:
                    escaped = True
                else:
                    keys.append(key)
            if keys:
                machine.send_bytes(bytes(keys))
    finally:
        os.close(ended)


def parse_disk(text: str) -> Disk:
    """Read ``FILE[,interface=...][,serial=...][,readonly][,write]``; a comma in FILE is written twice."""
    file, *options = (part.replace("\0", ",") for part in text.replace(",,", "\0").split(","))
    values: dict[str, Any] = {"path": Path(file)}
    for option in options:
        name, _, value = option.partition("=")
        match name, bool(value):
            case (("interface" | "serial"), True):
                values[name] = value
            case "readonly", False:
                values["readonly"] = True
            case "write", False:
                values["snapshot"] = False
            case _:
                raise ValueError(
                    f"unknown disk option {option!r}; known: interface={'|'.join(INTERFACES)}, "
                    "serial=TEXT, readonly, write"
                )
    return Disk(**values)


def _disk(text: str) -> Disk:
    try:
        disk = parse_disk(text)
        with open(disk.path, "rb"):
            return disk
    except (ValueError, OSError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _file(text: str) -> Path:
    try:
        with open(text, "rb"):
            return Path(text)
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from error
    return text


def parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    top = argparse.ArgumentParser(prog="pyinit-qemu", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    boot = commands.add_parser(
        "boot",
        help="boot a kernel and an initramfs",
        description="Boot a kernel and an initramfs. On a terminal: the machine's console, Ctrl-A X ends it. "
        "Otherwise: prints the console and ends by itself; status 0 only if the boot passed, 3 if QEMU "
        "failed.",
    )
    boot.add_argument("--kernel", required=True, type=_file, metavar="K", help="bzImage or vmlinux")
    boot.add_argument("--initrd", type=_file, metavar="I", help="initramfs image")
    boot.add_argument(
        "--disk",
        action="append",
        default=[],
        type=_disk,
        metavar="FILE[,interface=...][,serial=...][,readonly][,write]",
        help="raw image; the guest's writes are thrown away unless `write` is given. "
        f"Interfaces: {', '.join(INTERFACES)}",
    )
    boot.add_argument("--append", default="", metavar="WORDS", help="kernel command line words")
    boot.add_argument("--accel", choices=POLICIES, help="default: $PYINIT_QEMU_ACCEL, else auto")
    boot.add_argument("--cpu", metavar="MODEL", help="QEMU's CPU model; default: host with KVM, else max")
    boot.add_argument("--icount", action="store_true", help="the guest's clock counts instructions (TCG)")
    boot.add_argument("--machine", choices=get_args(MachineType), default="q35", help="default: q35")
    boot.add_argument("--memory", type=int, default=512, metavar="MIB", help="default: 512")
    boot.add_argument("--smp", type=int, default=1, metavar="N", help="processors; default: 1")
    boot.add_argument("--unpack", action="store_true", help="skip the kernel's decompressor (faster in TCG)")
    boot.add_argument("--timeout", type=float, metavar="SECONDS", help="without a terminal; default: 300")
    boot.add_argument(
        "--until",
        type=_pattern,
        metavar="PATTERN",
        help="without a terminal: pass when the console shows this regular expression; "
        "default: when the result channel ends with `done`",
    )
    bench_command.add(commands, _file, _disk, _pattern)
    kernel_command.add(commands)
    debian_command.add(commands)
    image_command.add(commands)
    guest_command.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    command = parser()
    options = command.parse_args(arguments)
    if options.command != "boot":
        status: int = options.run(options)
        return status
    try:
        policy = "tcg" if options.icount else options.accel or policy_from_environment()
        spec = VmSpec(
            kernel=options.kernel,
            initrd=options.initrd,
            append=options.append,
            disks=tuple(options.disk),
            memory=options.memory * MIB,
            smp=options.smp,
            cpu=options.cpu,
            icount=options.icount,
            machine=options.machine,
        )
    except ValueError as error:
        command.error(str(error))
    try:
        accelerator = decide(policy, spec.kernel, cpu=spec.cpu)
        print(f"pyinit-qemu: {accelerator}", file=sys.stderr)
        spec = spec.replace(accel=accelerator.name)
        if options.unpack:
            spec = spec.replace(kernel=unpacked(spec.kernel))
        timeout: float | Timeout = options.timeout or Timeout.LOGIN
        outcome = interactive(spec, until=options.until, timeout=timeout, scale=accelerator.scale)
    except MachineError as error:
        print(f"pyinit-qemu: {error}", file=sys.stderr)
        return EXIT[error.verdict] if isinstance(error, BootFailed) else EXIT[Verdict.QEMU_CRASH]
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    report = f"{outcome.verdict.value}: {outcome.reason}" if outcome.ok else outcome.report
    print(f"\npyinit-qemu: {report}", file=sys.stderr)
    return EXIT[outcome.verdict]
