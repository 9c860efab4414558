"""Which checkpoints stay, and how the others go. What the ledger still needs is never touched.

The ledger says "collected" before a directory is removed, so that no row ever promises weights that are half gone. A kill
in between leaves a directory that nobody needs; the next collection finds it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from store.checkpoints import CHECKPOINTS, TRAINING, remove_directory
from store.db import query, transaction
from store.errors import StoreError
from store.failpoints import reach
from store.ledger import Ledger
from store.records import DECIDED, Checkpoint, Round, Run

AT_STEP = "step"  # this key of a checkpoint's origin says after which step it was left, where its training left several
DIRECTORY = re.compile(r"round-([0-9]+)(-step-[0-9]+)?")  # of a round's weights


@dataclass(frozen=True, slots=True)
class Plan:
    """What a collection does. `leftovers` are directories of checkpoints that were collected or set aside before."""

    kept: tuple[tuple[Checkpoint, str], ...]  # with the reason for which each stays
    doomed: tuple[Checkpoint, ...]
    leftovers: tuple[Path, ...]


def plan_collection(
    ledger: Ledger, run: Run, run_dir: Path, suite: str, *, keep_last: int, max_total_bytes: int | None, damaged: bool
) -> Plan:
    """Base, head, tip, best, pinned, what an open round works with and the newest `keep_last` stay.

    Of several candidates of one round those that were not chosen go once the round is over, whatever `keep_last` says.
    `max_total_bytes` bounds the size of all that stays below the run directory: of those that `keep_last` alone
    keeps, the oldest go first. `damaged`: remove what was set aside, too.
    """
    present = [row for row in ledger.checkpoints.all(run.id) if row.state == "present"]
    needed = _needed(ledger, run, suite, {row.sha256: row for row in present})
    inside = [row for row in present if not Path(row.path).is_absolute()]  # the run directory
    chosen = {round.candidate_checkpoint for round in ledger.rounds(run.id)}
    doomed = [row for row in inside if row.sha256 not in {*needed, *chosen} and AT_STEP in row.origin]
    left = (row for row in inside if row.sha256 not in needed and row not in doomed)
    newest = sorted(left, key=lambda row: row.round, reverse=True)
    num_bytes = sum(row.size_bytes for row in inside if row.sha256 in needed)
    for num_newer, row in enumerate(newest):
        num_bytes += row.size_bytes
        if num_newer >= keep_last or (max_total_bytes is not None and num_bytes > max_total_bytes):
            doomed.append(row)
        else:
            needed[row.sha256] = f"among the newest {keep_last}"
    kept = tuple((row, needed[row.sha256]) for row in present if row.sha256 in needed)
    return Plan(kept, tuple(sorted(doomed, key=lambda row: row.round)), _leftovers(ledger, run, run_dir, damaged))


def collect(ledger: Ledger, run_dir: Path, plan: Plan) -> int:
    """Carry a plan out; the bytes that it freed. Harmless to repeat. StoreError if the ledger has moved on since."""
    with transaction(ledger.db):
        for row in plan.doomed:
            in_use = _in_use(ledger, ledger.run_of(row.run_id))
            if row.sha256 in in_use or ledger.checkpoints.known(row.sha256).pinned:
                raise StoreError(f"the checkpoint of round {row.round} is needed since; ask again")
            ledger.checkpoints.set_state(row.sha256, "collected")
    reach("checkpoint.collected")
    freed = 0
    for path in (*(run_dir / row.path for row in plan.doomed), *plan.leftovers):
        if path.exists():
            freed += size_bytes(path)
            remove_directory(path)
    return freed


def size_bytes(directory: Path) -> int:
    """The size of all files below a directory."""
    return sum(path.lstat().st_size for path in directory.rglob("*") if path.is_file())


def best_round(ledger: Ledger, run: Run, suite_name: str) -> int:
    """The kept round, or 0 for the base, that did best on the suite that decides; the earliest of equals."""
    sql = (
        "SELECT e.checkpoint, json_extract(e.metrics, '$.\"pass@1\"') AS rate FROM evaluations AS e "
        "WHERE e.run_id = ? AND e.suite_name = ? AND e.split = ? AND e.metrics IS NOT NULL ORDER BY e.rowid"
    )  # the last row of a checkpoint counts: a head answers afresh, so that having been selected flatters it no longer
    split = run.config.get("decide", {}).get("split", "all")
    rates = {row["checkpoint"]: row["rate"] for row in query(ledger.db, sql, (run.id, suite_name, split))}
    sql = "SELECT number, candidate_checkpoint FROM rounds WHERE run_id = ? AND state = 'kept' ORDER BY number"
    kept = {0: run.base_checkpoint}
    kept |= {row["number"]: row["candidate_checkpoint"] for row in query(ledger.db, sql, (run.id,))}
    return max(kept, key=lambda number: rates.get(kept[number], -1.0))


def _in_use(ledger: Ledger, run: Run) -> dict[str, str]:
    """Hash of each checkpoint that the run works with now, and why."""
    in_use = {run.base_checkpoint: "the base", run.head_checkpoint: "the head"}
    in_use.setdefault(run.tip_checkpoint, "the tip")
    last = ledger.last_round(run.id)
    if last and last.state not in DECIDED:
        for sha256 in (last.parent_checkpoint, *ledger.candidates(last)):
            in_use.setdefault(sha256, f"round {last.number} works with it")
    return in_use


def _needed(ledger: Ledger, run: Run, suite_name: str, present: Mapping[str, Checkpoint]) -> dict[str, str]:
    """Hash of each checkpoint that must stay, whatever the retention says, and why."""
    needed = _in_use(ledger, run)
    wanted = ledger.control(run.id).wanted_head
    for number, why in ((best_round(ledger, run, suite_name), "the best"), (wanted, "to be the head")):
        if number and (round := ledger.round(run.id, number)) and round.candidate_checkpoint:
            needed.setdefault(round.candidate_checkpoint, why)
    for row in present.values():
        if row.pinned:
            needed.setdefault(row.sha256, "pinned")
    for sha256 in list(needed):
        if (stays := present.get(sha256)) and stays.base:
            needed.setdefault(stays.base, "the base of an adapter that stays")
    return needed


def _trains(run: Run, last: Round | None) -> bool:
    """Whether the last round is in its training, or has failed in it and may be tried again."""
    if last is None or last.stage != "training":
        return False
    return last.state == "training" or (last.state == "failed" and run.tip_checkpoint == last.parent_checkpoint)


def _leftovers(ledger: Ledger, run: Run, run_dir: Path, damaged: bool) -> tuple[Path, ...]:
    rows, last = ledger.checkpoints.all(run.id), ledger.last_round(run.id)
    recorded, present = {row.path for row in rows}, {row.path for row in rows if row.state == "present"}
    paths = [run_dir / row.path for row in rows if row.state == "collected" and row.path not in present]
    over = last.number - (last.state not in DECIDED) if last else 0
    # Where a round made the weights of an earlier one, no row names its directory.
    for path in sorted((run_dir / CHECKPOINTS).glob("round-*")):
        named = DIRECTORY.fullmatch(path.name)
        if named and int(named[1]) <= over and str(path.relative_to(run_dir)) not in recorded:
            paths.append(path)
    if not _trains(run, last):
        paths += sorted((run_dir / CHECKPOINTS).glob(f"{TRAINING}*"))
    if damaged:
        paths += sorted((run_dir / CHECKPOINTS).glob("*.damaged*"))
    return tuple(path for path in paths if path.is_dir())
