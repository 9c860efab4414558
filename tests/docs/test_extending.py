"""docs/extending.md is true: what it shows is built as it stands, in a package that is found as an installed one is, and run."""

from __future__ import annotations

import importlib
import json
import os
import re
import tomllib
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from loop.engines.base import CheckpointRef
from loop.grading import formats
from loop.grading.grader import Grader
from loop.grading.suite import load_suite
from store.checkpoints import hash_directory, manifest_sha256
from tests.support import ROOT
from tests.support.cli import process
from tests.support.configurations import configuration
from tests.support.engines import HOT, ask, chat, in_process, remote
from tests.support.runs import write_run
from tests.support.tiny import make_tiny_model

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = {
    match["name"]: match["text"]
    for match in re.finditer(r"^```\w+\n(?P<text># (?P<name>\S+)\n.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's package, with the metadata that pip would write; found by this process and by those that it starts."""
    place = tmp_path / "site"
    points = tomllib.loads(BLOCKS["pyproject.toml"])["project"]
    metadata = place / "my_loop-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {points['name']}\nVersion: {points['version']}\n")
    lines = []
    for group, offered in points["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in offered.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    (place / "my_loop").mkdir()
    for name in ("gates", "data", "sampler"):
        (place / "my_loop" / f"{name}.py").write_text(BLOCKS[f"my_loop/{name}.py"])
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(place), str(ROOT)]))
    return place


def test_a_run_is_decided_by_the_pages_gate_on_the_pages_data(package: Path, tmp_path: Path) -> None:
    shown: dict[str, Any] = tomllib.loads(BLOCKS["loop.toml"])
    config = write_run(tmp_path, configuration(**shown, rounds=3))
    loopctl = partial(process, tmp_path, PYTHONPATH=os.environ["PYTHONPATH"])
    checked = loopctl("config", "check")
    assert checked.code == 0, checked.err
    assert loopctl("run").code == 0
    third = loopctl("round", "3", "--json").json
    (gate,) = third["gates"]
    assert gate["type"] == "few_lost" and "solved problems are lost" in gate["reason"]
    sampling = next(stage for stage in third["stages"] if stage["stage"] == "sampling")
    assert sampling["output"]["num_earlier"] > 0, "round 3 is trained on the completions of round 1, too"
    config.write_text(config.read_text().replace("share = 0.2", "share = 2"))
    refused = loopctl("config", "check")
    assert refused.code == 78 and "decide.gates[0].share" in refused.err


def test_the_pages_sampler_answers_every_request_once(package: Path, tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model")
    checkpoint = CheckpointRef(sha256=manifest_sha256(hash_directory(model)), path=model)
    requests = [chat(str(number), number) for number in range(3)]
    before = ask(in_process(checkpoint), requests, HOT)
    with closing(remote(checkpoint, "longer_of_two", tmp_path / "log")) as sampler:
        after = ask(sampler, requests, HOT)
    assert all(len(after[name].token_ids) >= len(before[name].token_ids) for name in before)


def test_the_pages_format_is_read_and_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples_of_the_page.py").write_text(BLOCKS["examples.py"])
    monkeypatch.syspath_prepend(str(tmp_path))
    added = importlib.import_module("examples_of_the_page").FORMAT
    monkeypatch.setattr(formats, "_FORMATS", (*formats._FORMATS, added))
    monkeypatch.setattr(formats, "_BY_KIND", formats._BY_KIND | {added.kind: added})
    (row,) = re.findall(r"^```json\n(.*?)\n```$", PAGE, re.MULTILINE)
    (tmp_path / "suite.jsonl").write_text(row + "\n")
    (problem,) = load_suite("suite.jsonl", base_dir=tmp_path).problems
    assert problem.task_id == json.loads(row)["name"]
    grader = Grader(num_workers=1)
    answers = [f"def add(a, b):\n    return a {sign} b\n" for sign in "+-"]
    assert [grader.grade_one(problem, answer).verdict for answer in answers] == ["passed", "failed"]
