"""One result: what a harness says of one model on one suite, whichever harness it was.

Outcomes are 0 or 1 for each sample, or, where a harness grades in shades or keeps only a problem's mean, a score between.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from loop.errors import LoopError
from loop.words import safe, shown
from store.records import Json


class Problem(NamedTuple):
    """One problem: what each sample was graded, in sample order, and what the file says of the problem itself.

    `outcomes` are as the file has them: `Results.scored` refuses what is no score. `content` and `prompt`: hashes of the problem and of the text that the model was given, where the file tells.
    """

    outcomes: tuple[Any, ...]
    difficulty: str | None = None
    date: str | None = None
    content: str | None = None
    prompt: str | None = None

    @property
    def rate(self) -> Fraction:
        """The mean of the outcomes, exactly."""
        return sum(map(Fraction, self.outcomes), Fraction()) / len(self.outcomes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """One model on one suite by one metric.

    `metric`: the harness's own name of what the outcomes are. `decoding`, `conditions`: how answers were sampled, and what else
    must be alike, as far as the file says. `notes`: what a reader of the figures has to know.
    """

    file: Path
    harness: str
    suite: str
    metric: str
    problems: Mapping[str, Problem]
    model: str | None = None
    decoding: Json = field(default_factory=dict)
    conditions: Json = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def num_samples(self) -> tuple[int, int]:
        """The fewest and the most samples of a problem."""
        counts = [len(problem.outcomes) for problem in self.problems.values()]
        return min(counts), max(counts)

    def scored(self) -> Results:
        """Itself. LoopError if an outcome is no number between 0 and 1."""
        for id, problem in self.problems.items():
            if odd := [outcome for outcome in problem.outcomes if not is_score(outcome)]:
                raise LoopError(
                    f"{safe(self.file)}: {safe(self.metric)} of problem {shown(id)} is {shown(odd[0])}, which does not lie between 0 "
                    "and 1; name another metric with --metric"
                )
        return self

    @property
    def graded_0_or_1(self) -> bool:
        """Whether every sample was right or wrong, so that pass@k has a meaning."""
        return all(outcome in (0, 1) for problem in self.problems.values() for outcome in problem.outcomes)


def is_score(value: Any) -> bool:
    """Whether this is a number between 0 and 1."""
    return isinstance(value, bool | int | float) and 0 <= value <= 1


def of_mean(value: Any, num_samples: int) -> tuple[Any, ...]:
    """The outcomes behind a mean of so many: 0s and 1s in no particular order where these give it, else the mean alone."""
    if not is_score(value) or num_samples < 1 or abs(round(value * num_samples) - value * num_samples) > 1e-6:
        return (value,)
    num_right: int = round(value * num_samples)
    return (1,) * num_right + (0,) * (num_samples - num_right)


def hash_of(value: Any) -> str:
    """A hash of a text or of a JSON value."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def text_of(row: Any, *keys: str) -> str | None:
    """The first of these keys that holds a text or a number, as one short text."""
    values = (row.get(key) for key in keys) if isinstance(row, dict) else ()
    return next((str(value)[:80] for value in values if isinstance(value, str | int | float) and value != ""), None)


def difficulty_of(row: Any) -> str | None:
    """What a row of a data set calls its difficulty."""
    return text_of(row, "difficulty", "level")


def date_of(row: Any) -> str | None:
    """The day of a row of a data set."""
    date = text_of(row, "date", "contest_date", "release_date")
    return date[:10] if date and re.match(r"\d{4}-\d\d", date) else None


def said(settings: Any) -> Json:
    """The settings that are given, without those that are null."""
    return {key: value for key, value in settings.items() if value is not None} if isinstance(settings, dict) else {}


def without_ungraded(outcomes: Mapping[str, list[Any]], why: str) -> tuple[dict[str, tuple[Any, ...]], tuple[str, ...]]:
    """The outcomes without the samples that nobody graded (None), and a note that counts these; a problem without any is left out."""
    missing = sum(outcome is None for each in outcomes.values() for outcome in each)
    graded = {id: tuple(outcome for outcome in each if outcome is not None) for id, each in outcomes.items()}
    note = (f"{missing:,} samples were not graded ({why}) and are left out",) if missing else ()
    return {id: each for id, each in graded.items() if each}, note


def broken(file: Path, harness: str, what: str) -> LoopError:
    """The error for a file that a harness seems to have left, but not whole."""
    return LoopError(f"{safe(file)}: looks like a file of {harness}, but {what}; give the file as {harness} wrote it")
