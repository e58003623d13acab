"""Waiting for devices: a want says what is needed, one loop wakes when something happened.

Nothing ticks: the loop sleeps in poll(2) on the udev monitor, on signals (a child ended) and until the next
moment at which there is something to say or to do.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Collection, Iterator, Sequence
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pyinit.config.devspec import TAGS, value_of
from pyinit.devices.udev import Devices, UdevDaemon, trigger_devices
from pyinit.devices.view import DeviceView
from pyinit.errors import BootError
from pyinit.kernel.console import Console
from pyinit.kernel.drivers import Drivers
from pyinit.kernel.keyboard import Keyboard
from pyinit.kernel.process import Children
from pyinit.record import now
from pyinit.text import printable

if TYPE_CHECKING:
    from pyinit.devices.progress import Progress

# After so many seconds a person is told, and may press keys: see pyinit.devices.progress, which is not
# imported before.
PATIENCE = 5.0
# Seconds between lines about work that nobody is asked for.
NEXT_WORD = 10.0
FULL_COLDPLUG = 1.0
# After so many seconds people begin to type, and may type a passphrase before it is asked for.
HUSH = 1.0
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
# A device that matches is used at once, unless the kernel has announced other block devices that udevd has
# not looked at yet: a copy of the root could be among them, and which of the two is first must not decide.
OTHERS_GRACE = 0.3


class Want(NamedTuple):
    """Something that the boot cannot go on without."""

    name: str
    """Who needs it: ``root``."""
    spec: str
    """What is asked for, printable."""
    resolve: Callable[[Collection[DeviceView]], list[DeviceView]]
    """The devices that satisfy it among those known; more than one means that it is ambiguous."""
    timeout: float | None
    """Seconds until it expires; None: never."""
    prepare: Callable[[DeviceView], None] = lambda device: None
    """Called once with a device that satisfies it, which may have to be held back for others."""
    grace: float = OTHERS_GRACE
    """Seconds for which it is held back at most."""


class ShellWanted(Exception):
    """A person pressed the key for a shell while the boot waited."""


class Assembler(Protocol):
    """A storage stack, which makes new devices out of those that appear: LUKS, LVM, MD and the like.

    It never blocks: programs are children that are started, and looked at again when one of them has ended.
    """

    name: str
    """What it is called on the command line: ``luks``."""

    def react(self, known: Collection[DeviceView]) -> None:
        """Start what can be started with the devices that udevd has processed.

        Called when waiting begins, after every change of the devices, when a child has ended, and at the
        moment that :meth:`wake` named. :class:`BootError` ends the waiting.
        """

    def wake(self) -> float:
        """The moment (``time.monotonic``) at which to be called even if nothing happens; ``inf`` for none."""

    def holds(self) -> bool:
        """Whether the boot may neither go on nor give up a device now: it works, or a person is asked."""

    def waits_for(self) -> tuple[str, ...]:
        """What it lacks or is doing, a printable line each: for progress lines and explanations."""

    def opened(self) -> tuple[str, ...]:
        """The names of what is open and took a secret to open."""

    def close(self) -> None:
        """Undo what was opened with a secret and forget the secret, for a person is about to get a shell.

        Nothing that it made is mounted any more. What was closed is opened again when waiting goes on.
        """

    def forget(self) -> None:
        """Forget every secret: the boot needs no more devices."""


class Waiter:
    """Keeps what is known of the devices, lets the assemblers work, and waits for wants."""

    def __init__(
        self,
        devices: Devices,
        daemon: UdevDaemon,
        children: Children,
        console: Console,
        assemblers: Sequence[Assembler] = (),
        keyboard: Keyboard | None = None,
        may_open_shell: Callable[[], bool] = lambda: False,
        drivers: Drivers | None = None,
    ) -> None:
        """``may_open_shell``: whether keys are read, one of which asks for a shell.

        ``drivers``: by which devices may still come.
        """
        self._devices = devices
        self._daemon = daemon
        self._children = children
        self._console = console
        self._assemblers = assemblers
        self._keyboard = keyboard or Keyboard()
        self._may_open_shell = may_open_shell
        self._drivers = drivers or Drivers(console)
        self.known: dict[str, DeviceView] = {}
        self._coldplugged = False
        self._progress: Progress | None = None

    def wait(self, want: Want) -> DeviceView:
        """Return the device that satisfies ``want``, the moment udevd has processed it.

        It is held back, so that a second device that matches is seen, while drivers are being loaded, and for
        at most ``Want.grace`` seconds while other block devices are known to be on their way through udevd.

        Raises :class:`BootError`: ``E-DEV`` when the want expires, ``E-AMBIG`` when several devices satisfy
        it, ``E-UDEV`` when udevd cannot be kept running; :class:`ShellWanted` when a person asks for a shell.
        """
        entry = self._console.record.add(
            "wants", name=want.name, spec=want.spec, asked=now(), ended=0, outcome="", by="", event=""
        )
        try:
            return self._wait(want, entry)
        finally:
            self._end_progress()
            self._keyboard.unhush()

    def _wait(self, want: Want, entry: dict[str, Any]) -> DeviceView:
        asked = before = monotonic()
        poll = select.poll()
        poll.register(self._devices.fileno(), select.POLLIN)
        poll.register(self._children.watch(), select.POLLIN)
        poll.register(self._drivers.fileno(), select.POLLIN)
        deadline = None if want.timeout is None else asked + want.timeout
        notice = asked + PATIENCE
        coldplug = asked + FULL_COLDPLUG
        hush = asked + HUSH
        grace = explained = inf
        prepared = False
        if self._daemon.restart_if_dead():
            self._reopen(poll)
            trigger_devices(everything=self._coldplugged)
        self._enumerate()
        event = "enumerated"
        changed, held = True, False
        while True:
            if changed or monotonic() >= min((stack.wake() for stack in self._assemblers), default=inf):
                for stack in self._assemblers:
                    stack.react(self._initialized())
            moment = monotonic()
            if held:
                # It is not the device that took this time.
                asked += moment - before
                if deadline is not None:
                    deadline += moment - before
            before = moment
            held = any(stack.holds() for stack in self._assemblers)
            if held:
                self._end_progress()
            found = [] if held else want.resolve(self._initialized())
            if len(found) == 1 and not prepared:
                prepared = True
                want.prepare(found[0])
            busy = self._drivers.busy
            if not found or busy:
                grace = explained = inf
            elif grace == inf:
                grace = moment + want.grace
                explained = moment + OTHERS_GRACE if want.grace > OTHERS_GRACE else inf
            if len(found) > 1 or (
                found and not busy and (moment >= grace or not any(self._others_pending()))
            ):
                outcome = "satisfied" if len(found) == 1 else "ambiguous"
                by = ", ".join(printable(view.node) for view in found)
                entry.update(ended=now(), outcome=outcome, by=by, event=event)
                if len(found) > 1:
                    raise _ambiguous(want, found, self._devices.size)
                return found[0]
            open_end = not held and (busy or not found)
            if deadline is not None and moment >= deadline and open_end:
                entry.update(ended=now(), outcome="expired")
                waited = deadline - asked
                if found:
                    # No other program can become PID 1 while the thread that loads drivers is in the kernel.
                    raise self._drivers.hang(waited)
                raise BootError("E-DEV", f"{want.name}: {want.spec} did not appear within {waited:.6g} s")
            if not self._coldplugged and moment >= coldplug:
                self._coldplugged = True
                trigger_devices(everything=True)
            if moment >= explained:
                explained = inf
                others = ", ".join(map(printable, self._others_pending()))
                self._console.notice(
                    f"{want.name}: {printable(found[0].node)} would do; {others} may, too, and is looked at "
                    f"first, for at most {want.grace:.6g} s"
                )
            if moment >= hush:
                hush = inf
                self._keyboard.hush()
            if moment >= notice:
                self._daemon.wake()
                if held:
                    notice = moment + NEXT_WORD
                    self._tell_of_work()
                else:
                    notice = self._tell(want, moment, asked, deadline)
            times = [notice, hush, grace, explained, *(stack.wake() for stack in self._assemblers)]
            if deadline is not None and open_end:
                times.append(deadline)
            if not self._coldplugged:
                times.append(coldplug)
            typing = self._keyboard.descriptors()
            for descriptor in typing:
                poll.register(descriptor, select.POLLIN)
            ready = {fd for fd, _ in poll.poll(max(0.0, min(times) - moment) * 1000)}
            for descriptor in typing:
                poll.unregister(descriptor)
                if descriptor in ready:
                    self._keyboard.read(descriptor)
            if self._progress:
                notice = self._progress.due
                if self._progress.shell_wanted:
                    entry.update(ended=now(), outcome="interrupted")
                    raise ShellWanted
                if deadline is not None:
                    deadline += self._progress.seconds_wanted
                self._progress.seconds_wanted = 0.0
            changed = bool(ready)
            event = self._collect(ready, poll) or event

    def _tell_of_work(self) -> None:
        """Say what the stacks are at, unless a person is asked, who sees the question."""
        if self._console.last_line is None:
            lines = [f"{stack.name}: {line}" for stack in self._assemblers for line in stack.waits_for()]
            self._console.notice(f"still at work: {'; '.join(lines)}")

    def _collect(self, ready: set[int], poll: select.poll) -> str:
        """Take in what happened; returns the action of the last event."""
        action = ""
        if self._children.watch() in ready:
            self._children.woken()
            self._children.check_memory()
            if self._daemon.restart_if_dead():
                action = self._reopen(poll)
                trigger_devices(everything=self._coldplugged)
        if self._drivers.fileno() in ready:
            self._drivers.woken()
        if self._devices.fileno() in ready:
            counters = self._console.record.data["events"]
            try:
                for action, view in self._devices.events():
                    counters["read"] += 1
                    self._console.record.progress()
                    if self._console.verbose:
                        self._console.debug(f"udev: {printable(action)} {printable(view.name)}")
                    if action == "remove":
                        self.known.pop(view.sys_path, None)
                    else:
                        self.known[view.sys_path] = view
            except OSError as error:
                self._console.warning(f"udev events were lost ({error}); looking at all devices again")
                action = self._reopen(poll)
        return action

    def _reopen(self, poll: select.poll) -> str:
        poll.unregister(self._devices.fileno())
        self._devices.reopen()
        poll.register(self._devices.fileno(), select.POLLIN)
        self._console.record.data["events"]["reopened"] += 1
        self._enumerate()
        return "enumerated"

    def _enumerate(self) -> None:
        self.known = {view.sys_path: view for view in self._devices.enumerate()}

    def _initialized(self) -> list[DeviceView]:
        return [view for view in self.known.values() if view.initialized]

    def _others_pending(self) -> Iterator[str]:
        """The block devices with something on them that the kernel knows and udevd has not processed."""
        processed = {view.name for view in self.known.values() if view.initialized}
        return (name for name in self._devices.names() if name not in processed and self._devices.size(name))

    def _end_progress(self) -> None:
        if self._progress:
            self._progress.end()
            self._progress = None

    def _tell(self, want: Want, moment: float, asked: float, deadline: float | None) -> float:
        """Say what is awaited and what is missing; returns when to do it again."""
        if self._progress is None:
            from pyinit.devices.progress import Progress

            self._progress = Progress(
                self._console, self._keyboard, want.timeout, shell=self._may_open_shell()
            )
        present = [view.node for view in self.known.values() if view.node]
        missing = ["block devices: " + (", ".join(sorted(map(printable, present))) or "none")]
        if loading := self._drivers.loading():
            missing.append(f"loading the driver {loading}")
        for stack in self._assemblers:
            missing += (f"{stack.name}: {line}" for line in stack.waits_for())
        left = None if deadline is None else max(0.0, deadline - moment)
        self._progress.tell(moment, f"{want.name}: {want.spec}", moment - asked, left, missing)
        return self._progress.due


def size(count: int) -> str:
    """Bytes for a person: ``1.5 TiB``, ``512 MiB``."""
    number, unit = float(count), 0
    while number >= 1024 and unit < len(_UNITS) - 1:
        number /= 1024
        unit += 1
    return f"{number:.3g} {_UNITS[unit]}" if number < 1000 else f"{number:.0f} {_UNITS[unit]}"


def _ambiguous(want: Want, found: list[DeviceView], sectors: Callable[[str], int]) -> BootError:
    advice: tuple[str, ...] = (
        "Remove the copy, or give one of them another UUID or label.",
        "root=PARTUUID=... or a path below /dev/disk/by-path/ names one device exactly.",
    )
    if _same_disk(found):
        advice = (
            "They say that they are one disk, reached in several ways: use these together with "
            "pyinit set rd.multipath, then leave the shell (in an image with --feature multipath).",
            *advice,
        )
    return BootError(
        "E-AMBIG",
        f"{len(found)} devices match {want.name}: {want.spec}",
        found=tuple(
            describe(view, sectors(view.name)) for view in sorted(found, key=lambda view: view.number)
        ),
        advice=advice,
    )


def _same_disk(found: list[DeviceView]) -> bool:
    """Whether all have the serial number, and the place on it, of the first: paths to one SCSI disk."""
    places = {
        (get("ID_SERIAL"), get("ID_PART_ENTRY_NUMBER")) for get in (view.properties.get for view in found)
    }
    return len(places) == 1 and all(view.name.startswith("sd") for view in found) and bool(places.pop()[0])


def describe(view: DeviceView, sectors: int = 0) -> str:
    """One line about a block device: what a person compares with what was asked for.

    ``sectors``: its size in units of 512 bytes; 0: not known.
    """
    get = view.properties.get
    words = [printable(view.node), *([size(sectors * 512)] if sectors else ())]
    for label, value in (
        ("", get("ID_FS_TYPE")),
        *((f"{kind.value}=", value_of(view, kind)) for kind in TAGS),
        ("", get("ID_MODEL")),
        ("serial ", get("ID_SERIAL_SHORT")),
    ):
        if value:
            words.append(f"{label}{printable(value)}")
    return "  ".join(words)
