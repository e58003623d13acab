"""A budget of guest time: what is said when a boot takes longer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinit_qemu.budget import Budget, BudgetError, compare, dump, least, parse

WITH = {"QEMU": "7.2", "python3": "3.11"}
BUDGET = Budget(WITH, {"kernel": 2_000_000, "imports": 100_000, "mount": 400_000})

TEXT = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=9)
BUDGETS = st.dictionaries(
    TEXT,
    st.builds(
        Budget,
        st.dictionaries(TEXT, TEXT, max_size=3),
        st.dictionaries(TEXT, st.integers(0, 10**9), max_size=3),
    ),
    max_size=2,
)


def grown(**phases: int) -> Budget:
    return Budget(WITH, {**BUDGET.phases, **phases})


@given(BUDGETS)
def test_a_budget_comes_back(budgets: dict[str, Budget]) -> None:
    assert parse(dump(budgets)) == budgets


@given(
    st.text() | st.sampled_from(["a = 1", "[a]", "[a.versions]\n[a.phases]\nx = 'y'", "[a.phases]\nx = inf"])
)
def test_any_text_is_a_budget_or_refused(text: str) -> None:
    try:
        parse(text)
    except BudgetError as error:
        assert "cannot be read" in str(error)


def test_what_is_within_the_tolerance_is_not_told() -> None:
    assert compare("list", BUDGET, BUDGET) == []
    assert compare("list", BUDGET, grown(mount=425_000)) == []
    assert compare("list", BUDGET, grown(mount=1)) == []


def test_the_phase_that_grew_is_named() -> None:
    assert compare("list", BUDGET, grown(mount=430_000, imports=99_000)) == [
        "list: /init → real init took 529.0 ms, 5.8 % above its budget of 500.0",
        "  mount: 400.0 → 430.0 ms",
    ]


def test_the_kernels_share_counts_for_the_whole_only() -> None:
    slow = Budget({**WITH, "QEMU": "8.0"}, {**BUDGET.phases, "kernel": 2_200_000, "new": 500})
    assert compare("list", BUDGET, slow) == [
        "list: kernel → real init took 2700.5 ms, 8.0 % above its budget of 2500.0",
        "  kernel: 2000.0 → 2200.0 ms",
        "  measured with QEMU 8.0, the budget with 7.2",
    ]


def test_the_least_of_several_boots_counts_and_a_good_one_is_enough() -> None:
    boots = iter([grown(mount=900_000), grown(mount=500_000), grown(mount=600_000)])
    assert least(lambda: next(boots), lambda seen: False).phases["mount"] == 500_000
    boots = iter([grown(mount=900_000), grown(mount=500_000), grown(mount=1)])
    assert least(lambda: next(boots), lambda seen: seen.phases["mount"] < 600_000).phases["mount"] == 500_000


@pytest.mark.parametrize("count", [1, 2])
def test_no_more_boots_than_asked_for(count: int) -> None:
    made: list[int] = []
    least(lambda: made.append(1) or BUDGET, lambda seen: False, count)  # type: ignore[func-returns-value]
    assert len(made) == count
