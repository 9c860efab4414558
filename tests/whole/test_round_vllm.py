"""A whole round of SmolLM2-135M with the processes that GPUs have, on a CPU: two that train it together, and vLLM's own.

`loopctl run` does it; what it left is looked at from outside. Runs where vLLM is installed (`make test-vllm`).
"""

from __future__ import annotations

import contextlib
import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` installs it")

from loop.engines.base import CheckpointRef
from store.db import open_database, query
from tests.support.cli import process
from tests.support.configurations import configuration
from tests.support.engines import logprob_sum
from tests.support.runs import findings, lives, processes_of, ranks_among, watched

pytestmark = pytest.mark.slow
NUM_ROWS = 8
FIRST_STEPS = {"name": "first-steps", "source": "first-steps", "limit": 6, "temperature": 1.0, "num_samples": 2}
HUMANEVAL = {"name": "humaneval", "source": "humaneval", "limit": 2, "greedy": True, "max_new_tokens": 32}
CONFIG = configuration(
    name="smollm2",
    rounds=1,
    model={"source": "smollm2-135m"},
    prompts={"source": "starter", "per_round": NUM_ROWS},
    sampling={"top_p": 0.8, "max_new_tokens": 32, "stop": ["\n```"]},
    collect={"min_lines": 1},
    # Every row in each of the two steps, and steps so long that the weights before and after are told apart easily.
    training={"num_steps": 2, "batch_size": NUM_ROWS, "learning_rate": 1e-4, "gradient_checkpointing": False},
    suites=[{**FIRST_STEPS, "pass_at": [1, 2], "max_new_tokens": 32}, HUMANEVAL],
    decide={"suite": "first-steps", "unclear": "carry"},
    diagnosis={"num_prompts": 2, "max_new_tokens": 16},
    engine={"sampler": "vllm", "trainer": "trl", "num_training_processes": 2, "device": "cpu", "dtype": "float32",
            "batch_size": 16, "kv_cache_bytes": 256 << 20},
)  # fmt: skip


class Finished:
    """A run that has ended: what it left, and the processes that it had."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.config, self.run_dir = directory, directory / "loop.toml", directory / ".loop"
        self.config.write_text(CONFIG)
        with watched() as self.seen:
            self.said = process(directory, "run", "--config", str(self.config))

    def rows(self, table: str) -> list[dict[str, Any]]:
        with contextlib.closing(open_database(self.run_dir / "loop.db", read_only=True)) as db:
            return query(db, f"SELECT * FROM {table} ORDER BY 1")

    def checkpoints(self) -> tuple[CheckpointRef, CheckpointRef]:
        """The base and the candidate."""
        rows = sorted(self.rows("checkpoints"), key=lambda row: int(row["round"]))
        base, candidate = (CheckpointRef(sha256=row["sha256"], path=self.run_dir / row["path"]) for row in rows)
        return base, candidate


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    finished = Finished(tmp_path_factory.mktemp("run"))
    assert finished.said.code == 0, finished.said.err
    return finished


def test_the_round_is_decided_on_what_was_measured(finished: Finished) -> None:
    base, candidate = finished.checkpoints()
    status = process(finished.directory, "status", "--json", "--config", str(finished.config)).json
    assert status["state"] == "idle" and status["last_decision"]["action"] in ("keep", "carry")
    assert status["base"]["checkpoint"] == base.sha256 and status["tip"]["checkpoint"] == candidate.sha256
    (row,) = finished.rows("rounds")
    assert row["state"] in ("kept", "carried") and row["candidate_checkpoint"] == candidate.sha256
    measured = {(each["checkpoint"], each["suite_name"]) for each in finished.rows("evaluations") if each["metrics"]}
    assert measured == {(each.sha256, suite) for each in (base, candidate) for suite in ("first-steps", "humaneval")}
    assert len(finished.rows("verdicts")) == 2 * (6 * 2 + 2)
    assert findings(finished.run_dir) == []


def test_it_ran_in_these_processes_and_left_none(finished: Finished) -> None:
    titles = [" ".join(words) for words in finished.seen.values()]
    assert len(ranks_among(finished.seen)) == 2
    assert any("VLLM::EngineCore" in title for title in titles) and any("VLLM::Worker" in title for title in titles)
    assert not any(map(lives, finished.seen)) and processes_of(finished.config) == []
    (run,) = finished.rows("runs")
    recorded = json.loads(run["config"])["engine"]
    assert (recorded["sampler"], recorded["num_training_processes"]) == ("vllm", 2)


def test_two_processes_trained_on_every_token_that_vllm_drew(finished: Finished) -> None:
    """Of the first step's loss the weights are those that were sampled from, so it is the mean of what vLLM said of each token."""
    (training,) = [
        told["training"] for row in finished.rows("checkpoints") if "training" in (told := json.loads(row["origin"]))
    ]
    corpus = [row for row in finished.rows("completions") if row["evaluation_id"] is None]
    num_tokens = sum(row["num_tokens"] for row in corpus)
    assert len(corpus) == training["num_rows"] == NUM_ROWS and training["num_completion_tokens"] == num_tokens
    first, second = training["losses"]
    assert first == pytest.approx(-sum(row["logprob_sum"] for row in corpus) / num_tokens, abs=1e-4)
    assert second < first


