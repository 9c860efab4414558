"""The report: one page from a run's store, clicked through in a real browser, and its figures as files."""

import copy
import functools
import http.server
import json
import os
import random
import re
import shutil
import sqlite3
import stat
import subprocess
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from loop.config.place import Place
from loop.report import charts
from loop.report.facts import run_facts
from loop.report.gains import paired
from loop.report.page import as_json, body, figures, made_visible, render, visible
from loop.system.files import opened
from policies.statistics import paired_gain
from tests.support.browser import Shown, browser, needs_a_browser
from tests.support.cli import Loopctl, call, finished, finished_run, process, write_configuration
from tests.support.waiting import HANG_S

__all__ = ["call", "finished"]
HOSTILE = (
    "</script></pre><script>window.broken = 1</script><img src=x onerror='window.broken = 2'>"
    "<!-- <script> ]]> &lt;b&gt; {{ 7 * 7 }} \u202e desrever \u2066\u2069 \x1b[31mred\x1b[0m \u200b\u2028 \ud800 'quoted\""
)
ARMS = ("replace", "mix")


def facts_of(directory: Path) -> dict[str, Any]:
    return run_facts(Place(directory / "loop.toml", directory / ".loop", "small", 2))


@functools.cache
def run_of_the_tests() -> dict[str, Any]:
    return facts_of(finished_run()[0])


def experiment() -> dict[str, Any]:
    """Facts of an experiment, made up: two arms, three seeds, four rounds."""
    lines: list[dict[str, Any]] = []
    for arm, slope in zip(ARMS, (0.01, 0.02), strict=True):
        for number in range(5):
            change = slope * number
            lines.append(
                {"arm": arm, "round": number, "num_seeds": 3, "pass@1": 0.4 + change, "pass@1_interval": [0.36 + change, 0.44 + change],
                 "pass@k": {"1": 0.4 + change, "4": 0.6}, "change": change, "change_interval": [change - 0.01, change + 0.01],
                 "change_by_seed": [change] * 3, "num_kept": number / 2, "distinct_rate": 0.8 - change, "mean_tokens": 40.0, "spread": 0.3}
            )  # fmt: skip
    words = "mix beats replace at round 4 by 4.0pp, 95% interval 0.4 to 7.6"
    compared = {
        "ours": "mix",
        "theirs": "replace",
        "round": 4,
        "change": 0.04,
        "interval": [0.004, 0.076],
        "level": 0.95,
    }
    return {
        "kind": "experiment", "version": "0", "name": "data", "as_of": "2026-01-01T00:00:00.000000Z", "directory": "/data",
        "arms": [{"name": arm, "overrides": {"collect.data": {"type": arm}}} for arm in ARMS], "seeds": [1, 2, 3], "rounds": 4,
        "suite": "ones", "decoding": {"temperature": 0.7, "top_p": 0.95}, "lines": lines, "comparisons": [compared | {"words": words}],
        "num_comparisons": 1, "correction": "One comparison; nothing to correct.",
        "runs": [{"arm": arm, "seed": seed, "state": "idle", "rounds_done": 4, "rounds": 4, "run_dir": f"data/{arm}/seed-{seed}",
                  "error": None, "reason": None, "spent_s": {"sampling": 3.0, "training": 60.0}} for arm in ARMS for seed in (1, 2, 3)],
        "state": "done", "shared": [{"stage": "sampling", "what": "512 completions", "round": 1, "ran_in": {"arm": "replace", "seed": 1}, "used_by": [{"arm": "mix", "seed": 1}]}],
    }  # fmt: skip


# Text


def test_what_does_not_show_is_shown() -> None:
    assert visible("plain\n\ttext äöü 漢字 🙂") == "plain\n\ttext äöü 漢字 🙂"
    assert visible("a\u202eb\u2066c") == "a[RIGHT-TO-LEFT OVERRIDE]b[LEFT-TO-RIGHT ISOLATE]c"
    assert visible("\x00\x1b[0m\x7f\r\x85") == "␀␛[0m␡␍[U+0085]"
    assert visible("\u200b\ufeff\u2028\ud800\U000e0041") == "[U+200B][U+FEFF][U+2028][U+D800][U+E0041]"
    assert made_visible({"a\u200b": ["\u202e", 1, None]}) == {"a[U+200B]": ["[RIGHT-TO-LEFT OVERRIDE]", 1, None]}


