"""Everything that the page of a run shows, as one JSON-able dict, read from the run's store and directory; nothing is written.

Its size is bounded whatever the run's: figures by round, and of the texts a selection, which says how much it leaves out.
Texts are as the model wrote them; who draws them makes them safe.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from loop.config.place import Place
from loop.reading.reader import Evaluations, Reader, reader
from loop.reading.rounds import all_of, figures_of
from loop.reading.standing import no_run, status_of
from loop.reading.status_words import doing, labelled
from loop.report.browser import browser
from loop.report.gains import paired
from loop.words import decoding_words
from store.errors import NoStore
from store.records import Checkpoint, Json, Round

if TYPE_CHECKING:
    from loop.config.loading import LoadedConfig
    from loop.experiments.file import Experiment

MOST_LOSSES = 4000  # points of the training curve; more are averaged over neighbours


def run_facts(loaded: LoadedConfig | Place) -> Json:
    """The facts of the run that a configuration names. Where nothing was run yet there is a status and no round."""
    place = loaded
    if not isinstance(place, Place):
        place = Place(place.path, place.run_dir, place.config.name, place.config.rounds)
    try:
        with reader(place.run_dir) as found:
            found.paired = paired
            return _facts(found, place)
    except NoStore:
        status = no_run(place.run_dir, place.name)
        return _frame(status, place) | {"created_at": None, "rounds": [], "suites": []}


def facts_of_experiment(experiment: Experiment) -> Json:
    """The facts of an experiment's page; see `loop.experiments.facts`."""
    from loop.experiments.facts import experiment_facts
    from loop.system.exits import version

    facts = experiment_facts(experiment).as_json()
    for run in facts["runs"]:  # a page goes to others, whom this machine's directories tell nothing
        run["run_dir"] = os.path.relpath(run["run_dir"], experiment.directory)
    return {"kind": "experiment", "version": version(), **facts}


def _frame(status: Json, place: Place) -> Json:
    from loop.system.exits import version

    return {
        "kind": "run",
        "name": status["run"] or place.name,
        "version": version(),
        "as_of": status["as_of"],
        "status": status,
        "doing": doing(status),
        "words": [
            [label, re.sub(" {3,}", " · ", words)]  # columns of a terminal
            for label, words in labelled(status, place.every)
            if words and label != "trend"
        ],
    }


def _facts(found: Reader, place: Place) -> Json:
    run, ledger = found.run, found.ledger
    evaluations = found.evaluations()
    decisions = {decision.round: decision for decision in ledger.decisions(run.id)}
    whole = ledger.rounds(run.id)
    rounds = [
        all_of(found, round, decisions.get(round.number), evaluations) | {"inputs": _inputs(found, round)}
        for round in whole
    ]
    for row in rounds:
        row["outcome"] = _outcome(row)
    status = status_of(found, place.rounds)
    return _frame(status, place) | {
        "run_id": run.id,
        "config": run.config,
        "config_sha256": run.config_sha256,
        "seed": run.seed,
        "created_at": run.created_at,
        "suites": [_suite(found, name, evaluations, rounds) for name in found.suites],
        "rounds": rounds,
        "losses": _losses(found, whole),
        "amounts": _amounts(found, rounds),
        "browser": browser(found, whole, evaluations),
        "lineage": [_checkpoint(row, run.head_checkpoint, whole) for row in ledger.checkpoints.all(run.id)],
    }


def _outcome(row: Json) -> str:
    """kept, rolled_back, inconclusive, failed, or open."""
    if row["decision"] and row["state"] in ("kept", "rolled_back"):
        return str(row["state"]) if row["decision"]["conclusive"] else "inconclusive"
    return "failed" if row["state"] == "failed" else "open"


def _inputs(found: Reader, round: Round) -> Json:
    """How many prompts were asked how often."""
    stage = found.ledger.stage(found.run.id, round.number, "sampling")
    asked = stage.input.get("prompt_ids", []) if stage else []
    return {"num_prompts": len(asked)}


def _suite(found: Reader, name: str, evaluations: Evaluations, rounds: Sequence[Json]) -> Json:
    """A yardstick in words, and the base on it."""
    base = evaluations.newest.get((found.run.base_checkpoint, name))
    known: Json = next(
        (row["suites"][name] for row in reversed(rounds) if row["suites"].get(name, {}).get("split")), {}
    )
    decoding = known.get("decoding") or (found.decoding(base) if base else None)
    figures = figures_of(base)
    return {
        "name": name,
        "decides": name == found.decider,
        "split": known.get("split"),
        "num_samples": known.get("num_samples"),
        "num_problems": figures["num_problems"] if figures else None,
        "decoding": decoding,
        "decoding_words": decoding_words(decoding),
        "base": figures,
    }


def _losses(found: Reader, rounds: Sequence[Round]) -> list[Json]:
    """Training losses by round; `at` runs from 0 to 1 over the round's steps."""
    per_round = max(10, MOST_LOSSES // max(1, len(rounds)))
    points = []
    for round in rounds:
        stage = found.ledger.stage(found.run.id, round.number, "training")
        losses: list[float] = (stage.output or {}).get("losses") or [] if stage else []
        width = -(-len(losses) // per_round) or 1
        for start in range(0, len(losses), width):
            part = losses[start : start + width]
            middle = (start + len(part) / 2) / len(losses)
            points.append({"round": round.number, "at": middle, "loss": sum(part) / len(part)})
    return points


def _amounts(found: Reader, rounds: Sequence[Json]) -> list[Json]:
    """Of each round: seconds by stage, tokens sampled, trained on and evaluated, completions."""
    totals = {row["round"]: row for row in found.corpus.corpus_totals(found.run.id)}
    evaluated: dict[int, float] = {}
    for one in found.corpus.evaluations.all(found.run.id):
        metrics = one.metrics or {}
        if metrics.get("mean_tokens") is not None:  # of problems with equally many samples: that of all completions
            tokens = metrics["mean_tokens"] * metrics.get("num_completions", 0)
            evaluated[max(1, one.round)] = evaluated.get(max(1, one.round), 0.0) + tokens
    amounts = []
    for row in rounds:
        number = row["round"]
        sampled: Json = totals.get(number) or {"num": 0, "num_tokens": 0, "num_truncated": 0}
        amounts.append(
            {
                "round": number,
                "seconds": {stage["stage"]: stage["duration_s"] for stage in row["stages"]},
                "num_completions": sampled["num"],
                "num_truncated": sampled["num_truncated"],
                "tokens": {
                    "sampled": sampled["num_tokens"],
                    "trained on": row["training"]["num_completion_tokens"] or 0,
                    "evaluated": round(evaluated.get(number, 0.0)),
                },
            }
        )
    return amounts


def _checkpoint(row: Checkpoint, head: str, rounds: Sequence[Round]) -> Json:
    return {
        "checkpoint": row.sha256,
        "round": row.round,
        "made_in": [round.number for round in rounds if round.candidate_checkpoint == row.sha256],
        "kind": row.kind,
        "parent": row.parent,
        "base": row.base,
        "state": row.state,
        "pinned": row.pinned,
        "size_bytes": row.size_bytes,
        "created_at": row.created_at,
        "is_head": row.sha256 == head,
        "origin": {key: value for key, value in row.origin.items() if isinstance(value, str | int | float)},
    }
