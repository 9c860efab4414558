"""IFEval (Zhou et al., 2023, arXiv 2311.07911): prompts with instructions that a rule can check."""

from collections.abc import Iterable, Iterator

from loop.grading.formats.ifeval import NEEDS
from loop.grading.known.benchmark import Benchmark, Harness, PlacedRow, chat, on_hub


def _rows(rows: Iterable[PlacedRow]) -> Iterator[PlacedRow]:
    """The prompts all of whose instructions can be checked here."""
    for line, row in rows:
        names = row.get("instruction_id_list")
        if not isinstance(names, list) or not NEEDS.keys() & {name for name in names if isinstance(name, str)}:
            yield line, row


BENCHMARK = Benchmark(
    name="ifeval",
    about=f"IFEval, those of its 541 prompts that do not ask for {', '.join(sorted(NEEDS))}, November 2023, Apache-2.0",
    files=(
        on_hub(
            "google/IFEval",
            "966cd89545d6b6acfd7638bc708b98261ca58e84",
            "ifeval_input_data.jsonl",
            "6a85310ca8ce15eff755aa08a3a4ff931c7e273e7515ebb3c492ea85fd8288f2",
        ),
    ),
    rows=_rows,
    harnesses={
        "lm-eval": Harness(
            asks=lambda row, problem: chat(row["prompt"]), decoding={"greedy": True, "max_new_tokens": 1280}
        )
    },
)
