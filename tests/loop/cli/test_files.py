"""init, config check, doctor, grade and decide need no run."""

import gzip
import json
from pathlib import Path

import pytest

from loop.cli.main import COMMANDS
from tests.loop.workers.test_nodes import FakeHub, node
from tests.support import ROOT
from tests.support.cli import Loopctl, change, command, finish, one_line, process, standing_in, write_configuration

Lines = list[dict[str, object]]


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty directory the current one."""
    return standing_in(tmp_path, monkeypatch)


def test_init_and_config_check(empty: Path, call: Loopctl) -> None:
    result = call("init", "new/run")
    assert result.code == 0 and "loopctl run" in result.out
    result = call("config", "check", "--config", "new/run/loop.toml")
    assert result.code == 0, result.err
    assert result.out.startswith("new/run/loop.toml: ok") and result.out.count("\n") == 3
    result = call("init", "new/run")
    assert result.code == 1 and "new/run/loop.toml" in result.err
    assert call("init", "--json").json == {"path": str(empty / "loop.toml")}
    assert call("init", "loop.toml").code == 1


def test_the_packaged_configuration_is_that_of_the_project() -> None:
    assert (ROOT / "loop" / "cli" / "loop.toml").read_bytes() == (ROOT / "loop.toml").read_bytes()


def test_mistakes_in_the_configuration(here: Path, call: Loopctl) -> None:
    change(here, ("seed = 3", "sed = 3"), ("top_p = 0.95", "top_p = 2"))
    result = call("config", "check")
    assert result.code == 78 and result.out == ""
    lines = result.err.splitlines()
    assert len(lines) == 2 and lines[0].startswith("loop.toml:3: sed: unknown key")
    result = call("config", "check", "--json")
    assert result.code == 78 and not result.json["ok"]
    first, second = result.json["mistakes"]
    assert (first["file"], first["line"], first["key"]) == ("loop.toml", 3, "sed") and "seed" in first["message"]
    assert second["key"] == "suites[1].top_p" and second["line"] > 3
    result = call("run")
    assert result.code == 78 and result.err.splitlines() == lines


def test_config_check_looks_at_what_is_named(here: Path, call: Loopctl) -> None:
    assert call("config", "check", "--json").json["config"]["seed"] == 3
    change(here, ("rounds = 2", "rounds = 0"))
    assert ": rounds without end of " in call("config", "check").out
    Path("ones.jsonl").unlink()
    result = call("config", "check")
    assert result.code == 78 and "ones.jsonl: no such file" in result.err


@pytest.mark.usefixtures("empty")
def test_usage(call: Loopctl) -> None:
    for arguments in (("nonsense",), ("status", "--nonsense"), ("round",), ("samples", "--limit"), ("run", "extra")):
        one_line(call(*arguments), 2, "--help")
    assert call("--version").out.startswith("loopctl ")
    listed = call("--help").out
    for name, (_, words) in COMMANDS.items():
        assert name in listed and words.split()[0] in listed
        result = call(name, "--help")
        assert result.code == 0 and "--config" in result.out and "--json" in result.out


@pytest.mark.usefixtures("here")
def test_an_unexpected_error_is_one_line(monkeypatch: pytest.MonkeyPatch, call: Loopctl) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("loop.reading.standing.status", broken)
    one_line(call("status"), 1, "ZeroDivisionError: division by zero")
    monkeypatch.setenv("LOOP_TRACEBACK", "1")
    assert "Traceback" in call("status").err


@pytest.mark.usefixtures("here")
def test_doctor(monkeypatch: pytest.MonkeyPatch, call: Loopctl) -> None:
    monkeypatch.setattr("loop.cli.doctor._DEVICES", 'print(\'{"gpus": [["Card", 80000000000]], "threads": 2}\')')
    answer = call("doctor", "--json").json
    checks = {check["name"]: check for check in answer["checks"]}
    for name in ("python", "sqlite", "memory", "loop.toml", "model, data", "run_dir", "disk", "engines", "devices",
                 "sandbox"):  # fmt: skip
        assert checks[name]["verdict"] in ("ok", "warn", "fail") and checks[name]["detail"], name
    assert checks["devices"]["detail"] == "Card (80 GB)"
    Path("ones.jsonl").unlink()
    result = call("doctor")
    assert result.code == 1 and "fail  model, data" in result.out


def test_doctor_has_a_line_for_each_node(here: Path, monkeypatch: pytest.MonkeyPatch, call: Loopctl) -> None:
    monkeypatch.setattr("loop.cli.doctor._DEVICES", "raise SystemExit")
    monkeypatch.setattr("loop.workers.nodes.check_same", lambda nodes, here: None)
    gpus = node("a", 8, 6, num_cpus=32).model_copy(update={"gpu": "NVIDIA H100", "memory_bytes": 252_000_000_000})
    hub = FakeHub([gpus, node("b", vllm="none")])
    hub.problems = {"c": "No module named 'loop'"}
    monkeypatch.setattr("loop.workers.cluster.Hub", lambda settings, log_file: hub)
    with (here / "loop.toml").open("a") as file:
        file.write("[cluster]\n")
    out = call("doctor").out
    versions = "python 3.11.7, ssd-loop 1.0, torch 2.13.0"
    size = "86 GB"
    for words in (
        "ok    cluster      2 nodes can compute, 8 GPUs (6 free)",
        f"ok    node         a: 32 cores, 252 GB memory, 8 GPUs of {size} (6 free; NVIDIA H100); {versions}, vllm 0.32.0; checkpoints",
        f"ok    node         b: 4 cores, 1.1 TB memory, no GPU; {versions}, no vLLM; checkpoints in /shelf/checkpoints",
        "warn  node         c: No module named 'loop'",
    ):
        assert words in out, out


PROBLEMS: Lines = [
    {"task_id": "h/0", "prompt": "def one():\n    \"\"\"Return 1.\"\"\"\n", "entry_point": "one",
     "test": "def check(candidate):\n    assert candidate() == 1\n"},
    {"task_id": 7, "text": "Return 2.", "test_list": ["assert two() == 2"]},
    {"task_id": "empty", "text": "Nothing.", "test_list": []},
    {"task_id": "h/1", "prompt": "def none():\n", "entry_point": "none", "test": ""},
]  # fmt: skip
COMPLETIONS: Lines = [
    {"task_id": "h/0", "completion": "    return 1\n"},
    {"task_id": 7, "completion": "```python\ndef two():\n    return 2\n```"},
    {"task_id": "h/0", "completion": "I do not know."},
    {"task_id": "7", "completion": "def two():\n    return 3\n"},
]


GRADE = ("grade", "--problems", "p.jsonl", "--completions", "c.jsonl")


def write_lines(path: str, rows: Lines) -> None:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    Path(path).write_bytes(gzip.compress(content) if path.endswith(".gz") else content)


@pytest.mark.usefixtures("empty")
def test_grade(call: Loopctl) -> None:
    write_lines("p.jsonl.gz", PROBLEMS)
    write_lines("c.jsonl.gz", COMPLETIONS)
    arguments = ("grade", "--problems", "p.jsonl.gz", "--completions", "c.jsonl.gz")
    result = call(*arguments, "--json")
    assert result.code == 0, result.err
    *lines, last = map(json.loads, result.out.splitlines())
    assert [(line["task_id"], line["index"], line["verdict"]) for line in lines] == [
        ("h/0", 0, "passed"), ("7", 0, "passed"), ("h/0", 1, "no_code"), ("7", 1, "failed"),
    ]  # fmt: skip
    assert all(line.keys() == {"task_id", "index", "verdict", "detail", "duration_s"} for line in lines)
    summary = last["summary"]
    assert (summary["num_problems"], summary["num_completions"], summary["num_passed"]) == (2, 4, 2)
    assert summary["pass@1"] == 0.5 and summary["pass@2"] == 1.0 and summary["sandbox"] == "bubblewrap"
    assert "2 of 4 completions passed on 2 problems" in call(*arguments).out


def test_grade_reads_standard_input(empty: Path) -> None:
    write_lines("p.jsonl", PROBLEMS)
    result = finish(command(*GRADE[:-1], "-", "--json"), empty, input=json.dumps(COMPLETIONS[0]) + "\n")
    assert (result.code, json.loads(result.out.splitlines()[0])["verdict"], result.err) == (0, "passed", "")


@pytest.mark.usefixtures("empty")
def test_grade_without_tests_is_not_graded(call: Loopctl) -> None:
    write_lines("p.jsonl", PROBLEMS)
    untested: Lines = [{"task_id": task_id, "completion": "x = 1"} for task_id in ("empty", "h/1")]
    write_lines("c.jsonl", [*untested, *COMPLETIONS[:1], *untested[:1]])
    result = call(*GRADE, "--json")
    assert result.code == 1
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [(line["task_id"], line["index"], line["verdict"]) for line in lines[:-1]] == [
        ("empty", 0, "harness_error"), ("h/1", 0, "harness_error"), ("h/0", 0, "passed"), ("empty", 1, "harness_error"),
    ]  # fmt: skip


@pytest.mark.usefixtures("empty")
def test_grade_refuses_what_it_does_not_understand(call: Loopctl) -> None:
    write_lines("p.jsonl", PROBLEMS)
    for text, words in (
        ('{"task_id": "h/0"}', "c.jsonl:1: lacks"),
        ('\n{"task_id": "new", "completion": ""}', "c.jsonl:2: no problem has the task_id 'new'"),
        ("[", "c.jsonl:1: is not JSON"),
        ("", "holds no completions"),
    ):
        Path("c.jsonl").write_text(text)
        one_line(call(*GRADE), 1, words)
    Path("c.jsonl").write_bytes(b'{"task_id": "h/0", "completion": "# \xe9"}')
    assert "c.jsonl:1: is not UTF-8; save" in call(*GRADE).err
    for name, words in (
        ("none.jsonl", "no such file or directory; check the name"),
        (".", "is a directory; name a file"),
    ):
        result = call(*GRADE[:-1], name)
        assert (result.code, result.err) == (1, f"{name}: {words}\n")
    assert call("grade", "--problems", "none.jsonl", "--completions", "c.jsonl").code == 1


def test_decide(empty: Path, call: Loopctl) -> None:
    problems = [{"task_id": f"t{n}", "candidate": [1, 1], "head": [0, n % 2]} for n in range(20)]
    evidence = {"round": 1, "rounds_so_far": 0, "splits": {"select": {"suite": "s", "problems": problems}}}
    Path("e.json").write_text(json.dumps(evidence))
    answer = call("decide", "--evidence", "e.json", "--json").json
    assert answer["verdict"] == answer["action"] == "keep"
    assert answer["gates"][0].keys() == {"type", "verdict", "reason", "figures"}
    assert call("decide", "--evidence", "e.json").out.startswith("keep\n  pass: improvement: ")
    config = write_configuration(empty / "strict")
    change(
        config.parent,
        ('suite = "ones"', 'suite = "ones"\ngates = [{type = "improvement", min_gain = 0.9}]'),
    )
    assert call("decide", "--evidence", "e.json", "--config", str(config), "--json").json["verdict"] == "rollback"
    Path("e.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(evidence).encode())  # as Windows' editors save it
    assert call("decide", "--evidence", "e.json", "--json").json == answer
    Path("e.json").write_text(json.dumps(evidence | {"rounds_so_far": 10**8}))
    one_line(call("decide", "--evidence", "e.json"), 1, "e.json: rounds_so_far: ")
    Path("e.json").write_text('{"round": 1}')
    one_line(call("decide", "--evidence", "e.json"), 1, "e.json: rounds_so_far: is missing")
    assert call("decide", "--evidence", "none.json").code == 1
    assert call("decide", "--evidence", "none.json", "--config", "none.toml").code == 78, "before anything is read"
    assert process(empty, "decide").code == 2
