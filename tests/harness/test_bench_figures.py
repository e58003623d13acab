"""Benchmarks: how figures are read, repeated, searched, judged and shown."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit_image import compress, cpio
from pyinit_qemu.bench import (
    CLOCK,
    MEMORY_LEAST,
    MEMORY_STEP,
    BenchError,
    Boot,
    Goal,
    Result,
    as_json,
    boot_table,
    build_table,
    goals,
    markdown,
    measure,
    repeat,
    settled,
    sizes,
    smallest_memory,
)
from pyinit_qemu.chart import svg
from pyinit_qemu.moments import moments

TIMES = st.integers(1, 10**8)


def result(name: str, *times: int, packed: int = 10_000_000, memory: int | None = None) -> Result:
    boots = tuple(Boot(time, time + 2_000_000) for time in times)
    return Result(name, packed, 28_000_000, boots, memory)


LOG = """[    0.000000] Linux version 6.1
[    2.347000] Run /init as init process
[    2.900000] EXT4-fs (vda1): mounted filesystem with ordered data mode.
[    3.120000] witness: executed;cpu  10 0 20 3 4 0 0 0 0 0
"""


def test_times_are_those_of_the_two_executions() -> None:
    boot = measure(moments(LOG))
    assert (boot.initramfs, boot.kernel, boot.mounted) == (773_000, 3_120_000, 553_000)
    assert boot.idle == 0.04
    assert set(boot.sources.values()) == {"the kernel's log on the console"}


@pytest.mark.parametrize(("line", "message"), [(1, "when /init was executed"), (3, "when the real init was")])
def test_a_log_without_a_line_is_an_error_and_not_a_time(line: int, message: str) -> None:
    lines = LOG.splitlines()
    del lines[line]
    with pytest.raises(BenchError, match=message):
        measure(moments("\n".join(lines)))


def test_the_real_init_of_others_is_a_line_of_theirs() -> None:
    log = LOG.replace("witness: executed;cpu  10 0 20 3 4 0 0 0 0 0", "systemd[1]: systemd 252 running")
    seen = moments(log, until=re.compile("systemd .* running"))
    assert seen.executed is not None and seen.executed.time == 3_120_000


@given(st.text(), st.dictionaries(st.text(), st.text() | st.lists(st.text())))
def test_any_console_and_any_report_are_read(text: str, frame: dict[str, object]) -> None:
    for log in (text, f"[    1.000000] {text}"):
        seen = moments(log, {"kmsg": {"moments": [text]}, **frame})
        assert seen.init is None or seen.init.time >= 0


@given(st.lists(TIMES, min_size=12, max_size=12), st.integers(1, 6))
def test_repeats_until_the_two_shortest_agree_but_not_for_ever(times: list[int], least: int) -> None:
    boots = [Boot(time, time) for time in times]
    left = iter(boots)
    done = repeat(lambda: next(left), least, lambda text: None)
    assert list(done) == boots[: len(done)]
    assert least <= len(done) <= 2 * least
    assert settled(done) or len(done) == 2 * least
    assert len(done) == least or not settled(done[:-1])


def test_a_boot_that_took_too_long_is_no_disagreement() -> None:
    assert settled([Boot(700_000, 0), Boot(42_000_000, 0), Boot(700_000 + CLOCK, 0)])
    assert not settled([Boot(700_000, 0), Boot(42_000_000, 0), Boot(730_000, 0)])
    assert settled([Boot(700_000, 0)])


def test_the_least_boot_counts() -> None:
    measured = Result("x", 1, 1, (Boot(3, 9), Boot(2, 11), Boot(5, 8)))
    assert (measured.initramfs, measured.kernel) == (2, 8)


@given(st.integers(1, 40).map(lambda steps: steps * MEMORY_STEP), st.data())
def test_the_smallest_memory_is_found(enough: int, data: st.DataObject) -> None:
    if enough < MEMORY_LEAST:
        return
    needed = data.draw(st.integers(1, enough))
    asked: list[int] = []

    def boots(memory: int) -> bool:
        asked.append(memory)
        return memory >= needed

    found = smallest_memory(boots, enough)
    assert found >= needed and found % MEMORY_STEP == 0
    assert found - MEMORY_STEP < needed or found == MEMORY_LEAST
    assert len(asked) <= 6 and all(MEMORY_LEAST <= memory < enough for memory in asked)


def test_sizes_are_those_of_the_file_and_of_what_is_in_it(tmp_path: Path) -> None:
    members = [cpio.Member(b"init", 0o100755, b"i" * 5000), cpio.Member(b"etc", 0o040755)]
    archives = b"".join(cpio.write(members)) + compress.compress(b"".join(cpio.write(members)), "zstd")
    image = tmp_path / "image"
    image.write_bytes(archives)
    assert sizes(image) == (len(archives), 10_000)


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"no archive")
    with pytest.raises(BenchError, match=str(image)):
        sizes(image)


def test_goals_are_compared_with_what_was_measured() -> None:
    ours, tools, dracut = (
        result("pyinit list", 900_000, 600_000, packed=6_700_000),
        result("initramfs-tools list", 1_199_000),
        result("dracut minimal", 1_500_000),
    )
    lines = [str(goal) for goal in goals([dracut, ours, tools], fits={"pyinit list": 116})]
    assert lines == [
        "pyinit list, /init → real init, s: 0.6 (at most 0.6: reached)",
        "pyinit list, kernel → real init, s: 2.6 (at most 2.45: NOT reached)",
        "pyinit list, MB: 6.7 (at most 6: NOT reached)",
        "pyinit list, MiB in which it boots: 116 (at most 116: reached)",
        "/init → real init, pyinit list : initramfs-tools list: 0.5 (below 0.5: NOT reached)",
        "/init → real init, pyinit list : dracut minimal: 0.4 (below 0.5: reached)",
    ]
    generic = goals([replace(ours, name="pyinit generic", memory=176)])
    assert [goal.reached for goal in generic] == [True, True, True, False]


def test_goals_need_results() -> None:
    failed = Result("pyinit list", 1, 1, failure="panic")
    assert goals([result("dracut minimal", 1)]) == []
    assert [goal.what for goal in goals([failed, result("dracut minimal", 1)])] == ["pyinit list, MB"]


def test_a_limit_itself_is_good_enough_only_if_it_is_said_so() -> None:
    assert not Goal("x", 1.0, 1.0).reached
    assert Goal("x", 1.0, 1.0, strict=False).reached


def test_table_of_boots() -> None:
    rows = [
        result("pyinit list", 776_418, 780_000),
        Result("\x1b", 31_512_000, 85_000_000, failure="panic"),
    ]
    assert markdown(*boot_table(rows)) == (
        "| image       | kernel → /init, s | /init → root, s | /init → real init, s | kernel → real init, s |"
        " spread, % | boots |   MB | unpacked, MB |\n"
        "| ----------- | ----------------: | --------------: | -------------------: | --------------------: |"
        " --------: | ----: | ---: | -----------: |\n"
        "| pyinit list |              2.00 |               — |                 0.78 |                  2.78 |"
        "       0.5 |     2 | 10.0 |         28.0 |\n"
        "| \\x1b        |                 — |               — |                    — |"
        "                     — |         — |     0 | 31.5 |         85.0 |"
    )
    headers, cells = boot_table([replace(rows[0], memory=144), rows[1]])
    assert headers[-1] == "least RAM, MiB" and [row[-1] for row in cells] == ["144", "—"]


def test_boots_that_disagree_are_told() -> None:
    assert result("x", 700_000, 705_000).doubts == []
    (doubt,) = result("x", 700_000, 735_000).doubts
    assert "the two shortest of 2 boots differ by 5.0%: measure again" in doubt
    waited = Result("x", 1, 1, (Boot(700_000, 2_000_000, idle=0.2),))
    assert waited.doubts == ["up to 0.20 s of it may not be the guest's, which waited for a real disk"]


def test_the_chart_is_xml_whatever_a_name_is() -> None:
    rows = [replace(result("a <b> & \x1b", 500_000), memory=96), Result("other", 1, 1, failure="panic")]
    tree = ElementTree.fromstring(svg(rows, "Boots & <so on>", "today"))
    assert tree.tag == "{http://www.w3.org/2000/svg}svg"
    text = "".join(tree.itertext())
    assert "a <b> & " in text and "Boots & <so on>" in text and "\x1b" not in text


def test_table_of_builds() -> None:
    assert build_table({"pyinit list": (2.04, 1.5, 1.96)})[1] == [["pyinit list", "1.5", "2.0"]]


def test_json_has_every_boot() -> None:
    (entry,) = json.loads(json.dumps(as_json([result("x", 5, 6, memory=128)])))
    assert [boot["initramfs"] for boot in entry["boots"]] == [5, 6]
    assert [boot["kernel"] for boot in entry["boots"]] == [2_000_005, 2_000_006]
    assert (entry["name"], entry["packed"], entry["memory"], entry["failure"]) == ("x", 10_000_000, 128, "")
