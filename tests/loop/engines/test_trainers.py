"""One contract over all trainers, in process and remote; then what the one over TRL feeds to the model and writes."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from loop.config.settings import Training
from loop.engines.base import CheckpointRef, Request, SamplingParams, Trainer, TrainingResult, TrainingRow
from loop.engines.fake import FakeSampler, FakeTrainer, write_fake_model
from loop.errors import EngineError
from loop.prompts.templates import ask
from loop.workers.worker import RemoteTrainer, Worker
from tests.support.engines import no_progress, settings
from tests.support.tiny import FUNCTIONS, make_tiny_model, make_tokenizer
from tests.support.waiting import HANG_S

EOS = 0  # <|im_end|> is the tiny tokenizer's first token


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
        prompt = tokenizer(f"<|im_start|>user\n{ask(task, signature)}<|im_end|>\n<|im_start|>assistant\n```python\n")[
            "input_ids"
        ]
        rows.append((prompt, [*tokenizer(signature + body)["input_ids"], EOS]))
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "returnlen"]
    rows[3] = (rows[3][0], [*letters, EOS])
    rows[5] = (rows[5][0], rows[5][1][:-1])
    return [TrainingRow(prompt_token_ids=prompt, completion_token_ids=completion) for prompt, completion in rows]


def write_rows(path: Path, rows: list[TrainingRow]) -> Path:
    path.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    return path


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> CheckpointRef:
    return CheckpointRef(sha256="1" * 64, path=make_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> CheckpointRef:
    directory = tmp_path_factory.mktemp("models") / "fake"
    write_fake_model(directory, 0.5)
    return CheckpointRef(sha256="2" * 64, path=directory)


@pytest.fixture(scope="module")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Trainer]]:
    """Trainers by name; a remote one is started once."""
    started: dict[str, Any] = {}

    def trainer(name: str) -> Trainer:
        if name not in started:
            if name == "fake":
                started[name] = FakeTrainer(settings(), no_progress)
            elif name == "trl":
                from loop.engines.trl_trainer import TrlTrainer

                started[name] = TrlTrainer(settings(), no_progress)
            else:
                init = {"op": "load_trainer", "settings": settings(trainer=name.removesuffix(" remote"))}
                log = tmp_path_factory.mktemp("logs") / "worker.log"
                worker = Worker(init, log_file=log, stall_timeout_s=HANG_S, progress=no_progress, tag="trainer")
                started[name] = RemoteTrainer(worker)
        return started[name]

    yield trainer
    for engine in started.values():
        engine.close()
        engine.close()


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


# ---- the contract --------------------------------------------------------------------------------------------------

KINDS = [
    ("fake", "full", True),
    ("fake remote", "full", True),
    ("trl", "full", True),
    ("trl", "lora", True),
    ("trl", "lora", False),
    ("trl remote", "full", True),
    ("trl remote", "lora", False),
]


@pytest.mark.parametrize(("name", "method", "merge"), KINDS)
def test_the_contract(
    name: str,
    method: str,
    merge: bool,
    trainers: Callable[[str], Trainer],
    fake: CheckpointRef,
    tiny: CheckpointRef,
    tmp_path: Path,
) -> None:
    trainer = trainers(name)
    seen: list[tuple[int, int]] = []
    holder: Any = trainer.worker if "remote" in name else trainer
    holder.progress = lambda done, total: seen.append((done, total))
    parent = fake if name.startswith("fake") else tiny
    before = contents(parent.path)
    rows = some_rows()
    settings = training(method, merge=merge, num_epochs=2)

    result = fit(trainer, parent, settings, tmp_path / "one")
    assert result.num_steps == 6  # three batches of four for ten rows, the last one smaller, twice
    assert (result.num_rows, result.num_completion_tokens) == (10, sum(len(row.completion_token_ids) for row in rows))
    assert len(result.losses) == 6 and all(math.isfinite(loss) and loss > 0 for loss in result.losses)
    adapter = name.startswith("trl") and not merge
    assert result.adapter == adapter
    assert seen[-1] == (6, 6) and seen == sorted(seen)

    written = contents(tmp_path / "one")
    assert {Path(file).suffix for file in written} <= {".safetensors", ".json", ".jinja", ".txt"}
    assert contents(parent.path) == before
    assert fit(trainer, parent, settings, tmp_path / "two") == result
    assert contents(tmp_path / "two") == written

    base_path = parent.path if adapter else None
    child = CheckpointRef(sha256="3" * 64, path=tmp_path / "one", base_path=base_path)
    assert sample(child, name) != sample(parent, name) or name.startswith("fake")
    again = fit(trainer, child, training(method, merge=merge, num_steps=3), tmp_path / "three")
    assert again.num_steps == 3 and again.adapter == adapter
    sample(CheckpointRef(sha256="4" * 64, path=tmp_path / "three", base_path=base_path), name)

    with pytest.raises(EngineError, match="completion"):
        fit(trainer, parent, settings, tmp_path / "none", rows=[])
    assert fit(trainer, parent, settings, tmp_path / "four") == result, "an error spoils the trainer"


def test_remote_and_in_process_agree_to_the_bit(
    trainers: Callable[[str], Trainer], tiny: CheckpointRef, tmp_path: Path
) -> None:
    here = fit(trainers("trl"), tiny, training(), tmp_path / "here")
    there = fit(trainers("trl remote"), tiny, training(), tmp_path / "there")
    assert here == there
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


# ---- what reaches the model ----------------------------------------------------------------------------------------


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The trainer with its batches kept, and the trainer itself."""
    from loop.engines import trl_trainer

    class Recorded(trl_trainer.StepTrainer):  # type: ignore[misc, name-defined]
        batches: list[dict[str, Any]] = []  # noqa: RUF012
        last: Any = None

        def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **more: Any) -> Any:
            self.batches.append({key: value.clone() for key, value in inputs.items() if hasattr(value, "clone")})
            type(self).last = self
            return super().compute_loss(model, inputs, *arguments, **more)

    monkeypatch.setattr(trl_trainer, "StepTrainer", Recorded)
    return Recorded


