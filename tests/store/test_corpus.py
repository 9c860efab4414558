"""The corpus: what goes in comes out, once, whole, and for ever."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from store.canonical import canonical_json, escape, sha256_of, unescape
from store.corpus import Corpus, completion_sha256, num_bytes
from store.db import bound, execute, open_database, pack, scalar
from store.errors import Conflict, StoreError
from store.records import CollectedPart, Completion, CompletionText, CompletionVerdict, Prompt, Suite, Verdict
from tests.support.stores import World, prompt

ANY_TEXT = st.text(st.characters(exclude_categories=[]) | st.sampled_from("\0\u241b\ud800\udfff'\"%_\\"))
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | FLOATS | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)
INT64 = st.integers(-(2**63), 2**63 - 1)


@given(ANY_TEXT)
def test_escaping_is_lossless_and_storable(text: str) -> None:
    """What is lossless keeps texts apart, too."""
    stored = escape(text)
    assert unescape(stored) == text and "\0" not in stored and stored.encode().decode() == stored


@given(ANY_JSON)
def test_canonical_json_says_what_it_was_given(value: Any) -> None:
    assert json.loads(canonical_json(value)) == value
    assert canonical_json(json.loads(canonical_json(value))) == canonical_json(value)


def test_canonical_json_does_not_depend_on_order_or_key_type() -> None:
    assert sha256_of({10: 1, 9: (1, 2)}) == sha256_of({"9": [1, 2], "10": 1})
    assert canonical_json({"b": "é", "a": None}) == '{"a":null,"b":"é"}'
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json({"loss": float("nan")})


@settings(max_examples=25)
@given(ANY_JSON, ANY_TEXT)
def test_events_hold_any_value(value: Any, kind: str) -> None:
    world = World()
    event = world.ledger.events.append(world.run.id, kind, 1, None, value=value)
    assert event.data == {"value": value} and world.ledger.events.last() == event


@settings(max_examples=25)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"text": ANY_TEXT, "seed": INT64, "logprob_sum": st.none() | FLOATS},
            optional={"token_ids": st.lists(st.integers(0, 2**40)).map(tuple), "tokenizer_sha256": ANY_TEXT},
        ),
        max_size=5,
    )
)
@example([{"text": "", "seed": 0, "logprob_sum": -0.0}, {"text": "", "seed": 1, "logprob_sum": -3}])
def test_completions_come_back_as_they_went_in(rows: list[dict[str, Any]]) -> None:
    world = World()
    round = world.ledger.begin_round(world.run.id)
    batch = [world.completion(n, **row) for n, row in enumerate(rows)]
    assert world.corpus.add_completions(batch) == len(batch)
    assert world.corpus.add_completions(batch[::-1]) == 0
    stored = list(world.corpus.completions(world.run.id, round.number))
    assert [dataclasses.replace(c, created_at="", sha256="") for c in stored] == batch
    assert all(c.sha256 == completion_sha256(c) and c.created_at for c in stored)
    size = sum(num_bytes(c.text) for c in batch)
    assert (world.now.num_completions, world.now.completion_bytes) == (len(batch), size)
    columns = [f.name for f in dataclasses.fields(Completion)]
    written = world.db.execute(f"SELECT {', '.join(columns)} FROM completions ORDER BY arrival").fetchall()
    assert written == [tuple(bound(pack(plainly_hashed(c)).values())) for c in stored]


def plainly_hashed(completion: Completion) -> Completion:
    """With the hash as its definition has it, whatever shorter way the corpus takes."""
    covered = {k: v for k, v in dataclasses.asdict(completion).items() if k not in ("created_at", "sha256")}
    if completion.logprob_sum is not None:
        covered["logprob_sum"] = float(completion.logprob_sum) + 0.0
    return dataclasses.replace(completion, sha256=sha256_of(covered))


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Completion)])
def test_the_hash_covers_content_and_lineage(world: World, field: str) -> None:
    before = world.completion(0)
    changed = dataclasses.replace(before, **{field: 0.25 if field == "logprob_sum" else "other"})
    assert (completion_sha256(before) != completion_sha256(changed)) == (field not in ("created_at", "sha256"))


def test_an_id_stands_for_one_text(world: World) -> None:
    world.sampled([world.completion(0)])
    with world.refused(Conflict, "with other content"):
        world.corpus.add_completions([world.completion(1), world.completion(0, text="another")])
    with world.refused(Conflict):
        world.corpus.add_completions([world.completion(2), world.completion(2, text="another")])
    assert world.corpus.add_completions([world.completion(3), world.completion(3), world.completion(0)]) == 1
    assert {c.sample_index for c in world.corpus.completions(world.run.id, 1)} == {0}
    assert len(world.corpus.existing_ids(world.run.id, 1)) == 2


@pytest.mark.parametrize(
    "broken",
    [
        {"finish_reason": "tired"}, {"prompt_id": "unknown"}, {"num_tokens": -1}, {"round": 0}, {"seed": 2**63},
        {"text": None}, {"logprob_sum": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_a_batch_is_stored_whole_or_not_at_all(on_disk: World, tmp_path: Path, broken: dict[str, Any]) -> None:
    """Fails if the write is a bare insert_all, which commits chunk by chunk: the row that breaks comes late."""
    on_disk.ledger.begin_round(on_disk.run.id)
    batch = [on_disk.completion(n, **(broken if n == 1499 else {})) for n in range(1600)]
    with on_disk.refused((StoreError, TypeError, ValueError)):
        on_disk.corpus.add_completions(batch)
    reader = open_database(tmp_path / "loop.db", read_only=True)
    assert scalar(reader, "SELECT count(*) FROM completions") == 0
    assert (on_disk.now.num_completions, on_disk.now.completion_bytes) == (0, 0)
    assert on_disk.corpus.add_completions([on_disk.completion(n) for n in range(1600)]) == 1600


def test_reads_stream_in_order_across_pages(world: World) -> None:
    for round in (1, 2):
        world.whole_round("keep", num_completions=1203)
        assert [c.round for c in world.corpus.completions(world.run.id, round)] == [round] * 1203
        used = [row.sample_index * 10 + int(row.seed) % 10 for row in world.corpus.training_rows(world.run.id, round)]
        assert used == [n for n in range(1203) if n != 1]


def test_search_takes_text_literally_and_gives_the_newest_first(world: World) -> None:
    texts = ["100% sure", "100 sure", "a_b", "axb", "back\\slash", "nul\0nul", "half \ud83d", "Ω", "it's"]
    world.sampled(texts)

    def texts_with(text: str, **where: Any) -> list[str]:
        return [c.text for c in world.corpus.search.find(text=text, **where)]

    for text, expected in {
        "0% s": "100% sure", "A_B": "a_b", "k\\s": "back\\slash", "l\0n": "nul\0nul", "\ud83d": "half \ud83d",
        "Ω": "Ω", "'": "it's",
    }.items():  # fmt: skip
        assert texts_with(text) == [expected]
    assert texts_with("sure") == ["100 sure", "100% sure"] and texts_with("' OR 1=1 --") == []
    assert [c.text for c in world.corpus.search.find(limit=2)] == texts[:-3:-1]
    assert texts_with("sure", prompt_id="prompt/1") == ["100 sure"] == texts_with("sure", prompt_id=prompt(1).id)
    assert texts_with("sure", round=2) == [] == texts_with("sure", run_id="another")


def test_prompts_are_known_by_their_content(world: World) -> None:
    again = dataclasses.replace(prompt(0), name="renamed")
    assert world.corpus.add_prompts([again, prompt(10)]) == 1
    assert world.corpus.prompt(again.id) == prompt(0) and world.corpus.prompt("unknown") is None
    with pytest.raises(ValueError, match="not the SHA-256"):
        world.corpus.add_prompts([Prompt("0" * 64, "s", "n", "t", {})])
    assert world.corpus.add_decode_settings({"top_k": 20, "temperature": 1.0}) == world.settings_id
    assert world.corpus.decode_settings(world.settings_id) == {"temperature": 1.0, "top_k": 20}


def test_an_evaluation_from_beginning_to_end(world: World) -> None:
    evaluations = world.corpus.evaluations
    world.ledger.begin_round(world.run.id)
    evaluation = world.evaluation()
    assert world.evaluation(round=2) == evaluation, "beginning again finds it as it was"
    with world.refused(Conflict):
        evaluations.begin(dataclasses.replace(evaluation, seed=8))
    batch = [world.completion(n, id=f"e{n}", evaluation_id=evaluation.id) for n in range(10)]
    assert world.corpus.add_completions(batch) == 10
    assert evaluations.completion_ids(evaluation.id) == {c.id for c in batch}
    assert world.corpus.existing_ids(world.run.id, 1) == set() == set(world.corpus.search.find())
    assert world.now.num_completions == 0, "evaluations are not the corpus"
    assert len(list(world.corpus.completions(world.run.id, evaluation_id=evaluation.id))) == 10

    def verdict(n: int, outcome: Any = "passed") -> Verdict:
        return Verdict(evaluation.id, f"t/{n}", 0, f"e{n}", outcome, "saw \0\ud800", 0.1, "bubblewrap")

    assert evaluations.add_verdicts([verdict(0), verdict(1, "harness_error")]) == 2
    assert evaluations.graded_ids(evaluation.id) == {"e0"}
    assert evaluations.add_verdicts([verdict(0), verdict(1, "failed"), verdict(2)]) == 2
    for bad in (verdict(0, "failed"), dataclasses.replace(verdict(3), completion_id="e4x"), verdict(3, "great")):
        with pytest.raises(StoreError):
            evaluations.add_verdicts([verdict(4), bad])
    with pytest.raises(StoreError, match="not a problem of the suite"):
        evaluations.add_verdicts([verdict(4), dataclasses.replace(verdict(3), task_id="elsewhere")])
    verdicts = [(v.task_id, v.verdict, v.split) for v in evaluations.verdicts(evaluation.id)]
    assert verdicts == [("t/0", "passed", "select"), ("t/1", "failed", "confirm"), ("t/2", "passed", "select")]
    done = evaluations.finish(evaluation.id, {"pass@1": 0.5})
    assert done.metrics == {"pass@1": 0.5} and done.finished_at and world.evaluation() == done
    with world.refused():
        evaluations.finish(evaluation.id, {"pass@1": 0.5})
    last = world.ledger.events.last()
    assert last and last.kind == "evaluation_finished"
    assert evaluations.all(world.run.id, world.run.base_checkpoint) == [done]
    assert evaluations.all(world.run.id, "another") == []


def test_a_suite_is_a_yardstick(world: World) -> None:
    suite = world.suite()
    assert world.suite() == suite
    evaluations, other = world.corpus.evaluations, Suite("6" * 64, "other", "file", "chat", 1)
    problems = evaluations.problems(suite.sha256)
    assert [(p.task_id, p.split) for p in problems[:3]] == [("t/0", "select"), ("t/1", "confirm"), ("t/2", "select")]
    with pytest.raises(Conflict):
        evaluations.add_suite(suite, [dataclasses.replace(p, payload={"easier": True}) for p in problems])
    with pytest.raises(ValueError, match="has 9 problems, not 10"):
        evaluations.add_suite(suite, problems[1:])
    with pytest.raises(StoreError):
        evaluations.add_suite(other, [dataclasses.replace(problems[0], suite_sha256="6" * 64, prompt_id="unknown")])
    assert scalar(world.db, "SELECT count(*) FROM suites") == 1


def test_a_reader_can_use_every_read(on_disk: World, tmp_path: Path) -> None:
    on_disk.whole_round()
    corpus = Corpus(open_database(tmp_path / "loop.db", read_only=True))
    assert len(corpus.search.find(text="return")) == len(list(corpus.completions(on_disk.run.id, 1))) == 3
    with pytest.raises(StoreError, match="readonly|query_only|cannot be opened or written"):
        corpus.add_decode_settings({})


def test_bare_texts_and_how_completions_do_on_their_prompts_tests(world: World) -> None:
    world.whole_round(num_completions=3)
    corpus, run = world.corpus, world.run.id
    rows = list(corpus.completions(run, 1))
    assert list(corpus.texts(run, 1)) == [
        CompletionText(row.id, row.prompt_id, row.sample_index, row.num_tokens, row.text, arrival)
        for arrival, row in enumerate(rows, start=1)
    ]
    assert list(corpus.texts(run, 2)) == [] and corpus.texts_at([]) == {}
    assert corpus.texts_at([2, 99]) == {2: rows[1].text}
    passed = CompletionVerdict(rows[0].id, "passed", "", 0.1, "bubblewrap")
    failed = CompletionVerdict(rows[2].id, "timeout", "not finished after 5 s", 5.0, "bubblewrap")
    assert corpus.add_test_results([passed, failed]) == 2
    assert corpus.add_test_results([dataclasses.replace(passed, verdict="failed")]) == 0, "the first stands"
    ids = [row.id for row in rows]
    assert corpus.test_verdicts([*ids, "unknown"]) == {rows[0].id: "passed", rows[2].id: "timeout"}
    assert corpus.test_verdicts(ids[1:2]) == {}
    with pytest.raises(StoreError):
        corpus.add_test_results([dataclasses.replace(passed, completion_id="unknown")])


def test_what_was_collected_of_a_round_is_stored_once(world: World) -> None:
    world.whole_round()
    corpus, run, rule = world.corpus, world.run.id, {"version": 1}
    parts = [CollectedPart(run, 1, rule, part, bytes([part]) * 96 * part, {"empty": part}) for part in range(16)]
    corpus.add_collected(parts)
    corpus.add_collected([dataclasses.replace(parts[3], entries=b"")])
    assert corpus.collected(run, 1, rule) == [(96 * part, {"empty": part}) for part in range(16)]
    assert corpus.collected(run, 1, {"version": 2}) == corpus.collected(run, 2, rule) == []
    assert corpus.collected_entries(run, 1, rule, 3) == parts[3].entries
    with pytest.raises(StoreError, match="append-only"):
        execute(world.db, "UPDATE collected SET entries = x'00'")
