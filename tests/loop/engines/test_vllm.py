"""vLLM for real, on a CPU: the contract over all samplers, the proof of weights, and what a change of weights may do.

Runs where vLLM is installed (`make test-vllm`); each engine takes ten seconds or more to start.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` installs it")

from loop.engines.base import CheckpointRef, Forced, Generated, Sampler
from loop.errors import EngineError
from loop.workers.worker import RemoteSampler
from tests.loop.engines.test_samplers import TestTheContract  # noqa: F401  (runs over this module's pair)
from tests.support.engines import GREEDY, HOT, Models, ask, chat, check_probe, forced, make_models, remote, settings
from tests.support.tiny import make_tiny_model

Start = Callable[..., RemoteSampler]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"), head_size=32)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    started: list[RemoteSampler] = []
    log = tmp_path_factory.mktemp("logs") / "sampler.log"

    def start(checkpoint: CheckpointRef, **changed: Any) -> RemoteSampler:
        started.append(remote(checkpoint, "vllm", log, **{"kv_cache_bytes": 64 << 20} | changed))
        return started[-1]

    yield start
    for sampler in started:
        sampler.close()


@pytest.fixture(scope="module")
def pair(models: Models, start: Start) -> tuple[Sampler, Sampler]:
    return start(models["one"]), start(models["one"], batch_size=7)


def same(drawn: dict[str, Generated], wanted: dict[str, Generated]) -> bool:
    """Whether these are the same completions; in another batch the last digits of their log-probabilities are others."""
    return drawn.keys() == wanted.keys() and all(
        each.token_ids == wanted[name].token_ids and abs(each.logprob_sum - wanted[name].logprob_sum) < 1e-3
        for name, each in drawn.items()
    )


def check_logprobs(model_path: Path, drawn: dict[str, Generated]) -> None:
    """They are those under transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_path)
    for generated in drawn.values():
        assert generated.logprob_sum == forced(model, generated)


# ---- the proof, and what changes weights ---------------------------------------------------------------------------


def test_other_weights_are_served_in_place_and_proved(models: Models, start: Start) -> None:
    """To and fro: each time what is drawn is what a fresh engine would draw, with the new weights' log-probabilities."""
    sampler = start(models["one"])
    requests = [chat(f"r{i}", seed=i, task=i) for i in range(8)]
    before = ask(sampler, requests, HOT)
    pid = sampler.worker.process.pid
    for name in ("other", "one", "other"):
        assert sampler.change(models[name])
        drawn = ask(sampler, requests, HOT)
        assert same(drawn, before) == (name == "one")
        check_logprobs(models[name].path, drawn)
    assert sampler.worker.process.pid == pid
    sampler.close()


def test_weights_that_cannot_be_told_apart_are_not_changed_in_place(models: Models, start: Start) -> None:
    """The proof would pass for the old ones too: that is none."""
    sampler = start(models["one"])
    assert not sampler.change(models["near"])
    sampler.close()


def sampler_over(engine: Any, checkpoint: CheckpointRef) -> Any:
    """A VllmSampler whose engine is a stand-in."""
    from loop.engines.vllm_sampler import VllmSampler
    from loop.engines.weights_proof import reference

    sampler = object.__new__(VllmSampler)
    sampler.settings, sampler.dtype, sampler.on_gpu = settings(), "float32", False
    sampler.engine, sampler.num_adapters = engine, 0
    sampler._take(checkpoint, reference(checkpoint, "float32"))
    return sampler


