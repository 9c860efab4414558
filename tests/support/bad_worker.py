"""Worker processes that misbehave, one way for each name: `python bad_worker.py NAME [FILE]`. See tests/loop/workers."""

from __future__ import annotations

import itertools
import os
import signal
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from loop.engines.base import Generated
from loop.errors import LostEngine
from loop.system.trees import guard
from loop.workers.child import Child, PipeFeed
from loop.workers.frames import MAX_FRAME_BYTES, encode_frame

LOADED = {"tokenizer_sha256": ""}


class Gone(LostEngine):
    """As an engine's own module has one."""


def child(answer: Callable[[dict, Child], object], *, loads: bool = True) -> None:
    """A worker that answers as given, with everything else in order. `loads`: whether it loads like any other."""
    serving = Child(os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb"))

    def respond(command: dict) -> object:
        return LOADED if loads and command["op"].startswith("load") else answer(command, serving)

    serving.answer = respond
    serving.run()


def forever(*_: object) -> None:
    while True:
        time.sleep(1)


def hang(command: dict, serving: Child) -> object:
    forever()


def say_and_hang(command: dict, serving: Child) -> object:
    serving.note("a note")
    serving.waits("it waits for rank 1")
    forever()


def spin(command: dict, serving: Child) -> object:
    while True:
        pass


def write(content: bytes) -> None:
    """These bytes, and then nothing more."""
    os.write(1, content)
    forever()


def flood(content: bytes) -> None:
    while True:
        os.write(1, content)


def flood_counting(command: dict, serving: Child) -> object:
    """Ever more done, as fast as it goes: each report is valid and shows progress."""
    for done in itertools.count():
        serving.send(type="progress", done=done, total=2**52)


def flood_log(num_bytes: int) -> None:
    for i in range(num_bytes // 64):
        os.write(2, b"%063d\n" % i)


def frame_of(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def large(element: bytes, num_bytes: int = MAX_FRAME_BYTES) -> bytes:
    """A list of items that is small on the wire and large in memory."""
    body = b'{"type":"items","call":1,"items":[%s]}'
    return frame_of(body % b",".join([element] * ((num_bytes - 60) // (len(element) + 1))))


def daemonise(pid_file: str, clean: bool = False) -> None:
    """A grandchild in its own session, adopted by whoever adopts; it writes its pid and sleeps."""
    if os.fork():
        os.wait()
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    temporary = Path(pid_file + ".tmp")
    temporary.write_text(str(os.getpid()))
    temporary.rename(pid_file)
    if clean:  # of every mark that the worker left on it
        os.closerange(0, 3)
        os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(1000)"], {})
    forever()


def completion(id: str, text: str = "", num_tokens: int = 1, num_prompt: int = 1) -> Generated:
    ids = tuple(range(100_000, 100_000 + num_tokens))
    return Generated(id=id, text=text, token_ids=ids, prompt_token_ids=ids[:num_prompt], finish_reason="length")


def taken(command: dict, serving: Child) -> list[str]:
    """The ids of the first requests of a call."""
    return [request.id for request in PipeFeed(serving, command["total"]).take(32, wait=True)]


def hundred_heartbeats(command: dict, serving: Child) -> object:
    with serving.lock:
        os.write(1, encode_frame({"type": "heartbeat"}) * 100)
    return {}


def large_batch(command: dict, serving: Child) -> object:
    """The largest answer that a real engine gives: 32 completions of 65,536 tokens in one batch."""
    feed = PipeFeed(serving, command["total"])
    while requests := feed.take(32, wait=True):
        serving.items([completion(each.id, "word " * 65536, 65536, 4096) for each in requests])


def writing_while_it_is_written_to(command: dict, serving: Child) -> object:
    """Answers with far more than a pipe holds while requests come to it unasked, which are as many."""
    feed = PipeFeed(serving, command["total"])
    waiting = deque(feed.take(8, wait=True))
    assert not feed.take(1000) and feed.is_owed
    while waiting or (waiting := deque(feed.take(1000, wait=True))):
        serving.items([completion(waiting.popleft().id, "x" * 200_000)])


def insatiable(command: dict, serving: Child) -> object:
    """Asks on when it was told that there is no more."""
    feed = PipeFeed(serving, command["total"])
    while requests := feed.take(32, wait=True):
        serving.items([completion(request.id) for request in requests])
    serving.send(type="want", num=1)
    forever()


def impatient(command: dict, serving: Child) -> object:
    """Asks again before it has what it asked for."""
    feed = PipeFeed(serving, command["total"])
    feed.take(1000, wait=True)
    feed.take(1000)
    serving.send(type="want", num=1)
    forever()


def too_large(command: dict, serving: Child) -> object:
    serving.items([completion(taken(command, serving)[0], " " * (5 << 20))])


def repeating(advancing: bool) -> Callable[[dict, Child], object]:
    """Reports progress for ever."""

    def answer(command: dict, serving: Child) -> object:
        for done in itertools.count():
            serving.send(type="progress", done=done if advancing else done % 2, total=2**52)
            time.sleep(0.01)

    return answer


def loud(command: dict, serving: Child) -> object:
    """Writes 3 MB to its log, and has done."""
    os.write(2, b"the beginning\n")
    flood_log(3 << 20)
    os.write(2, b"the end\n")


def shouting(command: dict, serving: Child) -> object:
    """Writes to its log for ever."""
    while True:
        flood_log(1 << 16)
        time.sleep(0.001)


def oom_score(command: dict, serving: Child) -> object:
    return int(Path("/proc/self/oom_score_adj").read_text())


def out_of_memory(command: dict, serving: Child) -> object:
    raise MemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def lost(command: dict, serving: Child) -> object:
    if "changed" in sys.argv[1] and command["op"].startswith("load"):
        return LOADED
    raise Gone("http://h/v1: does not answer")


def no_tokenizer(command: dict, serving: Child) -> object:
    return {"tokenizer": "what?"}


def wrong_completions(kind: str) -> Callable[[dict, Child], object]:
    def answer(command: dict, serving: Child) -> object:
        first = completion(taken(command, serving)[0]).model_dump(mode="json")
        items = {
            "twice": [first, first],
            "stranger": [first | {"id": "somebody else's"}],
            "too-few": [first],
            "malformed": [{"id": first["id"]}],
            "none": [],
        }[kind]
        serving.send(type="items", items=items)

    return answer


def stale(command: dict, serving: Child) -> object:
    serving.call -= 1
    return {}


def with_daemon(command: dict, serving: Child) -> object:
    if command["op"].startswith("load"):
        daemonise(sys.argv[2], clean="clean" in sys.argv[1])
        return LOADED
    return forever()


def unguarded() -> None:
    """No guard, deaf to SIGTERM, with a daemon that carries the worker's token."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    daemonise(sys.argv[2])
    forever()


WAYS: dict[str, Callable[[], object]] = {
    "hang": lambda: child(hang),
    "spin": lambda: child(spin),
    "say-and-hang": lambda: child(say_and_hang),
    "note-nonsense": lambda: write(encode_frame({"type": "note", "call": 1, "text": 7})),
    "hang-init": lambda: child(hang, loads=False),
    "silent": forever,
    "garbage": lambda: write(b"Traceback (most recent call last):\n" * 10),
    "huge": lambda: write(struct.pack(">I", 2**32 - 1)),
    "no-json": lambda: write(frame_of(b"hello")),
    "nested": lambda: write(frame_of(b"[" * 50000)),
    "no-object": lambda: write(frame_of(b"[]")),
    "flood-heartbeats": lambda: flood(encode_frame({"type": "heartbeat", "call": 1})),
    "flood-padding": lambda: flood(encode_frame({"type": "heartbeat", "more": "x" * 3_000_000})),
    "flood-progress": lambda: flood(encode_frame({"type": "progress", "call": 1, "done": 1, "total": 2})),
    "flood-counting": lambda: child(flood_counting, loads=False),
    "flood-items": lambda: flood(large(b"1", 70)),
    "flood-arrays": lambda: flood(large(b"[]")),
    "flood-strings": lambda: flood(large(b'"ab"', 1_400_000)),
    "flood-wide": lambda: flood(large(b'"\\ud83d\\ude00' + b"a" * (MAX_FRAME_BYTES - 200) + b'"')),
    "flood-garbage": lambda: flood(b"\x00\x10" + os.urandom(1 << 16)),
    "flood-zeros": lambda: flood(bytes(65536)),
    "no-call": lambda: write(encode_frame({"type": "result", "value": {}})),
    "no-progress": lambda: write(encode_frame({"type": "progress", "call": 1, "done": 3, "total": 2})),
    "half-a-frame": lambda: write(struct.pack(">I", 1000) + b"{"),
    "hundred-heartbeats": lambda: child(hundred_heartbeats, loads=False),
    "loud": lambda: child(loud),
    "shouting": lambda: child(shouting),
    "oom-score": lambda: child(oom_score, loads=False),
    "out-of-memory": lambda: child(out_of_memory, loads=False),
    "lost": lambda: child(lost, loads=False),
    "lost-when-changed": lambda: child(lost, loads=False),
    "no-tokenizer": lambda: child(no_tokenizer, loads=False),
    "large-batch": lambda: child(large_batch),
    "writing": lambda: child(writing_while_it_is_written_to),
    "insatiable": lambda: child(insatiable),
    "impatient": lambda: child(impatient),
    "too-large": lambda: child(too_large),
    "repeats": lambda: child(repeating(advancing=False)),
    "advances": lambda: child(repeating(advancing=True)),
    "close": lambda: (os.close(1), forever()),
    "exit": lambda: os._exit(3),
    "segv": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "stale": lambda: child(stale, loads=False),
    "daemon": lambda: child(with_daemon, loads=False),
    "daemon-clean": lambda: child(with_daemon, loads=False),
    **{
        f"completions-{kind}": (lambda kind=kind: child(wrong_completions(kind)))
        for kind in ("twice", "stranger", "too-few", "malformed", "none")
    },
}

if __name__ == "__main__":
    if sys.argv[1] == "unguarded":
        unguarded()
    else:
        guard(WAYS[sys.argv[1]])
