"""A server elsewhere as a sampler: the contract over all samplers, the proof of weights, and commands."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loop.engines.base import Sampler
from loop.errors import EngineError
from loop.workers.worker import RemoteSampler
from tests.loop.engines.test_samplers import TestTheContract  # noqa: F401  (runs over this module's pair)
from tests.support.configurations import VALID, load_text, mistakes_in
from tests.support.engines import GREEDY, HOT, Models, ask, chat, check_probe, in_process, no_progress, remote, settings
from tests.support.model_server import KEY, RELOAD, StandIn, server_sampler
from tests.support.waiting import HANG_S

Start = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=["in process", "remote"])
def pair(
    request: pytest.FixtureRequest, shared: StandIn, models: Models,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Sampler, Sampler]]:  # fmt: skip
    """The sampler, and transformers itself with the same weights."""
    log = tmp_path_factory.mktemp("logs") / "sampler.log"
    samplers: dict[str, Any] = {
        "in process": lambda: server_sampler(models["one"], shared.url),
        "remote": lambda: remote(models["one"], "server", log, server_url=shared.url),
    }
    sampler = samplers[request.param]()
    yield sampler, in_process(models["one"], batch_size=7)
    sampler.close()
    sampler.close()


def test_requests_stay_bounded_and_leave_nothing_to_the_server(
    served: StandIn, models: Models, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    sampler = start()
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
    assert len(ask(sampler, [chat(f"r{i}", seed=i) for i in range(3)], HOT)) == 3, "the sampler works after that"


def test_a_prober_is_there_while_the_server_serves(start: Start) -> None:
    sampler = start()
    drawn = ask(sampler, [chat("r", seed=1)], GREEDY)["r"]
    check_probe(sampler, drawn)
    assert ask(sampler, [chat("r", seed=1)], GREEDY)["r"] == drawn
    assert sampler.prober is None


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_other_weights_are_refused(served: StandIn, models: Models, start: Start, dtype: str) -> None:
    with pytest.raises(EngineError) as refused:
        start("other", dtype=dtype)
    for part in (served.url, f"with {models['other'].path}:", f"`vllm serve {models['other'].path}`", "does not serve"):
        assert part in str(refused.value)
    sampler = start(dtype=dtype)
    with pytest.raises(EngineError, match="does not serve the weights"):
        sampler.change(models["other"])


def test_the_command_brings_the_weights(served: StandIn, models: Models, start: Start) -> None:
    sampler = start(server_command=RELOAD)
    requests = [chat(f"r{i}", seed=i, task=i) for i in range(4)]
    before = ask(sampler, requests, HOT)
    for name in ("other", "one", "near"):
        assert sampler.change(models[name])
        assert sampler.checkpoint == models[name]
        assert (ask(sampler, requests, HOT)["r0"].logprob_sum == before["r0"].logprob_sum) == (name == "one")


def test_near_weights_that_were_not_brought_are_noticed(models: Models, start: Start) -> None:
    """The proof fits the weights before as well: without a command, or with one that changed nothing, there is none."""
    for command in ([], [sys.executable, "-c", ""]):
        sampler = start(server_command=command)
        assert sampler.change(models["one"])
        with pytest.raises(EngineError, match="may still serve the weights before"):
            sampler.change(models["near"])


def test_the_server_is_waited_for_after_the_command(
    served: StandIn, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loop.engines.server_sampler.LOOK_S", 0.01)
    served.statuses = [200, 503, 502, 503]  # the command's own request is the first
    start(server_command=RELOAD)
    assert [path for path, _, _ in served.asked] == ["/reload", *["/v1/models"] * 4, "/v1/completions"]


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("print('first'); print('no\\x1b[31m such ' + 'sk-very-secret'); raise SystemExit(3)", "exit code 3; its last line: no [31m such ***"),
        ("raise SystemExit(4)", "exit code 4; its last line: none"),
        ("import time; print('slow', flush=True); open('said', 'w'); time.sleep(1000)", "was ended; its last line: slow"),
        (None, "cannot be run: [Errno 2] No such file"),
    ],
)  # fmt: skip
def test_a_command_that_fails(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, message: str
) -> None:
    clock = lambda: time.monotonic() + HANG_S * Path("said").exists()  # noqa: E731
    monkeypatch.setattr("loop.engines.server_sampler.time", SimpleNamespace(monotonic=clock, sleep=time.sleep))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    command = [sys.executable, "-c", program] if program else ["/no/such/command"]
    with pytest.raises(EngineError) as failed:
        start(server_command=command)
    assert str(failed.value).startswith("engine.server_command: ") and str(failed.value).isprintable()
    assert message in str(failed.value)


@pytest.mark.parametrize(
    ("lines", "messages"),
    [
        (['sampler = "server"'], ['19: engine.sampler: "server" needs server_url, where it answers; give it, as in "http://gpu-host:8000/v1"']),
        (['server_url = "http://h/v1"'], ["19: engine.server_url: has no meaning for sampler 'auto'; remove it, or set \"server\""]),
        (['server_command = ["./reload.sh"]'], ["19: engine.server_command: has no meaning for sampler 'auto'; remove it, or set \"server\""]),
        (['server_urls = ["http://h/v1"]'], ["19: engine.server_urls: has no meaning for sampler 'auto'; remove it, or set \"server\""]),
        (['sampler = "server"', 'server_url = "http://h/v1"', 'server_urls = ["http://g/v1"]'], ["21: engine.server_urls: server_url and server_urls are both given; give one"]),
        (['sampler = "server"', 'server_urls = ["http://h/v1", "http://h/v1/"]'], ["20: engine.server_urls: has a server twice; give each once"]),
        (['sampler = "server"', 'server_url = "http://h/v1"', "num_engines = 2"], ["21: engine.num_engines: has no meaning for a server, which has its own; remove it"]),
    ],
)  # fmt: skip
def test_mistakes_in_the_configuration(tmp_path: Path, lines: list[str], messages: list[str]) -> None:
    assert mistakes_in(tmp_path, VALID + "\n[engine]\n" + "\n".join(lines)) == messages


@pytest.mark.parametrize("url", ["gpu-host:8000", "ftp://h/v1", "http://", "http://me:secret@h/v1", "http://h/v1?k=secret", "http://h /v1", "http://h:x/"])  # fmt: skip
def test_what_is_no_address(tmp_path: Path, url: str) -> None:
    (line,) = mistakes_in(tmp_path, VALID + f'\n[engine]\nsampler = "server"\nserver_url = "{url}"')
    assert line.startswith("20: engine.server_url: ") and "is not the address of a server; give one" in line
    assert "secret" not in line
    (line,) = mistakes_in(tmp_path, VALID + f'\n[engine]\nsampler = "server"\nserver_urls = ["http://h/v1", "{url}"]')
    assert line.startswith("20: engine.server_urls[1]: is not the address of a server; give one")


def test_an_adapter_needs_to_be_merged(tmp_path: Path) -> None:
    engine = '\n[engine]\nsampler = "server"\nserver_url = "http://h/v1"\nserver_command = ["r", "{path}"]'
    assert load_text(tmp_path, VALID + engine).config.engine.server_command == ("r", "{path}")
    lora = VALID.replace("num_steps = 4", 'num_steps = 4\nmethod = "lora"\nlora = { merge = false }')
    (line,) = mistakes_in(tmp_path, lora + engine)
    assert line.startswith("10: training.lora.merge: a server") and line.endswith("set merge = true")


def test_engines_keep_one_sampler_whatever_devices_there_are(
    served: StandIn, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    from loop.workers.up import Engines

    monkeypatch.setattr("loop.workers.up.visible_devices", lambda: [("0", 0), ("1", 1)])
    text = f'[engine]\nsampler = "server"\nserver_url = "{served.url}"\ndtype = "float32"\nnum_threads = 1\n'
    words = json.dumps(RELOAD)
    watch: Any = SimpleNamespace(progress=no_progress, note=pytest.fail)
    engines = Engines(load_text(tmp_path, VALID + text + f"server_command = {words}"), watch)
    with closing(engines):
        sampler = engines.sampler(models["one"])
        assert isinstance(sampler, RemoteSampler), "one asks the server, not one for each device"
        before = ask(sampler, [chat("r", seed=1)], GREEDY)
        assert engines.sampler(models["other"]) is sampler, "the weights change in place"
        assert ask(sampler, [chat("r", seed=1)], GREEDY) != before


def test_doctor_says_what_is_served(served: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    from loop.cli.doctor import _server

    program = "import loop.engines.server_http, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
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


def test_doctor_asks_each_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loop.cli import doctor

    text = VALID + '\n[engine]\nsampler = "server"\nserver_urls = ["http://a/v1", "http://b/v1"]\n'
    loaded = load_text(tmp_path, text)
    monkeypatch.setattr(doctor, "_configuration", lambda call: (loaded, []))
    monkeypatch.setattr(doctor, "_server", lambda url: doctor.Line("server", "ok", url))
    lines = list(doctor._examine(None, deep=False))  # type: ignore[arg-type]
    assert [line.detail for line in lines if line.name == "server"] == ["http://a/v1", "http://b/v1"]
