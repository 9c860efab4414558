"""vLLM for real, on a CPU: the contract over all samplers, the proof of weights, and what a change of weights may do.

Runs where vLLM is installed (`make test-vllm`); each engine takes ten seconds or more to start.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` installs it")

from loop.engines.base import CheckpointRef, Forced, Generated, Sampler, SamplingParams
from loop.errors import EngineError
from loop.system.trees import TREE
from loop.workers.liveness import used_by
from loop.workers.worker import RemoteSampler, RemoteTrainer, Worker
from tests.loop.engines.test_samplers import TestTheContract  # noqa: F401  (runs over this module's pair)
from tests.support.engines import (
    GREEDY,
    HOT,
    Models,
    ask,
    chat,
    check_probe,
    forced,
    hot,
    in_process,
    make_models,
    no_progress,
    remote,
    settings,
    some_rows,
    training,
    write_rows,
)
from tests.support.tiny import make_random_model, make_tiny_model
from tests.support.waiting import HANG_S

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
    """The proof would pass for the old ones too; and on a CPU most weights are packed away, where nothing can be compared."""
    sampler = start(models["one"])
    assert not sampler.change(models["near"])
    sampler.close()


def sampler_over(engine: Any, checkpoint: CheckpointRef) -> Any:
    """A VllmSampler whose engine is a stand-in."""
    from loop.engines.vllm_sampler import VllmSampler
    from loop.engines.weights_proof import reference

    sampler = object.__new__(VllmSampler)
    sampler.settings, sampler.dtype, sampler.on_gpu = settings(), "float32", False
    sampler.engine, sampler.num_adapters, sampler.progress = engine, 0, no_progress
    sampler._take(checkpoint, reference(checkpoint, "float32"))
    return sampler


def test_a_model_that_vllm_cannot_reload_is_left_to_a_new_engine(models: Models) -> None:
    def missing(method: str, args: Any = (), kwargs: Any = None) -> None:
        raise NotImplementedError(f"{method} is not there for this model")

    sampler = sampler_over(SimpleNamespace(collective_rpc=missing), models["one"])
    assert not sampler.change(models["other"])


HOLDS_OLD = {
    "num_same": 0,
    "other": ["model.norm.weight"],
    "checksums": {},
    "num_empty": 0,
    "num_seen": 9,
    "num_in_files": 9,
}
HOLDS_NEW = HOLDS_OLD | {"num_same": 1, "other": []}


class Reloading:
    """An engine whose workers say in turn that they hold these weights, and which then serves a share of the new ones."""

    def __init__(self, *held: dict[str, Any]) -> None:
        self.held = list(held)
        self.called: list[str] = []

    def collective_rpc(self, name: str, args: Any = (), kwargs: Any = None) -> list[Any]:
        self.called.append(name)
        return [self.held.pop(0)] if name == "held_weights" else [None]

    def reset_prefix_cache(self) -> None:
        pass


@pytest.mark.parametrize(
    ("target", "share", "held", "is_served"),
    [
        ("other", 1.0, (HOLDS_OLD, HOLDS_NEW), True),
        ("other", 0.0, (HOLDS_OLD, HOLDS_NEW), False),  # on a CPU vLLM itself leaves the old output layer in use
        ("other", 0.5, (HOLDS_OLD, HOLDS_NEW), False),
        ("other", 1.0, (HOLDS_OLD, HOLDS_OLD), False),  # the parameters are not those of the files
        ("near", 1.0, (HOLDS_OLD, HOLDS_NEW), True),  # what no log-probability tells apart, the parameters do
        ("near", 1.0, (HOLDS_OLD, HOLDS_OLD), False),
        ("near", 1.0, (HOLDS_OLD | {"num_empty": 1}, HOLDS_NEW | {"num_empty": 1}), False),
        ("near", 1.0, (HOLDS_NEW, HOLDS_NEW), False),
        ("near", 1.0, (HOLDS_OLD | {"checksums": {"a": 1}}, HOLDS_NEW | {"checksums": {"a": 1}}), False),
        ("near", 1.0, (HOLDS_OLD | {"checksums": {"a": 1}}, HOLDS_NEW | {"checksums": {"a": 2}}), True),
    ],
)
def test_a_change_that_is_reported_but_not_made_is_noticed(
    models: Models, target: str, share: float, held: Any, is_served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loop.engines.weights_proof import reference

    engine = Reloading(*held)
    sampler = sampler_over(engine, models["one"])
    pairs = zip(*(reference(models[name], "float32").logprobs for name in ("one", target)), strict=True)
    served = [(1 - share) * old + share * new for old, new in pairs]
    monkeypatch.setattr(sampler, "_served", lambda proof: served)
    assert sampler.change(models[target]) == is_served
    if is_served:
        assert engine.called == ["held_weights", "reload_weights", "repack_shared_weights", "held_weights"]


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


@pytest.mark.parametrize("truncation", [HOT, hot(top_k=0, top_p=0.9), hot(top_k=0, top_p=1.0)])
def test_the_engine_itself_probes_as_transformers_does(
    models: Models, pair: tuple[Sampler, Any], truncation: SamplingParams
) -> None:
    """Figure by figure, but for the last digits; the counts of what the truncation keeps, and where tokens are named, too."""
    sampler, requests = pair[0], [chat(f"r{i}", seed=i, task=i) for i in range(6)]
    drawn = ask(sampler, requests, HOT)
    texts = [
        Forced(id=name, prompt_token_ids=each.prompt_token_ids, token_ids=each.token_ids)
        for name, each in drawn.items()
    ]
    texts[0] = texts[0].model_copy(update={"at": tuple((token, 9, 4) for token in texts[0].token_ids)})
    records, wanted = (
        {record.id: record for (record, *more) in prober.probe(texts, truncation, 8) for record in (record, *more)}
        for prober in (sampler, in_process(models["one"]))
    )
    assert records.keys() == wanted.keys() == drawn.keys()
    for name, record in records.items():
        theirs = wanted[name]
        assert (record.at, record.num_kept, record.top_token_id) == (theirs.at, theirs.num_kept, theirs.top_token_id)
        assert record.entropy == pytest.approx(theirs.entropy, abs=1e-4)
        assert record.top_probability == pytest.approx(theirs.top_probability, abs=1e-4)
        assert record.rest == pytest.approx(theirs.rest, abs=1e-3)
        for ours, there in zip(record.logprobs, theirs.logprobs, strict=True):
            assert ours == pytest.approx(there, abs=1e-3)
    assert same(ask(sampler, requests, HOT), drawn), "and samples on as before"


def test_a_probe_is_of_the_weights_that_are_served_now(models: Models, pair: tuple[RemoteSampler, Any]) -> None:
    sampler = pair[0]
    drawn = ask(sampler, [chat("r", seed=1)], GREEDY)["r"]
    record = check_probe(sampler, drawn)
    assert sampler.change(models["other"])
    text = Forced(id="t", prompt_token_ids=drawn.prompt_token_ids, token_ids=drawn.token_ids)
    ((after,),) = sampler.probe([text], HOT, 8)
    assert after.entropy != record.entropy
    assert sampler.change(models["one"])
    ((again,),) = sampler.probe([text], HOT, 8)
    assert again.entropy == pytest.approx(record.entropy, abs=1e-4)


# ---- faults --------------------------------------------------------------------------------------------------------


PARTS = ("front end", "core", "rank")  # of an engine: each is the parent of the next


def part_of(sampler: RemoteSampler, part: str) -> psutil.Process:
    """A process of the engine. The first of them is below the guard's."""
    process = psutil.Process(sampler.worker.process.pid).children()[0]
    for _ in range(PARTS.index(part)):
        (process,) = [below for below in process.children() if "resource_tracker" not in " ".join(below.cmdline())]
    return process


