"""`loopctl init` writes a loop.toml that runs as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from loop.cli.options import command, print_answer
from loop.cli.suite import PYTHON, made, words_of
from loop.errors import LoopError
from loop.words import safe

SCHEMA = "loop.schema.json"


@command("init", "loopctl init my-run", "loopctl init --from-repo shop shop-run")
@click.argument("directory", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
@click.option(
    "--from-repo",
    "repository",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Ask for the functions of this repository, and let its tests judge.",
)
@PYTHON
def init_command(directory: Path, repository: Path | None, python: Path | None) -> None:
    """Write a commented loop.toml into DIR (default: here). An existing one is never overwritten.

    Beside it stands loop.schema.json, which editors read (Taplo, VS Code's Even Better TOML): they complete keys and mark mistakes.

    With --from-repo, DIR/suite gets the problems and prompts of a repository as `loopctl suite from-repo` makes them, and loop.toml
    uses them, with HumanEval as a canary. What gain so many problems can show is said at once.
    """
    import importlib.resources

    from loop.config.schema import schema

    path = directory / "loop.toml"
    _refuse_existing(path, directory)
    text = (importlib.resources.files("loop.cli") / "loop.toml").read_text("utf-8")
    words: list[str] = []
    facts: dict[str, Any] = {}
    if repository is not None:
        from loop.mining.toml import can_see, toml_for

        options = {"python": python, "train": 0.3, "min_lines": 2, "max_lines": 60, "test_timeout": 60.0, "weak": False}
        facts = made(repository, directory / "suite", options)
        text = toml_for(text, facts)
        words = [*words_of(facts), f"  power      {can_see(facts)}"]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(f"#:schema ./{SCHEMA}\n\n{text}")
        (directory / SCHEMA).write_text(json.dumps(schema(), indent=1) + "\n", "utf-8")
    except FileExistsError:
        _refuse_existing(path, directory)
        raise
    except NotADirectoryError:
        raise LoopError(f"{directory}: a part of it is a file; name a directory") from None
    change_directory = "" if directory == Path(".") else f"cd {safe(directory)} && "
    words += [f"wrote {safe(path)}", f"next: {change_directory}loopctl run"]
    print_answer(
        {"path": str(path.absolute()), **({"suite": facts} if facts else {})}, lambda _: click.echo("\n".join(words))
    )


def _refuse_existing(path: Path, directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise LoopError(f"{directory}: is a file; name a directory") from None
    if path.exists():
        raise LoopError(f"{path}: already exists; edit it, or choose another directory") from None
