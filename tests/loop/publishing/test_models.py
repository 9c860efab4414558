"""Exports of a tiny real model: transformers loads them, and they say what the checkpoint says, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loop.config.loading import load_config
from loop.config.same_run import resolved
from store.checkpoints import commit_directory, hash_directory, manifest_sha256, manifest_size_bytes
from store.db import open_database
from store.ledger import Ledger
from store.records import Checkpoint
from tests.support.cli import Loopctl, call
from tests.support.configurations import configuration
from tests.support.tiny import make_tiny_model

__all__ = ["call"]
CONFIG = configuration(
    name="tiny",
    rounds=None,
    seed=None,
    model={"source": "model"},
    prompts=None,
    sampling={"temperature": 1.1},
    training={"method": "lora", "lora": {"rank": 4, "merge": False}, "batch_size": None, "micro_batch_size": None},
    suites=[{"name": "first-steps", "source": "first-steps", "temperature": 0.8, "top_p": 0.9, "max_new_tokens": 16}],
    decide={"suite": "first-steps"},
    diagnosis=None,
    engine=None,
)
TEXT = "<|im_start|>user\nWrite a function that returns the sum of numbers.<|im_end|>\n<|im_start|>assistant\n"


def record(directory: Path, kind: Any, make: Any) -> None:
    """A run on `directory`/model whose first round has trained what `make` writes into a directory."""
    (directory / "loop.toml").write_text(CONFIG)
    loaded = load_config(directory / "loop.toml")
    manifest = hash_directory(directory / "model")
    base = Checkpoint(
        manifest_sha256(manifest), "", 0, "full", str(directory / "model"), None, None, 1, manifest, origin={}
    )
    (directory / ".loop").mkdir()
    db = open_database(directory / ".loop/loop.db")
    ledger = Ledger(db)
    run = ledger.create_run("tiny", resolved(loaded.config), "c" * 64, 1, base)
    round = ledger.begin_round(run.id)
    attempt = ledger.begin_attempt(round, "sampling", {})
    round = ledger.finish_stage(round, "sampling", attempt, {}, next_state="training", selections=[])
    scratch, place = directory / ".loop/checkpoints/tmp-1", directory / ".loop/checkpoints/round-0001"
    scratch.mkdir(parents=True)
    make(scratch)
    trained = commit_directory(scratch, place)
    candidate = Checkpoint(
        manifest_sha256(trained), run.id, 1, kind, "checkpoints/round-0001", base.sha256,
        base.sha256 if kind == "adapter" else None, manifest_size_bytes(trained), trained,
    )  # fmt: skip
    attempt = ledger.begin_attempt(round, "training", {})
    ledger.finish_stage(round, "training", attempt, {}, next_state="evaluating", candidates=[candidate])
    db.close()


def logprobs(model: Any, directory: Path) -> Any:
    import torch
    from transformers import AutoTokenizer

    torch.set_num_threads(1)
    ids = AutoTokenizer.from_pretrained(directory)(TEXT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model(ids).logits.log_softmax(-1)


def adapter(directory: Path) -> Any:
    """Writes a LoRA adapter that changes something, over the model in `directory`."""

    def make(target: Path) -> None:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(directory / "model"), config)
        model.save_pretrained(target)
        (target / "README.md").unlink(missing_ok=True)
        AutoTokenizer.from_pretrained(directory / "model").save_pretrained(target)

    return make


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_tiny_model(tmp_path / "model")
    (tmp_path / "model/LICENSE").write_text("Take it.\n")
    (tmp_path / "model/README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_full_checkpoint(place: Path, call: Loopctl) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    record(place, "full", lambda target: make_tiny_model(target, seed=1, trained=False))
    result = call("export", "1", "out", "--json")
    assert result.code == 0, result.err
    ours, theirs = Path("out"), Path(".loop/checkpoints/round-0001")
    model = AutoModelForCausalLM.from_pretrained(ours)
    same = torch.equal(logprobs(model, ours), logprobs(AutoModelForCausalLM.from_pretrained(theirs), theirs))
    assert same, "the log-probabilities"
    tokenizer = AutoTokenizer.from_pretrained(ours)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(place / "model").chat_template
    settings = GenerationConfig.from_pretrained(ours)
    assert (settings.do_sample, settings.temperature, settings.top_p, settings.top_k) == (True, 0.8, 0.9, 0)
    assert settings.eos_token_id == tokenizer.eos_token_id and settings.max_new_tokens == 16
    ids = tokenizer(TEXT, return_tensors="pt")
    torch.manual_seed(0)
    assert model.generate(**ids).shape[1] <= ids["input_ids"].shape[1] + 16
    card = (ours / "README.md").read_text()
    assert "license: mit" in card and "LICENSE" in card and (ours / "LICENSE").read_text() == "Take it.\n"
    assert str(place) not in card, "no path of this machine"


@pytest.mark.slow
def test_an_adapter_and_the_same_merged(place: Path, call: Loopctl) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    record(place, "adapter", adapter(place))
    result = call("export", "1", "adapter", "--json")
    assert result.code == 0 and result.json["kind"] == "adapter", result.err
    names = {entry["name"] for entry in result.json["files"]}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert "config.json" not in names
    assert json.loads(Path("adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "model"
    card = Path("adapter/README.md").read_text()
    assert "library_name: peft" in card and "belongs over the weights of" in card and "--merge" in card

    result = call("export", "1", "merged", "--merge", "--json")
    assert result.code == 0 and result.json["kind"] == "full", result.err
    assert "config.json" in {entry["name"] for entry in result.json["files"]}
    assert not any(entry["name"].startswith("adapter") for entry in result.json["files"])
    card = Path("merged/README.md").read_text()
    assert "library_name: transformers" in card and "merged into its base" in card
    base = AutoModelForCausalLM.from_pretrained("model")
    plain = logprobs(base, Path("model"))
    over = logprobs(PeftModel.from_pretrained(base, "adapter"), Path("adapter"))
    whole = logprobs(AutoModelForCausalLM.from_pretrained("merged"), Path("merged"))
    assert torch.allclose(whole, over, atol=1e-4) and not torch.allclose(whole, plain, atol=1e-2)


@pytest.mark.slow
def test_a_damaged_base_is_found_before_it_is_merged(place: Path, call: Loopctl) -> None:
    record(place, "adapter", adapter(place))
    with (place / "model/model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    result = call("export", "1", "merged", "--merge")
    assert result.code == 1 and result.err.count("\n") == 1 and "the base is damaged" in result.err
    assert not Path("merged").exists()
