"""The witness's report: what the guest program writes is what the host reads, and nothing else passes."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyinit_qemu
from pyinit_qemu.witness import Mount, Witness, WitnessError, parse_mount, signal_set

PROGRAM = Path(pyinit_qemu.__file__).with_name("guest") / "witness.py"
STATUS = "SigQ:\t0/1\nSigBlk:\t0000000000000001\nSigIgn:\t0000000001001000\nSigCgt:\t0000000000000000\n"


@pytest.fixture(scope="module")
def frame() -> dict[str, Any]:
    """What the guest program says about this very process, in which all it reads is there, too."""
    specification = importlib.util.spec_from_file_location("witness_of_the_guest", PROGRAM)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    words = [
        "HOME=/",
        b"UMLAUT=\xe4".decode("utf-8", "surrogateescape"),
        "HOME=/second",
        "",
        "/sbin/init",
        "",
        "b c",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["witness.py", "12.34", STATUS, *words])
        # The kernel log may be closed to whoever runs the tests.
        patch.setitem(
            module.STEPS, "kmsg", lambda: {"run_init": 1234567, "tail": ["6,1,1234567,-;Run /init"]}
        )
        patch.setitem(module.STEPS, "leftovers", module.processes)
        report = module.testify()
    result: dict[str, Any] = json.loads(json.dumps(report))
    return result


def test_report_reads_back(frame: dict[str, Any]) -> None:
    witness = Witness.parse(frame)
    assert witness.pid == os.getpid() and witness.ppid == os.getppid()
    assert witness.argv == ("/sbin/init", "", "b c")
    assert witness.environ == ("HOME=/", "UMLAUT=\udce4", "HOME=/second")
    assert witness.environment == {"HOME": "/", "UMLAUT": "\udce4"}
    assert (witness.signals_blocked, witness.signals_ignored) == ({1}, {13, 25})
    assert witness.uids == (os.getuid(),) * 3
    assert witness.cwd == os.getcwd()
    assert witness.release == os.uname().release
    assert witness.memory["MemTotal"] > 1 << 20
    assert witness.limits["Max open files"][0].isdigit()
    assert (witness.executed, witness.run_init) == (12_340_000, 1_234_567)
    assert witness.boot is None
    mount = witness.mount("/proc")
    assert mount is not None and mount.type == "proc"
    assert witness.mount("/nowhere") is None
    assert witness.root.type


def test_errors_of_the_guest_are_not_overlooked(frame: dict[str, Any]) -> None:
    with pytest.raises(WitnessError, match="limits.*Permission"):
        Witness.parse({**frame, "errors": {"limits": "PermissionError: Permission denied"}})
    with pytest.raises(WitnessError, match="kind 'done'"):
        Witness.parse({"kind": "done"})


@pytest.mark.parametrize("key", ["identity", "mountinfo", "signals", "kmsg", "fds", "root", "stat", "boot"])
@pytest.mark.parametrize("value", [None, 1, "x", [], {}, {"": []}, ["\u20ac"], True])
def test_damage_is_named(frame: dict[str, Any], key: str, value: object) -> None:
    if key == "boot" and (value is None or isinstance(value, dict)):
        return
    if key == "fds" and value == {}:
        return
    with pytest.raises(WitnessError):
        Witness.parse({**frame, key: value})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(data=st.data())
def test_no_frame_raises_anything_else(frame: dict[str, Any], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(frame)))
    value = data.draw(json_values)
    try:
        Witness.parse({**frame, key: value})
    except WitnessError:
        pass


def test_mount_line() -> None:
    line = (
        r"36 35 98:0 /mnt1 /a\040b\134 rw,noatime master:1 shared:2 - ext3 /dev/\303\244 ro,errors=continue"
    )
    assert parse_mount(line) == Mount(
        36,
        35,
        "98:0",
        "/mnt1",
        "/a b\\",
        frozenset({"ro", "noatime", "errors=continue"}),
        "ext3",
        "/dev/ä",
    )


@given(st.sets(st.integers(1, 64)))
def test_signal_mask(numbers: set[int]) -> None:
    assert signal_set(f"{sum(1 << number - 1 for number in numbers):016x}") == numbers
