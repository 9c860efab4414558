"""What the store's tests share: a run with a base, prompts and completions. It holds no tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from store.canonical import sha256_of
from store.corpus import Corpus
from store.db import Database, migrate, open_database
from store.ledger import Ledger
from store.records import (
    Checkpoint,
    CollectedPart,
    Completion,
    CompletionText,
    DecisionRow,
    Evaluation,
    Probe,
    ProbeResult,
    Problem,
    Prompt,
    Round,
    Run,
    Selection,
    Suite,
)

EMPTY: dict[str, Any] = {"files": {}, "whole_directory": False}


class Clock:
    """A clock that moves a second at each look."""

    def __init__(self) -> None:
        self.seconds = 0

    def __call__(self) -> str:
        self.seconds += 1
        return f"2026-01-01T{self.seconds // 3600:02}:{self.seconds // 60 % 60:02}:{self.seconds % 60:02}.000000Z"


def weights(label: Any, round: int = 0, run_id: str = "") -> Checkpoint:
    """A checkpoint whose manifest names one file that exists nowhere."""
    manifest = {"files": {f"{label}.safetensors": {"size_bytes": 1, "sha256": "0" * 64}}, "whole_directory": True}
    return Checkpoint(sha256_of(manifest), run_id, round, "full", f"checkpoints/{label}", None, None, 1, manifest)


def prompt(number: int = 0) -> Prompt:
    """One of any number of prompts."""
    content = {"messages": [{"role": "user", "content": f"task {number}"}], "prefill": ""}
    return Prompt(sha256_of(content), "source", f"prompt/{number}", f"task {number}", content)


class World:
    """An open store with one run, ten prompts and one way of decoding."""

    def __init__(self, path: Path | None = None) -> None:
        self.clock = Clock()
        if path is None:
            self.db = Database()
            migrate(self.db)
        else:
            self.db = open_database(path)
        self.ledger = Ledger(self.db, self.clock)
        self.corpus = Corpus(self.db, self.clock)
        self.run: Run = self.ledger.run() or self.ledger.create_run("demo", {"seed": 1}, "c" * 64, 1, weights("base"))
        self.prompts = [prompt(number) for number in range(10)]
        self.corpus.add_prompts(self.prompts)
        self.settings_id = self.corpus.add_decode_settings({"temperature": 1.0, "top_k": 20})

    def completion(self, number: int, round: int = 1, **changes: Any) -> Completion:
        """A completion that can be stored; `changes` replace its fields."""
        fields: dict[str, Any] = {
            "id": sha256_of([round, number]),
            "run_id": self.run.id,
            "round": round,
            "evaluation_id": None,
            "checkpoint": self.run.base_checkpoint,
            "prompt_id": self.prompts[number % 10].id,
            "sample_index": number // 10,
            "decode_settings_id": self.settings_id,
            "seed": number,
            "text": f"def f():\n    return {number}\n",
            "token_ids": (number, 2),
            "prompt_token_ids": (1,),
            "tokenizer_sha256": "t" * 64,
            "num_tokens": 2,
            "num_prompt_tokens": 1,
            "finish_reason": "eos",
            "logprob_sum": -0.5 * number,
        }
        return Completion(**(fields | changes))

    def suite(self) -> Suite:
        """A stored suite of ten problems, the even ones in "select"."""
        suite = Suite("5" * 64, "suite", "file", "chat", 10)
        splits = ("select", "confirm")
        self.corpus.evaluations.add_suite(
            suite,
            [
                Problem(suite.sha256, f"t/{n}", n, splits[n % 2], None, self.prompts[n].id, {"n": n}, "0" * 64)
                for n in range(10)
            ],
        )
        return suite

    def evaluation(self, round: int = 1) -> Evaluation:
        """An evaluation of the base that has begun."""
        suite = self.suite()
        begun = Evaluation(
            "e" * 64, self.run.id, round, self.run.base_checkpoint, suite.sha256, suite.name, self.settings_id, 1, 7
        )
        return self.corpus.evaluations.begin(begun)

    def probe(self) -> Probe:
        """A stored probe with one text, and what the base gave on it."""
        sequence = {"prompt_id": self.prompts[0].id, "text": "x", "prompt_token_ids": [1, 2], "token_ids": [3]}
        base = self.run.base_checkpoint
        self.corpus.probes.add(Probe("p" * 64, self.run.id, base, self.settings_id, "t" * 64, [sequence]))
        self.corpus.probes.add_result(self.probe_result())
        probe = self.corpus.probes.get("p" * 64)
        assert probe is not None
        return probe

    def probe_result(self, **changes: Any) -> ProbeResult:
        """What the base gave on the probe; `changes` replace its fields."""
        record = {"entropy": [0.25], "top_token_id": [3], "logprobs": [[-0.1, -3.0]]}
        fields: dict[str, Any] = {
            "id": "q" * 64, "probe_id": "p" * 64, "run_id": self.run.id, "round": 0,
            "checkpoint": self.run.base_checkpoint, "records": [record],
        }  # fmt: skip
        return ProbeResult(**(fields | changes))

    def collected(self) -> None:
        """A part of what was collected of round 1."""
        self.corpus.add_collected([CollectedPart(self.run.id, 1, {"version": 1}, 7, b"x" * 96, {"empty": 2})])

    def stage(self, round: Round, stage: Any, **belongings: Any) -> Round:
        """Take the round through one stage before deciding."""
        following = {"sampling": "training", "training": "evaluating", "evaluating": "deciding"}[stage]
        attempt = self.ledger.begin_attempt(round, stage, {"stage": stage})
        if stage == "sampling":
            belongings.setdefault("selections", [])
        if stage == "training":
            belongings.setdefault("candidate", weights(f"round-{round.number}", round.number, self.run.id))
        return self.ledger.finish_stage(round, stage, attempt, {"n": 1}, next_state=following, **belongings)  # type: ignore[arg-type]

    def decision(self, round: Round, verdict: Any) -> DecisionRow:
        """A decision on a round that is deciding."""
        run = self.ledger.run()
        assert run is not None
        after = round.candidate_checkpoint if verdict == "keep" else run.head_checkpoint
        assert after is not None
        gates = [{"type": "improvement", "verdict": verdict, "reason": "why", "figures": {"delta": 0.1}}]
        return DecisionRow(
            run.id, round.number, verdict, verdict, gates, {"type": "p"}, {"splits": {}}, run.head_checkpoint, after
        )

    def whole_round(
        self, verdict: str = "keep", num_completions: int = 3, earlier: Iterable[CompletionText] = ()
    ) -> Round:
        """One round from beginning to end, with completions and selections; the `earlier` ones come last."""
        round = self.ledger.begin_round(self.run.id)
        batch = [self.completion(n, round.number, checkpoint=round.parent_checkpoint) for n in range(num_completions)]
        self.corpus.add_completions(batch)
        chosen = [
            Selection(self.run.id, round.number, c.id, position, position != 1, None if position != 1 else "too short")
            for position, c in enumerate(batch)
        ]
        chosen += [
            Selection(self.run.id, round.number, one.id, position, True, None, one.arrival)
            for position, one in enumerate(earlier, start=len(batch))
        ]
        round = self.stage(round, "sampling", selections=chosen)
        for stage in ("training", "evaluating"):
            round = self.stage(round, stage)
        self.ledger.begin_attempt(round, "deciding", {"stage": "deciding"})
        return self.ledger.decide(round, self.decision(round, verdict))
