"""How long a whole Debian takes to its login prompt, and which part of that is the initramfs.

Other than the small root, a full system has daemons that wait for each other and for timers, so that its
times repeat to a few hundredths only. systemd tells them itself, in microseconds of CLOCK_MONOTONIC
(org.freedesktop.systemd1(5)); when /init was executed stands in the kernel's log.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pyinit_qemu.bench import ICOUNT_SLOWNESS, steady
from pyinit_qemu.machine import Machine
from pyinit_qemu.shell import Shell
from pyinit_qemu.slots import Slots
from pyinit_qemu.spec import VmSpec
from pyinit_qemu.timing import TimeScale

_ASK = (
    "dmesg | grep -F 'as init process';"
    " systemctl show -p UserspaceTimestampMonotonic -p InitRDTimestampMonotonic;"
    " systemctl show -p ActiveEnterTimestampMonotonic serial-getty@ttyS0.service"
)
_INIT = re.compile(r"\[ *([0-9]{1,9})\.([0-9]{6})\] Run /\S+ as init process", re.ASCII)


class LoginError(Exception):
    """A system that does not tell its times."""


@dataclass(frozen=True)
class Login:
    """One boot, in microseconds since the kernel's start."""

    init: int
    """/init was executed."""
    executed: int
    """The real init, systemd, ran."""
    prompt: int
    """The login prompt was there."""

    @property
    def initramfs(self) -> int:
        """What the initramfs took."""
        return self.executed - self.init


def parse(text: str) -> Login:
    """Read what the system said; LoginError when something is missing."""
    init = _INIT.search(text)
    values = dict(re.findall(r"^(\w{1,60})=([0-9]{1,15})\s*$", text, re.MULTILINE | re.ASCII))
    try:
        if init is None:
            raise KeyError("Run /init as init process")
        return Login(
            int(init[1]) * 1_000_000 + int(init[2]),
            int(values["UserspaceTimestampMonotonic"]),
            int(values["ActiveEnterTimestampMonotonic"]),
        )
    except KeyError as error:
        raise LoginError(f"the system does not tell: {error.args[0]}") from error


def login(spec: VmSpec, scale: TimeScale) -> Login:
    """Boot to the login prompt, log in as root and ask.

    Raises :class:`pyinit_qemu.MachineError` when it does not get there, :class:`LoginError`.
    """
    slots = Slots()
    slots.acquire()
    try:
        with Machine(steady(spec), scale=TimeScale(scale.factor * ICOUNT_SLOWNESS)) as machine:
            machine.run()
            said = Shell.login(machine).run(_ASK).output
            machine.stop("the answer of the system")
    finally:
        slots.release()
    return parse(said)
