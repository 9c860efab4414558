"""What `loopctl eval` and `loopctl compare` have in common: how models are asked, and where their answers are kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loop.cli.options import the_call
from loop.errors import UsageError
from loop.words import warn
from store.records import Json

if TYPE_CHECKING:
    from loop.judging.sampled import Asked
    from loop.workers.up import Watch

MACHINE = ("engine", "grading", "cluster")
DIRECTORY = ".loop-judged"
OPTIONS = [
    click.option("--samples", "num_samples", type=click.IntRange(1), help="Completions of each problem; default: 1 for eval, 8 for compare."),
    click.option("--temperature", type=click.FloatRange(0.0, 10.0), help="0: greedy. Default: what the suite publishes, else 0.7."),
    click.option("--top-p", type=click.FloatRange(0.0, 1.0, min_open=True), help="Default: what the suite publishes, else 0.95."),
    click.option("--top-k", type=click.IntRange(0), help="Default: all tokens."),
    click.option("--max-new-tokens", type=click.IntRange(1), help="Default: what the suite publishes, else 1024."),
    click.option("--prompt-format", type=click.Choice(["chat-fence", "chat", "completion", "published"]), help="Default: the suite's, else chat."),
    click.option("--no-chat-template", is_flag=True, help="Ask with the bare text: for models that were not trained to chat."),
    click.option("--limit", type=click.IntRange(1), help="Only so many problems, chosen by the hash of their ids."),
    click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of all random draws; the same for every model."),
    click.option("--dir", "directory", metavar="DIR", default=DIRECTORY, show_default=True, help="Where answers and verdicts are kept; the same command continues there."),
]  # fmt: skip


def asking(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of how models are asked."""
    for option in reversed(OPTIONS):
        function = option(function)
    return function


def asked_of(suite: str, default_samples: int, options: Json) -> Asked:
    """How to ask by these options; what they leave out is as the suite publishes it. Uses the machine's tables of a loop.toml."""
    from loop.grading.suite import load_suite
    from loop.judging.sampled import Asked

    published = load_suite(suite, options["limit"]).decoding  # a mistake in it must not wait for a model
    name, mark, path = suite.rpartition("=")
    if Path(path).exists():
        path = str(Path(path).absolute())
    name, suite = suite, f"{name}{mark}{path}"
    table: Json = {"temperature": 0.7, "top_p": 0.95, "max_new_tokens": 1024, "prompt_format": "chat"}
    if published:  # the name says whose prompt and decoding count
        table |= {"prompt_format": "published"} | published
    table |= {"source": suite, "num_samples": options["num_samples"] or table.get("num_samples", default_samples)}
    for key in ("temperature", "top_p", "top_k", "max_new_tokens", "prompt_format", "limit"):
        if options[key] is not None:
            table[key] = options[key]
            table.pop("greedy", None) if key == "temperature" else None
    if table.pop("greedy", False) or not table.get("temperature"):
        if options["num_samples"] not in (None, 1):
            raise UsageError(
                f"--samples {options['num_samples']}: greedy completions of a problem are all the same; leave it out, or give --temperature"
            )
        table = {key: value for key, value in table.items() if key not in ("temperature", "top_p", "top_k")}
        table |= {"greedy": True, "num_samples": 1}
    num = table["num_samples"]
    table["pass_at"] = [k for k in (1, 5, 10, 64, 100) if k <= num]
    model = {"chat_template": False} if options["no_chat_template"] else {}
    return Asked(name, table, model, _machine(), options["seed"])


def _machine() -> Json:
    if not the_call().has_config:
        return {}
    config = the_call().load().config.model_dump(mode="json", exclude_unset=True, include=set(MACHINE))
    return {name: config[name] for name in MACHINE if config.get(name)}


@contextlib.contextmanager
def watched(directory: Path) -> Iterator[Watch]:
    """Show progress, and end at once after a signal: the same command continues."""
    from loop.cli.progress import onlookers
    from loop.system.signals import Interrupted, Stop

    directory.mkdir(parents=True, exist_ok=True)
    try:
        with Stop(at_once=True).listening(), onlookers(directory) as watch:
            yield watch
            watch.end_part()
    except Interrupted as signal:
        warn("interrupted; the same command continues where it was")
        raise click.exceptions.Exit(signal.exit_code) from None
