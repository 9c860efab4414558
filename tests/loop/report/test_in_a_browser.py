"""The report's page, clicked through in a real browser."""

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loop.report.page import render
from tests.support.browser import Shown, Tab, browser, needs_a_browser
from tests.support.cli import altered, finished
from tests.support.report import HOSTILE, experiment, facts_of, run_of_the_tests

__all__ = ["finished"]
pytestmark = needs_a_browser
Show = Callable[..., Shown]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser for all tests of this file: none of them runs an event loop of its own."""
    with browser() as started:
        yield started


@pytest.fixture
def show(chromium: Any, tmp_path: Path) -> Show:
    """Opens the page of these facts from disk."""

    def show(facts: Any, **options: Any) -> Shown:
        path = tmp_path / "report.html"
        path.write_text(render(facts))
        return Shown(chromium, path.as_uri(), **options)

    return show


def test_clicking_through_a_run(show: Show) -> None:
    shown = show(run_of_the_tests())
    tab = shown.page
    assert tab.locator(".panel svg").count() == tab.locator(".panel").count() > 8
    assert not tab.locator("#round-2 .inside").is_visible()
    tab.click(".rounds a[href='#round-2']")
    tab.locator("#round-2 .gates").wait_for(state="visible")  # the page follows a link when the browser tells it to
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


def test_hostile_text_shows_as_text(show: Show, finished: Path) -> None:
    """In a completion, a prompt, a problem's name, a verdict's detail, a gate's reason, the run's name, a suite's name."""
    stored = HOSTILE.replace("\ud800", "\u241bd800")
    quoted = json.dumps(HOSTILE)[1:-1]
    with altered(finished) as conn:
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
    shown = show(facts_of(finished))
    tab = shown.page
    shown.open_all()
    for option in tab.locator("#browser option").all():
        tab.select_option("#browser select", option.text_content())
        tab.locator(".list button").first.click()
        assert "</script></pre><script>window.broken = 1</script>" in tab.locator(".answer .text").first.text_content()
    text = tab.locator(".answer .text").first.text_content()
    odd = ("[RIGHT-TO-LEFT OVERRIDE] desrever", "␛[31mred", "[U+200B][U+2028]", "[U+D800]")
    for words in ("<img src=x", *odd, "{{ 7 * 7 }}"):
        assert words in text, words
    whole = tab.locator("body").inner_text()
    assert "window.broken = 1" in tab.inner_text("h1") and "window.broken = 1" in tab.inner_text("#round-1 .gates")
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b\x1b]", whole)
    assert tab.evaluate("window.broken") is None and tab.locator("img").count() == 0
    shown.check()


def test_a_link_with_an_odd_fragment(show: Show) -> None:
    shown = show(run_of_the_tests())
    shown.page.goto("about:blank")
    shown.page.goto(f"{shown.url}#%zz")
    assert shown.complaints == []
    shown.page.goto(f"{shown.url}#round-2")
    assert shown.page.locator("#round-2[open]").count() == 1
    shown.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(show: Show, scheme: str) -> None:
    shown = show(run_of_the_tests(), color_scheme=scheme)
    ground, ink = shown.page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, "
        "getComputedStyle(document.querySelector('.panel svg .role-axis-label text')).fill]"
    )
    bright = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ground, ink)]
    assert (bright[0] > 600 and bright[1] < 250) if scheme == "light" else (bright[0] < 150 and bright[1] > 500)
    shown.check()


@pytest.mark.parametrize("facts", [run_of_the_tests, experiment], ids=["run", "experiment"])
def test_on_a_phone(show: Show, facts: Any) -> None:
    shown = show(facts(), viewport={"width": 360, "height": 700}, is_mobile=True, has_touch=True)
    shown.open_all()
    shown.check()


def test_printed(show: Show) -> None:
    shown = show(run_of_the_tests(), color_scheme="dark")
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


def test_an_experiment(show: Show) -> None:
    facts = copy.deepcopy(experiment())
    facts["arms"].append({"name": HOSTILE, "overrides": {"x": HOSTILE}})
    shown = show(facts)
    text = shown.page.inner_text("main")
    beats = "mix beats replace at round 4 by 4.0pp"
    for words in (beats, "3 arms", "replace, seed 1", 'collect.data.type = "mix"'):
        assert words in text, words
    shown.check()


def test_without_scripts_the_numbers_are_there(show: Show, chromium: Any) -> None:
    tab = Tab(chromium, show(run_of_the_tests()).url, java_script_enabled=False).page
    tab.locator("#numbers-pass1 summary").click()
    assert tab.locator("#numbers-pass1 table").is_visible()
    tab.close()