@pytest.mark.parametrize("pad_is_eos", [True, False])
def test_the_model_sees_the_sampled_ids_and_learns_the_completion_with_its_end(
    pad_is_eos: bool, recorded: Any, trainers: Callable[[str], Trainer], tmp_path: Path
) -> None:
    path = make_tiny_model(tmp_path / "model", pad_is_eos=pad_is_eos)
    fit(trainers("trl"), CheckpointRef(sha256="", path=path), training(), tmp_path / "out")
    rows = {(row.prompt_token_ids, row.completion_token_ids) for row in some_rows()}
    found = []
    for batch in recorded.batches:
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            length = int(mask.sum())
            assert mask.tolist() == [1] * length + [0] * (len(mask) - length)
            assert set(labels[length:].tolist()) <= {-100}
            num_prompt = int((labels[:length] == -100).sum())
            assert labels[:num_prompt].tolist() == [-100] * num_prompt
            assert labels[num_prompt:length].tolist() == ids[num_prompt:length].tolist()
            found.append((tuple(ids[:num_prompt].tolist()), tuple(ids[num_prompt:length].tolist())))
    assert sorted(found) == sorted(rows)
    assert sum(completion[-1] == EOS for _, completion in found) == 9


def test_rows_are_cut_at_max_tokens_and_dropped_where_nothing_is_left(
    recorded: Any, trainers: Callable[[str], Trainer], tiny: CheckpointRef, tmp_path: Path
) -> None:
    rows = [
        TrainingRow(prompt_token_ids=range(10, 14), completion_token_ids=(20, 21, 22, EOS)),
        TrainingRow(prompt_token_ids=range(10, 12), completion_token_ids=(20, 21, EOS)),
        TrainingRow(prompt_token_ids=range(10, 19), completion_token_ids=(20, EOS)),
    ]
    result = fit(trainers("trl"), tiny, training(max_tokens=6), tmp_path / "out", rows)
    assert (result.num_rows, result.num_completion_tokens) == (2, 5)
    (batch,) = recorded.batches
    trained = sorted([label for label in labels if label != -100] for labels in batch["labels"].tolist())
    assert trained == [[20, 21], [20, 21, EOS]]
    with pytest.raises(EngineError, match=r"no completion fits into training\.max_tokens = 2; raise it"):
        fit(trainers("trl"), tiny, training(max_tokens=2), tmp_path / "none", rows)


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_the_first_loss_is_the_cross_entropy_per_completion_token(
    micro: int, recorded: Any, trainers: Callable[[str], Trainer], tiny: CheckpointRef, tmp_path: Path
) -> None:
    """Over the whole batch, however it is split for memory. Computed again row by row without padding."""
    import torch

    from loop.engines.hf_models import load_model

    result = fit(trainers("trl"), tiny, training(micro_batch_size=micro, num_steps=1), tmp_path / "out")
    model = load_model(tiny, torch.float32, torch.device("cpu")).eval()
    total, count = 0.0, 0
    for batch in recorded.batches:
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            length = int(mask.sum())
            with torch.no_grad():
                logprobs = model(input_ids=ids[None, :length]).logits[0].log_softmax(-1)
            for position in range(1, length):
                if labels[position] != -100:
                    total -= float(logprobs[position - 1, ids[position]])
                    count += 1
    assert sum(len(batch["input_ids"]) for batch in recorded.batches) == 4
    assert result.losses[0] == pytest.approx(total / count, abs=1e-4)


