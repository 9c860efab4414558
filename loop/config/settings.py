"""loop.toml as frozen pydantic models: every key, its default (here and nowhere else), its sentence and its limits.

Reading the file is `loop/config/loading.py`; mistakes become one-line messages in `loop/config/mistakes.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator
from pydantic_core import PydanticCustomError

from loop.config.times import cron_fields, parse_interval, parse_until, parse_window, parse_zone
from loop.config.toml_lines import KeyPath
from loop.engines.by_name import AUTO, SAMPLERS, sampler_kind
from policies.adaptation import AfterRollback
from policies.data import Data, Replace
from policies.policy import Policy, build_policy
from policies.schedule import Stop

Mistake = tuple[KeyPath, str]  # the key, relative to the table that is checked, and what is wrong with it

MAX_PROBE_NUMBERS = 1 << 20  # log-probabilities recorded of one checkpoint

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
NAME_WORDS = "letters, digits, '.', '_' and '-', beginning with a letter or digit"
HUB_NAME = re.compile(rf"{NAME.pattern}/[A-Za-z0-9._-]+")

Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A table of loop.toml: unknown keys are errors, and nothing changes after it was read."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


def _refuse(mistakes: Sequence[Mistake]) -> None:
    """Raise for mistakes in how keys go together, each with the key that it belongs to; nothing if there are none."""
    if mistakes:
        text = "; ".join(problem for _, problem in mistakes)
        raise PydanticCustomError("mistakes", "{text}", {"text": text, "mistakes": list(mistakes)})


def _is_web(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _a_command(command: tuple[str, ...], example: str) -> tuple[str, ...]:
    if (command and not command[0].strip()) or any("\0" in word for word in command):
        raise ValueError(f"is no command; give it and its arguments, as in {example}")
    return command


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
    limit: PositiveInt | None = Field(None, description="Use only the first so many distinct prompts.")
    per_round: PositiveInt | None = Field(
        None, description="Prompts per round, taken in turn from a seeded shuffle; without it all, every round."
    )
    prefill_fence: bool = Field(True, description="Open the answer with ```python, so that small models write code.")


class Sampling(Decoding):
    """How the training data is sampled from the frozen head (T_train and its truncation)."""

    num_samples: PositiveInt = Field(1, description="Completions per prompt; the paper takes one.")
    control: bool = Field(False, description="Allow temperature 1 without truncation, as an experiment's control.")

    @model_validator(mode="after")
    def _not_a_fixed_point(self) -> Sampling:
        if self.temperature == 1.0 and not self.truncates and self.repetition_penalty == 1.0 and not self.control:
            problem = (
                "1 without top_k, top_p or repetition_penalty is a fixed point: the expected gradient of training on "
                "its samples is zero; set temperature above 1, or top_k or top_p (control = true allows it)"
            )
            _refuse([(("temperature",), problem)])
        return self


class Collect(Section):
    """Which completions are left out of training. All stay in the corpus, marked with the reason."""

    min_lines: int = Field(
        2, ge=0, description="Leave out stubs with fewer lines that are not blank; 0 leaves none out."
    )
    drop_shortest: Share = Field(0.0, lt=1.0, description="Leave out this share of the shortest completions.")
    data: Data = Field(default_factory=Replace, description="Which of the completions that are left are trained on.")


class Lora(Section):
    """Low-rank adaptation instead of training every weight."""

    rank: PositiveInt = Field(16, description="Rank of the update matrices.")
    alpha: PositiveFloat = Field(32.0, description="Scale of the update, relative to the rank.")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Dropout on the adapter's input.")
    target_modules: tuple[str, ...] | Literal["all-linear"] = Field("all-linear", description="Layers that get one.")
    merge: bool = Field(True, description="Merge into full weights; false keeps an adapter over the base model.")


class Training(Section):
    """The fine-tune: plain cross-entropy on the sampled token ids, completion only."""

    method: Literal["full", "lora"] = Field("full", description="Train every weight, or a low-rank adapter.")
    lora: Lora = Field(default_factory=Lora)
    num_epochs: PositiveInt | None = Field(None, description="Passes over the round's completions; or give num_steps.")
    num_steps: PositiveInt | None = Field(None, description="Optimizer steps; or give num_epochs (default 1).")
    batch_size: PositiveInt = Field(32, description="Completions per optimizer step.")
    micro_batch_size: PositiveInt = Field(8, description="Completions per forward pass; a divisor of batch_size.")
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
    gradient_checkpointing: bool = Field(
        True, description="Recompute activations: less memory, about a third more time."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Training:
        mistakes: list[Mistake] = []
        if self.num_epochs is not None and self.num_steps is not None:
            mistakes.append((("num_steps",), "num_epochs and num_steps are both given; give one"))
        if self.batch_size % self.micro_batch_size:
            problem = f"{self.micro_batch_size} does not divide batch_size {self.batch_size}; give a divisor of it"
            mistakes.append((("micro_batch_size",), problem))
        if self.min_learning_rate > self.learning_rate:
            problem = f"{self.min_learning_rate:g} is above learning_rate {self.learning_rate:g}; give at most that"
            mistakes.append((("min_learning_rate",), problem))
        _refuse(mistakes)
        return self


PromptFormat = Literal["chat-fence", "chat", "completion"]
Split = Literal["select", "confirm", "final"]


class Suite(Decoding):
    """A set of problems with one fixed way of asking and decoding; the pair is the yardstick and never moves."""

    name: Name = Field(description="What reports call it; unique.")
    source: str = Field(description='"first-steps" or "humaneval" (shipped), or a file in one of the known formats.')
    limit: PositiveInt | None = Field(None, description="Use only so many problems, chosen by the hash of their id.")
    num_samples: PositiveInt = Field(1, description="Completions per problem.")
    pass_at: tuple[PositiveInt, ...] = Field(
        (1,), min_length=1, description="The k of each pass@k; at most num_samples."
    )
    greedy: bool = Field(False, description="Always take the most likely token; excludes the sampling keys.")
    prompt_format: PromptFormat = Field(
        "chat-fence",
        description='"chat-fence" asks through the chat and opens a code fence, "chat" only asks, '
        '"completion" lets the model continue the bare prompt.',
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

    @model_validator(mode="after")
    def _consistent(self) -> Suite:
        mistakes: list[Mistake] = []
        if max(self.pass_at) > self.num_samples:
            problem = (
                f"pass@{max(self.pass_at)} needs as many samples but num_samples is {self.num_samples}; "
                f"raise num_samples to at least {max(self.pass_at)}, or ask for a smaller k"
            )
            mistakes.append((("pass_at",), problem))
        if self.greedy and self.num_samples > 1:
            problem = f"{self.num_samples} greedy completions of a problem are all the same; set num_samples = 1"
            mistakes.append((("num_samples",), problem))
        if self.greedy and (self.temperature != 1.0 or self.truncates):
            mistakes.append((("greedy",), "excludes temperature, top_k and top_p; remove them or greedy"))
        _refuse(mistakes)
        return self


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
    unclear: Literal["rollback", "keep_if_not_inferior", "pause"] = Field(
        "rollback", description="What follows when all is measured and neither a gain nor its absence is shown."
    )
    margin: float = Field(0.01, gt=0.0, lt=1.0, description="For keep_if_not_inferior: how much worse is not inferior.")
    gates: tuple[dict[str, Any], ...] = Field(
        ({"type": "improvement"}, {"type": "collapse"}),
        description="What must hold to keep a candidate; each has a type and its own keys.",
    )

    @model_validator(mode="after")
    def _two_parts(self) -> Decide:
        if self.confirm == self.split:
            _refuse([(("confirm",), f"{self.confirm!r} is decide.split, too; what confirms must be another part")])
        return self

    def policy(self) -> Policy:
        """The policy that this asks for. BadPolicy for the first mistake."""
        return build_policy(self.gates, self.split, self.confirm, self.unclear, self.margin)


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

    @model_validator(mode="after")
    def _sensible(self) -> Diagnosis:
        mistakes: list[Mistake] = []
        if self.fork_above_nats < self.lock_below_nats:
            problem = f"is below lock_below_nats ({self.lock_below_nats:g}), so a position could be both; raise it"
            mistakes.append((("fork_above_nats",), problem))
        numbers = self.num_prompts * self.max_new_tokens * self.top
        if numbers > MAX_PROBE_NUMBERS:
            problem = (
                f"num_prompts * max_new_tokens * top is {numbers}, and all of it is held in memory; "
                f"stay at or below {MAX_PROBE_NUMBERS}"
            )
            mistakes.append((("num_prompts",), problem))
        _refuse(mistakes)
        return self


class Grading(Section):
    """How solutions are run. They never run in the loop's own process."""

    sandbox: Literal["bubblewrap", "none"] = Field(
        "bubblewrap", description='"none" runs model-written code with your rights: only on a machine you can lose.'
    )
    timeout_s: PositiveFloat = Field(10.0, description="Wall time for one solution with all its tests.")
    timeout_factor: PositiveFloat = Field(
        20.0, description="Time limit as a multiple of the reference solution's time, where that exceeds timeout_s."
    )
    memory_bytes: PositiveInt = Field(1 << 30, description="Address space of a solution.")
    num_workers: PositiveInt | None = Field(None, description="Solutions graded at a time; default: one per core.")