def test_json_cannot_end_its_element() -> None:
    text = as_json({HOSTILE: HOSTILE})
    assert text.isascii() and not set("<>&") & set(text)
    assert json.loads(text) == {HOSTILE: HOSTILE}


# Facts


def test_facts_are_json_and_say_what_the_commands_say() -> None:
    facts = run_of_the_tests()
    json.dumps(facts, allow_nan=False)
    directory = finished_run()[0]
    rounds = process(directory, "rounds", "--json").json
    for ours, theirs in zip(facts["rounds"], rounds, strict=True):
        whole = process(directory, "round", str(theirs["round"]), "--json").json
        for key in ("state", "gates", "training", "suites", "signals", "diagnosis", "duration_s"):
            assert json.loads(json.dumps(ours[key])) == whole[key], key
    assert facts["amounts"][0]["num_completions"] == 16 and facts["amounts"][0]["tokens"]["sampled"] > 0
    assert facts["suites"][0]["decides"] and facts["suites"][0]["decoding_words"] == "T 0.9, top_p 0.95"
    assert [row["made_in"] for row in facts["lineage"]] == [[], [1, 2]], "both rounds came to the same weights"


def test_every_prompt_is_followed_through_the_rounds() -> None:
    facts = run_of_the_tests()
    found = facts["browser"]
    assert found["columns"] == ["base", "round 1", "round 2"]
    assert [group["name"] for group in found["groups"]] == ["ones", "greedy", "training prompts"]
    ones, _, trained = found["groups"]
    assert ones["num_shown"] == ones["num_answers"] == 12 * 2 * 3 and len(ones["prompts"]) == 12
    for prompt in ones["prompts"]:
        assert [answer[:2] for answer in prompt["answers"]] == [[column, n] for column in range(3) for n in range(2)]
        for column, passed, num in prompt["counts"]:
            verdicts = [answer[3] for answer in prompt["answers"] if answer[0] == column]
            assert verdicts.count("passed") == passed and len(verdicts) == num
    samples = process(finished_run()[0], "samples", "--suite", "ones", "--limit", "1000", "--json").json
    texts = {sample["text"] for sample in samples}
    shown = {found["texts"][answer[2]] for prompt in ones["prompts"] for answer in prompt["answers"]}
    assert shown == texts
    assert trained["num_answers"] == 32 and trained["num_shown"] == 32
    assert all(answer[3] == "used" for prompt in trained["prompts"] for answer in prompt["answers"])


def test_the_selection_is_bounded_and_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from loop.report import browser

    directory = finished_run()[0]
    monkeypatch.setattr(browser, "MOST_BYTES", 1500)
    one = facts_of(directory)["browser"]
    assert one == facts_of(directory)["browser"]
    assert one["num_bytes"] < 1500 + 4 * 1000, "a little more than allowed: a prompt is whole"
    ones = one["groups"][0]
    assert 0 < ones["num_shown"] < ones["num_answers"] and len(ones["prompts"]) == 12, "counts are there for all"
    assert f"{ones['num_shown']} of {ones['num_answers']} answers" in body(facts_of(directory))
    moved = [max(rates) - min(rates) for prompt in ones["prompts"] if prompt["answers"]
             for rates in [[passed / num for _, passed, num in prompt["counts"]]]]  # fmt: skip
    assert max(moved) > 0, "those whose outcome changed come first"


