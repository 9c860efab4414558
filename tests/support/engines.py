"""Engines as tests start them: settings, requests, rows and recipes; samplers over one checkpoint in process and remote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loop.config.settings import Engine, Training
from loop.engines.base import (
    CheckpointRef,
    EngineConfig,
    Generated,
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
from tests.support.tiny import FUNCTIONS, make_tokenizer
from tests.support.waiting import HANG_S

ON_A_CPU = engine_config(Engine(device="cpu", dtype="float32", batch_size=4, num_threads=1))
HOT = SamplingParams(temperature=1.2, top_k=20, top_p=0.95, max_new_tokens=32)
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=64)
EOS = 0  # <|im_end|> is the tiny tokenizer's first token


def settings(**changed: Any) -> EngineConfig:
    """Those of an engine on one thread of the CPU, in float32, with batches of 4."""
    return ON_A_CPU.model_copy(update=changed)


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


def teacher_forced(model: Any, generated: Generated) -> Any:
    """The log-probabilities of the completion's tokens from one forward pass without cache, padding or batch."""
    import torch

    ids = torch.tensor([[*generated.prompt_token_ids, *generated.token_ids]])
    with torch.no_grad():
        logprobs = model(input_ids=ids).logits[0].double().log_softmax(-1)
    start = len(generated.prompt_token_ids)
    return logprobs[start - 1 : -1].gather(1, ids[0, start:, None])[:, 0]


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


def sample(checkpoint: CheckpointRef, kind: str = "trl", count: int = 4) -> list[tuple[int, ...]]:
    requests = [Request(id=f"r{i}", prefill=f"def {FUNCTIONS[i][0][4:7]}", seed=i) for i in range(count)]
    if kind.startswith("fake"):
        sampler: Any = FakeSampler(checkpoint, settings(), no_progress)
    else:
        from loop.engines.hf_sampler import TransformersSampler

        sampler = TransformersSampler(checkpoint, settings(), no_progress)
    lists = list(sampler.generate(requests, SamplingParams(temperature=1.0, top_k=20, max_new_tokens=16)))
    return [generated.token_ids for batch in lists for generated in batch]


def logits(checkpoint: CheckpointRef) -> Any:
    import torch

    from loop.engines.hf_models import load_model

    model = load_model(checkpoint, torch.float32, torch.device("cpu")).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([some_rows()[0].prompt_token_ids])).logits
