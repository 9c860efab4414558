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
from loop.errors import EngineError
from loop.round import run_round
from loop.run.opening import open_session
from loop.stages.sampling import STORED_AT_ONCE, STORED_EVERY_S, gathered
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


class Breaking:
    """Three completions, each by itself, and no more."""

    tokenizer_sha256 = "t" * 64

    def generate(self, requests: list[Request], params: SamplingParams) -> Iterator[list[Generated]]:
        for request in requests[:3]:
            yield [Generated(id=request.id, text="x", token_ids=(1,), prompt_token_ids=(2,), finish_reason="eos")]
        raise EngineError("the device is gone")


def test_what_came_before_an_engine_broke_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loop.run.session.Session.sampler", lambda self, sha256: Breaking())
    with open_session(load_config(write_run(tmp_path, CONFIG)), Quiet()) as session:
        round = run_round(session)
        assert round.state == "failed" and round.error == "the device is gone"
        num_attempts = len(session.ledger.attempts(session.run_id, 1, "sampling"))
        assert num_attempts > 1 and len(session.corpus.existing_ids(session.run_id, 1)) == 3 * num_attempts
