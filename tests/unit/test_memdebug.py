"""What rd.memdebug tells."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit import memdebug
from pyinit.config.options import boot_config

MEMINFO = b"""MemTotal:         201440 kB
MemFree:          120000 kB
MemAvailable:     150000 kB
Cached:            30000 kB
Slab:              12000 kB
"""


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    for name in ("slabinfo", "modules", "buddyinfo", "vmstat"):
        (tmp_path / name).write_text(f"the {name}\n")
    (tmp_path / "meminfo").write_bytes(MEMINFO)
    for pid, size in ((1, 12000), (70, 400), (2, 0)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "comm").write_text(f"program{pid}\n")
        (tmp_path / str(pid) / "status").write_text(
            f"Name:\tx\nVmRSS:\t{size:8} kB\n" if size else "Name:\tx\n"
        )
    return tmp_path


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
def test_each_level_tells_more(level: int, proc: Path) -> None:
    path = proc / "out"
    for stage in ("mount", "cleanup"):
        text = memdebug.write(stage, level, str(proc), str(path))
    assert text == "MemFree 120000 kB, MemAvailable 150000 kB, Cached 30000 kB, Slab 12000 kB"
    told = path.read_text()
    assert told.count(f": {text}\n") == 2 and told.startswith(f"=== before mount: {text}\n")
    assert ("MemTotal" in told, "the slabinfo" in told, "the modules" in told, "the vmstat" in told) == (
        level >= 2,
        level >= 3,
        level >= 4,
        level >= 5,
    )
    assert ("   12000 kB       1 program1\n     400 kB      70 program70\n" in told) == (level >= 4)


def test_a_full_run_is_no_error(proc: Path) -> None:
    assert memdebug.write("mount", 1, str(proc), "/nonexistent/file").startswith("MemFree")


@given(st.binary(max_size=100))
def test_whatever_the_kernel_says_is_printable(meminfo: bytes) -> None:
    text = memdebug.summary(b"MemFree: " + meminfo)
    assert text.isascii() and text.isprintable()


@pytest.mark.fault("K6")
@pytest.mark.parametrize(
    ("word", "level"),
    [
        ("rd.memdebug=3", 3),
        ("rd.memdebug=0", 0),
        ("rd.memdebug=6", 0),
        ("rd.memdebug", 0),
        ("rd.memdebug=x", 0),
    ],
)
def test_the_level(word: str, level: int) -> None:
    config = boot_config(word.encode())
    assert config.memdebug == level
    assert bool(config.warnings) == (word not in ("rd.memdebug=3", "rd.memdebug=0"))
