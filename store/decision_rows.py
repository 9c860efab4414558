"""What was decided, read: the decisions of a run, and the verdicts that stop rules and `[after_rollback]` count.

A part of the ledger, which alone writes them.
"""

from __future__ import annotations

from itertools import takewhile

from store.db import Database, query, select, select_one
from store.records import DecisionRow, DecisionVerdict


class DecisionRows:
    """The decisions of a store."""

    db: Database

    def decisions(self, run_id: str) -> list[DecisionRow]:
        """All decisions, in order of round."""
        return select(self.db, DecisionRow, "SELECT * FROM decisions WHERE run_id = ? ORDER BY round", (run_id,))

    def last_verdicts(self, run_id: str, num: int) -> list[DecisionVerdict]:
        """What the newest decisions said, oldest first; "keep" also where a refused candidate's tip became the head."""
        said = "CASE WHEN head_after = head_before THEN verdict ELSE 'keep' END AS verdict"
        sql = f"SELECT {said} FROM decisions WHERE run_id = ? ORDER BY round DESC LIMIT ?"
        return [row["verdict"] for row in query(self.db, sql, (run_id, num))][::-1]

    def verdicts_on(self, run_id: str, checkpoint: str, num: int) -> list[DecisionVerdict]:
        """What the newest decisions in a row said that were taken with this checkpoint as the head, oldest first.

        A round that was carried is left out: what becomes of its line is not decided yet.
        """
        sql = "SELECT verdict, head_before FROM decisions WHERE run_id = ? AND action <> 'carry' ORDER BY round DESC LIMIT ?"
        newest = takewhile(lambda row: row["head_before"] == checkpoint, query(self.db, sql, (run_id, num)))
        return [row["verdict"] for row in newest][::-1]

    def last_decision(self, run_id: str) -> DecisionRow | None:
        sql = "SELECT * FROM decisions WHERE run_id = ? ORDER BY round DESC LIMIT 1"
        return select_one(self.db, DecisionRow, sql, (run_id,))

    def decision(self, run_id: str, number: int) -> DecisionRow | None:
        sql = "SELECT * FROM decisions WHERE run_id = ? AND round = ?"
        return select_one(self.db, DecisionRow, sql, (run_id, number))
