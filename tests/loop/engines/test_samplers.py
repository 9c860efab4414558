"""One contract over all samplers, in process and remote."""

from __future__ import annotations

import pytest

from loop.engines.base import CheckpointRef, Request, Sampler
from loop.engines.fake import FakeSampler
from loop.errors import EngineError
from tests.support.engines import GREEDY, HOT, ask, chat, greedy, hot, in_process, no_progress, settings

pytestmark = pytest.mark.usefixtures("one_thread")


class TestTheContract:
    """Also imported into the test files of other samplers, where it runs over their `pair`."""

    def test_same_requests_same_completions(self, pair: tuple[Sampler, Sampler]) -> None:
        requests = [chat(f"r{i}", seed=i, task=i) for i in range(10)]
        first = ask(pair[0], requests, HOT)
        assert ask(pair[0], requests, HOT) == first

    def test_a_completion_does_not_depend_on_its_batch(self, pair: tuple[Sampler, Sampler]) -> None:
        """Token ids, text and reason are equal to the letter, log-probabilities to 1e-4: float32 differs in its last bits."""
        requests = [chat(f"r{i}", seed=100 + i, task=5 * i) for i in range(12)]
        four, seven = ask(pair[0], requests, HOT), ask(pair[1], requests, HOT)
        backwards = ask(pair[0], requests[::-2], HOT)
        alone = ask(pair[0], requests[3:4], HOT)
        for others in (seven, backwards, alone):
            for identifier, other in others.items():
                assert other.logprob_sum == pytest.approx(four[identifier].logprob_sum, abs=1e-4)
                assert other == four[identifier].model_copy(update={"logprob_sum": other.logprob_sum})

    def test_seeds_make_the_difference_and_greedy_knows_none(self, pair: tuple[Sampler, Sampler]) -> None:
        requests = [chat(f"r{i}", seed=i) for i in range(16)]
        hot = {generated.token_ids for generated in ask(pair[0], requests, HOT).values()}
        assert len(hot) > 1
        assert len({generated.token_ids for generated in ask(pair[0], requests, GREEDY).values()}) == 1
        same = ask(pair[0], [chat(f"r{i}", seed=7) for i in range(4)], HOT)
        assert len({generated.token_ids for generated in same.values()}) == 1

    def test_reasons_and_limits(self, pair: tuple[Sampler, Sampler]) -> None:
        long = ask(pair[0], [chat("r", seed=3)], GREEDY)["r"]
        assert long.finish_reason == "eos" and len(long.token_ids) < 64 and long.logprob_sum < 0
        for limit in (1, len(long.token_ids) - 1):
            cut = ask(pair[0], [chat("r", seed=3)], greedy(max_new_tokens=limit))["r"]
            assert (cut.finish_reason, cut.token_ids) == ("length", long.token_ids[:limit])
        assert ask(pair[0], [chat("r", seed=3)], greedy(max_new_tokens=len(long.token_ids)))["r"] == long

    def test_a_stop_string_ends_a_completion(self, pair: tuple[Sampler, Sampler]) -> None:
        """It is taken from what the model writes without it, which is not the same on every CPU."""
        written = {task: ask(pair[0], [chat("r", seed=3, task=task)], GREEDY)["r"] for task in range(6)}
        task, free = max(written.items(), key=lambda item: len(item[1].text))
        starts = range(len(free.text) // 4, len(free.text) // 2)
        stop = next(free.text[start : start + 2] for start in starts if free.text[start : start + 2].isascii())
        stopped = ask(pair[0], [chat("r", seed=3, task=task)], greedy(stop=("never seen", stop)))["r"]
        assert stopped.finish_reason == "stop"
        assert stopped.token_ids == free.token_ids[: len(stopped.token_ids)]
        assert stop in stopped.text and free.text.startswith(stopped.text)
        assert len(stopped.text) < len(free.text)

    def test_what_can_never_fit_is_refused_by_name(self, pair: tuple[Sampler, Sampler]) -> None:
        message = r"a prompt that begins 'def f\(\):.* exceed the model's \d+; lower max_new_tokens"
        for text, limit in (("def f():", 100_000), ("def f():" * 10000, 10)):
            with pytest.raises(EngineError, match=message):
                ask(pair[0], [Request(id="long", prefill=text, seed=1)], hot(max_new_tokens=limit))
        with pytest.raises(EngineError, match="request none: the prompt is empty"):
            ask(pair[0], [chat("fine", seed=1), Request(id="none", seed=1)], HOT)
        assert ask(pair[0], [chat("fine", seed=1)], HOT)

    def test_bare_text_and_no_requests(self, pair: tuple[Sampler, Sampler]) -> None:
        assert list(pair[0].generate([], HOT)) == []
        bare = ask(pair[0], [Request(id="b", prefill="def sum_words(a, b):", seed=1)], HOT)["b"]
        assert bare.prompt_token_ids and bare.token_ids

    def test_the_tokenizer_has_one_hash(self, pair: tuple[Sampler, Sampler]) -> None:
        assert pair[0].tokenizer_sha256 == pair[1].tokenizer_sha256
        assert len(pair[0].tokenizer_sha256) == 64


@pytest.mark.parametrize("kind", ["fake", "transformers"])
def test_generation_is_lazy_and_lets_go_of_what_is_finished(
    kind: str, fake: CheckpointRef, tiny: CheckpointRef
) -> None:
    """Lists come while most is still to do, progress never goes back, and what was handed over is let go of."""
    import gc

    sampler = FakeSampler(fake, settings(), no_progress) if kind == "fake" else in_process(tiny)
    seen: list[tuple[int, int]] = []
    sampler.progress = lambda done, total: seen.append((done, total))
    num_given, most_rows = 0, 0
    gc.freeze()  # what is there already, as all of torch, need not be looked through each time
    try:
        for batch in sampler.generate([chat(f"r{i}", seed=i) for i in range(20)], HOT):
            num_given += len(batch)
            assert 1 <= len(batch) <= 4
            assert seen[-1] == (num_given, 20)
            del batch
            gc.collect()
            num_rows = sum(type(thing).__name__ == "Row" and bool(thing.token_ids) for thing in gc.get_objects())
            most_rows = max(most_rows, num_rows)
    finally:
        gc.unfreeze()
    assert most_rows <= 5 and (kind == "fake" or most_rows > 0)
    assert num_given == 20
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
