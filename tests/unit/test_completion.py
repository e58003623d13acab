"""What a word in the rescue shell could be."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit.rescue import completion
from pyinit.rescue.completion import complete


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    (tmp_path / ".hidden").touch()
    (tmp_path / "fine").mkdir()
    (tmp_path / "fine" / "inner").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("text", "start", "words"),
    [
        ("cat fi", 4, ["file", "fine/"]),
        ("cat fine/", 9, ["inner"]),
        ("cat .h", 4, [".hidden"]),
        ("cat x >fi", 7, ["file", "fine/"]),
        ("pyinit dev", 7, ["devices"]),
        ("echo; pyinit re", 13, ["reboot", "report", "retry"]),
        ("pyinit report ", 14, ["--to"]),
        ("pyinit explain E-A", 15, ["E-AMBIG"]),
        ("pyinit set rd.ti", 11, ["rd.timeout="]),
        ("pyinit set rd.timeout=", 22, []),
        ("pyinit status ", 14, []),
        ("cat /none/such", 10, []),
    ],
)
def test_words(text: str, start: int, words: list[str], folder: Path) -> None:
    assert complete(text, str(folder)) == (start, words)


def test_files_below_a_path_that_is_absolute(folder: Path) -> None:
    text = f"ls {folder}/fin"
    assert complete(text, "/") == (len(text) - 3, ["fine/"])


def test_the_first_word_is_a_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "ENVIRONMENT", {"PATH": f"{folder}:/nonexistent"})
    assert complete("f", "/") == (0, ["fg", "file", "fine"])
    assert complete("x | f", "/") == (4, ["fg", "file", "fine"])


def test_devices_by_what_udev_calls_them(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"/dev/disk/by-label": ["my\\x20disk", "stick"], "/sys/class/block": ["sda1"]}
    monkeypatch.setattr(completion, "names", lambda path: known.get(path, []))
    assert complete("pyinit mount-root ", "/") == (18, ["/dev/sda1", "LABEL=stick"])
    assert complete("pyinit set root=LA", "/") == (16, ["LABEL=stick"])


@given(st.text(max_size=30))
def test_whatever_was_typed_it_ends_within_the_text(text: str) -> None:
    start, words = complete(text, "/nonexistent")
    assert 0 <= start <= len(text)
    assert all(word.startswith(text[start:]) for word in words)
