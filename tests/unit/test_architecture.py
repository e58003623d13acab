"""The rules of docs/design.md that hold the rooms apart."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
IMAGE_FILES = sorted((REPOSITORY / "pyinit").rglob("*.py"))

# Slow to import, or they read random numbers when they are: nothing on the way of a good boot needs them.
TOO_DEAR = {
    "argparse",
    "asyncio",
    "dataclasses",
    "inspect",
    "logging",
    "multiprocessing",
    "pathlib",
    "random",
    "secrets",
    "shutil",
    "tempfile",
    "typing_extensions",
    "uuid",
}
CTYPES = {"pyinit/kernel/syscalls.py", "pyinit/devices/udev.py"}
PYUDEV = {"pyinit/devices/udev.py"}


def _name(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def _modules(nodes: Iterator[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            yield node.module or ""
            # The names may be modules: "from pyinit import record".
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere, and the packages above them."""
    found = _modules(ast.walk(ast.parse(path.read_bytes())))
    return {
        ".".join(parts[: i + 1]) for name in found for parts in (name.split("."),) for i in range(len(parts))
    }


def _early_imports(path: Path) -> set[str]:
    """What a file imports when it is imported, outside functions and ``if TYPE_CHECKING``."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        yield node
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            yield from walk(child)

    return {name.split(".")[0] for name in _modules(walk(ast.parse(path.read_bytes())))}


def _users(module: str) -> set[str]:
    return {_name(path) for path in IMAGE_FILES if module in _imports(path)}


def test_there_is_something_to_check() -> None:
    assert len(IMAGE_FILES) > 10


def test_system_calls_are_made_in_one_module() -> None:
    assert _users("ctypes") | _users("cffi") <= CTYPES


def test_devices_are_asked_for_in_one_module() -> None:
    assert _users("pyudev") <= PYUDEV


def test_processes_are_asked_for_in_one_module() -> None:
    assert len(_users("psutil")) <= 1


def test_children_are_started_in_one_module() -> None:
    assert len(_users("subprocess")) <= 1


@pytest.mark.parametrize("path", IMAGE_FILES, ids=_name)
def test_what_goes_into_the_image(path: Path) -> None:
    imports = _imports(path)
    tops = {name.split(".")[0] for name in imports}
    assert tops <= sys.stdlib_module_names | {"pyinit", "pyudev", "psutil"}
    assert not _early_imports(path) & (TOO_DEAR | {"psutil"})


def test_configuration_has_no_effects() -> None:
    allowed = {"collections", "enum", "json", "re", "typing", "pyinit", "__future__", "sys"}
    for path in sorted((REPOSITORY / "pyinit" / "config").glob("*.py")):
        assert {name.split(".")[0] for name in _imports(path)} <= allowed, _name(path)
        rooms = {name for name in _imports(path) if name.startswith("pyinit.") and name.count(".") == 1}
        assert rooms <= {"pyinit.config", "pyinit.devices", "pyinit.errors", "pyinit.text"}, _name(path)
        assert "pyinit.devices.udev" not in _imports(path)


def test_lower_rooms_do_not_know_higher_ones() -> None:
    forbidden = {
        "kernel": ("devices", "storage", "network", "root", "rescue", "boot"),
        "devices": ("storage", "network", "root", "rescue", "boot"),
        "root": ("boot",),
        "storage": ("boot", "root"),
        "network": ("boot", "root"),
    }
    for room, others in forbidden.items():
        for path in sorted((REPOSITORY / "pyinit" / room).rglob("*.py")):
            known = _imports(path) & {f"pyinit.{other}" for other in others}
            assert not known, f"{_name(path)} imports {', '.join(sorted(known))}"


@pytest.mark.parametrize("folder", ["image", "qemu", "scripts"])
def test_folders_that_must_not_be_packages(folder: str) -> None:
    # A qemu/__init__.py would hide the namespace package that qemu.qmp lives in.
    assert not (REPOSITORY / folder / "__init__.py").exists()


def test_packages_are_typed() -> None:
    for package in ("pyinit", "image/pyinit_image", "qemu/pyinit_qemu"):
        assert (REPOSITORY / package / "py.typed").exists()


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in (REPOSITORY / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))