def many_rows(num_rows: int) -> list[TrainingRow]:
    return [
        TrainingRow(prompt_token_ids=row.prompt_token_ids, completion_token_ids=(*row.completion_token_ids[:-1], index))
        for index in range(20, 20 + num_rows)
        for row in [some_rows()[index % 10]]
    ]


@pytest.mark.parametrize(("name", "num_left_out"), [("fake", 3), ("trl", 3), ("trl", 2)])
def test_some_rows_are_held_out(
    name: str, num_left_out: int, recorded: Any, trainers: Callable[[str], Trainer], tiny: CheckpointRef,
    fake: CheckpointRef, tmp_path: Path,
) -> None:  # fmt: skip
    """By a hash, so that the same ones are, wherever they stand; their loss is that of the final weights."""
    rows, parent = many_rows(num_left_out * 20 + 5), fake if name == "fake" else tiny
    settings = training(num_epochs=1, held_out=num_left_out if num_left_out == 2 else 16)
    result = fit(trainers(name), parent, settings, tmp_path / "one", rows)
    assert (result.num_held_out, result.num_rows) == (num_left_out, len(rows) - num_left_out)
    again = fit(trainers(name), parent, settings, tmp_path / "two", rows[::-1])
    assert result.held_out_loss == pytest.approx(again.held_out_loss, rel=0.2)  # another order trains other weights
    none = fit(trainers(name), parent, training(held_out=0), tmp_path / "three", rows)
    assert (none.num_held_out, none.num_rows, none.held_out_loss, none.train_loss) == (0, len(rows), None, None)
    if name == "fake":
        return
    every = {(*row.prompt_token_ids, *row.completion_token_ids) for row in rows}
    size = result.num_rows
    seen: list[tuple[int, ...]] = []
    for batch in recorded.batches:
        for ids, mask in zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True):
            seen.append(tuple(ids[: sum(mask)]))
    left_out = every - set(seen[:size])
    assert len(left_out) == num_left_out and left_out == every - set(seen[size : 2 * size])

    import torch

    from loop.engines.hf_models import load_model

    model = load_model(CheckpointRef(sha256="", path=tmp_path / "one"), torch.float32, torch.device("cpu")).eval()
    total, count = 0.0, 0
    for row in rows:
        ids = [*row.prompt_token_ids, *row.completion_token_ids]
        if tuple(ids) in left_out:
            with torch.no_grad():
                logprobs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            for position in range(len(row.prompt_token_ids), len(ids)):
                total -= float(logprobs[position - 1, ids[position]])
                count += 1
    assert result.held_out_loss == pytest.approx(
        total / count, rel=0.02
    )  # weights are written in the parent's precision


