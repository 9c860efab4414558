"""Stores of any size for benchmarks, filled as a long run fills them: through the store's own ledger where that is fast
enough, and row by row in SQL where it is not (completions and verdicts; their hashes are made up).

A directory that exists is used as it is.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from loop.config.loading import load_config
from loop.config.same_run import resolved
from loop.stages.sampling import Lineage, completion_id
from store.canonical import sha256_of
from store.corpus import Corpus
from store.db import open_database, transaction
from store.ledger import Ledger
from store.records import DecisionRow, Evaluation, Problem, Prompt, Round, Suite
from tests.support.configurations import configuration
from tests.support.stores import weights

NUM_PROBLEMS = 164  # HumanEval's
NUM_CHECKPOINT_DIRECTORIES = 5  # about what retention leaves
CHECKPOINT_FILES = ("manifest.json", "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
SAMPLING = {"temperature": 1.2, "top_k": 20, "top_p": 1.0}
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
    f"VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 1, 64, 32, 'eos', -20.5, ?9, ?1, '{'t' * 64}', ?10, "
    "'[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]', '[1,2,3]')"
)
_VERDICT = (
    "INSERT INTO verdicts (evaluation_id, task_id, sample_index, completion_id, verdict, detail, duration_s, sandbox) "
    "VALUES (?, ?, ?, ?, ?, '', 0.1, 'bubblewrap')"
)


def write_configuration(directory: Path, rounds: int, more: str = "", num_problems: int = NUM_PROBLEMS) -> Path:
    """A loop.toml of the fake engine with its suite; the path of the former."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "suite.jsonl").open("w") as file:
        for n in range(num_problems):
            asked = {"task_id": _task(n), "text": f"Return {n}.", "signature": f"def f{n}():"}
            file.write(json.dumps(asked | {"test_list": [f"assert f{n}() == {n}"]}) + "\n")
    path = directory / "loop.toml"
    path.write_text(configuration(**CONFIG, rounds=rounds) + more)
    return path


