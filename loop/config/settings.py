"""loop.toml as frozen pydantic models: a key's default is declared once, with its sentence, its limits and its kind.

Here is `Config`, the whole file, with the tables of the method. Those of the machine are in `machine.py`, the keys of gates, data
policies and stop rules in `policies/`. `loading.py` reads the file; `mistakes.py` turns mistakes into one-line messages.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, SerializeAsAny, field_validator

from loop.config.machine import Cluster, Daemon, Engine, Grading, ScheduleTable, Storage, Watching
from loop.config.section import Cost, Mistake, Name, Operation, Section, Share
from loop.words import shown
from policies.adaptation import AfterRollback
from policies.by_type import by_type
from policies.data import DATA_POLICIES, DataPolicy, Replace
from policies.gates import GATES, Collapse, Drift, Gate, Improvement
from policies.line import MAX_CARRIED
from policies.policy import Policy, Unclear

MAX_PROBE_NUMBERS = 1 << 20  # log-probabilities recorded of one checkpoint


class Decoding(Section):
    """How tokens are drawn; the part that sampling and every suite have in common."""

    temperature: float = Field(1.0, gt=0.0, le=10.0, description="Divides the logits before the softmax.")
    top_k: int = Field(0, ge=0, description="Keep only the k most likely tokens; 0 keeps all.")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="Keep the smallest set of tokens with this probability mass.")
    repetition_penalty: float = Field(1.0, gt=0.0, le=10.0, description="Above 1 makes tokens seen before less likely.")
    max_new_tokens: PositiveInt = Field(256, description="A completion ends here at the latest.")
    stop: tuple[str, ...] = Field((), description="A completion also ends after any of these strings.")

    @property
    def truncates(self) -> bool:
        """Whether any token is cut from the distribution."""
        return self.top_k > 0 or self.top_p < 1.0


class Model(Section):
    """The base model: where round 1 starts and what every figure is compared with."""

    source: str = Field(description='"smollm2-135m" (built in), a Hugging Face model directory, or a name on the hub.')
    revision: str | None = Field(None, description="For a hub name: the commit to take.")
    chat_template: bool = Field(True, description="Ask through the model's chat template; false sends the bare text.")
    system_prompt: str | None = Field(None, description="The system message; without it the template's own default.")


class Prompts(Section):
    """What the model is asked when it writes its own training data."""

    source: str = Field("starter", description='"starter" (shipped), a .jsonl or .jsonl.gz file, or a data set.')
    config: str | None = Field(None, description="For a hub data set: its configuration name.")
    split: str = Field("train", description="For a hub data set: its split.")
    revision: str | None = Field(None, description="For a hub data set: the commit to take.")
    statement_column: str = Field("statement", description="The field or column that holds the task.")
    starter_code_column: str | None = Field(
        "signature",
        description="The field with code to start from; where it is there but empty, a whole program is asked for.",
    )
    limit: PositiveInt | None = Field(None, description="Use only this many distinct prompts, the first ones.")
    per_round: PositiveInt | None = Field(
        None, description="Prompts per round, taken in turn from a seeded shuffle; without it all, every round."
    )
    prefill_fence: bool = Field(True, description="Open the answer with ```python, so that small models write code.")


class Sampling(Decoding):
    """How the training data is sampled from the frozen head (T_train and its truncation)."""

    num_samples: PositiveInt = Field(1, description="Completions per prompt; the paper takes one.")
    control: bool = Field(False, description="Allow temperature 1 without truncation, as an experiment's control.")

    def is_fixed_point(self, temperature: float) -> bool:
        """Whether training on samples of this temperature changes nothing on average, and `control` does not allow it."""
        return temperature == 1.0 and not self.truncates and self.repetition_penalty == 1.0 and not self.control

    def mistakes(self) -> Iterator[Mistake]:
        if self.is_fixed_point(self.temperature):
            problem = (
                "1 without top_k, top_p or repetition_penalty is a fixed point: the expected gradient of training on its "
                "samples is zero; set temperature above 1, or top_k or top_p (control = true allows it)"
            )
            yield ("temperature",), problem


class Collect(Section):
    """Which completions are left out of training. All stay in the corpus, marked with the reason."""

    min_lines: int = Field(
        2, ge=0, description="Leave out stubs with fewer lines that are not blank; 0 leaves none out."
    )
    drop_shortest: float = Field(0.0, ge=0.0, lt=1.0, description="Leave out this share of the shortest completions.")
    data: Annotated[SerializeAsAny[DataPolicy], by_type(DATA_POLICIES)] = Field(
        default_factory=Replace, description="Which of the completions that are left are trained on."
    )


class Lora(Section):
    """Low-rank adaptation instead of training every weight."""

    rank: PositiveInt = Field(16, description="Rank of the update matrices.")
    alpha: PositiveFloat = Field(32.0, description="Scale of the update, relative to the rank.")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Dropout on the adapter's input.")
    target_modules: tuple[str, ...] | Literal["all-linear"] = Field("all-linear", description="Layers that get one.")
    merge: bool = Field(True, description="Merge into full weights; false keeps an adapter over the base model.")
    four_bit: bool = Field(
        False,
        description="The base in four bits while training (NF4, as in QLoRA): a quarter of bfloat16's memory. Needs bitsandbytes, and "
        "one process.",
    )

    @field_validator("four_bit")
    @classmethod
    def _can_be_had(cls, four_bit: bool) -> bool:
        if four_bit and not any(metadata.distributions(name="bitsandbytes")):
            raise ValueError("needs the package bitsandbytes; run `pip install 'ssd-loop[four-bit]'`, or leave it out")
        return four_bit


class Training(Section):
    """The fine-tune: plain cross-entropy on the sampled token ids, completion only."""

    method: Literal["full", "lora"] = Field("full", description="Train every weight, or a low-rank adapter.")
    lora: Lora = Field(default_factory=Lora)
    num_epochs: PositiveInt | None = Field(None, description="Passes over the round's completions; or give num_steps.")
    num_steps: PositiveInt | None = Field(None, description="Optimizer steps; or give num_epochs (default 1).")
    batch_size: PositiveInt = Field(32, description="Completions per optimizer step.")
    micro_batch_size: Cost[PositiveInt] = Field(
        8, description="A forward pass takes at most so many times the tokens of the longest completion."
    )
    learning_rate: PositiveFloat = Field(5e-6, description="Peak learning rate.")
    min_learning_rate: float = Field(1e-6, ge=0.0, description="Where the cosine ends.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up.")
    weight_decay: float = Field(0.1, ge=0.0, description="AdamW's weight decay.")
    adam_beta1: float = Field(0.9, ge=0.0, lt=1.0, description="AdamW's first beta.")
    adam_beta2: float = Field(0.95, ge=0.0, lt=1.0, description="AdamW's second beta.")
    max_grad_norm: PositiveFloat = Field(1.0, description="Gradients are clipped to this norm.")
    max_tokens: PositiveInt = Field(65536, description="Prompt plus completion are cut here.")
    held_out: int = Field(
        16,
        ge=0,
        description="Completions left out, at most one in 20: if their loss is much higher, training has memorised the rest.",
    )
    candidates: int = Field(
        1,
        ge=1,
        le=16,
        description="Checkpoints along a fine-tune, evenly spaced; the best on decide.split goes on to decide.confirm.",
    )
    gradient_checkpointing: Cost[bool] = Field(
        True, description="Recompute activations: less memory, about a third more time."
    )
    save_every_s: Cost[PositiveFloat] = Field(
        1800.0,
        description="How often a training saves its state, so that a killed one loses no more. It takes 12 bytes of disk per "
        "trained parameter until the round's training ends, for a moment twice that; without that room nothing is saved.",
    )

    def mistakes(self) -> Iterator[Mistake]:
        if self.num_epochs is not None and self.num_steps is not None:
            yield ("num_steps",), "num_epochs and num_steps are both given; give one"
        if self.min_learning_rate > self.learning_rate:
            problem = f"{self.min_learning_rate:g} is above learning_rate {self.learning_rate:g}; give at most that"
            yield ("min_learning_rate",), problem


PromptFormat = Literal["chat-fence", "chat", "completion", "published"]
Split = Literal["select", "confirm", "final"]
HARNESS = re.compile(r"[a-z0-9+/:.-]+@[a-z-]+(?:=.*)?")  # a suite's source that names how it is asked


def _format_of(source: str) -> PromptFormat:
    return "published" if HARNESS.fullmatch(source) else "chat-fence"


class Suite(Decoding):
    """A set of problems with one fixed way of asking and decoding; the pair is the yardstick and never moves."""

    name: Name = Field(description="What reports call it; unique.")
    source: str = Field(
        description='"first-steps" (shipped), a benchmark by name such as "humaneval+" or "livecodebench/v6@official", or a file.'
    )
    limit: PositiveInt | None = Field(None, description="Use only this many problems, chosen by the hash of their id.")
    num_samples: PositiveInt = Field(1, description="Completions per problem.")
    pass_at: tuple[PositiveInt, ...] = Field(
        (1,), min_length=1, description="The k of each pass@k; at most num_samples."
    )
    greedy: bool = Field(False, description="Always take the most likely token; excludes the sampling keys.")
    prompt_format: PromptFormat = Field(
        default_factory=lambda given: _format_of(given.get("source", "")),
        description='"chat-fence" asks through the chat and opens a code fence, "chat" only asks, '
        '"completion" lets the model continue the bare prompt, "published" asks as the harness does that source names; where it '
        "names one, that is the default.",
    )
    splits: dict[Split, Share] = Field(
        {"select": 1.0}, description="Shares of the problems, by hash of the id, so that they never move."
    )

    @field_validator("splits")
    @classmethod
    def _sums_to_one(cls, splits: dict[Split, float]) -> dict[Split, float]:
        if abs(sum(splits.values()) - 1.0) > 1e-9:
            raise ValueError(f"the shares sum to {sum(splits.values()):.10g}; they must sum to 1")
        return splits

    def mistakes(self) -> Iterator[Mistake]:
        if (k := max(self.pass_at)) > self.num_samples:
            remedy = f"raise num_samples to at least {k}, or ask for a smaller k"
            yield ("pass_at",), f"pass@{k} needs as many samples but num_samples is {self.num_samples}; {remedy}"
        if self.greedy and self.num_samples > 1:
            problem = f"{self.num_samples} greedy completions of a problem are all the same; set num_samples = 1"
            yield ("num_samples",), problem
        if self.greedy and (self.temperature != 1.0 or self.truncates):
            yield ("greedy",), "excludes temperature, top_k and top_p; remove them or greedy"


class Decide(Section):
    """The one figure that decides, named before the run starts. Every other suite is only reported, or a gate's canary."""

    suite: str = Field(description="The name of the suite that decides.")
    split: Split = Field("select", description="The part of it that is used in every round.")
    confirm: Split | None = Field(
        None,
        description="Another part, opened only for a candidate that looks better on the first; it has the last word.",
    )
    looks: int = Field(
        1,
        ge=1,
        le=100,
        description="In how many parts the problems are drawn; the evaluation ends with the part that makes it clear.",
    )
    unclear: Unclear = Field(
        "carry",
        description="What follows when a gate neither passes nor fails; carry: the next round begins from the candidate, the head stays.",
    )
    max_carried: int = Field(
        MAX_CARRIED,
        ge=1,
        le=1000,
        description="For carry: how many rounds in a row; after the next one that is not kept, the head is sampled again.",
    )
    last_samples: int = Field(
        4,
        ge=1,
        le=100,
        description="For carry: where no round follows a carried one, num_samples times this, for candidate and head.",
    )
    margin: float = Field(0.01, gt=0.0, lt=1.0, description="For keep_if_not_inferior: how much worse is not inferior.")
    gates: tuple[Annotated[SerializeAsAny[Gate], by_type(GATES)], ...] = Field(
        (Improvement(), Collapse(), Drift()),
        description="What must hold to keep a candidate; each has a type and its own keys.",
    )

    @field_validator("gates")
    @classmethod
    def _some(cls, gates: tuple[Gate, ...]) -> tuple[Gate, ...]:
        if not gates:
            raise ValueError('no gates, so every candidate would be kept; give at least one, {type = "improvement"}')
        return gates

    def mistakes(self) -> Iterator[Mistake]:
        if self.confirm == self.split:
            yield ("confirm",), f"{self.confirm!r} is decide.split, too; what confirms must be another part"

    def policy(self) -> Policy:
        """The policy that this asks for."""
        return Policy(self.gates, self.split, self.confirm, self.unclear, self.margin, self.max_carried)


