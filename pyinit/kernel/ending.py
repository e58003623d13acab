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
#: What a driver needs at the most to give up a device that is dead: NVMe waits 60 s for an answer
#: (drivers/nvme/host/core.c, admin_timeout).
DEVICE_TIME = 60.0
# Keys of Documentation/admin-guide/sysrq.rst, one after the other: ``o`` powers off, but asks drivers first;
# ``b`` restarts and asks nobody, which is all that is left for a machine that cannot be powered off.
_TRIGGER = "/proc/sysrq-trigger"
_KEYS = {"reboot": "b", "poweroff": "ob", "halt": ""}


def end_machine(action: str) -> NoReturn:
    """Write everything out, then reboot, power off or halt; never returns and never raises.

    A restart takes at most ``SYNC_TIME`` + ``ACTION_TIME`` seconds. Powering off takes ``DEVICE_TIME`` more
    where a driver waits for a dead device, and becomes a restart when the machine still runs then. A
    ``halt`` that the machine cannot do leaves it stopped here.
    """
    while True:
        try:
            # Once is enough: the handler of Ctrl-Alt-Del calls this, too.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            Call(os.sync).wait(SYNC_TIME)
            # The calling thread may end in reboot(2), which must not be the end of PID 1.
            Call(reboot, ACTIONS[action]).wait(ACTION_TIME)
            for key in _KEYS[action]:
                _trigger(key.encode())
                time.sleep(DEVICE_TIME)
        except BaseException:
            continue


def _trigger(key: bytes) -> None:
    fd = os.open(_TRIGGER, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, key)
    finally:
        os.close(fd)
