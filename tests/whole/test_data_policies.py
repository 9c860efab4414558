"""Data policies and changes after rollbacks in whole rounds: what was trained on, why the rest was not, and what is recorded."""

from __future__ import annotations

import json
import sqlite3
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.config.loading import load_config
from loop.config.same_run import config_sha256, differences, resolved, with_stored_gates
from loop.errors import ConfigError
from loop.grading.grader import Job, Verdict
from loop.grading.problem import Problem
from loop.inputs import read_inputs
from loop.reading.reader import reader
from loop.reading.replaying import replay
from loop.reading.rounds import whole_round
from loop.round import run_round
from loop.run.adapting import frozen_input, settings_of
from loop.run.choosing import past_rounds
from loop.run.opening import open_session
from loop.run.session import Session
from loop.stages.sampling import Lineage, plan, seed_of
from policies.data import Accumulate
from policies.gates import Collapse, Improvement
from store.db import open_database, query
from store.records import DECIDED, Prompt, StageName
from store.verify import verify_store
from tests.support import ROOT, TESTS
from tests.support.runs import CONFIG, KEEPING, Quiet, drive, dump, finish, write_run

GREEDY = CONFIG[CONFIG.index('[[suites]]\nname = "ones-greedy"') : CONFIG.index("[decide]")]
CONFIG, KEEPING = CONFIG.replace(GREEDY, ""), KEEPING.replace(GREEDY, "")
ROLLED_BACK = CONFIG.replace(
    'suite = "ones"', 'suite = "ones"\ngates = [{ type = "improvement", min_gain = 0.9, target_gain = 0.95 }]'
)
KILLED = -9


def with_data(config: str, data: str, more: str = "") -> str:
    """A configuration with this data policy."""
    return config.replace("[training]", f"[collect]\ndata = {data}\n{more}[training]", 1)


graded: list[str] = []  # the prompts whose tests were run


@contextmanager
def running(directory: Path, config: str) -> Iterator[Session]:
    """A run that has not begun a round."""
    with open_session(load_config(write_run(directory, config)), Quiet()) as session:
        grade, run_it = session.grader.grade, session.grader._graded

        def counted(jobs: Iterable[Job]) -> Iterator[Job]:
            for job in jobs:
                if not job.problem.task_id.startswith("ones/"):
                    graded.append(job.problem.task_id)
                yield job

        def glance(problem: Problem, code: str | None, pool: Any) -> Verdict:
            """The suite by a glance at the code, which is quick; the tests of prompts for real."""
            if not problem.task_id.startswith("ones/"):
                return run_it(problem, code, pool)
            word = "passed" if "return 1" in (code or "") else "failed"
            return Verdict.model_validate({"verdict": word, "detail": "", "duration_s": 0.0, "sandbox": "none"})

        session.grader.grade = lambda jobs, ahead=None: grade(counted(jobs), ahead)  # type: ignore[method-assign]
        session.grader._graded = glance  # type: ignore[method-assign]
        yield session
        assert verify_store(session.ledger.db, session.loaded.run_dir).findings == []


def golden(schema: int, directory: Path, num_rounds: int = 2) -> Path:
    """The loop.toml of a run that an older version began, with this many rounds to do in all."""
    with tarfile.open(TESTS / "golden" / f"schema-{schema}.tar.gz") as archive:
        archive.extractall(directory, filter="data")
    path = directory / "loop.toml"
    path.write_text(path.read_text().replace("rounds = 2", f"rounds = {num_rounds}"))
    return path


def rounds_of_rows(session: Session, number: int) -> Counter[int]:
    """How many training rows of a round come from which round."""
    return Counter(row.round for row in session.corpus.training_rows(session.run_id, number))


def stage(session: Session, number: int, stage: StageName) -> Any:
    """What the ledger holds of a stage of a round."""
    return session.ledger.stage(session.run_id, number, stage)