def test_the_candidate_lies_on_the_disk_as_its_parent_does(finished: Finished) -> None:
    """The same names, shapes and precision, in several files; transformers loads every weight as it stands there."""
    import torch
    from transformers import AutoModelForCausalLM

    from loop.engines.vllm_worker import open_tensors

    base, candidate = finished.checkpoints()
    assert len(list(candidate.path.glob("*.safetensors"))) > 1
    with contextlib.ExitStack() as stack:
        parents, ours = (open_tensors(each.path, stack) for each in (base, candidate))
        assert ours.keys() == parents.keys()
        loaded, told = AutoModelForCausalLM.from_pretrained(candidate.path, dtype="auto", output_loading_info=True)
        assert not any(told.values()), told
        state = loaded.state_dict()
        for name, file in ours.items():
            before, after = parents[name].get_tensor(name), file.get_tensor(name)
            assert (after.dtype, after.shape) == (before.dtype, before.shape), name
            assert torch.equal(state[name], after), name
            assert not torch.equal(before, after), f"{name} was not trained"


def test_vllm_drew_completions_from_the_weights_of_their_checkpoint(finished: Finished) -> None:
    """Two of each evaluation, and of the corpus: what vLLM said of them is what transformers says with those files, not with the others.

    The base is measured on HumanEval last, so the weights have been changed to and fro by then.
    """
    from transformers import AutoModelForCausalLM

    rows = [list(of_one)[:2] for _, of_one in groupby(finished.rows("completions"), lambda row: row["evaluation_id"])]
    chosen = [row for of_one in rows for row in of_one]
    assert len(rows) == 5 and len(chosen) == 10
    for checkpoint in finished.checkpoints():
        model = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype="auto")
        others = []
        for row in chosen:
            prompt, drawn = json.loads(row["prompt_token_ids"]), json.loads(row["token_ids"])
            apart = abs(logprob_sum(model, prompt, drawn) - row["logprob_sum"]) / len(drawn)
            if row["checkpoint"] == checkpoint.sha256:
                assert apart < 1e-4, row
            else:
                others.append(apart)
        assert others and max(others) > 0.05


def test_the_proof_of_weights_that_vllm_passed_is_that_of_the_files(finished: Finished) -> None:
    """Without passing it no engine serves a checkpoint, so none of its figures would be there."""
    from loop.engines.weights_proof import reference, serves, tells_apart

    kept = finished.run_dir / "logs" / "proofs"
    names = set(kept.iterdir())
    proofs = [reference(each, "float32", kept) for each in finished.checkpoints()]
    assert set(kept.iterdir()) == names, "one of them was never asked for"
    for checkpoint, proof in zip(finished.checkpoints(), proofs, strict=True):
        assert serves(proof, reference(checkpoint, "float32").logprobs)
    assert tells_apart(*proofs)
