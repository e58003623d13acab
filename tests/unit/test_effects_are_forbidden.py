"""The guard of the unit tests stops each kind of effect, whoever catches exceptions."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable

import pytest

from pyinit.kernel import syscalls


@pytest.mark.parametrize(
    "effect",
    [
        lambda: subprocess.run(["true"]),
        lambda: os.system("true"),
        lambda: os.posix_spawn("/bin/true", ["true"], {}),
        lambda: os.fork(),
        lambda: os.execv("/bin/true", ["true"]),
        lambda: syscalls.mount("tmpfs", "/nowhere", "tmpfs"),
        lambda: syscalls.umount2("/nowhere"),
        lambda: syscalls.pivot_root("/nowhere", "/nowhere"),
        lambda: syscalls.finit_module(-1),
        lambda: syscalls.reboot(syscalls.REBOOT_CAD_OFF),
    ],
    ids="run system spawn fork exec mount umount pivot module reboot".split(),
)
def test_effect_is_stopped(effect: Callable[[], object]) -> None:
    with pytest.raises(BaseException) as caught, contextlib.suppress(Exception):
        effect()
    assert type(caught.value).__name__ == "ForbiddenEffect"


def test_reading_is_allowed() -> None:
    assert syscalls.statfs_type("/") > 0
