"""Two full rounds of a tiny real model: real sampling, real fine-tuning, real grading, a real database; and kills in it."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from store.records import DECIDED
from tests.support.configurations import configuration
from tests.support.runs import acknowledged, drive, dump, findings, finish, lives, processes_of, ranks_among, watched
from tests.support.tiny import FUNCTIONS, make_tiny_model

SUITE = {"name": "tiny", "source": "suite.jsonl", "temperature": 1.0, "num_samples": 4, "pass_at": [1, 4]}
HUMANEVAL = {"name": "humaneval", "source": "humaneval", "limit": 2, "greedy": True, "max_new_tokens": 8}
CONFIG = configuration(
    name="tiny",
    seed=5,
    model={"source": "model"},
    prompts={"source": "prompts.jsonl", "per_round": 12},
    sampling={"temperature": 1.1, "top_p": 0.9, "max_new_tokens": 24},
    collect={"min_lines": 1},
    training={"num_epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 1, "max_tokens": 512},
    suites=[{**SUITE, "max_new_tokens": 24}, HUMANEVAL],
    decide={"suite": "tiny"},
    diagnosis=None,
    engine={"sampler": None, "trainer": None, "device": "cpu", "dtype": "float32", "num_threads": 1},
)
TESTS = {"sum": ("(1, 2)", 3), "max": ("(1, 2)", 2), "length": ("([1, 1], 0)", 2), "pair": ("(1, 2)", [1, 2])}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "model")


def write(directory: Path, model: Path, config: str = CONFIG) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model").symlink_to(model)
    with (directory / "prompts.jsonl").open("w") as prompts, (directory / "suite.jsonl").open("w") as suite:
        for number, (signature, body, task) in enumerate(FUNCTIONS):
            name = signature[4:].partition("(")[0]
            arguments, expected = TESTS[name.partition("_")[0]]
            prompts.write(json.dumps({"statement": f"{task} Twice.", "signature": f"def {name}_twice(a, b):"}) + "\n")
            problem = {"task_id": f"tiny/{number}", "text": task, "entry_point": name, "signature": signature,
                       "test_list": [f"assert {name}{arguments} == {expected!r}"],
                       "code": signature + body.removesuffix("```"), "difficulty": "easy"}  # fmt: skip
            suite.write(json.dumps(problem) + "\n")
    path = directory / "loop.toml"
    path.write_text(config)
    return path


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, model: Path) -> dict:
    return dump(finish(write(tmp_path_factory.mktemp("whole"), model)))


def test_two_rounds_leave_everything_that_a_round_is_made_of(uninterrupted: dict) -> None:
    assert [row["state"] in DECIDED for row in uninterrupted["rounds"]] == [True, True]
    corpus = [row for row in uninterrupted["completions"] if row["evaluation_id"] is None]
    assert len(corpus) == 24 and len(uninterrupted["selections"]) == 24
    assert all(json.loads(row["token_ids"]) and row["logprob_sum"] < 0 for row in corpus)
    base, *candidates = sorted(uninterrupted["checkpoints"], key=lambda row: row["round"])
    assert len({row["sha256"] for row in [base, *candidates]}) == 3, "training changed the weights"
    metrics = [json.loads(row["metrics"]) for row in uninterrupted["evaluations"] if row["suite_name"] == "tiny"]
    assert len(metrics) == 3 and all(0 < each["pass@1"] < 1 and each["pass@1"] <= each["pass@4"] for each in metrics)
    trained = [json.loads(row["origin"])["training"] for row in candidates]
    assert all(len(each["losses"]) == each["num_steps"] == 6 and max(each["losses"]) < 6 for each in trained)


@pytest.mark.slow
def test_the_same_seeds_twice_give_the_same_ledger(uninterrupted: dict, model: Path, tmp_path: Path) -> None:
    """Compared: everything that `rounds.dump` keeps, so token ids, log-probabilities, weights, verdicts and figures."""
    again = dump(finish(write(tmp_path, model)))
    for table, rows in uninterrupted.items():
        assert again[table] == rows, table


@pytest.mark.slow
def test_another_seed_gives_other_completions(uninterrupted: dict, model: Path, tmp_path: Path) -> None:
    config = CONFIG.replace("seed = 5", "seed = 6").replace("rounds = 2", "rounds = 1")
    runs = (dump(finish(write(tmp_path, model, config))), uninterrupted)
    texts, of_the_first = ({row["text"] for row in run["completions"] if not row["evaluation_id"]} for run in runs)
    assert texts != of_the_first


def _equal(value: Any, other: Any) -> bool:
    """But for the last digits: after a kill other rows stand in a batch, and matrix products of another shape round otherwise."""
    if isinstance(value, bytes):
        value, other = (zlib.decompress(records).decode() for records in (value, other))
    if isinstance(value, str) and value[:1] in ("{", "[") and value != other:
        value, other = json.loads(value), json.loads(other)
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(_equal(value[key], other[key]) for key in value)
    if isinstance(value, list):
        return len(value) == len(other) and all(map(_equal, value, other))
    return bool(value == pytest.approx(other, abs=1e-4)) if isinstance(value, float) else bool(value == other)


@pytest.mark.slow
def test_killed_inside_real_stages(uninterrupted: dict, model: Path, tmp_path: Path) -> None:
    """In the middle of sampling, of training and of evaluating, one after the other in the same run."""
    config = write(tmp_path, model)
    for place, count in (("after add_completions", 1), ("before commit_directory", 1), ("after add_completions", 3)):
        assert drive(config, place, count) == -9, (tmp_path / "stderr").read_text()
    assert drive(config, kill_after_s=6.0) in (0, -9)  # somewhere while a worker is busy
    left = dump(finish(config))
    for table, rows in uninterrupted.items():
        hashed = "" if table == "checkpoints" else "sha256"  # of a row, so with its last digits
        for row, other in zip(left[table], rows, strict=True):
            assert _equal({**row, hashed: None}, {**other, hashed: None}), (table, row, other)
    rows = acknowledged(config)
    assert len(rows) == len(set(rows)), "acknowledged work was repeated"
    assert processes_of(config) == []


@pytest.mark.slow
@pytest.mark.parametrize("merge", [True, False])
def test_a_round_with_lora(merge: bool, model: Path, tmp_path: Path) -> None:
    """Merged weights are a full checkpoint; an adapter is kept over its named base, and both can be sampled from."""
    lora = f'[training]\nmethod = "lora"\nlora = {{ rank = 4, merge = {str(merge).lower()} }}'
    config = CONFIG.replace("[training]", lora).replace("rounds = 2", "rounds = 1")
    left = dump(finish(write(tmp_path, model, config)))
    base, candidate = sorted(left["checkpoints"], key=lambda row: row["round"])
    assert candidate["kind"] == ("full" if merge else "adapter")
    assert candidate["base"] == (None if merge else base["sha256"])
    assert [row["state"] in DECIDED for row in left["rounds"]] == [True]


def _by_round(run: dict[str, Any], table: str) -> list[dict[str, Any]]:
    """Rows of a dump without what names weights by their hash, which the last digits change: each says whose weights they are of."""
    made_in = {row["sha256"]: row["round"] for row in run["checkpoints"]}
    named = {"checkpoint", "parent", "base", "parent_checkpoint", "candidate_checkpoint", "head_before", "head_after"}
    hashes = {"id", "sha256", "evaluation_id", "manifest", "size_bytes"}
    rows = [
        {key: made_in.get(value) if key in named else value for key, value in row.items() if key not in hashes}
        | {"is_of_corpus": row.get("evaluation_id", "") is None}
        for row in run[table]
    ]
    order = (
        "round",
        "number",
        "checkpoint",
        "suite_name",
        "is_of_corpus",
        "decode_settings_id",
        "prompt_id",
        "sample_index",
    )
    return sorted(rows, key=lambda row: [str(row.get(name)) for name in order])


@pytest.mark.slow
def test_lora_rounds_on_two_processes_are_those_of_one(model: Path, tmp_path: Path) -> None:
    """The second round samples from the first one's adapter and trains it further, so it builds on what two processes wrote."""
    from safetensors.torch import load_file

    lora = '[training]\nmethod = "lora"\nlora = { rank = 4, merge = false }'
    config = CONFIG.replace("[training]", lora).replace('unclear = "rollback"', 'unclear = "carry"')
    config = config.replace("micro_batch_size = 2", "micro_batch_size = 1")  # sums in another order, not only elsewhere
    run_dirs = []
    for num_processes in (1, 2):
        processes = f'[engine]\nsampler = "transformers"\nnum_training_processes = {num_processes}'
        path = write(tmp_path / f"with-{num_processes}", model, config.replace("[engine]", processes))
        with watched() as seen:
            run_dirs.append(finish(path))
        # One trains within the worker; two are started for each of the rounds.
        assert len(ranks_among(seen)) == (4 if num_processes == 2 else 0)
        assert not any(map(lives, seen)) and processes_of(path) == []
        assert findings(run_dirs[-1]) == []
    one, two = map(dump, run_dirs)
    assert {row["round"]: row["action"] for row in one["decisions"]}[1] == "carry", "round 2 has another parent then"
    for ours, theirs in zip(_by_round(one, "checkpoints"), _by_round(two, "checkpoints"), strict=True):
        if (number := ours["round"]) == 0:
            continue
        told, also = (json.loads(row["origin"])["training"] for row in (ours, theirs))
        assert also.pop("losses") == pytest.approx(told.pop("losses"), abs=2e-6)
        assert also == told
        name = f"checkpoints/round-{number:04}/adapter_model.safetensors"
        mine, other = (load_file(run_dir / name) for run_dir in run_dirs)
        assert mine.keys() == other.keys() and any("lora_B" in key for key in mine)
        assert max(float((mine[key] - other[key]).abs().max()) for key in mine) < 2e-5
    for table in ("rounds", "completions", "evaluations", "decisions"):
        ours, theirs = _by_round(one, table), _by_round(two, table)
        for row, other in zip(ours, theirs, strict=True):
            assert _equal(row, other), (table, row, other)
