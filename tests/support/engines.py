"""Engines as tests start them: settings, requests, rows and recipes; samplers over one checkpoint in process and remote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from loop.config.settings import Engine, Training
from loop.engines.base import (
    CheckpointRef,
    EngineConfig,
    Forced,
    Generated,
    Probed,
    Request,
    Sampler,
    SamplingParams,
    Trainer,
    TrainingResult,
    TrainingRow,
)
from loop.engines.fake import FakeSampler
from loop.prompts.templates import ask as ask_for
from loop.workers.up import engine_config
from loop.workers.worker import RemoteSampler, Worker
from tests.support.tiny import FUNCTIONS, make_tiny_model, make_tokenizer
from tests.support.waiting import HANG_S

Models = dict[str, CheckpointRef]
ON_A_CPU = engine_config(Engine(device="cpu", dtype="float32", batch_size=4, num_threads=1))
HOT = SamplingParams(temperature=1.2, top_k=20, top_p=0.95, max_new_tokens=32)
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=64)
EOS = 0  # <|im_end|> is the tiny tokenizer's first token


def settings(**changed: Any) -> EngineConfig:
    """Those of an engine on one thread of the CPU, in float32, with batches of 4."""
    return ON_A_CPU.model_copy(update=changed)


def at(path: Path, base: Path | None = None) -> CheckpointRef:
    """The checkpoint there, an adapter where it has a base."""
    return CheckpointRef(sha256="", path=path, base_path=base)


def hot(**changed: Any) -> SamplingParams:
    return HOT.model_copy(update=changed)


def greedy(**changed: Any) -> SamplingParams:
    return GREEDY.model_copy(update=changed)


def no_progress(done: int, total: int) -> None:
    pass


# Samplers


def chat(identifier: str, seed: int, task: int = 0) -> Request:
    signature, _, statement = FUNCTIONS[task % len(FUNCTIONS)]
    content = ask_for(statement * (1 + task // len(FUNCTIONS)), signature)  # so that the lengths differ
    return Request(id=identifier, messages=({"role": "user", "content": content},), prefill="```python\n", seed=seed)


def ask(sampler: Sampler, requests: list[Request], params: SamplingParams) -> dict[str, Generated]:
    """Each request's completion, by its id."""
    lists = list(sampler.generate(requests, params))
    assert all(lists), "an empty list"
    completions = [generated for batch in lists for generated in batch]
    assert sorted(generated.id for generated in completions) == sorted(request.id for request in requests)
    return {generated.id: generated for generated in completions}


def in_process(checkpoint: CheckpointRef, **changed: Any) -> Any:
    """A sampler over transformers."""
    from loop.engines.hf_sampler import TransformersSampler

    return TransformersSampler(checkpoint, settings(**changed), no_progress)


def remote(checkpoint: CheckpointRef, name: str, log_file: Path, **changed: Any) -> RemoteSampler:
    """The sampler of that name in a worker."""
    init = {"op": "load_sampler", "checkpoint": checkpoint, "settings": settings(sampler=name, **changed)}
    return RemoteSampler(Worker(init, log_file=log_file, stall_timeout_s=HANG_S, progress=no_progress, tag="sampler"))


def make_models(root: Path, **how: Any) -> Models:
    """Two checkpoints of one shape with other weights: "one" and "other"; and "near", which no proof tells from "one"."""
    import safetensors.torch

    for name, seed in (("one", 0), ("other", 1), ("near", 0)):
        make_tiny_model(root / name, seed=seed, **how)
    tensors = safetensors.torch.load_file(root / "near" / "model.safetensors")
    tensors["model.norm.weight"] += 1e-6
    safetensors.torch.save_file(tensors, root / "near" / "model.safetensors", metadata={"format": "pt"})
    return {name: CheckpointRef(sha256=name, path=root / name) for name in ("one", "other", "near")}


def next_token_logits(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> Any:
    """The logits for each token of the completion (T, V), from one forward pass without cache, padding or batch."""
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].double()


