"""The report: one page from a run's store, and its figures as files."""

import json
import os
import re
import stat
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from loop.report.page import body, figures, made_visible, render, script_json, visible
from loop.system.files import opened
from tests.support.cli import Loopctl, call, finished, process, write_configuration
from tests.support.report import HOSTILE, experiment, facts_of, run_of_the_tests
from tests.support.waiting import HANG_S

__all__ = ["call", "finished"]


# Text


def test_what_does_not_show_is_shown() -> None:
    assert visible("plain\n\ttext äöü 漢字 🙂") == "plain\n\ttext äöü 漢字 🙂"
    assert visible("a\u202eb\u2066c") == "a[RIGHT-TO-LEFT OVERRIDE]b[LEFT-TO-RIGHT ISOLATE]c"
    assert visible("\x00\x1b[0m\x7f\r\x85") == "␀␛[0m␡␍[U+0085]"
    assert visible("\u200b\ufeff\u2028\ud800\U000e0041") == "[U+200B][U+FEFF][U+2028][U+D800][U+E0041]"
    assert made_visible({"a\u200b": ["\u202e", 1, None]}) == {"a[U+200B]": ["[RIGHT-TO-LEFT OVERRIDE]", 1, None]}


def test_json_cannot_end_its_element() -> None:
    text = script_json({HOSTILE: HOSTILE})
    assert text.isascii() and not set("<>&") & set(text)
    assert json.loads(text) == {HOSTILE: HOSTILE}


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
        drawn = figures(facts)
        assert len(drawn) >= 5
        for figure in drawn:
            assert f'id="figure-{figure.name}"' in page
            assert figure.rows and all(len(row) == len(figure.columns) for row in figure.rows), figure.name
            assert figure.about and "None" not in figure.about


def test_no_figure_without_its_decoding_settings() -> None:
    for figure in figures(run_of_the_tests()):
        if figure.name not in ("loss", "training", "time", "mind"):
            assert "T 0.9, top_p 0.95" in figure.about or "greedy" in figure.about, figure.name


# The commands


def test_report(finished: Path, call: Loopctl) -> None:
    done = call("report")
    assert done.code == 0 and done.out.strip() == str(finished / ".loop" / "report.html")
    page = Path(done.out.strip()).read_text()
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
    done = call("report")
    assert done.code == 1 and "start one with `loopctl run`" in done.err
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
    done = call("plot", "-o", "three.svg", "--figure", "nothing")
    assert done.code == 2 and "pass1, change" in done.err and not Path("three.svg").exists()
    assert call("plot", "-o", "three.pdf").code == 2
    assert call("plot").code == 2


def test_every_figure_can_be_drawn(finished: Path) -> None:
    from loop.cli.report import drawn

    for facts in (facts_of(finished), experiment()):
        for figure in figures(facts):
            assert drawn(figure, ".svg").startswith(b"<svg"), figure.name
