"""The commands that read a run give JSON with its keys and types, exit codes, and words for people."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from loop.cli.tables import console
from loop.system.lock import locked
from store.records import DECIDED
from tests.support.cli import Loopctl, altered, change, finish, ledger_of, one_line, process, standing_in


def test_status_has_the_keys_of_the_contract(finished: Path, call: Loopctl) -> None:
    result = call("status", "--json")
    assert result.code == 3, "nothing is running"
    answer = result.json
    for key in ("as_of", "run", "state", "reason", "pid", "uptime_s", "heartbeat_age_s", "head", "base", "round",
                "last_decision", "rounds", "corpus", "next_due", "disk", "last_error"):  # fmt: skip
        assert key in answer, key
    assert answer["run"] == "small"
    assert answer["state"] == "idle"
    assert answer["as_of"].endswith("Z")
    assert answer["pid"] is answer["round"] is answer["next_due"] is answer["last_error"] is None
    assert answer["head"].keys() >= {"checkpoint", "round", "path"}
    assert answer["base"]["round"] == 0
    assert Path(answer["base"]["path"]).is_absolute()
    assert 0 <= answer["base"]["pass@1"] <= 1
    assert answer["last_decision"].keys() >= {"round", "verdict", "reasons", "metrics"}
    assert answer["last_decision"]["verdict"] in ("keep", "rollback")
    assert answer["last_decision"]["round"] == 2
    rounds = answer["rounds"]
    assert rounds["kept"] + rounds["carried"] + rounds["rolled_back"] == 2 and rounds["failed"] == 0
    assert answer["corpus"]["completions"] == 32 and answer["corpus"]["bytes"] > 0
    assert answer["disk"]["free_bytes"] > 0 and answer["disk"]["checkpoints_bytes"] > 0


def test_status_for_people(finished: Path, call: Loopctl) -> None:
    result = call("status")
    assert result.code == 3
    for words in ("small", "idle", "pass@1", "T 0.9, top_p 0.95", "ones", "kept ·", "rolled back ·", "32 completions",
                  "all 2 rounds are done"):  # fmt: skip
        assert words in result.out, words
    assert "\x1b" not in result.out


def test_status_before_the_first_run(here: Path, call: Loopctl) -> None:
    result = call("status")
    assert result.code == 3
    assert "no run in" in result.out and "loopctl run" in result.out
    answer = call("status", "--json").json
    assert answer["state"] == "stopped" and answer["run"] == "small" and answer["head"] is None
    one_line(call("rounds"), 1, "start one with `loopctl run`")
    assert not (here / ".loop").exists(), "reading makes nothing"


def test_status_while_a_process_holds_the_run(finished: Path, call: Loopctl) -> None:
    with locked(finished / ".loop"):
        answer = call("status", "--json")
        assert answer.code == 0
        assert answer.json["state"] == "running" and answer.json["pid"] == os.getpid()
        assert call("status", "--check").code == 0
        assert "●" in call("status").out
    assert call("status").code == 3


def test_status_after_the_process_vanished(finished: Path, call: Loopctl) -> None:
    with ledger_of(finished) as ledger:
        ledger.set_run_state(ledger.run().id, "running")
    result = call("status", "--json")
    assert result.code == 3
    assert result.json["state"] == "stopped" and "vanished" in result.json["reason"]


def test_status_check_fails_on_a_failed_run(finished: Path, call: Loopctl) -> None:
    with ledger_of(finished) as ledger:
        ledger.set_run_state(ledger.run().id, "failed", "round 3, training: no")
    assert call("status").code == 3
    result = call("status", "--check")
    assert result.code == 1 and "failed: round 3" in result.err


def test_status_of_a_damaged_store_is_unknown(finished: Path, call: Loopctl) -> None:
    for file in (finished / ".loop").glob("loop.db*"):
        file.unlink()
    (finished / ".loop" / "loop.db").write_text("this is no database, however long it may be" * 50)
    one_line(call("status"), 4, "restore a backup")
    one_line(call("rounds"), 1, "restore a backup")
    result = call("verify", "--json")
    assert result.code == 1 and not result.json["ok"]
    assert "is not an SQLite database" in result.json["findings"][0]["message"]
    assert call("verify").out.startswith("database: ")


def test_status_does_not_need_the_rest_of_the_configuration(finished: Path, call: Loopctl) -> None:
    with (finished / "loop.toml").open("a") as file:
        file.write("\n[engin]\n")
    assert call("status").code == 3
    assert call("run").code == 78


def test_status_is_light(finished: Path) -> None:
    program = (
        "import sys\nfrom loop.cli.main import loopctl, run\ncode = run(['status', *sys.argv[1:]], loopctl, 'loopctl')\n"
        "heavy = ['torch', 'transformers', 'trl', 'datasets', 'numpy', 'pandas', 'pydantic', 'rich', 'sqlite_utils', "
        "'importlib.metadata', 'loop.run.session', 'loop.round', 'loop.grading.grader']\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)\nsys.exit(code)"
    )
    for option in ([], ["--json"]):
        result = finish([sys.executable, "-c", program, *option], finished)
        assert (result.code, result.err.strip()) == (3, "[]")


def test_options_stand_before_and_after_the_command(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Loopctl
) -> None:
    monkeypatch.chdir(tmp_path)
    config = str(finished / "loop.toml")
    for arguments in (
        ("--json", "--config", config, "rounds"),
        ("rounds", "--json", "--config", config),
        ("--config", config, "rounds", "--json"),
        ("--json", "--config", "other.toml", "rounds", "--config", config),
    ):
        assert [row["round"] for row in call(*arguments).json] == [1, 2]
    assert call("--config", config, "config", "check", "--json").json["ok"]
    assert call("config", "--json", "check", f"--config={config}").json["ok"]
    monkeypatch.setenv("LOOP_CONFIG", config)
    assert len(call("rounds", "--json").json) == 2


def test_rounds(finished: Path, call: Loopctl) -> None:
    rows = call("rounds", "--json").json
    for row in rows:
        assert row["state"] in DECIDED
        assert row["verdict"] in ("keep", "rollback") and row["reasons"]
        assert list(row["suites"]) == ["ones", "greedy"], "the one that decides comes first"
        assert row["suites"]["ones"]["decides"] and not row["suites"]["greedy"]["decides"]
        low, high = row["suites"]["ones"]["pass@1_interval"]
        assert 0 <= low <= row["suites"]["ones"]["pass@1"] <= high <= 1
        assert row["num_completions"] == row["num_used"] == 16
        assert row["started_at"].endswith("Z") and row["duration_s"] > 0
    text = call("rounds").out
    assert "base" in text and "▸ ones" in text and "the head is" in text


def test_a_round_stays_one_line_on_a_narrow_terminal(
    finished: Path, call: Loopctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = call("rounds").out.splitlines()
    below = lines[next(at for at, line in enumerate(lines) if line.startswith("─")) + 1 :]
    assert [line.split()[0] for line in below] == ["base", "1", "2", "the"] and max(map(len, lines)) <= 80


def test_round(finished: Path, call: Loopctl) -> None:
    answer = call("round", "2", "--json").json
    assert [stage["stage"] for stage in answer["stages"]] == ["sampling", "training", "evaluating", "deciding"]
    assert all(stage["attempts"][0]["finished_at"] for stage in answer["stages"])
    suite = answer["suites"]["ones"]
    assert suite["decoding"]["temperature"] == 0.9 and suite["split"] == "select"
    for who in ("base", "head", "candidate"):
        assert suite[who]["pass@1"] <= suite[who]["pass@2"]
        assert suite[who]["by_difficulty"].keys() == {"easy", "hard"}
    low, high = suite["gain"]["interval"]
    assert low <= suite["gain"]["gain"] <= high
    assert suite["gain"]["gain"] == pytest.approx(suite["candidate"]["pass@1"] - suite["head"]["pass@1"])
    assert answer["gates"][0]["type"] == "improvement" and answer["gates"][0]["reason"]
    assert answer["training"]["num_used"] == 16 and answer["training"]["loss_first"] >= answer["training"]["loss_last"]
    assert answer["settings"]["sampling"]["temperature"] == 1.2
    text = call("round", "2").out
    for words in ("pass@2", "easy (6)", "greedy", "decision", "saw 16 of 16", "evaluating", "candidate - head"):
        assert words in text, words
    one_line(call("round", "9"), 1, "rounds 1 to 2")
    one_line(call("round", "nine"), 2, "'nine'")


def test_what_each_node_did_in_a_stage(finished: Path, call: Loopctl) -> None:
    did = {"name": "a", "tokens": 4000, "tokens_per_s": 1234.5, "lost": None}
    lost = {"name": "b<br>", "tokens": 0, "tokens_per_s": None, "lost": "its node b was lost"}
    with ledger_of(finished) as book:
        run = book.run()
        assert run
        round = book.begin_round(run.id)
        attempt = book.begin_attempt(round, "sampling", {})
        book.finish_stage(round, "sampling", attempt, {}, next_state="training", selections=[], nodes=[did, lost])
    assert [stage["nodes"] for stage in call("round", "3", "--json").json["stages"]] == [[did, lost]]
    assert "sampling: a: 1,234 tokens/s; b<br>: lost: its node b was lost" in call("round", "3").out
    assert call("verify").code == 0
    assert call("report", "-o", "report.html").code == 0
    assert "sampling on a: 1,234 tokens/s; b&lt;br&gt;: lost: its node b was lost" in Path("report.html").read_text()
    assert "nodes" not in call("round", "2").out


def test_samples(finished: Path, call: Loopctl) -> None:
    answer = call("samples", "--round", "1", "--limit", "3", "--json").json
    assert len(answer) == 3
    for sample in answer:
        assert sample["round"] == 1 and sample["used"] is True and sample["text"]
        assert sample["finish_reason"] in ("eos", "stop", "length") and sample["num_tokens"] > 0
        assert sample["prompt"]["statement"]
    name = answer[0]["prompt"]["name"]
    assert {sample["prompt"]["name"] for sample in call("samples", "--prompt", name, "--json").json} == {name}
    assert call("samples", "--search", "no such words", "--json").json == []
    assert "return" in call("samples", "--search", "RETURN", "--limit", "1").out
    assert call("samples", "--limit", "0").code == 2


def test_samples_show_the_code_that_was_graded(finished: Path, call: Loopctl) -> None:
    plain = call("samples", "--suite", "ones", "--limit", "1000", "--json").json
    answer = call("samples", "--suite", "ones", "--limit", "1000", "--show-code", "--json").json
    assert len(answer) > 24 and "code" not in plain[0]
    assert [{key: value for key, value in sample.items() if key != "code"} for sample in answer] == plain
    for sample in answer:
        name = sample["prompt"]["name"].replace("/", "_").replace("ones", "one")
        assert sample["verdict"] in ("passed", "failed", "error", "no_code") and sample["used"] is None
        assert (sample["code"] is None) == (sample["verdict"] == "no_code")
        if sample["verdict"] == "passed":
            space: dict[str, Any] = {}
            exec(sample["code"], space)
            assert space[name]() == 1
    passed = next(sample for sample in answer if sample["verdict"] == "passed")
    text = call("samples", "--suite", "ones", "--prompt", passed["prompt"]["name"], "--show-code").out
    assert "the program in it: passed" in text and "not selected yet" not in text
    one_line(call("samples", "--suite", "none"), 1, "no suite is called 'none'; the run has ones, greedy\n")


def test_samples_without_a_problem_show_what_extraction_gives(finished: Path, call: Loopctl) -> None:
    (sample,) = call("samples", "--limit", "1", "--show-code", "--json").json
    assert sample["code"].startswith(sample["prompt"]["prefill"].removeprefix("```python\n"))
    assert sample["code"].endswith(sample["text"].partition("```")[0].rstrip("\n")) and sample["verdict"] is None
    assert "the program in it: not graded" in call("samples", "--limit", "1", "--show-code").out


def test_samples_of_prompts_that_have_tests(here: Path) -> None:
    tested = '[collect]\ndata = { type = "accumulate", passed_tests = true }\n[training]'
    change(here, ("per_round = 16", 'source = "tested.jsonl"'), ("[training]", tested))
    rows = [
        {"statement": f"Return one, {n}.", "signature": f"def own_{n}():", "test_list": [f"assert own_{n}() == 1"]}
        for n in range(8)
    ]
    (here / "tested.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert process(here, "run", "--rounds", "1").code == 0
    shown = process(here, "samples", "--show-code", "--json").json
    assert len(shown) == 8
    for sample in shown:
        assert (sample["verdict"] == "passed") == ("return 1" in sample["code"])


def test_samples_of_a_suite_that_has_changed(finished: Path, call: Loopctl) -> None:
    lines = Path("ones.jsonl").read_text().replace("== 1", "== 2", 1)
    Path("ones.jsonl").write_text(lines)
    one_line(
        call("samples", "--suite", "ones", "--show-code"), 1, "suite ones: is not what these answers were graded on"
    )
    assert call("samples", "--suite", "ones").code == 0


def test_export_jsonl(finished: Path, call: Loopctl) -> None:
    assert call("corpus", "export", "--format", "jsonl", "out.jsonl").code == 0
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert len(rows) == 32
    for row in rows:
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
        assert row["messages"][1]["content"].startswith(row["prefill"])
        assert row["round"] in (1, 2) and row["temperature"] == 1.2 and row["used"] is True
    assert not list(Path(".").glob(".*partial")), "nothing half-written stays"
    assert process(finished, "corpus", "export", "--format", "jsonl", "-").out == Path("out.jsonl").read_text()
    assert call("corpus", "export", "--format", "jsonl", "no/such/out.jsonl").code == 1
    assert call("corpus", "export", "--format", "csv", "out.csv").code == 2


def test_export_parquet(finished: Path, call: Loopctl) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    answer = call("corpus", "export", "--format", "parquet", "out.parquet", "--json").json
    assert answer["num_rows"] == 32
    call("corpus", "export", "--format", "jsonl", "out.jsonl")
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    table = parquet.read_table("out.parquet")
    assert table.to_pylist() == [{key: row[key] for key in table.column_names} for row in rows]


def test_verify(finished: Path, call: Loopctl) -> None:
    result = call("verify")
    assert result.code == 0 and result.out.startswith("ok: ")
    answer = call("verify", "--json").json
    assert answer["ok"] and answer["findings"] == [] and answer["checked"]["rounds"] == 2
    with altered(finished) as conn:
        conn.execute("UPDATE completions SET text = text || ' ' WHERE arrival = 3")
    result = call("verify")
    assert result.code == 1 and "was altered" in result.out
    assert call("verify", "--json").json["findings"][0]["kind"] == "completion"


def test_without_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Loopctl) -> None:
    standing_in(tmp_path, monkeypatch)
    for arguments in (("status",), ("run", "--json"), ("rounds",), ("config", "check")):
        one_line(call(*arguments), 78, "loopctl init")
    one_line(call("status", "--config", "there.toml"), 78, "there.toml")


def test_a_reader_that_goes_away(finished: Path) -> None:
    line = f"{sys.executable} -m loop.cli.main samples --limit 1000 | true; echo ${{PIPESTATUS[0]}}"
    result = finish(["bash", "-c", line], finished)
    assert result.err == "" and result.out.strip() in ("0", "141")

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):  # and not rich's own end
        console(Gone()).print("a line")


def test_a_terminal_without_a_width(finished: Path) -> None:
    plain = process(finished, "rounds")
    assert plain.out and process(finished, "rounds", COLUMNS="0").out == plain.out
