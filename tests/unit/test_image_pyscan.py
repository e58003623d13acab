"""The search for Python modules, on packages made up here."""

from __future__ import annotations

import ast
import json
import marshal
from pathlib import Path
from typing import Any

import pytest

from pyinit_image import pyscan

MAIN = """
from __future__ import annotations
import os, early
from typing import TYPE_CHECKING
from . import sibling
from .deeper import *
from package.deeper import inner, NAME
if TYPE_CHECKING:
    import only_for_types
if __name__ == "__main__":
    import only_as_program
import sys
if sys.platform == "win32":
    import on_windows
elif sys.platform.startswith("linux"):
    import on_linux
if sys.version_info >= (3, 99):
    import in_future
else:
    import at_present
if UNKNOWN:
    import maybe
else:
    import maybe_not
try:
    import optional
except ImportError:
    optional = None
def function():
    import late
    class Inner:
        from package.deeper import inner
match 1:
    case 1:
        import in_match
with open as x:
    import in_with
"""


def scan(tmp_path: Path, files: dict[str, str], roots: list[str], **options: Any) -> dict[str, Any]:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    request = {
        "path": [[str(tmp_path), "/image", options.pop("keep", False), options.pop("only", None)]],
        "roots": [[name, "a root"] for name in roots],
        "exclude": [],
        "thorough": [],
        "strict": [],
        **options,
    }
    header, blobs = pyscan.scan(request)
    table: dict[str, Any] = json.loads(header)
    table["data"] = b"".join(blobs)
    return table


NAMES = "early sibling deeper only_for_types only_as_program on_windows on_linux in_future at_present maybe"
NAMES += " maybe_not late in_match in_with"
FILES = {f"{name}.py": "" for name in NAMES.split()}
FILES |= {"package/__init__.py": MAIN, "package/sibling.py": "", "package/deeper/__init__.py": "NAME = 1"}
FILES |= {"package/deeper/inner.py": ""}


def test_only_what_can_be_imported_is_followed(tmp_path: Path) -> None:
    table = scan(tmp_path, FILES, ["package"])
    found = {name for name, row in table["modules"].items() if str(row.get("path", "")).startswith("/image")}
    assert found == {
        *("package", "package.sibling", "package.deeper", "package.deeper.inner"),
        *("early", "on_linux", "at_present", "maybe", "maybe_not", "in_match", "in_with"),
    }
    row = table["modules"]["package.sibling"]
    assert (row["parent"], row["line"], row["reason"]) == ("package", 5, "imported")


def test_imports_in_functions_are_followed_where_it_matters(tmp_path: Path) -> None:
    assert "late" in scan(tmp_path, FILES, ["package"], thorough=["package"])["modules"]


def test_exclusions(tmp_path: Path) -> None:
    modules = scan(tmp_path, FILES, ["package"], exclude=[["*", "early"], ["package", "maybe"]])["modules"]
    assert "early" not in modules
    assert "maybe" not in modules
    modules = scan(tmp_path, FILES, ["package"], exclude=[["other", "maybe"]])["modules"]
    assert "maybe" in modules


def test_a_directory_may_be_for_some_names_only(tmp_path: Path) -> None:
    modules = scan(tmp_path, FILES, ["package"], only=["package"])["modules"]
    assert modules["early"]["kind"] == "missing"
    assert modules["package.deeper"]["kind"] == "package"


def test_missing_modules_of_strict_packages_are_told(tmp_path: Path) -> None:
    table = scan(tmp_path, {"p.py": "import gone\ntry:\n  import may\nexcept ImportError: pass\n"}, ["p"])
    assert table["missing"] == []
    table = scan(tmp_path, {}, ["p"], strict=["p"])
    assert table["missing"] == [["gone", "p", 1]]


def test_byte_code_is_for_the_image(tmp_path: Path) -> None:
    import marshal

    table = scan(tmp_path, {"p.py": "def f():\n  'text'\n  assert 0\n"}, ["p"], keep=True)
    row = table["modules"]["p"]
    start, size = row["code"]
    code = table["data"][start : start + size]
    # PEP 552: hash-based, not to be checked.
    assert code[4:8] == b"\1\0\0\0"
    module = marshal.loads(code[16:])
    assert module.co_filename == "/image/p.py"
    start, size = row["source"]
    assert table["data"][start : start + size] == b"def f():\n  'text'\n  assert 0\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("sys.platform in ('darwin', 'linux')", True),
        ("not sys.platform == 'linux'", False),
        ("os.name == 'nt' or UNKNOWN", pyscan.UNKNOWN),
        ("os.name == 'posix' or UNKNOWN", True),
        ("os.name == 'nt' and UNKNOWN", False),
        ("sys.version_info < 'x'", pyscan.UNKNOWN),
        ("f(1)", pyscan.UNKNOWN),
        ("a < b < c", pyscan.UNKNOWN),
        ("__name__ == 'other'", pyscan.UNKNOWN),
        ("typing.TYPE_CHECKING", False),
    ],
)
def test_conditions(text: str, value: object) -> None:
    assert pyscan.constant(ast.parse(text, mode="eval").body) is value


def test_docstrings_stay_behind(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        '"""Module."""\nfrom __future__ import annotations\n'
        'def f():\n    """Only this."""\ndef g():\n    "First."\n    assert 1\n    return "kept"\n'
        'class C:\n    """Class."""\n    x = 1\nasync def h():\n    """Coroutine."""\n'
    )
    request = {"path": [[str(tmp_path), "/image", False, None]], "roots": [["a", "a root"]], "exclude": []}
    written = ["Module.", "Only this.", "First.", "Class.", "Coroutine."]
    # The byte code of hooks is checked against their source: nobody else's idea of it.
    for checked, docs in (([], [None] * 5), (["a"], written)):
        header, blobs = pyscan.scan({**request, "thorough": [], "strict": [], "checked": checked})
        start, size = json.loads(header)["modules"]["a"]["code"]
        space: dict[str, Any] = {}
        exec(marshal.loads(b"".join(blobs)[start + 16 : start + size]), space)
        found = [space.get("__doc__"), *(space[name].__doc__ for name in "fgCh")]
        assert found == docs
        assert space["g"]() == "kept" and space["f"]() is None and space["C"].x == 1
