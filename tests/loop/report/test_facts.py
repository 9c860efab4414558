"""The facts of a run's page: what the commands say, and a bounded choice of texts."""

import json
from pathlib import Path

import pytest

from loop.config.place import Place
from loop.report import browser, charts
from loop.report.facts import run_facts
from loop.report.page import body, figures, render, script_json
from tests.support.cli import altered, finished, finished_run, process, write_configuration
from tests.support.report import facts_of, run_of_the_tests

__all__ = ["finished"]


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
    chosen = run_of_the_tests()["browser"]
    assert chosen["columns"] == ["base", "round 1", "round 2"]
    assert [group["name"] for group in chosen["groups"]] == ["ones", "greedy", "training prompts"]
    ones, _, trained = chosen["groups"]
    assert ones["num_shown"] == ones["num_answers"] == 12 * 2 * 3 and len(ones["prompts"]) == 12
    for prompt in ones["prompts"]:
        assert [answer[:2] for answer in prompt["answers"]] == [[column, n] for column in range(3) for n in range(2)]
        for column, passed, num in prompt["counts"]:
            verdicts = [answer[3] for answer in prompt["answers"] if answer[0] == column]
            assert verdicts.count("passed") == passed and len(verdicts) == num
    samples = process(finished_run()[0], "samples", "--suite", "ones", "--limit", "1000", "--json").json
    shown = {chosen["texts"][answer[2]] for prompt in ones["prompts"] for answer in prompt["answers"]}
    assert shown == {sample["text"] for sample in samples}
    assert trained["num_answers"] == 32 and trained["num_shown"] == 32
    assert all(answer[3] == "used" for prompt in trained["prompts"] for answer in prompt["answers"])


def test_the_selection_is_bounded_and_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    directory = finished_run()[0]
    monkeypatch.setattr(browser, "MOST_BYTES", 1500)
    chosen = facts_of(directory)["browser"]
    assert chosen == facts_of(directory)["browser"]
    assert chosen["num_bytes"] < 1500 + 4 * 1000, "a little more than allowed: a prompt is whole"
    ones = chosen["groups"][0]
    assert 0 < ones["num_shown"] < ones["num_answers"] and len(ones["prompts"]) == 12, "counts are there for all"
    assert f"{ones['num_shown']} of {ones['num_answers']} answers" in body(facts_of(directory))
    moved = [max(rates) - min(rates) for prompt in ones["prompts"] if prompt["answers"]
             for rates in [[passed / num for _, passed, num in prompt["counts"]]]]  # fmt: skip
    assert max(moved) > 0, "those whose outcome changed come first"


def test_long_texts_of_brackets_keep_to_their_room(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take six times their length in the page; and a prompt takes a text for each round."""
    with altered(finished) as conn:
        conn.execute("UPDATE completions SET text = replace(hex(randomblob(4000)), '0', '<')")
    monkeypatch.setattr(browser, "MOST_BYTES", 20_000)
    chosen = facts_of(finished)["browser"]
    ones, greedy, _ = chosen["groups"]
    for group, room in ((ones, 20_000 * 0.6), (greedy, 20_000 * 0.2)):
        shown = {answer[2] for prompt in group["prompts"] for answer in prompt["answers"]}
        assert 0 < sum(len(chosen["texts"][place]) for place in shown) < 1.1 * room, "one prompt through the rounds"
    assert chosen["num_bytes"] >= len(script_json(chosen["texts"])) - 3 * len(chosen["texts"])


def test_before_the_first_run(tmp_path: Path) -> None:
    path = write_configuration(tmp_path)
    facts = run_facts(Place(path, tmp_path / ".loop", "small", 2))
    page = render(facts)
    assert "no run in" in page and facts["rounds"] == []
    assert not (tmp_path / ".loop").exists(), "reading makes nothing"


def test_a_run_that_has_only_begun(finished: Path) -> None:
    """Whatever stage it is at, there is a page: stages are taken out of a finished store from the end."""
    steps = (
        "DELETE FROM decisions", "UPDATE rounds SET state = 'evaluating', stage = 'evaluating' WHERE number = 2",
        "DELETE FROM stages WHERE name = 'evaluating'", "UPDATE evaluations SET metrics = NULL, finished_at = NULL",
        "DELETE FROM stages WHERE name = 'training'", "UPDATE rounds SET candidate_checkpoint = NULL",
        "DELETE FROM selections", "DELETE FROM stages", "DELETE FROM attempts", "DELETE FROM rounds",
    )  # fmt: skip
    with altered(finished) as conn:
        for step in steps:
            conn.execute(step)
            facts = facts_of(finished)
            assert "<h1>small" in render(facts), step
            for figure in figures(facts):
                layers = [{**panel, **layer} for panel in figure.panels for layer in panel.get("layer", [panel])]
                assert all(layer["data"]["values"] for layer in layers), (
                    step,
                    figure.name,
                    "vega has no scale for nothing",
                )


def test_amounts_begin_at_nothing() -> None:
    """An axis of counts or distances does not go on below zero; one of changes does."""
    panels = {figure.name: figure.panels for figure in figures(run_of_the_tests())}
    growth = panels["training"][1]["layer"][0]["encoding"]["y"]["scale"]
    assert growth["domainMin"] == 0
    points = [{"round": n, "who": "mix", "value": 0.1, "low": -0.1, "high": 0.3} for n in (1, 2)]
    assert "domainMin" not in charts.lines(points, "change", zero=True)["layer"][0]["encoding"]["y"]["scale"]


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
        assert sum(sql in each for each in asked) <= 3, sql
