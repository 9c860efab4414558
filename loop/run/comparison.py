"""Candidate against head on the suite that decides: opened part by part, and no further than the policy needs.

Restart-safe: what was measured is stored, and the policy, a pure function, asks for the same parts again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from loop.reading.as_json import as_json
from loop.reading.gains import STORED_AS, gain, key_of
from loop.reading.reader import Reader
from loop.run.diagnosing import diagnose, measure
from loop.run.evaluation import SuitePart, evaluate
from loop.run.session import Session
from loop.stages.deciding import Measured, Opened, evidence
from loop.stages.evaluating import Yardstick, decoding_of, outcomes_of
from loop.stages.sampling import seed_of
from policies.diagnosis import signals, summary_of
from policies.evidence import Evidence, Line
from policies.line import GLIMPSE
from policies.policy import next_part
from policies.sequential import drawing_order
from store.records import Evaluation, Json, Problem, Round


@dataclass(slots=True)
class Comparison:
    """One round's comparison. `opened` says how many problems of each split are in; `done` holds the evaluations."""

    session: Session
    round: Round
    checkpoints: dict[str, str]  # by "candidate", "head" and, where a gate asks for it, "best"
    best_round: int | None
    line: Line | None
    opened: dict[str, int]
    done: dict[tuple[str, str, str], Evaluation]  # by who, suite and split
    diagnosis: Json  # of locks and forks
    draw: str = ""  # what sets these samples apart from those of the round

    @classmethod
    def of(cls, session: Session, round: Round, inputs: Json) -> Comparison:
        """The comparison that a stage's frozen input asks for, with all that `as_output` gave if the input has it."""
        checkpoints, best = {who: inputs[who] for who in ("head", "candidate")}, inputs.get("best") or {}
        if best:
            checkpoints["best"] = best["checkpoint"]
        line = Line.model_validate(inputs["line"]) if "line" in inputs else None
        opened, diagnosis = {**inputs.get("opened", {})}, inputs.get("diagnosis", {})
        comparison = cls(session, round, checkpoints, best.get("round"), line, opened, {}, diagnosis)
        for name, id in inputs.get("evaluations", {}).items():
            who, suite, split = name.split("/", 2)
            evaluation = session.corpus.evaluations.get(id)
            assert evaluation is not None
            comparison.done[who, suite, split] = evaluation
        return comparison

    @property
    def head_round(self) -> int:
        """The round of the head, which fixes the seeds and the order of problems."""
        return self.session.ledger.checkpoints.known(self.checkpoints["head"]).round

    def drawn(self, split: str) -> list[Problem]:
        """All problems of a split in the order in which they are drawn."""
        problems = {problem.task_id: problem for problem in self.session.decider.of_split(split)}
        return [problems[task_id] for task_id in drawing_order(self.head_round, list(problems))]

    def seed_of_split(self, split: str) -> int:
        """The seed of all samples there, whoever answers."""
        draw = (self.draw,) if self.draw else ()
        return seed_of(self.session.loaded.config.seed, self.session.decider.config.name, split, self.head_round, *draw)

    def run(self) -> None:
        """Open what the policy asks for until it has decided, and then what is only reported."""
        policy, looks = self.session.policy, self.session.loaded.config.decide.looks
        self._open(policy.split, self._first_part(len(self.drawn(policy.split))))
        self.diagnosis = diagnose(self.session, self.round, self.checkpoints["head"])
        while True:
            decision = policy.decide(self.evidence())
            need: Json = decision.need or {}
            match decision.action:
                case "confirm":
                    self._open(need["split"], next_part(0, len(self.drawn(need["split"])), looks))
                case "sample_more" if "split" in need:
                    self._open(need["split"], self.opened[need["split"]] + need["num_problems"])
                case "sample_more":
                    self._report(suite for suite in self.session.suites if suite.config.name in need["suites"])
                case _:
                    self._report(suite for suite in self.session.suites if suite is not self.session.decider)
                    return

    def _first_part(self, num_planned: int) -> int:
        """How many problems of the first split are opened first; all where the candidate has answered all, to be chosen."""
        if len(self.session.ledger.candidates(self.round)) > 1:
            return num_planned
        if self.line is not None and not self.line.look:
            return num_planned if self.session.policy.confirm else math.ceil(GLIMPSE * num_planned)
        return next_part(0, num_planned, self.session.loaded.config.decide.looks)

    def _report(self, suites: Iterable[Yardstick]) -> None:
        """Head and candidate on suites that do not decide by themselves."""
        for suite in suites:
            seed = seed_of(self.session.loaded.config.seed, suite.config.name)
            for who in ("head", "candidate"):
                self._evaluate(who, suite, SuitePart("all", suite.problems, seed))

    def _open(self, split: str, num_problems: int) -> None:
        self.opened[split] = num_problems
        part = SuitePart(split, self.drawn(split)[:num_problems], self.seed_of_split(split))
        sides = [who for who in self.checkpoints if who != "best" or split == self.session.policy.split]
        engines = self.session.engines  # the checkpoint that is loaded already goes first: loading is expensive
        for who in sorted(sides, key=lambda who: engines.serving(self.checkpoints[who]) is None):
            glimpsed = (
                self.line is not None and not self.line.look and who == "head"
            )  # every figure of a head is a whole one
            whole = replace(part, problems=self.drawn(split)) if glimpsed else part
            self._evaluate(who, self.session.decider, whole)
            if who != "best":
                measure(self.session, self.round, self.checkpoints[who])  # now, while its weights are loaded

    def _evaluate(self, who: str, suite: Yardstick, part: SuitePart) -> None:
        key = (who, suite.config.name, part.split)
        if self._draws_more(suite):
            num_samples = suite.config.num_samples * self.session.loaded.config.decide.last_samples
            suite = replace(suite, config=suite.config.model_copy(update={"num_samples": num_samples}))
        self.done[key] = evaluate(self.session, self.round.number, self.checkpoints[who], suite, part, who)

    def _draws_more(self, suite: Yardstick) -> bool:
        """Whether this is a line's last look, on a suite where further samples differ."""
        last = self.line is not None and self.line.last and (self.line.depth > 0 or self.draw != "")
        return last and suite is self.session.decider and not suite.config.greedy

    # What was measured

    def as_output(self) -> Json:
        """What the evaluating stage stores, and `of` takes up."""
        return {
            "opened": self.opened,
            "evaluations": {"/".join(key): evaluation.id for key, evaluation in sorted(self.done.items())},
            "diagnosis": self.diagnosis,
            STORED_AS: self._gains(),
        }

    def _gains(self) -> Json:
        """The gains of head and candidate over the head and the base, for `loop.reading.gains`."""
        session = self.session
        reader = Reader(session.ledger, session.corpus, session.run, session.loaded.run_dir)
        newest = reader.evaluations().newest
        gains = {}
        for (who, suite, split), ours in self.done.items():
            base = newest.get((session.run.base_checkpoint, suite))
            for theirs in (self.done["head", suite, split], base):
                if who != "best" and theirs and theirs.split == split and theirs.id != ours.id:
                    gains[key_of(ours, theirs)] = as_json(gain(reader, ours, theirs))
        return gains

    def evidence(self) -> Evidence:
        """What the policy sees of everything that is measured so far."""
        session, run, decider = self.session, self.session.run, self.session.decider
        opened = {}
        for split, num_problems in self.opened.items():
            drawn, looks = self.drawn(split), session.loaded.config.decide.looks
            opened[split] = self._opened(decider, split, drawn[:num_problems], len(drawn), looks)
        for suite in session.suites:
            if ("candidate", suite.config.name, "all") in self.done:
                opened[suite.config.name] = self._opened(suite, "all", suite.problems, len(suite.problems), 1)
        first = self._sides(decider, session.policy.split)
        figures = {who: evaluation.metrics or {} for who, evaluation in first.items()}
        candidate = session.ledger.checkpoints.get(self.checkpoints["candidate"])
        return evidence(
            self.round.number,
            run.num_decided,
            opened,
            draw=self.head_round,
            figures=figures,
            training=candidate.origin["training"] if candidate else {},
            fruitless_looks=session.fruitless_looks(),
            best_round=self.best_round,
            line=self.line,
            more_signals=signals(summary_of(self.diagnosis)) if self.diagnosis else {},
        )

    def _sides(self, suite: Yardstick, split: str) -> dict[str, Evaluation]:
        """Who was measured there; on the split that is looked at first also the base, as it was when it was the head."""
        sides = {who: done for (who, *where), done in self.done.items() if where == [suite.config.name, split]}
        candidate = sides.get("candidate")
        base = self.session.measured(self.session.run.base_checkpoint, candidate.num_samples if candidate else None)
        return sides | ({"base": base} if base and split == self.session.policy.split else {})

    def _opened(self, suite: Yardstick, split: str, problems: list[Problem], planned: int, looks: int) -> Opened:
        conditions = ("suite_sha256", "decode_settings_id", "num_samples", "seed")
        measured = {
            who: Measured(
                outcomes_of(self.session.corpus.evaluations.verdicts(evaluation.id)),
                {name: getattr(evaluation, name) for name in conditions},
            )
            for who, evaluation in self._sides(suite, split).items()
        }
        return Opened(suite.config.name, decoding_of(suite.config), problems, planned, looks, measured)
