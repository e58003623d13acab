"""The first line of a script is read as the kernel reads it, which is asked to execute each of them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyinit.kernel.executable import read_script

#: Interpreters in the working directory, and the status that each ends with.
INTERPRETERS = {"a": 0, "b": 1}

LINES = st.lists(
    st.sampled_from(
        [b"a", b"b", b" ", b"\t", b"\0", b"\n", b"\r", b"./", b"a/", b"\xff", b" " * 250, b"x" * 250]
    ),
    max_size=8,
).map(b"".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scripts")
    for name, program in (("a", "true"), ("b", "false")):
        shutil.copy(f"/bin/{program}", path / name)
    return path


def executed(folder: Path, content: bytes) -> int | None:
    """The status of a script, or None when the kernel does not execute it."""
    script = folder / "script"
    script.write_bytes(content)
    script.chmod(0o755)
    try:
        return subprocess.run(["./script"], cwd=folder, stdin=subprocess.DEVNULL).returncode
    except OSError:
        return None


@settings(max_examples=500)
@given(line=LINES)
@example(line=b"a/")
@example(line=b"a")
@example(line=b" \ta \t")
@example(line=b"a\0b\n")
@example(line=b" " * 252 + b"a\n")
@example(line=b" " * 253 + b"a")
@example(line=b" " * 252 + b"a\n")
@example(line=b" " * 251 + b"a b")
@example(line=b" " * 250 + b"a\0aa")
@example(line=b"\n")
@example(line=b"a" + b" " * 300)
def test_the_kernel_executes_the_same_interpreter(folder: Path, line: bytes) -> None:
    content = b"#!" + line
    try:
        name = read_script(content[:256])
    except ValueError:
        name = None
    status = executed(folder, content)
    if name is None or not os.path.isfile(os.path.join(folder, name)):
        assert status is None, f"the kernel executes it, which {name!r} does not tell"
    else:
        assert status == INTERPRETERS[os.path.basename(name)]