def test_long_texts_of_brackets_keep_to_their_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take six times their length in the page; and a prompt takes a text for each round."""
    from loop.report import browser

    directory = tmp_path / "run"
    shutil.copytree(finished_run()[0], directory)
    conn = sqlite3.connect(directory / ".loop" / "loop.db", isolation_level=None)
    for (trigger,) in conn.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
        conn.execute(f'DROP TRIGGER "{trigger}"')
    conn.execute("UPDATE completions SET text = replace(hex(randomblob(4000)), '0', '<')")
    conn.close()
    monkeypatch.setattr(browser, "MOST_BYTES", 20_000)
    found = facts_of(directory)["browser"]
    ones, greedy, _ = found["groups"]
    for group, room in ((ones, 20_000 * 0.6), (greedy, 20_000 * 0.2)):
        shown = {answer[2] for prompt in group["prompts"] for answer in prompt["answers"]}
        assert 0 < sum(len(found["texts"][place]) for place in shown) < 1.1 * room, "one prompt through the rounds"
    assert found["num_bytes"] >= len(as_json(found["texts"])) - 3 * len(found["texts"])


def test_before_the_first_run(tmp_path: Path) -> None:
    path = write_configuration(tmp_path)
    facts = run_facts(Place(path, tmp_path / ".loop", "small", 2))
    page = render(facts)
    assert "no run in" in page and facts["rounds"] == []
    assert not (tmp_path / ".loop").exists(), "reading makes nothing"


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    """Whatever stage it is at, there is a page: stages are taken out of a finished store from the end."""
    directory = tmp_path / "run"
    shutil.copytree(finished_run()[0], directory)
    steps = (
        "DELETE FROM decisions", "UPDATE rounds SET state = 'evaluating', stage = 'evaluating' WHERE number = 2",
        "DELETE FROM stages WHERE name = 'evaluating'", "UPDATE evaluations SET metrics = NULL, finished_at = NULL",
        "DELETE FROM stages WHERE name = 'training'", "UPDATE rounds SET candidate_checkpoint = NULL",
        "DELETE FROM selections", "DELETE FROM stages", "DELETE FROM attempts", "DELETE FROM rounds",
    )  # fmt: skip
    conn = sqlite3.connect(directory / ".loop" / "loop.db", isolation_level=None)
    for (trigger,) in conn.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
        conn.execute(f'DROP TRIGGER "{trigger}"')
    for step in steps:
        conn.execute(step)
        facts = facts_of(directory)
        assert "<h1>small" in render(facts), step
        for figure in figures(facts):
            for panel in figure.panels:
                for layer in panel.get("layer", [panel]):
                    assert {**panel, **layer}["data"]["values"], f"{step}: {figure.name}: vega has no scale for nothing"
    conn.close()


def test_amounts_begin_at_nothing() -> None:
    """An axis of counts or distances does not go on below zero; one of changes does."""
    panels = {figure.name: figure.panels for figure in figures(run_of_the_tests())}
    growth = panels["training"][1]["layer"][0]["encoding"]["y"]["scale"]
    assert growth["domainMin"] == 0
    points = [{"round": n, "who": "mix", "value": 0.1, "low": -0.1, "high": 0.3} for n in (1, 2)]
    assert "domainMin" not in charts.lines(points, "change", zero=True)["layer"][0]["encoding"]["y"]["scale"]


@pytest.mark.parametrize("num_samples", [1, 3, 10])
@pytest.mark.parametrize("num_problems", [1, 14, 15, 16, 64, 201])
def test_fast_intervals_are_those_of_the_policies(num_problems: int, num_samples: int) -> None:
    chance = random.Random(num_problems * num_samples)
    for share in (0.0, 0.02, 0.5):  # of problems that differ
        moved = tuple(
            Fraction(chance.randint(-num_samples, num_samples), num_samples) if chance.random() < share else Fraction(0)
            for _ in range(num_problems)
        )
        assert paired(moved) == paired_gain(moved, 0.975)


# The page


def test_the_page_asks_for_nothing() -> None:
    page = render(run_of_the_tests())
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert not re.search(r"""(?:src|href)=(?!"#|"data:)""", outside)
    assert page.count("<script") == page.count("</script>") == 4
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert "default-src &#39;none&#39;" in policy[1]
    assert "unsafe" not in policy[1] and "connect-src" not in policy[1]
    live = render(run_of_the_tests(), live=True)
    assert "connect-src &#39;self&#39;" in live and "data-live" in live
    assert body(run_of_the_tests()) in live


def test_every_chart_has_its_table() -> None:
    for facts in (run_of_the_tests(), experiment()):
        page = body(facts)
        there = figures(facts)
        assert len(there) >= 5
        for figure in there:
            assert f'id="figure-{figure.name}"' in page
            assert figure.rows and all(len(row) == len(figure.columns) for row in figure.rows), figure.name
            assert figure.about and "None" not in figure.about


def test_no_figure_without_its_decoding_settings() -> None:
    for figure in figures(run_of_the_tests()):
        if figure.name not in ("loss", "training", "time", "mind"):
            assert "T 0.9, top_p 0.95" in figure.about or "greedy" in figure.about, figure.name


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One for all tests of this file: none of them runs an event loop of its own."""
    with browser() as started:
        yield started


def written(tmp_path: Path, facts: dict[str, Any]) -> Path:
    path = tmp_path / "report.html"
    path.write_text(render(facts))
    return path


