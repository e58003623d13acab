"""Where the time of a boot goes: what is made of the kernel's log, the boot record and the traces."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit_qemu.moments import Line
from pyinit_qemu.waterfall import (
    Turn,
    WaterfallError,
    clock_difference,
    significant,
    text,
    turns,
    waterfall,
)
from pyinit_qemu.waterfall_chart import svg

#: CLOCK_MONOTONIC is 1 ms ahead.
LOG = [
    Line(300_000, "initcall acpi_init+0x0/0x5d2 returned 0 after 32000 usecs"),
    Line(900_000, "initcall populate_rootfs+0x0/0x110 returned 0 after 500000 usecs"),
    Line(1_000_000, "Run /init as init process"),
    Line(1_230_000, "initcall ext4_init_fs+0x0/0x1000 [ext4] returned 0 after 20000 usecs"),
    Line(1_310_000, "pyinit: mounted /dev/vda1 (ext4) on /sysroot"),
    Line(1_350_000, "pyinit: said late"),
    Line(1_400_000, "witness: executed; cpu  1 0 2 3 0 0 0 0 0 0"),
]
RECORD: dict[str, Any] = {
    "started": 1_031_000,
    "imported": 1_131_000,
    "stages": [
        {"name": "cmdline", "start": 1_141_000, "end": 1_142_000, "outcome": "done"},
        {"name": "pre-udev", "start": 1_143_000, "end": 1_300_000, "outcome": "done"},
        {"name": "mount", "start": 1_301_000, "end": 1_320_000, "outcome": "done"},
    ],
    "modules": [
        {"name": "ext4", "start": 1_151_000, "end": 1_241_000, "result": "loaded"},
        {"name": "crc16", "start": 1_150_000, "end": 1_150_500, "result": "present"},
    ],
    "mounts": [{"type": "ext4", "start": 1_302_000, "end": 1_305_000}],
    "wants": [{"name": "root", "asked": 1_295_000, "ended": 0}],
    "children": [{"argv": ["/lib/udevd"], "start": 1_144_000, "end": 1_370_000}],
    "messages": [
        {"at": 1_310_980, "text": "mounted /dev/vda1 (ext4) on /sysroot"},
        {"at": 1_349_000, "text": "said late"},
        {"at": 1, "text": "only here"},
    ],
    "handover": {"at": 1_371_000},
}
IMPORTS = [("a.b", 1_041_000, 1_061_000), ("a", 1_040_000, 1_065_000), ("late", 1_302_500, 1_304_500)]


def test_phases_follow_each_other_and_add_up() -> None:
    seen = waterfall(LOG, RECORD, IMPORTS)
    assert seen.phases == {
        "kernel": 500_000,
        "unpacking": 500_000,
        "interpreter": 30_020,
        "imports": 100_000,
        "first of all": 10_000,
        "cmdline": 2_000,
        "pre-udev": 158_000,
        "mount": 70_000,
        "execution": 29_980,
    }
    assert sum(seen.phases.values()) == seen.executed == 1_400_000


def test_parts_are_below_what_they_are_a_part_of() -> None:
    tree = [(span.depth, span.name) for span in waterfall(LOG, RECORD, IMPORTS).spans]
    assert tree == [
        (0, "kernel"),
        (1, "initcall acpi_init"),
        (1, "unpacking the image"),
        (0, "interpreter"),
        (0, "imports"),
        (1, "import a"),
        (2, "import a.b"),
        (0, "first of all"),
        (0, "cmdline"),
        (0, "pre-udev"),
        (1, "module ext4"),
        (2, "initialisation of ext4"),
        (0, "mount"),
        (1, "mount of ext4"),
        (2, "import late"),
        (0, "execution"),
    ]


def test_the_clocks_differ_by_what_the_fastest_line_says() -> None:
    assert clock_difference(LOG, RECORD) == 980
    assert clock_difference([], RECORD) == 0


def test_an_image_of_others_has_two_phases() -> None:
    assert waterfall(LOG).phases == {"kernel": 500_000, "unpacking": 500_000, "initramfs": 400_000}


@pytest.mark.parametrize(
    ("log", "record", "message"),
    [
        (LOG[3:], None, "does not say when /init was executed"),
        (LOG[:4], None, "does not say when the real init was executed"),
        (LOG, {**RECORD, "stages": [{}]}, "not a boot record: KeyError"),
        (LOG, {**RECORD, "started": "soon"}, "not a boot record: ValueError"),
    ],
)
def test_what_cannot_be_told_is_an_error(log: list[Line], record: dict[str, Any], message: str) -> None:
    with pytest.raises(WaterfallError, match=message):
        waterfall(log, record)


TRACE = """# tracer: nop
#
 python3-1 [000] d..2.     1.100000: sched_switch: prev_comm=python3 prev_pid=1 prev_prio=120 prev_state=S ==> next_comm=systemd-udevd next_pid=60 next_prio=120
 systemd-udevd-60 [000] d..2.     1.120000: sched_switch: prev_comm=systemd-udevd prev_pid=60 prev_prio=120 prev_state=S ==> next_comm=(udev-worker) next_pid=61 next_prio=120
 (udev-worker)-61 [000] d..2.     1.150000: sched_switch: prev_comm=(udev-worker) prev_pid=61 prev_prio=120 prev_state=S ==> next_comm=kworker/0:1 next_pid=9 next_prio=120
 kworker/0:1-9 [000] d..2.     1.160000: sched_switch: prev_comm=kworker/0:1 prev_pid=9 prev_prio=120 prev_state=I ==> next_comm=swapper/0 next_pid=0 next_prio=120
 <idle>-0 [000] d..2.     1.200000: sched_switch: prev_comm=swapper/0 prev_pid=0 prev_prio=120 prev_state=R ==> next_comm=python3 next_pid=1 next_prio=120
 python3-1 [000] d..2.     1.500000: sched_switch: prev_comm=python3 prev_pid=1 prev_prio=120 prev_state=S ==> next_comm=swapper/0 next_pid=0 next_prio=120
