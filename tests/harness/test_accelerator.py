from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pyinit_qemu import AcceleratorError, decide
from pyinit_qemu.accel import policy_from_environment

FAKE = Path(__file__).with_name("fake_qemu.py")


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYINIT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "vmlinuz"
    path.write_bytes(b"a kernel")
    return path


def program(tmp_path: Path, **scenarios: str) -> tuple[str, ...]:
    """A QEMU that plays a scenario an accelerator, and counts its starts."""
    script = tmp_path / "qemu"
    cases = "".join(f'*"-accel {name} "*) word="fake={play}";;\n' for name, play in scenarios.items())
    script.write_text(
        f'#!/bin/sh\necho "$*" >> {tmp_path}/starts\n'
        f'case "$*" in\n{cases}esac\nexec {sys.executable} {FAKE} "$@" -append "$word"\n'
    )
    script.chmod(0o755)
    return (str(script),)


def starts(tmp_path: Path) -> int:
    return sum("-accel" in line for line in (tmp_path / "starts").read_text().splitlines())


def test_kvm_that_boots(kernel: Path, tmp_path: Path) -> None:
    qemu = program(tmp_path, kvm="no-root", tcg="no-root")
    accelerator = decide("auto", kernel, program=qemu, device="/dev/null")
    assert accelerator.name == "kvm"
    assert not accelerator.fallback
    assert "Linux version 0.0.0-fake booted in" in accelerator.reason


@pytest.mark.parametrize("scenario, reason", [("crash", "out of luck"), ("signal", "signal 11")])
def test_kvm_that_opens_but_does_not_boot(kernel: Path, tmp_path: Path, scenario: str, reason: str) -> None:
    qemu = program(tmp_path, kvm=scenario, tcg="no-root")
    accelerator = decide("auto", kernel, program=qemu, device="/dev/null")
    assert accelerator.name == "tcg"
    assert accelerator.fallback
    assert "no KVM here (" in str(accelerator)
    assert reason in str(accelerator)
    with pytest.raises(AcceleratorError, match=reason):
        decide("kvm", kernel, program=qemu, device="/dev/null")


def test_an_assertion_of_qemu_is_told_in_words(kernel: Path, tmp_path: Path) -> None:
    qemu = program(tmp_path, kvm="assertion", tcg="no-root")
    said = str(decide("auto", kernel, program=qemu, device="/dev/null"))
    assert "no KVM here (QEMU crashes when it uses /dev/null); boots are slower" in said
    # Who insists on KVM wants to know.
    with pytest.raises(AcceleratorError, match="Assertion `ret == n' failed"):
        decide("kvm", kernel, program=qemu, device="/dev/null")


def test_no_kvm_device(kernel: Path, tmp_path: Path) -> None:
    qemu = program(tmp_path, tcg="no-root")
    accelerator = decide("auto", kernel, program=qemu, device=str(tmp_path / "kvm"))
    assert accelerator.name == "tcg"
    assert "No such file" in accelerator.reason


def test_tcg_when_asked_for_tries_nothing_else(kernel: Path, tmp_path: Path) -> None:
    accelerator = decide("tcg", kernel, program=program(tmp_path, kvm="no-root", tcg="no-root"))
    assert (accelerator.name, accelerator.fallback) == ("tcg", False)
    assert starts(tmp_path) == 1


def test_a_proof_is_made_once(kernel: Path, tmp_path: Path) -> None:
    qemu = program(tmp_path, kvm="crash", tcg="no-root")
    first = decide("auto", kernel, program=qemu, device="/dev/null")
    assert decide("auto", kernel, program=qemu, device="/dev/null") == first
    assert starts(tmp_path) == 2
    kernel.write_bytes(b"another kernel")
    decide("auto", kernel, program=qemu, device="/dev/null")
    assert starts(tmp_path) == 4


def test_nothing_boots(kernel: Path, tmp_path: Path) -> None:
    qemu = program(tmp_path, tcg="early")
    with pytest.raises(AcceleratorError, match="not even TCG boots .*no such device"):
        decide("tcg", kernel, program=qemu)


def test_no_qemu(kernel: Path) -> None:
    with pytest.raises(AcceleratorError, match="install qemu-system-x86"):
        decide("tcg", kernel, program=("/nonexistent/qemu",))


def test_the_policy_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYINIT_QEMU_ACCEL", raising=False)
    assert policy_from_environment() == "auto"
    monkeypatch.setenv("PYINIT_QEMU_ACCEL", "kvm")
    assert policy_from_environment() == "kvm"
    monkeypatch.setenv("PYINIT_QEMU_ACCEL", "fast")
    with pytest.raises(ValueError, match="'fast' is not one of auto, kvm, tcg"):
        policy_from_environment()
