"""Linters as tests, in the versions that pyproject.toml pins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = (
    "scripts/_setup.py",
    "scripts/bench",
    "scripts/boot",
    "scripts/embed-kernel",
    "scripts/fuzz",
    "scripts/test",
)


@pytest.mark.effects
@pytest.mark.parametrize(
    "command",
    [("ruff", "check", ".", *SCRIPTS), ("ruff", "format", "--check", ".", *SCRIPTS), ("mypy",)],
    ids=["ruff check", "ruff format", "mypy"],
)
def test_is_clean(command: tuple[str, ...]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