class Engine(Section):
    """What runs the model. Results do not depend on it beyond floating-point noise; time and memory do."""

    sampler: str = Field(
        AUTO,
        description="What generates completions: "
        + ", ".join(f'"{name}"' for name in SAMPLERS)
        + ', or what an installed package offers; "auto" takes vLLM where it is installed and starts, "server" asks one '
        "elsewhere.",
        json_schema_extra={"anyOf": [{"enum": list(SAMPLERS)}, {"type": "string"}]},
    )
    server_url: str | None = Field(
        None, description='For "server": where `vllm serve` answers, "http://HOST:PORT/v1"; a key is in OPENAI_API_KEY.'
    )
    server_command: tuple[str, ...] = Field(
        (),
        description='For "server": a command that makes it serve the checkpoint {path}, as ["./reload.sh", "{path}"].',
    )
    trainer: Literal["trl", "fake"] = Field("trl", description="What fine-tunes.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description='"auto" takes a GPU where there is one.')
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Weights while sampling; auto: bfloat16 on a GPU and on a CPU that computes in it, else float32.",
    )
    batch_size: PositiveInt = Field(32, description="Completions generated together.")
    kv_cache_bytes: PositiveInt | None = Field(
        None, description="vLLM's KV cache; default: 2 GiB on a CPU, what is free up to 90% on a GPU."
    )
    gpus_per_engine: PositiveInt = Field(1, description="GPUs that vLLM splits the model over (tensor parallelism).")
    num_engines: PositiveInt | None = Field(
        None, description="Engines that share the sampling; default: as many as fit on the visible GPUs, at least 1."
    )
    num_threads: PositiveInt | None = Field(None, description="CPU threads of the model; default: one per core.")
    num_training_processes: PositiveInt = Field(
        1,
        description="Processes that fine-tune together: one per GPU to be used; training.batch_size stays what it is.",
    )
    max_attempts: PositiveInt = Field(3, description="Attempts per stage; when all have failed, the round fails.")
    retry_wait_s: float = Field(5.0, ge=0.0, description="Wait before the second attempt; doubles after each.")
    stall_timeout_s: PositiveFloat = Field(
        600.0,
        description="A worker that does nothing for this long is ended and its stage tried again, with twice the limit; one that "
        "computes without any report gets four times as long.",
    )

    @field_validator("sampler")
    @classmethod
    def _sampler(cls, name: str) -> str:
        sampler_kind(name)
        return name

    @field_validator("server_url")
    @classmethod
    def _server_url(cls, url: str | None) -> str | None:
        if url is not None and not (
            _is_web(url) and url.isprintable() and not set(url) & set(" ?#") and "@" not in urlsplit(url).netloc
        ):
            # Not what was given: it may hold a password.
            raise ValueError(
                'is not the address of a server; give one such as "http://gpu-host:8000/v1", a key in OPENAI_API_KEY'
            )
        return url

    @field_validator("server_command")
    @classmethod
    def _server_command(cls, command: tuple[str, ...]) -> tuple[str, ...]:
        return _a_command(command, '["./reload.sh", "{path}"]')

    @model_validator(mode="after")
    def _server(self) -> Engine:
        mistakes: list[Mistake] = []
        if self.sampler == "server":
            if self.server_url is None:
                problem = '"server" needs server_url, where it answers; give it, as in "http://gpu-host:8000/v1"'
                mistakes.append((("sampler",), problem))
            if self.num_engines is not None:
                problem = "has no meaning for a server, which has its own; remove it"
                mistakes.append((("num_engines",), problem))
        else:
            for key in ("server_url", "server_command"):
                if getattr(self, key):
                    mistakes.append(
                        ((key,), f'has no meaning for sampler {self.sampler!r}; remove it, or set "server"')
                    )
        _refuse(mistakes)
        return self


