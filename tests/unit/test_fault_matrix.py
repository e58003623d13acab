"""The fault matrix, its markers and the document made of them belong together."""

from __future__ import annotations

from pathlib import Path

import fault_matrix as matrix
import pytest

MARKS = matrix.marked()


def test_every_case_has_a_test_or_a_reason_why_not() -> None:
    tests = matrix.shown(MARKS)
    assert [case.id for case in matrix.CASES.values() if not tests[case.id] and not case.untested] == []


def test_no_case_is_excused_that_a_test_shows() -> None:
    tests = matrix.shown(MARKS)
    assert [case.id for case in matrix.CASES.values() if tests[case.id] and case.untested] == []


def test_every_marker_names_a_case() -> None:
    known = set(matrix.CASES)
    assert {test: names for test, names in MARKS.items() if not known.issuperset(names)} == {}


def test_identifiers_are_used_once() -> None:
    assert len(matrix.CASES) == sum(map(len, matrix.SECTIONS.values()))


def test_the_document_is_up_to_date() -> None:
    written = matrix.document(MARKS, matrix.read_results(matrix.RESULTS))
    assert matrix.DOCUMENT.read_text() == written, "run: scripts/faults"


def test_markers_are_read_where_they_can_stand(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text(
        "import pytest\n"
        "pytestmark = [pytest.mark.boot, pytest.mark.fault('K1')]\n"
        "@pytest.mark.fault('D1', 'D2')\n"
        "def test_one(): ...\n"
        "@pytest.mark.parametrize('x', [1, pytest.param(2, marks=pytest.mark.fault('D3'))])\n"
        "def test_two(x): ...\n"
        "def helper(): ...\n"
    )
    (tmp_path / "test_b.py").write_text("def test_three(): ...\n")
    folder = tmp_path.name
    assert matrix.marked(tmp_path) == {
        f"{folder}/test_a.py::test_one": ["K1", "D1", "D2"],
        f"{folder}/test_a.py::test_two": ["K1", "D3"],
    }


def test_a_marker_that_is_computed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("@pytest.mark.fault(NAME)\ndef test_one(): ...\n")
    with pytest.raises(ValueError, match="written out"):
        matrix.marked(tmp_path)


def test_results_are_kept_and_told(tmp_path: Path) -> None:
    results = {"tests/a.py::test_one": matrix.Result("failed", "abc1234", "2026-01-02")}
    matrix.write_results(tmp_path / "new" / "results.json", results)
    assert matrix.read_results(tmp_path / "new" / "results.json") == results
    assert matrix.read_results(tmp_path / "none.json") == {}
    text = matrix.document({"tests/a.py::test_one": ["K1"], "tests/a.py::test_two": ["K1"]}, results)
    assert "failed 2026-01-02 abc1234<br>not run yet |" in text
    assert matrix.worst(["passed", "failed", "skipped"]) == "failed"