def test_a_model_that_vllm_cannot_reload_is_left_to_a_new_engine(models: Models) -> None:
    def missing(method: str, kwargs: Any = None) -> None:
        raise NotImplementedError(f"{method} is not there for this model")

    sampler = sampler_over(SimpleNamespace(collective_rpc=missing), models["one"])
    assert not sampler.change(models["other"])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_change_that_is_reported_but_not_made_is_noticed(
    models: Models, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that then serves this share of the new weights. On a CPU vLLM itself leaves the old output layer in use."""
    from loop.engines.weights_proof import reference

    called: list[str] = []
    sampler = sampler_over(
        SimpleNamespace(collective_rpc=lambda name, kwargs=None: called.append(name), reset_prefix_cache=lambda: None),
        models["one"],
    )
    pairs = zip(*(reference(models[name], "float32").logprobs for name in ("one", "other")), strict=True)
    served = [(1 - share) * old + share * new for old, new in pairs]
    monkeypatch.setattr(sampler, "_served", lambda proof: served)
    assert sampler.change(models["other"]) == (share == 1.0)
    assert called == ["reload_weights", "repack_shared_weights"]


def test_an_adapter_is_served_over_the_resident_base(models: Models, start: Start, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    adapters = []
    for number in (1, 2):
        torch.manual_seed(number)
        base = AutoModelForCausalLM.from_pretrained(models["one"].path)
        model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        path = tmp_path / f"adapter-{number}"
        model.save_pretrained(path)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(models["one"].path / name, path)
        adapters.append(CheckpointRef(sha256=f"adapter-{number}", path=path, base_path=models["one"].path))
    sampler = start(models["one"], lora_rank=4)
    requests = [chat(f"r{i}", seed=i, task=i) for i in range(4)]
    seen = [ask(sampler, requests, HOT)]
    for checkpoint in (*adapters, models["one"]):
        assert sampler.change(checkpoint)
        seen.append(ask(sampler, requests, HOT))
    assert same(seen[0], seen[3]) and seen[0] != seen[1] != seen[2]
    assert not sampler.change(models["other"]), "an engine made for adapters is started again for other weights"
    sampler.close()


def test_a_prober_is_there_while_vllm_serves(models: Models, start: Start) -> None:
    sampler = start(models["one"])
    drawn = ask(sampler, [chat("r", seed=1)], GREEDY)["r"]
    record = check_probe(sampler, drawn)
    assert same(ask(sampler, [chat("r", seed=1)], GREEDY), {"r": drawn})
    assert sampler.change(models["other"])
    text = Forced(id="t", prompt_token_ids=drawn.prompt_token_ids, token_ids=drawn.token_ids)
    ((after,),) = sampler.probe([text], HOT, 8)
    assert after.entropy != record.entropy
    sampler.close()


# ---- faults --------------------------------------------------------------------------------------------------------


def engine_of(sampler: RemoteSampler) -> psutil.Process:
    """The engine's process, below that of its guard."""
    return psutil.Process(sampler.worker.process.pid).children()[0]


def test_a_killed_engine_loses_only_what_was_unfinished(models: Models, start: Start) -> None:
    sampler = start(models["one"])
    requests = [chat(f"r{i}", seed=i, task=i) for i in range(600)]  # more than the pipe holds
    whole = ask(sampler, requests, HOT)
    kept: dict[str, Generated] = {}
    killed = False
    with pytest.raises(EngineError, match="sampler: it was killed"):
        for batch in sampler.generate(requests, HOT):
            kept |= {generated.id: generated for generated in batch}
            if len(kept) >= 8 and not killed:
                killed = True
                engine_of(sampler).kill()
    assert 8 <= len(kept) < 600
    again = start(models["one"])
    assert same(kept | ask(again, [request for request in requests if request.id not in kept], HOT), whole)
    again.close()


def test_a_hung_engine_is_ended(models: Models, start: Start) -> None:
    sampler = start(models["one"])
    sampler.worker.heartbeat_timeout_s = 3.0
    with pytest.raises(EngineError, match="nothing was heard from it"):
        for _ in sampler.generate([chat(f"r{i}", seed=i, task=i) for i in range(600)], HOT):
            engine_of(sampler).suspend()
    assert sampler.worker.process.poll() is not None


def test_no_memory_for_the_cache_is_said_in_one_line(models: Models, start: Start) -> None:
    with pytest.raises(EngineError) as refused:
        start(models["one"], kv_cache_bytes=1 << 50)
    assert "\n" not in str(refused.value)
    assert "memory" in str(refused.value) and "engine.kv_cache_bytes" in str(refused.value)


@pytest.mark.slow
def test_ten_starts_leave_nothing(
    models: Models, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes, shared memory and temporary files are as before; so is this process's memory, but for a few MB."""
    us = psutil.Process()
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # others may write to /tmp meanwhile
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))  # a cache, which stays
    (tmp_path / "compiled").mkdir()
    names = lambda: {path.name for place in (Path("/dev/shm"), tmp_path) for path in place.iterdir()}  # noqa: E731
    rss = []
    for number in range(10):
        before, others = names(), set(us.children(recursive=True))  # the engine that the other tests share
        sampler = start(models["one"])
        ask(sampler, [chat(f"r{i}", seed=i) for i in range(4)], HOT)
        sampler.close()
        assert not (left := set(us.children(recursive=True)) - others), f"start {number} left processes: {left}"
        assert not (left := names() - before), f"start {number} left {left}"
        rss.append(us.memory_info().rss)
    assert rss[-1] < rss[1] + 5e6


# ---- exports ---------------------------------------------------------------------------------------------------------


def test_an_export_is_served_with_its_weights_and_its_decoding_settings(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vllm.config import ModelConfig

    from loop.cli.main import loopctl, run
    from tests.loop.publishing.test_models import record

    make_tiny_model(tmp_path / "model", head_size=32)
    record(tmp_path, "full", lambda target: make_tiny_model(target, head_size=32, seed=1))
    monkeypatch.chdir(tmp_path)
    assert run(["export", "1", "out"], loopctl, "loopctl") == 0, capsys.readouterr()
    sampler = start(CheckpointRef(sha256="exported", path=tmp_path / "out"))
    drawn = ask(sampler, [chat(f"r{i}", seed=i, task=i) for i in range(8)], HOT)
    check_logprobs(tmp_path / ".loop/checkpoints/round-0001", drawn)
    sampler.close()
    taken = ModelConfig(model=str(tmp_path / "out")).get_diff_sampling_param()
    assert taken == {"temperature": 0.8, "top_k": 0, "top_p": 0.9, "max_tokens": 16}
