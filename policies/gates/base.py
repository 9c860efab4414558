"""What every gate is, and the words and figures that they share. A new gate is a file beside this and a name in `__init__.py`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from policies.decision import GateResult
from policies.evidence import BadEvidence, Evidence, Line, Problem, SplitEvidence, Who
from policies.mistakes import shown
from policies.sequential import drawing_order
from policies.statistics import pass_at_k

Metric = Annotated[str, StringConstraints(pattern=r"^pass@[1-9][0-9]{0,3}$")]


@dataclass(frozen=True, slots=True)
class Look:
    """Which split a gate is asked about. `screening`: passing there only opens the split that confirms.

    `line`: where the candidate stands in a line of carried rounds; None where nothing is carried.
    """

    split: str
    screening: bool = False
    line: Line | None = None


class Gate(BaseModel, ABC):
    """One condition that must hold to keep a candidate."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    type: str

    @abstractmethod
    def evaluate(self, evidence: Evidence, look: Look) -> GateResult:
        """A pure function: equal evidence gives an equal result, with no clock, no I/O and no randomness.

        Raises BadEvidence where evidence is missing. Weak evidence is no error: it fails or is inconclusive.
        """

    @property
    def canary(self) -> str | None:
        """The suite that this gate looks at instead of the one that decides; such a gate is asked last. None: it does not."""
        return None

    @property
    def screens(self) -> bool:
        """With decide.confirm: whether this gate must pass on the first split before the second is opened.

        A gate that says False must only not fail there.
        """
        return False

    @property
    def needs_best(self) -> bool:
        """Whether this gate wants the best kept round measured beside head and candidate."""
        return False

    @property
    def needs_base(self) -> bool:
        """Whether this gate wants the candidate's signals compared with the base's, problem by problem."""
        return False


def values(problems: Sequence[Problem], who: Who, metric: str) -> list[Fraction]:
    """Each problem's success rate, or its pass@k. BadEvidence where k is more than the samples there are."""
    k = int(metric.removeprefix("pass@"))
    rates = []
    for problem in problems:
        outcomes = getattr(problem, who)
        assert outcomes is not None, who
        try:
            exact = Fraction(sum(outcomes), len(outcomes))
            rates.append(exact if k == 1 else Fraction(pass_at_k(len(outcomes), sum(outcomes), k)))
        except ValueError as error:
            raise BadEvidence(f"task {shown(problem.task_id)}: {error}") from None
    return rates


def mean(rates: Sequence[Fraction]) -> float:
    """The mean of at least one rate."""
    return float(sum(rates, Fraction()) / len(rates))


def signed(value: float, digits: int = 3) -> str:
    """+0.031; a value that rounds to zero has no minus."""
    return f"{value:+z.{digits}f}"


def percent(share: float) -> str:
    """97.5%, with as many digits as it takes."""
    return f"{share * 100:.4g}%"


def compared(name: str, value: float, limit: float) -> str:
    """'lower bound +0.012 above the limit 0.000', with as many digits as it takes to tell the two apart."""
    digits = 3
    while digits < 9 and value != limit and signed(value, digits) == signed(limit, digits):
        digits += 1
    relation = "above" if value > limit else "is not above"
    return f"{name} {signed(value, digits)} {relation} the limit {limit:z.{digits}f}"


def sizes(problems: Sequence[Problem], split: SplitEvidence) -> str:
    """'100 of 225 problems x 2 samples'"""
    num = f"{len(problems)}" if split.complete else f"{len(problems)} of {split.num_planned}"
    counts = sorted({len(problem.candidate) for problem in problems})
    samples = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    return f"{num} problem{'s' * (num != '1')} x {samples} sample{'s' * (counts != [1])}"


def where(evidence: Evidence, split: str) -> str:
    """'first-steps (select, T 1.0, top_p 0.95)': a figure never stands without its decoding settings."""
    seen = evidence.split(split)
    decoding = seen.decoding if seen.decoding is not None else evidence.decoding
    name = split if split.isprintable() else shown(split)
    parts = [*([name] if split != seen.suite else []), *_decoding(decoding or {})]
    return f"{seen.suite} ({', '.join(parts)})" if parts else seen.suite


def _decoding(decoding: Mapping[str, JsonValue]) -> list[str]:
    """Decoding in words: greedy, or the temperature and whatever else departs from plain sampling."""
    if decoding.get("greedy") or decoding.get("temperature") == 0:
        return ["greedy"]
    neutral = {"temperature": None, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
    names = {"temperature": "T"}
    return [
        f"{names.get(key, key)} {f'{value:g}' if isinstance(value, (int, float)) else shown(value)}"
        for key, without in neutral.items()
        if (value := decoding.get(key)) is not None and value != without
    ]


Share = Annotated[float, Field(gt=0.0, lt=1.0)]


@dataclass(frozen=True, slots=True)
class Paired:
    """Candidate against another checkpoint on the same problems, in the order in which they were drawn."""

    problems: tuple[Problem, ...]
    ours: list[Fraction]
    theirs: list[Fraction]

    @property
    def differences(self) -> list[Fraction]:
        """Candidate minus the other, per problem, in [-1, 1]."""
        return [ours - theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]


def paired(
    evidence: Evidence, split: str, metric: str, *, against: Who = "head", difficulty: str | None = None
) -> Paired:
    """Candidate and another checkpoint on a split. BadEvidence where there is nothing to compare."""
    by_id = {problem.task_id: problem for problem in evidence.split(split).problems}
    drawn = drawing_order(evidence.draw if evidence.draw is not None else evidence.round, list(by_id))
    problems = tuple(by_id[task_id] for task_id in drawn if difficulty in (None, by_id[task_id].difficulty))
    if not problems:
        raise BadEvidence(f"splits.{split}: no problem of difficulty {shown(difficulty)}")
    if getattr(problems[0], against) is None:
        raise BadEvidence(f"splits.{split}: no samples of the {against}")
    return Paired(problems, values(problems, "candidate", metric), values(problems, against, metric))
