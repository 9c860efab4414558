"""`loopctl serve` serves the report as a page that updates itself while rounds run."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import click

from loop.cli.options import command, print_answer, the_call
from loop.errors import UsageError

SHORTEST_TOKEN = 16


@command(
    "serve",
    "loopctl serve --port 0     # until Ctrl-C",
    "loopctl serve --port 0 --experiment temperatures.toml     # until Ctrl-C",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="The address to listen on; one that other machines reach needs a token.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8420, show_default=True, help="The port; 0 takes a free one."
)
@click.option(
    "--token",
    envvar="LOOP_SERVE_TOKEN",
    metavar="TOKEN",
    help="The secret that visitors need; made where one is needed and none is given.",
)
@click.option(
    "--experiment",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Show this experiment instead of the run.",
)
def serve_command(host: str, port: int, token: str | None, file: Path | None) -> None:
    """Serve the report as a page that updates itself while rounds run. Only reads; Ctrl-C ends it."""
    with contextlib.suppress(KeyboardInterrupt):  # also while it starts
        _serve(host, port, token, file)


def _serve(host: str, port: int, token: str | None, file: Path | None) -> None:
    from loop.report import page
    from loop.serve.live import Live
    from loop.serve.server import address, is_for_this_machine_only, listen, new_token, serve
    from loop.serve.sources import of_experiment, of_run

    if token is not None and len(token.strip()) < SHORTEST_TOKEN:
        raise UsageError(f"--token: is shorter than {SHORTEST_TOKEN} characters; leave it out, and one is made")
    if token is not None and not (token.isascii() and token.strip().isprintable()):  # headers carry no others
        raise UsageError("--token: has other characters than ASCII; leave it out, and one is made")
    if file is None:
        source = of_run(the_call().place())
    else:
        from loop.experiments.file import load_experiment

        source = of_experiment(load_experiment(file))
    listener = listen(host, port)
    if token is None and not is_for_this_machine_only(listener):
        token = new_token()
    token = token and token.strip()
    url = address(host, listener.getsockname()[1], token)
    print_answer({"url": url}, f"{url}   (Ctrl-C ends it)")
    sys.stdout.flush()
    forms = {"page": lambda facts: page.render(facts, live=True), "body": page.body}
    serve(Live(source, forms), listener, host, token, page.content_security_policy(live=True))
