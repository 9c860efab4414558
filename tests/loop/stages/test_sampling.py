"""What an engine gives one by one is stored together, and nothing of it is lost."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.config.loading import load_config
from loop.engines.base import Generated, Request, SamplingParams
from loop.engines.feed import Feed
from loop.errors import EngineError
from loop.round import run_round
from loop.run.opening import open_session
from loop.stages import sampling
from loop.stages.sampling import STORED_AT_ONCE, STORED_EVERY_S, Lineage, gathered, plan, sample
from store.records import Prompt
from tests.support.runs import CONFIG, Quiet, write_run

COMING = st.lists(st.tuples(st.integers(0, 100), st.floats(0, 1)), max_size=30)  # rows, and seconds until they come


@given(COMING, st.none() | st.sampled_from([OSError, KeyboardInterrupt]))
def test_nothing_is_lost_and_the_order_is_kept(
    coming: list[tuple[int, float]], error: type[BaseException] | None
) -> None:
    now, last_s = 0.0, 0.0
    made: list[int] = []
    stored: list[int] = []

    def source() -> Iterator[list[int]]:
        nonlocal now
        for num, wait_s in coming:
            now += wait_s
            made.extend(range(len(made), len(made) + num))
            yield made[len(made) - num :]
        if error:
            raise error

    with pytest.raises(error) if error else contextlib.nullcontext():
        for rows in gathered(source(), lambda: now):
            assert rows or now - last_s >= STORED_EVERY_S
            stored += rows
            assert stored == made, "all that has come is handed on together"
            last_s = now
    assert stored == made


@pytest.mark.parametrize(
    ("wait_s", "sizes"), [(0.0, [STORED_AT_ONCE, STORED_AT_ONCE, 22]), (STORED_EVERY_S, [1] * 150), (0.1, [5] * 30)]
)
def test_fast_rows_are_stored_together_and_slow_ones_at_once(wait_s: float, sizes: list[int]) -> None:
    made: list[int] = []

    def source() -> Iterator[list[int]]:
        for number in range(150):
            made.append(number)
            yield [number]

    assert [len(rows) for rows in gathered(source(), lambda: len(made) * wait_s)] == sizes


def answered(request: Request) -> Generated:
    return Generated(id=request.id, text="x", token_ids=(1,), prompt_token_ids=(2,), finish_reason="eos")


class Breaking:
    """Three completions, each by itself, and no more."""

    tokenizer_sha256 = "t" * 64

    def generate(self, requests: Feed[Request], params: SamplingParams) -> Iterator[list[Generated]]:
        for request in requests.take(3):
            yield [answered(request)]
        raise EngineError("the device is gone")


def test_what_came_before_an_engine_broke_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loop.run.session.Session.sampler", lambda self, sha256: Breaking())
    with open_session(load_config(write_run(tmp_path, CONFIG)), Quiet()) as session:
        round = run_round(session)
        assert round.state == "failed" and round.error == "the device is gone"
        num_attempts = len(session.ledger.attempts(session.run_id, 1, "sampling"))
        assert num_attempts > 1 and len(session.corpus.existing_ids(session.run_id, 1)) == 3 * num_attempts


PARAMS = SamplingParams(temperature=1.0, max_new_tokens=9)
LINEAGE = Lineage(run_id="run", round=1, checkpoint="c", evaluation_id=None, decode_settings_id="d")


@given(
    st.lists(st.integers(0, 9), max_size=8), st.integers(1, 4), st.sets(st.integers(0, 31)), st.integers(1, 5),
)  # fmt: skip
def test_what_is_missing_is_asked_for_as_it_is_taken_the_longest_prompt_first(
    lengths: list[int], num_samples: int, done_at: set[int], num_taken: int
) -> None:
    """Each missing completion once, those of a prompt side by side, and no request is made before a sampler takes it."""
    contents = [{"prefill": "", "messages": [{"role": "user", "content": "x" * length}]} for length in lengths]
    prompts = [
        Prompt(id=str(i), source="", name="", statement="", content=content) for i, content in enumerate(contents)
    ]
    planned = plan(LINEAGE, prompts, num_samples, seed=1)
    done = {planned[index].id for index in done_at if index < len(planned)}
    asked: list[Request] = []

    class Sampler:
        tokenizer_sha256 = "t"

        def generate(self, requests: Feed[Request], params: SamplingParams) -> Iterator[list[Generated]]:
            assert requests.total == len(planned) - len(done)
            while taken := requests.take(num_taken, wait=True):
                asked.extend(taken)
                assert len(made) == len(asked)
                yield [answered(request) for request in reversed(taken)]

    made: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        request_of = sampling.request_of
        patch.setattr(sampling, "request_of", lambda prompt, id, seed: made.append(id) or request_of(prompt, id, seed))
        drawn = [each for batch in sample(planned, done, LINEAGE, PARAMS, Sampler()) for each in batch]  # type: ignore[arg-type]
    wanted = [item for item in planned if item.id not in done]
    assert sorted(each.id for each in drawn) == sorted(item.id for item in wanted)
    assert {(each.id, each.prompt_id, each.sample_index, each.seed) for each in drawn} == {
        (item.id, item.prompt.id, item.sample_index, item.seed) for item in wanted
    }
    place = {item.id: (-lengths[int(item.prompt.id)], int(item.prompt.id), item.sample_index) for item in wanted}
    assert [request.id for request in asked] == sorted(place, key=lambda id: place[id])
