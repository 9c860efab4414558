"""init, config check, doctor, grade and decide: what needs no run."""

import gzip
import json
import os
import subprocess
from pathlib import Path

import pytest

from loop.cli.main import COMMANDS
from tests.support.cli import CONFIG, Loopctl, call, command, environment, process, write_configuration

__all__ = ["call"]
from tests.support import ROOT


def test_init_and_config_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Loopctl) -> None:
    monkeypatch.chdir(tmp_path)
    said = call("init", "new/run")
    assert said.code == 0 and "loopctl run" in said.out
    said = call("config", "check", "--config", "new/run/loop.toml")
    assert said.code == 0, said.err
    assert said.out.startswith("new/run/loop.toml: ok") and said.out.count("\n") == 3
    said = call("init", "new/run")
    assert said.code == 1 and "new/run/loop.toml" in said.err
    assert call("init", "--json").json == {"path": str(tmp_path / "loop.toml")}
    assert call("init", "loop.toml").code == 1


def test_the_packaged_configuration_is_that_of_the_project() -> None:
    assert (ROOT / "loop" / "cli" / "loop.toml").read_bytes() == (ROOT / "loop.toml").read_bytes()


def test_mistakes_in_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Loopctl) -> None:
    config = CONFIG.replace("seed = 3", "sed = 3").replace("top_p = 0.95", "top_p = 2")
    monkeypatch.chdir(write_configuration(tmp_path, config).parent)
    said = call("config", "check")
    assert said.code == 78 and said.out == ""
    lines = said.err.splitlines()
    assert len(lines) == 2 and lines[0].startswith("loop.toml:3: sed: unknown key")
    said = call("config", "check", "--json")
    assert said.code == 78 and not said.json["ok"]
    first, second = said.json["mistakes"]
    assert (first["file"], first["line"], first["key"]) == ("loop.toml", 3, "sed") and "seed" in first["message"]
    assert second["key"] == "suites[1].top_p" and second["line"] > 3
    said = call("run")
    assert said.code == 78 and said.err.splitlines() == lines


def test_config_check_looks_at_what_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Loopctl) -> None:
    monkeypatch.chdir(write_configuration(tmp_path).parent)
    assert call("config", "check", "--json").json["config"]["seed"] == 3
    endless = Path("loop.toml").read_text().replace("rounds = 2", "rounds = 0")
    Path("endless.toml").write_text(endless)
    assert ": rounds without end of " in call("config", "check", "--config", "endless.toml").out
    Path("ones.jsonl").unlink()
    said = call("config", "check")
    assert said.code == 78 and "ones.jsonl: no such file" in said.err


def test_usage(call: Loopctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (("nonsense",), ("status", "--nonsense"), ("round",), ("samples", "--limit"), ("run", "extra")):
        said = call(*arguments)
        assert said.code == 2 and said.out == "" and said.err.count("\n") == 1, arguments
        assert "--help" in said.err
    assert call("--version").out.startswith("loopctl ")
    listed = call("--help").out
    for name, (_, words) in COMMANDS.items():
        assert name in listed and words.split()[0] in listed
        said = call(name, "--help")
        assert said.code == 0 and "--config" in said.out and "--json" in said.out


def test_an_unexpected_error_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Loopctl) -> None:
    monkeypatch.chdir(write_configuration(tmp_path).parent)

    def broken(*_: object) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("loop.reading.standing.status", broken)
    said = call("status")
    assert said.code == 1 and said.err.count("\n") == 1 and "ZeroDivisionError: division by zero" in said.err
    monkeypatch.setenv("LOOP_TRACEBACK", "1")
    assert "Traceback" in call("status").err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Loopctl) -> None:
    path = write_configuration(tmp_path)
    path.chmod(0)
    monkeypatch.chdir(tmp_path)
    assert call("status").code == 77


def test_doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Loopctl) -> None:
    monkeypatch.chdir(write_configuration(tmp_path).parent)
    monkeypatch.setattr("loop.cli.doctor._DEVICES", 'print(\'{"gpus": [["Card", 80000000000]], "threads": 2}\')')
    answer = call("doctor", "--json").json
    checks = {check["name"]: check for check in answer["checks"]}
    for name in ("python", "sqlite", "memory", "loop.toml", "model, data", "run_dir", "disk", "engines", "devices",
                 "sandbox"):  # fmt: skip
        assert checks[name]["verdict"] in ("ok", "warn", "fail") and checks[name]["detail"], name
    assert checks["devices"]["detail"] == "Card (80 GB)"
    Path("ones.jsonl").unlink()
    said = call("doctor")
    assert said.code == 1 and "fail  model, data" in said.out


PROBLEMS = [
    {"task_id": "h/0", "prompt": "def one():\n    \"\"\"Return 1.\"\"\"\n", "entry_point": "one",
     "test": "def check(candidate):\n    assert candidate() == 1\n"},
    {"task_id": 7, "text": "Return 2.", "test_list": ["assert two() == 2"]},
    {"task_id": "empty", "text": "Nothing.", "test_list": []},
    {"task_id": "h/1", "prompt": "def none():\n", "entry_point": "none", "test": ""},
]  # fmt: skip
COMPLETIONS = [
    {"task_id": "h/0", "completion": "    return 1\n"},
    {"task_id": 7, "completion": "```python\ndef two():\n    return 2\n```"},
    {"task_id": "h/0", "completion": "I do not know."},
    {"task_id": "7", "completion": "def two():\n    return 3\n"},
]


def write_lines(path: str, rows: list[dict[str, object]]) -> None:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    Path(path).write_bytes(gzip.compress(content) if path.endswith(".gz") else content)


