"""A guest whose clock counts instructions: minutes of waiting pass in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu import Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.shell import Shell

pytestmark = [pytest.mark.boot, pytest.mark.icount]


def test_three_minutes_of_waiting_for_a_root_end_soon(
    boot: Callable[..., Machine], bookworm: DebianRoot, listed: Path
) -> None:
    vm = boot(kernel=bookworm.kernel, initrd=listed, icount=True, append="root=LABEL=gone", allow=("banner",))
    # The time that the host has for all of it is less than what passes in the guest.
    shell = Shell.rescue(vm, "initqueue", 170.0)
    assert "E-DEV root: LABEL=gone did not appear within 180 s" in vm.console
    assert float(shell.check("cat /proc/uptime").split()[0]) > 180
    vm.stop()
