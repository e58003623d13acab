"""Hook functions are called once, in order, and what they raise is explained."""

from __future__ import annotations

import ast
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

import pyinit
from pyinit import hooks
from pyinit.config.cmdline import parse
from pyinit.config.options import boot_config
from pyinit.errors import BootError
from pyinit.hooks import PACKAGE, Facts, Moment
from pyinit.kernel.process import Children
from pyinit.record import Record

FACTS = Facts(boot_config(), parse(b"site.name=1"), (), None, "")


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, text: str) -> None:
        self.lines.append(text)

    def warning(self, text: str) -> None:
        self.lines.append(f"warning: {text}")


class Program(Children):
    """Children whose programs end as they are told."""

    def __init__(self, status: int | None) -> None:
        super().__init__(Record("", ""))
        self._status = status

    def start(self, argv: Any, **options: Any) -> int:
        return 7

    def wait(self, pid: int, timeout: float | None) -> int | None:
        return self._status


Define = Callable[[str, Callable[[Moment], object]], None]


@pytest.fixture
def define(monkeypatch: pytest.MonkeyPatch) -> Iterator[Define]:
    package = types.ModuleType(PACKAGE)
    package.__path__ = []
    monkeypatch.setitem(sys.modules, PACKAGE, package)

    def put(name: str, function: Callable[[Moment], object]) -> None:
        module = cast(Any, types.ModuleType(f"{PACKAGE}.{name}"))
        module.mount = function
        monkeypatch.setitem(sys.modules, f"{PACKAGE}.{name}", module)

    yield put


def call(names: list[str], done: set[tuple[str, str]], log: Log, status: int | None = 0) -> None:
    hooks.call("mount", names, done, FACTS, Program(status), log)


def test_each_is_called_once_even_if_a_later_one_fails(define: Define) -> None:
    seen: list[str] = []
    define("a", lambda moment: seen.append(f"{moment.hook} {moment.stage}"))

    def fail(moment: Moment) -> None:
        raise KeyError("x")

    define("b", fail)
    done: set[tuple[str, str]] = set()
    with pytest.raises(BootError, match="E-HOOK hook b failed: KeyError: 'x'"):
        call(["a", "b"], done, Log())
    define("b", lambda moment: seen.append("b"))
    call(["a", "b"], done, Log())
    call(["a", "b"], done, Log())
    assert seen == ["a mount", "b"]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, MemoryError, RecursionError, OSError])
def test_whatever_is_raised_is_explained(define: Define, kind: type[BaseException]) -> None:
    def fail(moment: Moment) -> None:
        raise kind("\x1b]0;")

    define("a", fail)
    with pytest.raises(BootError) as caught:
        call(["a"], set(), Log())
    error = caught.value
    assert error.code == "E-HOOK"
    assert error.cause == rf"hook a failed: {kind.__name__}: \x1b]0;"
    for line in (error.cause, *error.tried, *error.found, *error.advice):
        assert line.isprintable()
    assert error.tried == ("called mount() of /usr/lib/pyinit/pyinit_hooks/a.py",)


def test_an_explanation_of_its_own_is_kept(define: Define) -> None:
    def fail(moment: Moment) -> None:
        raise BootError("E-HOOK", "the key is missing", advice=("Plug it in.",))

    define("a", fail)
    with pytest.raises(BootError) as caught:
        call(["a"], set(), Log())
    assert caught.value.advice == ("Plug it in.",)


def test_a_file_that_does_not_define_it_any_more(define: Define) -> None:
    define("a", lambda moment: None)
    del cast(Any, sys.modules[f"{PACKAGE}.a"]).mount
    log = Log()
    call(["a"], set(), log)
    assert log.lines == ["warning: hook a has no function mount any more"]


def test_a_missing_file_is_explained(define: Define) -> None:
    with pytest.raises(BootError, match="E-HOOK hook none failed: ModuleNotFoundError"):
        call(["none"], set(), Log())


@pytest.mark.parametrize(
    ("status", "message"),
    [(3, "exit status 3"), (-9, "signal 9"), (None, "has not ended after 30 s")],
)
def test_programs_that_fail(define: Define, status: int | None, message: str) -> None:
    define("a", lambda moment: moment.run("/bin/x", "\x1b"))
    with pytest.raises(BootError, match=message):
        call(["a"], set(), Log(), status)


def test_what_a_hook_may_know_and_say(define: Define) -> None:
    def look(moment: Moment) -> None:
        word = moment.command_line.last("site.name")
        assert word is not None and word.value == "1"
        assert moment.config.timeout == 180
        moment.run("/bin/true")
        moment.log("a\nb")
        moment.warn("c")

    define("a", look)
    log = Log()
    call(["a"], set(), log)
    assert log.lines == [r"hook a: a\x0ab", "warning: hook a: c"]


def test_a_boot_without_hooks_does_not_import_them() -> None:
    """Nothing that is imported at once imports this module: only a function of boot.py does."""
    users = []
    for path in Path(pyinit.__path__[0]).rglob("*.py"):
        for node in ast.parse(path.read_bytes()).body:
            if isinstance(node, ast.ImportFrom):
                names = {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
                users += [path.name] if "pyinit.hooks" in names else []
            elif isinstance(node, ast.Import):
                users += [path.name] if any(alias.name == "pyinit.hooks" for alias in node.names) else []
    assert users == []