def test_the_engine_computes_in_processes_that_are_spawned(pair: tuple[RemoteSampler, Any]) -> None:
    """As on a GPU. Spawned: their environment is the worker's at a start of their own, and they belong to its tree."""
    for part in PARTS:
        environment = part_of(pair[0], part).environ()
        assert environment["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn", part
        assert environment["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1", part
        assert environment[TREE] == pair[0].worker.token, part
    assert part_of(pair[0], "core").environ()["VLLM_NO_USAGE_STATS"] == "1", "which only the front end sets"


def test_work_in_the_engines_own_process_is_seen_as_the_workers(pair: tuple[RemoteSampler, Any]) -> None:
    """Else a worker whose front end waits for the engine would be taken for one that does nothing."""
    sampler = pair[0]
    core = part_of(sampler, "rank")
    before, own = used_by(sampler.worker.process.pid).ran_s, sum(core.cpu_times()[:2])
    ask(sampler, [chat(f"r{i}", seed=i, task=i) for i in range(100)], HOT)
    grown = sum(core.cpu_times()[:2]) - own
    assert grown > 0 and used_by(sampler.worker.process.pid).ran_s - before >= grown


@pytest.mark.parametrize("part", PARTS)
def test_a_killed_engine_loses_only_what_was_unfinished(
    models: Models, start: Start, pair: tuple[Sampler, Sampler], part: str
) -> None:
    sampler = start(models["one"])
    requests = [chat(f"r{i}", seed=i, task=i) for i in range(600)]  # more than the pipe holds
    whole = ask(sampler, requests, HOT)
    kept: dict[str, Generated] = {}
    killed = False
    # The core outlives a rank that was killed for long enough to say so in the log, and then ends by itself.
    how = "it ended with exit code 1" if part == "rank" else "it was killed"
    processes = [part_of(sampler, each) for each in PARTS]
    with pytest.raises(EngineError, match=f"sampler: {how}"):
        for batch in sampler.generate(requests, HOT):
            kept |= {generated.id: generated for generated in batch}
            if len(kept) >= 8 and not killed:
                killed = True
                part_of(sampler, part).kill()
    assert 8 <= len(kept) < 600
    assert not any(process.is_running() for process in processes)
    assert same(kept | ask(pair[0], [request for request in requests if request.id not in kept], HOT), whole)


@pytest.mark.parametrize("part", PARTS)
def test_a_hung_engine_is_ended(models: Models, start: Start, part: str) -> None:
    sampler = start(models["one"])
    patience = sampler.worker.patience
    patience.silence_s = patience.limit_s = 3.0
    patience.window_s = 0.7
    why = "nothing was heard from it|it made no progress"  # a core that waits for a hung rank may look busy
    processes = [part_of(sampler, each) for each in PARTS]
    with pytest.raises(EngineError, match=why):
        for _ in sampler.generate([chat(f"r{i}", seed=i, task=i) for i in range(600)], HOT):
            part_of(sampler, part).suspend()
    assert sampler.worker.process.poll() is not None
    assert not any(process.is_running() for process in processes)


def test_no_memory_for_the_cache_is_said_in_one_line(models: Models, start: Start) -> None:
    with pytest.raises(EngineError) as refused:
        start(models["one"], kv_cache_bytes=1 << 50)
    assert "\n" not in str(refused.value)
    assert "less than requested memory for kv" in str(refused.value), "the reason, which another process has logged"
    assert "engine.kv_cache_bytes" in str(refused.value)


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


# ---- checkpoints that others wrote ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tied llama", "qwen3"])
def test_what_two_processes_trained_is_served_with_the_weights_of_its_files(
    kind: str, start: Start, tmp_path: Path
) -> None:
    """By an engine that had its parent's weights, and by a new one."""
    parent, trained = CheckpointRef(sha256="parent", path=tmp_path / "model"), tmp_path / "trained"
    if kind == "tied llama":
        make_tiny_model(parent.path, head_size=32)
    else:
        make_random_model(parent.path, kind, head_size=32)
    rows = write_rows(tmp_path / "rows.jsonl", some_rows())
    trained.mkdir()
    init = {"op": "load_trainer", "settings": settings(num_training_processes=2)}
    worker = Worker(init, log_file=tmp_path / "log", stall_timeout_s=HANG_S, progress=no_progress, tag="trainer")
    with contextlib.closing(RemoteTrainer(worker)) as trainer:
        assert trainer.fit(rows, parent, training(num_epochs=2), trained).num_steps > 0
    child = CheckpointRef(sha256="child", path=trained)
    requests = [chat(f"r{i}", seed=i, task=i) for i in range(8)]
    sampler = start(parent)
    before = ask(sampler, requests, HOT)
    assert sampler.change(child), "which compares what vLLM keeps as it is in the files with them, exactly"
    check_logprobs(trained, ask(sampler, requests, HOT))
    sampler.close()
    fresh = start(child)
    drawn = ask(fresh, requests, HOT)
    check_logprobs(trained, drawn)
    assert not same(drawn, before)
    fresh.close()


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
