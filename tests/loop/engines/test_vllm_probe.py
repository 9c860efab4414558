"""Probing inside a vLLM worker, with a stand-in for its model runners: the second one runs on GPUs only, the first in `test_vllm.py`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from loop.engines import vllm_probe
from loop.engines.base import Forced, Probed
from loop.engines.vllm_worker import Extension
from tests.support.engines import HOT, at, float_model, in_process
from tests.support.tiny import make_tiny_model

TEXT = Forced(id="t", prompt_token_ids=tuple(range(3, 9)), token_ids=tuple(range(20, 40)))


class Runner:
    """What the extension touches of vLLM's model runner; `run` lets a text through in chunks, as a scheduler would."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def get_model(self) -> Any:
        return SimpleNamespace(config=self.model.config, compute_logits=self.model.lm_head)

    def hidden(self, token_ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return self.model.model(input_ids=torch.tensor([token_ids])).last_hidden_state[0]  # type: ignore[no-any-return]


class FirstRunner(Runner):
    def _get_prompt_logprobs_dict(self, hidden_states: torch.Tensor, num_scheduled_tokens: dict[str, int]) -> str:
        return "first"

    def step(self, hidden: torch.Tensor) -> str:
        return self._get_prompt_logprobs_dict(hidden, {"0": len(hidden)})


class SecondsWorker:
    def compute_prompt_logprobs(self, logits_of: Any, hidden_states: torch.Tensor, batch: Any, *more: Any) -> str:
        return "second"


class SecondRunner(Runner):
    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.prompt_logprobs_worker = SecondsWorker()

    def step(self, hidden: torch.Tensor) -> str:
        padded = torch.cat([hidden, torch.full((5, hidden.shape[1]), torch.nan)])  # to the size of a CUDA graph
        batch = SimpleNamespace(num_tokens=len(hidden))
        return self.prompt_logprobs_worker.compute_prompt_logprobs(self.model.lm_head, padded, batch, None, None, None)


@pytest.mark.parametrize("kind", [FirstRunner, SecondRunner])
@pytest.mark.parametrize("chunks", [[25], [3, 3, 9, 10], [1] * 25])
def test_the_record_is_that_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Any], chunks: list[int]
) -> None:
    monkeypatch.setattr(vllm_probe, "MAX_LOGITS", 1 << 11)  # a few positions at a time
    checkpoint = at(make_tiny_model(tmp_path / "tiny"))
    ((wanted,),) = in_process(checkpoint).probe([TEXT], HOT, 8)
    runner, worker = kind(float_model(checkpoint)), Extension()
    worker.model_runner = runner
    worker.begin_probe(TEXT.model_dump(mode="json"), HOT.model_dump(mode="json"), 8)
    hidden = runner.hidden([*TEXT.prompt_token_ids, *TEXT.token_ids][:-1])
    name = "first" if kind is FirstRunner else "second"
    for piece in hidden.split(chunks):
        assert runner.step(piece) == name, "vLLM's own result is passed on"
    said = worker.end_probe()
    record = Probed.of(TEXT, said["entries"])
    assert said["error"] is None and (record.at, record.num_kept) == (wanted.at, wanted.num_kept)
    for mine, theirs in zip(record.logprobs, wanted.logprobs, strict=True):
        assert mine == pytest.approx(theirs, abs=2e-4)
    assert record.entropy == pytest.approx(wanted.entropy, abs=2e-5)
    runner.step(hidden)
    assert len(said["entries"]) == len(TEXT.token_ids), "afterwards nothing is recorded"


def test_damaged_weights_are_an_error_that_the_engine_survives(tmp_path: Path) -> None:
    runner, worker = FirstRunner(float_model(at(make_tiny_model(tmp_path / "tiny")))), Extension()
    worker.model_runner = runner
    worker.begin_probe(TEXT.model_dump(mode="json"), HOT.model_dump(mode="json"), 8)
    runner.step(runner.hidden([*TEXT.prompt_token_ids, *TEXT.token_ids][:-1]) * torch.nan)
    assert worker.end_probe()["error"] == "text t: the model's logits are not finite; its weights are damaged"