def test_learning_by_heart_shows_in_what_was_held_out(
    trainers: Callable[[str], Trainer], tiny: CheckpointRef, tmp_path: Path
) -> None:
    rows = [
        TrainingRow(
            prompt_token_ids=(9, 10 + index), completion_token_ids=(30 + index * 7 % 50, 30 + index * 11 % 50, EOS)
        )
        for index in range(20)
    ]
    result = fit(trainers("trl"), tiny, training(num_epochs=60, learning_rate=1e-2), tmp_path / "out", rows)
    assert result.held_out_loss is not None and result.train_loss is not None
    assert result.held_out_loss - result.train_loss > 0.5


# ---- how it trains -------------------------------------------------------------------------------------------------


def test_it_learns_a_repeated_set(trainers: Callable[[str], Trainer], tiny: CheckpointRef, tmp_path: Path) -> None:
    for method in ("full", "lora"):
        settings = training(method, num_steps=30, learning_rate=1e-2)
        losses = fit(trainers("trl"), tiny, settings, tmp_path / method, some_rows()[:4]).losses
        assert losses[-1] < 0.7 * losses[0]


def test_the_recipe_reaches_the_optimizer(
    recorded: Any, trainers: Callable[[str], Trainer], tiny: CheckpointRef, tmp_path: Path
) -> None:
    """AdamW with the given betas and decay; linear warm-up, then a cosine that ends at min_learning_rate."""
    import torch

    rates: list[float] = []
    step = recorded.training_step

    def training_step(self: Any, *arguments: Any, **more: Any) -> Any:
        rates.append(self.optimizer.param_groups[0]["lr"])
        return step(self, *arguments, **more)

    recorded.training_step = training_step
    settings = training(
        num_steps=20, warmup_steps=5, adam_beta1=0.8, adam_beta2=0.9, weight_decay=0.05, max_grad_norm=0.5,
        batch_size=2, learning_rate=4e-3, min_learning_rate=1e-3,
    )  # fmt: skip
    fit(trainers("trl"), tiny, settings, tmp_path / "out")
    trainer = recorded.last
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert optimizer.param_groups[0]["weight_decay"] == 0.05
    assert trainer.args.max_grad_norm == 0.5
    assert rates[:6] == pytest.approx([4e-3 * done / 5 for done in range(6)])
    for done, rate in enumerate(rates[5:]):
        assert rate == pytest.approx(1e-3 + 3e-3 * (1 + math.cos(math.pi * done / 15)) / 2)
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(1e-3)


def test_the_seed_decides_the_order(trainers: Callable[[str], Trainer], tiny: CheckpointRef, tmp_path: Path) -> None:
    one = fit(trainers("trl"), tiny, training(num_steps=2), tmp_path / "one")
    two = fit(trainers("trl"), tiny, training(num_steps=2) | {"seed": 6}, tmp_path / "two")
    assert one.losses != two.losses


@pytest.mark.parametrize("method", ["full", "lora"])
def test_gradient_checkpointing_changes_memory_and_nothing_else(
    method: str, trainers: Callable[[str], Trainer], tiny: CheckpointRef, tmp_path: Path
) -> None:
    found = []
    for on in (True, False):
        settings = training(method, dropout=0.1, gradient_checkpointing=on)
        found.append(fit(trainers("trl"), tiny, settings, tmp_path / f"{on}").losses)
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert len(set(found[0])) == len(found[0])


