"""What the engines on the nodes of a cluster do, and how many tokens they gave: for status, and for the end of a stage.

Each engine's own thread says what it does; the thread that looks on only reads.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from loop.errors import EngineError
from loop.words import one_line

TELL_S = 1.0  # between two times that the onlooker is told
MOST_WORDS = 60  # characters of why an engine was lost
ENDED = "ended"
# A node does the first of these that one of its engines does.
DOING = ("training", "sampling", "measuring", "loading", "idle", "lost", ENDED)
WORK = ("sampling", "training")  # whose time counts


@dataclass(slots=True)
class EngineNow:
    """One engine on one node. Counters begin anew with each attempt at a stage."""

    tag: str
    node: str
    doing: str = "loading"
    num_tokens: int = 0  # of completions
    worked_s: float = 0.0  # up to when it began what it does now
    since: float = 0.0
    lost: str = ""  # why it was lost, in a few words; stays until the next attempt, also if it was started again

    @contextlib.contextmanager
    def at(self, doing: str, has_ended: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """While the block runs, the engine does that. An EngineError after which it `has_ended` is its loss."""
        self.doing, self.since = doing, time.monotonic()
        after = "idle"
        try:
            yield
        except EngineError as error:
            if has_ended():
                after, self.lost = "lost", self.in_few_words(error)
            raise
        finally:
            self.doing, self.worked_s = after, self.seconds

    def in_few_words(self, why: object) -> str:
        """What an error says happened, without what can be done about it."""
        words = str(why).partition("; ")[0].removeprefix(f"{self.tag}: ").removeprefix(f"{self.node}: ")
        return one_line(words if len(words) <= MOST_WORDS else words.partition(" (")[0], MOST_WORDS)

    @property
    def seconds(self) -> float:
        """How long it has sampled or trained."""
        return self.worked_s + (time.monotonic() - self.since if self.doing in WORK else 0.0)

    @property
    def tokens_per_s(self) -> float:
        """While it sampled."""
        return self.num_tokens / max(1e-9, self.seconds)


class ByNode:
    """The engines on nodes, from the first to be started. `tell` is told of the nodes when they are looked at."""

    def __init__(self, tell: Callable[[list[dict[str, Any]]], None] = lambda nodes: None) -> None:
        self.tell = tell
        self._engines: dict[tuple[str, str], EngineNow] = {}  # by tag and node
        self._changing = threading.Lock()
        self._told, self._told_at = list[dict[str, Any]](), 0.0

    def begin(self, tag: str, node: str) -> EngineNow:
        """An engine is started, perhaps again or on another node than before."""
        with self._changing:
            for engine in self._engines.values():
                if engine.tag == tag:
                    engine.doing = ENDED
            engine = self._engines.setdefault((tag, node), EngineNow(tag, node))
            engine.doing = "loading"
            return engine

    def lose(self, node: str, why: str) -> None:
        """A node has no engine, though it should."""
        engine = self.begin(node, node)
        engine.doing, engine.lost = "lost", engine.in_few_words(why)

    @contextlib.contextmanager
    def training(self, tag: str, node: str) -> Iterator[None]:
        """A node trains while the block runs."""
        engine = self.begin(tag, node)
        try:
            with engine.at("training", lambda: False):
                yield
        finally:
            engine.doing = ENDED

    def end(self) -> None:
        """All engines were ended. What they did in this attempt still counts."""
        for engine in self._list():
            engine.doing = ENDED

    def begin_attempt(self) -> None:
        """Count anew. What is lost and was not started again is still lost."""
        with self._changing:
            self._engines = {key: engine for key, engine in self._engines.items() if engine.doing != ENDED}
            for engine in self._engines.values():
                engine.num_tokens, engine.worked_s = 0, 0.0
                engine.lost = engine.lost if engine.doing == "lost" else ""

    def look(self) -> None:
        """Tell of the nodes, at most once a second. For the thread that waits for the engines."""
        if time.monotonic() - self._told_at < TELL_S:
            return
        nodes, self._told_at = self.now(), time.monotonic()
        if nodes or self._told:
            self.tell(nodes)
        self._told = nodes

    def now(self) -> list[dict[str, Any]]:
        """Each node that has an engine, or lost one since its engines were last started."""
        nodes = []
        for name, engines in self._by_node(lambda engine: engine.doing != ENDED):
            lost = [engine.lost for engine in engines if engine.doing == "lost"]
            nodes.append(
                {
                    "name": name,
                    "engines": sum(engine.doing not in ("lost", "training") for engine in engines),  # that can sample
                    "doing": min((engine.doing for engine in engines), key=DOING.index),
                    "tokens_per_s": _speed([engine for engine in engines if engine.doing != "lost"]),
                    "lost": lost[0] if lost else None,
                }
            )
        return nodes

    def done(self) -> list[dict[str, Any]]:
        """What each node has done in this attempt, and why it lacks an engine; none if the nodes had no part in it."""
        if not any(engine.seconds for engine in self._list()):
            return []
        return [
            {
                "name": name,
                "tokens": sum(engine.num_tokens for engine in engines),
                "tokens_per_s": _speed(engines),
                "lost": next((engine.lost for engine in engines if engine.lost), None),
            }
            for name, engines in self._by_node(lambda engine: bool(engine.seconds or engine.lost))
        ]

    def _by_node(self, wanted: Callable[[EngineNow], bool]) -> list[tuple[str, list[EngineNow]]]:
        engines = [engine for engine in self._list() if wanted(engine)]
        names = sorted({engine.node for engine in engines})
        return [(name, [engine for engine in engines if engine.node == name]) for name in names]

    def _list(self) -> list[EngineNow]:
        with self._changing:
            return list(self._engines.values())


def _speed(engines: list[EngineNow]) -> float | None:
    """Tokens a second of them together; None before the first completion."""
    return round(sum(engine.tokens_per_s for engine in engines), 1) or None
