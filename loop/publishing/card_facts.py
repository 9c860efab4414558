"""What the ledger knows of a checkpoint that is exported: the facts of its model card. Reads the store; writes no text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub.repocard import metadata_load

from loop.config.section import HUB_NAME
from loop.errors import LoopError
from loop.inputs import BUILT_IN_MODEL
from loop.prompts.sources import source_kind
from loop.reading.as_json import as_json
from loop.reading.checkpoints import decoding_of, final_result, lineage
from loop.reading.decisions import decision_of
from loop.reading.reader import Reader
from loop.reading.rounds import rows, settings_of_run, suites_of_base, whole_round
from store.records import Checkpoint, Json

BUILT_IN_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"


def facts_of(store: Reader, row: Checkpoint, number: int, base_dir: Path) -> Json:
    """All that the card says, from one moment of the store.

    `number`: the round; equal weights of two rounds are one checkpoint. `base_dir`: where relative paths of the configuration
    begin.
    """
    run, ledger = store.run, store.ledger
    base = ledger.checkpoints.get(run.base_checkpoint)
    assert base is not None
    whole = whole_round(store, number) if number else None
    suites = as_json(whole.suites if whole else suites_of_base(store))
    by_number = {row.round: as_json(row) for row in rows(store)}
    decision = ledger.decision(run.id, number) if number else None
    opened = final_result(ledger, run.id)
    final = opened.data if opened and opened.data["head"]["checkpoint"] == row.sha256 and number else None
    return {
        "run": run.name,
        "run_id": run.id,
        "config": run.config,
        "config_sha256": run.config_sha256,
        "seed": run.seed,
        "rounds": {
            "kept": run.num_kept,
            "carried": run.num_carried,
            "rolled_back": run.num_rolled_back,
            "failed": run.num_failed,
        },
        "round": number,
        "is_head": row.sha256 == run.head_checkpoint,
        "checkpoint": row.sha256,
        "kind": row.kind,
        "base": _base(store, base),
        "state": whole.state if whole else "base",
        "decision": as_json(decision_of(decision, whole.state if whole else "")),
        "detectable": _detectable(decision.gates if decision else [], run.config),
        "lineage": [by_number[each] for each in lineage(store, number)],
        "suites": suites,
        "training": as_json(whole.training) if whole else None,
        "settings": whole.settings if whole else settings_of_run(store),
        "adapted": whole.adapted if whole else None,
        "final": final,
        "sandboxes": _sandboxes(store, row),
        "example": _example(store),
        "decoding": suites[store.decider]["decoding"] or decoding_of(run.config),
        "data_set": _data_set(run.config["prompts"]["source"], base_dir),
    }


def _base(store: Reader, base: Checkpoint) -> Json:
    model = store.run.config["model"]
    source, revision = model["source"], model["revision"]
    directory = Path(base.path)
    on_hub, fetched = BUILT_IN_ON_HUB if source == BUILT_IN_MODEL else None, False
    if HUB_NAME.fullmatch(source) and "snapshots" in directory.parts:  # where huggingface_hub keeps what it fetched
        on_hub, revision, fetched = source, directory.name, True
    return {
        "source": source,
        "revision": revision,
        "on_hub": on_hub,  # what it descends from there
        "fetched": fetched,  # and whether the weights are the ones that lie there
        "sha256": base.sha256,
        "licence": "apache-2.0" if source == BUILT_IN_MODEL else _licence(directory / "README.md"),
        "licence_files": [name for name in base.manifest["files"] if name.upper().startswith(("LICENSE", "LICENCE"))],
    }


def _data_set(source: str, base_dir: Path) -> str | None:
    """The prompts' name on the hub, where they are from there."""
    try:
        return source if source_kind(source, base_dir) == "hub" else None
    except (LoopError, OSError, ValueError):
        return None


def _licence(readme: Path) -> str | None:
    """What the base's own card says in its metadata."""
    try:
        name: Any = (metadata_load(readme) or {}).get("license") if readme.is_file() else None
    except Exception:  # somebody else's file: not our business
        return None
    return name if isinstance(name, str) and re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,40}", name) else None


def _detectable(gates: list[Json], config: Json) -> list[Json]:
    power = next((gate["power"] for gate in config["decide"]["gates"] if "power" in gate), 0.8)
    wanted = ("metric", "smallest_detectable_gain", "num_problems", "num_samples", "level")
    limits = [gate["figures"] for gate in gates if "smallest_detectable_gain" in gate["figures"]]
    return [{key: figures.get(key) for key in wanted} | {"power": power} for figures in limits]


def _sandboxes(store: Reader, row: Checkpoint) -> list[str]:
    """Under which levels of isolation the solutions of the suite that decides ran."""
    evaluation = store.evaluations().newest.get((row.sha256, store.decider))
    verdicts = store.corpus.evaluations.verdicts(evaluation.id) if evaluation else []
    return sorted({verdict.sandbox for verdict in verdicts})


def _example(store: Reader) -> Json | None:
    """How the suite that decides asks: its first problem."""
    evaluation = next((each for each in store.evaluations().by_id.values() if each.suite_name == store.decider), None)
    problems = store.corpus.evaluations.problems(evaluation.suite_sha256) if evaluation else []
    prompt = store.corpus.prompt(problems[0].prompt_id) if problems else None
    return prompt.content if prompt else None
