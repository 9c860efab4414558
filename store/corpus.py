"""Prompts and completions: append-only, with lineage; what was sampled and what training saw.

Batches are stored all or nothing, and storing one again is harmless. Reads come in pages, so that memory stays flat and
no read holds a writer up. `corpus.evaluations` (evaluations.py) and `corpus.probes` (probes.py) hold what measures,
`corpus.search` (search.py) finds completions by their text.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from functools import cache
from heapq import merge
from math import isfinite
from operator import attrgetter, itemgetter
from typing import Any

from store.canonical import canonical_json, compact_json, escape, quoted, sha256_of, sha256_of_text
from store.db import (
    Database,
    Row,
    bound,
    execute,
    insert,
    insert_rows,
    query,
    scalar,
    select_one,
    stream,
    transaction,
    unpack,
    utc_now,
)
from store.errors import Conflict, StoreError
from store.evaluations import Evaluations
from store.events import Events
from store.probes import Probes
from store.records import CollectedPart, Completion, CompletionText, CompletionVerdict, Json, Prompt, Selection
from store.search import Search

_COLUMNS = [field.name for field in fields(Completion)]
_BEFORE = -(2**63)  # every position


def completion_sha256(c: Completion) -> str:
    """The SHA-256 of the canonical JSON of every field but `created_at` and `sha256`."""
    return sha256_of_text(_covered(c, compact_json(c.prompt_token_ids), compact_json(c.token_ids)))


def _covered(c: Completion, prompt_token_ids: str, token_ids: str) -> str:
    """What the hash covers, as canonical JSON: written out, as this is where storing spends its time."""
    if c.logprob_sum is not None and not isfinite(c.logprob_sum):
        raise ValueError(f"completion {c.id}: the log-probability sum is {c.logprob_sum}")
    # SQLite keeps neither -0.0 nor an integer in a column of floats
    logprob_sum = "null" if c.logprob_sum is None else repr(float(c.logprob_sum) + 0.0)
    evaluation_id = "null" if c.evaluation_id is None else quoted(c.evaluation_id)
    return (
        f'{{"checkpoint":{quoted(c.checkpoint)},"decode_settings_id":{quoted(c.decode_settings_id)},'
        f'"evaluation_id":{evaluation_id},"finish_reason":{quoted(c.finish_reason)},"id":{quoted(c.id)},'
        f'"logprob_sum":{logprob_sum},"num_prompt_tokens":{c.num_prompt_tokens},"num_tokens":{c.num_tokens},'
        f'"prompt_id":{quoted(c.prompt_id)},"prompt_token_ids":{prompt_token_ids},"round":{c.round},'
        f'"run_id":{quoted(c.run_id)},"sample_index":{c.sample_index},"seed":{c.seed},"text":{quoted(c.text)},'
        f'"token_ids":{token_ids},"tokenizer_sha256":{quoted(c.tokenizer_sha256)}}}'
    )


def collected_sha256(part: CollectedPart) -> str:
    """The SHA-256 of every field but `sha256`."""
    entries = hashlib.sha256(part.entries).hexdigest()
    return sha256_of([part.run_id, part.round, part.rule, part.part, entries, part.left_out])


def num_bytes(text: str) -> int:
    """The size of a text as it is stored."""
    return len(escape(text).encode())


class Corpus:
    """The corpus over one open store. `now` is the clock: RFC 3339 UTC."""

    def __init__(self, db: Database, now: Callable[[], str] = utc_now) -> None:
        self.db = db
        self.now = now
        self.evaluations = Evaluations(Events(db, now))
        self.probes = Probes(Events(db, now))
        self.search = Search(db)

    def add_prompts(self, prompts: Iterable[Prompt]) -> int:
        """Store prompts; how many are new. A prompt keeps the source and name that it first came with.

        ValueError if an id is not the hash of its content.
        """
        prompts = list(prompts)
        for prompt in prompts:
            if prompt.id != sha256_of(prompt.content):
                raise ValueError(f"prompt {prompt.name!r}: the id is not the SHA-256 of the content")
        with transaction(self.db):
            return insert(self.db, "prompts", prompts, clause="ON CONFLICT (id) DO NOTHING")

    def prompt(self, prompt_id: str) -> Prompt | None:
        return select_one(self.db, Prompt, "SELECT * FROM prompts WHERE id = ?", (prompt_id,))

    def add_decode_settings(self, settings: Json) -> str:
        """Store a way of drawing tokens; its id, which is the SHA-256 of its canonical JSON."""
        settings_id = sha256_of(settings)
        sql = "INSERT INTO decode_settings (id, settings) VALUES (?, ?) ON CONFLICT (id) DO NOTHING"
        with transaction(self.db):
            execute(self.db, sql, (settings_id, canonical_json(settings)))
        return settings_id

    def decode_settings(self, settings_id: str) -> Json | None:
        stored = scalar(self.db, "SELECT settings FROM decode_settings WHERE id = ?", (settings_id,))
        settings: Json | None = json.loads(stored) if stored else None
        return settings

    def add_completions(self, batch: Iterable[Completion]) -> int:
        """Store completions and count them; how many are new. `created_at` and `sha256` are filled in.

        All or nothing, and on disk when it returns. Stored ones are passed over if they are the same, and Conflict if
        they are not: an id stands for one text for ever.
        """
        at, batch = self.now(), list(batch)
        prompt_json = cache(_integers)  # samples of one prompt lie side by side
        rows = [_row(c, c.created_at or at, prompt_json(c.prompt_token_ids)) for c in batch]
        stored = "SELECT id, sha256 FROM completions WHERE id IN (SELECT value FROM json_each(?))"
        grown = "num_completions = num_completions + ?, completion_bytes = completion_bytes + ?"
        with transaction(self.db):
            hashes = {row["id"]: row["sha256"] for row in query(self.db, stored, (json.dumps([c.id for c in batch]),))}
            new = []
            sizes: dict[str, list[int]] = defaultdict(list)  # of new texts of the corpus, by run
            for c, row in zip(batch, rows, strict=True):
                if c.id not in hashes:
                    hashes[c.id] = row[-1]
                    new.append(row)
                    if c.evaluation_id is None:
                        sizes[c.run_id].append(num_bytes(c.text))
                elif hashes[c.id] != row[-1]:
                    raise Conflict(f"completion {c.id}: was stored before with other content")
            insert_rows(self.db, "completions", _COLUMNS, new)
            for run_id, of_run in sizes.items():
                execute(self.db, f"UPDATE runs SET {grown} WHERE id = ?", (len(of_run), sum(of_run), run_id))
        return len(new)

    def existing_ids(self, run_id: str, round: int) -> set[str]:
        """The ids of a round's completions in the training corpus: what sampling need not do again."""
        sql = "SELECT id FROM completions WHERE run_id = ? AND round = ? AND evaluation_id IS NULL"
        return {row["id"] for row in query(self.db, sql, (run_id, round))}

    def completions(
        self, run_id: str, round: int | None = None, *, evaluation_id: str | None = None
    ) -> Iterator[Completion]:
        """The training corpus of a round, or an evaluation's completions; in order of arrival."""
        own = "evaluation_id IS NULL AND round = :round"
        which = own if evaluation_id is None else "evaluation_id = :evaluation_id"
        sql = f"SELECT * FROM completions WHERE {which} AND run_id = :run_id AND arrival > :arrival ORDER BY arrival"
        rows = stream(self.db, sql, {"arrival": 0}, run_id=run_id, round=round, evaluation_id=evaluation_id)
        return (unpack(Completion, row) for row in rows)

    def texts(self, run_id: str, round: int) -> Iterator[CompletionText]:
        """A round's training corpus without token ids and lineage, in order of arrival."""
        sql = (
            "SELECT arrival, id, prompt_id, sample_index, num_tokens, text FROM completions WHERE evaluation_id IS NULL "
            "AND run_id = :run_id AND round = :round AND arrival > :arrival ORDER BY arrival"
        )
        return (unpack(CompletionText, row) for row in stream(self.db, sql, {"arrival": 0}, run_id=run_id, round=round))

    def texts_at(self, arrivals: Iterable[int]) -> dict[int, str]:
        """Texts by arrival, which is the order on disk: faster than by id. All that are asked for are held in memory."""
        sql = "SELECT arrival, text FROM completions WHERE arrival IN (SELECT value FROM json_each(?))"
        return {row["arrival"]: row["text"] for row in query(self.db, sql, (json.dumps(list(arrivals)),))}

    def add_collected(self, parts: Iterable[CollectedPart]) -> None:
        """Store what later rounds need to know of a round, all or nothing; what is stored already stays."""
        stored = [replace(part, sha256=collected_sha256(part)) for part in parts]
        with transaction(self.db):
            insert(self.db, "collected", stored, clause="ON CONFLICT DO NOTHING")

    def collected(self, run_id: str, round: int, rule: Json) -> list[tuple[int, Json]]:
        """The parts of a round in order, each as the size of its entries and what it left out; none if none is stored."""
        sql = "SELECT length(entries) AS size, left_out FROM collected WHERE (run_id, round, rule) = (?, ?, ?) ORDER BY part"
        rows = query(self.db, sql, (run_id, round, canonical_json(rule)))
        return [(row["size"], json.loads(row["left_out"])) for row in rows]

    def collected_entries(self, run_id: str, round: int, rule: Json, part: int) -> bytes:
        """The entries of one part that is stored."""
        sql = "SELECT entries FROM collected WHERE (run_id, round, rule, part) = (?, ?, ?, ?)"
        return bytes(scalar(self.db, sql, (run_id, round, canonical_json(rule), part)))

    def training_rows(self, run_id: str, round: int) -> Iterator[Completion]:
        """What a round's fine-tune sees, in order: the completions whose selection is `used`."""
        own = self._own(run_id, round, "c.*", "JOIN completions AS c ON c.id = s.completion_id AND s.used")
        rows = merge(own, self._earlier(run_id, round, "c.*"), key=itemgetter("position", "id"))
        return (unpack(Completion, row) for row in rows)

    def selections(self, run_id: str, round: int) -> Iterator[Selection]:
        """A round's whole list, left-out completions with their reasons included, in order."""
        earlier = (
            Selection(run_id, round, row["id"], row["position"], True, None, row["arrival"])
            for row in self._earlier(run_id, round, "c.arrival, c.id")
        )
        return merge(self.own_selections(run_id, round), earlier, key=attrgetter("position", "completion_id"))

    def own_selections(self, run_id: str, round: int) -> Iterator[Selection]:
        """The part of that list that the round sampled itself, often a small one; all of it where an older version wrote it."""
        return (unpack(Selection, row) for row in self._own(run_id, round, "s.*, NULL AS arrival"))

    def _own(self, run_id: str, round: int, columns: str, join: str = "") -> Iterator[Row]:
        sql = (
            f"SELECT s.position, s.completion_id, {columns} FROM selections AS s {join} WHERE s.run_id = :run_id AND "
            "s.round = :round AND (s.position, s.completion_id) > (:position, :completion_id) "
            "ORDER BY s.position, s.completion_id"
        )
        return stream(self.db, sql, {"position": _BEFORE, "completion_id": ""}, run_id=run_id, round=round)

    def _earlier(self, run_id: str, round: int, columns: str) -> Iterator[Row]:
        """Columns of the completions that are listed by arrival, each with its position. StoreError if one is gone."""
        sql = (
            "SELECT position, arrivals FROM earlier_selections WHERE run_id = :run_id AND round = :round "
            "AND position > :position ORDER BY position"
        )
        lines = stream(self.db, sql, {"position": _BEFORE}, run_id=run_id, round=round)
        # In the order of the list without being sorted: SQLite would hold all rows in memory for that.
        listed = (
            f"SELECT wanted.key, wanted.value, {columns} FROM json_each(:arrivals) AS wanted "
            "LEFT JOIN completions AS c ON c.arrival = wanted.value WHERE wanted.key > :key"
        )
        for line in lines:
            for index, row in enumerate(stream(self.db, listed, {"key": -1}, arrivals=line["arrivals"])):
                if row["arrival"] is None:  # no foreign key holds it
                    raise StoreError(
                        f"round {round} was to see the completion of arrival {row['value']}, which is gone"
                    )
                assert row["key"] == index, "json_each gives the list in its order"
                yield row | {"position": line["position"] + index}

    def selection_counts(self, run_id: str, round: int) -> list[Row]:
        """How many completions a round's fine-tune saw and left out: `used`, `reason` and `num`, most first.

        A reason comes without the particulars in parentheses at its end.
        """
        sql = (
            "SELECT used, reason, sum(num) AS num FROM ("
            "SELECT used, CASE WHEN used THEN NULL WHEN reason LIKE '% (%)' THEN substr(reason, 1, instr(reason, ' (') - 1) "
            "ELSE reason END AS reason, count(*) AS num FROM selections WHERE run_id = :run_id AND round = :round "
            "GROUP BY 1, 2 UNION ALL SELECT 1, NULL, json_array_length(arrivals) FROM earlier_selections "
            "WHERE run_id = :run_id AND round = :round) GROUP BY 1, 2 ORDER BY num DESC, 2"
        )
        return query(self.db, sql, {"run_id": run_id, "round": round})

    def corpus_totals(self, run_id: str) -> list[Row]:
        """Of each round's training corpus: `round`, `num`, `num_tokens` and `num_truncated` (ended by length)."""
        sql = (
            "SELECT round, count(*) AS num, sum(num_tokens) AS num_tokens, sum(finish_reason = 'length') AS num_truncated "
            "FROM completions WHERE evaluation_id IS NULL AND run_id = ? GROUP BY round ORDER BY round"
        )
        return query(self.db, sql, (run_id,))

    def written(self, completion_ids: Iterable[str]) -> dict[str, Row]:
        """What became of completions of the training corpus in their own round, by id.

        `text`, `num_tokens`, `finish_reason`, `used`, `reason`, and `verdict` and `detail` of the prompt's tests.
        """
        sql = (
            "SELECT c.id, c.text, c.num_tokens, c.finish_reason, s.used, s.reason, t.verdict, t.detail "
            "FROM json_each(?) AS wanted CROSS JOIN completions AS c ON c.id = wanted.value "
            "LEFT JOIN selections AS s ON s.run_id = c.run_id AND s.round = c.round AND s.completion_id = c.id "
            "LEFT JOIN test_results AS t ON t.completion_id = c.id WHERE c.evaluation_id IS NULL"
        )
        return {row["id"]: row for row in query(self.db, sql, (json.dumps(list(completion_ids)),))}

    def add_test_results(self, batch: Iterable[CompletionVerdict]) -> int:
        """Store how completions did on their prompts' tests; how many are new. The first result of each stands."""
        with transaction(self.db):
            return insert(self.db, "test_results", batch, clause="ON CONFLICT (completion_id) DO NOTHING")

    def test_verdicts(self, completion_ids: Iterable[str]) -> dict[str, str]:
        """The verdicts so far on these completions' own tests, "passed" or another, by completion id."""
        sql = "SELECT completion_id, verdict FROM test_results WHERE completion_id IN (SELECT value FROM json_each(?))"
        rows = query(self.db, sql, (json.dumps(list(completion_ids)),))
        return {row["completion_id"]: row["verdict"] for row in rows}

    def outcomes(self, completion_ids: Iterable[str]) -> dict[str, tuple[str, str]]:
        """Verdict and detail of completions that were graded, on a suite's problems or on their prompts' tests."""
        sql = (
            "WITH wanted AS (SELECT value AS id FROM json_each(?)) "
            "SELECT t.completion_id, t.verdict, t.detail FROM wanted AS w JOIN test_results AS t ON t.completion_id = w.id "
            "UNION ALL SELECT v.completion_id, v.verdict, v.detail FROM wanted AS w JOIN completions AS c ON c.id = w.id "
            "JOIN verdicts AS v ON v.evaluation_id = c.evaluation_id AND v.completion_id = c.id"
        )
        rows = query(self.db, sql, (json.dumps(list(completion_ids)),))
        return {row["completion_id"]: (row["verdict"], row["detail"]) for row in rows}


def _row(c: Completion, created_at: str, prompt_token_ids: str) -> tuple[Any, ...]:
    """The columns of a completion, in the order of its fields; what `pack` gives, with the hash filled in."""
    token_ids = _integers(c.token_ids)  # once for the hash and for the column
    covered = _covered(c, prompt_token_ids, token_ids)
    row = (
        c.id, c.run_id, c.round, c.evaluation_id, c.checkpoint, c.prompt_id, c.sample_index, c.decode_settings_id, c.seed,
        c.text, token_ids, prompt_token_ids, c.tokenizer_sha256, c.num_tokens, c.num_prompt_tokens, c.finish_reason,
        c.logprob_sum, created_at, sha256_of_text(covered),
    )  # fmt: skip
    return row if covered.isascii() and "\\u0000" not in covered else tuple(bound(row))  # a NUL looks so in JSON


def _integers(values: tuple[int, ...]) -> str:
    """Integers as JSON, in a third of the time that an encoder takes."""
    return "[" + ("%d," * len(values))[:-1] % values + "]"


TEXT_BYTES_PER_TOKEN = 24  # text, token ids and log, with SQLite's overhead
ROW_BYTES = 4096  # everything else in a completion's row, and its verdict
