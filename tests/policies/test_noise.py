"""What an evaluation can see, as tables and against simulation; and limits with room for noise."""

import itertools
import random

import pytest

from policies.gates.collapse import DEFAULTS, Limit
from policies.noise import (
    PRIOR_VARIANCE,
    SignalNoise,
    detectable_gain,
    problems_needed,
    roomy_limits,
    samples_needed,
    signal_noise,
    variance_between,
    variance_from,
    variance_within,
)
from policies.statistics import smallest_detectable_gain


def two_measurements(num_problems: int, num_samples: int, seed: int) -> tuple[list[list[int]], list[list[int]], float]:
    """One checkpoint twice, and the mean of p (1 - p) that is true."""
    draw = random.Random(seed)
    chances = [draw.betavariate(0.5, 0.5) for _ in range(num_problems)]
    first, second = ([[int(draw.random() < p) for _ in range(num_samples)] for p in chances] for _ in range(2))
    return first, second, sum(p * (1 - p) for p in chances) / num_problems


@pytest.mark.parametrize("num_samples", [1, 4, 10])
def test_both_estimates_find_the_variance(num_samples: int) -> None:
    first, second, true = two_measurements(4000, num_samples, 1)
    differences = [(sum(a) - sum(b)) / num_samples for a, b in zip(first, second, strict=True)]
    assert variance_within([a + b for a, b in zip(first, second, strict=True)]) == pytest.approx(true, rel=0.06)
    assert variance_between(differences, num_samples) == pytest.approx(true, rel=0.12)
    ours = detectable_gain(true, 4000, num_samples, 0.05, 0.8)
    assert smallest_detectable_gain(differences, 0.05, 0.8) == pytest.approx(ours, rel=0.06)


@pytest.mark.parametrize(
    ("problems", "samples", "gain"), [(131, 1, 0.096), (131, 10, 0.03), (374, 1, 0.057), (374, 10, 0.018), (1000, 1, 0.035)]
)  # fmt: skip
def test_the_guess_gives_the_known_table(problems: int, samples: int, gain: float) -> None:
    """Simulated before: U-shaped difficulties, one-sided 5%, 80% power; there the gain differs between problems, too."""
    assert detectable_gain(PRIOR_VARIANCE, problems, samples, 0.05, 0.8) == pytest.approx(gain, abs=0.002)


def test_what_is_needed_is_what_detects() -> None:
    for gain, at in itertools.product((0.01, 0.03, 0.2), ((0.05, 0.8), (0.025, 0.8), (0.001, 0.9))):
        problems = problems_needed(0.1, 4, gain, *at)
        assert detectable_gain(0.1, problems, 4, *at) <= gain + 1e-12
        assert problems <= 10 or detectable_gain(0.1, problems - 1, 4, *at) > gain
        samples = samples_needed(0.1, 131, gain, *at)
        assert samples is not None and detectable_gain(0.1, 131, samples, *at) <= gain + 1e-12
        assert samples == 1 or detectable_gain(0.1, 131, samples - 1, *at) > gain
        uneven = problems_needed(0.1, 4, gain, *at, 0.012)
        assert uneven >= problems and detectable_gain(0.1, uneven, 4, *at, 0.012) <= gain + 1e-12
        assert uneven <= 10 or detectable_gain(0.1, uneven - 1, 4, *at, 0.012) > gain
        more = samples_needed(0.1, 131, gain, *at, 0.012)
        assert more is None or detectable_gain(0.1, 131, more, *at, 0.012) <= gain + 1e-12
        assert (more is None) == (detectable_gain(0.1, 131, 10**9, *at, 0.012) > gain)
    assert variance_from(detectable_gain(0.1, 131, 4, 0.05, 0.8), 131, 4, 0.05, 0.8) == pytest.approx(0.1)


def test_too_few_problems_see_nothing() -> None:
    assert detectable_gain(0.1, 4, 1000, 0.05, 0.8) == 1.0
    assert samples_needed(0.1, 4, 0.5, 0.05, 0.8) is None
    assert detectable_gain(0.0, 100, 1, 0.05, 0.8) == 0.05, "five problems must differ"
    for wrong in ([], [[1]], [[1, 0], [1]]):
        with pytest.raises(ValueError):
            variance_within(wrong)


def test_limits_are_widened_and_never_narrowed() -> None:
    quiet = {name: SignalNoise(0.5, 1e-6) for name in DEFAULTS}
    assert roomy_limits(DEFAULTS, quiet) == DEFAULTS
    loud = {"mean_length": SignalNoise(100.0, 20.0), "code_rate": SignalNoise(0.9, 0.05), "unknown": SignalNoise(1, 1)}
    limits = roomy_limits(DEFAULTS, loud)
    assert limits.keys() == {"mean_length", "code_rate"}
    assert limits["mean_length"] == Limit(min_of_head=0.2, max_of_head=1.8, min_of_base=0.2, max_of_base=2.5)
    assert limits["code_rate"] == Limit(max_fall=0.2)
    assert roomy_limits(DEFAULTS, {"spread": SignalNoise(0.01, 0.5)})["spread"].min_of_head == 0.0
    assert roomy_limits(DEFAULTS, {"spread": SignalNoise(0.0, 0.0)})["spread"] == DEFAULTS["spread"]


def test_the_noise_of_a_signal() -> None:
    noise = signal_noise([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (noise.value, noise.sd) == (2.0, 0.0)
    assert signal_noise([1.0, 0.0], [0.0, 1.0]) == SignalNoise(0.5, pytest.approx(1.0))  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        signal_noise([1.0], [1.0])
