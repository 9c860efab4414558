"""bench/study.py: the arithmetic of its tables on made-up runs, its tasks, and (slow) the whole of it in a small size."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from bench import study, study_model
from loop.config.settings import Decide
from loop.experiments.file import load_experiment
from tests.support import ROOT
from tests.support.experiments import run_of

TASK = (1, 4, 1)  # even numbers, times 2, the sum


def line(number: int, **changed: object) -> dict[str, object]:
    whole = {
        "arm": "ungated-mix", "round": number, "num_seeds": 3, "num_kept": 2, "num_moved": 3, "pass@1": 0.5,
        "pass@1_interval": [0.4, 0.6], "pass@k": {"1": 0.5, "4": 0.75}, "change": 0.125, "change_interval": [0.1, 0.15],
        "change_by_seed": [0.1, None, 0.15], "distinct_rate": 0.5, "mean_tokens": 20.0, "spread": 0.5,
    }  # fmt: skip
    return whole | changed


def test_a_problem_is_in_the_suite_format_and_its_own_solution_passes() -> None:
    row = study_model.problem(TASK, "x/1")
    assert row["text"] == "Return the sum of the even numbers times 2."
    scope: dict[str, object] = {}
    exec(row["code"] + "\n" + "\n".join(row["test_list"]), scope)


def test_a_spoilt_task_differs_in_one_part() -> None:
    for seed in range(50):
        other = study_model.spoilt(TASK, random.Random(seed))
        assert sum(a != b for a, b in zip(TASK, other, strict=True)) == 1


def test_a_line_of_the_table_says_what_moved_and_by_how_much() -> None:
    assert study.cells(line(3), "4") == (
        "ungated-mix", "3", "0.500 [0.400 0.600]", "+0.125 [+0.100 +0.150]", "+0.100 to +0.150", "2 of 3", "0.250",
        "0.500", "20.0",
    )  # fmt: skip
    assert study.cells(line(0, num_moved=0), "4")[:6] == ("ungated-mix", "base", "0.500 [0.400 0.600]", "", "", "")
    assert study.cells(line(2, num_moved=0, num_kept=0), "4")[3:6] == ("still the base", "", "0 of 3")


def test_both_tables_have_every_cell() -> None:
    rows = [study.cells(line(number), "4") for number in (0, 1)]
    header = [f"column {n}" for n in range(len(rows[0]))]
    text, marks = study.plain(header, rows), study.markdown(header, rows)
    assert len(text.splitlines()) == 3 and len(marks.splitlines()) == 4
    for cell in rows[1]:
        assert cell in text and f"| {cell} |" in marks


def test_the_studys_experiment_has_the_arms_and_pairs_that_it_says(tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    planned = load_experiment(study.write_experiment(tmp_path, tmp_path / "world", {}, {}))
    policies = ("replace", "accumulate", "mix")
    names = [f"{gates}-{policy}" for gates in ("ungated", "gated") for policy in policies]
    assert [arm.name for arm in planned.arms] == [*names, "t1-control", "t2-untruncated", "t2-gated"]
    assert (len(planned.runs), len(planned.pairs), planned.suite) == (27, 7, "held-out") and planned.rounds >= 6
    control, hot = (run_of(planned, arm, 1).config.sampling for arm in ("t1-control", "t2-untruncated"))
    assert (control.temperature, hot.temperature) == (1.0, 2.0) and not control.truncates and not hot.truncates
    default = [gate.type for gate in Decide.model_fields["gates"].default]
    for arm, gates in (("gated-mix", default), ("t2-gated", default), ("ungated-mix", ["no_regression"])):
        decide = run_of(planned, arm, 1).config.decide
        assert ([gate.type for gate in decide.gates], decide.unclear) == (gates, "carry")


def test_a_round_is_counted_under_what_became_of_it() -> None:
    decided = [study.Decided(*each) for each in (("keep", 0.1), ("carry", 0.04), ("carry", -0.02), ("rollback", 0.0))]
    kept, carried, rolled_back = study.outcomes("arm", decided)[2:]
    assert (kept, rolled_back) == ("1: +0.100 (+0.100 to +0.100)", "1: +0.000 (+0.000 to +0.000)")
    assert carried == "2: +0.010 (-0.020 to +0.040)"


@pytest.mark.slow
def test_the_whole_study_in_a_small_size_and_nothing_is_repeated(tmp_path: Path) -> None:
    command = [sys.executable, "bench/study.py", "--quick", "--out", str(tmp_path)]
    first, again = (subprocess.run(command, cwd=ROOT, capture_output=True, text=True) for _ in range(2))
    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    table = (tmp_path / "quick" / "multi-round-tiny.txt").read_text()
    assert table in first.stdout and "t1-control" in table and "gated-replace" in table
    assert (tmp_path / "quick" / "pass-at-1.svg").read_text().startswith("<svg")
    assert "multi-round-tiny" in (tmp_path / "quick" / "multi-round-tiny.html").read_text()
    assert again.stdout == first.stdout
