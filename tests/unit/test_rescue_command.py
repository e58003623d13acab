"""The command of the rescue shell, as far as it needs no machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyinit.config.options import boot_config
from pyinit.rescue import cli


@pytest.fixture
def overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cmdline.d" / "90.conf"
    monkeypatch.setattr(cli, "OVERRIDES", str(path))
    return path


def test_what_is_set_is_read_as_it_was_meant(overrides: Path) -> None:
    assert cli.main(["set", "root=LABEL=my disk", "rw"]) == 0
    assert cli.main(["set", "rootflags=noatime"]) == 0
    config = boot_config(*overrides.read_bytes().splitlines())
    assert (config.root, config.read_only, config.rootflags) == ("LABEL=my disk", False, "noatime")


def test_a_misspelt_word_is_noticed_at_once(overrides: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["set", "rooot=1", "rd.tmeout=3", "greeting=hello"]) == 0
    text = capsys.readouterr().out
    assert (
        "rooot is set, but the initramfs knows no such word; did you mean root? Then: pyinit set root=1"
        in text
    )
    assert "the nearest known word is rd.timeout" in text
    assert "greeting" not in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["devcies"], "there is no command devcies; did you mean devices?"),
        (["zzzzzz"], "there is no command zzzzzz\n"),
        (["\x1b[2J"], "there is no command \\x1b[2J"),
        (["set"], "pyinit set: it needs words, as in pyinit set root=UUID=...\nusage: pyinit set WORD...\n"),
        (["explain", "it"], "pyinit explain: there is no code it; the codes are E-IMAGE, "),
        (["devices", "it"], "pyinit devices: it takes no further words\nusage: pyinit devices\n"),
        (
            ["report", "sdb1"],
            "pyinit report: it takes --to and one place, and --force\n"
            "usage: pyinit report [--to PLACE [--force]]",
        ),
        (["mount-root"], "pyinit mount-root: it needs a device\nusage: pyinit mount-root DEVICE [OPTIONS]"),
    ],
)
def test_what_it_does_not_understand(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    assert said in capsys.readouterr().err


def test_alone_it_tells_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "pyinit set WORD" in capsys.readouterr().out


def test_options_are_those_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["options"]) == 0
    assert "rd.break" in capsys.readouterr().out


def test_a_code_is_explained_however_it_is_typed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "dev"]) == cli.main(["explain", "E-DEV"]) == 0
    first, second = capsys.readouterr().out.split("E-DEV: ")[1:]
    assert first == second and "rd.timeout=SECONDS" in first


def test_going_on_is_for_the_rescue_shell_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PYINIT_STAGE", raising=False)
    assert cli.main(["continue"]) == 1
    assert "this is not the rescue shell of a boot" in capsys.readouterr().err