class Schedule(Section):
    """When rounds run. It may be changed between two starts of the daemon; `loopctl run` does not look at it."""

    every: str | None = Field(
        None,
        description='"continuous" (as without it), or the time between the starts of two rounds: "6h", "90m", "1d".',
    )
    cron: str | None = Field(None, description="Five fields; a round is due at these times. Excludes every.")
    timezone: str = Field("UTC", description='Of cron, windows and until: "Europe/Berlin".')
    windows: tuple[str, ...] | None = Field(
        None, description='Rounds run only inside: "22:00-07:00", "Mon-Fri 20:00-06:00 Europe/Berlin", "weekends".'
    )
    until: str | None = Field(None, description="After this time nothing begins or goes on.")
    stop: tuple[Stop, ...] = Field((), description='What ends the run: { type = "plateau", rounds = 5 } and so on.')

    @model_validator(mode="after")
    def _understood(self) -> Schedule:
        zone: tzinfo = UTC
        mistakes: list[Mistake] = []
        try:
            zone = parse_zone(self.timezone)
        except ValueError as error:
            mistakes.append((("timezone",), str(error)))
        if self.every is not None and self.cron is not None:
            mistakes.append((("every",), "every and cron are both given; give one"))
        named: list[tuple[KeyPath, str | None, Callable[[str], object]]] = [
            (("every",), self.every, parse_interval),
            (("cron",), self.cron, cron_fields),
            (("until",), self.until, lambda text: parse_until(text, zone)),
        ]
        if self.windows == ():
            problem = "is empty, so no round would ever begin; leave the key out to run at any time"
            mistakes.append((("windows",), problem))
        for index, window in enumerate(self.windows or ()):
            named.append((("windows", index), window, lambda text: parse_window(text, zone)))
        for key, text, parse in named:
            try:
                if text is not None:
                    parse(text)
            except ValueError as error:
                mistakes.append((key, str(error)))
        _refuse(mistakes)
        return self


