"""A server elsewhere as a sampler: the contract over all samplers, the proof of weights, commands, and hostile answers.

The server is a stand-in: transformers with a tiny model behind the fields of vLLM's completions that are used.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loop.engines.base import CheckpointRef, Forced, Sampler, SamplingParams
from loop.errors import EngineError
from loop.workers.worker import RemoteSampler
from tests.loop.config.test_loading import GOOD, Load, load, mistakes  # noqa: F401
from tests.loop.engines.test_samplers import (  # noqa: F401  (the contract: they run over this module's pair)
    one_thread,
    test_a_completion_does_not_depend_on_its_batch,
    test_a_stop_string_ends_a_completion,
    test_bare_text_and_no_requests,
    test_reasons_and_limits,
    test_same_requests_same_completions,
    test_seeds_make_the_difference_and_greedy_knows_none,
    test_the_tokenizer_has_one_hash,
    test_what_can_never_fit_is_refused_by_name,
)
from tests.support.engines import GREEDY, HOT, ask, chat, in_process, no_progress, remote, settings
from tests.support.tiny import make_tiny_model
from tests.support.waiting import HANG_S

Body = dict[str, Any]
KEY = "sk-very-secret"


class StandIn:
    """What `vllm serve` is to the sampler. `spoil` makes something else of a completion's answer, bytes are sent as they are."""

    def __init__(self, checkpoint: CheckpointRef) -> None:
        self.lock = threading.Lock()
        self.load(checkpoint)
        self.spoil: Callable[[Body], Any] = lambda answer: answer
        self.statuses: list[int] = []  # of the next answers, in place of what they would be
        self.asked: list[tuple[str, Body, dict[str, str]]] = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                stand_in.answer(self, {})

            def do_POST(self) -> None:
                stand_in.answer(self, json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}"))

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign]  # of those who hang up
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def load(self, checkpoint: CheckpointRef) -> None:
        self.sampler = in_process(checkpoint)

    def answer(self, handler: BaseHTTPRequestHandler, body: Body) -> None:
        self.asked.append((handler.path, body, dict(handler.headers)))
        status = self.statuses.pop(0) if self.statuses else 200
        said: Any = {"error": {"message": f"no\x1b[31m\n{KEY} " + "x" * 500}}
        if status == 200:
            with self.lock:
                said = self.said(handler.path, body)
        sent = said if isinstance(said, bytes) else json.dumps(said).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(sent)))
        handler.end_headers()
        handler.wfile.write(sent)

    def said(self, path: str, body: Body) -> Any:
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": "served", "object": "model", "max_model_len": 2048}]}
        if path == "/reload":
            self.load(CheckpointRef(sha256="", path=Path(body["path"])))
            return {}
        assert path == "/v1/completions" and body["model"] == "served" and body["return_token_ids"]
        answer = {"object": "text_completion", "model": "served", "choices": [self.choice(body)]}
        return answer if body.get("prompt_logprobs") is not None else self.spoil(answer)

    def choice(self, body: Body) -> Body:
        from loop.engines.hf_sampler import Row

        names = ("temperature", "top_k", "top_p", "repetition_penalty", "stop")
        params = SamplingParams(max_new_tokens=body["max_tokens"], **{name: body[name] for name in names})
        row = Row(chat("r", seed=body["seed"]), body["prompt"])
        ((one,),) = self.sampler._run([row], params, [])
        logprobs = self.logprobs([*body["prompt"], *one.token_ids])
        num, choice = len(body["prompt"]), {"index": 0, "text": one.text, "stop_reason": None}
        if one.finish_reason == "stop":
            choice["stop_reason"] = next(word for word in body["stop"] if word in one.text)
        if body.get("prompt_logprobs") is not None:
            pairs = zip(body["prompt"][1:], logprobs[: num - 1], strict=True)
            choice["prompt_logprobs"] = [None, *({str(token): {"logprob": said, "rank": 1}} for token, said in pairs)]
        return choice | {
            "finish_reason": "length" if one.finish_reason == "length" else "stop",
            "logprobs": {
                "token_logprobs": logprobs[num - 1 :],
                "tokens": [f"token_id:{token}" for token in one.token_ids],
            },
            "token_ids": list(one.token_ids),
            "prompt_token_ids": body["prompt"],
        }

    def logprobs(self, token_ids: list[int]) -> list[float]:
        """Of each token after the first."""
        import torch

        ids = torch.tensor([token_ids])
        with torch.inference_mode():
            said = self.sampler.model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        return said.gather(1, ids[0, 1:, None])[:, 0].tolist()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CheckpointRef]:
    """Two checkpoints of one shape with other weights: "one" and "other"; and "near", which no proof tells from "one"."""
    import safetensors.torch

    root = tmp_path_factory.mktemp("models")
    for name, seed in (("one", 0), ("other", 1), ("near", 0)):
        make_tiny_model(root / name, seed=seed)
    tensors = safetensors.torch.load_file(root / "near" / "model.safetensors")
    tensors["model.norm.weight"] += 1e-6
    safetensors.torch.save_file(tensors, root / "near" / "model.safetensors", metadata={"format": "pt"})
    return {name: CheckpointRef(sha256=name, path=root / name) for name in ("one", "other", "near")}


