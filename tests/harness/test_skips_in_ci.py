"""In CI a skip is a failure unless the list allows it: shown with pytest itself, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
MODULE = """
import pytest

def test_one():
    pytest.skip("no reason that CI knows")

@pytest.mark.parametrize("suite", ["sid"])
def test_debian(suite):
    pytest.skip("infrastructure: the archive is broken")

@pytest.mark.xfail(strict=True)
def test_known():
    assert False
"""


@pytest.mark.parametrize(
    ("ci", "outcome"), [("true", "1 failed, 1 skipped, 1 xfailed"), ("", "2 skipped, 1 xfailed")]
)
def test_skips(tmp_path: Path, ci: str, outcome: str) -> None:
    (tmp_path / "tests").mkdir()
    for name in ("conftest.py", "allowed-skips.toml"):
        (tmp_path / "tests" / name).write_text((TESTS / name).read_text())
    (tmp_path / "tests" / "test_some.py").write_text(MODULE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q"],
        cwd=tmp_path,
        env={**os.environ, "CI": ci, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome in result.stdout
    assert result.returncode == (1 if ci else 0)
    assert ("no reason that CI knows" in result.stdout) == bool(ci)
