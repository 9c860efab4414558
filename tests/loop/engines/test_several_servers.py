"""Several servers elsewhere that share the sampling: a worker asks each, and one that fails is done without."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loop.engines.base import Request
from loop.errors import EngineError
from loop.workers.pool import Pool
from loop.workers.up import Engines
from tests.support.configurations import VALID, load_text
from tests.support.engines import HOT, Models, ask, chat, no_progress
from tests.support.model_server import RELOAD, Body, StandIn, server_sampler

pytestmark = pytest.mark.usefixtures("one_thread")
Open = Callable[..., Engines]
REQUESTS = [chat(f"r{i}", seed=i, task=i) for i in range(24)]


@pytest.fixture
def second(models: Models) -> Iterator[StandIn]:
    stand_in = StandIn(models["one"])
    yield stand_in
    stand_in.close()


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def open_engines(tmp_path: Path, notes: list[str]) -> Iterator[Open]:
    """Engines over these servers; all are closed after the test."""
    made: list[Engines] = []
    watch: Any = SimpleNamespace(progress=no_progress, note=notes.append)

    def begin(urls: list[str], command: list[str] | None = None) -> Engines:
        text = f'[engine]\nsampler = "server"\ndtype = "float32"\nnum_threads = 1\nserver_urls = {json.dumps(urls)}\n'
        loaded = load_text(tmp_path, f"{VALID}{text}batch_size = 4\nserver_command = {json.dumps(command or [])}\n")
        made.append(Engines(loaded, watch))
        return made[-1]

    yield begin
    for engines in made:
        engines.close()


def drawn(sampler: Any, requests: list[Request] = REQUESTS) -> dict[str, tuple[int, ...]]:
    return {name: generated.token_ids for name, generated in ask(sampler, requests, HOT).items()}


def of_one_server(url: str, models: Models, name: str = "one") -> dict[str, tuple[int, ...]]:
    """The completions where a single server makes them all."""
    sampler = server_sampler(models[name], url)
    try:
        return drawn(sampler)
    finally:
        sampler.close()


def num_completions(server: StandIn) -> int:
    return sum("prompt_logprobs" not in body and path == "/v1/completions" for path, body, _ in server.asked)


def test_two_share_the_work_and_one_dies_and_comes_back(
    served: StandIn, second: StandIn, models: Models, open_engines: Open, notes: list[str]
) -> None:
    expected = of_one_server(served.url, models)
    engines = open_engines([served.url, second.url], RELOAD)
    sampler = engines.sampler(models["one"])
    assert isinstance(sampler, Pool)
    served.asked.clear()
    second.asked.clear()
    assert drawn(sampler) == expected
    assert num_completions(served) + num_completions(second) == len(REQUESTS)
    assert num_completions(served) and num_completions(second) and notes == []
    assert len(list((engines.logs / "proofs").glob("*.json"))) == 1, "one reference for both"

    num_answered = 0

    def die(answer: Body) -> Body:
        nonlocal num_answered
        num_answered += 1
        if num_answered > 2:
            second.close()
            raise ConnectionError("in the middle of an answer")
        return answer

    second.spoil = die
    assert drawn(sampler) == expected, "what it had not finished is done by the other"
    assert len(notes) == 1 and notes[0].startswith(f"{second.url}/completions: does not answer: ")
    assert "the other engines take over its work" in notes[0]

    assert engines.sampler(models["other"]) is sampler
    assert len(notes) == 2 and notes[1].startswith("engine.server_command: ") and f"for {second.url} " in notes[1]
    of_other = drawn(sampler)
    assert of_other != expected and of_other == of_one_server(served.url, models, "other")

    back = StandIn(models["one"], second.http.server_port)
    try:
        assert engines.sampler(models["other"].model_copy(update={"sha256": "again"})) is sampler
        assert drawn(sampler) == of_other, "the one that is back was brought the weights"
        assert num_completions(back) and len(notes) == 2
    finally:
        back.close()


def test_one_that_serves_other_weights_is_an_error(
    served: StandIn, second: StandIn, models: Models, open_engines: Open
) -> None:
    second.load(models["other"])
    engines = open_engines([served.url, second.url])
    with pytest.raises(EngineError, match=f"^{second.url} with .*: does not serve the weights of this checkpoint"):
        engines.sampler(models["one"])


def test_one_that_is_not_there_at_the_start_is_done_without(
    served: StandIn, second: StandIn, models: Models, open_engines: Open, notes: list[str]
) -> None:
    second.close()
    sampler = open_engines([second.url, served.url]).sampler(models["one"])
    (note,) = notes
    assert note.startswith(f"{second.url}/models: does not answer: ") and "start it there: `vllm serve" in note
    generated = ask(sampler, REQUESTS[:4], HOT)
    assert generated.keys() == {"r0", "r1", "r2", "r3"} and len(notes) == 1


def test_doctor_has_each_write_something(served: StandIn, second: StandIn, models: Models, tmp_path: Path) -> None:
    from loop.cli.doctor_deep import _model

    urls = json.dumps([served.url, second.url])
    text = VALID.replace("smollm2-135m", str(models["one"].path))
    text += f'[engine]\nsampler = "server"\ndtype = "float32"\nnum_threads = 1\nserver_urls = {urls}\n'
    assert " tokens with server" in _model(load_text(tmp_path, text))
    assert num_completions(served) == num_completions(second) == 1
