"""HumanEval (Chen et al., 2021, arXiv 2107.03374): a function's head and docstring, to be continued."""

from loop.grading.known.benchmark import Benchmark, File, Harness, bare

BENCHMARK = Benchmark(
    name="humaneval",
    about="HumanEval, 164 problems, July 2021, MIT",
    files=(
        File(
            "HumanEval.jsonl.gz",
            "https://github.com/openai/human-eval/raw/master/data/HumanEval.jsonl.gz",
            "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
        ),
    ),
    harnesses={
        "openai": Harness(
            asks=lambda row, problem: bare(row["prompt"]),
            decoding={
                "temperature": 0.2,
                "top_p": 0.95,
                "num_samples": 200,
                "pass_at": (1,),
                "stop": ("\nclass", "\ndef", "\n#", "\nif", "\nprint"),
            },
        )
    },
)