def test_grade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Loopctl) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines("problems.jsonl.gz", PROBLEMS)  # type: ignore[arg-type]
    write_lines("completions.jsonl", COMPLETIONS)  # type: ignore[arg-type]
    arguments = ("grade", "--problems", "problems.jsonl.gz", "--completions", "completions.jsonl")
    said = call(*arguments, "--json")
    assert said.code == 0, said.err
    *lines, last = map(json.loads, said.out.splitlines())
    assert [(line["task_id"], line["index"], line["verdict"]) for line in lines] == [
        ("h/0", 0, "passed"), ("7", 0, "passed"), ("h/0", 1, "no_code"), ("7", 1, "failed"),
    ]  # fmt: skip
    assert all(line.keys() == {"task_id", "index", "verdict", "detail", "duration_s"} for line in lines)
    summary = last["summary"]
    assert (summary["num_problems"], summary["num_completions"], summary["num_passed"]) == (2, 4, 2)
    assert summary["pass@1"] == 0.5 and summary["pass@2"] == 1.0 and summary["sandbox"] == "bubblewrap"
    assert "2 of 4 completions passed on 2 problems" in call(*arguments).out


def test_grade_reads_standard_input(tmp_path: Path) -> None:
    write_lines(str(tmp_path / "p.jsonl"), PROBLEMS)  # type: ignore[arg-type]
    line = command("grade", "--problems", "p.jsonl", "--completions", "-", "--json")
    given = json.dumps(COMPLETIONS[0]) + "\n"
    done = subprocess.run(line, cwd=tmp_path, env=environment(), input=given, capture_output=True, text=True)
    assert (done.returncode, json.loads(done.stdout.splitlines()[0])["verdict"], done.stderr) == (0, "passed", "")


def test_grade_without_tests_is_not_graded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Loopctl) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines("p.jsonl", PROBLEMS)  # type: ignore[arg-type]
    untested = [{"task_id": task_id, "completion": "x = 1"} for task_id in ("empty", "h/1")]
    write_lines("c.jsonl", [*untested, *COMPLETIONS[:1]])  # type: ignore[list-item]
    said = call("grade", "--problems", "p.jsonl", "--completions", "c.jsonl", "--json")
    assert said.code == 1
    verdicts = [json.loads(line).get("verdict") for line in said.out.splitlines()]
    assert verdicts == ["harness_error", "harness_error", "passed", None]


def test_grade_refuses_what_it_does_not_understand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Loopctl
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines("p.jsonl", PROBLEMS)  # type: ignore[arg-type]
    for text, words in (
        ('{"task_id": "h/0"}', "c.jsonl:1: lacks"),
        ('\n{"task_id": "new", "completion": ""}', "c.jsonl:2: no problem has the task_id 'new'"),
        ("[", "c.jsonl:1: is not JSON"),
        ("", "holds no completions"),
    ):
        Path("c.jsonl").write_text(text)
        said = call("grade", "--problems", "p.jsonl", "--completions", "c.jsonl")
        assert said.code == 1 and words in said.err and said.err.count("\n") == 1
    Path("c.jsonl").write_bytes(b'{"task_id": "h/0", "completion": "# \xe9"}')
    assert "c.jsonl:1: is not UTF-8; save" in call("grade", "--problems", "p.jsonl", "--completions", "c.jsonl").err
    said = call("grade", "--problems", "p.jsonl", "--completions", "none.jsonl")
    assert (said.code, said.err) == (1, "none.jsonl: no such file or directory; check the name\n")
    said = call("grade", "--problems", "p.jsonl", "--completions", ".")
    assert (said.code, said.err) == (1, ".: is a directory; name a file\n")
    assert call("grade", "--problems", "none.jsonl", "--completions", "c.jsonl").code == 1


def test_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Loopctl) -> None:
    monkeypatch.chdir(tmp_path)
    problems = [{"task_id": f"t{n}", "candidate": [1, 1], "head": [0, n % 2]} for n in range(20)]
    evidence = {"round": 1, "rounds_so_far": 0, "splits": {"select": {"suite": "s", "problems": problems}}}
    Path("e.json").write_text(json.dumps(evidence))
    answer = call("decide", "--evidence", "e.json", "--json").json
    assert answer["verdict"] == answer["action"] == "keep"
    assert answer["gates"][0].keys() == {"type", "verdict", "reason", "figures"}
    assert call("decide", "--evidence", "e.json").out.startswith("keep\n  pass: improvement: ")
    strict = CONFIG.replace(
        'suite = "ones"\n\n[engine]', 'suite = "ones"\ngates = [{type = "improvement", min_gain = 0.9}]\n[engine]'
    )
    config = write_configuration(tmp_path / "strict", strict)
    assert call("decide", "--evidence", "e.json", "--config", str(config), "--json").json["verdict"] == "rollback"
    Path("e.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(evidence).encode())  # as Windows' editors save it
    assert call("decide", "--evidence", "e.json", "--json").json == answer
    Path("e.json").write_text(json.dumps(evidence | {"rounds_so_far": 10**8}))
    said = call("decide", "--evidence", "e.json")
    assert said.code == 1 and said.err.startswith("e.json: rounds_so_far: ") and said.err.count("\n") == 1
    Path("e.json").write_text('{"round": 1}')
    said = call("decide", "--evidence", "e.json")
    assert said.code == 1 and said.err.startswith("e.json: ")
    assert call("decide", "--evidence", "none.json").code != 0
    assert process(tmp_path, "decide").code == 2
