"""What a user gets wrong gives a line with the place and the remedy; it loads nothing, and leaves nothing that stands in the
way once it is put right.
"""

import json
import os
import resource
import shutil
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from loop.config.loading import load_config
from loop.run.opening import open_session
from loop.system.lock import locked
from store.db import execute, open_database
from store.verify import verify_store
from tests.support.cli import (
    Loopctl,
    Said,
    change,
    command,
    finish,
    finished_run,
    one_line,
    process,
    write_configuration,
)
from tests.support.runs import Quiet, dump

PROMPTS = 'per_round = 16\nsource = "mine.jsonl"'
SUITE = 'source = "ones.jsonl"\ngreedy = true'
SAMPLING = "temperature = 1.2\ntop_k = 20"
MODEL = 'source = "fake"'
FAKE = 'sampler = "fake"\ntrainer = "fake"\n'
PROBLEM = {"task_id": "t/0", "text": "Return 1.", "test_list": ["assert one() == 1"]}
MINE = {"mine/config.json": "{}", "mine/tokenizer.json": "", "mine/tokenizer_config.json": '{"chat_template": "x"}'}

Files = Mapping[str, str | bytes]


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting a worker, hence loading a model, is a mistake of ours."""

    def started(*_: object, **__: object) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr("loop.workers.worker.Worker.__init__", started)


def begun(directory: Path) -> Path:
    """Make the store of a run that has no round yet, and return the run directory."""
    loaded = load_config(directory / "loop.toml")
    with open_session(loaded, Quiet()):
        pass
    return loaded.run_dir


def rows(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


# Each has the change (old text, new text), the files that it needs, and the words of the line.
MISTAKES: dict[str, tuple[tuple[str, str], Files, tuple[str, ...]]] = {
    "broken TOML": (("seed = 3", "seed = = 3"), {}, ("loop.toml:3: is not TOML: ", "; ")),
    "a wrong type": (
        ("rounds = 2", 'rounds = "two"'), {},
        ("loop.toml:2: rounds: ", '"two" is text; give a whole number of at least 0'),
    ),
    "temperature 0": (
        (SAMPLING, "temperature = 0"), {},
        ("loop.toml:12: sampling.temperature: 0 is not a temperature", "such as 1.2"),
    ),
    "top_p 2": (
        (SAMPLING, "temperature = 1.2\ntop_p = 2"), {},
        ("loop.toml:13: sampling.top_p: 2 is not between 0 and 1; give a number above 0 and at most 1",),
    ),
    "T = 1 with nothing cut off": (
        (SAMPLING, "temperature = 1"), {}, ("loop.toml:12: sampling.temperature: ", "fixed point", "; set "),
    ),
    "k above the number of samples": (
        ("pass_at = [1, 2]", "pass_at = [1, 4]"), {},
        ("loop.toml:30: suites[1].pass_at: pass@4", "num_samples is 2; raise num_samples to at least 4"),
    ),
    "a broken line of prompts": (
        ("per_round = 16", PROMPTS), {"mine.jsonl": rows({"statement": "x"}) + "{\n"},
        ("loop.toml:10: prompts.source: ", "mine.jsonl:2: ", "; "),
    ),
    "prompts that are no objects": (
        ("per_round = 16", PROMPTS), {"mine.jsonl": "[]\n"}, ("prompts.source: ", "mine.jsonl:1: ", "; "),
    ),
    "prompts that are not text": (
        ("per_round = 16", PROMPTS), {"mine.jsonl": b"\xff\xfe\n"}, ("prompts.source: ", "mine.jsonl", "; "),
    ),
    "no prompts": (
        ("per_round = 16", PROMPTS), {"mine.jsonl": ""},
        ("loop.toml:10: prompts.source: ", "mine.jsonl", "holds no prompts; give at least one"),
    ),
    "blank lines for prompts": (
        ("per_round = 16", PROMPTS), {"mine.jsonl": "\n\n"}, ("mine.jsonl", "holds no prompts; give at least one"),
    ),
    "a problem without tests": (
        (SUITE, SUITE.replace("ones", "mine")), {"mine.jsonl": rows(PROBLEM, {**PROBLEM, "test_list": []})},
        ("loop.toml:21: suites[0].source: ", "mine.jsonl:2: test_list is empty", "; add tests"),
    ),
    "a broken line of a suite": (
        (SUITE, SUITE.replace("ones", "mine")), {"mine.jsonl": rows(PROBLEM) + "{\n"},
        ("loop.toml:21: suites[0].source: ", "mine.jsonl:2: ", "; "),
    ),
    "an empty suite": (
        (SUITE, SUITE.replace("ones", "mine")), {"mine.jsonl": ""}, ("suites[0].source: ", "mine.jsonl", "; "),
    ),
    "no such model": (
        (MODEL, 'source = "./mine"'), {}, ("loop.toml:6: model.source: ", "mine: no such directory; give "),
    ),
    "a model without weights": (
        (MODEL, 'source = "mine"'), MINE, ("loop.toml:6: model.source: ", "mine has no *.safetensors; fetch the model again"),
    ),
    "pickled weights": (
        (MODEL, 'source = "mine"'), {**MINE, "mine/pytorch_model.bin": ""},
        ("loop.toml:6: model.source: ", "pytorch_model.bin only; convert them to safetensors"),
    ),
    "a run_dir that is a file": (
        ("seed = 3", 'seed = 3\nrun_dir = "ones.jsonl"'), {},
        ("loop.toml:4: run_dir: ", "ones.jsonl is a file; name a directory"),
    ),
    "a run_dir in a file": (
        ("seed = 3", 'seed = 3\nrun_dir = "ones.jsonl/deep/run"'), {},
        ("loop.toml:4: run_dir: ", "ones.jsonl is a file; name a directory"),
    ),
}  # fmt: skip


@pytest.mark.usefixtures("no_worker")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_before_anything_is_made(mistake: str, here: Path, call: Loopctl) -> None:
    (old, new), files, words = MISTAKES[mistake]
    change(here, (old, new), *([(FAKE, "")] if old == MODEL else []))
    for name, content in files.items():
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = sorted(here.rglob("*"))
    result = call("run")
    one_line(result, 78, *words)
    assert call("config", "check") == result
    assert sorted(here.rglob("*")) == before


def test_a_process_of_its_own_says_it_too(here: Path) -> None:
    change(here, (SAMPLING, "temperature = 1"))
    path = str(here / "loop.toml")
    one_line(process(Path("/"), "run", "--config", path), 78, f"{path}:12: sampling.temperature: ")


@pytest.mark.usefixtures("no_worker")
def test_no_sandbox(here: Path, call: Loopctl, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as hidden:
        hidden.setattr("loop.grading.working_sandbox.find_bwrap", lambda: None)
        one_line(call("run"), 78, "grading.sandbox: bwrap is neither on PATH nor ", "; install bubblewrap")
    assert not (here / ".loop").exists()


def test_a_model_that_the_hub_does_not_have(here: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    change(here, (MODEL, 'source = "nobody/no-such-model"'), (FAKE, ""))
    home = tmp_path_factory.mktemp("hub")
    result = process(here, "run", HF_HUB_OFFLINE="1", HF_HOME=str(home))
    *progress, line = result.err.splitlines()
    one_line(
        Said(result.code, result.out, line + "\n"), 78, "model.source: 'nobody/no-such-model': ", "; give a directory"
    )
    assert all("preparing: nobody/no-such-model" in line for line in progress)
    write_configuration(here)
    begun(here)


@pytest.mark.usefixtures("no_worker")
def test_a_disk_without_room_for_a_checkpoint(here: Path, call: Loopctl, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(here)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
        result = call("run")
    last = Said(result.code, result.out, result.err.splitlines()[-1] + "\n")
    one_line(last, 1, f"disk short: 0 MB free at {here}/.loop", "; make room and run it again")
    begun(here)


def limited(directory: Path, max_bytes: int) -> Said:
    """Run `loopctl run` where no file can grow larger than that."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    return finish(command("run"), directory, preexec_fn=limit)


