"""Checkpoints by name and their lineage, the final result, decoding settings, and which settings others may see. Reads only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loop.errors import LoopError, UsageError
from store.ledger import Ledger
from store.records import Checkpoint, Event, Json, Run

if TYPE_CHECKING:
    from loop.reading.reader import Reader

FINAL_BEGUN, FINAL_OPENED = "final_begun", "final_opened"


def checkpoint_named(ledger: Ledger, run: Run, name: str) -> Checkpoint:
    """The checkpoint of "head", "base" or a round's number. LoopError if its weights are not there."""
    if name in ("head", "base"):
        sha256: str | None = run.head_checkpoint if name == "head" else run.base_checkpoint
        what = f"the {name}"
    else:
        if not (name.isascii() and name.isdigit() and int(name)):
            raise UsageError(f"--of {name}: give head, base or a round's number")
        round = ledger.round(run.id, int(name))
        if round is None:
            raise LoopError(f"there is no round {name}; `loopctl rounds` lists them")
        sha256, what = round.candidate_checkpoint, f"round {name}"
    row = ledger.checkpoint(sha256) if sha256 else None
    if row is None:
        raise LoopError(f"{what} has no checkpoint yet")
    if row.state != "present":
        raise LoopError(
            f"the checkpoint of {in_words(row)} is {row.state}; choose another one, or put its directory back"
        )
    return row


def in_words(row: Checkpoint) -> str:
    """ "round 3" or "the base" """
    return f"round {row.round}" if row.round else "the base"


def final_result(ledger: Ledger, run_id: str) -> Event | None:
    """What the final split has shown, if it was opened."""
    return ledger.last_event_of(run_id, FINAL_OPENED)


# Says nothing of the result, or where somebody's machines are.
PRIVATE = ("run_dir", "rounds", "schedule", "storage", "watching", "daemon", "inputs")
PRIVATE_OF_ENGINE = ("server_url", "server_command")


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


def public(config: Json) -> Json:
    """The settings without those that say nothing of the result, or where somebody's machines are."""
    shown = {key: value for key, value in config.items() if key not in PRIVATE}
    engine = {key: value for key, value in shown.get("engine", {}).items() if key not in PRIVATE_OF_ENGINE}
    if engine.get("sampler") == "server":
        engine["server_url"] = "http://HOST:PORT/v1"
    return shown | {"engine": engine}
