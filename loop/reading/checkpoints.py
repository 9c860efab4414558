"""Checkpoints by name and their lineage, the final result, decoding settings, and which settings others may see. Reads only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loop.errors import LoopError, UsageError
from loop.words import round_name
from store.ledger import Ledger
from store.records import Checkpoint, Event, Json, Run

if TYPE_CHECKING:
    from loop.reading.reader import Reader

FINAL_BEGUN, FINAL_OPENED = "final_begun", "final_opened"


def checkpoint_named(ledger: Ledger, run: Run, name: str) -> Checkpoint:
    """The checkpoint of "head", "tip", "base" or a round's number. LoopError if its weights are not there."""
    sides = {"head": run.head_checkpoint, "tip": run.tip_checkpoint, "base": run.base_checkpoint}
    if name in sides:
        sha256: str | None = sides[name]
        what = f"the {name}"
    else:
        if not (name.isascii() and name.isdigit() and int(name)):
            raise UsageError(f"--of {name}: give head, tip, base or a round's number")
        round = ledger.round(run.id, int(name))
        if round is None:
            raise LoopError(f"there is no round {name}; `loopctl rounds` lists them")
        sha256, what = round.candidate_checkpoint, f"round {name}"
    row = ledger.checkpoints.get(sha256) if sha256 else None
    if row is None:
        raise LoopError(f"{what} has no checkpoint yet")
    if row.state != "present":
        raise LoopError(
            f"the checkpoint of {round_name(row.round)} is {row.state}; choose another one, or put its directory back"
        )
    return row


def final_result(ledger: Ledger, run_id: str) -> Event | None:
    """The event that tells what the final split has shown; None before it was opened."""
    return ledger.events.last_of(run_id, FINAL_OPENED)


def lineage(store: Reader, number: int) -> list[int]:
    """The rounds that lead from the base to a round's weights, that round included, oldest first."""
    numbers: list[int] = []
    while number:
        numbers.append(number)
        round = store.ledger.round(store.run.id, number)
        parent = store.ledger.checkpoints.get(round.parent_checkpoint) if round else None
        number = parent.round if parent else 0
    return numbers[::-1]


def decoding_of(config: Json) -> Json:
    """The decoding settings of the suite that decides."""
    suite = next(suite for suite in config["suites"] if suite["name"] == config["decide"]["suite"])
    kept = ("temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "stop")
    return {key: suite[key] for key in kept if key in suite} | ({"temperature": 0.0} if suite["greedy"] else {})


def publishable(config: Json) -> Json:
    """The settings without those that say nothing of the result, or where somebody's machines are."""
    from loop.config.machine import Engine
    from loop.config.section import keys_of  # pydantic, which `loopctl status` does not wait for
    from loop.config.settings import Config

    hidden, hidden_of_engine = {*keys_of(Config, "operation"), "inputs"}, keys_of(Engine, "private")
    shown = {key: value for key, value in config.items() if key not in hidden}
    engine = {key: value for key, value in shown.get("engine", {}).items() if key not in hidden_of_engine}
    if any(config.get("engine", {}).get(key) for key in ("server_url", "server_urls")):
        engine["server_url"] = "http://HOST:PORT/v1"
    return shown | {"engine": engine}