@pytest.mark.slow
def test_a_run_continues_after_a_full_disk(here: Path, call: Loopctl) -> None:
    """The limit rises bit by bit: first the store cannot be made, then the run, and then a stage cannot be finished."""
    stages, max_bytes = [], 100_000
    while (result := limited(here, max_bytes)).code != 0:
        assert result.code == 1 and "Traceback" not in result.err and "bug" not in result.err, (max_bytes, result)
        assert f"{here}/.loop" in result.err.splitlines()[-1], (max_bytes, result)
        status = call("status", "--json")
        if status.code == 3:
            stages.append(status.json["round"] and status.json["round"]["stage"])
        max_bytes = int(1.35 * max_bytes)
    assert any(stages) and not all(stages), "before the first round, and in the middle of one"
    run_dir = here / ".loop"
    tables = dump(run_dir)
    for table, expected in dump(finished_run()[0] / ".loop").items():
        assert tables[table] == expected, table
    db = open_database(run_dir / "loop.db", read_only=True)
    assert verify_store(db, run_dir).findings == []
    db.close()


@pytest.mark.usefixtures("no_worker")
def test_a_run_of_other_inputs(here: Path, call: Loopctl) -> None:
    mine = here / "mine.jsonl"
    mine.write_text(rows({"statement": "Add two numbers."}))
    change(here, ("per_round = 16", PROMPTS))
    run_dir = begun(here)
    ends = ("change it back, or set another run_dir",)
    belongs = f"{run_dir} belongs to another configuration: "
    good, suite = mine.read_text(), (here / "ones.jsonl").read_text()

    mine.write_text(good + rows({"statement": "Multiply two numbers."}))
    one_line(call("run"), 78, belongs, "the prompts of mine.jsonl are not those that the run began with", *ends)
    mine.write_text(good)
    (here / "ones.jsonl").write_text(suite.replace("one_0() == 1", "one_0() == 2"))
    one_line(call("run"), 78, belongs, "suite greedy is not the one", "suite ones is not the one", *ends)
    (here / "ones.jsonl").write_text(suite)
    change(here, ("top_k = 20", "top_k = 21"), ("num_samples = 2", "num_samples = 3"))
    one_line(call("run"), 78, belongs, "sampling.top_k is 21 here and 20 in the run directory; suites[1].num_samples",
             *ends)  # fmt: skip
    change(here, ("top_k = 21", "top_k = 20"), ("num_samples = 3", "num_samples = 2"), ('"small"', '"other"'))
    one_line(call("run"), 78, belongs, 'name is "other" here and "small" in the run directory', *ends)
    change(here, ('"other"', '"small"'))
    begun(here)