class Watching(Section):
    """Who else is told what happens. Nothing here can hold up a round."""

    on: tuple[Literal["decision", "pause", "failure"], ...] = Field(
        ("decision", "pause", "failure"), description="What the command and the webhook are told."
    )
    command: tuple[str, ...] = Field((), description="A command and its arguments; it gets a JSON object on stdin.")
    # It may hold a secret: it is neither stored with the run nor printed.
    webhook: str | None = Field(None, exclude=True, repr=False, description="A URL that gets the same by POST.")
    timeout_s: PositiveFloat = Field(30.0, description="A command or a request that takes longer is given up.")
    prometheus_port: int | None = Field(None, ge=1, le=65535, description="Metrics on 127.0.0.1, if given.")
    trackers: tuple[Literal["trackio", "wandb", "mlflow"], ...] = Field(
        (),
        description="Experiment trackers that get each round's figures; on this machine only, unless told otherwise.",
    )
    project: Name | None = Field(None, description="What trackers call it; default: the run's name.")

    @field_validator("command")
    @classmethod
    def _command(cls, command: tuple[str, ...]) -> tuple[str, ...]:
        return _a_command(command, '["notify-send", "loop"]')

    @field_validator("webhook")
    @classmethod
    def _webhook(cls, webhook: str | None) -> str | None:
        if webhook is not None and (not _is_web(webhook) or any(one <= " " or one == "\x7f" for one in webhook)):
            raise ValueError('is no web address; give one such as "https://example.org/hook"')  # not what was given
        return webhook


class Storage(Section):
    """Which checkpoints stay on disk, and how much of it the loop leaves alone."""

    keep_last: int = Field(
        2, ge=0, description="Newest checkpoints that stay beside the base, the head, the best and pinned ones."
    )
    max_total_bytes: PositiveInt | None = Field(
        None, description="All checkpoints together: the oldest of the newest go first; the others always stay."
    )
    min_free_bytes: int = Field(
        1_000_000_000, ge=0, description="With less free disk than this and the next stage's need, the run waits."
    )


class Daemon(Section):
    """How the background service behaves."""

    stop_grace_s: PositiveFloat = Field(
        600.0, description="After SIGTERM: a stage that reaches no safe point in this time is interrupted."
    )


