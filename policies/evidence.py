"""What a policy sees: per problem, which samples of the candidate and of the head passed; and signals beside them.

Evidence is complete or it is refused: a gap is a failed stage, never a wrong answer. Nothing is computed here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from policies.mistakes import dotted, first_mistake, shown

Who = Literal["candidate", "head", "base", "best", "tip"]
TIP = "the tip"  # the split that holds a look at the tip itself: there the tip stands as the candidate
DISJOINT = ("select", "confirm", "final")

Count = Annotated[int, Field(ge=0, le=1_000_000, strict=True)]  # beyond it an error budget is lost in rounding
Outcomes = tuple[Literal[0, 1], ...]
Signal = Annotated[float, Field(strict=True, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0.0)]


T = TypeVar("T")
Given = Annotated[T | None, Field(exclude_if=lambda value: value is None)]  # a key that may be left out


class BadEvidence(ValueError):
    """Evidence that cannot be judged: one line that names the place and the mistake."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Problem(_Frozen):
    """One problem, its samples graded 0 (failed) or 1 (passed). Candidate and head have equally many."""

    task_id: str = Field(coerce_numbers_to_str=True, description="The problem's name, unique within its split.")
    difficulty: Given[str] = Field(None, description="As the suite calls it.")
    candidate: Outcomes = Field(description="The checkpoint that may become the head.")
    head: Outcomes = Field(description="The checkpoint that it is compared with.")
    base: Given[Outcomes] = Field(None, description="Where round 1 started.")
    best: Given[Outcomes] = Field(None, description="The best kept round, where that is not the head.")
    tip: Given[Outcomes] = Field(
        None, description="What the candidate was trained from, where that was carried and has answered this problem."
    )

    @field_validator("candidate", "head", "base", "best", "tip", mode="before")
    @classmethod
    def _graded(cls, outcomes: Any, info: ValidationInfo) -> Any:
        if outcomes is None and info.field_name in ("base", "best", "tip"):
            return None
        task = f"task {shown(info.data.get('task_id'))}"
        if not isinstance(outcomes, (list, tuple)):
            raise ValueError(f"{task}: {shown(outcomes)} is not a list of 0 and 1")
        if not outcomes:
            raise ValueError(f"{task}: no samples; grade at least one, or leave the problem out")
        for index, outcome in enumerate(outcomes):
            if type(outcome) is not int or outcome not in (0, 1):
                raise ValueError(f"{task}: sample {index} is {shown(outcome)}; every sample is 0 or 1")
        return outcomes

    @model_validator(mode="after")
    def _paired(self) -> Problem:
        for who, outcomes in (("head", self.head), ("best", self.best)):
            if outcomes is not None and len(self.candidate) != len(outcomes):
                raise ValueError(
                    f"task {shown(self.task_id)}: {len(self.candidate)} candidate samples but {len(outcomes)} {who} "
                    "samples; both need equally many"
                )
        return self


class SplitEvidence(_Frozen):
    """One suite's problems of one split, all of them or as many as were drawn so far."""

    suite: str = Field(min_length=1, description="What reports call the suite.")
    problems: tuple[Problem, ...] = Field(description="In any order; the order does not matter.")
    num_planned: Given[Count] = Field(
        None, description="How many problems the split has in all; absent: these are all."
    )
    num_looks: Given[Annotated[int, Field(ge=1, strict=True)]] = Field(
        None, description="In how many parts the problems are drawn, the gates being asked after each; absent: in one."
    )
    decoding: Given[dict[str, JsonValue]] = Field(
        None, description="How these samples were drawn, where it differs from the evidence's own."
    )
    conditions: Given[dict[Who, dict[str, JsonValue]]] = Field(
        None,
        description="What each side was measured by: hash of the suite, decoding settings, seed. They must be equal.",
    )

    @field_validator("suite")
    @classmethod
    def _printable(cls, suite: str) -> str:
        if not suite.isprintable():
            raise ValueError(f"suite {shown(suite)} holds control characters")
        return suite

    @model_validator(mode="after")
    def _complete(self) -> SplitEvidence:
        if not self.problems:
            raise ValueError(f"suite {shown(self.suite)} has no problems; nothing can be decided on an empty split")
        seen: set[str] = set()
        for problem in self.problems:
            if problem.task_id in seen:
                raise ValueError(f"task {shown(problem.task_id)} is there twice; put all its samples in one entry")
            seen.add(problem.task_id)
        for who in ("base", "best"):
            num_given = sum(getattr(problem, who) is not None for problem in self.problems)
            if num_given not in (0, len(self.problems)):
                raise ValueError(f"{who} is given for {num_given} of {len(self.problems)} problems; give all or none")
        if self.num_planned is not None and self.num_planned < len(self.problems):
            raise ValueError(f"{len(self.problems)} problems are there but num_planned is {self.num_planned}")
        return self

    @model_validator(mode="after")
    def _comparable(self) -> SplitEvidence:
        given = self.conditions or {}
        for who, conditions in given.items():
            candidate = given.get("candidate", conditions)
            for key in sorted({*conditions, *candidate}):
                if who != "base" and candidate.get(key) != conditions.get(key):
                    raise ValueError(
                        f"suite {shown(self.suite)}: candidate and {who} differ in {shown(key)}: "
                        f"{shown(candidate.get(key))} and {shown(conditions.get(key))}; only what was measured alike can be "
                        "compared"
                    )
        return self

    @property
    def complete(self) -> bool:
        """Whether all problems of the split are in."""
        return self.num_planned is None or len(self.problems) == self.num_planned

    @property
    def sequential(self) -> bool:
        """Whether the gates may be asked before all problems are in, so that a fixed test would be wrong."""
        return (self.num_looks or 1) > 1 or not self.complete