@pytest.mark.usefixtures("no_worker")
@pytest.mark.parametrize("kind", ["text", "another program's", "a directory"])
def test_what_is_no_store_is_left_alone(kind: str, here: Path, call: Loopctl) -> None:
    path = here / ".loop" / "loop.db"
    path.parent.mkdir()
    if kind == "text":
        path.write_text("these are somebody's notes, and they are worth keeping\n" * 20)
    elif kind == "a directory":
        path.mkdir()
    else:
        with sqlite3.connect(path, isolation_level=None) as conn:
            conn.execute("CREATE TABLE theirs (x)")
        conn.close()
    before = path.read_bytes() if path.is_file() else None
    one_line(call("run"), 1, f"{path}: is ", "; restore a backup, or set another run_dir")
    assert (path.read_bytes() if path.is_file() else None) == before


@pytest.mark.usefixtures("no_worker")
@pytest.mark.parametrize("command", ["run", "status", "rounds"])
def test_a_newer_store_is_left_alone(here: Path, call: Loopctl, command: str) -> None:
    path = begun(here) / "loop.db"
    db = open_database(path)
    execute(db, "INSERT INTO schema_migrations VALUES (99, 'tomorrow', '2030')")
    db.close()
    before = path.read_bytes()
    one_line(call(command), 78, f"{path}: has migration 99 (tomorrow)", "; use the version that wrote it")
    assert path.read_bytes() == before