@pytest.fixture(scope="module")
def shared(models: dict[str, CheckpointRef]) -> Iterator[StandIn]:
    stand_in = StandIn(models["one"])
    yield stand_in
    stand_in.close()


@pytest.fixture
def served(shared: StandIn, models: dict[str, CheckpointRef], monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The stand-in as new, with "one"."""
    monkeypatch.setattr("loop.engines.server_http.RETRY_WAIT_S", 0.01)
    shared.asked.clear()
    yield shared
    shared.spoil, shared.statuses = lambda answer: answer, []
    shared.load(models["one"])


def start(checkpoint: CheckpointRef, url: str, **changed: Any) -> Any:
    from loop.engines.server_sampler import ServerSampler

    return ServerSampler(checkpoint, settings(server_url=url, **changed), no_progress)


@pytest.fixture(scope="module", params=["in process", "remote"])
def pair(
    request: pytest.FixtureRequest,
    shared: StandIn,
    models: dict[str, CheckpointRef],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Sampler, Sampler]]:
    """The sampler, and transformers itself with the same weights."""
    if request.param == "remote":
        log = tmp_path_factory.mktemp("logs") / "sampler.log"
        sampler: Any = remote(models["one"], "server", log, server_url=shared.url)
    else:
        sampler = start(models["one"], shared.url)
    yield sampler, in_process(models["one"], batch_size=7)
    sampler.close()
    sampler.close()


# ---- what is asked -------------------------------------------------------------------------------------------------


def test_requests_stay_bounded_and_leave_nothing_to_the_server(
    served: StandIn, models: dict[str, CheckpointRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    sampler = start(models["one"], served.url)
    served.asked.clear()
    lists = sampler.generate([chat(f"r{i}", seed=i) for i in range(40)], HOT)
    next(lists)
    lists.close()
    assert 1 <= len(served.asked) <= 2 * settings().batch_size
    _, body, headers = served.asked[0]
    assert headers["Authorization"] == f"Bearer {KEY}"
    drawing = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"}
    assert drawing <= body.keys() and (body["top_k"], body["top_p"]) == (HOT.top_k, HOT.top_p)
    assert body["stop_token_ids"] == sorted(in_process(models["one"]).eos)
    assert len(ask(sampler, [chat(f"r{i}", seed=i) for i in range(3)], HOT)) == 3, "it goes on after that"
    sampler.close()


def test_a_prober_is_there_while_the_server_serves(served: StandIn, models: dict[str, CheckpointRef]) -> None:
    sampler = start(models["one"], served.url)
    one = ask(sampler, [chat("r", seed=1)], GREEDY)["r"]
    text = Forced(id="t", prompt_token_ids=one.prompt_token_ids, token_ids=one.token_ids)
    (record,) = [record for records in sampler.probe([text], HOT, 8) for record in records]
    for token, at, logprobs in zip(one.token_ids, record.at, record.logprobs, strict=True):
        assert dict(zip(at, logprobs, strict=True))[token] > logprobs[0] - 1e-3, "greedy: each token was the likeliest"
    assert ask(sampler, [chat("r", seed=1)], GREEDY)["r"] == one
    assert sampler.prober is None
    sampler.close()


# ---- weights -------------------------------------------------------------------------------------------------------


def reload_command(served: StandIn) -> list[str]:
    program = (
        "import json, sys, urllib.request as u; "
        "u.urlopen(u.Request(sys.argv[1], json.dumps({'path': sys.argv[2]}).encode(), method='POST')).read()"
    )
    return [sys.executable, "-c", program, served.url.removesuffix("/v1") + "/reload", "{path}"]


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_other_weights_are_refused(served: StandIn, models: dict[str, CheckpointRef], dtype: str) -> None:
    with pytest.raises(EngineError) as refused:
        start(models["other"], served.url, dtype=dtype)
    for part in (served.url, f"with {models['other'].path}:", f"`vllm serve {models['other'].path}`", "does not serve"):
        assert part in str(refused.value)
    sampler = start(models["one"], served.url, dtype=dtype)
    with pytest.raises(EngineError, match="does not serve the weights"):
        sampler.change(models["other"])
    sampler.close()


def test_the_command_brings_the_weights(served: StandIn, models: dict[str, CheckpointRef]) -> None:
    sampler = start(models["one"], served.url, server_command=reload_command(served))
    requests = [chat(f"r{i}", seed=i, task=i) for i in range(4)]
    before = ask(sampler, requests, HOT)
    for name in ("other", "one", "near"):
        assert sampler.change(models[name])
        assert sampler.checkpoint == models[name]
        assert (ask(sampler, requests, HOT)["r0"].logprob_sum == before["r0"].logprob_sum) == (name == "one")
    sampler.close()


def test_near_weights_that_were_not_brought_are_noticed(served: StandIn, models: dict[str, CheckpointRef]) -> None:
    """The proof fits the weights before as well: without a command, or with one that changed nothing, there is none."""
    for command in ([], [sys.executable, "-c", ""]):
        sampler = start(models["one"], served.url, server_command=command)
        assert sampler.change(models["one"])
        with pytest.raises(EngineError, match="may still serve the weights before"):
            sampler.change(models["near"])
        sampler.close()


def test_the_server_is_waited_for_after_the_command(
    served: StandIn, models: dict[str, CheckpointRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loop.engines.server_sampler.LOOK_S", 0.01)
    served.statuses = [200, 503, 502, 503]  # the command's own request is the first
    sampler = start(models["one"], served.url, server_command=reload_command(served))
    assert [path for path, _, _ in served.asked] == ["/reload", *["/v1/models"] * 4, "/v1/completions"]
    sampler.close()


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("print('first'); print('no\\x1b[31m such ' + 'sk-very-secret'); raise SystemExit(3)", "exit code 3; its last line: no [31m such ***"),
        ("raise SystemExit(4)", "exit code 4; its last line: none"),
        ("import time; print('slow', flush=True); open('said', 'w'); time.sleep(1000)", "was ended; its last line: slow"),
        (None, "cannot be run: [Errno 2] No such file"),
    ],
)  # fmt: skip
def test_a_command_that_fails(
    served: StandIn,
    models: dict[str, CheckpointRef],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    said: str,
) -> None:
    clock = lambda: time.monotonic() + HANG_S * Path("said").exists()  # noqa: E731
    monkeypatch.setattr("loop.engines.server_sampler.time", SimpleNamespace(monotonic=clock, sleep=time.sleep))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    command = [sys.executable, "-c", program] if program else ["/no/such/command"]
    with pytest.raises(EngineError) as failed:
        start(models["one"], served.url, server_command=command)
    assert str(failed.value).startswith("engine.server_command: ") and str(failed.value).isprintable()
    assert said in str(failed.value)


# ---- hostile answers -----------------------------------------------------------------------------------------------


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


# ---- faults --------------------------------------------------------------------------------------------------------


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


# ---- configuration, workers, doctor --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['sampler = "server"'], ['19: engine.sampler: "server" needs server_url, where it answers; give it, as in "http://gpu-host:8000/v1"']),
        (['server_url = "http://h/v1"'], ["19: engine.server_url: has no meaning for sampler 'auto'; remove it, or set \"server\""]),
        (['server_command = ["./reload.sh"]'], ["19: engine.server_command: has no meaning for sampler 'auto'; remove it, or set \"server\""]),
        (['sampler = "server"', 'server_url = "http://h/v1"', "num_engines = 2"], ["21: engine.num_engines: has no meaning for a server, which has its own; remove it"]),
    ],
)  # fmt: skip
def test_mistakes_in_the_configuration(load: Load, lines: list[str], said: list[str]) -> None:  # noqa: F811
    assert mistakes(load, GOOD + "\n[engine]\n" + "\n".join(lines)) == [f"loop.toml:{line}" for line in said]


@pytest.mark.parametrize("url", ["gpu-host:8000", "ftp://h/v1", "http://", "http://me:secret@h/v1", "http://h/v1?k=secret", "http://h /v1", "http://h:x/"])  # fmt: skip
def test_what_is_no_address(load: Load, url: str) -> None:  # noqa: F811
    (line,) = mistakes(load, GOOD + f'\n[engine]\nsampler = "server"\nserver_url = "{url}"')
    assert line.startswith("loop.toml:20: engine.server_url: ") and "is not the address of a server; give one" in line
    assert "secret" not in line


def test_an_adapter_needs_to_be_merged(load: Load) -> None:  # noqa: F811
    engine = '\n[engine]\nsampler = "server"\nserver_url = "http://h/v1"\nserver_command = ["r", "{path}"]'
    assert load(GOOD + engine).config.engine.server_command == ("r", "{path}")
    lora = GOOD.replace("num_steps = 4", 'num_steps = 4\nmethod = "lora"\nlora = { merge = false }')
    (line,) = mistakes(load, lora + engine)
    assert line.startswith("loop.toml:10: training.lora.merge: a server") and line.endswith("set merge = true")


class Watcher:
    """Nobody looks on."""

    def stage(self, round: int, stage: str, what: str) -> None: ...

    def progress(self, done: int, total: int) -> None: ...

    def note(self, text: str) -> None:
        pytest.fail(text)


def test_engines_keep_one_sampler_whatever_devices_there_are(
    served: StandIn, models: dict[str, CheckpointRef], load: Load, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    from loop.workers.up import Engines

    monkeypatch.setattr("loop.workers.up.visible_devices", lambda: [("0", 0), ("1", 1)])
    text = f'[engine]\nsampler = "server"\nserver_url = "{served.url}"\ndtype = "float32"\nnum_threads = 1\n'
    words = json.dumps(reload_command(served))
    engines = Engines(load(GOOD + text + f"server_command = {words}"), Watcher())  # type: ignore[arg-type]
    try:
        sampler = engines.sampler(models["one"])
        assert isinstance(sampler, RemoteSampler), "one asks the server, not one for each device"
        before = ask(sampler, [chat("r", seed=1)], GREEDY)
        assert engines.sampler(models["other"]) is sampler, "the weights change in place"
        assert ask(sampler, [chat("r", seed=1)], GREEDY) != before
    finally:
        engines.close()


def test_doctor_says_what_is_served(served: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    from loop.cli.doctor import _server

    assert "torch" not in imported_by("import loop.engines.server_http")
    monkeypatch.setattr("loop.cli.doctor.SERVER_TIMEOUT_S", HANG_S)
    line = _server(served.url)
    assert (line.name, line.verdict, line.detail) == ("server", "ok", f"{served.url} serves served")
    served.statuses = [401]
    line = _server(served.url)
    assert line.verdict == "fail" and f"{served.url}/models: status 401" in line.detail and line.remedy
    monkeypatch.setattr("loop.cli.doctor.SERVER_TIMEOUT_S", 0.2)
    with served.lock:
        line = _server(served.url)
    assert line.verdict == "fail" and "does not answer" in line.detail


def imported_by(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program + "; import sys; print(*sys.modules)"], capture_output=True, text=True, check=True).stdout  # fmt: skip
