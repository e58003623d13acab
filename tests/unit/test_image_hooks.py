"""Hook files are checked before they go into an image."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit_image import hooks
from pyinit_image.errors import BuildError
from pyinit_image.sysroot import Sysroot

GOOD = b"def pre_pivot(moment):\n    pass\n"


def read(tmp_path: Path, content: bytes, name: str = "10-x.py") -> list[hooks.Hook]:
    path = tmp_path / name
    path.write_bytes(content)
    return hooks.read(Sysroot(tmp_path), [path])


def test_order_and_table(tmp_path: Path) -> None:
    folder = tmp_path / "etc/pyinit/hooks.d"
    folder.mkdir(parents=True)
    (folder / "20-b.py").write_bytes(b"def mount(moment): pass\n" + GOOD)
    (folder / "30-c.py").write_bytes(b"syntax error: hidden by the one that is given")
    (folder / "README").write_bytes(b"no hook")
    for name in ("10-a.py", "30-c.py"):
        (tmp_path / name).write_bytes(GOOD)
    found = hooks.read(Sysroot(tmp_path), [tmp_path / "30-c.py", tmp_path / "10-a.py"])
    assert [(hook.name, hook.stages) for hook in found] == [
        ("10-a", ("pre_pivot",)),
        ("20-b", ("mount", "pre_pivot")),
        ("30-c", ("pre_pivot",)),
    ]
    assert found[1].origin == "/etc/pyinit/hooks.d/20-b.py"
    assert found[2].origin.startswith("--hook ")
    assert hooks.table(found) == {"pre_pivot": ["10-a", "20-b", "30-c"], "mount": ["20-b"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x = (\n", r"10-x\.py:1: '\(' was never closed: x = \("),
        (b"\n\ndef pre_pivto(moment): pass\n", r"10-x\.py:3: pre_pivto\(\) is not .* mean pre_pivot"),
        (b"def helper(): pass\n", r"10-x\.py:1: helper\(\) is not the name of a stage$"),
        (b"def _helper(): pass\n", "has no hook function"),
        (b"", "has no hook function"),
        (b"def mount(): pass\n", r"10-x\.py:1: mount\(\) must take one argument"),
        (b"def mount(a, b): pass\n", "must take one argument"),
        (b"def mount(a, *, b): pass\n", "must take one argument"),
        (b"async def mount(a): pass\n", "must not be async"),
        (b"\xff\xfe", "10-x.py"),
        (b"x = 1\0", "10-x.py"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(BuildError, match=message) as caught:
        read(tmp_path, content)
    assert str(caught.value).isascii()


@pytest.mark.parametrize(
    "content", [b"def mount(a, b=1): pass", b"def mount(*a): pass", b"def mount(a, **b): pass"]
)
def test_one_argument_is_enough(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path, content)[0].stages == ("mount",)


@pytest.mark.parametrize("name", ["10.x.py", "hook", "\x1b.py", ".py"])
def test_names_that_cannot_be_imported(tmp_path: Path, name: str) -> None:
    with pytest.raises(BuildError, match="its name must be letters, digits"):
        read(tmp_path, GOOD, name)


def test_two_files_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for path in (tmp_path / "x.py", tmp_path / "a/x.py"):
        path.write_bytes(GOOD)
    with pytest.raises(BuildError, match="have the same name"):
        hooks.read(Sysroot(tmp_path), [tmp_path / "x.py", tmp_path / "a/x.py"])


@given(st.binary() | st.text(alphabet="def mount(a):\n pass=*,").map(str.encode))
def test_any_bytes_are_a_hook_or_an_error(content: bytes) -> None:
    try:
        hooks._hook("x.py", content, "x.py", "test")
    except BuildError as error:
        assert str(error).isascii()
