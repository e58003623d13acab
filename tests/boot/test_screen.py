"""A person in front of the machine: a VGA screen and a keyboard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu import BootFailed, Machine, MachineError, Verdict
from pyinit_qemu.debian import DebianRoot

pytestmark = pytest.mark.boot


def test_the_rescue_screen_is_read_typed_at_and_kept(
    boot: Callable[..., Machine], bookworm: DebianRoot, listed: Path
) -> None:
    append = "quiet root=LABEL=gone rd.timeout=1 console=ttyS0 console=tty0"
    vm = boot(kernel=bookworm.kernel, initrd=listed, vga=True, append=append, allow=("banner",))
    vm.screen.wait_for(r"^pyinit:initqueue# *$")
    shown = vm.screen.text()
    assert "E-DEV root: LABEL=gone did not appear within 1 s" in shown
    vm.keyboard.type('clear; echo $((6 * 7)) "Quoted" > /note; cat /note\n')
    vm.screen.wait_for(r"^42 Quoted$")

    with pytest.raises(BootFailed) as failed:
        vm.screen.wait_for("never shown", 1.0)
    assert failed.value.verdict in (Verdict.HANG, Verdict.TIMEOUT)
    assert "/never shown/ on the screen" in failed.value.report
    assert "42 Quoted" in (vm.folder / "screen.txt").read_text()
    picture = (vm.folder / "screen.png").read_bytes()
    # Width and height of 80 by 25 places of 9 by 16 points, in the header of the PNG.
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and picture[16:24] == bytes([0, 0, 2, 208, 0, 0, 1, 144])

    vm.keyboard.press("ctrl-alt-delete")
    assert vm.finish(goal="shutdown").shutdown == "guest-reset"


def test_a_machine_without_a_screen_says_so(
    boot: Callable[..., Machine], bookworm: DebianRoot, listed: Path
) -> None:
    vm = boot(kernel=bookworm.kernel, initrd=listed, paused=True)
    with pytest.raises(MachineError, match="no screen: give it vga=True"):
        vm.screen.text()
    vm.stop()