def _hashed(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def evaluation(suite: str, checkpoint: str) -> str:
    """The id of a checkpoint's evaluation on a suite."""
    return _hashed("evaluation", suite, checkpoint)


def _task(number: int) -> str:
    return f"suite/{number}"


class Filling:
    """Fills a store; `suffix` tells its directory from those of other fillings."""

    suffix = ""
    more = ""  # of loop.toml
    suites: ClassVar[dict[str, int]] = {"suite": 1}  # and how many samples of each problem

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
            for name in CHECKPOINT_FILES:
                (directory / name).write_bytes(b"x" * 1000)

    def _begin(self) -> None:
        corpus = self.corpus
        config = resolved(self.loaded.config) | {"inputs": {"prompts": "", "suites": {}}}
        self.run = self.ledger.create_run("bench", config, "c" * 64, 1, weights("round-0"))
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
                Problem(self.suite.sha256, _task(n), n, "select", None, id, {"task_id": _task(n)}, "0" * 64)
                for n, id in enumerate(self.prompt_ids)
            ],
        )
        self.sampling = corpus.add_decode_settings(SAMPLING)
        self.decoding = corpus.add_decode_settings({"temperature": 0.7, "top_k": 0, "top_p": 0.95})
        with transaction(self.db):
            self._evaluate(self.run.base_checkpoint, 0)

    def _round(self, number: int) -> None:
        ledger = self.ledger
        round = ledger.begin_round(self.run.id)
        first, last = ((number - back) * self.num_completions // self.num_rounds for back in (1, 0))
        self._complete(round, last - first)
        candidate = weights(f"round-{number}", number, self.run.id)
        stages = {
            "sampling": {"next_state": "training", "selections": []},
            "training": {"next_state": "evaluating", "candidates": [candidate]},
            "evaluating": {"next_state": "deciding"},
        }
        for stage, more in stages.items():
            attempt = ledger.begin_attempt(round, stage, self._input(round, stage))
            if stage == "evaluating":
                self._evaluate(candidate.sha256, number)
            round = ledger.finish_stage(round, stage, attempt, self._output(round, stage, last - first), **more)
        ledger.begin_attempt(round, "deciding", {})
        ledger.decide(round, self._decision(round))

    def _input(self, round: Round, stage: str) -> dict[str, Any]:
        return {"stage": stage}

    def _output(self, round: Round, stage: str, num_completions: int) -> dict[str, Any]:
        return {"num_used": num_completions}

    def _decision(self, round: Round) -> DecisionRow:
        keep = round.number % 3 == 1 or round.number == self.num_rounds
        head = self.ledger.run_of(self.run.id).head_checkpoint
        outcomes = [{"task_id": _task(n), "candidate": [1], "head": [0], "base": [0]} for n in range(NUM_PROBLEMS)]
        evidence = {"round": round.number, "splits": {"select": {"suite": "suite", "problems": outcomes}}}
        reason = "pass@1 +0.012 [-0.010 +0.034] on 164 problems"
        gates = [{"type": "improvement", "verdict": "pass", "reason": reason, "figures": {"gain": 0.012}}]
        verdict, after = ("keep", round.candidate_checkpoint) if keep else ("rollback", head)
        return DecisionRow(self.run.id, round.number, verdict, verdict, gates, {"gates": []}, evidence, head, after)

    def _complete(self, round: Round, num: int) -> None:
        lineage = Lineage(self.run.id, round.number, round.parent_checkpoint, None, self.sampling)

        def rows() -> Iterator[tuple[Any, ...]]:
            for n in range(num):
                prompt_id, sample = self.prompt_ids[n % NUM_PROBLEMS], n // NUM_PROBLEMS
                id = completion_id(lineage, prompt_id, sample)
                place = round.number, None, round.parent_checkpoint, prompt_id, sample
                yield id, self.run.id, *place, self.sampling, self.at, TEXT

        self.db.conn.executemany(_COMPLETION, rows())
        self.db.conn.execute(
            "UPDATE runs SET num_completions = num_completions + ?, completion_bytes = completion_bytes + ? WHERE id = ?",
            (num, num * len(TEXT), self.run.id),
        )

    def _evaluate(self, checkpoint: str, number: int) -> None:
        """A checkpoint on each suite: answers of some hundred letters, a third of them new in each round."""
        for name, num_samples in self.suites.items():
            id = evaluation(name, checkpoint)
            row = Evaluation(
                id, self.run.id, number, checkpoint, self.suite.sha256, name, self.decoding, num_samples, 7, split="select"
            )  # fmt: skip
            self.corpus.evaluations.begin(row)
            completions, verdicts = [], []
            for n, sample in itertools.product(range(NUM_PROBLEMS), range(num_samples)):
                answer = int(_hashed(name, n, sample, number // 3), 16)
                passed = answer % 100 < 10 + 30 * number // (self.num_rounds or 1)
                text = f"    result = {answer % 10**9}\n" * 5 + f"    return {n if passed else answer % 1000}\n"
                own = _hashed("evaluated", name, number, n, sample)
                place = number, id, checkpoint, self.prompt_ids[n], sample
                completions.append((own, self.run.id, *place, self.decoding, self.at, text))
                verdicts.append((id, _task(n), sample, own, "passed" if passed else "failed"))
            self.db.conn.executemany(_COMPLETION, completions)
            self.db.conn.executemany(_VERDICT, verdicts)
            num_passed = sum(verdict == "passed" for *_, verdict in verdicts)
            self.corpus.evaluations.finish(id, self._figures(number, num_passed, len(verdicts)))

    def _figures(self, number: int, num_passed: int, num: int) -> dict[str, Any]:
        rate = num_passed / num
        return {
            "pass@1": rate,
            "pass@1_interval": [max(0.0, rate - 0.07), min(1.0, rate + 0.07)],
            "num_problems": NUM_PROBLEMS,
            "num_completions": num,
            "by_difficulty": {},
            "verdicts": {"passed": num_passed, "failed": num - num_passed},
        }


def store(where: Path, num_completions: int, num_rounds: int, filling: type[Filling] = Filling) -> Path:
    """Make a run with this many completions in its training corpus and this many decided rounds; its loop.toml."""
    directory = where / f"{num_completions}-completions-{num_rounds}-rounds{filling.suffix}"
    if not directory.exists():
        partial = directory.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        filling(write_configuration(partial, num_rounds + 1, filling.more), num_completions, num_rounds).fill()
        partial.rename(directory)
    open_database(directory / ".loop" / "loop.db").close()  # what an older version made is carried forward
    return directory / "loop.toml"
