"""Tries which functions make a problem: their own body passes each time, a stub and wrong bodies fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from loop.grading.formats import problem_of
from loop.grading.grader import Grader, Job, Verdict
from loop.grading.problem import Problem
from loop.mining.bodies import own_program, stub_program, wrong_programs
from loop.mining.functions import Function

NUM_OWN = 3
Row = dict[str, Any]


class Candidate(NamedTuple):
    """A function with the row that it would have as a problem, by level."""

    function: Function
    row: Callable[[str], Row]


@dataclass
class Proof:
    """What was tried on a function. `reason` says why it is no problem, or is "". `survivors` are wrong bodies that passed."""

    level: str
    seconds: float = 0.0
    reason: str = ""
    survivors: list[str] = field(default_factory=list)

    @property
    def word(self) -> str:
        if self.reason:
            return "left out"
        return "weak" if self.survivors else "problem"


def prove(candidates: Sequence[Candidate], place: str, grader: Grader, say: Callable[[str], None]) -> dict[str, Proof]:
    """A proof for each function's id. First which level its own body passes at, then all the rest at that level."""
    plain = [each for each in candidates if each.function.is_plain]
    say(f"trying which of {len(plain):,} functions can be asked from another process")
    apart = {
        key
        for key, verdict in grader.grade(_jobs(plain, {}, place, lambda each: [("own", own_program(each))]))
        if verdict.verdict == "passed"
    }
    levels = {each.function.id: "apart" if (each.function.id, "own") in apart else "inside" for each in candidates}
    proofs = {each.function.id: Proof(levels[each.function.id]) for each in candidates}
    say(f"trying {len(candidates):,} functions with their own bodies, stubs and wrong bodies")
    for done, (key, verdict) in enumerate(grader.grade(_jobs(candidates, levels, place, _programs))):
        _note(proofs[key[0]], key[1], verdict)  # type: ignore[index]
        if done % 500 == 499:
            say(f"{done + 1:,} programs run")
    return proofs


def _programs(function: Function) -> Iterator[tuple[str, str]]:
    own = own_program(function)
    for number in range(NUM_OWN):  # of equal programs only one is run
        yield f"own {number + 1}", f"{own}# {number + 1}\n"
    yield "a stub", stub_program(function)
    yield from wrong_programs(function)


def _jobs(
    candidates: Sequence[Candidate],
    levels: Mapping[str, str],
    place: str,
    programs: Callable[[Function], Any],
) -> Iterator[Job]:
    for each in candidates:
        problem = _problem(each.row(levels.get(each.function.id, "apart")), place)
        for name, program in programs(each.function):
            yield Job((each.function.id, name), problem, program)


def _problem(row: Row, place: str) -> Problem:
    return problem_of(row, row["task_id"]).model_copy(update={"place": place})


def _note(proof: Proof, name: str, verdict: Verdict) -> None:
    passed = verdict.verdict == "passed"
    if verdict.verdict == "harness_error":
        proof.reason = proof.reason or verdict.detail
    elif name.startswith("own"):
        if not passed and not proof.reason:
            proof.reason = f"its own body does not pass here: {verdict.detail}"
        proof.seconds = max(proof.seconds, verdict.duration_s)
    elif passed and name == "a stub":
        proof.reason = proof.reason or "its tests pass with a stub"
    elif passed:
        proof.survivors.append(name)
