"""`loopctl compare --results`: what a person reads, what a script reads, and one line for each mistake."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from loop.cli.main import COMMANDS
from loop.judging.formats import READ
from tests.loop.judging.test_formats import GRADES, livecodebench
from tests.support import ROOT, TESTS
from tests.support.browser import Shown, browser, needs_a_browser
from tests.support.cli import Loopctl, one_line, process

HARNESSES = TESTS / "data" / "harnesses"


def results(harness: str, a: str, b: str) -> list[str]:
    return ["compare", "--results", str(HARNESSES / harness / a), str(HARNESSES / harness / b)]


def test_what_a_person_reads(call: Loopctl) -> None:
    said = call(*results("evalplus", "a_eval_results.json", "b_eval_results.json"))
    assert said.code == 0 and said.err == ""
    lines = said.out.splitlines()
    assert lines[0] == "HumanEval (base + extra tests): 12 problems"
    assert lines[1].startswith("  A       pass@1 0.167 [0.065 0.364]   5 samples each, evalplus, ")
    assert lines[3] == "  B - A   +0.183 [+0.067 +0.300] at 95%, paired by problem: B is better"
    assert lines[4] == "  power   a difference of 15.7pp could have been seen (80% of the time)"
    assert lines[5] == "  ties    5 of 12 problems came out the same; B did better on 7, A on 0"
    assert (
        "the curves do not cross up to pass@5; whether they do by pass@64 takes 64 samples of each problem" in said.out
    )
    assert lines[-1] == "one suite, no correction; intervals are over problems"


def test_directories_hold_suites_whose_intervals_hold_together(call: Loopctl) -> None:
    said = call(*results("lm-eval", "a", "b"))
    assert said.code == 0 and said.out.count("at 97.5%, paired by problem") == 2
    assert "Bonferroni over 2 suites: each interval of B - A is at 97.5%" in said.out
    assert "note    compared by exact_match,strict; --metric names another: exact_match,flexible" in said.out


def test_parts_and_curves_that_cross(call: Loopctl) -> None:
    said = call(*results("inspect-ai", "a.eval", "b.eval"))
    assert re.search(
        r"by difficulty +A +B  B - A\n  easy \(4\) .*\n  hard \(8\) .*\n  by month .*\n  2025-01 \(6\)", said.out
    )
    assert "the curves cross: B leads at pass@1, A from pass@3 on, but the intervals do not exclude chance" in said.out


def test_the_same(call: Loopctl) -> None:
    said = call(*results("lighteval", "a", "a"))
    assert "at 95%, paired by problem: all problems came out the same" in said.out and said.code == 0


def test_what_a_script_reads(call: Loopctl) -> None:
    answer = call(*results("lighteval", "a", "b"), "--metric", "avg@n:n=4", "--json").json
    (compared,) = answer["comparisons"]
    assert compared["verdict"] == "B is better" and compared["num_problems"] == 30 and compared["confidence"] == 0.95
    assert compared["a"]["mean"] == 0.5 and compared["b"]["mean"] == 0.675 and compared["a"]["num_samples"] == [4, 4]
    assert [at["k"] for at in compared["at_k"]] == [1, 4] and compared["power"] == 0.8
    assert answer["only_in_a"] == [] and set(answer) == {"comparisons", "correction", "only_in_a", "only_in_b"}


def test_our_own_grades_as_we_print_them(call: Loopctl, tmp_path: Path) -> None:
    """What `loopctl grade --json` printed of real programs."""
    problems, right, wrong = tmp_path / "problems.jsonl", "def one(): return 1", "def one(): return 2"
    rows = [
        {"task_id": f"t/{n}", "text": "Return 1.", "test_list": ["assert one() == 1"], "difficulty": "easy"}
        for n in range(3)
    ]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, programs in (("a", (right, wrong)), ("b", (right, right))):
        answers = [{"task_id": row["task_id"], "completion": programs[row["task_id"] == "t/2"]} for row in rows]
        (tmp_path / "answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
        graded = call("grade", "--problems", str(problems), "--completions", str(tmp_path / "answers.jsonl"), "--json")
        (tmp_path / f"{name}.jsonl").write_text(graded.out)
    said = call("compare", "--results", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"))
    assert said.out.startswith("t (all tests): 3 problems") and said.code == 0
    assert "2 of 3 problems came out the same; B did better on 1, A on 0" in said.out


def test_mistakes_have_one_line(call: Loopctl, tmp_path: Path) -> None:
    one_line(call("compare"), 2, "give two models and --suite, or --results with two files")
    one_line(call("compare", "x", "y", "--results", "a", "b"), 2, "--results compares files; leave models")
    one_line(call("compare", "--results", "a"), 2, "--results", "2 arguments")
    one_line(call("compare", "--results", "nothing", "nothing"), 1, "nothing: no such file or directory")
    one_line(
        call(*results("evalplus", "a_eval_results.json", "printed.json")),
        1,
        "printed.json: is not any of these",
        "EvalPlus",
    )
    one_line(
        call(*results("lm-eval", "a", "b"), "--metric", "bleu"), 1, "--metric: ", "has bleu on one side at most", "acc"
    )
    one_line(call(*results("lm-eval", "a", "b"), "--despite", "everything"), 2, "everything", "decoding")
    for temperature in ("0.2", "0.8"):
        (tmp_path / f"Scenario.codegeneration_2_{temperature}_eval_all.json").write_text(
            json.dumps(livecodebench(GRADES))
        )
    files = sorted(map(str, tmp_path.glob("*.json")))
    one_line(
        call("compare", "--results", *files),
        1,
        "differ in decoding: temperature 0.2 and 0.8",
        "or give --despite decoding",
    )
    said = call("compare", "--results", *files, "--despite", "decoding")
    assert said.code == 0 and "A and B differ in decoding: temperature 0.2 and 0.8" in said.out
    one_line(call("compare", "--results", str(tmp_path), files[0]), 1, "holds LiveCodeBench codegeneration, as ")


HOSTILE = "\x1b[31mred\x1b]0;title\x07\u202e\r\n[bold]"


@pytest.mark.parametrize("as_json", [False, True])
def test_text_from_files_cannot_reach_the_terminal(call: Loopctl, tmp_path: Path, as_json: bool) -> None:
    rows = livecodebench(GRADES)
    for row in rows:
        row["difficulty"] += HOSTILE
        row["question_id"] += HOSTILE
        row["contest_date"] = f"2025-01{HOSTILE}{row['question_id']}"
    places = []
    for name in ("a", "b"):
        directory = tmp_path / name / f"model\x1b[31m\u202e{name}"
        directory.mkdir(parents=True)
        (directory / "Scenario.\x07x_2_0.2_eval_all.json").write_text(json.dumps(rows))
        places.append(str(tmp_path / name))
        rows[0]["question_content"] += name
    said = call("compare", "--results", *places, "--despite", "problems", *(["--json"] if as_json else []))
    refused = call("compare", "--results", *places)
    assert said.code == 0 and refused.code == 1
    for text in (said.out, refused.err):
        assert all(character.isprintable() or character == "\n" for character in text)


def test_names_from_files_cannot_either(call: Loopctl, tmp_path: Path) -> None:
    """Metrics, filters and the keys of settings."""
    (source,) = (HARNESSES / "lm-eval" / "a").glob("samples_toy_sums_*")
    for name, temperature in (("a", 0.2), ("b", 0.8)):
        rows = [json.loads(line) for line in source.read_text().splitlines()]
        for row in rows:
            row["metrics"] = [f"{metric}{HOSTILE}" for metric in ("m", "n")]
            row |= dict.fromkeys(row["metrics"], 1) | {"filter": f"f{HOSTILE}"} | {"doc_id": rows.index(row)}
            row["arguments"]["gen_args_0"]["arg_1"] = {f"temperature{HOSTILE}": temperature, "until": HOSTILE}
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    refused = call("compare", "--results", *files)
    said = call("compare", "--results", *files, "--despite", "decoding")
    assert (refused.code, said.code) == (1, 0)
    for text in (said.out, refused.err):
        assert all(character.isprintable() or character == "\n" for character in text) and "\n[bold]" not in text


def test_the_page(call: Loopctl, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    said = call(*results("inspect-ai", "a.eval", "b.eval"), "--page", str(page))
    text = page.read_text()
    assert said.code == 0 and "toy_sums: no difference can be told" in text and "compared by match" in text
    assert re.findall(r'id="figure-(\w+)"', text) == ["gains", "passk"]
    assert '<td class="n">+0.139</td>' in text and "toy_sums: hard (8)" in text
    one_line(
        call(*results("evalplus", "a_eval_results.json", "b_eval_results.json"), "--page", str(tmp_path)),
        1,
        "is a directory",
    )


@needs_a_browser
def test_the_page_draws_its_figures(call: Loopctl, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert call(*results("inspect-ai", "a.eval", "b.eval"), "--page", str(page)).code == 0
    with browser() as chromium:
        Shown(chromium, page.as_uri()).check()


def test_the_documentation_shows_what_is_printed(call: Loopctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    asked, shown, *_ = re.findall(r"^```\n(.*?)^```$", (ROOT / "docs/comparing.md").read_text(), re.S | re.M)
    assert call(*asked.split()[1:]).out == shown


def test_nothing_heavy_is_imported_at_the_start() -> None:
    assert "compare" in COMMANDS
    code = (
        "import sys, loop.cli.compare; sys.exit(bool({'pyarrow', 'numpy', 'loop.judging', 'rich'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=TESTS.parent).returncode == 0


def test_the_help_names_every_format(call: Loopctl) -> None:
    told = " ".join(call("compare", "--help").out.split())
    for name in re.findall(r"[\w-]+(?:'s?)|`.*?`", READ):
        assert name.strip("'`").removesuffix("'s") in told, name


def test_it_needs_no_configuration(tmp_path: Path) -> None:
    shutil.copy(HARNESSES / "inspect-ai" / "a.eval", tmp_path)
    (tmp_path / "loop.toml").write_text("broken = = 1")
    assert process(tmp_path, "compare", "--results", "a.eval", "a.eval").code == 0
