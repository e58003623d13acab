"""Rows of boots that each differ a little."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyinit_qemu.repeat import Trial, summary, trial


@given(st.integers(), st.integers(1, 10_000))
def test_a_boot_follows_from_seed_and_number(seed: int, number: int) -> None:
    one = trial(seed, number)
    assert one == trial(seed, number) and one.number == number
    # An image of mode list has one driver; an ahci disk cannot come late.
    assert one.image == "pyinit generic" or one.interface == "virtio"
    assert one.plugged is None or (0 <= one.plugged < 1 and one.interface != "ahci")


def test_a_row_has_every_kind_of_boot() -> None:
    row = [trial(1, number) for number in range(1, 201)]
    assert {one.interface for one in row} == {"virtio", "scsi", "nvme", "ahci", "usb"}
    assert {one.smp for one in row} == {1, 2}
    assert {one.image for one in row} == {"pyinit list", "pyinit generic"}
    assert any(one.plugged is None for one in row) and any(one.plugged for one in row)
    assert any(one.iops == 0 for one in row) and any(one.iops for one in row)


def test_the_summary_counts_and_names_what_failed() -> None:
    good = Trial(1, "pyinit list", "virtio", 2, None, 0)
    bad = Trial(2, "pyinit generic", "usb", 1, 0.5, 60)
    assert summary([(good, ""), (bad, "no root")], 7) == [
        "seed 7: 2 boots, 1 reached the real init, 1 did not; disk plugged in late in 1, slow in 1",
        "usb with 1 CPU: 1, virtio with 2 CPU: 1",
        "boot 2: pyinit generic, usb after 2.50 s, 60 requests/s, 1 CPU\nno root",
    ]
