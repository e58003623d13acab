"""docs/harness-tutorial.md, as a person follows it: its blocks, in an empty folder, with only the wheel.

``sh`` blocks are run by one shell, a ``python`` block is written to the file that its first line names, and
every line of a ``text`` block is a pattern (fnmatch) of a line that the shell block before it printed. ``sh
fails`` is a block whose last command does not succeed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "harness-tutorial.md"

pytestmark = pytest.mark.boot


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    found = re.finditer(r"^```(\w[\w ]*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [Block(match[1], match[2], page.count("\n", 0, match.start()) + 2) for match in found]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)], check=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_tutorial_works(wheel: Path, tmp_path: Path) -> None:
    keep = ("HOME", "LANG", "PATH", "PYINIT_CACHE", "TMPDIR", "XDG_CACHE_HOME", "http_proxy", "https_proxy")
    environment = {name: os.environ[name] for name in keep if name in os.environ}
    environment |= {"WHEEL": str(wheel), "PYTHONDONTWRITEBYTECODE": "1"}
    folder = tmp_path / "tutorial"
    folder.mkdir()

    page = blocks(TUTORIAL.read_text())
    script = ["set -e"]
    for number, block in enumerate(page):
        if block.kind == "sh":
            script.append(f"{{\n{block.text}}} > ../output-{number} 2>&1")
        elif block.kind == "sh fails":
            script.append(f"if {{\n{block.text}}} > ../output-{number} 2>&1; then exit 1; fi")
        elif block.kind == "python":
            name = re.match(r"# (\w+\.py)\n", block.text)
            assert name, f"line {block.line}: a python block without a name"
            script.append(f"cat > {name[1]} <<'END OF FILE'\n{block.text}END OF FILE")
        else:
            assert block.kind == "text", f"line {block.line}: a block that nobody runs"
    result = subprocess.run(["sh", "-c", "\n".join(script)], cwd=folder, env=environment, check=False)

    output = ""
    for number, block in enumerate(page):
        path = tmp_path / f"output-{number}"
        if path.exists():
            output = path.read_text(errors="replace")
            last = block.line
        if block.kind == "text" and path.with_name(f"output-{number - 1}").exists():
            for pattern in block.text.splitlines():
                assert any(
                    fnmatchcase(line, pattern) for line in output.splitlines()
                ), f"line {block.line}: {pattern!r} is not in\n{output}"
    assert result.returncode == 0, f"the block in line {last} failed:\n{output}"

    # The types of what the wheel has suffice for whoever checks theirs.
    python = folder / ".venv" / "bin" / "python"
    mypy = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--python-executable",
        str(python),
        "--cache-dir=/dev/null",
    ]
    checked = subprocess.run(
        [*mypy, "conftest.py", "test_boot.py", "test_failing_disk.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