@pytest.mark.parametrize(
    "config", [KEEPING, pytest.param(ROLLED_BACK, marks=pytest.mark.slow)], ids=["kept", "rolled back"]
)
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ('{ type = "replace" }', [{1: 10}, {2: 10}, {3: 10}]),
        ('{ type = "accumulate" }', [{1: 10}, {1: 10, 2: 10}, {1: 10, 2: 10, 3: 10}]),
        ('{ type = "window", rounds = 2 }', [{1: 10}, {1: 10, 2: 10}, {2: 10, 3: 10}]),
        ('{ type = "mix", base = 0.25 }', [{1: 10}, {1: 3, 2: 10}, None]),
        ('{ type = "pool", size = 12 }', [{1: 10}, None, None]),
    ],
)
def test_what_each_policy_trains_on(tmp_path: Path, config: str, data: str, expected: list[Any]) -> None:
    with running(tmp_path, with_data(config, data)) as session:
        for number, wanted in enumerate(expected, start=1):
            assert run_round(session).state == ("kept" if config == KEEPING else "rolled_back")
            rows = rounds_of_rows(session, number)
            assert wanted is None or rows == wanted
            assert stage(session, number, "training").input["num_rows"] == rows.total()
            selections = list(session.corpus.selections(session.run_id, number))
            fresh = session.corpus.existing_ids(session.run_id, number)
            assert fresh <= {each.completion_id for each in selections}
            assert all(each.used or each.completion_id in fresh for each in selections)
            assert all((each.reason is None) == each.used for each in selections)
            assert [each.position for each in selections] == list(range(len(selections)))
            output = stage(session, number, "sampling").output
            assert output["num_used"] == rows.total()
            assert output.get("num_earlier", 0) == rows.total() - rows[number]
            assert {each.completion_id for each in selections if each.arrival is None} == fresh
            counts = session.corpus.selection_counts(session.run_id, number)
            assert sum(row["num"] for row in counts if row["used"]) == rows.total()
        if "mix" in data:  # rolled back: the base wrote round 2's as well, but no head since then did
            assert rows[3] == 10 and rows.total() == 13 and (config == ROLLED_BACK or rows[2] == 0)
        if "pool" in data:
            assert rows.total() == 12 and len(rows) > 1


@pytest.mark.slow
@pytest.mark.parametrize("place", ["before finish_stage", "after add_completions", "before add_completions"])
def test_a_kill_changes_nothing(tmp_path: Path, place: str) -> None:
    config = with_data(KEEPING, '{ type = "pool", size = 8, dedup = "exact" }').replace("per_round = 10", "limit = 8")
    config = config.replace("top_k = 20", "top_k = 20\nnum_samples = 3")
    whole, broken = write_run(tmp_path / "whole", config), write_run(tmp_path / "broken", config)
    for count in (1, 5):
        assert drive(broken, place, count) in (0, KILLED)
    assert dump(finish(whole)) == dump(finish(broken))


def test_duplicates_are_named_and_the_newest_stays(tmp_path: Path) -> None:
    config = with_data(KEEPING, '{ type = "accumulate", dedup = "exact" }').replace("per_round = 10", "limit = 5")
    with running(tmp_path, config.replace("top_k = 20", "top_k = 20\nnum_samples = 4")) as session:
        run_round(session)
        run_round(session)
        rows = list(session.corpus.training_rows(session.run_id, 2))
        assert len({(row.prompt_id, row.text) for row in rows}) == len(rows)
        fresh = {(row.prompt_id, row.text) for row in session.corpus.completions(session.run_id, 2)}
        assert {(row.prompt_id, row.text) for row in rows if row.round == 2} == fresh
        reasons = {each.reason for each in session.corpus.selections(session.run_id, 2) if not each.used}
        assert reasons and all(reason.startswith("repeats another completion of its prompt (") for reason in reasons)
        left_out = stage(session, 2, "sampling").output["earlier_left_out"]
        assert set(left_out) == {"repeats another completion of its prompt"}


