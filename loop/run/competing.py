"""The candidates that one fine-tune has left: what the store is told of them, and which of them is the round's.

They compete on the split that is looked at first, by successive halving: the same problems, decoding settings and seeds for
all, those that the head has there. What the winner has answered serves its comparison with the head. That split only chooses;
the round's decision is shown by another one (`decide.confirm`).

Restart-safe: the choice is a pure function of stored verdicts, and it is stored before the comparison begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from loop.engines.base import CheckpointRef
from loop.run.comparison import Comparison
from loop.run.evaluation import SuitePart, evaluate
from loop.run.session import Session
from loop.stages.evaluating import outcomes_of
from loop.stages.training import Trained
from policies.gates import Improvement
from policies.halving import better_ones, rungs, score
from store.checkpoints import manifest_sha256, manifest_size_bytes
from store.garbage import AT_STEP
from store.ledger import CANDIDATES, CHOSEN
from store.records import Checkpoint, Json, Round


def candidates_of(
    session: Session, round: Round, parent: CheckpointRef, trained: Trained
) -> tuple[list[Checkpoint], Json]:
    """The checkpoints of a fine-tune, in order of steps and each once, and what the training stage's output says of them."""
    parent_row = session.ledger.checkpoints.known(round.parent_checkpoint)
    several = [*trained.earlier, trained]
    rows: dict[str, Checkpoint] = {}
    for each in reversed(several):  # of equal weights the later ones count
        report = each.result.model_dump(mode="json", exclude={"earlier"})
        row = Checkpoint(
            sha256=manifest_sha256(each.manifest),
            run_id=round.run_id,
            round=round.number,
            kind="adapter" if each.result.adapter else "full",
            path=str(each.path.relative_to(session.loaded.run_dir)),
            parent=parent.sha256,
            base=(parent_row.base or parent_row.sha256) if each.result.adapter else None,
            size_bytes=manifest_size_bytes(each.manifest),
            manifest=each.manifest,
            origin={"training": report} | ({AT_STEP: each.result.num_steps} if len(several) > 1 else {}),
        )
        rows.setdefault(row.sha256, row)
    output = {
        "checkpoint": manifest_sha256(trained.manifest),
        **trained.result.model_dump(mode="json", exclude={"earlier"}),
    }
    if len(several) > 1:
        left = [{"step": each.result.num_steps, "checkpoint": manifest_sha256(each.manifest)} for each in several]
        output[CANDIDATES] = left
    return [*rows.values()][::-1], output


def compete(session: Session, round: Round, inputs: Json) -> tuple[Round, Json]:
    """The round with its candidate; and, if it was chosen from several, what the stage's input and output say of that."""
    if CANDIDATES not in inputs:
        return round, {}
    if round.candidate_checkpoint is None:
        candidate, told = _halve(session, round, inputs)
        round = session.ledger.choose_candidate(round, candidate, **told)
    event = session.ledger.events.of(round.run_id, CHOSEN, round.number)[-1]
    return round, dict(event.data)


def _halve(session: Session, round: Round, inputs: Json) -> tuple[str, Json]:
    """The best checkpoint, and each candidate with its step and its figures rung by rung."""
    left = {each["checkpoint"]: each["step"] for each in inputs[CANDIDATES]}  # of equal weights the later step
    at = {step: checkpoint for checkpoint, step in left.items()}
    # Which candidate is compared plays no part: the head says in which order problems come, and with which seeds.
    comparison = Comparison.of(session, round, inputs | {"candidate": at[max(at)]})
    split, k = session.policy.split, _k_of(session)
    problems, seed = comparison.drawn(split), comparison.seed_of_split(split)
    told: dict[str, list[Json]] = {checkpoint: [] for checkpoint in left}
    steps = sorted(at)
    for rung in rungs(len(steps), len(problems)):
        part = SuitePart(split, problems[: rung.num_problems], seed)
        scores = _measured(session, round, {step: at[step] for step in steps}, part, k)
        for step, value in scores.items():
            told[at[step]].append({"num_problems": rung.num_problems, f"pass@{k}": float(value)})
        steps = better_ones(scores, rung.num_left)
    (step,) = steps
    return at[step], {CANDIDATES: [each | {"rungs": told[each["checkpoint"]]} for each in inputs[CANDIDATES]]}


def _measured(
    session: Session, round: Round, candidates: Mapping[int, str], part: SuitePart, k: int
) -> dict[int, Fraction]:
    """The score of each candidate, by step, on the problems of one rung."""
    suite, engines = session.decider, session.engines
    scores = {}
    for step in sorted(candidates, key=lambda step: engines.serving(candidates[step]) is None):  # loading is expensive
        label = f"candidate of step {step}"
        evaluation = evaluate(session, round.number, candidates[step], suite, part, "candidate", label)
        outcomes = outcomes_of(session.corpus.evaluations.verdicts(evaluation.id))
        scores[step] = score([outcomes[problem.task_id] for problem in part.problems], k)
    return scores


def _k_of(session: Session) -> int:
    """The k of the pass@k that the run decides on."""
    gates: Sequence[object] = session.policy.gates
    return next((int(gate.metric.removeprefix("pass@")) for gate in gates if isinstance(gate, Improvement)), 1)
