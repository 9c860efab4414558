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
import random
import resource
import shutil
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench.measuring import last_line, loopctl, timed
from bench.stores import TEXT, store
from loop.config.settings import Collect
from loop.reading.reader import Reader, reader
from loop.run.choosing import collected_of, earlier_of
from loop.stages.collecting import choose
from loop.stages.training import rows_sha256
from policies.data import Accumulate, DataPolicy, Mix, PastRound, Replace
from store.corpus import Corpus
from store.db import execute, open_database, pack, query, scalar, snapshot
from store.ledger import Ledger
from store.records import Completion
from store.selections import store_selections

PER_ROUND = 10_000  # completions of a round in the large stores
NUM_TOKENS = 64
POLICIES: dict[str, DataPolicy] = {"replace": Replace(), "accumulate": Accumulate(), "mix": Mix(earlier=0.5)}


def figures(where: Path, num_completions: int = 1_000_000, num_pairs: int = 7, batch: int = 1000) -> dict[str, Any]:
    """All figures by name. `where` holds the stores and should lie on the disk that a run would use."""
    small = store(where, 1000, 1)
    late = store(where, num_completions, max(1, num_completions // PER_ROUND))
    equal = store(where, PER_ROUND, 1)  # as many to select from a round, and nothing else
    return {
        "num_completions": num_completions,
        "rows_per_transaction": batch,
        **_appending(where, num_pairs, batch),
        "growth": _growth(where, small, equal, late, num_pairs, batch),
        "selecting": {
            name: last_line("-m", "bench.corpus", "--one", name, str(late)) for name in (*POLICIES, "training")
        },
    }


def _appending(where: Path, num_pairs: int, batch: int) -> dict[str, Any]:
    """Rows a second through the corpus and through bare executemany, each into a store of its own."""
    small = store(where, 1000, 1)
    with _copies(where, raw=small, corpus=small) as copies:
        pairs = [(copies["raw"].raw(batch), copies["corpus"].append(batch)) for _ in range(num_pairs)]
    return {
        "raw_rows_per_s": round(batch / statistics.median(raw for raw, _ in pairs)),
        "corpus_rows_per_s": round(batch / statistics.median(ours for _, ours in pairs)),
        "corpus_to_raw": round(statistics.median(raw / ours for raw, ours in pairs), 3),
    }


@contextlib.contextmanager
def _copies(where: Path, **stores: Path) -> Iterator[dict[str, _Appender]]:
    """A copy of each store, to be appended to."""
    with tempfile.TemporaryDirectory(dir=where) as scratch:
        yield {
            name: _Appender(Path(shutil.copytree(config.parent, Path(scratch) / name)))
            for name, config in stores.items()
        }


class _Appender:
    """One store that is appended to; each call takes the next rows and returns the seconds that storing them took."""

    def __init__(self, directory: Path) -> None:
        self.db = open_database(directory / ".loop" / "loop.db")
        self.corpus = Corpus(self.db)
        self.template = next(self.corpus.completions(Ledger(self.db).run().id, 1))
        self.numbers = itertools.count()

    def _rows(self, num: int, **more: str) -> Iterator[Completion]:
        for n in itertools.islice(self.numbers, num):
            row = replace(self.template, prompt_token_ids=tuple(range(32)), created_at="", sha256="", sample_index=n)
            tokens = tuple(range(n % 1000, n % 1000 + NUM_TOKENS))
            yield replace(row, id=f"{n:064x}", text=(f"# {n}\n" + TEXT * 3)[:1024], token_ids=tokens, **more)

    def append(self, num: int) -> float:
        rows = list(self._rows(num))
        return timed(lambda: self.corpus.add_completions(rows))[1]

    def raw(self, num: int) -> float:
        rows = [pack(row) for row in self._rows(num, created_at="2026-01-01T00:00:00.000000Z", sha256="0" * 64)]
        names = list(rows[0])
        sql = f"INSERT INTO completions ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
        values = [tuple(row.values()) for row in rows]

        def insert() -> None:
            self.db.conn.execute("BEGIN IMMEDIATE")
            self.db.conn.executemany(sql, values)
            self.db.conn.execute("COMMIT")

        return timed(insert)[1]


def _growth(where: Path, small: Path, equal: Path, large: Path, num_pairs: int, batch: int) -> dict[str, float]:
    """How much longer the large store takes than the small one: medians of interleaved pairs. 1.0 is flat."""

    def ratio(seconds: Callable[[Any], float], small: Any, large: Any) -> float:
        pairs = [(seconds(small), seconds(large)) for _ in range(num_pairs + 1)]
        return round(statistics.median(b / a for a, b in pairs[1:]), 3)  # what is cold is cold once

    with _copies(where, small=small, large=large) as copies:
        appending = ratio(lambda copy: copy.append(batch), copies["small"], copies["large"])
    return {
        "appending": appending,
        "status": ratio(lambda config: timed(lambda: loopctl("--config", str(config), "status"))[1], small, large),
        "reading_a_round": ratio(_reading, equal, large),
        "reading_scattered_rows": ratio(lambda config: _reading(config, scattered=True), equal, large),
    }


def _reading(config: Path, scattered: bool = False) -> float:
    """The last round's texts in order of arrival, as collecting reads them; or those of 500 at a time, drawn at random from
    it, as removing near repeats does.
    """
    run_dir = config.parent / ".loop"
    with reader(run_dir) as store:
        last = store.ledger.rounds(store.run.id)[-1].number
        arrivals = [text.arrival for text in store.corpus.texts(store.run.id, last)] if scattered else []
    random.Random(0).shuffle(arrivals)

    def read(store: Reader) -> None:
        for start in range(0, len(arrivals), 500):
            store.corpus.texts_at(arrivals[start : start + 500])
        if not scattered:
            deque(store.corpus.texts(store.run.id, last), maxlen=0)

    with reader(run_dir) as store:  # with nothing in its cache
        return timed(lambda: read(store))[1]


def _one(what: str, config: Path) -> dict[str, Any]:
    """A selection as `loop.run.choosing.select` makes it for the last round, or the reading of what training gets."""
    db = open_database(config.parent / ".loop" / "loop.db")
    corpus, ledger = Corpus(db), Ledger(db)
    run_id = ledger.run().id
    last = ledger.rounds(run_id)[-1].number
    if what != "training":
        results = _selecting(corpus, ledger, run_id, last, POLICIES[what])
    else:
        with snapshot(db):  # rolled back, with what is written in it
            execute(
                db,
                "INSERT INTO selections (run_id, round, position, completion_id, used) SELECT run_id, round, arrival, id, 1 "
                "FROM completions WHERE run_id = ? AND round = ? AND evaluation_id IS NULL",
                (run_id, last),
            )
            (num_rows, _), seconds = timed(lambda: rows_sha256(corpus.training_rows(run_id, last)))
        results = {"num_rows": num_rows, "seconds": round(seconds, 2)}
    db.close()
    return results | {"peak_mib": round(_peak_mib())}


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _selecting(corpus: Corpus, ledger: Ledger, run_id: str, last: int, policy: DataPolicy) -> dict[str, Any]:
    prompts = [
        SimpleNamespace(id=row["id"], content={"opening": ""}) for row in query(corpus.db, "SELECT id FROM prompts")
    ]
    loaded = SimpleNamespace(config=SimpleNamespace(collect=Collect()))
    session: Any = SimpleNamespace(corpus=corpus, run_id=run_id, prompts=prompts, loaded=loaded)
    wanted = policy.wanted([PastRound(number, True, number == 1) for number in range(1, last)])
    past = [PastRound(number, True, number == 1) for number in wanted]
    _, described_s = timed(lambda: deque((earlier_of(session, round) for round in past), maxlen=0))
    started, cpu_s = time.perf_counter(), time.process_time()
    own, earlier = collected_of(session, last, False), [earlier_of(session, round) for round in past]
    chosen = choose(policy, own, earlier, corpus.test_verdicts, corpus.texts_at, run_id, last, 7)
    num_rows = sum(selection.used for selection in chosen.selections())
    selected_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
    peak_mib = _peak_mib()
    of, num_pages = ledger.round(run_id, last), scalar(corpus.db, "PRAGMA page_count")
    assert not scalar(corpus.db, "PRAGMA freelist_count")
    with snapshot(corpus.db):  # rolled back, with what is written in it
        _, stored_s = timed(lambda: store_selections(corpus.db, of, chosen.selections()))
        num_pages = scalar(corpus.db, "PRAGMA page_count") - num_pages
        num_read, read_s = timed(lambda: sum(1 for _ in corpus.training_rows(run_id, last)))
        assert num_read == num_rows
    return {
        "num_rows": num_rows,
        "seconds": round(selected_s, 2),
        "cpu_seconds": round(cpu_s, 2),
        "selecting_peak_mib": round(peak_mib),
        "storing_seconds": round(stored_s, 2),
        "stored_mib": round(num_pages * scalar(corpus.db, "PRAGMA page_size") / 2**20, 2),
        "reading_seconds": round(read_s, 2),
        "describing_seconds": round(described_s, 2),
    }


def main() -> None:
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
