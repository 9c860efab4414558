"""Two models on the same suites: asked alike, with the same random numbers, and judged as results of any harness are."""

from __future__ import annotations

from pathlib import Path

from loop.judging.judged import CONFIDENCE, Judged, judged, judged_early
from loop.judging.models import Model
from loop.judging.results import Problem, Results, hash_of
from loop.judging.sampled import Asked, Sampled, sampled
from loop.judging.sequential import NUM_LOOKS, said_by
from loop.workers.up import Watch
from policies.sequential import drawing_order


def compared(
    models: tuple[Model, Model], asked: Asked, directory: Path, watch: Watch, num_comparisons: int, target: float | None
) -> Judged:
    """Both models on one suite, one of several. With a `target`, the size that is looked for, part by part until it is clear.

    What is stored already is not done again.
    """
    num_looks = NUM_LOOKS if target else 1
    for number in range(1, num_looks + 1):
        share = number / num_looks
        a, b = (results_of(sampled(model, asked, directory, watch, share)) for model in models)
        if not target:
            break
        order = drawing_order(asked.seed, list(a.problems))
        differences = [b.problems[id].rate - a.problems[id].rate for id in order]
        level = (1 - CONFIDENCE) / num_comparisons
        said = said_by(differences, complete=number == num_looks, level=level, target=target)
        if said.finding != "unclear" or number == num_looks:
            return judged_early(a, b, num_comparisons, said, share)
    return judged(a, b, num_comparisons)


def results_of(answered: Sampled) -> Results:
    """What a model answered, in the form in which the results of all harnesses are compared."""
    problems = {}
    for task_id, outcomes in answered.outcomes.items():
        problem = answered.graded_as[task_id]
        problems[task_id] = Problem(tuple(outcomes), problem.difficulty, problem.date, hash_of(problem.content()))
    return Results(
        file=answered.loaded.path,
        harness="loopctl",
        suite=answered.suite,
        metric="passed",
        problems=problems,
        model=answered.model.name,
        decoding=answered.decoding,
    )
