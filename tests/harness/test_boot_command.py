"""``pyinit-qemu boot`` as a person and as a script use it, over a QEMU that plays scenarios."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

FAKE = Path(__file__).with_name("fake_qemu.py")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command, in an environment where QEMU is the fake."""
    qemu = tmp_path / "bin" / "qemu-system-x86_64"
    qemu.parent.mkdir()
    qemu.write_text(
        f'#!/bin/sh\ncase "$*" in *earlyprintk*) set -- "$@" -append fake=no-root;; esac\n'
        f'exec {sys.executable} {FAKE} "$@"\n'
    )
    qemu.chmod(0o755)
    monkeypatch.setenv("PATH", f"{qemu.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYINIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PYINIT_QEMU_ACCEL", raising=False)
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(b"kernel")
    main = "import sys; from pyinit_qemu.cli import main; sys.exit(main())"
    return [sys.executable, "-c", main, "boot", "--kernel", str(kernel), "--accel", "tcg"]


def run(command: list[str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True)


@pytest.mark.parametrize(
    "words, status, said",
    [
        (["--append", "fake=pass"], 0, "PASS: reached: the last frame (done)"),
        (["--append", "fake=pass", "--until", "Debian login:"], 0, "PASS: reached: /Debian login:/"),
        (["--append", "fake=panic"], 1, "PANIC: the kernel panicked"),
        (["--append", "fake=panic", "--until", "login:"], 1, "PANIC: the kernel panicked"),
        (["--append", "fake=reset"], 1, "GUEST_FAIL: the guest rebooted"),
        (["--append", "fake=hang", "--timeout", "0.3"], 1, "HANG: no output"),
        (
            ["--append", "fake=crash"],
            3,
            "QEMU_CRASH: QEMU ended with status 1: qemu-system",
        ),
        (["--append", "fake=early"], 3, "no such device"),
    ],
)
def test_without_a_terminal(command: list[str], words: list[str], status: int, said: str) -> None:
    ended = run(command, *words)
    assert ended.returncode == status, ended.stderr
    assert said in ended.stderr
    assert "pyinit-qemu: accelerator tcg" in ended.stderr
    assert "early" in words[1] or "Linux version 0.0.0-fake\n" in ended.stdout


@pytest.mark.parametrize(
    "words, said",
    [
        (["--disk", "/nonexistent"], "No such file"),
        (["--disk", "/dev/null,interface=floppy"], "'floppy' is not one of virtio, scsi"),
        (["--until", "("], "no regular expression"),
        (["--memory", "0"], "memory of 0 bytes"),
        (["--icount", "--smp", "2"], "icount needs"),
    ],
)
def test_wrong_usage(command: list[str], words: list[str], said: str) -> None:
    ended = run(command, *words)
    assert ended.returncode == 2
    assert said in ended.stderr


class Terminal:
    """A person at a terminal."""

    def __init__(self, command: list[str]) -> None:
        self.master, slave = pty.openpty()
        self.before = termios.tcgetattr(slave)
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave)
        self.slave = slave
        self.seen = b""

    def see(self, text: bytes) -> None:
        end = time.monotonic() + 60
        while text not in self.seen:
            readable, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
            assert readable, self.seen
            self.seen += os.read(self.master, 4096)

    def leave(self) -> int:
        status = self.process.wait(60)
        assert termios.tcgetattr(self.slave) == self.before
        return status


def test_a_person_types_and_the_guest_powers_off(command: list[str]) -> None:
    terminal = Terminal([*command, "--append", "fake=echo"])
    terminal.see(b"ready")
    # Ctrl-C is the guest's, and Ctrl-A typed twice is one Ctrl-A.
    os.write(terminal.master, b"\x03 hello \x01\x01!")
    terminal.see(b"\x03 hello \x01!")
    os.write(terminal.master, b"bye\n")
    terminal.see(b"PASS: reached: the power-off of the guest")
    assert terminal.leave() == 0


@pytest.mark.parametrize("scenario", ["given-up", "rescued"])
def test_a_boot_that_failed_has_not_passed_however_the_machine_ended(
    scenario: str, command: list[str]
) -> None:
    terminal = Terminal([*command, "--append", f"fake={scenario}"])
    terminal.see(b"E-DEV no device has LABEL=x")
    if scenario == "rescued":
        # Any other key tells the keys once more.
        os.write(terminal.master, b"\x01?")
        terminal.see(b"\r\nCtrl-A X ends the machine, Ctrl-A Ctrl-A types a Ctrl-A.\r\n")
        os.write(terminal.master, b"\x01x")
    terminal.see(b"GUEST_FAIL: the boot did not get past E-DEV no device has LABEL=x")
    assert terminal.leave() == 1


def test_a_person_ends_the_machine(command: list[str]) -> None:
    terminal = Terminal([*command, "--append", "fake=echo"])
    terminal.see(b"ready")
    os.write(terminal.master, b"\x01x")
    terminal.see(b"PASS: reached: Ctrl-A X")
    assert terminal.leave() == 0


def test_a_person_sees_a_panic(command: list[str]) -> None:
    terminal = Terminal([*command, "--append", "fake=panic"])
    terminal.see(b"PANIC: the kernel panicked")
    assert terminal.leave() == 1
