"""A server elsewhere that answers nonsense, or not at all."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from loop.errors import EngineError
from tests.support.engines import HOT, Models, ask, chat, greedy
from tests.support.model_server import KEY, Body, StandIn, server_sampler

Start = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("one_thread")


def put(key: str, value: Any) -> Callable[[Body], Body]:
    """An answer whose choice has another value there."""

    def spoil(answer: Body) -> Body:
        answer["choices"][0][key] = value(answer["choices"][0][key]) if callable(value) else value
        return answer

    return spoil


def without(key: str) -> Callable[[Body], Body]:
    return lambda answer: {"choices": [{name: value for name, value in answer["choices"][0].items() if name != key}]}


def logprob(value: Any) -> Callable[[Body], Body]:
    return put("logprobs", lambda right: {"token_logprobs": [value, *right["token_logprobs"][1:]]})


HOSTILE: dict[str, tuple[Callable[[Body], Any], str]] = {
    "no JSON": (lambda answer: b"\x1b[2J<html>", "Invalid JSON"),
    "no UTF-8": (lambda answer: b'{"choices": "\xff"}', "not what vLLM's is"),
    "deep": (lambda answer: b"[" * 100_000, "not what vLLM's is"),
    "another shape": (lambda answer: [answer], "not what vLLM's is"),
    "no choices": (lambda answer: {"choices": []}, "choices"),
    "two choices": (lambda answer: {"choices": answer["choices"] * 2}, "choices"),
    "a choice that is none": (lambda answer: {"choices": [7]}, "choices.0"),
    "no token_ids": (without("token_ids"), r"choices\.0\.token_ids: Field required"),
    "null token_ids": (put("token_ids", None), r"choices\.0\.token_ids"),
    "strings for ids": (put("token_ids", lambda ids: list(map(str, ids))), "valid integer"),
    "booleans for ids": (put("token_ids", lambda ids: [True] * len(ids)), "valid integer"),
    "halves for ids": (put("token_ids", lambda ids: [0.5] * len(ids)), "valid integer"),
    "empty": (put("token_ids", []), "it has 0 tokens"),
    "ids beyond": (put("token_ids", lambda ids: [400, *ids[1:]]), "outside the vocabulary of 400"),
    "ids far beyond": (put("token_ids", lambda ids: [10**30, *ids[1:]]), "outside the vocabulary"),
    "negative ids": (put("token_ids", lambda ids: [-1, *ids[1:]]), "outside the vocabulary"),
    "too many": (put("token_ids", [5] * 33), "it has 33 tokens, and at most 32"),
    "no prompt ids": (without("prompt_token_ids"), "prompt_token_ids: Field required"),
    "another prompt": (put("prompt_token_ids", lambda ids: ids[:-1]), "not those that were sent"),
    "no logprobs": (put("logprobs", None), "choices.0.logprobs"),
    "fewer logprobs": (put("logprobs", {"token_logprobs": []}), "not a log-probability by token"),
    "null": (logprob(None), "token_logprobs"),
    "nan": (logprob(float("nan")), "finite"),
    "infinite": (logprob(float("-inf")), "finite"),
    "positive": (logprob(3.0), "not a log-probability"),
    "a huge number": (logprob(-(10**300)), "not a log-probability"),
    "text for a number": (logprob("-1"), "token_logprobs"),
    "another reason": (put("finish_reason", "abort"), "finish_reason"),
    "stopped by nothing": (put("stop_reason", "never asked for"), "stopped by nothing"),
    "no end token": (put("token_ids", lambda ids: [*ids[:-1], 5]), "stopped by nothing"),
    "short": (put("finish_reason", "length"), r"it ended after \d+ of 32 tokens"),
    "endless": (lambda answer: b" " * (2 << 20), "its answer is longer than"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers(served: StandIn, start: Start, name: str) -> None:
    sampler, request, params = start(), chat("r", seed=3), greedy(max_new_tokens=32)
    assert ask(sampler, [request], params)["r"].finish_reason == "eos"
    served.spoil, message = HOSTILE[name]
    with pytest.raises(EngineError, match=message) as refused:
        ask(sampler, [request], params)
    assert str(refused.value).startswith(f"{served.url}/completions: ") and str(refused.value).isprintable()
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("logprobs", [None, [], [None], [None, {"7": {"logprob": -1.0}}], "all but one"])
def test_hostile_proofs(served: StandIn, start: Start, monkeypatch: Any, logprobs: Any) -> None:
    real = served.choice

    def choice(body: Body) -> Body:
        right = real(body)
        return right | {"prompt_logprobs": right["prompt_logprobs"][:-1] if logprobs == "all but one" else logprobs}

    monkeypatch.setattr(served, "choice", choice)
    with pytest.raises(EngineError, match=f"{served.url}/completions: prompt_logprobs are not those"):
        start()


@pytest.mark.parametrize(
    "answer", [{}, {"data": []}, {"data": [{"id": 7}]}, {"data": [{"id": "m", "max_model_len": -1}]}]
)
def test_hostile_lists_of_models(served: StandIn, start: Start, monkeypatch: Any, answer: Body) -> None:
    monkeypatch.setattr(served, "answer_to", lambda path, body: answer)
    with pytest.raises(EngineError, match=f"{served.url}/models: its answer is not what vLLM's is"):
        start()


def test_a_passing_fault_is_tried_again_once(served: StandIn, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    sampler = start()
    served.statuses = [503]
    assert ask(sampler, [chat("r", seed=1)], HOT)
    for statuses, num_asked in (([500, 500], 2), ([400], 1), ([301], 1)):
        served.asked.clear()
        served.statuses = list(statuses)
        with pytest.raises(EngineError) as failed:
            ask(sampler, [chat("r", seed=1)], HOT)
        message = str(failed.value)
        assert message.startswith(f"{served.url}/completions: status {statuses[0]}: ") and message.isprintable()
        assert KEY not in message and "***" in message and len(message) < 300
        assert len(served.asked) == num_asked


def test_what_is_finished_beside_a_fault_is_kept(served: StandIn, start: Start) -> None:
    sampler, kept, number = start(batch_size=1), [], itertools.count()
    served.spoil = lambda answer: answer if next(number) < 3 else b""
    with pytest.raises(EngineError):
        for batch in sampler.generate([chat(f"r{i}", seed=i) for i in range(8)], HOT):
            kept += batch
    assert len(kept) in (2, 3)  # two are asked at a time: the third may still have been on its way


def test_no_server(models: Models, start: Start) -> None:
    gone = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    url = f"http://127.0.0.1:{gone.server_port}/v1"
    gone.server_close()
    with pytest.raises(EngineError, match=f"{url}/models: does not answer: .*; start it there: `vllm serve") as failed:
        server_sampler(models["one"], url)
    assert str(failed.value).isprintable()
    sampler = start()
    sampler.server.url = url
    with pytest.raises(EngineError, match=f"{url}/completions: does not answer: "):
        ask(sampler, [chat("r", seed=1)], HOT)


def test_a_server_that_says_nothing_more(served: StandIn, start: Start) -> None:
    sampler = start()
    sampler.patience_s = 0.2
    with served.lock, pytest.raises(EngineError, match="no completion came for 0.2 s"):
        ask(sampler, [chat("r", seed=1)], HOT)


def test_a_key_that_is_none_is_not_shown(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk secret\nX: y")
    with pytest.raises(EngineError, match="OPENAI_API_KEY: is no API key") as refused:
        server_sampler(models["one"], "http://127.0.0.1:9/v1")
    assert "secret" not in str(refused.value)