def test_a_loss_that_is_no_number_is_an_error(trainers: Callable[[str], Trainer], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    path = make_tiny_model(tmp_path / "model")
    weights = load_file(path / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EngineError, match=r"the loss is nan at step 1; lower training\.learning_rate"):
        fit(trainers("trl"), CheckpointRef(sha256="", path=path), training(), tmp_path / "out")
    assert not contents(tmp_path / "out")


def test_weights_that_break_in_the_last_step_are_not_written(
    trainers: Callable[[str], Trainer], tiny: CheckpointRef, tmp_path: Path
) -> None:
    settings = training(num_steps=1, learning_rate=1e38, min_learning_rate=0.0, weight_decay=10.0)
    with pytest.raises(EngineError, match="the weights are not finite after the last step"):
        fit(trainers("trl"), tiny, settings, tmp_path / "out")
    assert not contents(tmp_path / "out")


# ---- what it writes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bfloat16", [True, False])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("config_says", [True, False])
def test_weights_keep_the_parents_precision_and_its_configuration(
    bfloat16: bool, method: str, config_says: bool, trainers: Callable[[str], Trainer], tmp_path: Path
) -> None:
    """Also where config.json names no dtype. Several end tokens, use_cache and the rest of the configs stay as they were."""
    from safetensors.torch import load_file
    from transformers import GenerationConfig

    path = make_tiny_model(tmp_path / "model", bfloat16=bfloat16)
    GenerationConfig(eos_token_id=[7, 0], pad_token_id=0).save_pretrained(path)
    before = json.loads((path / "config.json").read_text())
    if not config_says:
        (path / "config.json").write_text(json.dumps({key: before[key] for key in before if key != "dtype"}))
    fit(trainers("trl"), CheckpointRef(sha256="", path=path), training(method), tmp_path / "out")
    old, new = load_file(path / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in old.items()} == {name: tensor.dtype for name, tensor in new.items()}
    assert any(not old[name].equal(new[name]) for name in old)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == before
    for file in ("generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "out" / file).read_text() == (path / file).read_text()


@pytest.mark.parametrize("has_pad", [True, False])
def test_the_tokenizer_keeps_its_hash(has_pad: bool, trainers: Callable[[str], Trainer], tmp_path: Path) -> None:
    """Over two rounds, and also where there is no padding token and the trainer has to invent one."""
    from loop.engines.hf_models import load_tokenizer

    path = make_tiny_model(tmp_path / "model")
    if not has_pad:
        table = json.loads((path / "tokenizer_config.json").read_text())
        del table["pad_token"]
        (path / "tokenizer_config.json").write_text(json.dumps(table))
    parent = CheckpointRef(sha256="", path=path)
    hashes = {load_tokenizer(parent)[1]}
    for name in ("one", "two"):
        fit(trainers("trl"), parent, training(num_steps=1), tmp_path / name)
        parent = CheckpointRef(sha256="", path=tmp_path / name)
        hashes.add(load_tokenizer(parent)[1])
        sample(parent)
    assert len(hashes) == 1


def test_an_adapter_and_its_merged_weights_are_the_same_model(
    trainers: Callable[[str], Trainer], tiny: CheckpointRef, tmp_path: Path
) -> None:
    """And a parent adapter goes on being trained: its next step starts where it stood, and merging it later works."""
    import torch

    fit(trainers("trl"), tiny, training("lora", merge=False), tmp_path / "adapter")
    fit(trainers("trl"), tiny, training("lora", merge=True), tmp_path / "merged")
    adapter = CheckpointRef(sha256="", path=tmp_path / "adapter", base_path=tiny.path)
    merged = CheckpointRef(sha256="", path=tmp_path / "merged")
    torch.testing.assert_close(logits(adapter), logits(merged), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(adapter), logits(tiny), atol=1e-2)

    one = fit(trainers("trl"), adapter, training("lora", merge=False), tmp_path / "second")
    fit(trainers("trl"), adapter, training("lora", merge=True), tmp_path / "second-merged")
    other = fit(trainers("trl"), merged, training(num_steps=1), tmp_path / "other")
    assert one.adapter and one.losses[0] == pytest.approx(other.losses[0], abs=1e-4)
    second = CheckpointRef(sha256="", path=tmp_path / "second", base_path=tiny.path)
    assert not torch.allclose(logits(second), logits(adapter), atol=1e-3)
    again = logits(CheckpointRef(sha256="", path=tmp_path / "second-merged"))
    torch.testing.assert_close(logits(second), again, atol=1e-4, rtol=1e-4)


def test_an_adapter_over_bfloat16_is_to_the_bit_what_the_trainer_merges(
    trainers: Callable[[str], Trainer], tmp_path: Path
) -> None:
    import torch

    from loop.engines.hf_models import load_model

    base = make_tiny_model(tmp_path / "model", bfloat16=True)
    parent = CheckpointRef(sha256="", path=base)
    fit(trainers("trl"), parent, training("lora", merge=False), tmp_path / "adapter")
    fit(trainers("trl"), parent, training("lora", merge=True), tmp_path / "merged")
    refs = [
        CheckpointRef(sha256="", path=tmp_path / "adapter", base_path=base),
        CheckpointRef(sha256="", path=tmp_path / "merged"),
    ]
    adapter, merged = (load_model(ref, torch.bfloat16, torch.device("cpu")).state_dict() for ref in refs)
    assert all(torch.equal(adapter[name], merged[name]) for name in merged)


def test_a_pickled_adapter_is_refused(trainers: Callable[[str], Trainer], tiny: CheckpointRef, tmp_path: Path) -> None:
    fit(trainers("trl"), tiny, training("lora", merge=False, num_steps=1), tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    adapter = CheckpointRef(sha256="", path=tmp_path / "adapter", base_path=tiny.path)
    with pytest.raises(EngineError, match=r"holds no adapter_model\.safetensors"):
        sample(adapter)
    with pytest.raises(EngineError, match=r"holds no adapter_model\.safetensors"):
        fit(trainers("trl"), adapter, training("lora"), tmp_path / "out")


@pytest.mark.slow
def test_a_trainer_that_stays_up_does_not_grow(trainers: Callable[[str], Trainer], tmp_path: Path) -> None:
    """After each of twenty fits less is left than one checkpoint takes, where a fit takes four times that and more."""
    path = make_tiny_model(tmp_path / "model", head_size=256, trained=False)
    size_bytes = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    trainer: Any = trainers("trl remote")
    fit(trainer, CheckpointRef(sha256="", path=path), training(num_steps=1), tmp_path / "first")

    def rss_bytes() -> int:
        guard = psutil.Process(trainer.worker.process.pid)
        return max(process.memory_info().rss for process in [guard, *guard.children(recursive=True)])

    before = rss_bytes()
    for number in range(20):
        out_dir = tmp_path / f"fit-{number}"
        fit(trainer, CheckpointRef(sha256="", path=path), training(num_steps=1), out_dir)
        shutil.rmtree(out_dir)
        assert abs(rss_bytes() - before) < size_bytes, number
    small = make_tiny_model(tmp_path / "small", trained=False)
    fit(trainer, CheckpointRef(sha256="", path=small), training(num_steps=1), tmp_path / "small-fit")
    assert before - rss_bytes() < size_bytes, "the first fit left something behind"


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), MemoryError()])
def test_no_figure_is_worth_the_weights(
    trainers: Callable[[str], Trainer], tiny: CheckpointRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:  # fmt: skip
    """What cannot be measured after a fine-tune is not known; the weights are written all the same."""
    from loop.engines import trl_trainer

    def too_large(model: object, rows: object) -> float:
        raise error

    monkeypatch.setattr(trl_trainer, "mean_loss", too_large)
    result = fit(trainers("trl"), tiny, training(num_epochs=1, held_out=3), tmp_path / "out", many_rows(65))
    assert (result.num_held_out, result.held_out_loss, result.train_loss) == (3, None, None)
    assert result.num_steps > 0 and (tmp_path / "out" / "model.safetensors").stat().st_size > 0
