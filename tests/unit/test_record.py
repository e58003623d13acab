"""The boot record and the timeline that people read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyinit.record import MAX_MESSAGES, Record, decode, main, timeline


def finished_record() -> Record:
    record = Record("1.2", "6.1.0")
    start = record.data["started"]
    record.add("stages", name="mount", start=start + 1000, end=start + 3000, outcome="done")
    record.add("modules", name="ext4", start=start + 100, end=start + 400, result="loaded")
    record.add("modules", name="crc16", start=start + 50, end=start + 60, result="present")
    record.add("children", argv=["/bin/udevd"], pid=7, start=start, end=None, status=None)
    record.add(
        "wants", name="root", spec="LABEL=x", asked=start, ended=start + 500, outcome="satisfied",
        by="/dev/vda", event="add",
    )  # fmt: skip
    record.add(
        "mounts", source="/dev/vda", target="/sysroot", type="ext4", options="ro",
        start=start + 1100, end=start + 2900,
    )  # fmt: skip
    record.data["handover"] = {"at": start + 4000, "init": "/sbin/init", "method": "pivot_root", "killed": []}
    return record


def test_timeline_tells_each_step_in_order_of_time() -> None:
    lines = timeline(json.loads(finished_record().encode()))
    text = "\n".join(lines)
    order = [
        "/init",
        "module ext4",
        "root satisfied by /dev/vda (add)",
        "mount",
        "/sbin/init (switched by pivot_root)",
    ]
    positions = [text.index(word) for word in order]
    assert positions == sorted(positions)
    assert lines[-1] == "4.0 ms from /init to the real init"


def test_the_time_of_people_is_a_phase_of_its_own_and_not_the_boots() -> None:
    record = finished_record()
    start = record.data["started"]
    record.add("shells", stage="mount", start=start + 500, end=start + 2000)
    lines = timeline(decode(record.encode()))
    assert any(line.endswith("   1.5  rescue shell in mount") for line in lines)
    assert lines[-1] == "2.5 ms from /init to the real init, without 1.5 ms in the rescue shell"


def test_a_record_of_an_earlier_version_is_read() -> None:
    record = finished_record().data
    del record["shells"]
    assert decode(json.dumps(record).encode())["shells"] == []


def test_modules_that_were_there_already_are_not_told() -> None:
    assert "crc16" not in "\n".join(timeline(finished_record().data))


def test_a_failed_attempt_shows_its_code() -> None:
    record = finished_record()
    record.add("stages", name="initqueue", start=1, end=2, outcome="E-DEV")
    assert any(line.endswith("initqueue  E-DEV") for line in timeline(record.data))


def test_a_boot_that_did_not_hand_over_has_a_timeline_too() -> None:
    record = finished_record()
    record.data["handover"] = None
    assert "real init" not in timeline(record.data)[-1]
    # In the shell right before the switch.
    record.data["handover"] = {"at": 0, "init": "", "method": "", "killed": []}
    assert "switched by" not in "\n".join(timeline(record.data))
    assert "real init" not in timeline(record.data)[-1]


def test_a_rescue_shell_is_called_that() -> None:
    record = finished_record()
    relay = ["/usr/bin/python3", "-S", "-c", "from pyinit.rescue.relay import main;main()", "/bin/sh"]
    record.add("children", argv=relay, pid=9, start=1, end=2, status=0)
    assert any(line.endswith("    rescue shell /bin/sh") for line in timeline(record.data))


def test_messages_are_bounded_and_the_newest_stay() -> None:
    record = Record("1", "6")
    for number in range(MAX_MESSAGES + 3):
        record.message("info", str(number))
    texts = [message["text"] for message in record.data["messages"]]
    assert len(texts) == MAX_MESSAGES
    assert texts[-1] == str(MAX_MESSAGES + 2)


def test_command_prints_the_timeline_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "boot.json"
    path.write_bytes(finished_record().encode())
    assert main([str(path)]) == 0
    assert "real init" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"started": "x", "stages": 3}',
        b"\xff",
        b"[" * 200_000,
        finished_record().encode()[:-9],
        finished_record().encode().replace(b'"start":', b'"start":9' + b"9" * 400 + b',"x":'),
        finished_record().encode().replace(b'["/bin/udevd"]', b"[7]"),
    ],
)
def test_command_says_when_a_file_is_no_record(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "boot.json"
    path.write_bytes(content)
    assert main([str(path)]) == 1
    assert "holds no boot record" in capsys.readouterr().err


def test_a_record_without_any_one_of_its_parts_is_told_or_refused() -> None:
    record = finished_record()
    record.message("info", "x")
    whole = json.loads(record.encode())

    def paths(value: object, above: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
        pairs = value.items() if isinstance(value, dict) else ()
        if isinstance(value, list):
            pairs = list(enumerate(value))
        return [path for key, item in pairs for path in ((*above, key), *paths(item, (*above, key)))]

    refused = 0
    for *above, last in paths(whole):
        changed = json.loads(record.encode())
        place = changed
        for key in above:
            place = place[key]
        del place[last]
        try:
            timeline(decode(json.dumps(changed).encode()))
        except ValueError:
            refused += 1
    assert 20 < refused < len(paths(whole))


def test_a_record_of_a_stranger_drives_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = finished_record()
    record.data["mounts"][0]["source"] = "\x1b]0;x\x07\r\x9b2J\u202e\ud800\U0001f600\\x1b"
    path = tmp_path / "boot.json"
    path.write_bytes(record.encode())
    assert main([str(path)]) == 0
    assert r"mount \x1b]0;x\x07\r\x9b2J\u202e\ud800\U0001f600\x1b on" in capsys.readouterr().out


def test_the_file_runs_without_pyinit(tmp_path: Path) -> None:
    """It is copied alone into the booted system."""
    import pyinit.record

    source = Path(pyinit.record.__file__).read_text()
    names: dict[str, object] = {"__name__": "timeline"}
    exec(compile(source, "timeline.py", "exec"), names)
    assert "from pyinit" not in source and "import pyinit" not in source
