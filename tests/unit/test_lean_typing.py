"""What stands in for ``typing`` in PID 1 makes the same named tuples."""

from __future__ import annotations

import importlib
import sys
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit import lean_typing


class Real(typing.NamedTuple):
    """As typing makes them."""

    one: int
    two: str = "b"
    three: tuple[int, ...] = ()

    def double(self) -> int:
        return 2 * self.one


class Lean(lean_typing.NamedTuple):  # type: ignore[misc, valid-type]
    """As PID 1 makes them."""

    one: int
    two: str = "b"
    three: tuple[int, ...] = ()

    def double(self) -> int:
        return 2 * self.one


VALUES = st.lists(st.integers(), max_size=4)
NAMED = st.dictionaries(st.sampled_from(["one", "two", "three", "four"]), st.integers())


def outcome(kind: Any, method: str, values: list[int], named: dict[str, int]) -> object:
    try:
        made = kind(*values, **named) if not method else getattr(kind(1), method)(**named)
    except (TypeError, ValueError) as error:
        return type(error)
    return tuple(made), made.one, made[1:], made.double(), made._asdict(), repr(made)[4:]


@given(VALUES, NAMED)
def test_they_are_made_of_the_same_arguments(values: list[int], named: dict[str, int]) -> None:
    assert outcome(Lean, "", values, named) == outcome(Real, "", values, named)


@given(NAMED)
def test_they_are_changed_by_the_same_names(named: dict[str, int]) -> None:
    assert outcome(Lean, "_replace", [], named) == outcome(Real, "_replace", [], named)


def test_they_are_tuples_and_compare_as_such() -> None:
    assert Lean(1) == Real(1) == (1, "b", ())
    assert hash(Lean(1)) == hash((1, "b", ())) and isinstance(Lean(1), tuple)
    assert Lean._fields == Real._fields and Lean._make([1, 2, 3]) == (1, 2, 3)
    assert Lean.__doc__ == "As PID 1 makes them."
    match Lean(5, "x"):
        case Lean(one, two):
            assert (one, two) == (5, "x")
    with pytest.raises(AttributeError):
        Lean(1).one = 2
    with pytest.raises(AttributeError):
        Lean(1).other = 2


def test_whoever_asks_for_more_gets_the_real_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "typing")
    lean_typing.install()
    assert importlib.import_module("typing") is lean_typing
    exec("from typing import Any, NamedTuple, NoReturn, Literal, Protocol, TYPE_CHECKING")
    assert importlib.import_module("typing") is lean_typing
    found: dict[str, Any] = {}
    exec("from typing import Any, TypedDict", found)
    real = importlib.import_module("typing")
    assert real is not lean_typing and real.TypedDict is found["TypedDict"]


def test_it_does_not_take_the_place_of_one_that_is_in_use() -> None:
    lean_typing.install()
    assert sys.modules["typing"] is typing
