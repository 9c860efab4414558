"""Which gain the configured evaluation can see, by what is known of its noise, and what would let it see more; said at a start.

Two things hide a gain: chance within problems, which `aa` measures, and that one fine-tune moves each problem by itself
(policies.line.CHURN_VARIANCE), which more samples do not help against. Where rounds are carried, gains add up along a line,
so what one look cannot see a later look may.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from loop.run.adapting import goal_of, line_of
from loop.run.session import Session
from policies.evidence import Line
from policies.gates import Improvement, Look
from policies.gates.base import percent
from policies.gates.improvement import FINAL, SCREEN_FINAL
from policies.line import CHURN_VARIANCE, continued
from policies.noise import PRIOR_VARIANCE, detectable_gain, problems_needed, samples_needed, variance_from

AA_MEASURED = "aa_measured"
DETECTED = ("num_problems", "num_samples", "smallest_detectable_gain", "level")  # figures that older decisions lack
MOST_SAMPLES = 20  # of one problem; beyond that, more problems are the better remedy
MOST_REMEDIES = 3
WORTH_NAMING = 0.95  # a remedy leaves at most this share of the gain that is seen without it


@dataclass(frozen=True, slots=True)
class PlannedLook:
    """One look of the improvement gate as it would be now: how much is measured, and at which level of error."""

    gate: Improvement
    split: str
    level: float
    num_problems: int
    num_samples: int
    final: float = 1.0  # the share of the level that is left for all problems together; the rest goes to looks in parts

    @property
    def wanted(self) -> float:
        """The gain over `min_gain` that is asked for."""
        return self.gate.target - self.gate.min_gain

    def detects(self, variance: float, num_rounds: int = 1) -> float:
        """The gain over `min_gain` that this look detects, if it came about in so many rounds."""
        churn = num_rounds * CHURN_VARIANCE
        return detectable_gain(variance, self.num_problems, self.num_samples, *self._at, churn)

    def problems_needed(self, variance: float) -> int:
        """How many problems would find what is wanted."""
        return problems_needed(variance, self.num_samples, self.wanted, *self._at, CHURN_VARIANCE)

    def samples_needed(self, variance: float) -> int | None:
        """How many samples of each problem would; None if no number does."""
        return samples_needed(variance, self.num_problems, self.wanted, *self._at, CHURN_VARIANCE)

    @property
    def _at(self) -> tuple[float, float]:
        return self.level * self.final, self.gate.power


def planned_looks(session: Session, line: Line | None = None) -> list[PlannedLook]:
    """The looks of a round: at the split of every round, then at the one that confirms. Empty without such a gate.

    `line`: where the round stands in a line; the next round, if it is not said.
    """
    policy, suite, decide = session.policy, session.decider, session.loaded.config.decide
    gate = next((gate for gate in policy.gates if isinstance(gate, Improvement)), None)
    if gate is None:
        return []
    line = line or line_of(session)  # whose next look may come later
    looks = [Look(policy.split, policy.confirm is not None, line)]
    looks += [Look(policy.confirm, line=line)] if policy.confirm is not None else []
    more = decide.last_samples if line is not None and line.last and line.depth else 1
    return [
        PlannedLook(
            gate,
            look.split,
            gate.level(session.fruitless_looks().get(look.split, 0), look),
            len(suite.of_split(look.split)),
            suite.config.num_samples * more,
            1.0 if decide.looks == 1 else SCREEN_FINAL if look.screening else FINAL,
        )
        for look in looks
    ]


def known_variance(session: Session, gate: Improvement) -> tuple[float, str] | None:
    """The variance within problems, and where it is from unless `aa` has measured it, in words. None: nothing is known."""
    measured = session.ledger.events.last_of(session.run_id, AA_MEASURED)
    if measured is not None and measured.data.get("metric") == gate.metric:
        return float(measured.data["variance_within"]), ""
    decided = session.ledger.last_decision(session.run_id)
    for result in decided.gates if decided else ():
        figures = result.get("figures") or {}
        num_problems, num_samples, detectable, level = (figures.get(key) or 0 for key in DETECTED)
        is_this_gate = (result.get("type"), figures.get("metric")) == (gate.type, gate.metric)
        if is_this_gate and min(num_problems, num_samples, level) > 0 and 0 < detectable < 1:
            variance = variance_from(detectable, num_problems, num_samples, level, gate.power)
            num_rounds = (decided.evidence.get("line") or {}).get("depth", 0) + 1 if decided else 1
            moved = num_rounds * CHURN_VARIANCE * num_samples / 2  # which those differences held as well
            return max(variance - moved, 0.2 * variance), ", by the last decision's figures"
    if gate.metric != "pass@1" or session.decider.config.greedy:
        return None  # of these nothing is known beforehand
    return PRIOR_VARIANCE, ", by a guess (`loopctl aa` measures it)"


def coarseness_warning(session: Session) -> str | None:
    """A warning in one line if the evaluation would mostly miss the gain that it is asked for; else None."""
    looks = planned_looks(session)
    if not looks or (estimate := known_variance(session, looks[0].gate)) is None:
        return None
    variance, by = estimate
    worst = max(looks, key=lambda look: look.detects(variance) - look.wanted)
    gain, gate = worst.detects(variance), worst.gate
    if gain <= worst.wanted:
        return None
    where = f"{worst.split}: " if len(looks) > 1 else ""
    return (
        f"the evaluation ({where}{worst.num_problems:,} problems x {worst.num_samples} samples) detects a gain of "
        f"{gate.min_gain + gain:.3f} with {percent(gate.power)} power{by}; target_gain is {gate.target:g}: "
        f"{what_follows(session, variance)}; {remedy(session, worst, variance)}; "
        "`loopctl simulate` plays whole runs under these settings"
    )


def what_follows(session: Session, variance: float) -> str:
    """What becomes of rounds with the gain that is asked for, where one look mostly misses it."""
    missed = "a gain of that size would mostly be missed"
    if session.policy.unclear != "carry":
        return missed
    num_rounds, last = rounds_until_shown(session, variance)
    if num_rounds is None and last == 1:
        return f"{missed}, and no round follows"
    if num_rounds is None:
        return f"even {last} such rounds, carried, would mostly not add up to what a look shows"
    return f"about {num_rounds} such rounds, carried, add up to what a look shows"


def rounds_until_shown(session: Session, variance: float) -> tuple[int | None, int]:
    """How many rounds of a line, each with the gain that is asked for, a look shows together; and how long the line may get.

    The looks are those that the line plans, each at its own level; None where not even the last one shows it.
    """
    line, goal, num_decided = line_of(session), goal_of(session), session.run.num_decided
    assert line is not None, "rounds are carried"
    while True:
        num_rounds = line.depth + 1
        if line.look and all(
            look.detects(variance, num_rounds) <= num_rounds * look.gate.target - look.gate.min_gain
            for look in planned_looks(session, line)
        ):
            return num_rounds, num_rounds
        if line.last:
            return None, num_rounds
        num_decided += 1
        ends = bool(goal) and num_decided + 1 >= goal
        line = continued(line, last=ends or num_rounds >= session.policy.max_carried)


def remedy(session: Session, look: PlannedLook, variance: float) -> str:
    """What would make a look see more, and how much each change would bring, the most helpful first."""
    now = look.detects(variance)
    changes = sorted(_changes(session, look, variance), key=lambda change: change[1])
    worth = [change for change in changes if change[1] <= WORTH_NAMING * now] or changes[:1]
    named = [f"{look.gate.min_gain + gain:.3f} {what}" for what, gain in worth]
    added_up = 'the gains of several rounds together with decide.unclear = "carry"'
    carry = [] if session.policy.unclear == "carry" else [added_up]
    return f"a new run would see {', '.join([*carry, *named][:MOST_REMEDIES])}"


def _changes(session: Session, look: PlannedLook, variance: float) -> Iterator[tuple[str, float]]:
    """Each change in words, what costs least first, and the gain over `min_gain` that a look would then detect."""
    policy, suite = session.policy, session.decider
    if policy.confirm is not None:
        looks = planned_looks(session)
        joined = replace(looks[-1], num_problems=sum(each.num_problems for each in looks))
        yield "without the confirm split", joined.detects(variance)
    if look.final < 1.0:
        yield "with looks = 1", replace(look, final=1.0).detects(variance)
    num_samples = min(look.samples_needed(variance) or MOST_SAMPLES, MOST_SAMPLES)
    if num_samples > look.num_samples and not suite.config.greedy:
        yield f"with {num_samples} samples of each", replace(look, num_samples=num_samples).detects(variance)
    num_problems = _in_two_digits(look.problems_needed(variance))
    where = f" in {look.split}" if policy.confirm is not None else ""
    yield f"with {num_problems:,} problems{where}", replace(look, num_problems=num_problems).detects(variance)


def _in_two_digits(number: int) -> int:
    """The number rounded up, so that nobody takes it for exact."""
    unit: int = 10 ** max(0, int(math.log10(number)) - 1)
    return math.ceil(number / unit) * unit
