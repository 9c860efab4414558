"""The tables of loop.toml that say what computes, when, where it is kept and who is told: all but the method itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, tzinfo
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, SerializeAsAny, field_validator

from loop.config.cron import cron_fields
from loop.config.samplers import AUTO, SAMPLERS, sampler_kind
from loop.config.section import Cost, ForSampling, ForTraining, Mistake, Name, Private, Section
from loop.config.times import parse_interval, parse_until, parse_window, parse_zone
from loop.config.toml_lines import KeyPath
from policies.by_type import by_type
from policies.stopping import STOP_RULES, StopRule


def _is_web(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _command(example: str) -> AfterValidator:
    def checked(command: tuple[str, ...]) -> tuple[str, ...]:
        if (command and not command[0].strip()) or any("\0" in word for word in command):
            raise ValueError(f"is no command; give it and its arguments, as in {example}")
        return command

    return AfterValidator(checked)


def _server_url(url: str) -> str:
    if not _is_web(url) or not url.isprintable() or set(url) & set(" ?#") or "@" in urlsplit(url).netloc:
        # Not what was given: it may hold a password.
        raise ValueError(
            'is not the address of a server; give one such as "http://gpu-host:8000/v1", a key in OPENAI_API_KEY'
        )
    return url


ServerUrl = Annotated[str, AfterValidator(_server_url)]


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
    num_workers: Cost[PositiveInt | None] = Field(
        None, description="Solutions graded at a time; default: one per core."
    )


class Engine(Section):
    """What runs the model. Results do not depend on it beyond floating-point noise; time and memory do."""

    sampler: ForSampling[str] = Field(
        AUTO,
        description="What generates completions: "
        + ", ".join(f'"{name}"' for name in SAMPLERS)
        + ', or what an installed package offers; "auto" takes vLLM where it is installed (and starts, if there is no '
        'GPU), "server" asks one elsewhere.',
        json_schema_extra={"anyOf": [{"enum": list(SAMPLERS)}, {"type": "string"}]},
    )
    server_url: ForSampling[Private[ServerUrl | None]] = Field(
        None, description='For "server": where `vllm serve` answers, "http://HOST:PORT/v1"; a key is in OPENAI_API_KEY.'
    )
    server_urls: ForSampling[Private[tuple[ServerUrl, ...]]] = Field(
        (), description="In its place: several servers, which share the sampling."
    )
    server_command: Cost[Private[Annotated[tuple[str, ...], _command('["./reload.sh", "{path}"]')]]] = Field(
        (),
        description='For "server": a command that makes it serve the checkpoint {path}, as ["./reload.sh", "{path}"]; '
        "{url} is which server.",
    )
    trainer: ForTraining[Literal["trl", "fake"]] = Field("trl", description="What fine-tunes.")
    device: ForSampling[ForTraining[Literal["auto", "cpu", "cuda"]]] = Field(
        "auto", description='"auto" takes a GPU where there is one.'
    )
    dtype: ForSampling[Literal["auto", "float32", "bfloat16"]] = Field(
        "auto",
        description="Weights while sampling; auto: bfloat16 on a GPU and on a CPU that computes in it, else float32.",
    )
    batch_size: ForSampling[PositiveInt | None] = Field(
        None, description="Completions generated together; default: what vLLM chooses on a GPU, 32 elsewhere."
    )
    kv_cache_bytes: Cost[PositiveInt | None] = Field(
        None, description="vLLM's KV cache; default: 2 GiB on a CPU, what is free up to 90% on a GPU."
    )
    gpus_per_engine: ForSampling[PositiveInt | None] = Field(
        None,
        description="GPUs that vLLM splits the model over (tensor parallelism); default: as few as leave room beside its weights.",
    )
    num_engines: ForSampling[PositiveInt | None] = Field(
        None, description="Engines that share the sampling; default: as many as fit on the visible GPUs, at least 1."
    )
    num_threads: ForSampling[ForTraining[PositiveInt | None]] = Field(
        None, description="CPU threads of the model; default: one per core."
    )
    num_training_processes: ForTraining[PositiveInt | None] = Field(
        None,
        description="Processes that fine-tune together, one per GPU; default: one for each visible GPU, at most batch_size; 1 "
        "on a CPU. training.batch_size stays what it is.",
    )
    max_attempts: Cost[PositiveInt] = Field(3, description="Attempts per stage; when all have failed, the round fails.")
    retry_wait_s: Cost[float] = Field(5.0, ge=0.0, description="Wait before the second attempt; doubles after each.")
    stall_timeout_s: Cost[PositiveFloat] = Field(
        600.0,
        description="A worker that does nothing for this long is ended and its stage tried again, with twice the limit; one that "
        "computes without any report gets four times as long.",
    )

    @field_validator("sampler")
    @classmethod
    def _sampler(cls, name: str) -> str:
        sampler_kind(name)
        return name

    @property
    def servers(self) -> tuple[str, ...]:
        """Where the servers answer, one or several; none for another sampler."""
        return (self.server_url,) if self.server_url else self.server_urls

    def mistakes(self) -> Iterator[Mistake]:
        if self.sampler == "server":
            if not self.servers:
                problem = '"server" needs server_url, where it answers; give it, as in "http://gpu-host:8000/v1"'
                yield ("sampler",), problem
            if self.server_url and self.server_urls:
                yield ("server_urls",), "server_url and server_urls are both given; give one"
            if len({url.rstrip("/") for url in self.server_urls}) < len(self.server_urls):
                yield ("server_urls",), "has a server twice; give each once"
            if self.num_engines is not None:
                yield ("num_engines",), "has no meaning for a server, which has its own; remove it"
        else:
            for key in ("server_url", "server_urls", "server_command"):
                if getattr(self, key):
                    yield (key,), f'has no meaning for sampler {self.sampler!r}; remove it, or set "server"'


class Cluster(Section):
    """Other machines, through Ray: sampling engines run on its nodes, too. Without the table there is this machine only."""

    address: Private[str] = Field(
        "auto",
        description='"auto": the cluster that this machine belongs to; or "HOST:6379". This machine must be a node of it.',
    )
    shared: bool = Field(
        False,
        description="true: run_dir is the same path on every node; otherwise checkpoints are brought there and proved.",
    )
    dir: Private[str] = Field(
        "~/.cache/ssd-loop/checkpoints", description="Where nodes keep the checkpoints that they are brought."
    )
    training_nodes: ForTraining[PositiveInt | None] = Field(
        None,
        description="Nodes that fine-tune together, with all their GPUs (engine.num_training_processes on each); default: this "
        "machine alone fine-tunes.",
    )
    grading: bool = Field(
        False,
        description="true: nodes with cores on which the sandbox works grade, too; otherwise this machine alone does.",
    )
    insecure: bool = Field(
        False,
        description="true: go on although whoever reaches the cluster can run programs on it, since it asks for no token.",
    )


class ScheduleTable(Section):
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
    until: str | None = Field(None, description="After this time nothing begins or continues.")
    stop: tuple[Annotated[SerializeAsAny[StopRule], by_type(STOP_RULES)], ...] = Field(
        (), description='What ends the run: { type = "plateau", rounds = 5 } and so on.'
    )

    def mistakes(self) -> Iterator[Mistake]:
        zone: tzinfo = UTC
        try:
            zone = parse_zone(self.timezone)
        except ValueError as error:
            yield ("timezone",), str(error)
        if self.every is not None and self.cron is not None:
            yield ("every",), "every and cron are both given; give one"
        if self.windows == ():
            yield ("windows",), "is empty, so no round would ever begin; leave the key out to run at any time"
        texts: list[tuple[KeyPath, str | None, Callable[[str], object]]] = [
            (("every",), self.every, parse_interval),
            (("cron",), self.cron, cron_fields),
            (("until",), self.until, lambda text: parse_until(text, zone)),
        ]
        windows = enumerate(self.windows or ())
        texts += [(("windows", index), window, lambda text: parse_window(text, zone)) for index, window in windows]
        for key, text, parse in texts:
            try:
                if text is not None:
                    parse(text)
            except ValueError as error:
                yield key, str(error)


class Watching(Section):
    """Who else is told what happens. Nothing here can hold up a round."""

    on: tuple[Literal["decision", "pause", "failure"], ...] = Field(
        ("decision", "pause", "failure"), description="What the command and the webhook are told."
    )
    command: Annotated[tuple[str, ...], _command('["notify-send", "loop"]')] = Field(
        (), description="A command and its arguments; it gets a JSON object on stdin."
    )
    # It may hold a secret: it is neither stored with the run nor printed.
    webhook: str | None = Field(None, exclude=True, repr=False, description="A URL that gets the same by POST.")
    timeout_s: PositiveFloat = Field(30.0, description="A command or a request that takes longer is given up.")
    prometheus_port: int | None = Field(None, ge=1, le=65535, description="Metrics on 127.0.0.1, if given.")
    trackers: tuple[Literal["trackio", "wandb", "mlflow"], ...] = Field(
        (),
        description="Experiment trackers that get each round's figures; on this machine only, unless told otherwise.",
    )
    project: Name | None = Field(None, description="What trackers call it; default: the run's name.")

    @field_validator("webhook")
    @classmethod
    def _webhook(cls, webhook: str | None) -> str | None:
        if webhook is not None and (
            not _is_web(webhook) or any(letter <= " " or letter == "\x7f" for letter in webhook)
        ):
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
