"""The loop.toml of a run on a repository: the shipped one, with its prompts, its suite and sizes that suit their number."""

from __future__ import annotations

import re
from typing import Any

from policies.line import CHURN_VARIANCE
from policies.noise import PRIOR_VARIANCE, detectable_gain

NUM_SAMPLES = 4
MOST_PER_ROUND = 256
MAX_NEW_TOKENS = 256
_ENOUGH_GROUPS = 9
"""From so many groups of files on, parts of the suite are set aside to confirm and for the end."""


def toml_for(shipped: str, facts: dict[str, Any]) -> str:
    """The shipped loop.toml with the tables that a repository changes written anew; the rest stays, with its comments."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", facts["name"]).strip("-") or "repository"
    per_round = min(facts["num_prompts"], MOST_PER_ROUND)
    splits = (
        "{ select = 0.6, confirm = 0.2, final = 0.2 }" if facts["num_groups"] >= _ENOUGH_GROUPS else "{ select = 1.0 }"
    )
    text = _with(shipped, "name", f'"{name}"')
    text = _with(text, "source", '"suite/prompts.jsonl"', table="prompts")
    text = _with(text, "per_round", str(per_round), table="prompts")
    text = _with(text, "max_new_tokens", str(MAX_NEW_TOKENS), table="sampling")
    text = _with(text, "suite", '"repository"', table="decide")
    suites = f"""[[suites]]                # the repository's own functions, judged by its own tests
name = "repository"
source = "suite/problems.jsonl"
num_samples = {NUM_SAMPLES}           # completions of each problem in every round
temperature = 0.7
top_p = 0.95
max_new_tokens = {MAX_NEW_TOKENS}
stop = ["\\n```"]
splits = {splits}  # near copies and, in larger repositories, files stay together

[[suites]]                # a canary: what the model could do before, it should still do
name = "humaneval"
source = "humaneval"
temperature = 0.7
top_p = 0.95
max_new_tokens = 384
stop = ["\\n```"]
limit = 82
"""
    first = text.index("[[suites]]")
    rest = re.search(r"^\[(?!\[suites\]\])", text[first:], re.MULTILINE)
    return text[:first] + suites + ("\n" + text[first + rest.start() :] if rest else "")


def can_see(facts: dict[str, Any]) -> str:
    """The gain in one round that the suite's part for every round shows four times of five, before anything was measured."""
    share = 0.6 if facts["num_groups"] >= _ENOUGH_GROUPS else 1.0
    num = round(share * facts["num_problems"])
    if num < 2:
        return f"{facts['num_problems']} problems show nothing; take a larger repository, or --weak"
    gain = detectable_gain(PRIOR_VARIANCE, num, NUM_SAMPLES, 0.05, 0.8, CHURN_VARIANCE)
    return f"{num:,} problems with {NUM_SAMPLES} samples each show a gain of {100 * gain:.1f}pp in one round (80% of the time)"


def _with(text: str, key: str, value: str, table: str | None = None) -> str:
    """The text with another value for a key, in this table or before all tables; what stands behind it stays."""
    begin = re.search(rf"^\[{table}\]", text, re.MULTILINE).start() if table else 0  # type: ignore[union-attr]
    pattern = re.compile(rf"^{key} = (\"[^\"]*\"|[^\s#]+)", re.MULTILINE)
    found = pattern.search(text, begin)
    assert found is not None, key
    return text[: found.start()] + f"{key} = {value}" + text[found.end() :]
