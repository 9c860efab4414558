"""Worker processes that misbehave, one way for each name: `python bad_worker.py NAME [FILE]`. See tests/loop/workers."""

from __future__ import annotations

import itertools
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

from loop.engines.base import Generated
from loop.system.trees import guard
from loop.workers.child import Child
from loop.workers.frames import MAX_FRAME_BYTES, encode_frame


def child(answer: Callable[[dict], object]) -> None:
    """A worker that answers as given, with everything else in order."""
    serving = Child(os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb"))
    serving.answer = answer if answer.__code__.co_argcount == 1 else lambda command: answer(command, serving)
    serving.run()


def forever(*ignored: object) -> None:
    while True:
        time.sleep(1)


def spin_second(command: dict) -> object:
    """Loads, then computes for ever while its heart beats."""
    while not command["op"].startswith("load"):
        pass
    return {"tokenizer_sha256": ""}


def write(content: bytes) -> None:
    os.write(1, content)


def flood(content: bytes) -> None:
    while True:
        os.write(1, content)


def flood_counting(serving: Child) -> None:
    """Ever more done, as fast as it goes: each report is valid and shows progress."""
    for done in itertools.count():
        serving.send(type="progress", done=done, total=2**52)


def flood_log(num_bytes: int) -> None:
    for i in range(num_bytes // 64):
        os.write(2, b"%063d\n" % i)


def frame_of(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def dear(element: bytes, num_bytes: int = MAX_FRAME_BYTES) -> bytes:
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


def hang_second(command: dict) -> object:
    """Loads, then hangs on the next command while its heart beats."""
    return {"tokenizer_sha256": ""} if command["op"].startswith("load") else forever()


def generated(identifier: str) -> dict:
    return Generated(id=identifier, text="", token_ids=(1,), prompt_token_ids=(1,), finish_reason="length").model_dump(
        mode="json"
    )


def hundred_heartbeats(command: dict, serving: Child) -> object:
    frames = [encode_frame({"type": "heartbeat"})] * 100
    with serving.lock:
        os.write(1, b"".join(frames))
    return {}


def result(**value: object) -> Callable[[dict], object]:
    return lambda command: value


def large_batch(command: dict, serving: Child) -> object:
    """The largest answer that a real engine gives: 32 completions of 65,536 tokens in one batch."""
    if command["op"] != "generate":
        return {"tokenizer_sha256": ""}
    ids = tuple(range(100_000, 165_536))
    serving.items([
        Generated(id=r["id"], text="word " * 65536, token_ids=ids, prompt_token_ids=ids[:4096], finish_reason="length")
        for r in command["requests"]
    ])  # fmt: skip
    return None


def too_large(command: dict, serving: Child) -> object:
    if command["op"] != "generate":
        return {"tokenizer_sha256": ""}
    serving.items([Generated(**generated(command["requests"][0]["id"]) | {"text": " " * (5 << 20)})])
    return None


def repeating(period_s: float, advancing: bool) -> Callable[[dict, Child], object]:
    """Loads, then reports progress for ever."""

    def answer(command: dict, serving: Child) -> object:
        if command["op"] != "generate":
            return {"tokenizer_sha256": ""}
        for done in itertools.count():
            serving.send(type="progress", done=done if advancing else done % 2, total=2**52)
            time.sleep(period_s)

    return answer


def loud(command: dict) -> object:
    """Loads, then writes 3 MB to its log; then it waits to be asked again."""
    if not command["op"].startswith("load"):
        os.write(2, b"the beginning\n")
        flood_log(3 << 20)
        os.write(2, b"the end\n")
    return {"tokenizer_sha256": ""}


def shouting(command: dict) -> object:
    """Loads, then writes to its log for ever."""
    if command["op"].startswith("load"):
        return {"tokenizer_sha256": ""}
    while True:
        flood_log(1 << 16)
        time.sleep(0.001)


def oom_score(command: dict) -> object:
    return int(Path("/proc/self/oom_score_adj").read_text())


def out_of_memory(command: dict) -> object:
    raise MemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def wrong_completions(kind: str) -> Callable[[dict, Child], object]:
    def answer(command: dict, serving: Child) -> object:
        if command["op"] != "generate":
            return {"tokenizer_sha256": ""}
        first = command["requests"][0]["id"]
        items = {
            "twice": [generated(first), generated(first)],
            "stranger": [generated("somebody else's")],
            "too-few": [generated(first)],
            "malformed": [{"id": first}],
            "none": [],
        }[kind]
        serving.send(type="items", items=items)
        return None

    return answer


def stale(command: dict, serving: Child) -> object:
    serving.call -= 1
    return {}


def with_daemon(command: dict) -> object:
    if command["op"].startswith("load"):
        daemonise(sys.argv[2], clean="clean" in sys.argv[1])
        return {"tokenizer_sha256": ""}
    return forever()


def unguarded() -> None:
    """No guard, deaf to SIGTERM, with a daemon that carries the worker's token."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    daemonise(sys.argv[2])
    forever()


WAYS: dict[str, Callable[[], object]] = {
    "hang": lambda: child(hang_second),
    "spin": lambda: child(spin_second),
    "hang-init": lambda: child(forever),
    "silent": forever,
    "garbage": lambda: (write(b"Traceback (most recent call last):\n" * 10), forever()),
    "huge": lambda: (write(struct.pack(">I", 2**32 - 1)), forever()),
    "no-json": lambda: (write(struct.pack(">I", 5) + b"hello"), forever()),
    "nested": lambda: (write(struct.pack(">I", 50000) + b"[" * 50000), forever()),
    "no-object": lambda: (write(struct.pack(">I", 2) + b"[]"), forever()),
    "flood-heartbeats": lambda: flood(encode_frame({"type": "heartbeat", "call": 1})),
    "flood-padding": lambda: flood(encode_frame({"type": "heartbeat", "more": "x" * 3_000_000})),
    "flood-progress": lambda: flood(encode_frame({"type": "progress", "call": 1, "done": 1, "total": 2})),
    "flood-counting": lambda: child(lambda command, serving: flood_counting(serving)),
    "flood-items": lambda: flood(dear(b"1", 70)),
    "flood-arrays": lambda: flood(dear(b"[]")),
    "flood-strings": lambda: flood(dear(b'"ab"', 1_400_000)),
    "flood-wide": lambda: flood(dear(b'"\\ud83d\\ude00' + b"a" * (MAX_FRAME_BYTES - 200) + b'"')),
    "flood-garbage": lambda: flood(b"\x00\x10" + os.urandom(1 << 16)),
    "flood-zeros": lambda: flood(bytes(65536)),
    "no-call": lambda: (write(encode_frame({"type": "result", "value": {}})), forever()),
    "no-progress": lambda: (write(encode_frame({"type": "progress", "call": 1, "done": 3, "total": 2})), forever()),
    "half-a-frame": lambda: (write(struct.pack(">I", 1000) + b"{"), forever()),
    "flood-log": lambda: flood_log(1 << 40),
    "hundred-heartbeats": lambda: child(hundred_heartbeats),
    "loud": lambda: child(loud),
    "shouting": lambda: child(shouting),
    "oom-score": lambda: child(oom_score),
    "out-of-memory": lambda: child(out_of_memory),
    "no-tokenizer": lambda: child(result(tokenizer="what?")),
    "large-batch": lambda: child(large_batch),
    "too-large": lambda: child(too_large),
    "repeats": lambda: child(repeating(0.01, advancing=False)),
    "advances": lambda: child(repeating(0.01, advancing=True)),
    "close": lambda: (os.close(1), forever()),
    "exit": lambda: os._exit(3),
    "segv": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "stale": lambda: child(stale),
    "daemon": lambda: child(with_daemon),
    "daemon-clean": lambda: child(with_daemon),
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
