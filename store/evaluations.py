"""Suites, evaluations and verdicts: the half of the corpus that measures; `corpus.evaluations`.

It stores what was measured and computes no figure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

from store.canonical import canonical_json, sha256_of
from store.db import Row, execute, insert, pack, query, required, select, select_one, transaction
from store.errors import Conflict, StaleState, StoreError
from store.events import WithHistory
from store.records import Evaluation, GradedVerdict, Json, Problem, Suite, Verdict


def verdicts_sha256(verdicts: Iterable[Verdict]) -> str:
    """What the end of an evaluation says of its verdicts, which come in order of problem and sample."""
    return sha256_of([[v.task_id, v.sample_index, v.completion_id, v.verdict, v.detail, v.sandbox] for v in verdicts])


class Evaluations(WithHistory):
    """Suites and evaluations of one open store. The end of an evaluation appends its event."""

    def add_suite(self, suite: Suite, problems: Iterable[Problem]) -> None:
        """Store a suite with its problems, whose prompts are stored already. Harmless to repeat.

        Conflict if its hash stands for other problems.
        """
        problems = sorted(problems, key=lambda problem: problem.position)
        if len(problems) != suite.num_problems:
            raise ValueError(f"suite {suite.name!r}: has {len(problems)} problems, not {suite.num_problems}")
        with transaction(self.db):
            if insert(self.db, "suites", [suite], clause="ON CONFLICT (sha256) DO NOTHING"):
                insert(self.db, "problems", problems)
            elif self.problems(suite.sha256) != problems:
                raise Conflict(f"suite {suite.name!r}: is known under the same hash with other problems")

    def problems(self, suite_sha256: str) -> list[Problem]:
        """A suite's problems, in order."""
        sql = "SELECT * FROM problems WHERE suite_sha256 = ? ORDER BY position, task_id"
        return select(self.db, Problem, sql, (suite_sha256,))

    def begin(self, evaluation: Evaluation) -> Evaluation:
        """Store an evaluation, or find it as it was begun before, with its metrics if it is finished.

        Conflict if its id stands for another checkpoint, suite, decoding, seed or number of samples.
        """
        draft = replace(evaluation, created_at=self.events.now(), finished_at=None, metrics=None)
        with transaction(self.db):
            insert(self.db, "evaluations", [draft], clause="ON CONFLICT (id) DO NOTHING")
            stored = self._known(draft.id)
            may_differ = ("round", "suite_name", "created_at", "finished_at", "metrics")
            if replace(stored, **{name: getattr(draft, name) for name in may_differ}) != draft:
                raise Conflict(f"evaluation {draft.id}: was begun before with other settings")
        return stored

    def get(self, evaluation_id: str) -> Evaluation | None:
        return select_one(self.db, Evaluation, "SELECT * FROM evaluations WHERE id = ?", (evaluation_id,))

    def all(self, run_id: str, checkpoint: str | None = None) -> list[Evaluation]:
        """The evaluations of a run, or of one checkpoint in it, in the order in which they were begun."""
        of_it = (
            "" if checkpoint is None else "AND checkpoint = :checkpoint"
        )  # without OR, so that SQLite takes the index
        sql = f"SELECT * FROM evaluations WHERE run_id = :run_id {of_it} ORDER BY rowid"
        return select(self.db, Evaluation, sql, {"run_id": run_id, "checkpoint": checkpoint})

    def last_rates(self, run_id: str, suite_name: str, split: str, num_rounds: int) -> list[Row]:
        """pass@1 of the candidates of the newest rounds that were decided: `round`, `state` and `rate`, oldest first."""
        sql = (
            "SELECT r.number AS round, r.state, json_extract(e.metrics, '$.\"pass@1\"') AS rate FROM rounds AS r "
            "CROSS JOIN evaluations AS e ON e.run_id = r.run_id AND e.checkpoint = r.candidate_checkpoint "
            "AND e.suite_name = ? AND e.split = ? AND e.metrics IS NOT NULL "
            "AND e.rowid = (SELECT min(f.rowid) FROM evaluations AS f WHERE f.run_id = e.run_id "
            "AND f.checkpoint = e.checkpoint AND f.suite_name = e.suite_name AND f.split = e.split) "
            "WHERE r.run_id = ? AND r.state IN ('kept', 'carried', 'rolled_back') ORDER BY r.number DESC LIMIT ?"
        )
        return query(self.db, sql, (suite_name, split, run_id, num_rounds))[::-1]

    def completion_ids(self, evaluation_id: str) -> set[str]:
        """The ids of an evaluation's completions: what its sampling need not do again."""
        rows = query(self.db, "SELECT id FROM completions WHERE evaluation_id = ?", (evaluation_id,))
        return {row["id"] for row in rows}

    def graded_ids(self, evaluation_id: str) -> set[str]:
        """The ids of the completions with a verdict. A harness error does not count: that completion is graded again."""
        sql = "SELECT completion_id FROM verdicts WHERE evaluation_id = ? AND verdict <> 'harness_error'"
        return {row["completion_id"] for row in query(self.db, sql, (evaluation_id,))}

    def add_verdicts(self, batch: Iterable[Verdict]) -> int:
        """Store verdicts; how many are new. All or nothing, and on disk when it returns.

        A verdict stands: the same outcome again is passed over, another is Conflict. Only a harness error gives way.
        """
        key = "evaluation_id = :evaluation_id AND task_id = :task_id AND sample_index = :sample_index"
        problem = (
            "SELECT 1 FROM evaluations AS e JOIN problems AS p ON p.suite_sha256 = e.suite_sha256 "
            "WHERE e.id = :evaluation_id AND p.task_id = :task_id"
        )
        num_new = 0
        with transaction(self.db):
            for verdict in batch:
                row, now = pack(verdict), verdict.verdict
                before = select_one(self.db, Verdict, f"SELECT * FROM verdicts WHERE {key}", row)
                if before and (before.completion_id, before.verdict) == (verdict.completion_id, now):
                    continue
                if before and not before.verdict == "harness_error" != now:
                    which = f"{verdict.task_id}, sample {verdict.sample_index}"
                    raise Conflict(f"{which}: was graded {before.verdict} before, now {now}")
                if not query(self.db, problem, row):
                    raise StoreError(f"{verdict.task_id}: is not a problem of the suite that is evaluated")
                if before:
                    execute(self.db, f"DELETE FROM verdicts WHERE {key}", row)
                num_new += insert(self.db, "verdicts", [verdict])
        return num_new

    def verdicts(self, evaluation_id: str) -> list[GradedVerdict]:
        """An evaluation's verdicts with each problem's split and difficulty, in order of problem and sample."""
        sql = (
            "SELECT v.*, p.split, p.difficulty FROM verdicts AS v JOIN evaluations AS e ON e.id = v.evaluation_id "
            "JOIN problems AS p ON p.suite_sha256 = e.suite_sha256 AND p.task_id = v.task_id "
            "WHERE v.evaluation_id = ? ORDER BY p.position, v.task_id, v.sample_index"
        )
        return select(self.db, GradedVerdict, sql, (evaluation_id,))

    def answers(self, evaluation_ids: Iterable[str], task_id: str, sample_index: int) -> dict[str, Row]:
        """One sample of one problem by evaluation: `verdict`, `detail`, `text`, `num_tokens` and `finish_reason`."""
        sql = (
            "SELECT v.evaluation_id, v.verdict, v.detail, c.text, c.num_tokens, c.finish_reason "
            "FROM json_each(?) AS wanted CROSS JOIN verdicts AS v ON v.evaluation_id = wanted.value AND v.task_id = ? "
            "AND v.sample_index = ? JOIN completions AS c ON c.id = v.completion_id"
        )
        rows = query(self.db, sql, (json.dumps(list(evaluation_ids)), task_id, sample_index))
        return {row["evaluation_id"]: row for row in rows}

    def counts(self, evaluation_id: str) -> dict[str, tuple[int, int]]:
        """How many of an evaluation's samples passed, and how many there are, by problem."""
        sql = (
            "SELECT task_id, sum(verdict = 'passed') AS num_passed, count(*) AS num FROM verdicts "
            "WHERE evaluation_id = ? GROUP BY task_id"
        )
        return {row["task_id"]: (row["num_passed"], row["num"]) for row in query(self.db, sql, (evaluation_id,))}

    def finish(self, evaluation_id: str, metrics: Json) -> Evaluation:
        """Store the figures, once; StaleState if they are in already."""
        at = self.events.now()
        with transaction(self.db):
            row = self._known(evaluation_id)
            if row.finished_at is not None:
                raise StaleState(f"evaluation {evaluation_id}: was finished before")
            sql = "UPDATE evaluations SET finished_at = ?, metrics = ? WHERE id = ?"
            execute(self.db, sql, (at, canonical_json(metrics), evaluation_id))
            data: Json = {"evaluation": evaluation_id, "checkpoint": row.checkpoint, "suite": row.suite_name}
            data |= {"metrics": metrics, "verdicts_sha256": verdicts_sha256(self.verdicts(evaluation_id))}
            self.events.append(row.run_id, "evaluation_finished", row.round, "evaluating", at=at, **data)
        return self._known(evaluation_id)

    def reopen(self, evaluation_id: str) -> None:
        """Discard the figures of an evaluation, as more problems of its split are to be added. Harmless to repeat."""
        with transaction(self.db):
            row = self._known(evaluation_id)
            if row.finished_at is not None:
                sql = "UPDATE evaluations SET finished_at = NULL, metrics = NULL WHERE id = ?"
                execute(self.db, sql, (evaluation_id,))
                self.events.append(row.run_id, "evaluation_reopened", row.round, "evaluating", evaluation=evaluation_id)

    def _known(self, evaluation_id: str) -> Evaluation:
        return required(self.get(evaluation_id), f"no evaluation has the id {evaluation_id!r}")
