"""bench/study.py: the arithmetic of its tables on made-up runs, its tasks, and (slow) the whole of it in a small size."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench import study, study_model  # noqa: E402

TASK = (1, 4, 1)  # even numbers, times 2, the sum


def head(rates: dict[str, Fraction], kept: bool = True) -> study.Head:
    return study.Head(kept, rates, spread=0.1, distinct=0.5, length=20.0)


def test_a_problem_is_in_the_suite_format_and_its_own_solution_passes() -> None:
    row = study_model.problem(TASK, "x/1")
    assert row["text"] == "Return the sum of the even numbers times 2."
    scope: dict[str, object] = {}
    exec(row["code"] + "\n" + "\n".join(row["test_list"]), scope)


def test_a_spoilt_task_differs_in_one_part() -> None:
    import random

    for seed in range(50):
        other = study_model.spoilt(TASK, random.Random(seed))
        assert sum(a != b for a, b in zip(TASK, other, strict=True)) == 1


def test_a_line_averages_the_seeds_problem_by_problem() -> None:
    half, one, none = Fraction(1, 2), Fraction(1), Fraction(0)
    base = [head({"a": none, "b": half}), head({"a": half, "b": half})]
    after = [head({"a": half, "b": half}), head({"a": half, "b": one}, kept=False)]
    first, second = study.lines_of("arm", [[base[0], after[0]], [base[1], after[1]]])
    assert first.rate == pytest.approx(0.375) and first.change == 0
    assert second.rate == pytest.approx(0.625) and second.change == pytest.approx(0.25)
    assert second.change_range == (0.25, 0.25) and (second.num_kept, second.num_seeds) == (1, 2)
    assert second.change_interval[0] <= 0.25 <= second.change_interval[1]


def test_tables_hold_the_same_in_text_and_markdown() -> None:
    runs = [[head({"a": Fraction(1, 2)}), head({"a": Fraction(3, 4)})]]
    rows = [study.cells(line) for line in study.lines_of("replace, gated", runs)]
    text, marks = study.plain(study.COLUMNS, rows), study.markdown(study.COLUMNS, rows)
    assert len(text.splitlines()) == 3 and len(marks.splitlines()) == 4
    for cell in rows[1]:
        assert cell in text and f"| {cell} |" in marks


def test_a_round_is_counted_once_kept_or_under_the_gate_that_said_no() -> None:
    improvement, collapse = frozenset({"improvement"}), frozenset({"collapse"})
    found = [
        study.Decided(True, frozenset(), 0.1),
        study.Decided(False, collapse, 0.04),
        study.Decided(False, collapse, -0.02),
        study.Decided(False, improvement | collapse, 0.0),
    ]
    row = study.refusals("arm", found)
    assert row[:3] == ("arm", "4", "1: +0.100 (+0.100 to +0.100)")
    assert row[3:] == ("1: +0.000 (+0.000 to +0.000)", "2: +0.010 (-0.020 to +0.040)")


@pytest.mark.slow
def test_the_whole_study_in_a_small_size_and_nothing_is_repeated(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    command = [sys.executable, "bench/study.py", "--quick", "--out", str(tmp_path)]

    def once() -> str:
        done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = once()
    table = (tmp_path / "quick" / "table.txt").read_text()
    assert table in first and "T 1 untruncated, ungated" in table
    assert (tmp_path / "quick" / "pass-at-1.svg").read_text().startswith("<?xml")
    again = once()
    assert table in again and "replace-gated-1: " not in again
