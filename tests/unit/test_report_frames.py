"""Frames that PID 1 sends to whoever watches from outside."""

from __future__ import annotations

import json
import os
import select
from binascii import crc32
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pyinit.record import now
from pyinit.report import Reporter, frame

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(st.text(), st.dictionaries(st.text(), json_values))
def test_a_frame_is_one_line_with_its_length_and_checksum(kind: str, facts: dict[str, object]) -> None:
    facts.pop("kind", None)
    data = frame(kind, facts)
    assert data.isascii() and data.endswith(b"\n") and data.count(b"\n") == 1
    length, checksum, body = data[:-1].split(b" ", 2)
    assert int(length) == len(body)
    assert int(checksum, 16) == crc32(body) and len(checksum) == 8
    assert json.loads(body) == {"kind": kind, **facts}


def test_reporter_writes_to_its_terminal() -> None:
    controller, terminal = os.openpty()
    before = now()
    Reporter(os.ttyname(terminal)).send("hello", {"pid": 1})
    text = b""
    while text.count(b"\n") < 2 and select.select([controller], [], [], 30)[0]:
        text += os.read(controller, 4096).replace(b"\r\n", b"\n")
    sent = json.loads(text.split(b" ", 2)[2])
    assert text == b"\n" + frame("hello", {"at": sent["at"], "pid": 1})
    assert before <= sent["at"] <= now()


def test_what_is_no_terminal_is_never_written_to(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"precious")
    Reporter(str(disk)).send("hello", {"pid": 1})
    assert disk.read_bytes() == b"precious"


def test_reporter_without_or_with_a_broken_device_is_silent(tmp_path: Path) -> None:
    Reporter().send("hello", {})
    Reporter(str(tmp_path / "absent")).send("hello", {})
    assert os.listdir(tmp_path) == []
