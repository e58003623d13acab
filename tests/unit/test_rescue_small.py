"""The small programs of the rescue shell, and the devices that udevd has not seen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.devices.waiting import size
from pyinit.rescue import cli, small
from pyinit.rescue.probe import properties


def test_the_command_knows_all_of_them() -> None:
    assert set(cli.SMALL) == set(small.PROGRAMS)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ([], "".join(f"{n}\n" for n in range(10))),
        (["-n", "2"], "0\n1\n"),
        (["-n2"], "0\n1\n"),
        (["-3"], "0\n1\n2\n"),
        (["-n", "0", "--"], ""),
    ],
)
def test_head(words: list[str], shown: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "numbers"
    file.write_text("".join(f"{n}\n" for n in range(20)))
    assert small.run("head", [*words, str(file)]) == 0
    assert capfd.readouterr().out == shown


def test_what_is_not_understood(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert small.run("head", ["-c", "3"]) == 2
    assert small.run("clear", ["x"]) == 2
    assert small.run("chroot", ["--userspec=x", "/"]) == 2
    assert small.run("head", [str(tmp_path / "a\x1b[2J")]) == 1
    told = capfd.readouterr().err
    assert "head: takes -n LINES and files, and not -c" in told
    assert "\\x1b[2J: No such file or directory" in told


def test_touch(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("kept")
    os.utime(old, (1, 1))
    assert small.run("touch", [str(old), str(new)]) == 0
    assert (old.read_text(), new.read_text()) == ("kept", "")
    assert old.stat().st_mtime > 1
    assert small.run("touch", [str(tmp_path), str(tmp_path / "a/b")]) == 1
    assert small.run("touch", ["-d", "x"]) == 2
    assert capfd.readouterr().err.splitlines()[-1] == "touch: takes files, and no options"


def test_df_tells_the_room_that_statvfs_does(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert small.run("df", ["-h", "/"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].split() == ["FILE", "SYSTEM", "SIZE", "USED", "FREE", "MOUNTED", "ON"]
    room = os.statvfs("/")
    (line,) = (line for line in lines if line.endswith(" /"))
    assert size(room.f_blocks * room.f_frsize) in line
    assert small.run("df", []) == 0
    assert line in capfd.readouterr().out
    assert small.run("df", [str(tmp_path / "gone")]) == 1
    assert capfd.readouterr().err.endswith("gone: No such file or directory\n")


@pytest.mark.parametrize("words", [[], ["/sysroot"], ["/sysroot/", "ls"]])
def test_chroot_into_nothing_is_explained(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert small.run("chroot", words) == 1
    told = capfd.readouterr().err
    assert told.startswith("chroot: nothing is mounted on /sysroot.")
    assert "pyinit mount-root DEVICE" in told and "pyinit retry" in told


def test_ps_shows_this_process(capfd: pytest.CaptureFixture[str]) -> None:
    assert small.run("ps", ["aux"]) == 0
    (line,) = (line for line in capfd.readouterr().out.splitlines() if line.split()[0] == str(os.getpid()))
    assert line.split()[1] == str(os.getppid())
    assert int(line.split()[3]) > 1000


@given(st.binary(), st.binary())
def test_any_process_is_shown(stat: bytes, cmdline: bytes) -> None:
    shown = small.process(stat, cmdline)
    assert shown.isascii() and shown.isprintable()


def test_properties_stand_between_messages() -> None:
    said = b"Trying to open ...\nID_FS_TYPE=ext4\nID_FS_LABEL=a=b\nLoad module index: x=y\nID_FS_UUID=\n"
    assert properties(said) == {"ID_FS_TYPE": "ext4", "ID_FS_LABEL": "a=b"}


@given(st.binary())
def test_any_output_is_read(said: bytes) -> None:
    for name, value in properties(said).items():
        assert name.isascii() and value and "\n" not in value
