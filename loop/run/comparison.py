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
from loop.stages.deciding import Measured, Opened, evidence, parts_of, since_base
from loop.stages.evaluating import COUNTED, Yardstick, decoding_of, outcomes_of
from loop.stages.sampling import seed_of
from policies.diagnosis import signals, summary_of
from policies.evidence import TIP, Evidence, Line
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
                case "sample_more" if "tip" in need:
                    self._look_at_tip()
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
        """Head and candidate on suites that do not decide by themselves: one side after the other, each loaded once."""
        asked = [(suite, seed_of(self.session.loaded.config.seed, suite.config.name)) for suite in suites]
        for who in self._loaded_first(["head", "candidate"]):
            for suite, seed in asked:
                self._evaluate(who, suite, SuitePart("all", suite.problems, seed))

    def _loaded_first(self, sides: list[str]) -> list[str]:
        """The checkpoint that is loaded already goes first: loading is expensive."""
        return sorted(sides, key=lambda who: self.session.engines.serving(self.checkpoints[who]) is None)

    def _open(self, split: str, num_problems: int) -> None:
        self.opened[split] = num_problems
        part = SuitePart(split, self.drawn(split)[:num_problems], self.seed_of_split(split))
        sides = [who for who in self.checkpoints if who != "best" or split == self.session.policy.split]
        for who in self._loaded_first(sides):
            glimpsed = (
                self.line is not None and not self.line.look and who == "head"
            )  # every figure of a head is a whole one
            whole = replace(part, problems=self.drawn(split)) if glimpsed else part
            self._evaluate(who, self.session.decider, whole)
            if who != "best":
                measure(self.session, self.round, self.checkpoints[who])  # now, while its weights are loaded

    def _look_at_tip(self) -> None:
        """The tip and the head, with answers of their own and as many as for a line's last look."""
        policy, decider = self.session.policy, self.session.decider
        split = policy.confirm or policy.split
        named = decider.config.name, split, self.head_round, f"tip of round {self.round.number}"
        part = SuitePart(split, self.drawn(split), seed_of(self.session.loaded.config.seed, *named))
        for who, checkpoint in (("candidate", self.round.parent_checkpoint), ("head", self.checkpoints["head"])):
            label = "tip" if who == "candidate" else who
            measured = evaluate(self.session, self.round.number, checkpoint, self._with_more(decider), part, label)
            self.done[who, decider.config.name, TIP] = measured

    def _evaluate(self, who: str, suite: Yardstick, part: SuitePart) -> None:
        key = (who, suite.config.name, part.split)
        asked = self._with_more(suite) if self._draws_more(suite) else suite
        self.done[key] = evaluate(self.session, self.round.number, self.checkpoints[who], asked, part, who)

    def _with_more(self, suite: Yardstick) -> Yardstick:
        """The suite with `decide.last_samples` times the samples."""
        num_samples = suite.config.num_samples * self.session.loaded.config.decide.last_samples
        return replace(suite, config=suite.config.model_copy(update={"num_samples": num_samples}))

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
        if ("candidate", decider.config.name, TIP) in self.done:
            problems = self.drawn(session.policy.confirm or session.policy.split)
            opened[TIP] = self._opened(decider, TIP, problems, len(problems), 1)
        first = self._sides(decider, session.policy.split)
        figures = {who: evaluation.metrics or {} for who, evaluation in first.items() if who != "tip"}
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
            tip=self._tip_signals(first.get("candidate")),
            drift=self._since_base(first.get("candidate")) if session.policy.needs_base else {},
        )

    def _tip_signals(self, candidate: Evaluation | None) -> dict[str, float]:
        """Of the carried candidate that this one was trained from, as they were when that was decided on; {} where it was the head.

        Without those that count different answers, where this one has more samples of a problem to count them in.
        """
        tip = self._carried()
        decision = self.session.ledger.decision(tip.run_id, tip.number) if tip else None
        if candidate is None or decision is None:
            return {}
        signals: dict[str, float] = decision.evidence["signals"].get("candidate", {})
        answers = decision.evidence["splits"][self.session.policy.split]["problems"][0]["candidate"]
        if len(answers) == candidate.num_samples:
            return signals
        return {name: value for name, value in signals.items() if not name.startswith(COUNTED)}

    def _carried(self) -> Round | None:
        """The round of the carried candidate that this one was trained from; None where that was the head."""
        ledger, parent = self.session.ledger, self.round.parent_checkpoint
        if parent == self.checkpoints["head"]:
            return None
        rounds = ledger.rounds(self.round.run_id)[: self.round.number - 1]
        return next((each for each in reversed(rounds) if each.candidate_checkpoint == parent), None)

    def _tip_evaluation(self) -> Evaluation | None:
        """The tip's on the split of every round, under the seeds of the same head."""
        tip, suite, split = self._carried(), self.session.decider.config.name, self.session.policy.split
        stage = self.session.ledger.stage(tip.run_id, tip.number, "evaluating") if tip else None
        id = ((stage.output if stage else None) or {}).get("evaluations", {}).get(f"candidate/{suite}/{split}")
        return self.session.corpus.evaluations.get(id) if id else None

    def _since_base(self, candidate: Evaluation | None) -> Json:
        """The candidate against the base on the first split, by as many samples as both have; {} where one is not measured."""
        session, base = self.session, self._base(self.session.decider.config.num_samples)
        if candidate is None or base is None:
            return {}
        num_samples, corpus = min(candidate.num_samples, base.num_samples), session.corpus
        split = session.policy.split
        opened = {problem.task_id for problem in self.drawn(split)[: self.opened[split]]}
        ours, theirs = (
            parts_of(
                (each for each in corpus.evaluations.verdicts(side.id) if each.task_id in opened),
                corpus.completions(session.run_id, evaluation_id=side.id),
                num_samples,
            )
            for side in (candidate, base)
        )
        return since_base(ours, theirs)

    def _sides(self, suite: Yardstick, split: str) -> dict[str, Evaluation]:
        """Who was measured there; on the split that is looked at first also the base, as it was when it was the head, and the tip."""
        sides = {who: done for (who, *where), done in self.done.items() if where == [suite.config.name, split]}
        if split != self.session.policy.split or "candidate" not in sides:
            return sides
        more = {"base": self._base(sides["candidate"].num_samples), "tip": self._tip_evaluation()}
        return sides | {who: evaluation for who, evaluation in more.items() if evaluation}

    def _base(self, num_samples: int) -> Evaluation | None:
        """The base's first evaluation with so many samples: a later look at a tip would change what a round is compared with."""
        session, base = self.session, self.session.run.base_checkpoint
        wanted = session.decider.config.name, session.policy.split, num_samples
        evaluations = session.corpus.evaluations.all(session.run_id, base)
        measured = [
            each for each in evaluations if each.metrics and (each.suite_name, each.split, each.num_samples) == wanted
        ]
        return measured[0] if measured else None

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