WITHOUT_PRIVILEGE = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
may_be_refused = pytest.mark.skipif(
    bool(WITHOUT_PRIVILEGE) and not shutil.which("setpriv"), reason="root may write everywhere"
)


def unprivileged(directory: Path, *arguments: str) -> Said:
    """Run loopctl in a process to which permissions apply."""
    return finish([*WITHOUT_PRIVILEGE, *command(*arguments)], directory)


@may_be_refused
def test_a_run_dir_that_cannot_be_written(here: Path) -> None:
    change(here, ("[engine]", '[grading]\nsandbox = "none"\n\n[engine]'))

    def run() -> Said:
        return unprivileged(here, "run")

    run_dir = here / ".loop"
    here.chmod(0o555)
    one_line(run(), 77, f"{run_dir}: permission denied; choose a run_dir that this user can write to")
    here.chmod(0o755)
    assert not run_dir.exists()
    (run_dir / "lock").mkdir(parents=True)
    one_line(run(), 1, f"{run_dir / 'lock'}: Is a directory; ")
    (run_dir / "lock").rmdir()
    begun(here)
    (run_dir / "checkpoints").mkdir()
    for name, mode in (("lock", 0), (".", 0o555), ("loop.db", 0o444), ("checkpoints", 0o555)):
        before = (run_dir / name).stat().st_mode
        (run_dir / name).chmod(mode)
        one_line(run(), 77, str(run_dir), "permission denied; ")
        (run_dir / name).chmod(before)
    begun(here)


@may_be_refused
def test_a_run_of_another_user(here: Path) -> None:
    """The lock is its owner's alone; whoever may read the rest sees how the run stands."""
    begun(here)
    run_dir = here / ".loop"
    with locked(run_dir):
        (run_dir / "lock").chmod(0)
        result = unprivileged(here, "status", "--json")
        assert (result.code, result.json["pid"], result.err) == (0, os.getpid(), "")
    assert unprivileged(here, "status", "--json").code == 3
    one_line(unprivileged(here, "pause"), 77, f"{run_dir}: permission denied; ")
    (run_dir / "lock").chmod(0o600)
    store = run_dir / "loop.db"
    store.chmod(0)
    one_line(unprivileged(here, "pause"), 77, f"{store}: permission denied; ")
    store.chmod(0o644)
    mode = run_dir.stat().st_mode
    run_dir.chmod(0)
    for name in ("status", "start", "stop", "run", "pause", "verify"):
        one_line(unprivileged(here, name), 77, f"{run_dir}", "permission denied; ")
    run_dir.chmod(mode)


@may_be_refused
def test_files_of_another_user(here: Path) -> None:
    begun(here)
    for name, arguments in (
        ("p.jsonl", ("grade", "--problems", "p.jsonl", "--completions", "c.jsonl")),
        ("c.jsonl", ("grade", "--problems", "ones.jsonl", "--completions", "c.jsonl")),
        ("e.json", ("decide", "--evidence", "e.json")),
        ("x.toml", ("experiment", "status", "x.toml")),
    ):
        (here / name).touch(0)
        one_line(unprivileged(here, *arguments), 77, f"{name}: permission denied; ")
    (here / "closed").mkdir(0o555)
    for arguments in (
        ("backup", "closed/copy.db"),
        ("report", "-o", "closed/page.html"),
        ("corpus", "export", "--format", "jsonl", "closed/corpus.jsonl"),
    ):
        one_line(unprivileged(here, *arguments), 77, "closed: permission denied; name a place")
    (here / "loop.toml").chmod(0)
    one_line(unprivileged(here, "status"), 77, "loop.toml: permission denied; ")
