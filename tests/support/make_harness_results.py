"""Writes tests/data/harnesses again: the results of two toy models, A and B, as the harnesses themselves leave them.

Not a test. `make harness-results` runs it in an environment of its own with the versions that VERSIONS names. Each harness is really
run, by its own command line or library, and what it printed stands beside its files in printed.json. A toy model's answer is
right or wrong by a hash, so that every call gives the same outcomes (dates and ids inside the files differ).
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

VERSIONS = {"evalplus": "0.3.1", "lm-eval": "0.4.13", "inspect-ai": "0.3.285", "lighteval": "0.13.0"}
HERE = Path(__file__).resolve().parent.parent / "data" / "harnesses"
SKILL = {"a": 0.45, "b": 0.65}
NUM_SUMS = 30
# Short problems of HumanEval+, so that the files stay small.
HUMANEVAL = (24, 25, 31, 36, 41, 46, 55, 59, 60, 63, 75, 84)


def right(model: str, task: object, sample: int) -> bool:
    """Whether the model's sample is right; tasks differ in difficulty, alike for both models."""
    drawn = [
        int(hashlib.sha256(f"{text} {task}".encode()).hexdigest()[:8], 16) / 2**32
        for text in (f"{model} {sample}", "task")
    ]
    return drawn[0] < SKILL[model] + 0.6 * (drawn[1] - 0.5)


def sums() -> list[dict[str, Any]]:
    """Problems: sums of two numbers."""
    return [
        {"name": f"sum-{number}", "question": f"{number} + {7 * number}", "answer": str(8 * number)}
        for number in range(NUM_SUMS)
    ]


def answer(model: str, row: dict[str, Any], sample: int = 0) -> str:
    """The model's answer to a sum."""
    return row["answer"] if right(model, row["name"], sample) else "I do not know."


# evalplus: its command line on samples of five answers each


def evalplus(out: Path, humaneval_plus: Path) -> None:
    with gzip.open(humaneval_plus, "rt") as file:
        problems = [row for line in file if int((row := json.loads(line))["task_id"].split("/")[1]) in HUMANEVAL]
    with tempfile.TemporaryDirectory() as scratch:
        chosen = Path(scratch) / "problems.jsonl"
        chosen.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
        for model in SKILL:
            samples = Path(scratch) / f"{model}.jsonl"
            samples.write_text("".join(json.dumps(row) + "\n" for row in _programs(model, problems)))
            words = [
                sys.executable,
                "-m",
                "evalplus.evaluate",
                "humaneval",
                "--samples",
                str(samples),
                "--parallel",
                "1",
            ]
            environment = os.environ | {"HUMANEVAL_OVERRIDE_PATH": str(chosen), "XDG_CACHE_HOME": scratch}
            done = subprocess.run(words, env=environment, check=True, capture_output=True, text=True)
            shutil.copy(Path(scratch) / f"{model}_eval_results.json", out / f"{model}_eval_results.json")
            printed(out, model, [line for line in done.stdout.splitlines() if "pass@" in line or "tests)" in line])


def _programs(model: str, problems: list[dict[str, Any]]) -> list[dict[str, str]]:
    rows = []
    for problem in problems:
        whole = problem["prompt"] + problem["canonical_solution"]
        knows = f"{whole}\n_right = {problem['entry_point']}\n_asked = {problem['base_input']!r}\n"
        only_base = (
            knows
            + f"def {problem['entry_point']}(*given):\n    return _right(*given) if list(given) in _asked else None\n"
        )
        for sample in range(5):
            solved, fully = right(model, problem["task_id"], sample), right(model, problem["task_id"], sample + 100)
            program = whole if solved and fully else only_base if solved else problem["prompt"] + "    return None\n"
            rows.append({"task_id": problem["task_id"], "solution": program})
    return rows


# lm-eval: its command line, with a model of our own