@needs_a_browser
def test_clicking_through_a_run(chromium: Any, tmp_path: Path) -> None:
    path = written(tmp_path, run_of_the_tests())
    shown = Shown(chromium, path)
    tab = shown.page
    assert tab.locator(".panel svg").count() == tab.locator(".panel").count() > 8
    assert not tab.locator("#round-2 .inside").is_visible()
    tab.click(".rounds a[href='#round-2']")
    assert tab.locator("#round-2 .gates").is_visible()
    reason = run_of_the_tests()["rounds"][1]["gates"][0]["reason"]
    assert reason in tab.inner_text("#round-2 .gates")
    tab.click("#round-2 .gates .quiet summary")
    assert tab.locator("#round-2 .figures").first.is_visible()
    tab.click("#round-2 > summary")
    assert not tab.locator("#round-2 .inside").is_visible()

    tab.fill("#browser input", "ones/7")
    assert tab.locator(".list button").count() == 1
    tab.click(".list button")
    prompt = next(p for p in run_of_the_tests()["browser"]["groups"][0]["prompts"] if p["name"] == "ones/7")
    texts = run_of_the_tests()["browser"]["texts"]
    assert tab.inner_text(".reader h3") == "ones/7"
    for column, label in enumerate(("base", "1", "2")):
        button = tab.locator(".strip button", has=tab.locator("b", has_text=re.compile(f"^{label}$")))
        button.click()
        answers = [answer for answer in prompt["answers"] if answer[0] == column]
        assert tab.locator(".answer").count() == len(answers) == 2
        assert texts[answers[1][2]].strip() in tab.locator(".answer .text").nth(1).text_content()
        assert answers[1][3].replace("_", " ") in tab.locator(".answer p").nth(1).inner_text()
    tab.select_option("#browser select", "training prompts")
    assert "used" in tab.locator(".answer p").first.inner_text()
    tab.fill("#browser input", "no such prompt at all")
    assert "No such prompt" in tab.inner_text(".list")
    tab.hover("#figure-pass1 .panel path[aria-roledescription=point]")
    assert "candidate" in tab.inner_text("#vg-tooltip-element")
    shown.check()


@needs_a_browser
def test_hostile_text_shows_as_text(chromium: Any, tmp_path: Path) -> None:
    """In a completion, a prompt, a problem's name, a verdict's detail, a gate's reason, the run's name, a suite's name."""
    directory = tmp_path / "run"
    shutil.copytree(finished_run()[0], directory)
    stored = HOSTILE.replace("\ud800", "\u241bd800")
    quoted = json.dumps(HOSTILE)[1:-1]
    conn = sqlite3.connect(directory / ".loop" / "loop.db", isolation_level=None)
    conn.execute("PRAGMA foreign_keys = OFF")
    for (trigger,) in conn.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
        conn.execute(f'DROP TRIGGER "{trigger}"')
    conn.execute("UPDATE completions SET text = ? || text", (stored,))
    conn.execute("UPDATE prompts SET statement = ? || statement, name = ? || name", (stored, stored))
    conn.execute("UPDATE problems SET task_id = task_id || ?, difficulty = difficulty || ?", (stored, stored))
    conn.execute("UPDATE verdicts SET detail = ?, task_id = task_id || ?", (stored, stored))
    conn.execute("UPDATE selections SET used = 0, reason = ?", (stored,))
    conn.execute('UPDATE decisions SET gates = replace(gates, \'"reason":"\', ?)', ('"reason":"' + quoted,))
    conn.execute("UPDATE evaluations SET metrics = replace(metrics, '\"easy\"', ?)", (f'"{quoted}"',))
    conn.execute(
        "UPDATE runs SET name = ?, reason = ?, config = replace(config, '\"ones.jsonl\"', ?)",
        (stored, stored, f'"{quoted}"'),
    )
    conn.close()
    path = written(tmp_path, facts_of(directory))
    shown = Shown(chromium, path)
    tab = shown.page
    for number in (1, 2):
        tab.evaluate(f"document.getElementById('round-{number}').open = true")
    for details in tab.locator("details").all():
        details.evaluate("element => { element.open = true; }")
    for option in tab.locator("#browser option").all():
        tab.select_option("#browser select", option.text_content())
        tab.locator(".list button").first.click()
        assert "</script></pre><script>window.broken = 1</script>" in tab.locator(".answer .text").first.text_content()
    text = tab.locator(".answer .text").first.text_content()
    for words in (
        "<img src=x",
        "[RIGHT-TO-LEFT OVERRIDE] desrever",
        "␛[31mred",
        "[U+200B][U+2028]",
        "[U+D800]",
        "{{ 7 * 7 }}",
    ):
        assert words in text, words
    whole = tab.locator("body").inner_text()
    assert "window.broken = 1" in tab.inner_text("h1") and "window.broken = 1" in tab.inner_text("#round-1 .gates")
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b\x1b]", whole)
    assert tab.evaluate("window.broken") is None and tab.locator("img").count() == 0
    shown.check()


