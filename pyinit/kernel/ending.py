"""The end of the machine: in a bounded time, whatever else hangs.

sync(2) waits for every disk, one that is dead included, and reboot(2) lets every driver put its device down.
Neither may hold up PID 1: a thread makes the call, and when its time is over the next harder means is taken.
"""

from __future__ import annotations

import os
import signal
import time
from typing import NoReturn

from pyinit.kernel.patience import Call
from pyinit.kernel.syscalls import REBOOT_AUTOBOOT, REBOOT_HALT, REBOOT_POWER_OFF, reboot

ACTIONS = {"reboot": REBOOT_AUTOBOOT, "halt": REBOOT_HALT, "poweroff": REBOOT_POWER_OFF}

SYNC_TIME = 10.0
ACTION_TIME = 15.0
# What the kernel does at once and without asking drivers (Documentation/admin-guide/sysrq.rst); nothing else
# is left for a machine that cannot be powered off: it restarts.
_TRIGGER = "/proc/sysrq-trigger"
_KEYS = {"reboot": b"b", "poweroff": b"o", "halt": b""}


def end_machine(action: str) -> NoReturn:
    """Write everything out, then reboot, power off or halt; never returns and never raises.

    It takes at most ``SYNC_TIME`` + ``ACTION_TIME`` seconds; a ``halt`` or ``poweroff`` that the machine
    cannot do leaves it stopped here.
    """
    while True:
        try:
            # Once is enough: the handler of Ctrl-Alt-Del calls this, too.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            Call(os.sync).wait(SYNC_TIME)
            # The calling thread may end in reboot(2), which must not be the end of PID 1.
            Call(reboot, ACTIONS[action]).wait(ACTION_TIME)
            _trigger(_KEYS[action])
            time.sleep(ACTION_TIME)
        except BaseException:
            continue


def _trigger(key: bytes) -> None:
    if key:
        fd = os.open(_TRIGGER, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, key)
        finally:
            os.close(fd)
