"""Frozen row types: what the store gives back and takes in. Field names are those of the columns (migrations.py)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

RunState = Literal["running", "paused", "idle", "stopped", "failed"]
CheckpointState = Literal["present", "quarantined", "collected"]
RoundState = Literal["sampling", "training", "evaluating", "deciding", "kept", "carried", "rolled_back", "failed"]
DECIDED: tuple[RoundState, ...] = ("kept", "carried", "rolled_back")
StageName = Literal["sampling", "training", "evaluating", "deciding"]
STAGES: tuple[StageName, ...] = ("sampling", "training", "evaluating", "deciding")
DecisionVerdict = Literal["keep", "rollback", "inconclusive"]
Json = dict[str, Any]
Compressed = list[Json]  # its column holds zlib-compressed JSON


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the append-only history. `sha256` covers every other field and the previous event's hash."""

    seq: int
    at: str
    run_id: str
    kind: str
    round: int | None
    stage: str | None
    data: Json
    previous_sha256: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Run:
    """One run directory's run. Counters are kept in the transaction of what they count, so that status is instant."""

    id: str
    name: str
    config_sha256: str
    config: Json
    seed: int
    state: RunState
    reason: str | None
    created_at: str
    base_checkpoint: str
    head_checkpoint: str
    head_round: int  # 0 is the base
    tip_checkpoint: str  # where the next round samples from: the head, or the newest candidate that was carried
    tip_round: int
    depth: int = 0  # how many rounds were carried since the head
    num_completions: int = 0
    completion_bytes: int = 0
    num_kept: int = 0
    num_carried: int = 0
    num_rolled_back: int = 0
    num_failed: int = 0
    num_failed_lines: int = 0  # lines of carried rounds that ended back at their head

    @property
    def num_decided(self) -> int:
        """The rounds that were kept, carried or rolled back."""
        return self.num_kept + self.num_carried + self.num_rolled_back


@dataclass(frozen=True, slots=True)
class Control:
    """What has been asked of a run and stands until it is carried out or taken back."""

    run_id: str
    held_by: Literal["user", "failure", "decision"] | None = None
    hold_reason: str | None = None
    released_at: str | None = None
    wanted_head: int | None = None  # the round that the head is to move to at the next safe point


@dataclass(frozen=True, slots=True)
class Round:
    """One round. `state` moves only by compare-and-swap; a failed one remembers the stage at which it continues."""

    run_id: str
    number: int
    state: RoundState
    stage: StageName
    parent_checkpoint: str
    candidate_checkpoint: str | None
    started_at: str
    finished_at: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of one round: its frozen input, and its output once done."""

    run_id: str
    round: int
    name: StageName
    input: Json
    output: Json | None
    started_at: str
    finished_at: str | None
    num_attempts: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a stage. `finished_at` without `error` is success; neither means that the process vanished."""

    run_id: str
    round: int
    stage: StageName
    attempt: int
    started_at: str
    finished_at: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked. `id` is the SHA-256 of `content`, which is the canonical JSON of messages and prefill."""

    id: str
    source: str
    name: str
    statement: str
    content: Json


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled text with its full lineage. `evaluation_id` is None in the training corpus.

    `id` is a hash of run, round, checkpoint, prompt, sample index and decode settings (for an evaluation: of the
    evaluation instead of run and round), so that the same completion is never stored twice. `sha256` covers
    every other field except `created_at`.
    """

    id: str
    run_id: str
    round: int
    evaluation_id: str | None
    checkpoint: str
    prompt_id: str
    sample_index: int
    decode_settings_id: str
    seed: int
    text: str
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    tokenizer_sha256: str
    num_tokens: int
    num_prompt_tokens: int
    finish_reason: Literal["eos", "stop", "length"]
    logprob_sum: float | None
    created_at: str = ""  # filled in by the corpus
    sha256: str = ""  # likewise


@dataclass(frozen=True, slots=True)
class CompletionText:
    """As much of a completion as it takes to say whether training may see it: no token ids, no lineage."""

    id: str
    prompt_id: str
    sample_index: int
    num_tokens: int
    text: str
    arrival: int = 0


