"""Worker processes that misbehave, one way for each name: `python bad_worker.py NAME [FILE]`. See test_worker.py."""

from __future__ import annotations

import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

from loop import worker
from loop.engines.base import Generated


def child(answer: Callable[[dict], object]) -> None:
    """A worker that answers as given, with everything else in order."""
    serving = worker.Child(os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb"))
    serving.answer = answer if answer.__code__.co_argcount == 1 else lambda command: answer(command, serving)
    serving.run()


def forever(*ignored: object) -> None:
    while True:
        time.sleep(1)


def write(content: bytes) -> None:
    os.write(1, content)


def flood(content: bytes) -> None:
    while True:
        os.write(1, content)


def daemonise(pid_file: str, clean: bool = False, hold_pipe: bool = True) -> None:
    """A grandchild in its own session, adopted by whoever adopts; it writes its pid and sleeps."""
    if os.fork():
        os.wait()
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if not hold_pipe:
        os.closerange(0, 3)
    temporary = Path(pid_file + ".tmp")
    temporary.write_text(str(os.getpid()))
    temporary.rename(pid_file)
    if clean:
        os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(1000)"], {})
    forever()


def hang_second(command: dict) -> object:
    """Loads, then hangs on the next command while its heart beats."""
    return {"tokenizer_sha256": ""} if command["op"].startswith("load") else forever()


def generated(identifier: str) -> dict:
    return Generated(id=identifier, text="", token_ids=(1,), prompt_token_ids=(1,), finish_reason="length").model_dump(
        mode="json"
    )


def wrong_completions(kind: str) -> Callable[[dict, worker.Child], object]:
    def answer(command: dict, serving: worker.Child) -> object:
        if command["op"] != "generate":
            return {"tokenizer_sha256": ""}
        first = command["requests"][0]["id"]
        items = {
            "twice": [generated(first), generated(first)],
            "stranger": [generated("somebody else's")],
            "too-few": [generated(first)],
            "malformed": [{"id": first}],
        }[kind]
        serving.send(type="items", items=items)
        return None

    return answer


def stale(command: dict, serving: worker.Child) -> object:
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
    "silent": forever,
    "garbage": lambda: (write(b"Traceback (most recent call last):\n" * 10), forever()),
    "huge": lambda: (write(struct.pack(">I", 2**32 - 1)), forever()),
    "no-json": lambda: (write(struct.pack(">I", 5) + b"hello"), forever()),
    "nested": lambda: (write(struct.pack(">I", 50000) + b"[" * 50000), forever()),
    "no-object": lambda: (write(struct.pack(">I", 2) + b"[]"), forever()),
    "flood-heartbeats": lambda: flood(worker.encode_frame({"type": "heartbeat"})),
    "flood-zeros": lambda: flood(bytes(65536)),
    "close": lambda: (os.close(1), forever()),
    "exit": lambda: os._exit(3),
    "segv": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "stale": lambda: child(stale),
    "daemon": lambda: child(with_daemon),
    "daemon-clean": lambda: child(with_daemon),
    **{
        f"completions-{kind}": (lambda kind=kind: child(wrong_completions(kind)))
        for kind in ("twice", "stranger", "too-few", "malformed")
    },
}

if __name__ == "__main__":
    if sys.argv[1] == "unguarded":
        unguarded()
    else:
        worker.main(WAYS[sys.argv[1]])
