"""`loopctl estimate`: what it prints, its JSON, its exit codes; and what `config check` and `doctor` say of the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.estimate import MODELS
from loop.fitting import machine
from tests.support.cli import Loopctl, call, one_line
from tests.support.configurations import configuration

__all__ = ["call"]
STAGES = ["sampling", "evaluating", "training", "main memory", "disk"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the config.json of a large model and nothing else of it."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps(MODELS["Qwen3-4B"]))
    for name in ("model.safetensors", "tokenizer.json", "chat_template.jinja"):
        (tmp_path / "model" / name).write_bytes(b"")
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOOP_CONFIG", raising=False)
    return tmp_path


def write(directory: Path, **engine: Any) -> None:
    text = configuration(
        model={"source": "./model"},
        sampling={"max_new_tokens": 2048},
        training={"micro_batch_size": 1, "max_tokens": 2048},
        suites=[{"name": "ones", "source": "first-steps", "max_new_tokens": 256}],
        engine={"sampler": "transformers", "trainer": None, "num_training_processes": 1, **engine},
    )
    (directory / "loop.toml").write_text(text)


def has(monkeypatch: pytest.MonkeyPatch, gpus_gb: list[float], memory_gb: float = 500) -> None:
    """This machine gets these GPUs and this memory."""
    monkeypatch.setattr(machine, "total_bytes", lambda: {i: int(gb * 1e9) for i, gb in enumerate(gpus_gb)})
    monkeypatch.setattr(machine, "device_names", lambda: ["NVIDIA H100 80GB HBM3"])
    monkeypatch.setattr(machine, "main_memory", lambda: int(memory_gb * 1e9))


def test_it_fits(place: Path, call: Loopctl, monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, [84.0])
    said = call("estimate", "--formula", "--json")
    assert said.code == 0, said
    answer = said.json
    assert answer["fits"] is True and [need["what"] for need in answer["needs"]] == STAGES
    for need in answer["needs"]:
        assert set(need) == {"what", "key", "needed_bytes", "has_bytes", "verdict", "detail", "remedy"}
        assert need["needed_bytes"] > 0
        if need["what"] != "disk":  # which is this machine's own
            assert (need["verdict"], need["remedy"]) == ("fits", "")
    assert answer["model"]["num_parameters"] == 4_022_468_096
    assert answer["resolved"]["num_training_processes"] == answer["resolved"]["gpus_per_engine"] == 1
    assert answer["training"]["formula"]["peak_bytes"] == answer["needs"][2]["needed_bytes"]
    assert answer["training"]["counted"] is None
    assert set(answer["times"]) == {"sampling_s", "training_s", "evaluating_s"} and answer["times_from"] == "formula"
    text = call("estimate", "--formula")
    assert text.code == 0 and "4,022,468,096 parameters" in text.out and "time      a round: sampling" in text.out


def test_it_cannot_fit(place: Path, call: Loopctl, monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, [25.2])
    said = call("estimate", "--formula", "--json")
    assert said.code == 1 and said.json["fits"] is False
    assert [need["remedy"] for need in said.json["needs"] if need["verdict"] == "cannot"] == [
        'set training.method = "lora"'
    ]
    assert 'set training.method = "lora"' in call("estimate", "--formula").out


@pytest.mark.slow
def test_the_peak_is_counted_in_a_worker(place: Path, call: Loopctl, monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, [84.0])
    small = MODELS["Qwen3-4B"] | {
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "vocab_size": 640,
    }
    (place / "model/config.json").write_text(json.dumps(small))
    training = call("estimate", "--json").json["training"]
    assert training["counted"]["peak_bytes"] > training["counted"]["at_rest_bytes"] > 0


def test_config_check_warns_and_doctor_fails(place: Path, call: Loopctl, monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, [25.2])
    checked = call("config", "check", "--json")
    assert checked.code == 0 and checked.json["ok"] is True
    assert any('set training.method = "lora"' in warning for warning in checked.json["warnings"])
    monkeypatch.setattr("loop.cli.doctor._DEVICES", 'print(\'{"gpus": [["Card", 25200000000]], "threads": 2}\')')
    lines = {check["name"]: check for check in call("doctor", "--json").json["checks"]}
    assert lines["fit training"]["verdict"] == "fail" and lines["fit sampling"]["verdict"] == "ok"


def test_a_run_that_cannot_fit_is_refused_before_anything_is_sampled(
    place: Path, call: Loopctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    has(monkeypatch, [25.2])
    one_line(call("run"), 78, "loop.toml:", "training: training needs", 'set training.method = "lora"')
    assert not (place / ".loop/loop.db").exists()


def test_a_hub_model_that_is_not_here_gives_one_line(
    place: Path, call: Loopctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place))
    text = (place / "loop.toml").read_text().replace('"./model"', '"owner/model"')
    (place / "loop.toml").write_text(text)
    one_line(call("estimate"), 78, "model.source:", "not in the local cache", "hf download owner/model config.json")


def test_the_fake_model_needs_nothing(place: Path, call: Loopctl) -> None:
    (place / "ones.jsonl").write_text("")
    text = configuration(suites=[{"name": "ones", "source": "first-steps"}])
    (place / "loop.toml").write_text(text)
    assert call("estimate", "--json").json["fits"] is True
