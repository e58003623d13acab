"""Figures of growth and of builds: what is told of them, and their pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit_qemu import building, curves, scale
from pyinit_qemu.scale import SERIES, Point

DISKS, UEVENTS, BYTES = SERIES
TIMES = st.integers(1, 10**9)
POINTS = st.lists(st.builds(Point, st.integers(0, 2000), TIMES, TIMES, st.none() | TIMES, TIMES, st.just("")))


def line(*pairs: tuple[float, int]) -> list[Point]:
    return [Point(count, took, took) for count, took in pairs]


def test_growth_is_told_per_piece_and_by_how_much_it_steepens() -> None:
    steady = line((1, 1000), (10, 10_000), (100, 100_000))
    assert scale.slope(DISKS, steady) == 1000
    assert scale.steepening(DISKS, steady) == pytest.approx(1)
    worse = line((1, 1000), (10, 10_000), (100, 1_000_000))
    assert (scale.steepening(DISKS, worse) or 0) > 10


def test_a_boot_that_failed_has_no_part_in_growth() -> None:
    points = [*line((1, 1000), (10, 10_000)), Point(100, failure="the guest gave up")]
    assert scale.slope(DISKS, points) == 1000
    assert scale.steepening(DISKS, points) is None
    headers, rows = scale.scale_table(DISKS, {"one": points, "other": []})
    assert len({len(headers), *map(len, rows)}) == 1
    assert rows[0][1:] == ["0.00 s, 0", "0.01 s, 0", "—", "1.00", "—"]
    assert rows[1][1:] == ["—"] * 5


def test_each_series_compares_its_own_time() -> None:
    point = Point(1, initramfs=1, kernel=2, mounted=3)
    assert [series.time(point) for series in SERIES] == [1, 3, 2]


@pytest.mark.parametrize("count", [1, 10, 100, 101, 1000])
def test_as_many_disks_as_asked_for_or_the_next_that_can_be(count: int) -> None:
    words = dict(word.split("=") for word in scale.disk_words(count).split())
    targets, luns = int(words["scsi_debug.num_tgts"]), int(words["scsi_debug.max_luns"])
    assert luns <= scale.LUNS and count <= targets * luns < count + targets


@given(st.dictionaries(st.text(max_size=9), POINTS, max_size=4), st.booleans())
def test_curves_of_any_figures_are_a_picture(found: dict[str, list[Point]], log: bool) -> None:
    times = {
        name: [(point.count, point.initramfs / 1e6) for point in points] for name, points in found.items()
    }
    picture = curves.svg((("disks", "s", times), ("disks", "MiB", times)), "A title <&>", "a note", log=log)
    root = ElementTree.fromstring(picture)
    shown = [point for points in times.values() for point in points if not log or min(point) > 0]
    assert len([node for node in root.iter() if node.tag.endswith("circle")]) == 2 * len(shown)
    for node in root.iter():
        if node.tag.endswith("circle"):
            assert 0 <= float(node.attrib["cx"]) <= float(root.attrib["width"])
            assert 0 <= float(node.attrib["cy"]) <= float(root.attrib["height"])
    headers, rows = scale.scale_table(BYTES, found)
    assert all(len(row) == len(headers) for row in rows)


REPORT = {
    "seconds": 2.0,
    "steps": [
        {"name": "one", "start": 0.0, "end": 1.5, "beside": False},
        {"name": "two\x1b", "start": 0.5, "end": 2.0, "beside": True},
        {"name": "blink", "start": 1.5, "end": 1.501, "beside": False},
    ],
}


def test_a_build_begins_with_the_start_of_its_program() -> None:
    output = f"pyinit-image: warning: something\n{json.dumps(REPORT)}\n"
    built = building.with_steps(building.Built("ours", 2.25, 3.5), output)
    assert [(span.name, span.start, span.end) for span in built.spans] == [
        ("start of the program", 0.0, 0.25),
        ("one", 0.25, 1.75),
        ("two\x1b", 0.75, 2.25),
    ]
    assert building.text(built)[0] == "ours: 2.25 s, 3.50 s of CPU time"
    assert "\x1b" not in "".join(building.text(built))
    other = building.Built("theirs", 4.0, 0.5)
    root = ElementTree.fromstring(building.svg([built, other], "Builds", "note"))
    words = [node.text for node in root.iter() if node.tag.endswith("text")]
    assert {"ours", "one", "theirs", "4.00", "1.50"} <= set(words)
    _, rows = building.build_table({"a": [built, other]})
    assert rows == [["a", "2.2", "4.0", "0.5"]]
    assert building.quickest({"a": [other, built], "b": [other], "c": []}) == [built, other]


@pytest.mark.effects  # another program
def test_a_build_counts_what_its_processes_used() -> None:
    program = "import time\nwhile time.process_time() < 0.2: pass\nprint('done')"
    words = [sys.executable, "-c", program]
    built, output = building.timed(
        "x", lambda: subprocess.run(words, stdout=-1, check=True, text=True).stdout
    )
    assert output == "done\n" and built.seconds > 0 and built.cpu >= 0.2


@given(st.text() | st.builds(json.dumps, st.dictionaries(st.sampled_from(["seconds", "steps"]), st.none())))
def test_what_is_no_report_is_said_to_be_none(output: str) -> None:
    with pytest.raises(ValueError):
        building.with_steps(building.Built("ours", 1.0, 1.0), output)
