"""Worker processes: what they answer, and what they may do wrong."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loop.engines.base import CheckpointRef, Request
from loop.engines.feed import Feed, Listed
from loop.errors import ConfigError, EngineError, LostEngine
from loop.system import trees as guard
from loop.workers.child import Child
from loop.workers.frames import encode_frame, receive_frame
from loop.workers.worker import RemoteSampler, RemoteTrainer
from tests.support import ROOT, SUPPORT
from tests.support.engines import settings
from tests.support.workers import PARAMS, SETTINGS, Start, alive, generate, nothing_left, requests, tree


def test_a_good_worker_answers_reports_progress_and_leaves_nothing(start: Start) -> None:
    seen: list[tuple[int, int]] = []
    worker = start(progress=lambda done, total: seen.append((done, total)))
    assert [len(batch) for batch in generate(worker, 10)] == [4, 4, 2]
    assert seen[-1] == (10, 10)
    assert len(tree(worker)) == 2
    for _ in range(2):
        RemoteSampler(worker).close()
        assert nothing_left()
    with pytest.raises(EngineError, match="sampler: it was ended"):
        generate(worker)


NONSENSE = {  # by what is said of it
    "announced a message of 1416782179 bytes": "garbage",
    "announced a message of 4294967295 bytes": "huge",
    "not JSON": "no-json nested flood-zeros flood-garbage",
    "not an object": "no-object",
    "more than 5000 messages within a second": "flood-heartbeats flood-padding flood-progress flood-counting",
    "completions that were not asked for": "flood-items",
    r"has \d+ values; the limit is 300000": "flood-arrays",
    "no progress for 0.5 s.*raise engine.stall_timeout_s": "silent half-a-frame hang-init",
    "closed its pipe": "close",
    "ended with exit code 3": "exit",
    "ended by signal 11": "segv",
    "answered a call that was not made": "stale no-call",
    "unknown type 'progress'": "no-progress",
}


@pytest.mark.parametrize(
    ("way", "message"), [(way, message) for message, ways in NONSENSE.items() for way in ways.split()]
)
def test_nonsense_is_named_and_the_worker_ended(
    start: Start, way: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "END_TIMEOUT_S", 1.0)
    with pytest.raises(EngineError, match=f"^sampler: .*{message}.*; .*see .*worker.log$"):
        start(way, stall_timeout_s=0.5 if "0.5 s" in message else 600.0)
    assert nothing_left()


@pytest.mark.parametrize("kind", ["twice", "stranger", "too-few", "malformed", "none"])
def test_every_request_is_answered_once_or_the_worker_is_ended(start: Start, kind: str) -> None:
    worker = start(f"completions-{kind}")
    message = "of unknown type 'items'" if kind == "none" else "completion"
    with pytest.raises(EngineError, match=f"sampler: .*{message}.* was ended"):
        generate(worker, 2)
    assert worker.process.poll() is not None


def test_a_worker_has_only_the_requests_that_it_took(start: Start) -> None:
    """Of any number. They are made while it works."""
    made = 0

    def making() -> Iterator[Request]:
        nonlocal made
        for request in requests(400):
            made += 1
            yield request

    num_done = 0
    for batch in RemoteSampler(start()).generate(Listed(making(), 400), PARAMS):
        num_done += len(batch)
        assert num_done <= made <= num_done + 2 * SETTINGS.batch_size
    assert num_done == made == 400


class Delayed(Feed[Request]):
    """A feed that at first has eight requests, and the others once one of those is finished; as when an engine dies."""

    def __init__(self, prompt: str) -> None:
        self.total, self.num_asked = 72, 0
        self.first = [request.model_copy(update={"prefill": prompt}) for request in requests(8)]
        self.rest = [request.model_copy(update={"prefill": prompt}) for request in requests(72)[8:]]

    def take(self, num: int, wait: bool = False) -> list[Request]:
        self.num_asked += 1
        taken: list[Request] = []
        if self.num_asked != 2:  # the second time, the worker has all that there is
            taken, self.first, self.rest = self.first, self.rest, []
        return taken


def test_both_pipes_may_be_full(start: Start) -> None:
    """Requests come unasked while the worker writes: neither side waits for the other, however much there is."""
    worker = start("writing", stall_timeout_s=20.0)
    drawn = [each.id for batch in RemoteSampler(worker).generate(Delayed("x" * 50_000), PARAMS) for each in batch]
    assert sorted(drawn) == sorted(request.id for request in requests(72))


@pytest.mark.parametrize("way", ["insatiable", "impatient"])
def test_a_worker_that_asks_out_of_turn_is_ended(start: Start, way: str) -> None:
    with pytest.raises(EngineError, match="unknown type 'want' and was ended"):
        list(RemoteSampler(start(way)).generate(Delayed("x"), PARAMS))


def test_a_call_given_up_half_way_ends_the_worker(start: Start) -> None:
    worker = start()
    calls = RemoteSampler(worker).generate(requests(100), PARAMS)
    assert len(next(calls)) == 4
    del calls
    assert worker.process.poll() is not None

    worker = start()
    calls = RemoteSampler(worker).generate(requests(100), PARAMS)
    next(calls)
    with pytest.raises(EngineError, match="given up half-way"):
        generate(worker)
    with pytest.raises(EngineError, match="it was ended"):
        list(calls)


def test_an_exception_in_progress_ends_the_worker(start: Start) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    worker = start(progress=stop)
    with pytest.raises(KeyboardInterrupt):
        generate(worker, 5)
    assert worker.process.poll() is not None


def test_a_reported_error_crosses_by_kind_and_the_worker_stays(start: Start, tmp_path: Path) -> None:
    worker = start()
    with pytest.raises(EngineError, match="request r0: the prompt is empty"):
        list(RemoteSampler(worker).generate([Request(id="r0", seed=1)], PARAMS))
    assert len(generate(worker, 4)) == 1
    with pytest.raises(EngineError, match="unknown command 'dance'"):
        worker.call({"op": "dance"})
    with pytest.raises(EngineError, match="^sampler: FileNotFoundError: .*nowhere.*; see .*worker.log$"):
        checkpoint = CheckpointRef(sha256="", path=tmp_path / "nowhere")
        worker.call({"op": "load_sampler", "checkpoint": checkpoint, "settings": SETTINGS})
    assert "Traceback" in worker.log_file.read_text()


def test_one_whose_engine_is_lost_is_ended(start: Start) -> None:
    worker = start("lost-when-changed")
    with pytest.raises(LostEngine, match="^http://h/v1: does not answer$"):
        worker.call({"op": "change_weights"})
    assert worker.ended and not alive(worker.process.pid)


def test_the_first_report_of_a_call_never_waits_behind_the_call_before() -> None:
    """Reports are rare enough not to cost anything, and what stands still after its first one would otherwise show nothing."""
    done = iter([4, 1])
    commands = b"".join(encode_frame({"op": "report", "call": call}) for call in (1, 2))
    child = Child(io.BytesIO(commands), answers := io.BytesIO())
    child.answer = lambda command: child.progress(next(done), 4)  # type: ignore[method-assign]
    child.run()
    answers.seek(0)
    seen = [frame for frame in iter(lambda: receive_frame(answers), None) if frame["type"] == "progress"]
    assert [(frame["call"], frame["done"]) for frame in seen] == [(1, 4), (2, 1)]


def test_a_config_error_stays_one(start: Start) -> None:
    checkpoint = CheckpointRef(sha256="", path="/")
    with pytest.raises(ConfigError, match=r'engine\.device: "cuda" is asked for'):
        start(init={"op": "load_sampler", "checkpoint": checkpoint, "settings": settings(device="cuda")})


def test_the_package_is_found_from_anywhere(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what lies in the working directory is never imported in its place."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "loop").mkdir(parents=True)
    (elsewhere / "loop" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    (elsewhere / "json.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(elsewhere)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert len(generate(start())) == 1


def test_a_worker_that_cannot_be_started(start: Start) -> None:
    with pytest.raises(EngineError, match="sampler: cannot be started: .*no-such-program.*this user.*log"):
        start(command=["/no-such-program"])


FLOODS = (
    "huge", "garbage", "flood-garbage", "flood-heartbeats", "flood-counting", "flood-arrays", "flood-strings",
    "flood-wide", "large-batch",
)  # fmt: skip


def test_the_parent_imports_no_torch_and_stays_small_whatever_comes(tmp_path: Path) -> None:
    """Hostile floods, and the largest batch that a real engine could answer with."""
    script = (
        "import sys, loop.daemon.loopd, loop.run.session\n"
        "from pathlib import Path\n"
        "from loop.engines.base import Request, SamplingParams\n"
        "from loop.errors import EngineError\n"
        "from loop.workers.worker import RemoteSampler, Worker\n"
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith('VmHWM'))\n"
        "requests = [Request(id=str(i), prefill='x', seed=0) for i in range(32)]\n"
        "print('at-rest', '-', peak(), flush=True)\n"
        "for way in sys.argv[3:]:\n"
        "    Path('/proc/self/clear_refs').write_text('5')\n"
        "    said, num = 'nothing', 0\n"
        "    try:\n"
        "        worker = Worker({'op': 'load'}, log_file=Path(sys.argv[1]), stall_timeout_s=30, progress=lambda d, t: None,\n"
        "                        command=[sys.executable, '-P', sys.argv[2], way])\n"
        "        for batch in RemoteSampler(worker).generate(requests, SamplingParams(temperature=1, max_new_tokens=9)):\n"
        "            num += len(batch)\n"
        "        worker.end()\n"
        "    except EngineError as error:\n"
        "        said = 'error'\n"
        "    print(way, num or said, peak(), flush=True)\n"
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'datasets', 'numpy', 'pynvml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path / "log"), str(SUPPORT / "bad_worker.py"), *FLOODS]
    done = subprocess.run(arguments, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True, timeout=120)
    rows = [line.rsplit(maxsplit=2) for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == ["at-rest", *FLOODS]
    assert rows[-1][1] == "32" and {row[1] for row in rows[1:-1]} == {"error"}
    assert max(int(row[2]) for row in rows) < 100e6


def test_a_completion_that_fits_no_message_is_named_and_the_worker_stays(start: Start) -> None:
    worker = start("too-large")
    with pytest.raises(EngineError, match="5242880 characters cannot be sent.*the limit is 4194304; lower max_new_tok"):
        generate(worker)
    assert not worker.ended


def test_a_worker_that_does_not_name_its_tokenizer_is_ended(start: Start) -> None:
    worker = start("no-tokenizer")
    with pytest.raises(EngineError, match="sampler: it did not name its tokenizer"):
        RemoteSampler(worker)
    assert worker.ended


def test_a_training_result_that_is_none_ends_the_worker(start: Start, tmp_path: Path) -> None:
    worker = start("no-tokenizer", tag="trainer")
    with pytest.raises(EngineError, match="trainer: it sent a malformed training result"):
        RemoteTrainer(worker).fit(tmp_path, CheckpointRef(sha256="", path=tmp_path), {}, tmp_path)
    assert worker.ended


def test_memory_that_runs_out_inside_is_named_with_the_remedy(start: Start) -> None:
    message = "trainer: MemoryError: CUDA out of memory.*; lower training.micro_batch_size;"
    with pytest.raises(EngineError, match=message):
        start("out-of-memory", tag="trainer")