class Diagnosis(Section):
    """Locks and forks: how each candidate's next-token distributions differ from the base's and the head's."""

    num_prompts: int = Field(
        32, ge=0, le=MAX_PROBE_NUMBERS, description="Prompts of the suite that decides; 0 leaves the diagnosis out."
    )
    max_new_tokens: int = Field(128, ge=1, le=1024, description="The base's answers to them end here at the latest.")
    top: int = Field(
        64, ge=2, le=128, description="How many of the base's likeliest tokens are followed at a position."
    )
    lock_below_nats: float = Field(0.3, gt=0.0, description="A position is a lock where the base's entropy is lower.")
    fork_above_nats: float = Field(1.0, gt=0.0, description="A position is a fork where the base's entropy is higher.")

    def mistakes(self) -> Iterator[Mistake]:
        if self.fork_above_nats < self.lock_below_nats:
            problem = f"is below lock_below_nats ({self.lock_below_nats:g}), so a position could be both; raise it"
            yield ("fork_above_nats",), problem
        numbers = self.num_prompts * self.max_new_tokens * self.top
        if numbers > MAX_PROBE_NUMBERS:
            problem = f"is {numbers}, and all of it is held in memory; stay at or below {MAX_PROBE_NUMBERS}"
            yield ("num_prompts",), f"num_prompts * max_new_tokens * top {problem}"


