"""While the boot waits: what is said where, and the keys of whoever is there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pyinit_qemu import Disk, Machine
from pyinit_qemu.debian import DebianRoot
from pyinit_qemu.shell import Shell
from pyinit_qemu.witness import Witness

pytestmark = pytest.mark.boot

Start = Callable[..., Machine]
Testimony = Callable[[Machine], Witness]


@pytest.fixture
def late(small_disk: Callable[..., Path]) -> Disk:
    return Disk(small_disk(), late=True)


@pytest.fixture
def start(boot: Callable[..., Machine], bookworm: DebianRoot, generic: Path, late: Disk) -> Start:
    """Boot the small root, whose disk is not there yet."""

    def go(append: str = "", *, initrd: Path = generic, **options: object) -> Machine:
        line = f"quiet root=LABEL=small-root {append}"
        return boot(kernel=bookworm.kernel, initrd=initrd, disks=(late,), append=line, **options)

    return go


def wants(seen: Witness) -> list[str]:
    assert seen.boot is not None
    return [want["outcome"] for want in seen.boot["wants"]]


def test_a_key_opens_a_shell_and_leaving_it_goes_on_waiting(
    start: Start, late: Disk, witness_of: Testimony
) -> None:
    vm = start("rd.timeout=60")
    vm.expect(
        r"waiting for root: LABEL=small-root since [56] s, 5[45] s more; block devices: none; "
        r"keys: s opens a shell, w waits 60 s longer"
    )
    # Whoever typed is there, and gets the seconds in place.
    vm.send_bytes(b"w")
    vm.expect(r"pyinit: 1\d\d s left; keys: s opens a shell, w waits 60 s longer")
    vm.send_bytes(b"s")
    shell = Shell.rescue(vm, "initqueue")
    assert "pyinit: stopped in initqueue, as a key asked for it" in vm.console
    status = shell.check("pyinit status")
    assert "stopped:   in initqueue\nbecause:   a key was pressed while it waited" in status
    assert "Nothing has failed" in shell.check("pyinit explain")
    assert "interrupted" in shell.check("pyinit timeline")
    shell.leave()
    vm.expect(r"waiting for root: LABEL=small-root since [56] s, 5[45] s more")
    vm.plug(late)
    assert wants(witness_of(vm)) == ["interrupted", "satisfied"]


def test_what_is_set_in_the_shell_of_a_key_counts(start: Start, witness_of: Testimony, late: Disk) -> None:
    vm = start("root=LABEL=gone")
    vm.expect("keys: s opens a shell")
    vm.send_bytes(b"s")
    shell = Shell.rescue(vm, "initqueue")
    shell.check("pyinit set root=LABEL=small-root")
    shell.leave()
    vm.expect("waiting for root: LABEL=small-root since")
    vm.plug(late)
    assert wants(witness_of(vm)) == ["interrupted", "satisfied"]


@pytest.mark.parametrize("closed_by", ["the image", "the command line"])
def test_without_a_shell_there_are_no_keys(
    closed_by: str, start: Start, image: Callable[..., Path], late: Disk, witness_of: Testimony
) -> None:
    sealed = image(rescue="none") if closed_by == "the image" else image()
    vm = start("rd.shell=0 rd.shell=1" if closed_by == "the command line" else "", initrd=sealed)
    vm.expect(r"waiting for root: LABEL=small-root since [56] s, 17[45] s more; block devices: none\n")
    vm.send_bytes(b"s")
    vm.send_bytes(b"w\x03\x04\x1a\x1c")
    vm.send_bytes(b"typed ahead")
    vm.expect(r"waiting for root: LABEL=small-root since 1[56] s, 16[45] s more")
    vm.plug(late)
    seen = witness_of(vm)
    assert wants(seen) == ["satisfied"]
    assert "s left" not in vm.console and "pyinit:initqueue" not in vm.console
    assert "typed ahead" not in vm.console


def test_a_screen_counts_down_in_place_while_the_serial_line_gets_lines(
    start: Start, late: Disk, witness_of: Testimony
) -> None:
    vm = start("console=ttyS0 console=tty0", vga=True)
    first = vm.screen.wait_for(r"^pyinit: (\d+) s left; keys: s opens a shell, w waits 180 s longer; r")
    vm.expect(r"since 1[56] s, 16[45] s more")
    vm.screen.wait_for(rf"^pyinit: (?!{first[1]})\d+ s left")
    # Written again in its place, and nothing stands in the way of it.
    assert len(re.findall(r"s left", vm.screen.text())) == 1
    assert len(re.findall(r"waiting for root", vm.screen.text())) == 1
    assert b"\x1b[A" not in (vm.folder / "console.log").read_bytes()
    vm.keyboard.type("w")
    vm.screen.wait_for(r"^pyinit: 3\d\d s left")
    vm.plug(late)
    assert wants(witness_of(vm)) == ["satisfied"]
