"""The model card of an exported checkpoint: its facts (card_facts.py) as Markdown, by card.md.j2, with the hub's metadata on top.

Reads no store. Text that did not come from our own source goes through `words` or `block`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined

from loop.config.samplers import SAMPLER_PACKAGES
from loop.config.toml_text import toml_text
from loop.inputs import BUILT_IN_MODEL
from loop.publishing.card_facts import BUILT_IN_ON_HUB
from loop.publishing.markdown import block, words
from loop.reading.checkpoints import publishable
from loop.words import count, decoding_words, interval, rate, round_name, safe, signed
from policies.by_type import BadPolicy
from policies.data import DATA_POLICIES
from store.records import Json

PAPER = "https://arxiv.org/abs/2604.01193"
DATA_SETS = {"humaneval": "openai/openai_humaneval"}  # shipped suites that are on the hub, too
PACKAGES = ("ssd-loop", "torch", "transformers", "trl", "peft", "accelerate", *SAMPLER_PACKAGES)
PROMPT_LENGTH = 1500


def card(facts: Json, *, merged: bool) -> str:
    """README.md: YAML metadata, then the text. `merged`: an adapter is exported as whole weights."""
    adapter = facts["kind"] == "adapter" and not merged
    decider, lineage = facts["config"]["decide"]["suite"], facts["lineage"]
    measured = {name for name, *_ in _measured(facts)}
    text: str = _template().render(
        facts,
        adapter=adapter,
        metadata=_metadata(facts, adapter),
        paper=PAPER,
        built_in_model=BUILT_IN_MODEL,
        built_in_on_hub=BUILT_IN_ON_HUB,
        decider=decider,
        rows=list(_rows(facts)),
        missing=[name for name in facts["suites"] if name not in measured],
        policy=_policy(facts["settings"]["collect"]["data"]),
        lineage_decoding=next(filter(None, (row["suites"][decider]["decoding"] for row in lineage)), None),
        versions=_versions(),
        toml=_escaped(toml_text(publishable(facts["config"])).rstrip("\n")),
    )
    ModelCard(text)  # raises where the hub's client could not read it
    return text


def _template() -> Any:
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    ours = (words, block, count, rate, signed, interval, round_name, decoding_words)
    environment.filters |= {each.__name__: each for each in ours}
    environment.filters |= {"spelt": format, "json": json.dumps, "asked": _asked, "settings_words": _decoding}
    return environment.from_string(Path(__file__).with_name("card.md.j2").read_text(encoding="utf-8"))


def _metadata(facts: Json, adapter: bool) -> str:
    base, results = facts["base"], _results(facts)
    more: Json = {}
    if base["on_hub"]:
        more = {"base_model": base["on_hub"], "base_model_relation": "adapter" if adapter else "finetune"}
    if facts["data_set"]:
        more["datasets"] = [facts["data_set"]]
    data = ModelCardData(
        license=base["licence"],
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        language="code",
        tags=["code", "self-distillation", "ssd", "ssd-loop", *(["lora"] if adapter else [])],
        model_name=safe(f"{facts['run']}, {round_name(facts['round'])}") if results else None,
        eval_results=results or None,
        **more,
    )
    return str(data.to_yaml(line_break="\n"))


def _results(facts: Json) -> list[Any]:
    """The hub's model-index. Results are told apart by `config`, so the decoding settings are in it."""
    results = []
    sources = {table["name"]: table["source"] for table in facts["config"]["suites"]}
    for name, suite, figures, metric in _measured(facts):
        base_name = name.split("/")[0]
        source = sources.get(base_name, base_name)
        decoding = _decoding(suite["decoding"])
        args: Json = {"num_samples": suite["num_samples"], "num_problems": figures["num_problems"]}
        args |= {key: value for key, value in (suite["decoding"] or {}).items() if value not in (None, [], ())}
        args["role"] = "decides" if suite["decides"] else "canary"
        if metric == "pass@1":
            args["interval_95"] = figures["pass@1_interval"]
            if over := suite["gain_over_base"]:
                args |= {"gain_over_base": over["gain"], "gain_over_base_interval_95": over["interval"]}
        if suite["base"]:
            args["base"] = suite["base"][metric]
        result = EvalResult(
            task_type="text-generation",
            task_name="Code generation",
            dataset_type=DATA_SETS.get(source, safe(Path(source).name)),
            dataset_name=safe(name),
            dataset_config=f"{safe(name)}: {decoding}",
            dataset_split=_safe(suite["split"]),
            metric_type=metric,
            metric_name=f"{metric} ({decoding})",
            metric_value=figures[metric],
            metric_args=_safe(args),
        )
        results.append(result)
    return results


