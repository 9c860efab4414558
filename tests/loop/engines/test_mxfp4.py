"""A tiny GPT-OSS in MXFP4: its base is dequantised once, and it trains, saves and samples in bfloat16."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from loop.config.settings import Engine
from loop.engines import hf_models
from loop.engines.hf_models import dequantise, load_model
from loop.engines.mxfp4 import dequantised_bytes, is_mxfp4, name_of_dequantised, num_weights
from loop.errors import ConfigError, EngineError
from loop.run import base_model as models
from loop.workers.child import Child
from tests.support.engines import GREEDY, ask, at, chat, fit, in_process, training
from tests.support.tiny import make_tiny_gpt_oss

pytestmark = pytest.mark.usefixtures("one_thread")


def quantise(path: Path) -> Path:
    """The experts' weights of a checkpoint in MXFP4: random halves of bytes, all with one scale."""
    tensors, new = load_file(path / "model.safetensors"), {}
    draws = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inner, outer = tensor.shape
            shape = (experts, outer, inner // 32)
            new[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=draws)
            new[f"{name}_scales"] = torch.full(shape, 121, dtype=torch.uint8)
        else:
            new[name] = tensor
    save_file(new, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantise(make_tiny_gpt_oss(tmp_path_factory.mktemp("models") / "quantised"))


@pytest.fixture(scope="module")
def dequantised(quantised: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("models") / "dequantised"
    dequantise(quantised, target)
    return target


def test_the_copy_is_an_ordinary_model_of_the_same_weights(quantised: Path, dequantised: Path) -> None:
    assert is_mxfp4(quantised) and not is_mxfp4(dequantised)
    assert "quantization_config" not in (dequantised / "config.json").read_text()
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (dequantised / name).read_bytes() == (quantised / name).read_bytes()
    tensors = load_file(dequantised / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert sum(tensor.nbytes for tensor in tensors.values()) == dequantised_bytes(quantised)
    assert num_weights(quantised / "model.safetensors") == num_weights(dequantised / "model.safetensors")
    (blocks,) = (
        v for k, v in load_file(quantised / "model.safetensors").items() if k.endswith("0.mlp.experts.down_proj_blocks")
    )
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]) / 2**6  # 121 - 127
    pairs = torch.stack([values[(blocks & 15).long()], values[(blocks >> 4).long()]], dim=-1)  # the low half is first
    expected = pairs.flatten(-3).transpose(1, 2)
    assert torch.equal(tensors["model.layers.0.mlp.experts.down_proj"].float(), expected)


def test_a_model_in_mxfp4_is_loaded_in_bfloat16_by_name(quantised: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without that the package `kernels` would decide."""
    given: dict[str, Any] = {}
    load = hf_models.AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        hf_models.AutoModelForCausalLM,
        "from_pretrained",
        lambda *a, **named: (given.update(named), load(*a, **named))[1],
    )
    model = load_model(at(quantised), "auto", torch.device("cpu"))
    assert given["quantization_config"].dequantize and given["dtype"] == torch.bfloat16
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_it_trains_is_saved_and_samples(dequantised: Path, trl: Any, tmp_path: Path) -> None:
    result = fit(trl, at(dequantised), training(num_steps=2), tmp_path / "out")
    assert len(result.losses) == 2
    trained, before = (load_file(path / "model.safetensors") for path in (tmp_path / "out", dequantised))
    assert trained.keys() == before.keys()
    changes = {name for name in trained if not torch.equal(trained[name].float(), before[name].float())}
    assert "model.layers.0.mlp.experts.down_proj" in changes
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors")) == ["model.safetensors"]
    assert not is_mxfp4(tmp_path / "out")
    for path in (dequantised, tmp_path / "out"):
        assert ask(in_process(at(path), dtype="bfloat16"), [chat("r", seed=1)], GREEDY)["r"].token_ids


def test_weights_that_are_missing_are_not_drawn_at_random(dequantised: Path, tmp_path: Path) -> None:
    shutil.copytree(dequantised, tmp_path / "it")
    tensors = load_file(tmp_path / "it" / "model.safetensors")
    del tensors["model.layers.1.mlp.experts.down_proj"]
    save_file(tensors, tmp_path / "it" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EngineError, match="lacks 1 of the model's weights, model.layers.1.mlp.experts.down_proj first"):
        load_model(at(tmp_path / "it"), "auto", torch.device("cpu"))


def test_the_base_of_a_run_is_the_copy_made_once(
    quantised: Path, dequantised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    commands: list[Any] = []

    def worker(command: dict[str, Any], **more: Any) -> Any:
        commands.append(command["op"])
        return SimpleNamespace(info=Child.answer(None, command), end=lambda: None)  # type: ignore[arg-type]

    monkeypatch.setattr(models, "Worker", worker)
    monkeypatch.setattr("loop.workers.child.prepare_torch", lambda: None)
    config: Any = SimpleNamespace(
        model=SimpleNamespace(source=str(quantised), revision=None), engine=Engine(device="cpu")
    )
    first = models.base_model(config, tmp_path, tmp_path / "run")
    assert models.base_model(config, tmp_path, tmp_path / "run") == first and commands == ["dequantise"]
    assert (first / "model.safetensors").read_bytes() == (dequantised / "model.safetensors").read_bytes()
    config.model.source = str(dequantised)
    assert models.base_model(config, tmp_path, tmp_path / "run") == dequantised and commands == ["dequantise"]


def test_a_model_that_changes_gets_another_copy(quantised: Path, tmp_path: Path) -> None:
    shutil.copytree(quantised, tmp_path / "it")
    before = name_of_dequantised(tmp_path / "it")
    assert name_of_dequantised(tmp_path / "it") == before != name_of_dequantised(quantised)
    (tmp_path / "it" / "config.json").write_text("{}")
    assert name_of_dequantised(tmp_path / "it") != before


def test_a_disk_without_room_is_told_before_anything_is_written(
    quantised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_models.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(
        ConfigError, match=r"model.source: .* in bfloat16 takes .* free; free some, or set XDG_CACHE_HOME"
    ):
        dequantise(quantised, tmp_path / "it")
    assert not (tmp_path / "it").exists() and not list((tmp_path / "it.tmp").iterdir())


@pytest.mark.parametrize(
    "config", ["", "[]", "{}", '{"quantization_config": 3}', '{"quantization_config": {"quant_method": "fp8"}}']
)
def test_other_directories_are_not_in_mxfp4(config: str, tmp_path: Path) -> None:
    assert not is_mxfp4(tmp_path)
    (tmp_path / "config.json").write_text(config)
    assert not is_mxfp4(tmp_path)
