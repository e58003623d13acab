"""A rescue shell on each console, for whoever sits there; the first who leaves ends the others."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from pyinit.errors import BootError
from pyinit.kernel import memory
from pyinit.kernel.console import Console
from pyinit.kernel.process import Children
from pyinit.kernel.terminal import active_consoles
from pyinit.record import now
from pyinit.rescue.relay import NOBODY
from pyinit.text import printable

Ending = Literal["left", "nobody", "failed"]
"""A person left a shell; no console has one; no shell could be started."""

# A plain shell that ends in less time (microseconds) reads from a console that is not there.
_AT_ONCE = 500_000
# An interpreter of its own takes so much memory; without it a plain shell has to do.
_RELAY_ROOM = 14 * memory.MIB
# Seconds that the shells of other consoles get to end.
_PATIENCE = 2.0
_RELAY = "from pyinit.rescue.relay import main;main()"
# What programs write for; a serial line has most likely one that does as a VT220 did, or as xterm.
_SERIAL_TERM = "vt220"


class _Session(NamedTuple):
    terminal: str
    begin: int
    relayed: bool
    settings: list[Any] | None
    """Of the terminal (termios(3)), to be restored."""


def run(
    shell: str, terminals: Sequence[str], environment: dict[str, str], children: Children, console: Console
) -> Ending:
    """Start a shell on every terminal and wait until somebody leaves one."""
    running: dict[int, _Session] = {}
    room = _RELAY_ROOM * len(terminals)
    relayed = memory.meminfo().get("MemAvailable", room) >= room
    for terminal in terminals:
        _start(shell, terminal, environment, children, console, running, relayed=relayed)
    if not running:
        return "failed"
    poll = select.poll()
    poll.register(children.watch(), select.POLLIN)
    while running:
        ended = [(pid, status) for pid in running if (status := children.status(pid)) is not None]
        for pid, status in ended:
            session = running.pop(pid)
            _restore(session)
            if session.relayed and status > 0 and status != NOBODY:
                # A defect of the relay, no pseudo-terminals, no memory: a shell all the same.
                _start(shell, session.terminal, environment, children, console, running, relayed=False)
            elif not _nobody(session, status):
                _end(running, children)
                if len(terminals) > 1:
                    _tell(session.terminal, console)
                return "left"
        if not ended:
            poll.poll()
            children.woken()
    return "nobody"


def terminals_of_people(ctty: str, console: Console) -> list[str]:
    """The terminals to have a shell: what ``rd.ctty`` names, else all consoles.

    The devices behind /dev/console and /dev/tty0, which cannot be controlling terminals of a shell with jobs.
    """
    if ctty:
        if os.path.exists(ctty):
            return [ctty]
        console.warning(f"there is no {printable(ctty)}, which rd.ctty asks for")
    found = dict.fromkeys(device_behind(path) for path in active_consoles())
    return [path for path in found if os.path.exists(path)] or ["/dev/console"]


def _tell(left: str, console: Console) -> None:
    """Say why the shells end; elsewhere the cursor stands behind a prompt, or in the middle of a line."""
    text = f"pyinit: the rescue shell was left on {printable(left)}\n".encode("ascii")
    for path in console.screens():
        console.write_to(path, text if device_behind(path) == left else b"\n" + text)


def _nobody(session: _Session, status: int) -> bool:
    """Whether a shell ended because there is no person, or none any more."""
    if session.relayed:
        return status in (NOBODY, -signal.SIGHUP)
    return now() - session.begin < _AT_ONCE


def device_behind(path: str) -> str:
    """The terminal that a console is on: of /dev/tty0 the virtual one in front."""
    if path != "/dev/tty0":
        return path
    try:
        with open("/sys/class/tty/tty0/active", "rb") as file:
            return f"/dev/{os.fsdecode(file.read().strip())}"
    except OSError:
        return "/dev/tty1"


def _start(
    shell: str,
    terminal: str,
    environment: dict[str, str],
    children: Children,
    console: Console,
    running: dict[int, _Session],
    *,
    relayed: bool,
) -> None:
    environment = {**environment, "TERM": "linux" if _is_virtual(terminal) else _SERIAL_TERM}
    settings = _settings(terminal)
    attempts: list[tuple[bool, list[str]]] = [(False, [shell, "-i"])]
    if relayed:
        attempts.insert(0, (True, [sys.executable, "-S", "-s", "-P", "-B", "-c", _RELAY, shell]))
    for by_relay, argv in attempts:
        begin = now()
        try:
            pid = children.start(argv, environment=environment, terminal=terminal)
        except (OSError, BootError) as error:
            where = f"{printable(argv[0])} cannot be started on {printable(terminal)}"
            why = error.cause if isinstance(error, BootError) else error.strerror
            console.error(f"{where}: {why}")
            continue
        running[pid] = _Session(terminal, begin, by_relay, settings)
        return


def _end(running: dict[int, _Session], children: Children) -> None:
    """Hang up the other terminals."""
    for pid in running:
        _signal(pid, signal.SIGHUP)
    for pid, session in running.items():
        if children.wait(pid, _PATIENCE) is None:
            _signal(pid, signal.SIGKILL)
            children.wait(pid, _PATIENCE)
        _restore(session)


def _signal(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except OSError:
        pass


def _settings(terminal: str) -> list[Any] | None:
    import termios

    try:
        fd = os.open(terminal, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return termios.tcgetattr(fd)
    except termios.error:
        return None
    finally:
        os.close(fd)


def _restore(session: _Session) -> None:
    """Give the terminal the settings that it had: what ran on it may have been killed."""
    import termios

    if session.settings is None:
        return
    try:
        fd = os.open(session.terminal, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        termios.tcsetattr(fd, termios.TCSANOW, session.settings)
    except termios.error:
        pass
    finally:
        os.close(fd)


def _is_virtual(terminal: str) -> bool:
    return terminal.removeprefix("/dev/tty").isdigit()