def _safe(value: Any) -> Any:
    """The same value with all its texts made safe."""
    if isinstance(value, dict):
        return {key: _safe(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_safe(entry) for entry in value]
    return safe(value) if isinstance(value, str) else value


def _measured(facts: Json) -> Iterator[tuple[str, Json, Json, str]]:
    """Each pass@k of the checkpoint itself: the suite's name, the suite, its figures, and the key of this one in them."""
    for name, suite in facts["suites"].items():
        figures = (suite["candidate"] if facts["round"] else suite["base"]) or {}
        for k in sorted(int(key[5:]) for key in figures if re.fullmatch(r"pass@\d+", key)):
            yield name, suite, figures, f"pass@{k}"


def _decoding(settings: Json | None) -> str:
    """The decoding settings that a figure depends on, in words."""
    if not settings:
        return "decoding not recorded"
    text = f"{decoding_words(settings)}, at most {settings['max_new_tokens']} tokens"
    return f"{text}, stop strings" if settings.get("stop") else text


def _rows(facts: Json) -> Iterator[list[str]]:
    """The cells of the table of figures."""
    for name, suite, figures, metric in _measured(facts):
        role = "decides" if suite["decides"] else "split that was opened" if "/" in name else "canary"
        split = f", {words(suite['split'])}" if suite["split"] not in (None, "all") else ""
        row = [f"{words(name)} ({role}{split})", _decoding(suite["decoding"])]
        row += [f"{figures['num_problems']} x {suite['num_samples']}", metric, _rate(suite["base"], metric)]
        yield row + ([_rate(figures, metric), _gain(suite, figures, metric)] if facts["round"] else [])


def _rate(figures: Json | None, metric: str) -> str:
    if figures is None or figures.get(metric) is None:
        return "-"
    return f"{rate(figures[metric])} {interval(figures.get(f'{metric}_interval'))}".strip()


def _gain(suite: Json, figures: Json, metric: str) -> str:
    over, base = suite["gain_over_base"], suite["base"]
    if metric == "pass@1" and over:
        return f"{signed(over['gain'])} {interval(over['interval'], sign=True)}"
    return signed(figures[metric] - base[metric]) if base and base.get(metric) is not None else "-"


def _policy(table: Json) -> str:
    """A data policy in a line: its type, and what in it is not the default."""
    try:
        chosen = DATA_POLICIES.build(table).model_dump(mode="json", exclude_defaults=True)
    except BadPolicy:  # it came from a package that is not installed here
        chosen = table
    return ", ".join([str(table["type"]), *(f"{key} {value}" for key, value in chosen.items() if key != "type")])


def _asked(content: Json) -> str:
    turns = [f"[{turn['role']}]\n{turn['content']}" for turn in content["messages"]]
    prefill = content.get("prefill") or ""
    text = "\n\n".join([*turns, f"[assistant, opened with]\n{prefill}" if turns and prefill else prefill]).strip()
    return text if len(text) <= PROMPT_LENGTH else f"{text[:PROMPT_LENGTH]}\n[...]"


def _versions() -> Iterator[str]:
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield f"{name} {importlib.metadata.version(name)}"


def _escaped(toml: str) -> str:
    """The same TOML with escapes for what does not print, which can only be in strings."""
    return "".join(
        letter if letter.isprintable() or letter == "\n"
        else f"\\u{ord(letter):04x}" if ord(letter) < 0x10000
        else f"\\U{ord(letter):08x}"
        for letter in toml
    )  # fmt: skip
