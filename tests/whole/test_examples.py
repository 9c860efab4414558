"""Every command's help has examples, and every example runs as it stands there, against a finished run."""

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from loop.cli.main import loopctl
from loop.system.lock import holder
from tests.support import TESTS
from tests.support.cli import CONFIG, Loopctl, call, environment, process, write_configuration
from tests.support.waiting import HANG_S, wait_until

__all__ = ["call"]

SPLITS = CONFIG.replace(
    "pass_at = [1, 2]", "pass_at = [1, 2]\nsplits = { select = 0.6, final = 0.4 }"
).replace("[training]", "[training]\nnum_steps = 20").replace(
    'suite = "ones"', 'suite = "ones"\ngates = [{ type = "improvement", min_gain = -0.9 }]'
).replace("[engine]", "[diagnosis]\nnum_prompts = 0\n[engine]").replace("rounds = 2", "rounds = 1")  # fmt: skip
PROBLEM = {"task_id": "a", "candidate": [1], "head": [0]}
EVIDENCE = {"round": 1, "rounds_so_far": 0, "splits": {"select": {"suite": "ones", "problems": [PROBLEM]}}}
EXPERIMENT = """name = "temperatures"
rounds = 1
seeds = [1]
[[arms]]
name = "temperature"
sampling.temperature = [0.8, 1.2]
"""


def commands(group: click.Group = loopctl, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command and group below loopctl, by its names."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*names, name), command
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)


def examples(command: click.Command) -> list[str]:
    """The lines of its help below "Examples:"."""
    _, _, below = (command.help or "").partition("Examples:\n")
    return [line.strip() for line in below.split("\n\n")[0].splitlines() if line.strip().startswith("loopctl ")]


ALL = dict(commands())
LINES = [(" ".join(names), line) for names, command in ALL.items() for line in examples(command)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and the files that examples name."""
    directory = tmp_path_factory.mktemp("examples") / "run"
    write_configuration(directory, SPLITS)
    (directory / "stricter.toml").write_text(SPLITS.replace("min_gain = -0.9", "min_gain = 0.05"))
    (directory / "temperatures.toml").write_text(EXPERIMENT)
    for command in (["run"], ["experiment", "run", "temperatures.toml"]):
        done = process(directory, *command)
        assert done.code == 0, done.err
    shutil.copy(directory / "ones.jsonl", directory / "problems.jsonl")
    completion = {"task_id": "ones/0", "completion": "def one_0():\n    return 1\n"}
    (directory / "completions.jsonl").write_text(json.dumps(completion) + "\n")
    for name, file in (("base", "a"), ("tuned", "b")):
        left = TESTS / "data" / "harnesses" / "evalplus" / f"{file}_eval_results.json"
        shutil.copy(left, directory / f"{name}_eval_results.json")
    (directory / "shop" / "shop").mkdir(parents=True)
    (directory / "shop" / ".venv").symlink_to(sys.prefix)
    (directory / "shop" / "shop" / "__init__.py").write_text("def add(a, b):\n    c = a + b\n    return c\n")
    (directory / "shop" / "test_shop.py").write_text("from shop import add\ndef test_add(): assert add(2, 1) == 3\n")
    (directory / "evidence.json").write_text(json.dumps(EVIDENCE))
    return directory


@pytest.mark.parametrize("names", ALL, ids=" ".join)
def test_every_help_has_an_example(names: tuple[str, ...]) -> None:
    lines = examples(ALL[names])
    assert lines, f"loopctl {' '.join(names)} --help shows no example"
    shown = click.Context(ALL[names], info_name=" ".join(names)).get_help()
    for line in lines:
        assert line.startswith(f"loopctl {' '.join(names)}"), line
        assert f"  {line}\n" in f"{shown}\n", "the example is folded; put \\b before Examples:"


# An example like another one of its command, with more to import.
SLOW = {"loopctl track mlflow"}


@pytest.mark.parametrize(
    ("name", "line"),
    [pytest.param(*each, marks=[pytest.mark.slow] * (each[1] in SLOW)) for each in LINES],
    ids=[line for _, line in LINES],
)
def test_every_example_runs(
    name: str, line: str, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Loopctl
) -> None:
    """It ends with 0, or with a code that the help names ("Exit code ...")."""
    copy = shutil.copytree(directory, tmp_path / "run", symlinks=True)
    monkeypatch.chdir(copy)
    monkeypatch.delenv("LOOP_CONFIG", raising=False)
    try:
        if set(line) & set("|<>&;#'\""):
            code, err = in_a_shell(line, copy)
        else:
            answer = call(*line.split()[1:])
            code, err = answer.code, answer.err
    finally:
        if holder(copy / ".loop") is not None:
            call("stop", "--now")
    sentence = " ".join(re.findall(r"[Ee]xit code[^.]*\.", " ".join((ALL[tuple(name.split())].help or "").split())))
    allowed = {0, *map(int, re.findall(r"\b\d+\b", sentence))}
    assert code in allowed, f"{line}: {code}: {err}"


def in_a_shell(line: str, directory: Path) -> tuple[int, str]:
    """Exit code and what stood on stderr. What runs until Ctrl-C is interrupted once it is up."""
    tools = directory.parent / "tools"
    tools.mkdir()
    program = tools / "loopctl"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m loop.cli.main "$@"\n')
    program.chmod(0o755)
    for_ever = "until Ctrl-C" in line
    command = ["bash", "-c", f"set -o pipefail; {'exec ' if for_ever else ''}{line}"]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    path = f"{tools}:{os.environ['PATH']}"
    running = subprocess.Popen(
        command, cwd=directory, env=environment(PATH=path), **pipes, text=True, start_new_session=True
    )
    try:
        if for_ever:
            wait_until_up(running)
            assert running.poll() is None, running.communicate()
            os.killpg(running.pid, signal.SIGINT)
        _, err = running.communicate(timeout=HANG_S)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    return running.returncode, err


def wait_until_up(running: subprocess.Popen[str]) -> None:
    """Until it has said something; what serves answers by then."""
    ready, _, _ = select.select([running.stdout, running.stderr], [], [], HANG_S)
    printed = os.read(ready[0].fileno(), 1 << 16).decode()
    if printed.startswith("http://"):
        wait_until(lambda: answers(f"{printed.split()[0]}healthz"))


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=HANG_S) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