class SinceBase(_Frozen):
    """One signal of candidate and base on the problems that both answered, with equally many samples of each: over problems."""

    candidate: Signal = Field(description="The candidate's mean.")
    base: Signal = Field(description="The base's mean.")
    candidate_variance: NotNegative = Field(description="The variance of the candidate's values.")
    base_variance: NotNegative = Field(description="The variance of the base's.")
    covariance: Signal = Field(description="The covariance of the two.")
    num_problems: Annotated[int, Field(ge=2, le=1_000_000, strict=True)] = Field(description="How many problems.")


class Line(_Frozen):
    """Where a round stands in a line of carried rounds; `policies.line` says what that is."""

    depth: Count = Field(description="How many rounds were carried since the head.")
    num_failed: Count = Field(description="How many lines of the run ended back at their head.")
    left: Given[Annotated[float, Field(ge=0.0, le=1.0)]] = Field(
        None, description="The share of alpha that was left when the line began; absent: by the lines that failed."
    )
    num_looks: Given[Count] = Field(
        None, description="How often the line was looked at before; absent: in every round."
    )
    next_look: Given[Count] = Field(
        None, description="At which of its rounds, from 1, the line is looked at next; absent: at this one."
    )
    last: bool = Field(
        False, strict=True, description="Whether no round follows in the line: a look with more samples."
    )

    closing: Given[Annotated[bool, Field(strict=True)]] = Field(
        None,
        description="Whether the tip may be shown where the line ends: every gate that asks for no gain has passed it.",
    )

    @property
    def look(self) -> bool:
        """Whether this candidate is looked at."""
        return self.last or self.next_look is None or self.next_look <= self.depth + 1


class Evidence(_Frozen):
    """All that the policies of one round may look at."""

    round: Count = Field(description="The round that is decided.")
    rounds_so_far: Count = Field(description="Rounds decided before it.")
    splits: dict[str, SplitEvidence] = Field(min_length=1, description="By name: select, confirm, canaries.")
    signals: dict[Who, dict[str, Signal | None]] = Field(
        default_factory=dict, description="Entropy, mean length, losses and the like; null where not measured."
    )
    decoding: Given[dict[str, JsonValue]] = Field(
        None, description="How the samples were drawn; stated beside every figure."
    )
    draw: Given[Count] = Field(
        None,
        description="What the order of the problems derives from; absent: the round. The same for all of one head.",
    )
    fruitless_looks: Given[dict[str, Count]] = Field(
        None,
        description="How often each split was looked at by earlier rounds that were then not kept; absent: every round.",
    )
    best_round: Given[Count] = Field(None, description="The best kept round, 0 for the base; absent: the head.")
    since_base: Given[dict[str, SinceBase]] = Field(
        None, description="By signal, candidate and base compared problem by problem, on the split of every round."
    )
    line: Given[Line] = Field(None, description="The line that the candidate continues, where decide.unclear is carry.")

    @model_validator(mode="after")
    def _disjoint(self) -> Evidence:
        seen: dict[tuple[str, str], str] = {}
        for name in DISJOINT:
            for problem in self.splits[name].problems if name in self.splits else ():
                other = seen.setdefault((self.splits[name].suite, problem.task_id), name)
                if other != name:
                    raise ValueError(
                        f"task {shown(problem.task_id)} is in the splits {other} and {name}; a problem belongs to one"
                    )
        return self

    def split(self, name: str) -> SplitEvidence:
        """The split of that name; BadEvidence if it was not evaluated."""
        if name not in self.splits:
            raise BadEvidence(f"splits: no split {shown(name)} (there: {', '.join(map(shown, sorted(self.splits)))})")
        return self.splits[name]

    def num_fruitless(self, name: str) -> int:
        """How many looks at the split have been spent. Where nobody counted, each round so far may have been one."""
        return self.rounds_so_far if self.fruitless_looks is None else self.fruitless_looks.get(name, 0)


def read_evidence(source: str | bytes | dict[str, Any]) -> Evidence:
    """Evidence from JSON text or from its dict; BadEvidence, in one line, if it is wrong."""
    try:
        if isinstance(source, (str, bytes)):
            return Evidence.model_validate_json(source)
        return Evidence.model_validate(source)
    except ValidationError as error:
        path, problem = first_mistake(error)
        raise BadEvidence(f"{dotted(path)}: {problem}" if path else problem) from None
