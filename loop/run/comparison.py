"""Candidate against head on the suite that decides: opened part by part, and no further than the policy needs.

Restart-safe: what was measured is stored, and the policy, a pure function, asks for the same parts again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from loop.reading.as_json import as_json
from loop.reading.gains import STORED_AS, gain, key_of
from loop.reading.reader import Reader
from loop.run.diagnosing import diagnose, measure
from loop.run.evaluation import SuitePart, evaluate
from loop.run.session import Session
from loop.stages.deciding import Measured, Opened, evidence
from loop.stages.evaluating import Yardstick, decoding_of, outcomes_of
from loop.stages.sampling import seed_of
from policies.decision import Decision
from policies.diagnosis import signals, summary_of
from policies.evidence import Evidence
from policies.policy import next_part
from policies.sequential import drawing_order
from store.records import Evaluation, Json, Problem, Round


@dataclass(slots=True)
class Comparison:
    """One round's comparison. `opened` says how many problems of each split are in; `done` holds the evaluations."""

    session: Session
    round: Round
    checkpoints: dict[str, str]  # by "candidate", "head" and, where a gate asks for it, "best"
    best_round: int | None = None
    opened: dict[str, int] = field(default_factory=dict)
    done: dict[tuple[str, str, str], Evaluation] = field(default_factory=dict)  # by who, suite and split
    diagnosis: Json = field(default_factory=dict)  # of locks and forks

    @classmethod
    def of(cls, session: Session, round: Round, inputs: Json) -> Comparison:
        """The comparison that a stage's frozen input asks for, with all that `as_output` gave if the input has it."""
        checkpoints, best_round = {"head": inputs["head"], "candidate": inputs["candidate"]}, None
        if best := inputs.get("best"):
            checkpoints["best"], best_round = best["checkpoint"], best["round"]
        comparison = cls(session, round, checkpoints, best_round, {**inputs.get("opened", {})})
        for name, id in inputs.get("evaluations", {}).items():
            who, suite, split = name.split("/", 2)
            evaluation = session.corpus.evaluations.get(id)
            assert evaluation is not None
            comparison.done[who, suite, split] = evaluation
        comparison.diagnosis = inputs.get("diagnosis", {})
        return comparison

    @property
    def head_round(self) -> int:
        """The round of the head, which fixes the seeds and the order of problems."""
        row = self.session.ledger.checkpoints.get(self.checkpoints["head"])
        assert row is not None
        return row.round

    def drawn(self, split: str) -> list[Problem]:
        """All problems of a split in the order in which they are drawn."""
        problems = {problem.task_id: problem for problem in self.session.decider.of_split(split)}
        return [problems[task_id] for task_id in drawing_order(self.head_round, list(problems))]

    def run(self) -> Decision:
        """Open what the policy asks for until it has decided, and then what is only reported."""
        policy, looks = self.session.policy, self.session.loaded.config.decide.looks
        self._open(policy.split, next_part(0, len(self.drawn(policy.split)), looks))
        self.diagnosis = diagnose(self.session, self.round)
        while True:
            decision = policy.decide(self.evidence())
            need = decision.need or {}
            match decision.action:
                case "confirm":
                    split = str(need["split"])
                    self._open(split, next_part(0, len(self.drawn(split)), looks))
                case "sample_more" if "split" in need:
                    split = str(need["split"])
                    self._open(split, self.opened[split] + int(str(need["num_problems"])))
                case "sample_more":
                    self.report(need["suites"])
                case _:
                    self.report(
                        [suite.config.name for suite in self.session.suites if suite is not self.session.decider]
                    )
                    return decision

    def report(self, names: object) -> None:
        """Head and candidate on suites that do not decide by themselves."""
        assert isinstance(names, list)
        for suite in self.session.suites:
            if suite.config.name in names:
                seed = seed_of(self.session.loaded.config.seed, suite.config.name)
                for who in ("head", "candidate"):
                    self._evaluate(who, suite, SuitePart("all", suite.problems, seed))

    def _open(self, split: str, num_problems: int) -> None:
        self.opened[split] = num_problems
        seed = seed_of(self.session.loaded.config.seed, self.session.decider.config.name, split, self.head_round)
        part = SuitePart(split, self.drawn(split)[:num_problems], seed)
        sides = [who for who in self.checkpoints if who != "best" or split == self.session.policy.split]
        engines = self.session.engines  # the checkpoint that is loaded already goes first: loading is expensive
        for who in sorted(sides, key=lambda who: engines.serving(self.checkpoints[who]) is None):
            self._evaluate(who, self.session.decider, part)
            if who != "best":
                measure(self.session, self.round, self.checkpoints[who])  # now, while its weights are loaded

    def _evaluate(self, who: str, suite: Yardstick, part: SuitePart) -> None:
        key = (who, suite.config.name, part.split)
        self.done[key] = evaluate(self.session, self.round.number, self.checkpoints[who], suite, part, who)

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
        session, policy = self.session, self.session.policy
        name, looks = self.session.decider.config.name, session.loaded.config.decide.looks
        opened = {}
        for split, num_problems in self.opened.items():
            drawn = self.drawn(split)
            opened[split] = self._opened(self.session.decider, split, drawn[:num_problems], len(drawn), looks)
        for suite in self.session.suites:
            if ("candidate", suite.config.name, "all") in self.done:
                opened[suite.config.name] = self._opened(suite, "all", suite.problems, len(suite.problems), 1)
        figures = {who: evaluation.metrics or {} for (who, suite_name, split), evaluation in self.done.items()
                   if (suite_name, split) == (name, policy.split)}  # fmt: skip
        if (base := self._base()) is not None and base.metrics:
            figures["base"] = base.metrics
        candidate = session.ledger.checkpoints.get(self.checkpoints["candidate"])
        before = session.ledger.last_decision(self.round.run_id)
        run = session.run
        return evidence(
            self.round.number,
            run.num_kept + run.num_rolled_back,
            opened,
            draw=self.head_round,
            figures=figures,
            training=candidate.origin["training"] if candidate else {},
            fruitless_looks=policy.fruitless_after(before.evidence, before.verdict) if before else {},
            best_round=self.best_round,
            more_signals=signals(summary_of(self.diagnosis)) if self.diagnosis else {},
        )

    def _base(self) -> Evaluation | None:
        """The base on the split that is looked at first, as it was measured when it was the head."""
        run = self.session.run
        wanted = (self.session.decider.config.name, self.session.policy.split)
        evaluations = self.session.corpus.evaluations.all(run.id, run.base_checkpoint)
        finished = [each for each in evaluations if (each.suite_name, each.split) == wanted and each.metrics]
        return finished[-1] if finished else None

    def _opened(
        self, suite: Yardstick, split: str, problems: list[Problem], num_planned: int, num_looks: int
    ) -> Opened:
        key = (suite.config.name, split)
        sides = {who: evaluation for (who, *rest), evaluation in self.done.items() if tuple(rest) == key}
        if split == self.session.policy.split and (base := self._base()) is not None:
            sides["base"] = base
        conditions = ("suite_sha256", "decode_settings_id", "num_samples", "seed")
        measured = {
            who: Measured(
                outcomes_of(self.session.corpus.evaluations.verdicts(evaluation.id)),
                {name: getattr(evaluation, name) for name in conditions},
            )
            for who, evaluation in sides.items()
        }
        return Opened(suite.config.name, decoding_of(suite.config), problems, num_planned, num_looks, measured)
