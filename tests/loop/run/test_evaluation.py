"""Verdicts while completions still come, where the sampler leaves the CPU alone; the same results as one after the other."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loop.config.loading import load_config
from loop.grading.grader import Verdict
from loop.round import run_round
from loop.run import answering
from loop.run.opening import open_session
from loop.run.session import Session
from loop.workers.up import Engines
from store.corpus import Corpus
from store.evaluations import Evaluations
from store.records import Completion
from tests.support.runs import CONFIG, KEEPING, Quiet, dump, findings, write_run

CONFIG = KEEPING.replace(CONFIG[CONFIG.index('[[suites]]\nname = "ones-greedy"') : CONFIG.index("[decide]")], "")


class Stop(Exception):
    pass


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampler seems to be elsewhere, and each of its lists is stored by itself."""
    monkeypatch.setattr(Engines, "spares_the_cpu", True)
    monkeypatch.setattr(answering, "gathered", lambda batches, clock: batches)


def one_round(directory: Path, before: Callable[[Session], None] = lambda session: None) -> list[str]:
    """What the round announced. Its programs are graded by a glance."""
    with open_session(load_config(write_run(directory, CONFIG)), watch := Quiet()) as session:

        def glance(problem: Any, code: str | None, pool: Any) -> Verdict:
            word = "passed" if "return 1" in (code or "") else "failed"
            return Verdict.model_validate({"verdict": word, "detail": "", "duration_s": 0.0, "sandbox": "none"})

        session.grader._graded = glance  # type: ignore[method-assign]
        before(session)
        assert run_round(session).state == "kept"
        assert findings(session.loaded.run_dir) == []
    return watch.stages


def test_grading_begins_while_completions_come(
    elsewhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second list of an evaluation is not stored before a completion of the first has its verdict."""
    has_verdict = threading.Event()
    num_lists: Counter[str] = Counter()
    add = Corpus.add_completions

    def waits(corpus: Corpus, batch: list[Completion]) -> int:
        if (evaluation_id := batch[0].evaluation_id) is not None:
            num_lists[evaluation_id] += 1
            assert num_lists[evaluation_id] == 1 or has_verdict.wait(300), "nothing is graded while sampling goes on"
            has_verdict.clear()
        return add(corpus, batch)

    def listens(session: Session) -> None:
        graded = session.grader._graded

        def tells(*arguments: Any) -> Verdict:
            try:
                return graded(*arguments)
            finally:
                has_verdict.set()

        session.grader._graded = tells  # type: ignore[method-assign]

    monkeypatch.setattr(Corpus, "add_completions", waits)
    one_round(tmp_path, listens)
    assert len(num_lists) == 2 and set(num_lists.values()) == {5}  # head and candidate


def test_the_results_are_those_of_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_round(tmp_path / "after")
    monkeypatch.setattr(Engines, "spares_the_cpu", True)
    announced = one_round(tmp_path / "beside")
    assert dump(tmp_path / "after" / ".loop") == dump(tmp_path / "beside" / ".loop")
    assert announced.count("grading") == 2


@pytest.mark.parametrize("where", [1, 7, *(pytest.param(where, marks=pytest.mark.slow) for where in (4, 10, 13))])
def test_a_stop_at_any_safe_point_loses_and_repeats_nothing(
    elsewhere: None, where: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_round(tmp_path / "whole")
    stored: list[Completion] = []
    graded: list[Verdict] = []
    for owner, name, rows in ((Corpus, "add_completions", stored), (Evaluations, "add_verdicts", graded)):
        add = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda self, batch, add=add, rows=rows: rows.extend(batch) or add(self, batch))
    left = where

    def stops(session: Session) -> None:
        def check_orders(round: Any) -> None:
            nonlocal left
            left -= bool(session.corpus.evaluations.all(session.run_id))
            if not left:
                raise Stop

        session.check_orders = check_orders

    with pytest.raises(Stop):
        one_round(tmp_path / "broken", stops)
    one_round(tmp_path / "broken")
    assert dump(tmp_path / "whole" / ".loop") == dump(tmp_path / "broken" / ".loop")
    assert len(stored) == len({row.id for row in stored}), "what was stored is not sampled again"
    assert len(graded) == len({row.completion_id for row in graded}) == 80, "what was stored is not graded again"