@needs_a_browser
def test_a_link_with_an_odd_fragment(chromium: Any, tmp_path: Path) -> None:
    path = written(tmp_path, run_of_the_tests())
    shown = Shown(chromium, path)
    shown.page.goto("about:blank")
    shown.page.goto(f"{path.as_uri()}#%zz")
    assert shown.complaints == []
    shown.page.goto(f"{path.as_uri()}#round-2")
    assert shown.page.locator("#round-2[open]").count() == 1
    shown.page.close()


@needs_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(chromium: Any, tmp_path: Path, scheme: str) -> None:
    path = written(tmp_path, run_of_the_tests())
    shown = Shown(chromium, path, color_scheme=scheme)
    ground, ink = shown.page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, "
        "getComputedStyle(document.querySelector('.panel svg .role-axis-label text')).fill]"
    )
    bright = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ground, ink)]
    assert (bright[0] > 600 and bright[1] < 250) if scheme == "light" else (bright[0] < 150 and bright[1] > 500)
    shown.check()


@needs_a_browser
@pytest.mark.parametrize("facts", [run_of_the_tests, experiment], ids=["run", "experiment"])
def test_on_a_phone(chromium: Any, tmp_path: Path, facts: Any) -> None:
    path = written(tmp_path, facts())
    shown = Shown(chromium, path, viewport={"width": 360, "height": 700}, is_mobile=True, has_touch=True)
    for details in shown.page.locator("details").all():
        details.evaluate("element => { element.open = true; }")
    shown.check()


@needs_a_browser
def test_printed(chromium: Any, tmp_path: Path) -> None:
    path = written(tmp_path, run_of_the_tests())
    shown = Shown(chromium, path, color_scheme="dark")
    printed = shown.page.pdf(format="A4")
    assert printed.startswith(b"%PDF") and len(printed) > 20_000
    shown.page.emulate_media(media="print")
    ground = shown.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(255, 255, 255)", "black on white, whatever the screen has"
    shown.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert shown.page.locator("#numbers-pass1 table").is_visible()
    assert not shown.page.locator("nav").is_visible()
    shown.page.evaluate("dispatchEvent(new Event('afterprint'))")
    shown.check()


@needs_a_browser
def test_an_experiment(chromium: Any, tmp_path: Path) -> None:
    facts = copy.deepcopy(experiment())
    facts["arms"].append({"name": HOSTILE, "overrides": {"x": HOSTILE}})
    path = written(tmp_path, facts)
    shown = Shown(chromium, path)
    text = shown.page.inner_text("main")
    for words in (
        "mix beats replace at round 4 by 4.0pp",
        "3 arms",
        "replace, seed 1",
        'collect.data.type = "mix"',
    ):
        assert words in text, words
    shown.check()


@needs_a_browser
def test_without_scripts_the_numbers_are_there(chromium: Any, tmp_path: Path) -> None:
    path = written(tmp_path, run_of_the_tests())
    context = chromium.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(path.as_uri())
    tab.locator("#numbers-pass1 summary").click()
    assert tab.locator("#numbers-pass1 table").is_visible()
    context.close()


# The commands


def test_report(finished: Path, call: Loopctl) -> None:
    said = call("report")
    assert said.code == 0 and said.out.strip() == str(finished / ".loop" / "report.html")
    page = Path(said.out.strip()).read_text()
    assert page.startswith("<!doctype html>") and "pass@1 by round" in page
    answer = call("report", "-o", "there.html", "--json").json
    assert answer["path"] == str(finished / "there.html") and answer["bytes"] == Path("there.html").stat().st_size
    assert call("report", "-o", "no/such/there.html").code == 1
    for more in ((), ("--json",)):
        piped = process(finished, "report", "-o", "-", *more)
        assert piped.code == 0 and piped.out.startswith("<!doctype html>") and piped.out.endswith("</html>")
    assert not list(Path(".").glob(".*partial"))


