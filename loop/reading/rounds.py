"""What is known of rounds: the values behind `loopctl rounds`, `loopctl round N` and the tables of the page.

`as_json` makes their JSON of them. Reads the store; draws nothing, writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loop.reading.decisions import Decision, decision_of
from loop.reading.gains import STORED_AS, Gain, gain
from loop.reading.reader import Evaluations, Reader
from loop.words import seconds_between
from store.ledger import CANDIDATES
from store.records import DecisionRow, Evaluation, Json, Round, Run

SETTINGS = ("model", "sampling", "collect", "training", "seed")  # those that a round depends on
SHOWN_ELSEWHERE = (
    "losses",
    "diagnosis",
    CANDIDATES,
    STORED_AS,
)  # keys of a stage's output: long, and told in other words


@dataclass(frozen=True, slots=True)
class SuiteRow:
    """The candidate on one suite, in short; None where nothing is measured yet."""

    decides: bool
    pass_at_1: float | None
    pass_at_1_interval: list[float] | None
    head_pass_at_1: float | None
    gain: float | None
    decoding: Json | None


@dataclass(frozen=True, slots=True)
class SuiteFigures:
    """All sides on one suite: each with its stored figures (`figures_of`), and the gains of the candidate."""

    decides: bool
    split: str | None
    num_samples: int | None
    decoding: Json | None
    base: Json | None
    head: Json | None
    candidate: Json | None
    gain: Gain | None
    gain_over_base: Gain | None


@dataclass(frozen=True, slots=True)
class Carried:
    """What became of a carried round: part of the round that a look showed, given up, or, with neither, not known yet."""

    into: int | None
    given_up: bool


@dataclass(frozen=True)
class RoundRow:
    """One round in short: a row of `loopctl rounds`."""

    round: int
    state: str
    stage: str
    verdict: str | None  # as in Decision
    reasons: list[str]
    parent: str  # SHA-256 of the checkpoint that it began with, the tip of then, and of the one that it made
    candidate: str | None
    carried: Carried | None  # of a round that was carried, and not shown by a later look at it
    suites: Mapping[str, Any]  # a SuiteRow each, in a WholeRound a SuiteFigures
    num_completions: int | None
    num_used: int | None
    started_at: str
    finished_at: str | None
    duration_s: float
    error: str | None


@dataclass(frozen=True)
class WholeRound(RoundRow):
    """All of one round: `loopctl round N`."""

    head_round: int  # the round that made the head that it is compared with, 0 for the base
    parent_round: int  # the round that made its parent
    head_after: str | None
    decision: Decision | None
    gates: list[Json]  # as the policy stored them
    policy: Json | None
    signals: Json | None
    training: Training
    candidates: list[Candidate]  # what its training has left along its way; none where that was one
    diagnosis: Json | None  # locks and forks; None before they are measured and where [diagnosis] is off
    settings: Json  # those that the round really used
    adapted: str | None  # what in them was changed after rollbacks, in a line
    stages: list[StageRow]


@dataclass(frozen=True, slots=True)
class Training:
    """What training saw, and how its loss went, in nats a token; None before training."""

    num_used: int
    num_earlier: int
    num_left_out: int
    left_out: dict[str, int]  # completions by the reason
    num_steps: int | None
    num_completion_tokens: int | None
    mean_loss: float | None
    loss_first: float | None
    loss_last: float | None
    num_held_out: int
    held_out_loss: float | None
    train_loss: float | None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of several candidates of a round. `rungs`: on how many problems of the first split it reached what, before it was left
    behind or chosen; none before that is stored. Of several with the same weights all are `chosen`."""

    step: int
    checkpoint: str
    chosen: bool
    rungs: list[Json]


