"""What the tests of the report share: facts of a run and of an experiment, and hostile text."""

import functools
from pathlib import Path
from typing import Any

from loop.config.place import Place
from loop.report.facts import run_facts
from tests.support.cli import finished_run

HOSTILE = (
    "</script></pre><script>window.broken = 1</script><img src=x onerror='window.broken = 2'>"
    "<!-- <script> ]]> &lt;b&gt; {{ 7 * 7 }} \u202e desrever \u2066\u2069 \x1b[31mred\x1b[0m \u200b\u2028 \ud800 'quoted\""
)
ARMS = ("replace", "mix")


def place_of(directory: Path) -> Place:
    """Where the run of a directory lies."""
    return Place(directory / "loop.toml", directory / ".loop", "small", 2)


def facts_of(directory: Path) -> dict[str, Any]:
    """The facts of its page."""
    return run_facts(place_of(directory))


@functools.cache
def run_of_the_tests() -> dict[str, Any]:
    """The facts of the finished run that tests share."""
    return facts_of(finished_run()[0])


def experiment() -> dict[str, Any]:
    """Facts of an experiment, made up: two arms, three seeds, four rounds."""
    lines: list[dict[str, Any]] = []
    for arm, slope in zip(ARMS, (0.01, 0.02), strict=True):
        for number in range(5):
            change = slope * number
            lines.append(
                {"arm": arm, "round": number, "num_seeds": 3, "pass@1": 0.4 + change, "pass@1_interval": [0.36 + change, 0.44 + change],
                 "pass@k": {"1": 0.4 + change, "4": 0.6}, "change": change, "change_interval": [change - 0.01, change + 0.01],
                 "change_by_seed": [change] * 3, "num_kept": number / 2, "distinct_rate": 0.8 - change, "mean_tokens": 40.0, "spread": 0.3}
            )  # fmt: skip
    words = "mix beats replace at round 4 by 4.0pp, 95% interval 0.4 to 7.6"
    compared = {
        "ours": "mix",
        "theirs": "replace",
        "round": 4,
        "change": 0.04,
        "interval": [0.004, 0.076],
        "level": 0.95,
    }
    return {
        "kind": "experiment", "version": "0", "name": "data", "as_of": "2026-01-01T00:00:00.000000Z", "directory": "/data",
        "arms": [{"name": arm, "overrides": {"collect.data": {"type": arm}}} for arm in ARMS], "seeds": [1, 2, 3], "rounds": 4,
        "suite": "ones", "decoding": {"temperature": 0.7, "top_p": 0.95}, "lines": lines, "comparisons": [compared | {"words": words}],
        "num_comparisons": 1, "correction": "One comparison; nothing to correct.",
        "runs": [{"arm": arm, "seed": seed, "state": "idle", "rounds_done": 4, "rounds": 4, "run_dir": f"data/{arm}/seed-{seed}",
                  "error": None, "reason": None, "spent_s": {"sampling": 3.0, "training": 60.0}} for arm in ARMS for seed in (1, 2, 3)],
        "state": "done", "shared": [{"stage": "sampling", "what": "512 completions", "round": 1, "ran_in": {"arm": "replace", "seed": 1}, "used_by": [{"arm": "mix", "seed": 1}]}],
    }  # fmt: skip
