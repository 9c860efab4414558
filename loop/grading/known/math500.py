"""MATH-500 (Lightman et al., 2023, arXiv 2305.20050): 500 of the test problems of MATH (Hendrycks et al., 2021)."""

from loop.grading.known.benchmark import Benchmark, Harness, chat, on_hub

BENCHMARK = Benchmark(
    name="math500",
    about="MATH-500, 500 problems, MIT",
    files=(
        on_hub(
            "HuggingFaceH4/MATH-500",
            "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
            "test.jsonl",
            "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132",
        ),
    ),
    harnesses={
        "qwen": Harness(  # qwen25-math-cot of Qwen2.5-Math's evaluation
            asks=lambda row, problem: chat(
                row["problem"], system="Please reason step by step, and put your final answer within \\boxed{}."
            ),
            decoding={"greedy": True, "max_new_tokens": 2048},
        )
    },
)