@dataclass(frozen=True, slots=True)
class StageRow:
    """One stage of a round, its attempts and what it gave."""

    stage: str
    started_at: str
    finished_at: str | None
    duration_s: float
    attempts: list[AttemptRow]
    output: Json | None
    nodes: list[
        Json
    ]  # of a cluster, what each did in the attempt that ended it: tokens, tokens a second, why it was lost


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One attempt at a stage. It has no end while it runs, and if its process vanished."""

    attempt: int
    started_at: str
    finished_at: str | None
    error: str | None


# Rounds in short


def rows(store: Reader) -> list[RoundRow]:
    """A row per round, in order."""
    evaluations = store.evaluations()
    decisions = {decision.round: decision for decision in store.ledger.decisions(store.run.id)}
    all_rounds = store.ledger.rounds(store.run.id)
    carried = fates(all_rounds, store.run)
    return [_row(store, round, decisions.get(round.number), evaluations, carried) for round in all_rounds]


def fates(rounds: Sequence[Round], run: Run) -> dict[int, Carried]:
    """What became of each carried round, by the rounds that were trained from it in turn."""
    made: dict[str | None, Round] = {}
    parents: dict[int, Round | None] = {}
    for round in rounds:  # two rounds may make the same weights: the newest one before counts
        parents[round.number] = made.get(round.parent_checkpoint)
        made[round.candidate_checkpoint] = round
    answer = {round.number: Carried(None, True) for round in rounds if round.state == "carried"}
    ends = {round.number: Carried(round.number, False) for round in rounds if round.state == "kept"}
    if run.depth:
        answer[run.tip_round] = ends[run.tip_round] = Carried(None, False)
    for number, fate in sorted(ends.items()):
        parent = parents.get(number)
        while parent is not None and parent.state == "carried":
            answer[parent.number] = fate
            parent = parents[parent.number]
    return answer


def _row(
    store: Reader,
    round: Round,
    decision: DecisionRow | None,
    evaluations: Evaluations,
    carried: Mapping[int, Carried],
) -> RoundRow:
    sampled = store.output(round.number, "sampling")
    words = decision_of(decision, round.state)
    return RoundRow(
        round=round.number,
        state=round.state,
        stage=round.stage,
        verdict=words.verdict if words else None,
        reasons=words.reasons if words else [],
        parent=round.parent_checkpoint,
        candidate=round.candidate_checkpoint,
        carried=carried.get(round.number),
        suites={name: _suite_row(store, round, name, evaluations) for name in store.suites},
        num_completions=sampled.get("num_completions"),
        num_used=sampled.get("num_used"),
        started_at=round.started_at,
        finished_at=round.finished_at,
        duration_s=sum(duration_of(store, round).values()),
        error=round.error,
    )


def _suite_row(store: Reader, round: Round, name: str, evaluations: Evaluations) -> SuiteRow:
    candidate, head = evaluations.of(round, "candidate", name), evaluations.of(round, "head", name)
    figures, before = figures_of(candidate) or {}, figures_of(head) or {}
    return SuiteRow(
        decides=name == store.decider,
        pass_at_1=figures.get("pass@1"),
        pass_at_1_interval=figures.get("pass@1_interval"),
        head_pass_at_1=before.get("pass@1"),
        gain=_change(store, candidate, head),
        decoding=store.decoding(candidate or head),
    )


def _change(store: Reader, candidate: Evaluation | None, head: Evaluation | None) -> float | None:
    """Candidate less head; on the problems that both answered, where one of them was asked fewer."""
    ours, theirs = figures_of(candidate), figures_of(head)
    if not ours or not theirs:
        return None
    if ours["num_problems"] != theirs["num_problems"] and (paired := gain(store, candidate, head)):
        return paired.gain
    return float(ours["pass@1"] - theirs["pass@1"])


def base_row(store: Reader) -> dict[str, Json | None]:
    """What the base reached, by suite."""
    return {name: suite.base for name, suite in suites_of_base(store).items()}


def figures_of(evaluation: Evaluation | None) -> Json | None:
    """One checkpoint on one suite: the stored figures."""
    return None if evaluation is None else {"checkpoint": evaluation.checkpoint, **(evaluation.metrics or {})}


def duration_of(store: Reader, round: Round) -> dict[str, float]:
    """Seconds of work by stage: what its attempts took. One that vanished has no end and does not count."""
    return {stage.stage: stage.duration_s for stage in _stages(store, round)}


# All of a round


def whole_round(store: Reader, number: int) -> WholeRound | None:
    """All of one round; None if there is none of this number."""
    round = store.ledger.round(store.run.id, number)
    if round is None:
        return None
    decision, carried = store.ledger.decision(store.run.id, number), {}
    if round.state == "carried":
        carried = fates(store.ledger.rounds(store.run.id), store.run)
    return all_of(store, round, decision, store.evaluations(), carried)


def all_of(
    store: Reader,
    round: Round,
    decision: DecisionRow | None,
    evaluations: Evaluations,
    carried: Mapping[int, Carried],
) -> WholeRound:
    """`whole_round` of a round that was read already, with what was read for all rounds at once."""
    head, parent = map(store.ledger.checkpoints.get, (store.head_of(round), round.parent_checkpoint))
    settings, adapted = _settings(store, round)
    splits = [name for _, name in evaluations.named(round) if name not in store.suites]  # of the suite that decides
    names = [store.decider, *dict.fromkeys(splits), *store.suites[1:]]
    return WholeRound(
        **vars(_row(store, round, decision, evaluations, carried))
        | {"suites": {name: _suite(store, evaluations, name, round) for name in names}},
        head_round=head.round if head else 0,
        parent_round=parent.round if parent else 0,
        head_after=(round.candidate_checkpoint if round.state == "kept" else decision.head_after) if decision else None,
        decision=decision_of(decision, round.state),
        gates=decision.gates if decision else [],
        policy=decision.policy if decision else None,
        signals=decision.evidence.get("signals") if decision else None,
        training=_training(store, round),
        candidates=_candidates(store, round),
        diagnosis=store.output(round.number, "evaluating").get("diagnosis") or None,
        settings=settings,
        adapted=adapted,
        stages=_stages(store, round),
    )


def _stages(store: Reader, round: Round) -> list[StageRow]:
    finished = store.ledger.events.of(store.run.id, "stage_finished", round.number)
    nodes = {event.stage: event.data.get("nodes", []) for event in finished}
    stages = []
    for stage in store.ledger.stages(store.run.id, round.number):
        attempts = store.ledger.attempts(store.run.id, round.number, stage.name)
        duration_s = sum(seconds_between(a.started_at, a.finished_at) for a in attempts if a.finished_at)
        tries = [AttemptRow(a.attempt, a.started_at, a.finished_at, a.error) for a in attempts]
        output = stage.output and {key: value for key, value in stage.output.items() if key not in SHOWN_ELSEWHERE}
        its_nodes = nodes.get(stage.name, []) if output is not None else []
        stages.append(StageRow(stage.name, stage.started_at, stage.finished_at, duration_s, tries, output, its_nodes))
    return stages


def _settings(store: Reader, round: Round) -> tuple[Json, str | None]:
    """The settings that the round really used, and what in them was changed after rollbacks, in a line."""
    settings = settings_of_run(store)
    inputs = {stage.name: stage.input for stage in store.ledger.stages(store.run.id, round.number)}
    sampling = inputs.get("sampling", {})
    if "decoding" in sampling:
        settings["sampling"] = settings["sampling"] | sampling["decoding"]
    if "data" in sampling:
        settings["collect"] = settings["collect"] | {"data": sampling["data"]}
    if used := inputs.get("training", {}).get("settings"):
        settings["training"] = settings["training"] | {key: used[key] for key in settings["training"] if key in used}
    return settings, sampling.get("adapted")


def settings_of_run(store: Reader) -> Json:
    """The settings that rounds depend on, as the run began with them."""
    return {key: store.run.config[key] for key in SETTINGS}


def suites_of_base(store: Reader) -> dict[str, SuiteFigures]:
    """The suites without a round: only the base is measured."""
    evaluations = store.evaluations()
    return {name: _suite(store, evaluations, name, None) for name in store.suites}


def _suite(store: Reader, evaluations: Evaluations, name: str, round: Round | None) -> SuiteFigures:
    base = evaluations.newest.get((store.run.base_checkpoint, name))
    head = evaluations.of(round, "head", name) if round else None
    candidate = evaluations.of(round, "candidate", name) if round else None
    measured = base or head or candidate
    return SuiteFigures(
        decides=name == store.decider,
        split=measured.split if measured else None,
        num_samples=measured.num_samples if measured else None,
        decoding=store.decoding(measured),
        base=figures_of(base),
        head=figures_of(head),
        candidate=figures_of(candidate),
        gain=gain(store, candidate, head),
        gain_over_base=gain(store, candidate, base),
    )


def _candidates(store: Reader, round: Round) -> list[Candidate]:
    left = store.output(round.number, "evaluating").get(CANDIDATES)
    return [
        Candidate(
            each["step"], each["checkpoint"], each["checkpoint"] == round.candidate_checkpoint, each.get("rungs", [])
        )
        for each in left or store.output(round.number, "training").get(CANDIDATES, [])
    ]


def _training(store: Reader, round: Round) -> Training:
    counts = store.corpus.selection_counts(store.run.id, round.number)
    left_out = {row["reason"] or "no reason given": row["num"] for row in counts if not row["used"]}
    output = store.output(round.number, "training")
    losses = output.get("losses") or []
    return Training(
        num_used=sum(row["num"] for row in counts if row["used"]),
        num_earlier=store.output(round.number, "sampling").get("num_earlier", 0),
        num_left_out=sum(left_out.values()),
        left_out=left_out,
        mean_loss=sum(losses) / len(losses) if losses else None,
        loss_first=losses[0] if losses else None,
        loss_last=losses[-1] if losses else None,
        num_held_out=output.get("num_held_out", 0),
        **{key: output.get(key) for key in ("num_steps", "num_completion_tokens", "held_out_loss", "train_loss")},
    )
