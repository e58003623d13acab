"""What a person reads when the boot stops."""

from __future__ import annotations

import pytest

from pyinit.errors import CODES, BootError
from pyinit.rescue.explain import internal_error, render


def test_all_parts_are_shown_under_their_headings() -> None:
    error = BootError("E-DEV", "root did not appear", tried=("a",), found=("b", "c"), advice=("d",))
    assert render(error, "initqueue") == [
        "E-DEV root did not appear",
        "  in stage initqueue",
        "  tried:  a",
        "  found:  b",
        "          c",
        "  to do:  d",
    ]


def test_codes_are_a_closed_list() -> None:
    with pytest.raises(ValueError, match="E-NONSENSE"):
        BootError("E-NONSENSE", "x")
    assert all(code.startswith("E-") and meaning for code, meaning in CODES.items())


def recurse() -> None:
    recurse()


@pytest.mark.parametrize(
    "exception", [ValueError("\x1b[2J"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()]
)
def test_any_exception_becomes_an_explanation(exception: BaseException) -> None:
    error = internal_error(exception)
    assert error.code == "E-INTERNAL"
    assert type(exception).__name__ in error.cause
    assert all(line.isascii() and line.isprintable() for line in render(error, "mount"))


def test_want_of_memory_is_explained_with_figures() -> None:
    error = internal_error(MemoryError())
    assert error.code == "E-MEM"
    assert "memory: " in error.found[0] and " MiB available" in error.found[0]


def test_endless_recursion_becomes_an_explanation() -> None:
    try:
        recurse()
    except RecursionError as exception:
        error = internal_error(exception)
    assert "RecursionError" in error.cause
    assert len(error.found) < 60
