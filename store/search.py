"""Finding completions by their text: the full-text index, and the search that uses it where that changes no answer.

The index holds words (FTS5's unicode61), which an underscore ends, too: `is_prime` is found by "is_prime" and by "prime". An
index of all runs of three characters finds brackets as well, but takes 2.6 times the space of the texts instead of 0.3
times, and nine times as long. It keeps no text of its own. Storing a completion does not touch it: it is caught up
afterwards, and what it does not have yet is found by reading. sqlite-utils writes the query that joins index and texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from store.db import Database, execute, scalar, select, transaction
from store.migrations import FULL_TEXT
from store.records import Completion

ROWS_AT_ONCE = 2000  # rows per transaction: about a tenth of a second for texts of 1 kB
MOST_AT_ONCE = 100_000  # rows per call: an older store is caught up piece by piece
_WHOLE_WORD = re.compile("(?<=[^A-Za-z0-9])[A-Za-z0-9]+(?=[^A-Za-z0-9])")


class Search:
    """The search over one open store; `corpus.search`."""

    def __init__(self, db: Database) -> None:
        self.db = db

    def index(self, most: int = MOST_AT_ONCE) -> Iterator[int]:
        """Catch the full-text index up with the completions, by `most` rows at most.

        Yields how many rows were done after each transaction; nothing if there is nothing to do.
        """
        texts = "SELECT arrival, text FROM completions WHERE arrival > ? ORDER BY arrival LIMIT ?"
        while most > 0 and self._last_indexed() < scalar(self.db, "SELECT coalesce(max(arrival), 0) FROM completions"):
            with transaction(self.db):
                page = (self._last_indexed(), min(ROWS_AT_ONCE, most))
                num_rows = execute(self.db, f"INSERT INTO completions_fts (rowid, text) {texts}", page)
            most -= num_rows
            yield num_rows

    def find(
        self,
        *,
        run_id: str | None = None,
        text: str | None = None,
        round: int | None = None,
        prompt_id: str | None = None,
        suite: str | None = None,
        limit: int = 20,
    ) -> list[Completion]:
        """Completions of a run's training corpus, newest first: those with `text` in them (case ignored for ASCII).

        With `suite` the answers to a suite's problems instead. Without `run_id` the newest run's. `prompt_id` is a
        prompt's id or name. Nothing in `text` has a special meaning.
        """
        pattern = None if text is None else "%" + re.sub(r"([\\%_])", r"\\\1", text) + "%"
        plus = "+" if round is None else ""  # keeps SQLite to the order of arrival, instead of sorting a whole run
        conditions = {
            "run_id": f"{plus}run_id = :run_id",
            "round": "round = :round",
            "prompt_id": "prompt_id IN (SELECT id FROM prompts WHERE id = :prompt_id OR name = :prompt_id)",
            "pattern": "text LIKE :pattern ESCAPE '\\'",
        }
        if run_id is None:
            run_id = scalar(self.db, "SELECT id FROM runs ORDER BY rowid DESC LIMIT 1")
        given = {"run_id": run_id, "round": round, "prompt_id": prompt_id, "pattern": pattern, "suite": suite}
        of_suite = "evaluation_id IN (SELECT id FROM evaluations WHERE run_id = :run_id AND suite_name = :suite)"
        wanted = ["evaluation_id IS NULL" if suite is None else of_suite]
        where = " AND ".join(wanted + [sql for name, sql in conditions.items() if given[name] is not None])
        words = None if text is None or round is not None or prompt_id is not None else _phrase(text)
        not_indexed = "" if words is None else f"arrival > {self._last_indexed()} AND "
        sql = f"SELECT * FROM completions WHERE {not_indexed}{where} ORDER BY arrival DESC LIMIT {limit}"
        completions = select(self.db, Completion, sql, given)
        if words is not None and len(completions) < limit:
            left = limit - len(completions)
            table = self.db.tools.table("completions")
            sql = table.search_sql(where=where, order_by=f"{FULL_TEXT}.rowid DESC", limit=left)
            completions += select(self.db, Completion, sql, {**given, "query": words})
        return completions

    def _last_indexed(self) -> int:
        """The arrival that the index reaches: it follows the order of arrival, as it is caught up in it."""
        return int(scalar(self.db, "SELECT coalesce(max(id), 0) FROM completions_fts_docsize"))


def _phrase(text: str) -> str | None:
    """What the index can be asked for to find every text with `text` in it, and some more; None if nothing.

    The first and the last word may be parts of longer ones. Other scripts are left alone: what is a letter depends on
    the version of Unicode.
    """
    words = _WHOLE_WORD.findall(text) if text.isascii() and "\0" not in text else []
    return f'"{" ".join(words)}"' if words else None
