"""GSM8K (Cobbe et al., 2021, arXiv 2110.14168): word problems of grade school, answered by a number."""

from collections.abc import Iterable, Iterator

from loop.grading.known.benchmark import Benchmark, Harness, PlacedRow, chat, on_hub


def _rows(rows: Iterable[PlacedRow]) -> Iterator[PlacedRow]:
    for number, (line, row) in enumerate(rows):
        yield line, {"task_id": f"gsm8k/{number}", **row}


BENCHMARK = Benchmark(
    name="gsm8k",
    about="GSM8K, 1,319 test problems, October 2021, MIT",
    files=(
        on_hub(
            "openai/gsm8k",
            "740312add88f781978c0658806c59bc2815b9866",
            "main/test-00000-of-00001.parquet",
            "ee7b8da9e381df27b9e3f7758a159ab2bdaa4dbaa910546cbbc47e0cb44e4f59",
        ),
    ),
    rows=_rows,
    harnesses={
        "lm-eval": Harness(  # gsm8k_cot_zeroshot with --apply_chat_template
            asks=lambda row, problem: chat(f"Q: {row['question']}\nA: Let's think step by step."),
            decoding={"greedy": True, "stop": ("Q:", "</s>", "<|im_end|>")},
        )
    },
)