"""  # noqa: E501


def test_who_had_the_cpu() -> None:
    assert turns(TRACE, 1_400_000) == (
        Turn("udevd", 1_100_000, 1_150_000),
        Turn("others", 1_150_000, 1_160_000),
        Turn("idle", 1_160_000, 1_200_000),
        Turn("PID 1", 1_200_000, 1_400_000),
    )
    shares = waterfall(LOG, RECORD, IMPORTS, TRACE).shares
    assert shares == {"udevd": 50_000, "others": 10_000, "idle": 40_000, "PID 1": 200_980}


def test_what_is_short_is_left_out_of_text_and_picture() -> None:
    seen = waterfall(LOG, RECORD, IMPORTS, TRACE)
    assert "mount of ext4" not in [span.name for span in significant(seen, 5_000)]
    lines = text(seen, 5_000)
    assert any(line.split()[:4] == ["1150.0", "90.0", "module", "ext4"] for line in lines), lines
    assert lines[-1] == "CPU from 1099.0 ms on, in ms: PID 1 201.0, udevd 50.0, idle 40.0, others 10.0"
    drawn = "".join(ElementTree.fromstring(svg(seen, "<a> & b", "note & note")).itertext())
    assert "module ext4" in drawn and "<a> & b" in drawn and "unpacking the image 500 ms" in drawn


@given(st.lists(st.tuples(st.integers(0, 10**12), st.text(max_size=80))), st.text(max_size=300))
def test_any_log_and_trace_is_read(rows: list[tuple[int, str]], trace: str) -> None:
    lines = [Line(time, words) for time, words in rows]
    seen = waterfall([*LOG, *lines], RECORD, IMPORTS, trace)
    ElementTree.fromstring(svg(seen, "any"))
    assert text(seen)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**15) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(RECORD)), inner),
    max_leaves=8,
)


@given(st.sampled_from(sorted(RECORD)), _JSON)
def test_any_record_is_read_or_refused(key: str, value: Any) -> None:
    try:
        seen = waterfall(LOG, {**RECORD, key: value}, IMPORTS)
    except WaterfallError:
        return
    ElementTree.fromstring(svg(seen, "any"))
    assert text(seen)