class Config(Section):
    """The whole of loop.toml."""

    name: Name = Field(description="The run's name in every report.")
    run_dir: Operation[Path] = Field(Path(".loop"), strict=False, description="Where everything of the run is kept.")
    seed: int = Field(1, ge=0, lt=2**63, description="Every random draw of the run derives from it.")
    rounds: Operation[int] = Field(2, ge=0, description="How many rounds the run has in all; 0: without end.")
    model: Model
    prompts: Prompts = Field(default_factory=Prompts)
    sampling: Sampling
    collect: Collect = Field(default_factory=Collect)
    training: Training = Field(default_factory=Training)
    after_rollback: AfterRollback = Field(default_factory=AfterRollback)
    suites: tuple[Suite, ...] = Field(min_length=1)
    decide: Decide
    diagnosis: Diagnosis = Field(default_factory=Diagnosis)
    grading: Grading = Field(default_factory=Grading)
    engine: Cost[Engine] = Field(default_factory=Engine)
    cluster: Cost[Cluster | None] = None
    schedule: Operation[ScheduleTable] = Field(default_factory=ScheduleTable)
    storage: Operation[Storage] = Field(default_factory=Storage)
    watching: Operation[Watching] = Field(default_factory=Watching)
    daemon: Operation[Daemon] = Field(default_factory=Daemon)

    @field_validator("run_dir", mode="before")
    @classmethod
    def _a_directory(cls, run_dir: object) -> object:
        if isinstance(run_dir, str):
            has_no_home = os.path.expanduser(Path(run_dir)).startswith("~")  # "~nobody"
            if has_no_home or not run_dir.strip() or "\0" in run_dir:
                raise ValueError(f"{shown(run_dir)} is not the name of a directory; leave the key out for .loop")
        return run_dir

    def mistakes(self) -> Iterator[Mistake]:
        changes, training = self.after_rollback, self.training
        for index, temperature in enumerate(changes.temperatures):
            if self.sampling.is_fixed_point(temperature):
                problem = "1 without top_k, top_p or repetition_penalty in [sampling] is a fixed point; give another"
                yield ("after_rollback", "temperatures", index), problem
        floor = changes.learning_rate_floor
        if floor is not None and floor > training.learning_rate:
            problem = f"{floor:g} is above training.learning_rate {training.learning_rate:g}; give at most that"
            yield ("after_rollback", "learning_rate_floor"), problem
        if changes.length_factor < 1.0 and training.num_steps is None and training.num_epochs in (None, 1):
            problem = "a single epoch cannot be made shorter; give training.num_steps, or leave this out"
            yield ("after_rollback", "length_factor"), problem
        if self.engine.sampler == "server" and training.method == "lora" and not training.lora.merge:
            problem = 'a server (engine.sampler = "server") takes whole weights only; set merge = true'
            yield ("training", "lora", "merge"), problem
        if training.method == "lora" and training.lora.four_bit and (self.engine.num_training_processes or 1) > 1:
            problem = "a base in four bits is not shared among processes; set 1, or training.lora.four_bit = false"
            yield ("engine", "num_training_processes"), problem
        if training.candidates > 1 and self.decide.confirm is None:
            problem = (
                f"decide.split chooses among {training.candidates} candidates, so it cannot show that the chosen one is better; "
                "set decide.confirm to another split, or candidates = 1"
            )
            yield ("training", "candidates"), problem
        if self.cluster is not None:
            yield from self._cluster_mistakes(self.cluster)

    def _cluster_mistakes(self, cluster: Cluster) -> Iterator[Mistake]:
        if not any(metadata.distributions(name="ray")):
            yield ("cluster",), "needs the package ray; run `pip install 'ssd-loop[cluster]'`, or remove the table"
        if self.grading.sandbox == "none":
            problem = '"none" lets what a model wrote run programs on every node of [cluster]; use "bubblewrap"'
            yield ("grading", "sandbox"), problem
        if (cluster.training_nodes or 0) > self.training.batch_size:
            problem = (
                f"each of {cluster.training_nodes} nodes needs a row of every step, but training.batch_size is "
                f"{self.training.batch_size}; lower it, or raise that"
            )
            yield ("cluster", "training_nodes"), problem
        if cluster.training_nodes and self.training.method == "lora" and self.training.lora.four_bit:
            problem = (
                "a base in four bits is not shared among processes; leave it out, or set training.lora.four_bit = false"
            )
            yield ("cluster", "training_nodes"), problem

    @property
    def wants_tests(self) -> bool:
        """Whether any data policy of the run looks at the tests of prompts."""
        return any(data is not None and data.passed_tests for data in (self.collect.data, self.after_rollback.data))

    def suite(self, name: str) -> Suite:
        """The suite of that name; KeyError if there is none."""
        return {suite.name: suite for suite in self.suites}[name]