def test_what_is_no_file_stays_what_it_is(tmp_path: Path) -> None:
    """`-o /dev/null` by root must not put a file in its place."""
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE)
    with opened(tmp_path / "pipe") as out:
        out.write(b"a page")
    assert reader.communicate(timeout=HANG_S)[0] == b"a page"
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


def test_report_before_the_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Loopctl) -> None:
    monkeypatch.chdir(write_configuration(tmp_path).parent)
    said = call("report")
    assert said.code == 1 and "start one with `loopctl run`" in said.err
    assert not (tmp_path / ".loop").exists()


def test_plot(finished: Path, call: Loopctl) -> None:
    assert call("plot", "-o", "one.svg").code == 0
    root = ElementTree.parse("one.svg").getroot()
    assert root.tag.endswith("svg")
    text = " ".join(root.itertext())
    assert "pass@1 by round" in text and "T 0.9, top_p 0.95" in text
    assert "inconclusive" in text
    answer = call("plot", "-o", "two.png", "--figure", "training", "--json").json
    assert answer["figure"] == "training" and Path("two.png").read_bytes().startswith(b"\x89PNG")
    said = call("plot", "-o", "three.svg", "--figure", "nothing")
    assert said.code == 2 and "pass1, change" in said.err and not Path("three.svg").exists()
    assert call("plot", "-o", "three.pdf").code == 2
    assert call("plot").code == 2


def test_every_figure_can_be_drawn(finished: Path) -> None:
    from loop.cli.report import drawn

    for facts in (facts_of(finished), experiment()):
        for figure in figures(facts):
            assert drawn(figure, ".svg").startswith(b"<svg"), figure.name


def test_a_page_of_many_rounds_reads_each_thing_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No query for a round goes over all rounds: their number grows as the rounds do."""
    from store import db

    asked: list[str] = []
    plain = db.Database.execute
    monkeypatch.setattr(
        db.Database, "execute", lambda self, sql, parameters=(): (asked.append(sql), plain(self, sql, parameters))[1]
    )
    facts_of(finished_run()[0])
    for sql in (
        "FROM evaluations WHERE run_id = ? ORDER BY rowid",
        "FROM decisions WHERE run_id = ? ORDER BY round",
        "FROM rounds WHERE run_id = ? ORDER BY number",
    ):
        assert sum(sql in one for one in asked) <= 3, sql


@needs_a_browser
def test_a_live_page_takes_in_what_is_new(chromium: Any) -> None:
    """What is open stays open, the scroll stays, and when the server is gone the page says so."""
    facts = copy.deepcopy(run_of_the_tests())
    news = threading.Event()
    gone = threading.Event()

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind = "text/event-stream" if self.path == "/events" else "text/html; charset=utf-8"
            self.send_response(503 if gone.is_set() else 200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            if self.path == "/events":
                news.wait(HANG_S)
                self.wfile.write(b"data: 1\n\n")
                self.wfile.flush()
                gone.wait(HANG_S)
            else:
                self.wfile.write((render(facts, live=True) if self.path == "/" else body(facts)).encode())

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        complaints: list[str] = []
        tab = chromium.new_page()
        tab.set_default_timeout(1000 * HANG_S)
        tab.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        tab.goto(f"http://127.0.0.1:{server.server_port}/")
        tab.locator(".panel:not(.drawn)").first.wait_for(state="detached")
        tab.click(".rounds a[href='#round-1']")
        tab.fill("#browser input", "ones/7")
        tab.click(".list button")
        tab.evaluate("scrollTo(0, 900)")
        place = tab.evaluate("scrollY")
        assert place > 0 and not tab.locator("#connection").is_visible()
        facts["name"] = "renamed <b>meanwhile</b>"
        news.set()
        tab.locator("h1", has_text="renamed <b>meanwhile</b>").wait_for()
        assert tab.locator("#round-1 .gates").is_visible()
        assert tab.inner_text(".reader h3") == "ones/7" and tab.input_value("#browser input") == "ones/7"
        tab.locator(".panel:not(.drawn)").first.wait_for(state="detached")
        assert abs(tab.evaluate("scrollY") - place) < 3
        assert complaints == []
        gone.set()
        tab.locator("#connection").wait_for(state="visible")
        tab.close()
    finally:
        news.set()
        gone.set()
        server.shutdown()
        server.server_close()
