"""The models that a comparison names: a directory, a name on the hub, a round of a run; each with a server that has it, if so."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from loop.errors import ConfigError, UsageError
from loop.words import safe, shown

SPELLINGS = (
    'give "smollm2-135m", a Hugging Face model directory, owner/name or owner/name@COMMIT of the hub, or RUN#head, RUN#base, RUN#tip '
    "or RUN#N of a run, where RUN is its loop.toml; @http://HOST:PORT/v1 behind it names a server that has these weights"
)


class Model(NamedTuple):
    """A model as it was named, and as the `[model]` table of a loop.toml says it. `server`: the address of one that serves it."""

    name: str
    source: str
    revision: str | None = None
    server: str | None = None
    base: str | None = None  # the whole weights, where `source` is an adapter over them


def model_of(name: str, here: Path) -> Model:
    """The model that a command line names; `here`: where relative paths begin. UsageError, ConfigError, LoopError."""
    text, server = name, None
    for scheme in ("@http://", "@https://"):
        if scheme in text:
            text, _, rest = text.partition(scheme)
            server = scheme[1:] + rest
    if not text.strip() or "\0" in text:
        raise UsageError(f"{shown(name)} names no model; {SPELLINGS}")
    run, mark, which = text.rpartition("#")
    if mark:
        return _of_run(name, here / Path(run).expanduser(), which)._replace(server=server)
    path = here / Path(text).expanduser()
    if os.path.lexists(path):
        return Model(name, str(path.absolute()), server=server)
    hub, at, commit = text.partition("@")
    return Model(name, hub, commit if at else None, server)


def _of_run(name: str, run: Path, which: str) -> Model:
    """A checkpoint of a run by its loop.toml or the directory that has it."""
    from loop.config.place import _quick_place
    from loop.reading.checkpoints import checkpoint_named
    from loop.reading.reader import reader

    file = run / "loop.toml" if run.is_dir() else run
    if not file.exists():
        raise ConfigError(f"{safe(name)}: there is no {safe(file)}; name the run's loop.toml before the #")
    place = _quick_place(file)
    if place is None:
        raise ConfigError(f"{safe(file)}: does not say where its run is; `loopctl config check --config` says why")
    with reader(place.run_dir) as store:
        row = checkpoint_named(store.ledger, store.run, which)
        base = store.ledger.checkpoints.known(row.base) if row.base else None
    path = (place.run_dir / row.path).absolute()  # an absolute path stays as it is
    return Model(name, str(path), base=str((place.run_dir / base.path).absolute()) if base else None)
