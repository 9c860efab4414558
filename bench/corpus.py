"""The corpus at scale: durable appends beside raw SQLite, what a late round's selection takes, and growth to a million rows.

`selecting`: `seconds` (and of the CPU, which a busy machine changes less) until every selection has been gone through, with the
peak memory until then; `storing_seconds` and `stored_mib` for storing them, and `reading_seconds` for reading what training gets by
them. `describing_seconds`: what the first selection in an older store takes more, once.

    python -m bench.corpus [--directory DIR] [--num NUM] [--pairs N]

Figures come in interleaved pairs: on a busy machine only their ratios mean anything. Stores are made once and kept.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench.stores import store
from loop.config.settings import Collect
from loop.run.choosing import collected_of, earlier_of
from loop.stages.collecting import choose
from loop.stages.training import rows_sha256
from policies.data import Accumulate, DataPolicy, Mix, PastRound, Replace
from store.corpus import Corpus
from store.db import execute, open_database, pack, query, scalar, transaction
from store.ledger import Ledger
from store.records import Completion, Run
from store.selections import store_selections

PER_ROUND = 10_000  # completions of a round in the large stores
TEXT = "def add(first, second):\n    total = first + second\n    return total\n"
NUM_TOKENS = 64
POLICIES: dict[str, DataPolicy] = {"replace": Replace(), "accumulate": Accumulate(), "mix": Mix(earlier=0.5)}


def figures(where: Path, num_completions: int = 1_000_000, num_pairs: int = 7, batch: int = 1000) -> dict[str, Any]:
    """All figures by name. `where` holds the stores and should lie on the disk that a run would use."""
    small = store(where, 1000, 1)
    late = store(where, num_completions, max(1, num_completions // PER_ROUND))
    equal = store(where, PER_ROUND, 1)  # as many to select from a round, and nothing else
    found: dict[str, Any] = {"num_completions": num_completions, "rows_per_transaction": batch}
    found |= _appending(where, num_pairs, batch)
    found["growth"] = _growth(where, small, equal, late, num_pairs, batch)
    found["selecting"] = {name: _apart(late, name) for name in (*POLICIES, "training")}
    return found


def _completions(run: Run, template: Completion, tag: str) -> Iterator[Completion]:
    for n in itertools.count():
        text = f"# {tag} {n}\n" + TEXT * 12
        tokens = tuple(range(n % 1000, n % 1000 + NUM_TOKENS))
        id = f"{tag}{n}".encode().hex().ljust(64, "0")[-64:]
        yield replace(template, id=id, run_id=run.id, sample_index=n, text=text[:1024], token_ids=tokens)


def _appending(where: Path, num_pairs: int, batch: int) -> dict[str, Any]:
    """Rows a second through the corpus and through bare executemany, each into a store of its own."""
    seconds: dict[str, list[float]] = {"raw": [], "corpus": []}
    with tempfile.TemporaryDirectory(dir=where) as scratch:
        open_stores = {}
        for name in seconds:
            shutil.copytree(store(where, 1000, 1).parent, Path(scratch) / name)
            open_stores[name] = _Appender(Path(scratch) / name)
        for _ in range(num_pairs):
            seconds["raw"].append(open_stores["raw"].raw(batch))
            seconds["corpus"].append(open_stores["corpus"].append(batch))
    ratios = [raw / ours for raw, ours in zip(seconds["raw"], seconds["corpus"], strict=True)]
    return {
        "raw_rows_per_s": round(batch / statistics.median(seconds["raw"])),
        "corpus_rows_per_s": round(batch / statistics.median(seconds["corpus"])),
        "corpus_to_raw": round(statistics.median(ratios), 3),
    }


class _Appender:
    """One store that is appended to; each call takes the next rows and returns the seconds that storing them took."""

    def __init__(self, directory: Path) -> None:
        self.db = open_database(_database(directory))
        self.corpus, self.run = Corpus(self.db), Ledger(self.db).run()
        assert self.run is not None
        template = next(self.corpus.completions(self.run.id, 1))
        template = replace(template, prompt_token_ids=tuple(range(32)), created_at="", sha256="")
        self.rows = _completions(self.run, template, os.urandom(4).hex())

    def append(self, num: int) -> float:
        rows = list(itertools.islice(self.rows, num))
        begun = time.perf_counter()
        self.corpus.add_completions(rows)
        return time.perf_counter() - begun

    def raw(self, num: int) -> float:
        rows = [
            pack(replace(row, created_at="2026-01-01T00:00:00.000000Z", sha256=row.id))
            for row in itertools.islice(self.rows, num)
        ]
        names = list(rows[0])
        sql = f"INSERT INTO completions ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
        values = [tuple(row.values()) for row in rows]
        begun = time.perf_counter()
        self.db.conn.execute("BEGIN IMMEDIATE")
        self.db.conn.executemany(sql, values)
        self.db.conn.execute("COMMIT")
        return time.perf_counter() - begun


def _database(directory: Path) -> Path:
    return next(directory.rglob("loop.db"))


def _growth(where: Path, small: Path, equal: Path, large: Path, num_pairs: int, batch: int) -> dict[str, float]:
    """How much longer the large store takes than the small one: medians of interleaved pairs. 1.0 is flat."""
    with tempfile.TemporaryDirectory(dir=where) as scratch:
        copies = {}
        for name, of in (("small", small), ("large", large)):
            shutil.copytree(of.parent, Path(scratch) / name)
            copies[name] = _Appender(Path(scratch) / name)
        for one in copies.values():
            one.append(batch)
        appending = _ratio(num_pairs, lambda: copies["small"].append(batch), lambda: copies["large"].append(batch))
    return {
        "appending": appending,
        "status": _ratio(num_pairs, lambda: _status(small), lambda: _status(large)),
        "reading_a_round": _ratio(num_pairs, lambda: _reading(equal), lambda: _reading(large)),
        "reading_scattered_rows": _ratio(
            num_pairs, lambda: _reading(equal, scattered=True), lambda: _reading(large, scattered=True)
        ),
    }


def _ratio(num_pairs: int, small: Callable[[], float], large: Callable[[], float]) -> float:
    small(), large()  # what is cold is cold once
    pairs = [(small(), large()) for _ in range(num_pairs)]
    return round(statistics.median(b / a for a, b in pairs), 3)


def _status(config: Path) -> float:
    begun = time.perf_counter()  # the exit code says that no daemon runs
    subprocess.run(
        [sys.executable, "-m", "loop.cli.main", "--config", str(config), "status"], check=False, capture_output=True
    )
    return time.perf_counter() - begun


def _reading(config: Path, scattered: bool = False) -> float:
    """The last round's texts in order of arrival, as collecting reads them; or those of 500 at a time, drawn at random from
    it, as removing near repeats does.
    """
    db = open_database(_database(config.parent), read_only=True)
    corpus, ledger = Corpus(db), Ledger(db)
    run = ledger.run()
    assert run is not None
    last = ledger.rounds(run.id)[-1].number
    arrivals = [one.arrival for one in corpus.texts(run.id, last)] if scattered else []
    random.Random(0).shuffle(arrivals)
    db.close()
    db = open_database(_database(config.parent), read_only=True)  # with nothing in its cache
    corpus = Corpus(db)
    begun = time.perf_counter()
    if scattered:
        for start in range(0, len(arrivals), 500):
            corpus.texts_at(arrivals[start : start + 500])
    else:
        for _ in corpus.texts(run.id, last):
            pass
    seconds = time.perf_counter() - begun
    db.close()
    return seconds


def _apart(config: Path, what: str) -> dict[str, Any]:
    """Seconds and peak memory of one selection in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.corpus", "--one", what, str(config)], check=True, capture_output=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _one(what: str, config: Path) -> dict[str, Any]:
    """A selection as `loop.run.choosing.select` makes it for the last round, or the reading of what training gets."""
    found: dict[str, Any] = {}
    db = open_database(_database(config.parent))
    corpus, ledger = Corpus(db), Ledger(db)
    run = ledger.run()
    assert run is not None
    last = ledger.rounds(run.id)[-1].number
    if what == "training":
        with contextlib.suppress(_Undone), transaction(db):
            execute(
                db,
                "INSERT INTO selections (run_id, round, position, completion_id, used) SELECT run_id, round, arrival, id, 1 "
                "FROM completions WHERE run_id = ? AND round = ? AND evaluation_id IS NULL",
                (run.id, last),
            )
            begun = time.perf_counter()
            found["num_rows"], _ = rows_sha256(corpus.training_rows(run.id, last))
            found["seconds"] = round(time.perf_counter() - begun, 2)
            raise _Undone
    else:
        found |= _selecting(corpus, ledger, run.id, last, POLICIES[what])
    db.close()
    return found | {"peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}


class _Undone(Exception):
    pass


def _selecting(corpus: Corpus, ledger: Ledger, run_id: str, last: int, policy: DataPolicy) -> dict[str, Any]:
    prompts = [
        SimpleNamespace(id=row["id"], content={"opening": ""}) for row in query(corpus.db, "SELECT id FROM prompts")
    ]
    loaded = SimpleNamespace(config=SimpleNamespace(collect=Collect()))
    session: Any = SimpleNamespace(corpus=corpus, run_id=run_id, prompts=prompts, loaded=loaded)
    wanted = policy.wanted([PastRound(number, True, number == 1) for number in range(1, last)])
    past = [PastRound(number, True, number == 1) for number in wanted]
    begun = time.perf_counter()
    for one in past:
        earlier_of(session, one)
    described, cpu_s = time.perf_counter(), time.process_time()
    own, earlier = collected_of(session, last, False), [earlier_of(session, one) for one in past]
    chosen = choose(policy, own, earlier, corpus.test_verdicts, corpus.texts_at, run_id, last, 7)
    num_rows = sum(one.used for one in chosen.selections())
    selected, cpu_s = time.perf_counter(), time.process_time() - cpu_s
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    of, num_pages = ledger.round(run_id, last), scalar(corpus.db, "PRAGMA page_count")
    assert of is not None and not scalar(corpus.db, "PRAGMA freelist_count")
    with contextlib.suppress(_Undone), transaction(corpus.db):
        begun_storing = time.perf_counter()
        store_selections(corpus.db, of, chosen.selections())
        stored = time.perf_counter()
        num_pages = scalar(corpus.db, "PRAGMA page_count") - num_pages
        begun_reading = time.perf_counter()
        assert sum(1 for _ in corpus.training_rows(run_id, last)) == num_rows
        read = time.perf_counter()
        raise _Undone
    return {
        "num_rows": num_rows,
        "seconds": round(selected - described, 2),
        "cpu_seconds": round(cpu_s, 2),
        "selecting_peak_mib": round(peak_mib),
        "storing_seconds": round(stored - begun_storing, 2),
        "stored_mib": round(num_pages * scalar(corpus.db, "PRAGMA page_size") / 2**20, 2),
        "reading_seconds": round(read - begun_reading, 2),
        "describing_seconds": round(described - begun, 2),
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()) / "ssd-loop-bench")
    parser.add_argument("--num", type=int, default=1_000_000, help="Completions of the large store.")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--batch", type=int, default=1000, help="Rows of one transaction.")
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "CONFIG"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(_one(given.one[0], Path(given.one[1]))))
        return
    given.directory.mkdir(parents=True, exist_ok=True)
    print(json.dumps(figures(given.directory, given.num, given.pairs, given.batch), indent=2))


if __name__ == "__main__":
    main()
