"""What changed between two images."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from pyinit_image import cli, cpio
from pyinit_image.cpio import Member
from pyinit_image.plan import MANIFEST_PATH

FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755


def image(path: Path, *members: Member) -> str:
    path.write_bytes(b"".join(cpio.write(members)))
    return str(path)


def test_changes_and_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {
        "/new": {"reason": "dependency", "source": "modules", "parent": "/top"},
        "/top": {"reason": "--module top", "source": "modules"},
    }
    manifest = json.dumps({"schema": 1, "entries": rows, "absent": {}, "others": ""}).encode()
    parts = MANIFEST_PATH[1:].split("/")[:-1]
    directories = [Member("/".join(parts[: n + 1]).encode(), DIRECTORY) for n in range(len(parts))]
    same = Member(b"same", FILE, b"x")
    old = image(
        tmp_path / "a",
        same,
        Member(b"gone", FILE, b"1234"),
        Member(b"grown", FILE, b"1"),
        Member(b"mode", FILE),
    )
    new = image(
        tmp_path / "b",
        *directories,
        Member(MANIFEST_PATH[1:].encode(), FILE, manifest),
        same,
        Member(b"grown", FILE, b"123"),
        Member(b"mode", FILE | 0o111),
        Member(b"new", FILE, b"12345"),
    )
    assert cli.main(["diff", old, old]) == 0
    assert capsys.readouterr().out == ""
    assert cli.main(["diff", old, new]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "came            +5 /new  (dependency <- /top: --module top)" in lines
    assert "went            -4 /gone" in lines
    assert "content         +2 /grown" in lines
    assert "mode            +0 /mode" in lines
    assert cli.main(["diff", "--json", old, new]) == 1
    table = {row["path"]: row for row in json.loads(capsys.readouterr().out)}
    assert table["/new"]["reasons"] == ["dependency", "/top: --module top"]
    (tmp_path / "c").write_bytes(b"garbage")
    assert cli.main(["diff", old, str(tmp_path / "c")]) == 2
    assert "neither newc nor compressed" in capsys.readouterr().err
