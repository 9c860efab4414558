"""How much disk a stage needs, and whether there is that much: known before anything is half-written."""

from __future__ import annotations

import shutil

from loop.run.session import Session
from policies.halving import num_asked
from store.corpus import ROW_BYTES, TEXT_BYTES_PER_TOKEN
from store.records import Round

PROBE_BYTES = 8  # a log-probability of a probed checkpoint, compressed, with its token
WEIGHTS_MARGIN = 1.1


def needed_bytes(session: Session, round: Round | None) -> int:
    """What the round's present stage (None: a new round's first) will write at most; for sampling the checkpoint, too."""
    config = session.loaded.config
    stage = round.state if round else "sampling"
    if stage == "sampling":
        num = (config.prompts.per_round or len(session.prompts)) * config.sampling.num_samples
        return num * _row(config.sampling.max_new_tokens) + _weights(session)
    if stage == "training":
        return _weights(session)
    if stage == "evaluating":
        probed = config.diagnosis
        asked = {suite.config.name: 2 * len(suite.problems) for suite in session.suites}
        asked[config.decide.suite] += num_asked(
            config.training.candidates, len(session.decider.of_split(session.policy.split))
        )
        return 3 * PROBE_BYTES * probed.num_prompts * probed.max_new_tokens * probed.top + sum(
            asked[suite.config.name] * suite.config.num_samples * _row(suite.config.max_new_tokens)
            for suite in session.suites
        )
    return 0


def shortage(session: Session, round: Round | None) -> str | None:
    """Why there is not enough room, in words; None if there is."""
    needed, reserve = needed_bytes(session, round), session.loaded.config.storage.min_free_bytes
    free = shutil.disk_usage(session.loaded.run_dir).free
    if free >= needed + reserve:
        return None
    stage = round.state if round else "the next round"
    return (
        f"disk short: {_megabytes(free)} free at {session.loaded.run_dir}, {stage} needs about {_megabytes(needed)} and "
        f"{_megabytes(reserve)} stay free (storage.min_free_bytes)"
    )


def _row(max_new_tokens: int) -> int:
    return ROW_BYTES + TEXT_BYTES_PER_TOKEN * max_new_tokens


def _weights(session: Session) -> int:
    """What a full fine-tune writes, at most: the margin covers a base that came in half the precision of training."""
    run, num_candidates = session.run, session.loaded.config.training.candidates
    rows = [
        session.ledger.checkpoints.get(sha256)
        for sha256 in {run.base_checkpoint, run.head_checkpoint, run.tip_checkpoint}
    ]
    return int(num_candidates * WEIGHTS_MARGIN * max(row.size_bytes for row in rows if row))


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
