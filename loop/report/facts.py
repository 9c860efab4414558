"""Everything that the page of a run shows, as one JSON-able dict, read from the run's store and directory; nothing is written.

Its size is bounded, however large the run is: figures by round, and a selection of the texts that says how much it leaves out.
Texts are as the model wrote them; page.py makes them safe.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from loop.config.place import Place
from loop.reading.as_json import as_json
from loop.reading.reader import Evaluations, Reader, reader
from loop.reading.rounds import all_of, fates, figures_of
from loop.reading.standing import Standing, status, status_of
from loop.reading.status_words import doing, labelled
from loop.report.browser import browser
from loop.system.exits import version
from loop.words import decoding_words
from store.errors import NoStore
from store.records import DECIDED, Checkpoint, Json, Round, Run

if TYPE_CHECKING:
    from loop.experiments.file import Experiment

MOST_LOSSES = 4000  # points of the training curve; more are averaged over neighbours


def run_facts(place: Place) -> Json:
    """The facts of the run that a configuration names. Where nothing was run yet there is a status and no round."""
    try:
        with reader(place.run_dir) as store:
            return _facts(store, place)
    except NoStore:
        standing = status(place.run_dir, place.name)
        return _frame(standing, place) | {"created_at": None, "rounds": [], "suites": []}


def facts_of_experiment(experiment: Experiment) -> Json:
    """The facts of an experiment's page; see `loop.experiments.facts`."""
    from loop.experiments.facts import experiment_facts

    facts = experiment_facts(experiment).as_json()
    for run in facts["runs"]:  # a page goes to others, whom this machine's directories tell nothing
        run["run_dir"] = os.path.relpath(run["run_dir"], experiment.directory)
    return {"kind": "experiment", "version": version(), **facts}


def _frame(standing: Standing, place: Place) -> Json:
    return {
        "kind": "run",
        "name": standing.run or place.name,
        "version": version(),
        "as_of": standing.as_of,
        "status": as_json(standing),
        "doing": doing(standing),
        "words": [
            [label, re.sub(" {3,}", " · ", words)]  # columns of a terminal
            for label, words in labelled(standing, place.every)
            if words and label != "trend"
        ],
    }


def _facts(store: Reader, place: Place) -> Json:
    run, ledger = store.run, store.ledger
    evaluations = store.evaluations()
    decisions = {decision.round: decision for decision in ledger.decisions(run.id)}
    all_rounds = ledger.rounds(run.id)
    carried = fates(all_rounds, run)
    rounds = [as_json(all_of(store, round, decisions.get(round.number), evaluations, carried)) for round in all_rounds]
    for row in rounds:
        row["outcome"] = _outcome(row)
    return _frame(status_of(store, place.rounds), place) | {
        "run_id": run.id,
        "config": run.config,
        "config_sha256": run.config_sha256,
        "seed": run.seed,
        "created_at": run.created_at,
        "suites": [_suite(store, name, evaluations, rounds) for name in store.suites],
        "rounds": rounds,
        "losses": _losses(store, all_rounds),
        "amounts": _amounts(store, rounds),
        "browser": browser(store, all_rounds, evaluations),
        "lineage": [_checkpoint(row, run, all_rounds) for row in ledger.checkpoints.all(run.id)],
    }


def _outcome(row: Json) -> str:
    """kept, carried, rolled_back, inconclusive, failed, or open."""
    if row["decision"] and row["state"] in DECIDED:
        return (
            "inconclusive" if row["state"] == "rolled_back" and not row["decision"]["conclusive"] else str(row["state"])
        )
    return "failed" if row["state"] == "failed" else "open"


def _suite(store: Reader, name: str, evaluations: Evaluations, rounds: Sequence[Json]) -> Json:
    """How a suite is asked, as the newest round that was measured on it tells, and the base's figures."""
    base = evaluations.newest.get((store.run.base_checkpoint, name))
    of_rounds = (row["suites"].get(name, {}) for row in reversed(rounds))
    asked: Json = next((suite for suite in of_rounds if suite.get("split")), {})
    decoding = asked.get("decoding") or store.decoding(base)
    figures = figures_of(base)
    return {
        "name": name,
        "decides": name == store.decider,
        "split": asked.get("split"),
        "num_samples": asked.get("num_samples"),
        "num_problems": figures["num_problems"] if figures else None,
        "decoding": decoding,
        "decoding_words": decoding_words(decoding),
        "base": figures,
    }


def _losses(store: Reader, rounds: Sequence[Round]) -> list[Json]:
    """Training losses by round; `at` runs from 0 to 1 over the round's steps."""
    per_round = max(10, MOST_LOSSES // max(1, len(rounds)))
    points = []
    for round in rounds:
        losses: list[float] = store.output(round.number, "training").get("losses") or []
        width = -(-len(losses) // per_round) or 1
        for start in range(0, len(losses), width):
            part = losses[start : start + width]
            middle = (start + len(part) / 2) / len(losses)
            points.append({"round": round.number, "at": middle, "loss": sum(part) / len(part)})
    return points


def _amounts(store: Reader, rounds: Sequence[Json]) -> list[Json]:
    """Of each round: seconds by stage, tokens sampled, trained on and evaluated, completions."""
    totals = {row["round"]: row for row in store.corpus.corpus_totals(store.run.id)}
    evaluated: dict[int, float] = {}
    for evaluation in store.corpus.evaluations.all(store.run.id):
        metrics, number = evaluation.metrics or {}, max(1, evaluation.round)
        if metrics.get("mean_tokens") is not None:  # of problems with equally many samples: that of all completions
            tokens = metrics["mean_tokens"] * metrics.get("num_completions", 0)
            evaluated[number] = evaluated.get(number, 0.0) + tokens
    amounts = []
    for row in rounds:
        number = row["round"]
        sampled: Json = totals.get(number) or {"num": 0, "num_tokens": 0}
        seconds = {stage["stage"]: stage["duration_s"] for stage in row["stages"]}
        tokens = {
            "sampled": sampled["num_tokens"],
            "trained on": row["training"]["num_completion_tokens"] or 0,
            "evaluated": round(evaluated.get(number, 0.0)),
        }
        amounts.append({"round": number, "seconds": seconds, "num_completions": sampled["num"], "tokens": tokens})
    return amounts


def _checkpoint(row: Checkpoint, run: Run, rounds: Sequence[Round]) -> Json:
    as_stored = ("round", "kind", "parent", "state", "pinned", "size_bytes", "created_at")
    return {key: getattr(row, key) for key in as_stored} | {
        "checkpoint": row.sha256,
        "made_in": [round.number for round in rounds if round.candidate_checkpoint == row.sha256],
        "is_head": row.sha256 == run.head_checkpoint,
        "is_tip": row.sha256 == run.tip_checkpoint,
    }