def test_heads_that_were_given_up_are_no_part_of_the_lineage(tmp_path: Path) -> None:
    with running(tmp_path, with_data(KEEPING, '{ type = "accumulate" }')) as session:
        for _ in range(3):
            assert run_round(session).state == "kept"
        session.ledger.move_head(session.run_id, 1, "the later ones look bad")
        round = run_round(session)
        assert [past.number for past in past_rounds(session, round)] == [1, 2]  # 3 was drawn from what round 2 gave
        assert rounds_of_rows(session, 4) == {1: 10, 2: 10, 4: 10}


def write_prompts(directory: Path) -> None:
    """Six prompts with tests in three formats, and two without."""
    directory.mkdir(parents=True, exist_ok=True)
    live = {"input": "5", "output": "1", "testtype": "functional"}
    rows: list[dict[str, Any]] = [
        *({"id": f"own/{n}", "statement": f"Return one, {n}.", "signature": f"def own_{n}():",
           "test_list": [f"assert own_{n}() == 1"]} for n in range(4)),
        {"id": "he/0", "statement": "Return one.", "signature": "def he():", "entry_point": "he",
         "test": "def check(candidate):\n    assert candidate() == 1\n"},
        {"id": "lcb/0", "statement": "Return one.", "signature": "def lcb(x):", "public_test_cases": [live],
         "metadata": {"func_name": "lcb"}},
        *({"id": f"bare/{n}", "statement": f"Return a number {n}.", "signature": f"def bare_{n}():"} for n in (0, 1)),
    ]  # fmt: skip
    (directory / "tested.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def asking_for_tests(without: str) -> str:
    data = f'{{ type = "accumulate", passed_tests = true, without_tests = "{without}" }}'
    config = with_data(KEEPING, data).replace("per_round = 10", 'source = "tested.jsonl"')
    return config.replace("top_k = 20", "top_k = 20\nnum_samples = 4")


@pytest.mark.parametrize("without", ["keep", "drop"])
def test_only_what_passes_its_tests_in_the_sandbox(tmp_path: Path, without: str) -> None:
    write_prompts(tmp_path)
    with running(tmp_path, asking_for_tests(without)) as session:
        for number in (1, 2):
            graded.clear()
            assert run_round(session).state == "kept"
            assert len(graded) == 24, "what is known is not run again"
            names = {prompt.id: prompt.name for prompt in session.prompts}
            used = {row.id for row in session.corpus.training_rows(session.run_id, number)}
            for row in session.corpus.completions(session.run_id, number):
                has_tests = not names[row.prompt_id].startswith("bare/")
                assert (row.id in used) == ("return 1" in row.text if has_tests else without == "keep")
        reasons = {each.reason for each in session.corpus.selections(session.run_id, 1)}
        assert "did not pass its prompt's tests (failed)" in reasons
        assert ("its prompt has no tests" in reasons) == (without == "drop")


def test_tests_are_asked_for_before_anything_is_loaded(tmp_path: Path) -> None:
    path = write_run(tmp_path, with_data(CONFIG, '{ type = "replace", passed_tests = true }'))
    with pytest.raises(ConfigError) as caught:
        read_inputs(load_config(path), fetch=False)
    assert str(caught.value).endswith(
        'prompts.source: no row of "starter" has tests, and passed_tests asks for them; give rows with test_list, test, '
        "public_test_cases or private_test_cases, or leave passed_tests out"
    )
    write_prompts(tmp_path)
    with (tmp_path / "tested.jsonl").open("a") as file:
        file.write(json.dumps({"statement": "Odd.", "test_list": ["one() == 1"]}) + "\n")
    path.write_text(asking_for_tests("keep"))
    with pytest.raises(ConfigError, match=r"tested\.jsonl:9: test 1 of test_list asserts nothing"):
        read_inputs(load_config(path), fetch=False)


def test_another_set_of_tests_is_another_run(tmp_path: Path) -> None:
    write_prompts(tmp_path)
    with running(tmp_path, asking_for_tests("keep")):
        pass
    rows = (tmp_path / "tested.jsonl").read_text()
    (tmp_path / "tested.jsonl").write_text(rows.replace("own_0() == 1", "own_0() == 2"))
    changed = "the tests of the prompts of tested.jsonl are not those that the run began with"
    with pytest.raises(ConfigError, match=changed), running(tmp_path, asking_for_tests("keep")):
        pass


# After a rollback

CHANGING = """[after_rollback]
learning_rate_factor = 0.5
temperatures = [1.1, 0.9]
data = { type = "mix", earlier = 0.5 }
"""


def used_settings(session: Session, number: int) -> tuple[float, float, str]:
    sampling, training = (stage(session, number, name).input for name in ("sampling", "training"))
    return sampling["decoding"]["temperature"], training["settings"]["learning_rate"], sampling["data"]["type"]


def test_a_round_says_what_it_changed_and_the_report_shows_what_it_used(tmp_path: Path) -> None:
    with running(tmp_path, ROLLED_BACK + CHANGING) as session:
        for _ in range(3):
            assert run_round(session).state == "rolled_back"
        assert used_settings(session, 1) == (1.2, 5e-6, "replace")
        assert used_settings(session, 2) == (1.1, 2.5e-6, "mix")
        assert used_settings(session, 3) == (0.9, 1.25e-6, "mix")
        assert rounds_of_rows(session, 2) == {1: 10, 2: 10} and rounds_of_rows(session, 3).total() == 20
        temperatures = [
            session.corpus.decode_settings(row.decode_settings_id)["temperature"]
            for number in (1, 2, 3)
            for row in session.corpus.completions(session.run_id, number)
        ]
        assert Counter(temperatures) == {1.2: 10, 1.1: 10, 0.9: 10}
    with reader(tmp_path / ".loop") as store:
        assert whole_round(store, 1).adapted is None
        answer = whole_round(store, 3)
        assert answer.adapted == (
            "after 2 rollbacks in a row: temperature 1.2 -> 0.9, learning_rate 5e-06 -> 1.25e-06, "
            "min_learning_rate 1e-06 -> 2.5e-07, data replace -> mix (earlier 0.5)"
        )
        assert answer.settings["sampling"]["temperature"] == 0.9
        assert answer.settings["training"]["learning_rate"] == 1.25e-6
        assert answer.settings["collect"]["data"]["type"] == "mix"
        assert answer.training.num_earlier == 10


def test_a_keep_takes_it_back(tmp_path: Path) -> None:
    with running(tmp_path, KEEPING + CHANGING) as session:
        assert run_round(session).state == "kept"
        assert used_settings(session, 1) == (1.2, 5e-6, "replace")
        assert run_round(session).state == "kept"
        assert used_settings(session, 2) == (1.2, 5e-6, "replace")
    with running(tmp_path / "other", ROLLED_BACK + CHANGING) as session:
        round = run_round(session)
        assert settings_of(session, round)[1] is not None


@given(st.integers(0, 2**63 - 1), st.integers(1, 10**6), st.integers(1, 10**6), st.integers(0, 3))
def test_no_two_rounds_share_a_seed(seed: int, round: int, other: int, index: int) -> None:
    prompt = Prompt("p", "", "", "", {})
    lineages = [Lineage("run", number, "the same head", None, "settings") for number in (round, other)]
    [first, second] = [plan(lineage, [prompt], index + 1, seed)[index] for lineage in lineages]
    assert (first.seed == second.seed) == (round == other) == (first.id == second.id)
    assert (seed_of(seed, "training", round) == seed_of(seed, "training", other)) == (round == other)


def test_a_rollback_is_not_followed_by_the_identical_round(tmp_path: Path) -> None:
    """All prompts in every round, and settings that stay: what is drawn is another all the same."""
    config = ROLLED_BACK.replace("per_round = 10", "limit = 40")
    with running(tmp_path, config) as session:
        for _ in range(3):
            assert run_round(session).state == "rolled_back"
        inputs = [stage(session, number, "training").input for number in (1, 2, 3)]
        assert len({training["rows_sha256"] for training in inputs}) == 3
        assert len({training["settings"]["seed"] for training in inputs}) == 3


def test_where_nothing_is_left_to_be_drawn_the_round_fails_instead_of_going_in_circles(tmp_path: Path) -> None:
    """The fake model knows all after round 1, so it always writes the same: as a real one does with top_k = 1."""
    config = KEEPING.replace("per_round = 10", "limit = 6").replace("num_steps = 20", "num_steps = 100")
    with running(tmp_path, config) as session:
        assert [run_round(session).state for _ in range(3)] == ["kept", "rolled_back", "failed"]
        last = session.ledger.last_round(session.run_id)
        assert last.error.startswith("training would repeat round 2, which was not kept: ")
        assert "higher sampling.temperature" in last.error and last.stage == "training"
    with running(tmp_path / "changing", config + "[after_rollback]\nlearning_rate_factor = 0.5\n") as session:
        assert [run_round(session).state for _ in range(3)] == ["kept", "rolled_back", "rolled_back"]


# Runs that an older version began


def test_a_run_without_the_new_keys_is_the_same_run() -> None:
    config = load_config(ROOT / "loop.toml").config
    old = json.loads(json.dumps(resolved(config)))
    del old["collect"]["data"], old["after_rollback"]
    assert differences(old, resolved(config)) == []
    changed = config.model_copy(update={"collect": config.collect.model_copy(update={"data": Accumulate()})})
    assert differences(old, resolved(changed))[0] == (
        'collect.data.type is "accumulate" here and "replace" in the run directory'
    )
    assert config_sha256(changed) != config_sha256(config)
    assert resolved(config)["collect"]["data"]["type"] == "replace"


@pytest.mark.parametrize("schema", [1, 2])
def test_a_run_that_an_older_version_began_decides_as_it_did(schema: int, tmp_path: Path) -> None:
    """Its gates knew a confidence for each round and no budget of the run; what loop.toml sets is still compared."""
    path = golden(schema, tmp_path)
    open_database(tmp_path / ".loop" / "loop.db").close()  # and carried forward
    with reader(tmp_path / ".loop") as store:
        settings = {key: value for key, value in store.run.config.items() if key != "inputs"}
    assert "after_rollback" not in settings and "data" not in settings["collect"]
    config = load_config(path).config
    (gate,) = with_stored_gates(config, settings).decide.policy().gates
    assert isinstance(gate, Improvement) and (gate.budget, gate.alpha, gate.min_gain) == ("round", 0.05, -0.9)
    assert differences(settings, resolved(with_stored_gates(config, settings))) == []
    path.write_text(path.read_text().replace("min_gain = -0.9", 'min_gain = -0.9, budget = "run"'))
    changed = with_stored_gates(load_config(path).config, settings)
    assert differences(settings, resolved(changed)) == [
        'decide.gates[0].budget is "run" here and "round" in the run directory'
    ]


def test_a_run_that_an_older_version_began_goes_on(tmp_path: Path) -> None:
    with open_session(load_config(golden(2, tmp_path, 3)), Quiet()) as session:
        assert run_round(session).state == "kept"
        decisions = session.ledger.decisions(session.run_id)
        assert decisions[-1].policy["gates"][0]["budget"] == "round"
        again = replay(decisions, session.policy)
        assert [row["stored"]["identical"] for row in again["rounds"]] == [None, None, True]
        assert "cannot build its policy" in again["rounds"][0]["stored"]["problem"]
        assert verify_store(session.ledger.db, tmp_path / ".loop").findings == []


def test_a_store_that_lacks_what_was_collected_is_given_it(tmp_path: Path) -> None:
    """Its rounds are read once more, by the first who asks; what is chosen does not depend on that."""
    with open_session(load_config(golden(3, tmp_path, 4)), Quiet()) as session:
        read: list[int] = []
        texts = session.corpus.texts
        session.corpus.texts = lambda run, round: read.append(round) or texts(run, round)  # type: ignore[method-assign]
        for number, expected in ((3, [3, 1, 2]), (4, [4, 3])):
            read.clear()
            assert run_round(session).state in DECIDED
            assert read == expected
            rows = list(session.corpus.training_rows(session.run_id, number))
            assert {row.round for row in rows} == set(range(1, number + 1))
            assert len({(row.prompt_id, row.text) for row in rows}) == len(rows)
        assert verify_store(session.ledger.db, tmp_path / ".loop").findings == []


def test_what_older_versions_listed_one_by_one_is_read_beside_what_comes_many_to_a_line(tmp_path: Path) -> None:
    path = golden(4, tmp_path, 3)
    with sqlite3.connect(tmp_path / ".loop" / "loop.db") as store:
        listed = store.execute("SELECT completion_id FROM selections WHERE round = 2 ORDER BY position").fetchall()
    store.close()
    with open_session(load_config(path), Quiet()) as session:
        assert run_round(session).state in DECIDED
        assert [row.id for row in session.corpus.training_rows(session.run_id, 2)] == [id for (id,) in listed]
        for number, num_lines in ((2, 0), (3, 20)):
            assert rounds_of_rows(session, number) == dict.fromkeys(range(1, number + 1), 10)
            sql = "SELECT json_array_length(arrivals) AS num FROM earlier_selections WHERE round = ?"
            assert sum(row["num"] for row in query(session.ledger.db, sql, (number,))) == num_lines
        assert verify_store(session.ledger.db, tmp_path / ".loop").findings == []


def test_a_run_keeps_the_default_gates_that_it_began_with(tmp_path: Path) -> None:
    """The default list has become longer since: a loop.toml without gates means those of then."""
    path = tmp_path / "loop.toml"
    text = (ROOT / "loop.toml").read_text()
    path.write_text(text[: text.index("gates = [")] + text[text.index("]\n\n[diagnosis]") + 2 :])
    config = load_config(path).config
    old = json.loads(json.dumps(resolved(config)))
    assert [gate["type"] for gate in old["decide"]["gates"]] == ["improvement", "collapse", "drift"]
    old["decide"]["gates"] = [old["decide"]["gates"][0], old["decide"]["gates"][1] | {"defaults": 2}]
    merged = with_stored_gates(config, old)
    assert [gate.type for gate in merged.decide.gates] == ["improvement", "collapse"]
    assert differences(old, resolved(merged)) == []


def test_a_run_keeps_the_limits_of_collapse_that_it_began_with() -> None:
    config = load_config(ROOT / "loop.toml").config
    old = json.loads(json.dumps(resolved(config)))
    del old["decide"]["gates"][1]["defaults"]  # as before there were others
    gate = with_stored_gates(config, old).decide.policy().gates[1]
    assert isinstance(gate, Collapse) and gate.defaults == 1 and "fork_entropy" in gate.in_force
    assert differences(old, resolved(with_stored_gates(config, old))) == []
    assert with_stored_gates(config, resolved(config)).decide.policy() == config.decide.policy()


def test_a_round_that_an_older_version_began_goes_on_as_it_was(tmp_path: Path) -> None:
    with running(tmp_path, KEEPING) as session:
        round = session.ledger.begin_round(session.run_id)
        inputs = frozen_input(session, round)
        assert inputs.pop("data") == {"dedup": "none", "near_similarity": 0.9, "min_tokens": 0, "max_tokens": None,
                                      "passed_tests": False, "without_tests": "keep", "type": "replace"}  # fmt: skip
        assert inputs.pop("adapted") is None
        session.ledger.begin_attempt(round, "sampling", inputs)
        assert run_round(session).state == "kept" and rounds_of_rows(session, 1) == {1: 10}
    with reader(tmp_path / ".loop") as store:
        assert whole_round(store, 1).adapted is None