def logprob_sum(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> float:
    """The log-probability of the completion."""
    logprobs = next_token_logits(model, prompt, completion).log_softmax(-1)
    return sum(float(row[token]) for row, token in zip(logprobs, completion, strict=True))


def forced(model: Any, generated: Generated) -> Any:
    """What the model says of a completion: its log-probability, but for noise."""
    return pytest.approx(logprob_sum(model, generated.prompt_token_ids, generated.token_ids), abs=1e-3)


def check_probe(sampler: Any, drawn: Generated) -> Probed:
    """Probe a completion that the same model drew greedily: each of its tokens was the likeliest. The record."""
    text = Forced(id="t", prompt_token_ids=drawn.prompt_token_ids, token_ids=drawn.token_ids)
    (record,) = [record for records in sampler.probe([text], HOT, 8) for record in records]
    for token, at, logprobs in zip(drawn.token_ids, record.at, record.logprobs, strict=True):
        assert dict(zip(at, logprobs, strict=True))[token] > logprobs[0] - 1e-3
    return record


# Trainers


def training(method: str = "full", *, merge: bool = True, dropout: float = 0.0, **changed: Any) -> dict[str, Any]:
    """The [training] table as the round passes it on: with a seed."""
    table = {"batch_size": 4, "micro_batch_size": 2, "learning_rate": 5e-3, "min_learning_rate": 1e-3} | changed
    lora = {"rank": 4, "alpha": 8.0, "dropout": dropout, "merge": merge}
    table = Training.model_validate({"method": method, "lora": lora} | table).model_dump(mode="json")
    return table | {"seed": 2**60 + 5}


def some_rows() -> list[TrainingRow]:
    """Ten rows of different lengths. One is spelt byte by byte, as only a sampler would; one does not end in EOS."""
    tokenizer = make_tokenizer()
    rows = []
    for signature, body, task in FUNCTIONS[:10]:
        prompt = tokenizer(
            f"<|im_start|>user\n{ask_for(task, signature)}<|im_end|>\n<|im_start|>assistant\n```python\n"
        )["input_ids"]
        rows.append((prompt, [*tokenizer(signature + body)["input_ids"], EOS]))
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "returnlen"]
    rows[3] = (rows[3][0], [*letters, EOS])
    rows[5] = (rows[5][0], rows[5][1][:-1])
    return [TrainingRow(prompt_token_ids=prompt, completion_token_ids=completion) for prompt, completion in rows]


def many_rows(num_rows: int) -> list[TrainingRow]:
    return [
        TrainingRow(prompt_token_ids=row.prompt_token_ids, completion_token_ids=(*row.completion_token_ids[:-1], index))
        for index in range(20, 20 + num_rows)
        for row in [some_rows()[index % 10]]
    ]


def write_rows(path: Path, rows: list[TrainingRow]) -> Path:
    path.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    return path


def fit(
    trainer: Trainer,
    parent: CheckpointRef,
    settings: dict[str, Any],
    out_dir: Path,
    rows: list[TrainingRow] | None = None,
) -> TrainingResult:
    out_dir.mkdir(parents=True)
    rows_file = write_rows(out_dir.parent / f"{out_dir.name}.jsonl", some_rows() if rows is None else rows)
    before = rows_file.read_bytes()
    result = trainer.fit(rows_file, parent, settings, out_dir)
    assert rows_file.read_bytes() == before
    return result


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def sample(checkpoint: CheckpointRef, kind: str = "trl") -> list[tuple[int, ...]]:
    requests = [Request(id=f"r{i}", prefill=f"def {FUNCTIONS[i][0][4:7]}", seed=i) for i in range(4)]
    sampler = FakeSampler(checkpoint, settings(), no_progress) if kind.startswith("fake") else in_process(checkpoint)
    params = SamplingParams(temperature=1.0, top_k=20, max_new_tokens=16)
    return [generated.token_ids for batch in sampler.generate(requests, params) for generated in batch]


def float_model(checkpoint: CheckpointRef) -> Any:
    """Its weights in float32, on the CPU."""
    import torch

    from loop.engines.hf_models import load_model

    return load_model(checkpoint, torch.float32, torch.device("cpu")).eval()


def logits(checkpoint: CheckpointRef) -> Any:
    (row, *_) = some_rows()
    return next_token_logits(float_model(checkpoint), row.prompt_token_ids, row.completion_token_ids)
