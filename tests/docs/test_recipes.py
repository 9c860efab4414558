"""docs/recipes.md and docs/publishing.md: every block is a configuration that is accepted, every figure what its formula gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from loop.config.loading import load_config
from loop.inputs import read_inputs
from tests.support import ROOT

TEXT = (ROOT / "docs/recipes.md").read_text()
BLOCKS = re.findall(r"```toml\n(.*?\n)```\n", TEXT, re.DOTALL)

# parameters (billions), layers, hidden size, feed-forward size in use, vocabulary, key-value heads times their size
MODELS = {
    "SmolLM2-135M": (0.1345, 30, 576, 1536, 49152, 3 * 64),
    "Qwen3-4B": (4.02, 36, 2560, 9728, 151936, 8 * 128),
    "Llama-3.1-8B": (8.03, 32, 4096, 14336, 128256, 8 * 128),
    "GPT-OSS-20B": (20.9, 24, 2880, 4 * 2880, 201088, 8 * 64),
    "Qwen3-30B-A3B": (30.5, 48, 2048, 8 * 768, 151936, 4 * 128),
}
TOKENS = 4096


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


@pytest.mark.parametrize("row", rows("From the formula, in GB, T = 4,096:"), ids=lambda row: row[0])
def test_the_memory_table_is_what_the_formula_gives(row: list[str]) -> None:
    billions, layers, hidden, inside, vocabulary, heads = MODELS[row[0]]
    expected = [
        billions, 2 * billions, 2 * layers * heads * 2 / 1e3, 16 * billions, 4 * billions, 4 * layers * TOKENS * hidden / 1e9,
        4 * TOKENS * (12 * hidden + 4 * inside) / 1e9, 12 * TOKENS * vocabulary / 1e9,
    ]  # fmt: skip
    for cell, value in zip(row[1:], expected, strict=True):
        digits = len(cell.partition(".")[2])
        assert float(cell) == pytest.approx(value, abs=0.51 * 10**-digits), (row[0], cell, value)


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


def test_the_measured_example_of_the_formula() -> None:
    billions, layers, hidden, inside, vocabulary, _ = MODELS["SmolLM2-135M"]
    tokens = 8 * 256
    fixed = 16 * billions + (4 * layers * tokens * hidden + 12 * tokens * vocabulary) / 1e9
    layer = 4 * tokens * (12 * hidden + 4 * inside) / 1e9
    assert (round(fixed + layers * layer, 1), round(fixed + layer, 1)) == (6.7, 3.6)
    assert "the formula gives 6.7" in TEXT and "the formula: 3.6" in TEXT
