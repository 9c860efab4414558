"""What the store's tests share: a run with a base, prompts and completions. It holds no tests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

from store import records
from store.canonical import sha256_of
from store.corpus import Corpus
from store.db import Database, migrate, open_database
from store.errors import StaleState
from store.ledger import Ledger
from store.records import STAGES
from store.verify import verify_store


def weights(label: Any, round: int = 0, run_id: str = "") -> records.Checkpoint:
    """A checkpoint whose manifest names one file that exists nowhere."""
    manifest = {"files": {f"{label}.safetensors": {"size_bytes": 1, "sha256": "0" * 64}}, "whole_directory": True}
    sha256, path = sha256_of(manifest), f"checkpoints/{label}"
    return records.Checkpoint(sha256, run_id, round, "full", path, None, None, 1, manifest)


def prompt(number: int = 0) -> records.Prompt:
    """One of any number of prompts."""
    content = {"messages": [{"role": "user", "content": f"task {number}"}], "prefill": ""}
    return records.Prompt(sha256_of(content), "source", f"prompt/{number}", f"task {number}", content)


class World:
    """An open store with one run, ten prompts and one way of decoding."""

    def __init__(self, path: Path | None = None) -> None:
        self.db = open_database(path) if path else Database()
        if path is None:
            migrate(self.db)
        start = datetime(2026, 1, 1)  # the clock moves a second at each look
        clock = (f"{start + timedelta(seconds=n):%Y-%m-%dT%H:%M:%S.%fZ}" for n in count(1)).__next__
        self.ledger = Ledger(self.db, clock)
        self.corpus = Corpus(self.db, clock)
        self.run = self.ledger.run() or self.ledger.create_run("demo", {"seed": 1}, "c" * 64, 1, weights("base"))
        self.prompts = [prompt(number) for number in range(10)]
        self.corpus.add_prompts(self.prompts)
        self.settings_id = self.corpus.add_decode_settings({"temperature": 1.0, "top_k": 20})

    @property
    def now(self) -> records.Run:
        """The run as it is now; `run` is how it began."""
        return self.ledger.run_of(self.run.id)

    def findings(self) -> list[str]:
        """What a verification says of the store; the weights of most of these tests exist nowhere."""
        findings = verify_store(self.db, Path("/nowhere")).findings
        return [f"{finding.kind}: {finding.message}" for finding in findings if "/nowhere/" not in finding.message]

    @contextmanager
    def refused(self, error: Any = StaleState, match: str | None = None) -> Iterator[None]:
        """The block raises one line, and leaves neither an event nor an open transaction."""
        import pytest  # writers that are killed import this module, too, and start sooner without it

        last = self.ledger.events.last()
        with pytest.raises(error, match=match) as caught:
            yield
        assert "\n" not in str(caught.value)
        assert self.ledger.events.last() == last and not self.db.conn.in_transaction

    def completion(self, number: int, round: int = 1, **changes: Any) -> records.Completion:
        """A completion that can be stored; `changes` replace its fields."""
        fields: dict[str, Any] = {
            "id": sha256_of([round, number]), "run_id": self.run.id, "round": round, "evaluation_id": None,
            "checkpoint": self.run.base_checkpoint, "prompt_id": self.prompts[number % 10].id, "sample_index": number // 10,
            "decode_settings_id": self.settings_id, "seed": number, "text": f"def f():\n    return {number}\n",
            "token_ids": (number, 2), "prompt_token_ids": (1,), "tokenizer_sha256": "t" * 64, "num_tokens": 2,
            "num_prompt_tokens": 1, "finish_reason": "eos", "logprob_sum": -0.5 * number,
        }  # fmt: skip
        return records.Completion(**(fields | changes))

    def sampled(self, completions: Iterable[records.Completion | str]) -> records.Round:
        """A round that has begun, with these completions, or with completions of these texts."""
        round = self.ledger.begin_round(self.run.id)
        self.corpus.add_completions(
            self.completion(n, round.number, text=c) if isinstance(c, str) else c for n, c in enumerate(completions)
        )
        return round

    def suite(self) -> records.Suite:
        """A stored suite of ten problems, the even ones in "select"."""
        suite, splits = records.Suite("5" * 64, "suite", "file", "chat", 10), ("select", "confirm") * 5
        problems = (
            records.Problem(suite.sha256, f"t/{n}", n, split, None, self.prompts[n].id, {"n": n}, "0" * 64)
            for n, split in enumerate(splits)
        )
        self.corpus.evaluations.add_suite(suite, problems)
        return suite

    def evaluation(self, round: int = 1, id: str = "e" * 64, checkpoint: str = "") -> records.Evaluation:
        """An evaluation that has begun, of the base unless another checkpoint is named."""
        suite, checkpoint = self.suite(), checkpoint or self.run.base_checkpoint
        return self.corpus.evaluations.begin(
            records.Evaluation(id, self.run.id, round, checkpoint, suite.sha256, suite.name, self.settings_id, 1, 7)
        )

    def probe(self) -> records.Probe:
        """A stored probe with one text, and what the base gave on it."""
        sequence = {"prompt_id": self.prompts[0].id, "text": "x", "prompt_token_ids": [1, 2], "token_ids": [3]}
        base = self.run.base_checkpoint
        self.corpus.probes.add(records.Probe("p" * 64, self.run.id, base, self.settings_id, "t" * 64, [sequence]))
        self.corpus.probes.add_result(self.probe_result())
        return self.corpus.probes.get("p" * 64)

    def probe_result(self, **changes: Any) -> records.ProbeResult:
        """What the base gave on the probe; `changes` replace its fields."""
        record = {"entropy": [0.25], "top_token_id": [3], "logprobs": [[-0.1, -3.0]]}
        fields: dict[str, Any] = {
            "id": "q" * 64, "probe_id": "p" * 64, "run_id": self.run.id, "round": 0,
            "checkpoint": self.run.base_checkpoint, "records": [record],
        }  # fmt: skip
        return records.ProbeResult(**(fields | changes))

    def collected(self) -> None:
        """A part of what was collected of round 1."""
        self.corpus.add_collected([records.CollectedPart(self.run.id, 1, {"version": 1}, 7, b"x" * 96, {"empty": 2})])

    def round_at(self, stage: Any) -> records.Round:
        """A new round, taken through all stages before this one."""
        round = self.ledger.begin_round(self.run.id)
        for before in STAGES[: STAGES.index(stage)]:
            round = self.stage(round, before)
        return round

    def stage(self, round: records.Round, stage: Any, **belongings: Any) -> records.Round:
        """Take the round through one stage before deciding."""
        following: Any = STAGES[STAGES.index(stage) + 1]
        attempt = self.ledger.begin_attempt(round, stage, {"stage": stage})
        if stage == "sampling":
            belongings.setdefault("selections", [])
        if stage == "training":
            belongings.setdefault("candidates", [weights(f"round-{round.number}", round.number, self.run.id)])
        return self.ledger.finish_stage(round, stage, attempt, {"n": 1}, next_state=following, **belongings)

    def decision(self, round: records.Round, verdict: Any) -> records.DecisionRow:
        """A decision on a round that is deciding: a verdict, or "carry"."""
        head = self.now.head_checkpoint
        after = (round.candidate_checkpoint or "") if verdict == "keep" else head
        action, verdict = verdict, "inconclusive" if verdict == "carry" else verdict
        gates = [{"type": "improvement", "verdict": verdict, "reason": "why", "figures": {"delta": 0.1}}]
        policy, evidence = {"type": "p"}, {"splits": {}}
        return records.DecisionRow(self.run.id, round.number, verdict, action, gates, policy, evidence, head, after)

    def whole_round(
        self, verdict: str = "keep", num_completions: int = 3, earlier: Iterable[records.CompletionText] = ()
    ) -> records.Round:
        """One round from beginning to end, with completions and selections; the `earlier` ones come last."""
        round = self.ledger.begin_round(self.run.id)
        batch = [self.completion(n, round.number, checkpoint=round.parent_checkpoint) for n in range(num_completions)]
        self.corpus.add_completions(batch)
        chosen = [
            records.Selection(
                self.run.id, round.number, c.id, position, position != 1, None if position != 1 else "too short"
            )
            for position, c in enumerate(batch)
        ]
        chosen += [
            records.Selection(self.run.id, round.number, text.id, position, True, None, text.arrival)
            for position, text in enumerate(earlier, start=len(batch))
        ]
        round = self.stage(round, "sampling", selections=chosen)
        for stage in STAGES[1:3]:
            round = self.stage(round, stage)
        self.ledger.begin_attempt(round, "deciding", {"stage": "deciding"})
        return self.ledger.decide(round, self.decision(round, verdict))
