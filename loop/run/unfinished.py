"""Where a round's training keeps its state while it is unfinished, and when that goes.

It lies beside the checkpoints under a name that says all that the weights depend on, so that no other training ever continues
from it. It outlives attempts, daemons and power cuts. It goes once the ledger knows the weights, when another training begins,
and with the next collection of garbage where its round has ended otherwise.
"""

from __future__ import annotations

from pathlib import Path

from loop.engines.base import Kept
from loop.run.adapting import what_counts
from loop.run.session import Session
from loop.run.sharing import machine
from store.canonical import sha256_of
from store.checkpoints import CHECKPOINTS, TRAINING, remove_directory
from store.records import Json, Round


def unfinished(session: Session, round: Round, inputs: Json) -> Kept:
    """What the round's training keeps, of this or an earlier attempt. What another training has left is removed.

    Its state may not take the room that the weights will need.
    """
    made_from = [what_counts(inputs), session.engines.settings.trainer, machine()]
    own = _root(session) / f"{TRAINING}{sha256_of(made_from)[:12]}"
    forget_unfinished(session, but=own)
    parent, config = session.ledger.checkpoints.known(round.parent_checkpoint), session.loaded.config
    weights_bytes = parent.size_bytes * int(inputs["settings"].get("candidates", 1))  # older stores lack it
    return Kept(directory=own, free_bytes=config.storage.min_free_bytes + weights_bytes)


def forget_unfinished(session: Session, but: Path | None = None) -> None:
    """Remove what unfinished trainings have left, but for one of them."""
    for directory in _root(session).glob(f"{TRAINING}*"):
        if directory != but:
            remove_directory(directory)


def _root(session: Session) -> Path:
    return session.loaded.run_dir / CHECKPOINTS
