"""Which gain the configured evaluation can see, by what is known of its noise; and the line that says so at a start."""

from __future__ import annotations

from dataclasses import dataclass

from loop.run.adapting import line_of
from loop.run.session import Session
from policies.gates import Improvement, Look
from policies.gates.base import percent
from policies.noise import PRIOR_VARIANCE, detectable_gain, problems_needed, samples_needed, variance_from

AA_MEASURED = "aa_measured"
DETECTED = ("num_problems", "num_samples", "smallest_detectable_gain", "level")  # figures that older decisions lack
MOST_SAMPLES = 20  # of one problem; beyond that, more problems are the better remedy


@dataclass(frozen=True, slots=True)
class PlannedLook:
    """One look of the improvement gate as it would be now: how much is measured, and at which level of error."""

    gate: Improvement
    split: str
    level: float
    num_problems: int
    num_samples: int

    @property
    def wanted(self) -> float:
        """The gain over `min_gain` that is asked for."""
        return self.gate.target - self.gate.min_gain

    def detects(self, variance: float, num_problems: int | None = None, num_samples: int | None = None) -> float:
        """The gain over `min_gain` that this look detects, with other sizes if given."""
        return detectable_gain(
            variance, num_problems or self.num_problems, num_samples or self.num_samples, self.level, self.gate.power
        )

    def problems_needed(self, variance: float) -> int:
        """How many problems would find what is wanted."""
        return problems_needed(variance, self.num_samples, self.wanted, self.level, self.gate.power)

    def samples_needed(self, variance: float) -> int | None:
        """How many samples of each problem would; None if no number does."""
        return samples_needed(variance, self.num_problems, self.wanted, self.level, self.gate.power)


def planned_looks(session: Session) -> list[PlannedLook]:
    """The looks of a round: at the split of every round, then at the one that confirms. Empty without such a gate."""
    policy, suite = session.policy, session.decider
    gate = next((gate for gate in policy.gates if isinstance(gate, Improvement)), None)
    if gate is None:
        return []
    line = line_of(session)  # whose next look may come later
    looks = [Look(policy.split, policy.confirm is not None, line)]
    looks += [Look(policy.confirm, line=line)] if policy.confirm is not None else []
    return [
        PlannedLook(
            gate,
            look.split,
            gate.level(session.fruitless_looks().get(look.split, 0), look),
            len(suite.of_split(look.split)),
            suite.config.num_samples,
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
            return variance, ", by the last decision's figures"
    if gate.metric != "pass@1" or session.decider.config.greedy:
        return None  # of these nothing is known beforehand
    return PRIOR_VARIANCE, ", by a guess before anything was measured: `loopctl aa` measures it"


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
        f"the evaluation ({where}{worst.num_problems} problems x {worst.num_samples} samples) detects a gain of "
        f"{gate.min_gain + gain:.3f} with {percent(gate.power)} power{by}; target_gain is {gate.target:g}: "
        f"a gain of that size would mostly be missed; {remedy(worst, variance)}"
    )


def remedy(look: PlannedLook, variance: float) -> str:
    """What would make an evaluation see the gain that is asked for."""
    samples = look.samples_needed(variance)
    more = f"about {look.problems_needed(variance):,} problems"
    if samples is not None and look.num_samples < samples <= MOST_SAMPLES:
        more += f" or {samples} samples of each of these"
    return f"it takes {more}, or a larger target_gain"
