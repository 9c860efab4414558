"""docs/recipes.md and docs/publishing.md: every block is a configuration that is accepted, every figure what its formula gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.estimate import docs
from loop.config.loading import load_config
from loop.inputs import read_inputs
from tests.support import ROOT

TEXT = (ROOT / "docs/recipes.md").read_text()
BLOCKS = re.findall(r"```toml\n(.*?\n)```\n", TEXT, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: re.search(r'name = "(.*?)"', block)[1])
def test_every_recipe_is_accepted(block: str, tmp_path: Path) -> None:
    (tmp_path / "loop.toml").write_text(block)
    read_inputs(load_config(tmp_path / "loop.toml"), fetch=False)


def test_there_is_one_for_each_heading() -> None:
    names = [re.search(r'name = "(.*?)"', block)[1] for block in BLOCKS]  # type: ignore[index]
    assert names == ["small-cpu", "qwen3-4b-lora", "qwen3-4b-full", "many-rounds"]


def rows(after: str) -> list[list[str]]:
    """The cells of the first table below a text."""
    lines = TEXT[TEXT.index(after) :].split("\n\n", 2)[1].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_memory_tables_are_what_the_formula_gives() -> None:
    for table in docs().split("\n\n"):
        assert f"\n\n{table}\n\n" in TEXT, "run `python bench/estimate.py --docs`"


def test_the_papers_table_is_that_of_the_recipes() -> None:
    table = rows("sequences of 65,536 tokens.")
    assert len(table) == 6
    for row in table:
        config = load_config(ROOT / "recipes" / row[1].strip("`")).config
        top_k = "none" if config.sampling.top_k == 0 else str(config.sampling.top_k)
        steps = f"{config.training.num_steps:,} ({config.training.warmup_steps})"
        told = (float(row[2]), row[3], float(row[4]), float(row[5]), row[6])
        sampling, top_p = config.sampling, float(f"{config.sampling.top_p:.2g}")
        assert told == (sampling.temperature, top_k, top_p, config.suites[0].temperature, steps)
