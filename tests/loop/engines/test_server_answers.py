"""A server elsewhere that answers nonsense, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from loop.engines.base import CheckpointRef
from loop.errors import EngineError
from tests.support.engines import GREEDY, HOT, ask, chat
from tests.support.model_server import KEY, Body, StandIn, start

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
    return put("logprobs", lambda said: {"token_logprobs": [value, *said["token_logprobs"][1:]]})


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
def test_hostile_answers(served: StandIn, models: dict[str, CheckpointRef], name: str) -> None:
    sampler = start(models["one"], served.url)
    request, params = chat("r", seed=3), GREEDY.model_copy(update={"max_new_tokens": 32})
    assert ask(sampler, [request], params)["r"].finish_reason == "eos"
    served.spoil, said = HOSTILE[name]
    with pytest.raises(EngineError, match=said) as refused:
        ask(sampler, [request], params)
    assert str(refused.value).startswith(f"{served.url}/completions: ") and str(refused.value).isprintable()
    assert len(str(refused.value)) < 500
    sampler.close()


@pytest.mark.parametrize("logprobs", [None, [], [None], [None, {"7": {"logprob": -1.0}}], "all but one"])
def test_hostile_proofs(served: StandIn, models: dict[str, CheckpointRef], monkeypatch: Any, logprobs: Any) -> None:
    real = served.choice

    def choice(body: Body) -> Body:
        said = real(body)
        return said | {"prompt_logprobs": said["prompt_logprobs"][:-1] if logprobs == "all but one" else logprobs}

    monkeypatch.setattr(served, "choice", choice)
    with pytest.raises(EngineError, match=f"{served.url}/completions: prompt_logprobs are not those"):
        start(models["one"], served.url)


@pytest.mark.parametrize(
    "answer", [{}, {"data": []}, {"data": [{"id": 7}]}, {"data": [{"id": "m", "max_model_len": -1}]}]
)
def test_hostile_lists_of_models(
    served: StandIn, models: dict[str, CheckpointRef], monkeypatch: Any, answer: Body
) -> None:
    monkeypatch.setattr(served, "said", lambda path, body: answer)
    with pytest.raises(EngineError, match=f"{served.url}/models: its answer is not what vLLM's is"):
        start(models["one"], served.url)


def test_a_passing_fault_is_tried_again_once(
    served: StandIn, models: dict[str, CheckpointRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    sampler = start(models["one"], served.url)
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
    sampler.close()


def test_what_is_finished_beside_a_fault_is_kept(served: StandIn, models: dict[str, CheckpointRef]) -> None:
    sampler = start(models["one"], served.url, batch_size=1)
    bad = []

    def spoil(answer: Body) -> Any:
        bad.append(1)
        return answer if len(bad) < 4 else b""

    served.spoil, found = spoil, []
    with pytest.raises(EngineError):
        for batch in sampler.generate([chat(f"r{i}", seed=i) for i in range(8)], HOT):
            found += batch
    assert len(found) in (2, 3)  # two are asked at a time: the third may still have been on its way
    sampler.close()


def test_no_server(models: dict[str, CheckpointRef], served: StandIn) -> None:
    gone = StandIn.__new__(StandIn)
    gone.http = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    url = f"http://127.0.0.1:{gone.http.server_port}/v1"
    gone.http.server_close()
    with pytest.raises(EngineError, match=f"{url}/models: does not answer: .*; start it there: `vllm serve") as failed:
        start(models["one"], url)
    assert str(failed.value).isprintable()
    sampler = start(models["one"], served.url)
    sampler.server.url = url
    with pytest.raises(EngineError, match=f"{url}/completions: does not answer: "):
        ask(sampler, [chat("r", seed=1)], HOT)
    sampler.close()


def test_a_server_that_says_nothing_more(served: StandIn, models: dict[str, CheckpointRef]) -> None:
    sampler = start(models["one"], served.url)
    sampler.patience_s = 0.2
    with served.lock, pytest.raises(EngineError, match="no completion came for 0.2 s"):
        ask(sampler, [chat("r", seed=1)], HOT)
    sampler.close()


def test_a_key_that_is_none_is_not_shown(models: dict[str, CheckpointRef], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk secret\nX: y")
    with pytest.raises(EngineError, match="OPENAI_API_KEY: is no API key") as refused:
        start(models["one"], "http://127.0.0.1:9/v1")
    assert "secret" not in str(refused.value)
