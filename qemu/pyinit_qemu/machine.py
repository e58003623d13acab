"""One running virtual machine: its process, its consoles, its control connection, and waits on them."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import json
import os
import re
import select
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

from pyinit_qemu import icount
from pyinit_qemu import spec as specs
from pyinit_qemu.channel import Frame, Frames
from pyinit_qemu.console import FAILURES, Console, Failure
from pyinit_qemu.faults import Faults
from pyinit_qemu.keyboard import Keyboard
from pyinit_qemu.overlay import empty_overlay
from pyinit_qemu.qmp import Qmp
from pyinit_qemu.screen import Screen
from pyinit_qemu.spec import PROGRAM, Disk, Endpoints, Program, VmSpec
from pyinit_qemu.timing import Deadline, Timeout, TimeScale
from pyinit_qemu.verdict import BootFailed, Evidence, MachineError, Outcome, Verdict, judge

T = TypeVar("T")

Goal = Literal["done", "shutdown"]

_PR_SET_PDEATHSIG = 1
_SCRATCH = "pyinit-qemu-"
_QMP_GRACE = 3.0
_POLL = 0.5
_SETTLE_QUIET = 0.5
_SETTLE_LONGEST = 5.0

_libc = ctypes.CDLL(None, use_errno=True)
_alive: weakref.WeakSet[Machine] = weakref.WeakSet()


def replay_script(spec: VmSpec, program: Program = PROGRAM) -> str:
    """Return a shell script that boots the same machine with its console on the terminal."""
    lines = [
        "#!/bin/sh",
        "# The same machine on this terminal; Ctrl-A X ends it",
    ]
    lines += ["set -e", 'cd "$(dirname "$0")"']
    for name, path in specs.overlays(spec).items():
        make = shlex.join([sys.executable, "-m", "pyinit_qemu.overlay", name])
        lines.append(f"{make} {disk_size(path)}")
    for index, disk in enumerate(spec.disks):
        if disk.late:
            device = ",".join(f"{key}={value}" for key, value in specs.disk_device(spec, index).items())
            lines.append(f"# plug in on the monitor (Ctrl-A C): device_add {device}")
    arguments = specs.argv(spec, Endpoints(channel="file,path=channel.log"), program)
    return "\n".join([*lines, f"exec {shlex.join(arguments)}"]) + "\n"


def _compiled(pattern: str | re.Pattern[str]) -> re.Pattern[str]:
    return re.compile(pattern, re.MULTILINE) if isinstance(pattern, str) else pattern


def disk_size(path: Path) -> int:
    """Return the size in bytes of an image file or a block device."""
    with open(path, "rb") as image:
        return image.seek(0, os.SEEK_END)


def _scratch_folder() -> tuple[Path, int]:
    """Make a temporary folder and lock it; remove those whose owners were killed, which nobody locks."""
    parent = Path(tempfile.gettempdir())
    for lock in parent.glob(f"{_SCRATCH}*/lock"):
        with contextlib.suppress(OSError), open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_SCRATCH))
    # Locked before it gets the name that is looked for.
    descriptor = os.open(folder / "new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.rename(folder / "new", folder / "lock")
    return folder, descriptor


class Machine:
    """A virtual machine, from power on to its end. A context manager; nothing of it survives.

    QEMU runs in a session of its own and dies with the thread that serves it, so also when the whole
    process is killed. The same thread reads both serial ports and the control connection and sees the
    process end: each of these wakes every wait at once. A wait ends with what was awaited, or with
    :class:`BootFailed`, whose text says what was awaited, why it will not come, the last console lines and
    how to replay the boot.

    ``artifacts`` is the folder that receives ``cmdline.sh``, ``spec.json``, ``console.log`` (raw),
    ``frames.jsonl``, ``qmp.log`` and ``verdict.txt``; without one they live in a temporary folder.
    ``stall`` is how long console and result channel may be silent before the guest counts as hanging.
    ``allow`` names failure patterns (:data:`pyinit_qemu.console.FAILURES`) that this boot is expected to
    show. ``echo`` is called with raw console bytes as they come, from another thread.
    """

    def __init__(
        self,
        spec: VmSpec,
        *,
        program: Program = PROGRAM,
        artifacts: Path | None = None,
        scale: TimeScale | None = None,
        stall: float | Timeout = Timeout.STALL,
        allow: Collection[str] = (),
        echo: Callable[[bytes], None] | None = None,
    ) -> None:
        self.spec = spec
        self.program = program
        self.scale = scale or TimeScale()
        self.stall = self.scale.seconds(stall)
        self.allow = frozenset(allow)
        if unknown := self.allow.difference(pattern.name for pattern in FAILURES):
            known = ", ".join(pattern.name for pattern in FAILURES)
            raise ValueError(f"no failure pattern is called {', '.join(unknown)}; known: {known}")
        self.finished = False
        """Whether the end was waited for, or asked for."""
        self.outcome: Outcome | None = None
        """The last verdict, of a wait that failed or of the end."""
        self._echo = echo
        self._artifacts = artifacts
        self._scratch: Path | None = None
        self._scratch_lock = -1
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self._power_on = self._last_output = time.monotonic()
        self._console = Console(clock=lambda: time.monotonic() - self._power_on)
        self._frames = Frames()
        self._frame_cursor: dict[str, int] = {}
        self._control = Qmp()
        self._sockets: dict[str, socket.socket] = {}
        self._written: dict[str, bytes] = {}
        self._launch_error: Exception | None = None
        self._exit_code: int | None = None
        self._ended: float | None = None
        self._qmp_ended: float | None = None
        self._stopped = False
        self._saving = False
        self.faults = Faults(self)
        """What can go wrong with it."""

    # Life

    def start(self) -> Machine:
        """Start QEMU with the CPUs stopped, so that the machine can be prepared; :meth:`run` lets them go."""
        if self._thread is not None:
            raise MachineError("this machine was started before: make a new one")
        self.spec = icount.steadied(self.spec, self.program)
        self._scratch, self._scratch_lock = _scratch_folder()
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, path in specs.overlays(self.spec).items():
            try:
                written = self._written.pop(name, None)
                (self._scratch / name).write_bytes(written or empty_overlay(disk_size(path)))
            except OSError as error:
                self.close()
                raise MachineError(f"disk image {path} cannot be used: {error.strerror}") from error
        # The kernel's command line may be any bytes.
        (self.folder / "cmdline.sh").write_bytes(os.fsencode(replay_script(self.spec, self.program)))
        (self.folder / "cmdline.sh").chmod(0o755)
        (self.folder / "spec.json").write_text(specs.to_json(self.spec))
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,), name="pyinit-qemu", daemon=True)
        _alive.add(self)
        self._thread.start()
        ready.wait()
        if self._launch_error is not None:
            cause = self._launch_error
            self.close()
            raise MachineError(
                f"QEMU cannot be started ({' '.join(self.program)}): {cause}; install qemu-system-x86"
            ) from cause
        self._wait("QEMU's greeting", Timeout.LAUNCH, lambda: self._control.greeting, control=True)
        self.qmp("qmp_capabilities")
        return self

    def run(self) -> None:
        """Let the CPUs run: power on, or go on after a pause."""
        now = time.monotonic()
        if not self._console.lines:
            self._power_on = now
        self._last_output = now
        self.qmp("cont")

    def __enter__(self) -> Machine:
        return self.start() if self._thread is None else self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def finish(self, timeout: float | Timeout = Timeout.BOOT, *, goal: Goal = "done") -> Outcome:
        """Wait for the end and judge it. The machine is gone afterwards.

        ``goal="done"``: the result channel must end with its last frame; the guest is then given time to
        power off, and stopped if it does not. ``goal="shutdown"``: the guest must power off by itself.
        """
        words = (
            "the last frame (done) on the result channel" if goal == "done" else "the power-off of the guest"
        )

        def reached() -> bool | None:
            done = self._frames.done if goal == "done" else self._shutdown == "guest-shutdown"
            return done or None

        deadline = Deadline(self.scale.seconds(timeout))
        self.finished = True
        with self._changed:
            waited = self._idle_until(deadline, lambda: bool(reached() or self._failure()))
            if reached():
                self._idle_until(Deadline(self.scale.seconds(Timeout.POWEROFF)), lambda: False)
            elif self._failure():
                self._settle()
            else:
                waited = deadline.seconds
        return self._end(words, reached=bool(reached()), waited=waited, channel=goal == "done")

    def stop(self, goal: str = "what the caller waited for") -> Outcome:
        """End QEMU now and judge what was seen: PASS unless a failure shows that was not allowed."""
        self.finished = True
        return self._end(goal, reached=True, waited=None, channel=False)

    def power_cut(self, at: str | re.Pattern[str] | None = None) -> None:
        """End QEMU as a mains failure ends a machine: at once, with nothing flushed.

        ``at``: when the console shows this.
        """
        if at is not None:
            self.expect(at)
        self.finished = True
        self._kill()

    def again(self, artifacts: Path | None = None) -> Machine:
        """Return a machine like this one, with what was written to its disks; for one that has ended.

        ``artifacts``: as for a new machine.
        """
        if self.running or self._thread is None:
            raise MachineError("this machine has not ended: only then its disks can be used again")
        if self._scratch is None or not self._scratch.exists():
            raise MachineError("the disks of this machine are gone: call again() before close() and finish()")
        machine = Machine(
            self.spec,
            program=self.program,
            artifacts=artifacts,
            scale=self.scale,
            stall=self.stall,
            allow=self.allow,
            echo=self._echo,
        )
        for name in specs.overlays(self.spec):
            machine._written[name] = (self._scratch / name).read_bytes()
        return machine

    def close(self) -> None:
        """End QEMU if it runs, and remove the temporary folder. Safe to call again."""
        self._kill()
        if self._thread is not None:
            self._thread.join(10)
        for end in self._sockets.values():
            end.close()
        _alive.discard(self)
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
        if self._scratch_lock >= 0:
            os.close(self._scratch_lock)
            self._scratch_lock = -1

    @property
    def folder(self) -> Path:
        """Where the artifacts are."""
        if self._artifacts is not None:
            return self._artifacts
        if self._scratch is None:
            raise MachineError("the machine has not been started")
        return self._scratch

    @property
    def running(self) -> bool:
        return self._process is not None and self._exit_code is None

    @property
    def seconds(self) -> float:
        """Wall time from power on until the end, or until now."""
        return (self._ended or time.monotonic()) - self._power_on

    def attach(self, echo: Callable[[bytes], None] | None) -> None:
        """From now on call ``echo``, if any, with raw console bytes as they come, from another thread."""
        with self._changed:
            self._echo = echo

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        if self._process is None:
            raise MachineError("the machine has not been started")
        return self._process.pid

    def idle(self, seconds: float) -> None:
        """Let time pass, or less if QEMU ends before."""
        deadline = Deadline(seconds)
        with self._changed:
            while self._exit_code is None and not deadline.expired:
                self._changed.wait(deadline.remaining())

    @property
    def keyboard(self) -> Keyboard:
        """The keyboard, which types on the VGA console and presses ``ctrl-alt-delete``."""
        return Keyboard(self)

    # Console

    @property
    def console(self) -> str:
        """All console output so far as plain text."""
        with self._changed:
            return self._console.text

    def tail(self, count: int = 40) -> str:
        """Return the last console lines with their times (seconds since power on)."""
        with self._changed:
            return self._console.tail(count)

    def expect(
        self,
        pattern: str | re.Pattern[str],
        timeout: float | Timeout = Timeout.BOOT,
        *,
        allow: Collection[str] = (),
        fail: str | re.Pattern[str] | None = None,
    ) -> re.Match[str]:
        """Wait until the console shows ``pattern`` after the last match; return the match.

        The pattern is searched in plain text (no escape sequences, ``\\n`` ends a line) and may span lines; a
        ``str`` is compiled with re.MULTILINE. A match that further output could change (``\\S+`` in the
        middle of a word, ``$`` before the line has ended) counts when the console has been quiet for half a
        second. A failure pattern that shows first ends the wait, unless its name is in ``allow`` or in the
        machine's own; so does ``fail``, which is for this wait only.
        """
        regex, refused = _compiled(pattern), None if fail is None else _compiled(fail)

        def probe() -> re.Match[str] | None:
            growing = self._quiet_left() > 0
            match = self._console.search(regex, growing=growing)
            wrong = None if refused is None else self._console.search(refused, growing=growing)
            if wrong is not None and (match is None or wrong.start() < match.start()):
                self._console.fail("asked", wrong)
                return None
            if match is None or self._failure(allow, before=match.start()):
                return None
            self._console.cursor = match.end()
            return match

        return self._wait(f"/{regex.pattern}/ on the console", timeout, probe, allow)

    def expect_in_order(
        self,
        patterns: Sequence[str | re.Pattern[str]],
        timeout: float | Timeout = Timeout.BOOT,
        *,
        allow: Collection[str] = (),
    ) -> list[re.Match[str]]:
        """Wait for each pattern after the one before; ``timeout`` is for all of them together."""
        deadline = Deadline(self.scale.seconds(timeout))
        return [self.expect(pattern, deadline.remaining(), allow=allow) for pattern in patterns]

    def send_line(self, text: str) -> None:
        """Type a line on the console, with Enter."""
        self.send_bytes(text.encode() + b"\n")

    def send_bytes(self, data: bytes) -> None:
        """Type bytes on the console."""
        self._send("console", data)

    def poll(
        self,
        goal: str,
        probe: Callable[[], T | None],
        timeout: float | Timeout = Timeout.BOOT,
        *,
        allow: Collection[str] = (),
    ) -> T:
        """Ask ``probe`` twice a second until it finds something; what ends other waits ends this one."""
        deadline = Deadline(self.scale.seconds(timeout))
        while (value := probe()) is None:
            self.idle(_POLL)
            with self._changed:
                waited = deadline.seconds if deadline.expired else None
                evidence = self._evidence(goal, failure=self._failure(allow), waited=waited)
            if (verdict := judge(evidence)) is not None:
                raise self._failed(evidence, *verdict)
        return value

    # Result channel

    @property
    def frames(self) -> tuple[Frame, ...]:
        """All frames of the result channel so far."""
        with self._changed:
            return tuple(self._frames.items)

    def wait_frame(
        self, kind: str, timeout: float | Timeout = Timeout.BOOT, *, allow: Collection[str] = ()
    ) -> Frame:
        """Wait for the next frame of this kind: the first call returns the first one, the next the second."""
        allowed = {*allow, "banner"} if kind == "failure" else set(allow)

        def probe() -> Frame | None:
            frames = self._frames.of_kind(kind)
            count = self._frame_cursor.get(kind, 0)
            if len(frames) <= count:
                return None
            self._frame_cursor[kind] = count + 1
            return frames[count]

        return self._wait(
            f"a {kind!r} frame on the result channel", timeout, probe, allowed, over=lambda: self._frames.done
        )

    # Hardware

    def plug(self, disk: Disk) -> None:
        """Plug in a disk of the specification that is late, or was unplugged."""
        self.qmp("device_add", **specs.disk_device(self.spec, self.index(disk)))

    def unplug(self, disk: Disk, timeout: float | Timeout = Timeout.QMP) -> None:
        """Ask the guest to let go of a disk, and wait until it is gone. Its contents stay for a new plug."""
        device = specs.device_id(self.index(disk))
        with self._changed:
            seen = len(self._control.events)
        self.qmp("device_del", id=device)
        self.wait_event("DEVICE_DELETED", timeout, since=seen, device=device)

    def index(self, disk: Disk) -> int:
        """Return the place of a disk in the specification."""
        if disk not in self.spec.disks:
            raise MachineError(f"{disk} is not a disk of this machine: declare it there with late=True")
        return self.spec.disks.index(disk)

    @property
    def screen(self) -> Screen:
        """What stands on the VGA screen. MachineError when there is none."""
        if not self.spec.vga:
            raise MachineError("this machine has no screen: give it vga=True")
        return Screen(self)

    def _save_screen(self) -> None:
        """Leave a picture and a copy of the text among the artifacts; without them if it cannot be."""
        if self.spec.vga and self.running and not self._saving:
            self._saving = True
            with contextlib.suppress(MachineError, OSError):
                self.screen.png(self.folder / "screen.png")
                (self.folder / "screen.txt").write_text(self.screen.text())
            self._saving = False

    # Control

    def qmp(
        self,
        command: str,
        /,
        *,
        deadline: float | Timeout = Timeout.QMP,
        hidden: bool = False,
        **arguments: Any,
    ) -> Any:
        """Execute a control command; return what it returned. QmpError if QEMU refuses.

        ``hidden``: the log of control commands does not show the arguments.
        """
        with self._changed:
            number, line = self._control.request(command, arguments)
        self._log_qmp(">", b"%s (arguments not shown)" % command.encode() if hidden else line)
        self._send("qmp", line)
        self._wait(
            f"QEMU's answer to {command}",
            deadline,
            lambda: True if number in self._control.replies else None,
            control=True,
        )
        with self._changed:
            return self._control.reply(number, command)

    def wait_event(
        self, name: str, timeout: float | Timeout = Timeout.QMP, *, since: int = 0, **data: Any
    ) -> Any:
        """Wait for a control event whose data contain ``data``; ``since``: index of the first that counts."""
        return self._wait(
            f"QEMU's event {name} {data or ''}".rstrip(),
            timeout,
            lambda: self._control.find_event(name, data, since),
            control=True,
        )

    # Waits

    def wait_for(
        self,
        goal: str,
        probe: Callable[[], T | None],
        timeout: float | Timeout = Timeout.BOOT,
        *,
        allow: Collection[str] = (),
    ) -> T:
        """Wait until ``probe`` returns something, and return it; asked whenever the machine says something.

        ``goal`` says in words what is awaited, for the report. What ends other waits ends this one.
        """
        return self._wait(goal, timeout, probe, allow)

    def _wait(
        self,
        goal: str,
        timeout: float | Timeout,
        probe: Callable[[], T | None],
        allow: Collection[str] = (),
        *,
        over: Callable[[], bool] = lambda: False,
        control: bool = False,
    ) -> T:
        """Return what ``probe`` finds, or raise; ``over`` tells that it will find nothing any more.

        A ``control`` wait is about QEMU and not about the guest: what the guest says does not matter.
        """
        deadline = Deadline(self.scale.seconds(timeout))
        with self._changed:
            if self._thread is None:
                raise MachineError("the machine has not been started")
            value = probe()
            while value is None:
                failure = None if control else self._failure(allow)
                if failure is not None:
                    self._settle()
                elif over():
                    failure = Failure(
                        "channel", "the result channel ended without it", len(self._console.text)
                    )
                expired = deadline.expired
                evidence = self._evidence(
                    goal, failure=failure, waited=deadline.seconds if expired else None, watched=not control
                )
                verdict = judge(evidence)
                if verdict is not None:
                    break
                self._changed.wait(self._next_wake(deadline, watched=not control))
                value = probe()
            else:
                return value
        raise self._failed(evidence, *verdict)

    def _idle_until(self, deadline: Deadline, stop: Callable[[], bool]) -> float | None:
        """Wait for QEMU's end, a hang, the deadline or ``stop``; return the seconds if they passed."""
        while self._exit_code is None and not stop():
            if deadline.expired:
                return deadline.seconds
            if judge(self._evidence("", watched=True)) is not None:
                return None
            self._changed.wait(self._next_wake(deadline, watched=True))
        return None

    def _settle(self) -> None:
        """After a failure showed: let the guest say the rest, so that the report has it."""
        longest = Deadline(_SETTLE_LONGEST * self.scale.factor)
        while self._exit_code is None and not longest.expired:
            quiet = self._quiet_left()
            if quiet <= 0:
                return
            self._changed.wait(min(quiet, longest.remaining()))

    def _quiet_left(self) -> float:
        """Return for how many seconds the guest must still be silent to count as having said what it says."""
        if self._exit_code is not None:
            return 0.0
        return _SETTLE_QUIET * self.scale.factor - (time.monotonic() - self._last_output)

    def _next_wake(self, deadline: Deadline, *, watched: bool) -> float:
        now = time.monotonic()
        ends = [deadline.end]
        if watched:
            ends.append(self._last_output + self.stall)
            if (quiet := self._quiet_left()) > 0:
                ends.append(now + quiet)
        if self._qmp_ended is not None:
            ends.append(self._qmp_ended + _QMP_GRACE)
        return max(0.0, min(ends) - now)

    def _failure(self, allow: Collection[str] = (), before: int | None = None) -> Failure | None:
        return self._console.failure(self.allow.union(allow), before)

    @property
    def _shutdown(self) -> str | None:
        event = self._control.find_event("SHUTDOWN", {})
        if event is not None and self._control.find_event("WATCHDOG", {}) is not None:
            return "watchdog"
        return None if event is None else str(event.get("data", {}).get("reason", "unknown"))

    def _evidence(
        self,
        goal: str,
        *,
        reached: bool = False,
        failure: Failure | None = None,
        waited: float | None = None,
        watched: bool = True,
        channel: bool = False,
    ) -> Evidence:
        now = time.monotonic()
        ended = self._qmp_ended
        return Evidence(
            goal=goal,
            reached=reached,
            failure=failure,
            damage=str(self._frames.damage[0]) if channel and self._frames.damage else None,
            exit_code=self._exit_code,
            stopped=self._stopped,
            shutdown=self._shutdown,
            qmp_lost=self._exit_code is None and ended is not None and now - ended >= _QMP_GRACE,
            waited=waited,
            quiet=now - self._last_output if watched and self._exit_code is None else 0.0,
            stall=self.stall,
            stderr=self._stderr(),
        )

    def _stderr(self) -> str:
        if self._scratch is None or self._exit_code is None:
            return ""
        try:
            return (self._scratch / "qemu.err").read_text("utf-8", "replace")[-4000:]
        except OSError:
            return ""

    def _failed(self, evidence: Evidence, verdict: Verdict, reason: str) -> BootFailed:
        outcome = self._outcome(evidence, verdict, reason)
        self._save_screen()
        return BootFailed(outcome.verdict, outcome.reason, outcome.report)

    def _end(self, goal: str, *, reached: bool, waited: float | None, channel: bool) -> Outcome:
        """Judge, and end QEMU."""
        with self._changed:
            evidence = self._evidence(
                goal, reached=reached, failure=self._failure(), waited=waited, channel=channel
            )
        verdict = judge(evidence)
        if verdict is None:
            verdict = Verdict.TIMEOUT, f"not seen: {goal}"
        state = self._state(verdict[0])
        if verdict[0] is not Verdict.PASS:
            self._save_screen()
        if self.running:
            self._quit()
        outcome = self._outcome(evidence, *verdict, state=state)
        self.close()
        return outcome

    def _outcome(
        self, evidence: Evidence, verdict: Verdict, reason: str, state: str | None = None
    ) -> Outcome:
        if state is None:
            state = self._state(verdict)
        with self._changed:
            report = [f"{verdict.value}: {reason}", f"waited for: {evidence.goal}", f"machine: {state}"]
            report += [f"result channel damaged: {damage}" for damage in self._frames.damage[:5]]
            kinds = [str(frame["kind"]) for frame in self._frames.items]
            report.append(f"frames: {', '.join(kinds) or 'none'}")
            if evidence.stderr.strip():
                report += [
                    "QEMU said:",
                    *(f"  {line}" for line in evidence.stderr.strip().splitlines()[-10:]),
                ]
            report += ["last console lines (seconds since power on):", self._console.tail() or "  (none)"]
            if self._artifacts is not None:
                report.append(f"replay: {self._artifacts / 'cmdline.sh'}")
            else:
                report.append(f"replay: {specs.boot_command(self.spec)}")
            outcome = Outcome(
                verdict=verdict,
                reason=reason,
                frames=tuple(self._frames.items),
                console=self._console.text,
                seconds=time.monotonic() - self._power_on,
                exit_code=self._exit_code,
                shutdown=evidence.shutdown,
                report="\n".join(report),
            )
        self.outcome = outcome
        with contextlib.suppress(OSError):
            (self.folder / "verdict.txt").write_text(outcome.report + "\n")
        return outcome

    def _state(self, verdict: Verdict) -> str:
        """Say in words what QEMU is doing."""
        if self._exit_code is not None:
            return f"QEMU ended with {self._exit_code}" + (f" ({self._shutdown})" if self._shutdown else "")
        words = f"QEMU runs, last output {time.monotonic() - self._last_output:.1f} s ago"
        if verdict not in (Verdict.HANG, Verdict.TIMEOUT):
            return words
        try:
            words += f", CPUs {self._ask('query-status')['status']}"
            registers = self._ask("human-monitor-command", **{"command-line": "info registers"})
            found = re.search(r"\b[RE]IP=(\w+)", registers), re.search(r"\bHLT=(\d)", registers)
            if found[0] and found[1]:
                words += f", instruction pointer {found[0][1]}, {'idle' if found[1][1] == '1' else 'busy'}"
        except MachineError:
            words += ", the control connection does not answer"
        return words

    def _ask(self, command: str, **arguments: Any) -> Any:
        """Execute a control command for a report: without a report of its own."""
        with self._changed:
            number, line = self._control.request(command, arguments)
        self._log_qmp(">", line)
        self._send("qmp", line)
        deadline = Deadline(3.0)
        with self._changed:
            while number not in self._control.replies:
                if deadline.expired or self._exit_code is not None or self._qmp_ended is not None:
                    raise MachineError(f"no answer to {command}")
                self._changed.wait(deadline.remaining())
            return self._control.reply(number, command)

    # The process

    def _send(self, name: str, data: bytes) -> None:
        end = self._sockets.get(name)
        if end is None:
            raise MachineError("the machine has not been started")
        deadline = Deadline(self.scale.seconds(Timeout.QMP))
        view = memoryview(data)
        while view:
            _, writable, _ = select.select([], [end], [], deadline.remaining())
            if not writable:
                raise MachineError(f"the {name} has taken no bytes for {deadline.seconds:.0f} s")
            try:
                view = view[end.send(view, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                continue
            except OSError:
                return  # QEMU is gone: the wait that follows says so, and why

    def _quit(self) -> None:
        """End QEMU the polite way, then the other."""
        self._stopped = True
        deadline = Deadline(5.0)
        with contextlib.suppress(MachineError):
            self._ask("quit")
            with self._changed:
                while self._exit_code is None and not deadline.expired:
                    self._changed.wait(deadline.remaining())
        self._kill()

    def _kill(self) -> None:
        process = self._process
        if process is None:
            return
        with self._changed:
            if self._exit_code is not None:
                return
            self._stopped = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            deadline = Deadline(10.0)
            while self._exit_code is None and not deadline.expired:
                self._changed.wait(deadline.remaining())

    def _serve(self, ready: threading.Event) -> None:
        """The machine's thread: starts QEMU, reads all it says, sees it end."""
        try:
            process = self._launch()
        except Exception as error:
            self._launch_error = error
            ready.set()
            return
        self._process = process
        ready.set()
        try:
            self._read(process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            with self._changed:
                self._exit_code = code
                self._ended = time.monotonic()
                self._changed.notify_all()

    def _launch(self) -> subprocess.Popen[bytes]:
        assert self._scratch is not None
        theirs: dict[str, socket.socket] = {}
        for name in ("console", "channel", "qmp"):
            self._sockets[name], theirs[name] = socket.socketpair()
        endpoints = Endpoints(
            **{name: f"socket,fd={end.fileno()}" for name, end in theirs.items()},
            overlays=self._scratch,
            paused=True,
        )
        parent = os.getpid()

        def die_with_parent() -> None:
            # The signal is sent when the thread that forked ends, which is this machine's own.
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

        try:
            with open(self._scratch / "qemu.err", "wb") as errors:
                return subprocess.Popen(
                    specs.argv(self.spec, endpoints, self.program),
                    stdin=subprocess.DEVNULL,
                    stdout=errors,
                    stderr=errors,
                    pass_fds=[end.fileno() for end in theirs.values()],
                    start_new_session=True,
                    preexec_fn=die_with_parent,
                )
        finally:
            for end in theirs.values():
                end.close()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        pidfd = os.pidfd_open(process.pid)
        takers = {"console": self._take_console, "channel": self._take_channel, "qmp": self._take_qmp}
        with (
            selectors.DefaultSelector() as selector,
            open(self.folder / "console.log", "wb", buffering=0) as self._console_log,
            open(self.folder / "frames.jsonl", "w", buffering=1) as self._frames_log,
        ):
            selector.register(pidfd, selectors.EVENT_READ, "")
            for name in takers:
                selector.register(self._sockets[name], selectors.EVENT_READ, name)
            ended = False
            while not ended:
                for key, _ in selector.select():
                    if not key.data:
                        ended = True
                    elif not self._receive(key.data, takers[key.data]):
                        selector.unregister(key.fileobj)
            os.close(pidfd)
            open_ends = [key.data for key in selector.get_map().values() if key.data]
            for name in open_ends:
                while self._receive(name, takers[name]):
                    pass
            with self._changed:
                self._console.close()
                self._frames.close()

    def _receive(self, name: str, take: Callable[[bytes], None]) -> bool:
        """Take what an end has to give; False when it has ended, or gives nothing after QEMU's end."""
        try:
            data = self._sockets[name].recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        with self._changed:
            if data:
                if name != "qmp":
                    self._last_output = time.monotonic()
                take(data)
            elif name == "qmp":
                self._qmp_ended = time.monotonic()
            self._changed.notify_all()
        return bool(data)

    def _take_console(self, data: bytes) -> None:
        self._console_log.write(data)
        self._console.feed(data)
        if self._echo is not None:
            self._echo(data)

    def _take_channel(self, data: bytes) -> None:
        for frame in self._frames.feed(data):
            self._frames_log.write(json.dumps(dict(frame)) + "\n")
            if frame["kind"] == "failure":
                lines = frame.get("lines")
                words = str(lines[0] if isinstance(lines, list) and lines else frame.get("code", "failure"))
                self._console.failures.append(Failure("banner", words, len(self._console.text)))

    def _take_qmp(self, data: bytes) -> None:
        self._log_qmp("<", data)
        self._control.feed(data)

    def _log_qmp(self, direction: str, data: bytes) -> None:
        with contextlib.suppress(OSError), open(self.folder / "qmp.log", "a") as log:
            for line in data.decode("utf-8", "replace").splitlines():
                log.write(f"{time.monotonic() - self._power_on:9.3f} {direction} {line}\n")


@atexit.register
def _close_all() -> None:
    for machine in list(_alive):
        machine.close()
