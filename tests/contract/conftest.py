"""Real system calls, made where they harm nothing: in new mount and PID namespaces."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
TIMEOUT = 120

Isolated = Callable[..., "subprocess.CompletedProcess[str]"]


@functools.cache
def _unshare() -> tuple[tuple[str, ...], str]:
    """The command that makes the namespaces, or the reason why there is none."""
    plain = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
    reasons = []
    for command in (plain, (*plain, "--user", "--map-root-user")):
        probe = [*command, "mount", "-t", "tmpfs", "probe", "/mnt"]
        try:
            result = subprocess.run(probe, capture_output=True, text=True, timeout=TIMEOUT)
        except OSError as error:
            return (), f"unshare(1) cannot be executed: {error}"
        if result.returncode == 0:
            return command, ""
        reasons.append(result.stderr.strip())
    return (), f"this host allows no new mount namespace: {'; '.join(reasons)}"


@pytest.fixture(scope="session")
def isolated() -> Isolated:
    """Run a Python script as PID 1 of new mount and PID namespaces: ``isolated(script, argument)``.

    The argument travels as JSON in argv[1]. Mounts made there are never seen outside.
    """
    command, reason = _unshare()
    if not command:
        pytest.skip(reason)

    def run(script: Path, argument: Any, pass_fds: tuple[int, ...] = ()) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, sys.executable, "-B", str(script), json.dumps(argument)],
            capture_output=True,
            text=True,
            errors="backslashreplace",
            timeout=TIMEOUT,
            pass_fds=pass_fds,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )

    return run