@dataclass(frozen=True, slots=True)
class CollectedPart:
    """A part of what later rounds need to know of a round. `sha256` covers every other field."""

    run_id: str
    round: int
    rule: Json
    part: int
    entries: bytes
    left_out: Json
    sha256: str = ""  # filled in by the corpus


@dataclass(frozen=True, slots=True)
class CompletionVerdict:
    """Whether a completion of the training corpus passes its prompt's tests."""

    completion_id: str
    verdict: Literal["passed", "failed", "timeout", "error", "no_code"]
    detail: str
    duration_s: float
    sandbox: str


@dataclass(frozen=True, slots=True)
class Selection:
    """Whether a round's fine-tune saw a completion, and if not, why. `arrival`: the completion's, if of an earlier round."""

    run_id: str
    round: int
    completion_id: str
    position: int
    used: bool
    reason: str | None
    arrival: int | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a suite. `payload` is the problem as its file has it."""

    suite_sha256: str
    task_id: str
    position: int
    split: str
    difficulty: str | None
    prompt_id: str
    payload: Json
    sha256: str


@dataclass(frozen=True, slots=True)
class Suite:
    """A yardstick: problems, prompt format and splits under one content hash."""

    sha256: str
    name: str
    source: str
    prompt_format: str
    num_problems: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One checkpoint on one suite under one way of decoding. `metrics` is None until every verdict is in."""

    id: str
    run_id: str
    round: int  # where it was first needed
    checkpoint: str
    suite_sha256: str
    suite_name: str
    decode_settings_id: str
    num_samples: int
    seed: int
    split: str = "all"  # the one split that was evaluated, or all of them
    created_at: str = ""  # filled in by the corpus
    finished_at: str | None = None
    metrics: Json | None = None


VerdictName = Literal["passed", "failed", "timeout", "error", "no_code", "harness_error"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one completion did. `sandbox` names the level of isolation that it ran under."""

    evaluation_id: str
    task_id: str
    sample_index: int
    completion_id: str
    verdict: VerdictName
    detail: str
    duration_s: float
    sandbox: str


@dataclass(frozen=True, slots=True)
class GradedVerdict(Verdict):
    """A verdict with what its problem says of it."""

    split: str
    difficulty: str | None


@dataclass(frozen=True, slots=True)
class Probe:
    """Texts by the base on which checkpoints are compared. `id` is a hash of all that asks for them.

    Each sequence: `prompt_id`, `text`, `prompt_token_ids`, `token_ids`. `sha256` covers every other field except
    `created_at`.
    """

    id: str
    run_id: str
    checkpoint: str
    decode_settings_id: str
    tokenizer_sha256: str
    sequences: list[Json]
    created_at: str = ""  # filled in by the corpus
    sha256: str = ""  # likewise


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One checkpoint on one probe; `records` holds an object per sequence, in the probe's order."""

    id: str
    probe_id: str
    run_id: str
    round: int  # of the checkpoint; 0 is the base
    checkpoint: str
    records: Compressed
    created_at: str = ""  # filled in by the corpus
    sha256: str = ""  # likewise


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """What the policy said, the exact evidence that it saw and the policy itself, so that it can be replayed."""

    run_id: str
    round: int
    verdict: DecisionVerdict
    action: str
    gates: list[Json]
    policy: Json
    evidence: Json
    head_before: str
    head_after: str
    decided_at: str = ""  # filled in by the ledger


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A directory of weights with its manifest. `sha256` is the hash of the manifest, hence of every file in it."""

    sha256: str
    run_id: str
    round: int  # 0 is the base
    kind: Literal["full", "adapter"]
    path: str  # relative to the run directory, or absolute for a base outside it
    parent: str | None
    base: str | None  # the full weights that an adapter belongs to
    size_bytes: int
    manifest: Json
    state: CheckpointState = "present"
    pinned: bool = False
    created_at: str = ""  # filled in by the ledger
    origin: Json = field(default_factory=dict)  # source name, revision, training result
