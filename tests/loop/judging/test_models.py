"""How a model is named on a command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from loop.errors import ConfigError, UsageError
from loop.judging.models import Model, model_of
from tests.support.cli import Loopctl


def test_each_spelling(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    served = "http://gpu:8000/v1"
    directory = str(tmp_path / "model")
    for name, model in {
        "smollm2-135m": Model("", "smollm2-135m"),
        "model": Model("", directory),
        "./model": Model("", directory),
        directory: Model("", directory),
        "apple/SimpleSD-4B": Model("", "apple/SimpleSD-4B"),
        "apple/SimpleSD-4B@0123abc": Model("", "apple/SimpleSD-4B", "0123abc"),
        f"model@{served}": Model("", directory, server=served),
        f"apple/SimpleSD-4B@0123abc@{served}": Model("", "apple/SimpleSD-4B", "0123abc", served),
    }.items():
        assert model_of(name, tmp_path) == model._replace(name=name)


def test_a_round_of_a_run(tmp_path: Path, finished: Path) -> None:
    for run in (str(finished), str(finished / "loop.toml")):
        head = model_of(f"{run}#head", tmp_path)
        assert (Path(head.source) / "config.json").exists()
        assert model_of(f"{run}#1@http://gpu/v1", tmp_path).server == "http://gpu/v1"


def test_what_names_nothing(tmp_path: Path, call: Loopctl) -> None:
    for name in ("", " ", "@http://gpu"):
        with pytest.raises(UsageError, match="names no model; give"):
            model_of(name, tmp_path)
    with pytest.raises(ConfigError, match=r"there is no .*nowhere; name the run's loop.toml before the #"):
        model_of("nowhere#head", tmp_path)
