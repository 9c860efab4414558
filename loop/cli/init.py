"""`loopctl init` writes a loop.toml that runs as it is."""

from __future__ import annotations

from pathlib import Path

import click

from loop.cli.options import command, print_answer
from loop.errors import LoopError
from loop.words import safe


@command("init", "loopctl init my-run")
@click.argument("directory", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
def init_command(directory: Path) -> None:
    """Write a commented loop.toml into DIR (default: here). An existing one is never overwritten."""
    import importlib.resources

    content = (importlib.resources.files("loop.cli") / "loop.toml").read_bytes()
    path = directory / "loop.toml"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        if not directory.is_dir():
            raise LoopError(f"{directory}: is a file; name a directory") from None
        raise LoopError(f"{path}: already exists; edit it, or choose another directory") from None
    except NotADirectoryError:
        raise LoopError(f"{directory}: a part of it is a file; name a directory") from None
    change_directory = "" if directory == Path(".") else f"cd {safe(directory)} && "
    words = f"wrote {safe(path)}\nnext: {change_directory}loopctl run"
    print_answer({"path": str(path.absolute())}, lambda _: click.echo(words))
