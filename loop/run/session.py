"""An open run: the store, the yardsticks, the engines. What `run_round` works with; `opening.py` opens it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from loop.config.loading import LoadedConfig
from loop.engines.base import CheckpointRef
from loop.errors import LoopError
from loop.grading.grader import Grades
from loop.grading.problem import Problem as GradingProblem
from loop.run.sharing import Sharing
from loop.stages.evaluating import Yardstick
from loop.workers.pool import Pool
from loop.workers.up import Engines, Watch
from loop.workers.worker import RemoteSampler
from policies.policy import Policy
from store.checkpoints import quarantine, verify
from store.corpus import Corpus
from store.errors import DamagedCheckpoint, StoreError
from store.failpoints import reach
from store.hashing import Hasher
from store.ledger import Ledger
from store.records import Checkpoint, Evaluation, Json, Prompt, Round, Run

OTHER_BASE = "the base model has changed since the run began"


class LeaveRound(BaseException):
    """Raised at a safe point: the round is left as it is, and is continued later. No failure."""


class LostWeights(LoopError):
    """Weights that a round made are missing or damaged; what was left of them is set aside."""

    def __init__(self, message: str, checkpoint: Checkpoint) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint


@dataclass(slots=True)
class Session:
    """An open run. The store says where it is; this only holds what the next step needs."""

    loaded: LoadedConfig
    ledger: Ledger
    corpus: Corpus
    run_id: str
    engines: Engines
    grader: Grades
    policy: Policy
    prompts: list[Prompt]
    suites: list[Yardstick]
    watch: Watch
    tests: dict[str, GradingProblem] = field(default_factory=dict)  # of prompts, by prompt id, if a data policy asks
    check_orders: Callable[[Round | None], None] = field(default=lambda round: None)  # LeaveRound, where so
    wait: Callable[[float], None] = field(default=time.sleep)  # seconds, before a stage is tried again
    goal: int | None = None  # how many rounds are decided in all when the run ends, if whoever runs them has said so
    hasher: Hasher = field(default_factory=Hasher)  # knows the files of weights that were read whole
    sharing: Sharing = field(init=False)

    def __post_init__(self) -> None:
        self.sharing = Sharing(self)

    def safe_point(self, round: Round | None = None) -> None:
        """Everything so far is stored. What `check_orders` raises here leaves a round that can be resumed.

        Between two stages it is given the round, between two batches of one stage None.
        """
        reach("round.safe_point")
        self.check_orders(round)

    def is_called_away(self) -> bool:
        """Whether a safe point would be the end of the stage now."""
        try:
            self.check_orders(None)
        except LeaveRound:
            return True
        except StoreError:  # it cannot be told now; what is under way does not end for that
            return False
        return False

    def finish_stage(self, round: Round, attempt: int, output: Json, **more: Any) -> Round:
        """End the round's stage as `Ledger.finish_stage` does; the output also names what other runs have made of it."""
        with self.sharing.ending(round) as shared:
            return self.ledger.finish_stage(
                round, round.stage, attempt, output | shared, nodes=self.engines.by_node.done(), **more
            )

    def index_texts(self) -> None:
        """Let what was written be found by its text. A round does not fail because that cannot be done."""
        try:
            for _ in self.corpus.search.index():
                self.engines.pulse()
        except StoreError as error:
            self.watch.note(f"the full-text index could not be brought up to date: {error}")

    @property
    def decider(self) -> Yardstick:
        name = self.loaded.config.decide.suite
        return next(suite for suite in self.suites if suite.config.name == name)

    @property
    def run(self) -> Run:
        """The run as the ledger has it now."""
        run = self.ledger.run(self.loaded.config.name)
        assert run is not None
        return run

    def measured(self, checkpoint: str) -> Evaluation | None:
        """The newest finished evaluation of a checkpoint on the split of every round: of a head, not the one that chose it.

        One with more samples, as a line's last look draws, only where there is no other: `loopctl status` shows the same.
        """
        wanted, config = (self.decider.config.name, self.policy.split), self.decider.config
        evaluations = self.corpus.evaluations.all(self.run_id, checkpoint)
        finished = [each for each in evaluations if (each.suite_name, each.split) == wanted and each.metrics]
        return max(reversed(finished), key=lambda each: each.num_samples == config.num_samples, default=None)

    def fruitless_looks(self) -> dict[str, int]:
        """How often each split has been looked at in vain, as `Policy.fruitless_after` counts."""
        before = self.ledger.last_decision(self.run_id)
        return self.policy.fruitless_after(before.evidence, before.verdict) if before else {}

    def sampler(self, sha256: str) -> RemoteSampler | Pool:
        """A worker that samples from these weights and probes them: the one that serves them already, or a new one."""
        return self.engines.serving(sha256) or self.engines.sampler(self.weights(sha256))

    def weights(self, sha256: str, *, may_leave: bool = True) -> CheckpointRef:
        """A checkpoint, every byte verified, again whenever its files were touched since; a damaged one is set aside.

        While it is read, what `check_orders` raises leaves the round, unless that is not `may_leave`.
        """
        row = self.ledger.checkpoints.known(sha256)
        path = self.loaded.run_dir / row.path  # an absolute path stays as it is
        try:
            verify(path, row.manifest, replace(self.hasher, pulse=self._pulse_and_look) if may_leave else self.hasher)
        except DamagedCheckpoint as damage:
            if not row.round:
                raise LoopError(f"{OTHER_BASE}: {damage}; restore it") from None
            self.ledger.checkpoints.set_state(sha256, "quarantined")
            aside = f" (set aside as {quarantine(path)})" if path.exists() else ""
            raise LostWeights(f"checkpoint of round {row.round} is damaged: {damage}{aside}", row) from None
        base = self.weights(row.base, may_leave=may_leave) if row.base else None
        return CheckpointRef(sha256=sha256, path=path, base_path=base.path if base else None)

    def _pulse_and_look(self) -> None:
        self.engines.pulse()
        self.check_orders(None)
