"""Stores of any size for benchmarks, filled as a long run fills them: through the store's own ledger where that is fast
enough, and row by row in SQL where it is not (completions and verdicts; their hashes are made up).

A directory that exists is used as it is.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loop.config.loading import load_config
from loop.config.same_run import resolved
from store.canonical import sha256_of
from store.corpus import Corpus
from store.db import open_database, transaction
from store.ledger import Ledger
from store.records import Checkpoint, DecisionRow, Evaluation, Problem, Prompt, Round, Suite
from tests.support.configurations import configuration

NUM_PROBLEMS = 164  # HumanEval's
NUM_CHECKPOINT_DIRECTORIES = 5  # about what retention leaves
TEXT = "def add(first, second):\n    total = first + second\n    return total\n" * 4
CONFIG: dict[str, Any] = {
    "name": "bench",
    "seed": None,
    "prompts": {"per_round": 16},
    "training": {"batch_size": 4, "micro_batch_size": 4},
    "suites": [{"name": "suite", "source": "suite.jsonl", "temperature": 0.7, "top_p": 0.95}],
    "decide": {"suite": "suite"},
    "diagnosis": None,
    "engine": {"batch_size": None},
}
_COMPLETION = (
    "INSERT INTO completions (id, run_id, round, evaluation_id, checkpoint, prompt_id, sample_index, "
    "decode_settings_id, seed, num_tokens, num_prompt_tokens, finish_reason, logprob_sum, created_at, sha256, "
    "tokenizer_sha256, text, token_ids, prompt_token_ids) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1, 64, 32, 'eos', -20.5, ?, ?, ?, ?, ?, '[1,2,3]')"
)
_VERDICT = (
    "INSERT INTO verdicts (evaluation_id, task_id, sample_index, completion_id, verdict, detail, duration_s, sandbox) "
    "VALUES (?, ?, 0, ?, ?, '', 0.1, 'bubblewrap')"
)


def write_configuration(directory: Path, rounds: int, more: str = "", num_problems: int = NUM_PROBLEMS) -> Path:
    """A loop.toml of the fake engine with its suite; the path of the former."""
    directory.mkdir(parents=True, exist_ok=True)
    problems = [
        {
            "task_id": _task(n),
            "text": f"Return {n}.",
            "signature": f"def f{n}():",
            "test_list": [f"assert f{n}() == {n}"],
        }
        for n in range(num_problems)
    ]
    (directory / "suite.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    path = directory / "loop.toml"
    path.write_text(configuration(**CONFIG, rounds=rounds) + more)
    return path


def store(where: Path, num_completions: int, num_rounds: int) -> Path:
    """Make a run with this many completions in its training corpus and this many decided rounds; its loop.toml."""
    directory = where / f"{num_completions}-completions-{num_rounds}-rounds"
    if not directory.exists():
        partial = directory.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        _Filling(write_configuration(partial, num_rounds + 1), num_completions, num_rounds).fill()
        partial.rename(directory)
    open_database(directory / ".loop" / "loop.db").close()  # what an older version made is carried forward
    return directory / "loop.toml"


def _task(number: int) -> str:
    return f"suite/{number}"


def _hash(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


class _Filling:
    def __init__(self, config: Path, num_completions: int, num_rounds: int) -> None:
        self.loaded = load_config(config)
        self.num_completions, self.num_rounds = num_completions, num_rounds

    def fill(self) -> None:
        run_dir = self.loaded.run_dir
        run_dir.mkdir()
        self.db = open_database(run_dir / "loop.db")
        self.db.execute("PRAGMA synchronous = OFF")
        self.ledger, self.corpus = Ledger(self.db), Corpus(self.db)
        self.at = self.ledger.now()
        self._begin()
        for number in range(1, self.num_rounds + 1):
            with transaction(self.db):
                self._round(number)
        self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.db.close()
        for number in range(NUM_CHECKPOINT_DIRECTORIES):
            directory = run_dir / "checkpoints" / f"round-{number}"
            directory.mkdir(parents=True)
            for name in (
                "manifest.json",
                "model.safetensors",
                "config.json",
                "tokenizer.json",
                "tokenizer_config.json",
            ):
                (directory / name).write_bytes(b"x" * 1000)

    def _begin(self) -> None:
        corpus = self.corpus
        config = resolved(self.loaded.config) | {"inputs": {"prompts": "", "suites": {}}}
        self.run = self.ledger.create_run("bench", config, "c" * 64, 1, _weights(0))
        contents = [
            {"messages": [{"role": "user", "content": f"Return {n}."}], "prefill": ""} for n in range(NUM_PROBLEMS)
        ]
        prompts = [Prompt(sha256_of(c), "suite.jsonl", _task(n), f"Return {n}.", c) for n, c in enumerate(contents)]
        corpus.add_prompts(prompts)
        self.prompt_ids = [prompt.id for prompt in prompts]
        self.suite = Suite("5" * 64, "suite", "suite.jsonl", "chat-fence", NUM_PROBLEMS)
        corpus.evaluations.add_suite(
            self.suite,
            [
                Problem(self.suite.sha256, _task(n), n, "select", None, id, {"task_id": _task(n)}, _hash("problem", n))
                for n, id in enumerate(self.prompt_ids)
            ],
        )
        self.sampling = corpus.add_decode_settings({"temperature": 1.2, "top_k": 20, "top_p": 1.0})
        self.decoding = corpus.add_decode_settings({"temperature": 0.7, "top_k": 0, "top_p": 0.95})
        with transaction(self.db):
            self._evaluate(self.run.base_checkpoint, 0)

    def _round(self, number: int) -> None:
        ledger = self.ledger
        round = ledger.begin_round(self.run.id)
        first = (number - 1) * self.num_completions // self.num_rounds
        last = number * self.num_completions // self.num_rounds
        self._complete(round, first, last)
        for stage, following in (("sampling", "training"), ("training", "evaluating"), ("evaluating", "deciding")):
            attempt = ledger.begin_attempt(round, stage, {"stage": stage})  # type: ignore[arg-type]
            more: dict[str, Any] = {"selections": []} if stage == "sampling" else {}
            more = {"candidate": _weights(number, self.run.id)} if stage == "training" else more
            if stage == "evaluating":
                assert round.candidate_checkpoint
                self._evaluate(round.candidate_checkpoint, number)
            round = ledger.finish_stage(round, stage, attempt, {"num_used": last - first}, next_state=following, **more)  # type: ignore[arg-type]
        ledger.begin_attempt(round, "deciding", {})
        ledger.decide(round, self._decision(round))

    def _decision(self, round: Round) -> DecisionRow:
        keep = round.number % 3 == 1 or round.number == self.num_rounds
        run, candidate = self.ledger.run_of(self.run.id), round.candidate_checkpoint
        assert candidate
        outcomes = [{"task_id": _task(n), "candidate": [1], "head": [0], "base": [0]} for n in range(NUM_PROBLEMS)]
        evidence = {"round": round.number, "splits": {"select": {"suite": "suite", "problems": outcomes}}}
        reason = "pass@1 +0.012 [-0.010 +0.034] on 164 problems"
        gates = [{"type": "improvement", "verdict": "pass", "reason": reason, "figures": {"gain": 0.012}}]
        verdict, action = ("keep", "keep") if keep else ("rollback", "rollback")
        after = candidate if keep else run.head_checkpoint
        return DecisionRow(
            run.id,
            round.number,
            verdict,
            action,
            gates,
            {"gates": []},
            evidence,
            run.head_checkpoint,
            after,  # type: ignore[arg-type]
        )

    def _complete(self, round: Round, first: int, last: int) -> None:
        def rows() -> Iterator[tuple[Any, ...]]:
            for n in range(first, last):
                prompt_id = self.prompt_ids[n % NUM_PROBLEMS]
                yield self._row(
                    _hash("corpus", n), round.number, None, round.parent_checkpoint, prompt_id, n, self.sampling
                )

        self.db.conn.executemany(_COMPLETION, rows())
        self.db.conn.execute(
            "UPDATE runs SET num_completions = num_completions + ?, completion_bytes = completion_bytes + ? WHERE id = ?",
            (last - first, (last - first) * len(TEXT), self.run.id),
        )

    def _evaluate(self, checkpoint: str, number: int) -> None:
        id = _hash("evaluation", number)
        self.corpus.evaluations.begin(
            Evaluation(
                id, self.run.id, number, checkpoint, self.suite.sha256, "suite", self.decoding, 1, 7, split="select"
            )
        )
        passed = [
            int(_hash("verdict", number, n), 16) % 100 < 10 + 30 * number // (self.num_rounds or 1)
            for n in range(NUM_PROBLEMS)
        ]
        ids = [_hash("evaluated", number, n) for n in range(NUM_PROBLEMS)]
        self.db.conn.executemany(
            _COMPLETION,
            (
                self._row(ids[n], number, id, checkpoint, self.prompt_ids[n], 0, self.decoding)
                for n in range(NUM_PROBLEMS)
            ),
        )
        self.db.conn.executemany(
            _VERDICT, ((id, _task(n), ids[n], "passed" if passed[n] else "failed") for n in range(NUM_PROBLEMS))
        )
        rate = sum(passed) / NUM_PROBLEMS
        metrics = {
            "pass@1": rate,
            "pass@1_interval": [max(0.0, rate - 0.07), min(1.0, rate + 0.07)],
            "num_problems": NUM_PROBLEMS,
            "num_completions": NUM_PROBLEMS,
            "by_difficulty": {},
            "verdicts": {"passed": sum(passed), "failed": NUM_PROBLEMS - sum(passed)},
        }
        self.corpus.evaluations.finish(id, metrics)

    def _row(
        self, id: str, round: int, evaluation: str | None, checkpoint: str, prompt: str, index: int, settings: str
    ) -> tuple[Any, ...]:
        tokens = "[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]"
        return (
            id,
            self.run.id,
            round,
            evaluation,
            checkpoint,
            prompt,
            index,
            settings,
            self.at,
            id,
            "t" * 64,
            TEXT,
            tokens,
        )


def _weights(number: int, run_id: str = "") -> Checkpoint:
    files = {"model.safetensors": {"size_bytes": 1000, "sha256": _hash(number)}}
    manifest = {"files": files, "whole_directory": True}
    return Checkpoint(
        sha256_of(manifest), run_id, number, "full", f"checkpoints/round-{number}", None, None, 1000, manifest
    )
