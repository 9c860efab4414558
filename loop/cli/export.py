"""`loopctl export` writes a checkpoint as a Hugging Face model directory with a card from the ledger, and may push it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from loop.cli.options import checkpoint_names, command, print_answer, the_call
from loop.errors import LoopError, UsageError
from loop.words import count, round_name, safe, size, warn
from store.records import Json

if TYPE_CHECKING:
    from loop.publishing.exporting import Exported, Source
    from loop.reading.reader import Reader
    from store.records import Checkpoint


@command("export", "loopctl export head exported/my-model", "loopctl export base exported/base")
@click.argument("which", metavar="ROUND|head|tip|base", callback=checkpoint_names)
@click.argument("directory", metavar="DIR")
@click.option("--merge", is_flag=True, help="Write an adapter as whole weights, merged into its base.")
@click.option(
    "--push", "repo", metavar="OWNER/NAME", help="Also push it to a repository on the hub ($HF_ENDPOINT, $HF_TOKEN)."
)
@click.option(
    "--private", is_flag=True, help="With --push: refuse a repository that is public; a new one is made private."
)
def export_command(which: str, directory: str, merge: bool, repo: str | None, private: bool) -> None:
    """Write a checkpoint as a Hugging Face model directory: weights, tokenizer, decoding settings, a model card with figures.

    DIR must be new or empty. With --push the same command may be repeated: what exists already stays as it is,
    as in `loopctl export head exported/my-model --push me/my-model --private`.
    """
    from loop.publishing import exporting
    from loop.publishing.card import card

    if private and repo is None:
        raise UsageError("--private: needs --push; give --push OWNER/NAME, too")
    if repo is not None:
        from loop.publishing.hub import check_push

        check_push(repo)
    target = exporting.checked_target(directory, again=repo is not None)
    place = the_call().place()
    source, facts = _read(place.run_dir, place.path.parent, which)
    merge = merge and source.base is not None  # else the weights are whole already
    try:
        done = exporting.export(
            source,
            target,
            card=card(facts, merged=merge),
            decoding=facts["decoding"],
            merge=merge,
            logs=place.run_dir / "logs",
            again=repo is not None,
        )
    except KeyboardInterrupt:
        warn("interrupted; nothing was written")
        raise click.exceptions.Exit(130) from None
    pushed = _push(done, repo, private, facts) if repo is not None else None
    answer = {
        "path": str(done.path),
        "round": facts["round"],
        "checkpoint": source.row.sha256,
        "kind": "full" if source.base is None or merge else "adapter",
        "files": done.files,
        "size_bytes": done.size_bytes,
        "sha256": done.sha256,
        "pushed": pushed,
    }
    verb = "already exported" if done.was_there else "exported"
    print_answer(answer, lambda _: _print(f"{source.words}: {verb}", answer))


def _read(run_dir: Path, base_dir: Path, which: str) -> tuple[Source, Json]:
    """Read the checkpoint and the facts of its card, and close the store."""
    from loop.publishing.card_facts import facts_of
    from loop.reading.checkpoints import checkpoint_named
    from loop.reading.reader import reader

    with reader(run_dir) as store:
        row = checkpoint_named(store.ledger, store.run, which)
        number = (
            int(which)
            if which.isdigit()
            else {"head": store.run.head_round, "tip": store.run.tip_round, "base": 0}[which]
        )
        facts = facts_of(store, row, number, base_dir)
        return _source(store, row, facts), facts


def _source(store: Reader, row: Checkpoint, facts: Json) -> Source:
    from loop.publishing.exporting import Source, licences_in

    checkpoints, model = store.ledger.checkpoints, facts["base"]
    first = checkpoints.get(store.run.base_checkpoint)
    assert first is not None
    over = checkpoints.get(row.base) if row.base else None
    origin = {"origin": model["on_hub"] if model["fetched"] else model["source"], "revision": model["revision"]}
    base = Source(over, store.run_dir / over.path, "the base", **origin) if over else None
    return Source(
        row,
        store.run_dir / row.path,
        round_name(facts["round"]),
        licences=licences_in(store.run_dir / first.path, first.manifest),
        base=base,
        **origin,
    )


def _push(done: Exported, repo: str, private: bool, facts: Json) -> Json:
    from loop.publishing.hub import push

    message = f"{facts['run']}, {round_name(facts['round'])} ({facts['checkpoint'][:12]})"
    try:
        return push(done.path, repo, private=private, message=message)
    except KeyboardInterrupt:
        warn(f"interrupted while pushing; {safe(done.path)} is whole, the same command tries again")
        raise click.exceptions.Exit(130) from None
    except LoopError:
        warn(f"{safe(done.path)}: exported, but not pushed")
        raise


def _print(begin: str, answer: Json) -> None:
    files = f"{count(len(answer['files']), 'file')}, {size(answer['size_bytes'])}"
    click.echo(f"{safe(begin)}: {safe(answer['path'])} ({files})")
    if pushed := answer["pushed"]:
        private = " (private)" if pushed["private"] else ""
        click.echo(f"pushed to {safe(pushed['url'])}{private}, commit {safe(pushed['commit'])[:12]}")
