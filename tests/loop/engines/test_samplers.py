"""One contract over all samplers, in process and remote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loop.engines.base import CheckpointRef, Request, Sampler
from loop.engines.fake import FakeSampler
from loop.errors import EngineError
from loop.workers.pool import Pool, Start
from tests.support.engines import GREEDY, HOT, ask, chat, in_process, no_progress, remote, settings

pytestmark = pytest.mark.usefixtures("one_thread")


def pool_of(checkpoint: CheckpointRef, logs: Path) -> Pool:
    def start_of(number: int) -> Start:
        return lambda checkpoint, pulse: remote(checkpoint, "fake", logs / f"sampler-{number}.log")

    starts = [start_of(number) for number in (1, 2)]
    return Pool(starts, checkpoint, batch_size=4, progress=no_progress, pulse=lambda: None, note=pytest.fail)


@pytest.fixture(scope="module", params=["fake", "fake remote", "pool of fakes", "transformers", "transformers remote"])
def pair(
    request: pytest.FixtureRequest, fake: CheckpointRef, tiny: CheckpointRef, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Sampler, Sampler]]:
    """The sampler under test, with batches of 4, and another over the same checkpoint in process, with batches of 7."""
    log = tmp_path_factory.mktemp("logs") / "worker.log"
    samplers: dict[str, Any] = {
        "fake": lambda: FakeSampler(fake, settings(), no_progress),
        "fake remote": lambda: remote(fake, "fake", log),
        "pool of fakes": lambda: pool_of(fake, log.parent),
        "transformers": lambda: in_process(tiny),
        "transformers remote": lambda: remote(tiny, "transformers", log),
    }
    sampler = samplers[request.param]()
    if "fake" in request.param:
        yield sampler, FakeSampler(fake, settings(batch_size=7), no_progress)
    else:
        yield sampler, in_process(tiny, batch_size=7)
    sampler.close()
    sampler.close()


def test_same_requests_same_completions(pair: tuple[Sampler, Sampler]) -> None:
    requests = [chat(f"r{i}", seed=i, task=i) for i in range(10)]
    first = ask(pair[0], requests, HOT)
    assert ask(pair[0], requests, HOT) == first


def test_a_completion_does_not_depend_on_its_batch(pair: tuple[Sampler, Sampler]) -> None:
    """Token ids, text and reason are equal to the letter, log-probabilities to 1e-4: float32 differs in its last bits."""
    requests = [chat(f"r{i}", seed=100 + i, task=5 * i) for i in range(12)]
    four, seven = ask(pair[0], requests, HOT), ask(pair[1], requests, HOT)
    backwards = ask(pair[0], requests[::-2], HOT)
    alone = ask(pair[0], requests[3:4], HOT)
    for others in (seven, backwards, alone):
        for identifier, one in others.items():
            other = four[identifier]
            assert one.model_copy(update={"logprob_sum": None}) == other.model_copy(update={"logprob_sum": None})
            assert one.logprob_sum == pytest.approx(other.logprob_sum, abs=1e-4)


def test_seeds_make_the_difference_and_greedy_knows_none(pair: tuple[Sampler, Sampler]) -> None:
    requests = [chat(f"r{i}", seed=i) for i in range(16)]
    hot = {generated.token_ids for generated in ask(pair[0], requests, HOT).values()}
    assert len(hot) > 1
    assert len({generated.token_ids for generated in ask(pair[0], requests, GREEDY).values()}) == 1
    same = ask(pair[0], [chat(f"r{i}", seed=7) for i in range(4)], HOT)
    assert len({generated.token_ids for generated in same.values()}) == 1


def test_reasons_and_limits(pair: tuple[Sampler, Sampler]) -> None:
    long = next(iter(ask(pair[0], [chat("r", seed=3)], GREEDY).values()))
    assert long.finish_reason == "eos" and len(long.token_ids) < 64 and long.logprob_sum < 0
    for limit in (1, len(long.token_ids) - 1):
        cut = next(
            iter(ask(pair[0], [chat("r", seed=3)], GREEDY.model_copy(update={"max_new_tokens": limit})).values())
        )
        assert cut.finish_reason == "length"
        assert cut.token_ids == long.token_ids[:limit]
    exact = GREEDY.model_copy(update={"max_new_tokens": len(long.token_ids)})
    assert ask(pair[0], [chat("r", seed=3)], exact)["r"] == long


def test_a_stop_string_ends_a_completion(pair: tuple[Sampler, Sampler]) -> None:
    """It is taken from what the model writes without it, which is not the same on every CPU."""
    written = {task: ask(pair[0], [chat("r", seed=3, task=task)], GREEDY)["r"] for task in range(6)}
    task, free = max(written.items(), key=lambda one: len(one[1].text))
    starts = range(len(free.text) // 4, len(free.text) // 2)
    stop = next(free.text[start : start + 2] for start in starts if free.text[start : start + 2].isascii())
    params = GREEDY.model_copy(update={"stop": ("never seen", stop)})
    stopped = ask(pair[0], [chat("r", seed=3, task=task)], params)["r"]
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == free.token_ids[: len(stopped.token_ids)]
    assert stop in stopped.text and free.text.startswith(stopped.text)
    assert len(stopped.text) < len(free.text)


def test_what_can_never_fit_is_refused_by_name(pair: tuple[Sampler, Sampler]) -> None:
    for text in ("def f():", "def f():" * 10000):
        params = HOT.model_copy(update={"max_new_tokens": 100_000 if len(text) < 100 else 10})
        with pytest.raises(
            EngineError, match=r"a prompt that begins 'def f\(\):.*exceeds?.* the model's \d+.*; lower max_new_tokens"
        ):
            ask(pair[0], [Request(id="long", prefill=text, seed=1)], params)
    with pytest.raises(EngineError, match="request none: the prompt is empty"):
        ask(pair[0], [chat("fine", seed=1), Request(id="none", seed=1)], HOT)
    assert ask(pair[0], [chat("fine", seed=1)], HOT)


def test_bare_text_and_no_requests(pair: tuple[Sampler, Sampler]) -> None:
    assert list(pair[0].generate([], HOT)) == []
    bare = ask(pair[0], [Request(id="b", prefill="def sum_words(a, b):", seed=1)], HOT)["b"]
    assert bare.prompt_token_ids and bare.token_ids


def test_the_tokenizer_has_one_hash(pair: tuple[Sampler, Sampler]) -> None:
    assert pair[0].tokenizer_sha256 == pair[1].tokenizer_sha256
    assert len(pair[0].tokenizer_sha256) == 64


@pytest.mark.parametrize("kind", ["fake", "transformers"])
def test_generation_is_lazy_and_lets_go_of_what_is_finished(
    kind: str, fake: CheckpointRef, tiny: CheckpointRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists come while most is still to do, progress never goes back, and what was handed over is let go of."""
    import gc

    sampler = FakeSampler(fake, settings(), no_progress) if kind == "fake" else in_process(tiny)
    seen: list[tuple[int, int]] = []
    sampler.progress = lambda done, total: seen.append((done, total))
    num_given = 0
    for found in sampler.generate([chat(f"r{i}", seed=i) for i in range(20)], HOT):
        num_given += len(found)
        assert 1 <= len(found) <= 4
        assert seen[-1] == (num_given, 20)
        del found
        gc.collect()
        assert sum(type(thing).__name__ == "Row" and bool(thing.token_ids) for thing in gc.get_objects()) <= 5
    assert num_given == 20
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
