"""Several engines as one: nothing lost, nothing twice, and nothing left over. The engines are processes on a CPU."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from loop.engines.base import CheckpointRef, Forced
from loop.engines.fake import FakeSampler
from loop.engines.feed import feed_of
from loop.errors import ConfigError, EngineError, LostEngine
from loop.workers.pool import Pool, _Share, _Work
from loop.workers.up import Engines
from loop.workers.worker import RemoteSampler, Worker
from tests.loop.system.test_gpus import GB, Driver, driver  # noqa: F401
from tests.support.engines import no_progress
from tests.support.workers import PARAMS, SETTINGS, Begin, Enough, bad, engine_of, fake_model, nothing_left, requests

SLOW = {"LOOP_FAKE_STEP_S": "0.1"}


class Around:
    """A pool of fakes, what it told, and what it started: `ways` says how each engine is at its first start."""

    def __init__(self, directory: Path, start: Callable[..., Worker]) -> None:
        self.notes: list[str] = []
        self.seen: list[tuple[int, int]] = []
        self.callers: set[int] = set()
        self.started: list[tuple[int, Worker]] = []
        self.on_pulse: Callable[[], None] = lambda: None
        self.directory, self.start = directory, start
        self.pool: Pool | None = None

    def model(self, skill: float) -> CheckpointRef:
        return fake_model(self.directory / f"model-{skill}", skill)

    def begin(self, *ways: dict[str, Any]) -> Pool:
        def start_of(number: int, first: dict[str, Any]) -> Any:
            def start(checkpoint: CheckpointRef, pulse: Callable[[], None]) -> RemoteSampler:
                name, way = f"sampler-{number}", {} if any(who == number for who, _ in self.started) else first
                init = {"op": "load_sampler", "checkpoint": checkpoint, "settings": SETTINGS}
                worker = self.start(init=init, log_file=self.directory / f"{name}.log", pulse=pulse, tag=name, **way)
                self.started.append((number, worker))
                return RemoteSampler(worker)

            return start

        self.pool = Pool(
            [start_of(number, way) for number, way in enumerate(ways, 1)],
            self.model(0.5),
            progress=self.told(lambda done, total: self.seen.append((done, total))),
            pulse=self.told(lambda: self.on_pulse()),
            note=self.told(self.notes.append),
        )
        return self.pool

    def told(self, listener: Callable[..., None]) -> Callable[..., None]:
        """This listener; the threads that it is called from are kept."""

        def tell(*what: Any) -> None:
            self.callers.add(threading.get_ident())
            listener(*what)

        return tell

    def worker(self, number: int) -> Worker:
        return next(worker for who, worker in reversed(self.started) if who == number)


@pytest.fixture
def around(tmp_path: Path, start: Callable[..., Worker]) -> Iterator[Around]:
    before = set(threading.enumerate())
    around = Around(tmp_path, start)
    yield around
    if around.pool:
        around.pool.close()
    assert set(threading.enumerate()) <= before
    assert around.callers <= {threading.get_ident()}
    assert nothing_left()


def by_id(calls: Iterator[list[Any]]) -> dict[str, Any]:
    everything = [answer for batch in calls for answer in batch]
    assert len({answer.id for answer in everything}) == len(everything), "twice"
    return {answer.id: answer for answer in everything}


def expected(around: Around, count: int, skill: float = 0.5) -> dict[str, Any]:
    return by_id(FakeSampler(around.model(skill), SETTINGS, no_progress).generate(requests(count), PARAMS))


def test_each_completion_once_and_the_same_as_of_one(around: Around) -> None:
    pool = around.begin({}, {}, {})
    for count in (1, 2, 5, 100):
        assert by_id(pool.generate(requests(count), PARAMS)) == expected(around, count)
        assert around.seen[-1] == (count, count)
    reports = [done for done, total in around.seen if total == 100]
    assert reports == sorted(reports)
    assert list(pool.generate([], PARAMS)) == []
    texts = [Forced(id=f"t{i}", prompt_token_ids=(100,), token_ids=(32, 33)) for i in range(30)]
    alone = FakeSampler(around.model(0.5), SETTINGS, no_progress)
    assert by_id(pool.probe(texts, PARAMS, 5)) == by_id(alone.probe(texts, PARAMS, 5))
    assert around.notes == [] and not pool.ended


def test_all_take_other_weights(around: Around) -> None:
    pool = around.begin({}, {})
    assert pool.change(around.model(0.9))
    assert by_id(pool.generate(requests(60), PARAMS)) == expected(around, 60, 0.9)
    assert len(around.started) == 2


def test_one_that_does_not_show_new_weights_is_enough(around: Around, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = around.begin({}, {})
    monkeypatch.setattr(pool._members[1].sampler, "change", lambda checkpoint: False)
    assert pool.change(around.model(0.9)) is False


def test_one_killed_in_the_middle_loses_nothing_and_comes_back(around: Around) -> None:
    pool = around.begin({"environment": SLOW}, {"environment": SLOW})
    calls = pool.generate(requests(60), PARAMS)
    first = next(calls)
    os.kill(engine_of(around.worker(1)), signal.SIGKILL)
    everything = by_id(iter([first, *calls]))
    assert everything == expected(around, 60)
    assert len(around.notes) == 1 and around.notes[0].startswith("sampler-1: it was killed (out of memory?)")
    assert "lower engine.batch_size" in around.notes[0]
    assert by_id(pool.generate(requests(30), PARAMS)) == expected(around, 30)  # by the other alone
    assert len(around.notes) == 1 and len(around.started) == 2
    assert pool.change(around.model(0.9))
    assert len(around.started) == 3 and around.started[2][0] == 1
    assert by_id(pool.generate(requests(60), PARAMS)) == expected(around, 60, 0.9)
    assert len(around.notes) == 1


def test_one_that_died_unseen_is_started_with_the_weights(around: Around) -> None:
    pool = around.begin({}, {})
    os.kill(engine_of(around.worker(2)), signal.SIGKILL)
    around.worker(2).process.wait()
    assert pool.change(around.model(0.9))
    assert len(around.started) == 3 and len(around.notes) == 1
    assert by_id(pool.generate(requests(60), PARAMS)) == expected(around, 60, 0.9)


def test_the_last_one_that_dies_is_raised(around: Around) -> None:
    pool = around.begin({"environment": SLOW}, {"environment": SLOW})
    calls = pool.generate(requests(100), PARAMS)
    next(calls)
    for number in (1, 2):
        os.kill(engine_of(around.worker(number)), signal.SIGKILL)
    with pytest.raises(EngineError, match=r"^sampler-[12]: it was killed"):
        list(calls)
    assert pool.ended and len(around.notes) <= 1
    for call in (lambda: list(pool.generate(requests(1), PARAMS)), lambda: pool.change(around.model(0.9))):
        with pytest.raises(EngineError, match="its engines were ended"):
            call()


@pytest.mark.parametrize("kind", ["twice", "stranger", "malformed", "none"])
def test_nonsense_is_the_end_of_one_and_its_work_is_done_by_others(around: Around, kind: str) -> None:
    pool = around.begin({"command": bad(f"completions-{kind}")}, {"environment": SLOW})
    assert by_id(pool.generate(requests(60), PARAMS)) == expected(around, 60)
    assert len(around.notes) == 1 and around.notes[0].startswith("sampler-1: it ")
    assert around.worker(1).ended and not pool.ended


def test_a_request_that_can_never_fit_is_raised_and_all_stay(around: Around) -> None:
    pool = around.begin({}, {})
    long = requests(1)[0].model_copy(update={"id": "long", "prefill": "x" * 70_000})
    with pytest.raises(EngineError, match=r"^a prompt that begins 'xxx"):
        list(pool.generate([*requests(20), long], PARAMS))
    assert not around.worker(1).ended and not around.worker(2).ended and around.notes == []
    assert by_id(pool.generate(requests(20), PARAMS)) == expected(around, 20)


def enough() -> None:
    raise Enough


def test_a_pulse_that_raises_ends_all(around: Around) -> None:
    pool = around.begin({"environment": SLOW}, {"command": bad("hang")})
    calls = pool.generate(requests(100), PARAMS)
    next(calls)
    around.on_pulse = enough
    with pytest.raises(Enough):
        list(calls)
    assert pool.ended and nothing_left()


def test_a_pulse_that_raises_ends_the_loading(around: Around) -> None:
    around.on_pulse = enough
    with pytest.raises(Enough):
        around.begin({}, {"command": bad("hang-init")})
    assert nothing_left()


def test_a_start_that_fails_ends_the_others_that_load(around: Around) -> None:
    with pytest.raises(EngineError, match="sampler-1: it ended with exit code 3"):
        around.begin({"command": bad("exit")}, {"command": bad("hang-init")})
    assert nothing_left()


def test_one_that_has_lost_what_it_asks_is_done_without_from_the_start(around: Around) -> None:
    pool = around.begin({}, {"command": bad("lost")})
    (note,) = around.notes
    assert note.startswith("http://h/v1: does not answer; the other engines take over its work")
    assert by_id(pool.generate(requests(30), PARAMS)) == expected(around, 30)
    assert pool.change(around.model(0.9))
    assert around.notes == [note, note], "it was tried again, and says so again"
    assert by_id(pool.generate(requests(30), PARAMS)) == expected(around, 30, 0.9)


def test_when_all_have_lost_what_they_ask_it_is_raised(around: Around) -> None:
    with pytest.raises(LostEngine, match="^http://h/v1: does not answer$"):
        around.begin({"command": bad("lost")}, {"command": bad("lost")})
    assert nothing_left() and around.notes == []


def test_one_that_loses_it_with_other_weights_is_not_started_at_once(around: Around) -> None:
    pool = around.begin({}, {"command": bad("lost-when-changed")})
    assert pool.change(around.model(0.9))
    assert len(around.notes) == 1 and len(around.started) == 2
    assert pool.change(around.model(0.5))
    assert len(around.notes) == 1 and len(around.started) == 3
    assert by_id(pool.generate(requests(30), PARAMS)) == expected(around, 30)


def test_only_as_many_probe_as_may(around: Around) -> None:
    """And when the one that may dies, the next does it."""
    pool = around.begin({}, {}, {})
    pool.num_probing = 1
    texts = [Forced(id=f"t{i}", prompt_token_ids=(100,), token_ids=(32, 33)) for i in range(100)]
    wanted = by_id(FakeSampler(around.model(0.5), SETTINGS, no_progress).probe(texts, PARAMS, 5))
    others: list[Any] = [member.sampler for member in pool._members[1:]]
    probe, others[0].probe = others[0].probe, None
    others[1].probe = None
    assert by_id(pool.probe(texts, PARAMS, 5)) == wanted
    others[0].probe = probe
    os.kill(engine_of(around.worker(1)), signal.SIGKILL)
    assert by_id(pool.probe(texts, PARAMS, 5)) == wanted
    assert len(around.notes) == 1 and not pool.ended


@pytest.mark.parametrize("way", ["closed", "another call", "dropped"])
def test_a_call_given_up_half_way_leaves_nothing_busy(around: Around, way: str) -> None:
    pool = around.begin({"environment": SLOW}, {"command": bad("hang")})
    calls: Any = pool.generate(requests(100), PARAMS)
    next(calls)
    if way == "closed":
        calls.close()
    elif way == "dropped":
        calls = None
    else:
        with pytest.raises(EngineError, match="given up half-way"):
            list(pool.generate(requests(1), PARAMS))
        with pytest.raises(EngineError, match="were ended"):
            list(calls)
    assert pool.ended and nothing_left()


def test_a_caller_that_dawdles_has_few_lists_waiting(around: Around) -> None:
    """However much is asked for, what is finished and not taken is bounded: the engines wait."""
    pool = around.begin({}, {})
    calls = pool.generate(requests(400), PARAMS)
    first = next(calls)
    assert pool._out.maxsize == 4
    assert by_id(iter([first, *calls])) == expected(around, 400)


def test_the_slow_one_gets_fewer(around: Around) -> None:
    pool = around.begin({"environment": {"LOOP_FAKE_STEP_S": "1"}}, {})
    got: Counter[int] = Counter()
    for number, member in enumerate(pool._members, 1):
        ask: Any = member.sampler.generate  # type: ignore[union-attr]

        def counted(share: Any, params: Any, number: int = number, ask: Any = ask) -> Any:
            for batch in ask(share, params):
                got[number] += len(batch)
                yield batch

        member.sampler.generate = counted  # type: ignore[union-attr, method-assign]
    assert by_id(pool.generate(requests(100), PARAMS)) == expected(around, 100)
    assert got[1] + got[2] == 100 and got[1] < got[2]


# ---- the hand-out by itself ------------------------------------------------------------------------------------------

NUM_ENGINES = 3


class Handing(RuleBasedStateMachine):
    """Engines take, finish and die in any order. A request is what it says: one of `given`, in one engine, or done."""

    @initialize(total=st.integers(0, 60))
    def begin(self, total: int) -> None:
        self.given = requests(total)
        self.work = _Work(feed_of(self.given), NUM_ENGINES)
        self.shares = {number: _Share(self.work) for number in range(NUM_ENGINES)}
        self.held: dict[int, list[str]] = {number: [] for number in self.shares}
        self.taken: list[str] = []  # in order; once more for each time that an engine died with it
        self.done: list[str] = []

    def alive(self, data: st.DataObject) -> int | None:
        return data.draw(st.sampled_from(sorted(self.shares))) if self.shares else None

    @rule(data=st.data(), num=st.integers(0, 20))
    def take(self, data: st.DataObject, num: int) -> None:
        if (number := self.alive(data)) is None:
            return
        unfinished, own = len(self.given) - len(self.done), len(self.held[number])
        ids = [request.id for request in self.shares[number].take(num)]
        assert len(ids) <= num and own + len(ids) <= max(own, -(-unfinished // len(self.shares)))
        if not ids and num and not own:  # an engine without work gets some wherever some is left
            assert unfinished == sum(map(len, self.held.values()))
        self.held[number] += ids
        self.taken += ids

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        if (number := self.alive(data)) is not None and self.held[number]:
            ids = data.draw(st.lists(st.sampled_from(self.held[number]), min_size=1, unique=True))
            self.shares[number].finish([request for request in self.given if request.id in ids])
            self.held[number] = [id for id in self.held[number] if id not in ids]
            self.done += ids

    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        if (number := self.alive(data)) is not None and len(self.shares) > 1:
            share = self.shares.pop(number)
            assert sorted(share.missing) == sorted(self.held.pop(number))
            self.work.give_back(share.missing.values())

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        if not hasattr(self, "given"):
            return
        held = [id for ids in self.held.values() for id in ids]
        assert len({*held, *self.done}) == len(held) + len(self.done), "twice"
        assert self.work.num_held == len(held)
        assert self.work.num_left == len(self.given) - len(held) - len(self.done)
        first = list(dict.fromkeys(self.taken))
        assert first == [request.id for request in self.given[: len(first)]], "the order in which they were asked for"

    def teardown(self) -> None:
        """Those that are left finish everything; then, and only then, there is no more."""
        if not hasattr(self, "given"):
            return
        while self.work.num_held or self.work.is_more():
            for share in self.shares.values():
                taken = share.take(5)
                assert len(taken) <= 5
                share.finish(answers := [request for request in self.given if request.id in share.missing])
                self.done += [request.id for request in answers]
        assert sorted(self.done) == sorted(request.id for request in self.given)


TestHanding = Handing.TestCase
TestHanding.settings = settings_of_hypothesis(max_examples=50, stateful_step_count=30, deadline=None)


def test_near_the_end_all_engines_have_equally_many() -> None:
    work = _Work(feed_of(requests(100)), 4)
    shares = [_Share(work) for _ in range(4)]
    for share in shares:
        share.take(64)
    assert [len(share.missing) for share in shares] == [25, 25, 25, 25]
    work = _Work(feed_of(requests(1000)), 4)
    assert len(_Share(work).take(64)) == 64, "nothing limits it as long as much is left"


# ---- GPUs, by a stand-in for their driver ----------------------------------------------------------------------------


def variables(engines: Engines, tmp_path: Path, name: str = "CUDA_VISIBLE_DEVICES") -> list[str | None]:
    """What each engine of a sampler has in its environment under this name."""
    sampler = engines.sampler(fake_model(tmp_path / "model"))
    workers = [sampler.worker] if isinstance(sampler, RemoteSampler) else [m.sampler.worker for m in sampler._members]
    return [psutil.Process(engine_of(worker)).environ().get(name) for worker in workers]


@pytest.mark.parametrize(
    ("visible", "settings", "expected"),
    [
        (None, {"device": "cuda"}, ["0", "1", "2", "3"]),
        (None, {"gpus_per_engine": 2}, ["0,1", "2,3"]),
        (None, {"gpus_per_engine": 3}, [None]),
        (None, {"num_engines": 2}, ["0", "1"]),
        (None, {"num_engines": 1}, [None]),
        (None, {"device": "cpu"}, [None]),
        (None, {"device": "cpu", "num_engines": 2}, [None, None]),
        ("3, 1", {}, ["3", "1"]),
        ("2", {}, ["2"]),
        ("", {}, [""]),
        ("GPU-22,GPU-00", {}, ["GPU-22", "GPU-00"]),
        ("MIG-a,MIG-b", {}, ["MIG-a", "MIG-b"]),
    ],
)
def test_each_engine_sees_its_own_devices(
    driver: Driver, begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,  # noqa: F811
    visible: str | None, settings: dict[str, Any], expected: list[str | None],
) -> None:  # fmt: skip
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert variables(begin(**{"device": "auto"} | settings), tmp_path) == expected
    if len(expected) > 1:
        logs = {f"sampler-{number}.log" for number in range(1, len(expected) + 1)}
        assert {path.name for path in (tmp_path / "logs").iterdir()} == logs


def test_engines_on_a_cpu_are_bound_to_cores_of_their_own(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 2, 4, 5, 7})
    assert variables(begin(num_engines=2), tmp_path, "VLLM_CPU_OMP_THREADS_BIND") == ["1,2", "4,5"]


def test_more_engines_than_devices_are_refused(driver: Driver, begin: Begin, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match="num_engines = 3 needs 6 GPUs .*but 4 are visible"):
        variables(begin(device="auto", num_engines=3, gpus_per_engine=2), tmp_path)


def test_an_engine_that_died_waits_for_the_memory_of_its_own_device(
    driver: Driver, begin: Begin, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    engines = begin(device="auto", num_engines=2)
    pool = engines.sampler(fake_model(tmp_path / "model"))
    assert isinstance(pool, Pool) and pool._members[0].sampler
    driver.used[:2] = [70 * GB, 70 * GB]  # the second engine's own model, and what the first has left
    worker = pool._members[0].sampler.worker
    os.kill(engine_of(worker), signal.SIGKILL)
    worker.process.wait()
    driver.num_asked = 0
    driver.on_ask = lambda: driver.used.__setitem__(0, (70 if driver.num_asked < 2 else 5) * GB)
    assert engines.sampler(fake_model(tmp_path / "next", 0.9, sha256="1" * 64)) is pool
    assert driver.num_asked == 3
    assert pool._members[0].sampler and engines.serving("1" * 64) is pool