class Config(Section):
    """The whole of loop.toml."""

    name: Name = Field(description="The run's name in every report.")
    run_dir: Path = Field(Path(".loop"), strict=False, description="Where everything of the run is kept.")
    seed: int = Field(1, ge=0, lt=2**63, description="Every random draw of the run derives from it.")
    rounds: int = Field(2, ge=0, description="How many rounds the run has in all; 0: without end.")
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
    engine: Engine = Field(default_factory=Engine)
    schedule: Schedule = Field(default_factory=Schedule)
    storage: Storage = Field(default_factory=Storage)
    watching: Watching = Field(default_factory=Watching)
    daemon: Daemon = Field(default_factory=Daemon)

    @model_validator(mode="after")
    def _names(self) -> Config:
        _refuse(naming_mistakes([suite.model_dump() for suite in self.suites], self.decide.model_dump()))
        return self

    @model_validator(mode="after")
    def _changes(self) -> Config:
        changes, training = self.after_rollback, self.training
        mistakes: list[Mistake] = []
        for index, temperature in enumerate(changes.temperatures):
            fixed = temperature == 1.0 and not self.sampling.truncates and self.sampling.repetition_penalty == 1.0
            if fixed and not self.sampling.control:
                problem = "1 without top_k, top_p or repetition_penalty in [sampling] is a fixed point; give another"
                mistakes.append((("after_rollback", "temperatures", index), problem))
        floor = changes.learning_rate_floor
        if floor is not None and floor > training.learning_rate:
            problem = f"{floor:g} is above training.learning_rate {training.learning_rate:g}; give at most that"
            mistakes.append((("after_rollback", "learning_rate_floor"), problem))
        if changes.length_factor < 1.0 and training.num_steps is None and training.num_epochs in (None, 1):
            problem = "a single epoch cannot be made shorter; give training.num_steps, or leave this out"
            mistakes.append((("after_rollback", "length_factor"), problem))
        _refuse(mistakes)
        return self

    @model_validator(mode="after")
    def _whole_weights(self) -> Config:
        if self.engine.sampler == "server" and self.training.method == "lora" and not self.training.lora.merge:
            problem = 'a server (engine.sampler = "server") takes whole weights only; set merge = true'
            _refuse([(("training", "lora", "merge"), problem)])
        return self

    @model_validator(mode="after")
    def _training_processes(self) -> Config:
        num, training = self.engine.num_training_processes, self.training
        mistakes: list[Mistake] = []
        if num > 1 and training.batch_size % (training.micro_batch_size * num):
            problem = (
                f"{num} times training.micro_batch_size {training.micro_batch_size} does not divide "
                f"training.batch_size {training.batch_size}; lower one of them"
            )
            mistakes.append((("engine", "num_training_processes"), problem))
        if num > 1 and training.method == "lora":
            problem = 'LoRA is trained by one process; set 1, or training.method = "full"'
            mistakes.append((("engine", "num_training_processes"), problem))
        _refuse(mistakes)
        return self

    @property
    def wants_tests(self) -> bool:
        """Whether any data policy of the run looks at the tests of prompts."""
        return any(data is not None and data.passed_tests for data in (self.collect.data, self.after_rollback.data))

    def suite(self, name: str) -> Suite:
        """The suite of that name; KeyError if there is none."""
        for suite in self.suites:
            if suite.name == name:
                return suite
        raise KeyError(name)


def naming_mistakes(suites: Sequence[Mapping[str, Any]], decide: Mapping[str, Any]) -> list[Mistake]:
    """Suites that share a name, and a decision on what is not there. Tables may be incomplete: gaps are passed over."""
    mistakes: list[Mistake] = []
    named: dict[str, Mapping[str, Any]] = {}
    for index, suite in enumerate(suites):
        name = suite.get("name")
        if isinstance(name, str):
            if name in named:
                mistakes.append((("suites", index, "name"), f"two suites are called {name!r}; give each its own name"))
            named.setdefault(name, suite)
    chosen, split = decide.get("suite"), decide.get("split", "select")
    if not isinstance(chosen, str) or not named:
        return mistakes
    if chosen not in named:
        problem = f"{chosen!r} is not among the suites; name one of {', '.join(named)}"
        return [*mistakes, (("decide", "suite"), problem)]
    splits = named[chosen].get("splits", {"select": 1.0})
    if isinstance(splits, Mapping) and isinstance(split, str) and not splits.get(split):
        shares = ", ".join(str(name) for name, share in splits.items() if share) or "none"
        problem = f"{split!r} has no share of the problems of suite {chosen!r}; its splits are {shares}"
        mistakes.append((("decide", "split"), problem))
    confirm = decide.get("confirm")
    if isinstance(splits, Mapping) and isinstance(confirm, str) and not splits.get(confirm):
        example = "{ select = 0.2, confirm = 0.8 }"
        problem = f"{confirm!r} has no share of the problems of suite {chosen!r}; set its splits, as in {example}"
        mistakes.append((("decide", "confirm"), problem))
    return mistakes