TASK = {
    "toy_sums": {
        "output_type": "generate_until",
        "doc_to_text": "What is {{question}}?",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "do_sample": True, "temperature": 0.7, "max_gen_toks": 16},
        "filter_list": [
            {"name": "strict", "filter": [{"function": "take_first"}]},
            {"name": "flexible", "filter": [{"function": "regex", "regex_pattern": "(-?[0-9]+)"}, {"function": "take_first"}]},
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
    "toy_choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "What is {{question}}?",
        "doc_to_target": 0,
        "doc_to_choice": "{{[answer, 'I do not know.']}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
}  # fmt: skip


def lm_eval(out: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "sums.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in sums()))
        for name, task in TASK.items():
            common = {
                "task": name,
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": str(data)}},
                "test_split": "test",
            }
            (Path(scratch) / f"{name}.yaml").write_text(json.dumps(common | task | {"metadata": {"version": 1.0}}))
        for model in SKILL:
            arguments = [
                "run",
                "--model",
                f"toy-{model}",
                "--model_args",
                f"pretrained=toy/{model}",
                "--tasks",
                ",".join(TASK),
            ]
            arguments += ["--include_path", scratch, "--output_path", scratch + "/out", "--log_samples"]
            words = [sys.executable, __file__, "lm-eval-itself", *arguments]
            environment = os.environ | {"HF_HOME": scratch, "HF_DATASETS_OFFLINE": "1"}
            done = subprocess.run(words, env=environment, check=True, capture_output=True, text=True, cwd=scratch)
            printed(out, model, [line for line in done.stdout.splitlines() if line.startswith("|")])
            (written,) = {file.parent for file in Path(scratch).glob("out/*/samples_*.jsonl")}
            for file in written.iterdir():
                keep(out / model / file.name, file, scratch)
            shutil.rmtree(scratch + "/out")


def lm_eval_itself(arguments: list[str]) -> None:
    """lm-eval's own command line, in a process that knows the toy models."""
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model

    rows = {f"What is {row['question']}?": row for row in sums()}

    def toy(model: str) -> None:
        @register_model(f"toy-{model}")
        class Toy(LM):  # type: ignore[misc]
            def __init__(self, pretrained: str = "", **_: Any) -> None:
                super().__init__()

            def generate_until(self, requests: list[Any]) -> list[str]:
                return [_spoken(answer(model, rows[each.args[0]]), rows[each.args[0]]) for each in requests]

            def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
                chosen = [answer(model, rows[each.args[0]]) == each.args[1].strip() for each in requests]
                return [(-1.0 if mine else -2.0, mine) for mine in chosen]

            def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
                raise NotImplementedError

    for model in SKILL:
        toy(model)
    sys.argv = ["lm-eval", *arguments]
    cli_evaluate()


def _spoken(text: str, row: dict[str, Any]) -> str:
    """Some right answers come with words around them, so that the two filters differ."""
    return f"It is {text}." if text == row["answer"] and int(row["answer"]) % 3 == 0 else text


# inspect: a task with two scorers, three epochs


def inspect(out: Path) -> None:
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.model import GenerateConfig, ModelOutput, ModelUsage, get_model
    from inspect_ai.scorer import includes, match
    from inspect_ai.solver import generate

    samples = [
        Sample(id=row["name"], input=f"What is {row['question']}?", target=row["answer"],
               metadata={"difficulty": "easy" if number < 4 else "hard", "date": f"2025-0{1 + number % 2}-15"})
        for number, row in enumerate(sums()[:12])
    ]  # fmt: skip
    for model in SKILL:
        outputs: dict[str, int] = {}

        def respond(input: Any, *_: Any, model: str = model, outputs: dict[str, int] = outputs) -> Any:
            row = next(row for row in sums() if f"What is {row['question']}?" == input[-1].text)
            sample = outputs[row["name"]] = outputs.get(row["name"], -1) + 1
            output = ModelOutput.from_content("mockllm/model", _spoken(answer(model, row, sample), row))
            output.usage = ModelUsage(
                input_tokens=9, output_tokens=9, total_tokens=18
            )  # else inspect fetches a tokenizer
            return output

        with tempfile.TemporaryDirectory() as scratch:
            task = Task(
                dataset=samples,
                solver=generate(),
                scorer=[match(location="exact"), includes()],
                epochs=3,
                name="toy_sums",
            )
            toy = get_model(f"mockllm/toy-{model}", custom_outputs=respond, memoize=False)
            (log,) = eval(task, model=toy, log_dir=scratch, display="none", max_samples=1, max_connections=1,
                          **GenerateConfig(temperature=0.7, top_p=0.95).model_dump(exclude_none=True))  # fmt: skip
            (written,) = Path(scratch).glob("*.eval")
            shutil.copy(written, out / f"{model}.eval")
            means = {score.name: score.metrics["accuracy"].value for score in log.results.scores}
            printed(out, model, [f"{name} accuracy {mean:.3f}" for name, mean in means.items()])


# lighteval: its command line, with a model and a task of our own


LIGHTEVAL_TASK = """
import numpy as np
from lighteval.metrics.metrics import Metrics
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc


def prompt(line, task_name=None):
    return Doc(task_name=task_name, query=f"What is {line['question']}?", choices=[line["answer"]], gold_index=0)


TASKS_TABLE = [LightevalTaskConfig(
    name="toy_sums", prompt_function=prompt, hf_repo=DATA, hf_subset="default", hf_avail_splits=["test"],
    evaluation_splits=["test"], few_shots_split=None, few_shots_select=None, generation_size=16,
    metrics=[Metrics.exact_match, Metrics.avg_at_n(sample_params={"n": 4})], stop_sequence=["\\n"], version=0,
)]
"""
LIGHTEVAL_MODEL = """
import sys
sys.path.insert(0, HERE)
from make_harness_results import answer, sums
from lighteval.models.abstract_model import LightevalModel
from lighteval.models.model_output import ModelResponse
from lighteval.utils.cache_management import SampleCache


class Toy(LightevalModel):
    def __init__(self, config):
        self.config, self._cache = config, SampleCache(config)
        self.rows = {f"What is {row['question']}?": row for row in sums()}

    tokenizer = add_special_tokens = max_length = None

    def cleanup(self):
        pass

    def greedy_until(self, docs):
        return [
            ModelResponse(input=doc.query, text=[answer(MODEL, self.rows[doc.query], n) for n in range(doc.num_samples)])
            for doc in docs
        ]

    def loglikelihood(self, docs):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood
"""


def lighteval(out: Path) -> None:
    import lighteval.tasks

    # lighteval fetches this file when it starts, for tasks that are not ours
    (Path(lighteval.tasks.__file__).parent / "tasks" / "tinyBenchmarks.pkl").touch()
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "data").mkdir()
        (Path(scratch) / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums()))
        (Path(scratch) / "toy_task.py").write_text(f"DATA = {scratch + '/data'!r}\n{LIGHTEVAL_TASK}")
        for model in SKILL:
            known = f"MODEL = {model!r}\nHERE = {str(Path(__file__).parent)!r}\n"
            (Path(scratch) / "toy_model.py").write_text(known + LIGHTEVAL_MODEL)
            words = [
                str(Path(sys.executable).parent / "lighteval"),
                "custom",
                f"toy/{model}",
                scratch + "/toy_model.py",
                "toy_sums|0",
            ]
            words += ["--custom-tasks", scratch + "/toy_task.py", "--output-dir", scratch + "/out", "--save-details"]
            environment = os.environ | {"HF_HOME": scratch, "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=scratch)
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            printed(out, model, [line for line in done.stdout.splitlines() if line.startswith("|")])
            for file in (file for file in (Path(scratch) / "out").rglob("*_20*.*") if file.is_file()):
                keep(out / model / file.name, file, scratch)
            shutil.rmtree(scratch + "/out")


def keep(to: Path, file: Path, scratch: str) -> None:
    """Copy a file, a JSON file without what it says of this machine."""
    to.parent.mkdir(exist_ok=True)
    if file.suffix != ".json":
        shutil.copy(file, to)
        return
    told = json.loads(file.read_text().replace(scratch, "SCRATCH"))
    told.pop("pretty_env_info", None)
    to.write_text(json.dumps(told, ensure_ascii=False) + "\n")


def printed(out: Path, model: str, lines: list[str]) -> None:
    """Keep what the harness printed."""
    file = out / "printed.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(kept | {model: lines}, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    if sys.argv[1:2] == ["lm-eval-itself"]:
        lm_eval_itself(sys.argv[2:])
        return
    makers = {"evalplus": evalplus, "lm-eval": lm_eval, "inspect-ai": inspect, "lighteval": lighteval}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=makers, default=list(makers))
    parser.add_argument("--humaneval-plus", type=Path, help="HumanEvalPlus.jsonl.gz, version 0.1.10, for evalplus")
    given = parser.parse_args()
    for name in given.only:
        installed = metadata.version(name)
        os.chdir(tempfile.gettempdir())  # inspect writes down the git revision of the directory that it is called in
        if installed != VERSIONS[name]:
            print(f"{name} is {installed} here; VERSIONS names {VERSIONS[name]}", file=sys.stderr)
        out = HERE / name
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        more = (given.humaneval_plus,) if name == "evalplus" else ()
        with contextlib.redirect_stdout(io.StringIO()):
            makers[name](out, *more)  # type: ignore[operator]
        print(
            f"{name} {installed}: {', '.join(sorted(str(file.relative_to(out)) for file in out.rglob('*') if file.is_file()))}"
        )


if __name__ == "__main__":
    main()
