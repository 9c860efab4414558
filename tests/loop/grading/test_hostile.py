"""Programs that cheat or attack: none passes, none outlives its run, and a right program after each still passes.

They are in `tests/support/hostile_programs`. Two run at a time, so that siblings can try to meet.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import operator
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loop.grading import interpreter, sandbox
from loop.grading.bubblewrap import MODES_AS_USER
from loop.grading.grader import Grader, Job, Verdict
from loop.grading.problem import Problem
from loop.grading.sandbox import Sandbox
from loop.grading.working_sandbox import open_sandbox
from tests.support.hostile_programs import CALLS, CLASSES, GIVEN, PROBLEMS, SECRET, SWEEP, WORD, Program, asked, right
from tests.support.sandbox_modes import as_user, readable_python

TIMEOUT_S = 1.0
"""Of programs that may end by the clock; the others have all the time that a slow machine needs."""
PATIENT_S = 300.0
AS_USER = pytest.mark.skipif(readable_python() is None, reason="needs root, setpriv and a Python that everyone may run")


@pytest.fixture(scope="module", autouse=True)
def mark() -> Iterator[str]:
    """A word in the environment of everything that these tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(interpreter.ENVIRONMENT, "MARK", WORD)
        patch.setenv("LOOP_SECRET", "x")
        yield WORD


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What stands in the programs for places of this machine, each there to be reached."""
    folder = tmp_path_factory.mktemp("places")
    host_file = folder / "secret.txt"
    host_file.write_text("x")
    host_file.chmod(0o666)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        for name in (f"\0{WORD}", str(folder / "socket")):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(name)
            listener.listen()
        yield {
            **CALLS,
            "PORT": str(server.getsockname()[1]),
            "HOSTNAME": socket.gethostname(),
            "NAME": WORD,
            "SOCKET": str(folder / "socket"),
            "HOSTFILE": str(host_file),
            "HOME": os.path.expanduser("~"),
            "NICENESS": str(os.nice(0)),
            "PACKAGES": repr([str(Path(pytest.__file__).parents[1])]),
        }
    assert host_file.read_text() == "x"


@pytest.fixture(scope="module")
def opened(mark: str) -> Sandbox:
    return open_sandbox("bubblewrap")


def num_survivors(mark: str) -> int:
    num_marked = 0
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                num_marked += mark.encode() in (process / "environ").read_bytes()
    return num_marked


def no_survivors(mark: str) -> bool:
    deadline = time.monotonic() + PATIENT_S
    while num_survivors(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    return num_survivors(mark) == 0


def written(program: Program, on: str, words: dict[str, str]) -> str:
    code = program.code.replace("ON_LIVE", str(on == "live")).replace("ENTRY", asked(on))
    for word, value in words.items():
        code = code.replace(word, value)
    assert SECRET not in code
    return code


def graded(opened: Sandbox, by_clock: bool, jobs: list[Job]) -> Iterator[tuple[Hashable, Verdict]]:
    grader = Grader(timeout_s=TIMEOUT_S if by_clock else PATIENT_S, memory_bytes=512 << 20, num_workers=2)
    grader._sandbox = opened
    return grader.grade(jobs)


def check(opened: Sandbox, programs: dict[str, Program], words: dict[str, str], most: int, strict: bool = True) -> None:
    """Each on at most `most` of its problems, by turns; after each a right program. Fails with all that went wrong."""
    jobs: dict[bool, list[Job]] = {True: [], False: []}  # by whether the program may end by the clock
    for number, (name, program) in enumerate(programs.items()):
        may_be = program.may_be if strict else "failed error timeout"
        group = jobs["timeout" in may_be]
        problems = program.on.split()
        first = number * most % len(problems)
        for on in itertools.islice(itertools.cycle(problems), first, first + min(most, len(problems))):
            group.append(Job((name, on, may_be), PROBLEMS[on], written(program, on, words)))
        again = f"{right(PROBLEMS[on])}\n# {number}: the same twice is run once"
        group.append(Job((f"a right program after {name}", on, "passed"), PROBLEMS[on], again))
    wrong = []
    for key, verdict in itertools.chain(*(graded(opened, by_clock, group) for by_clock, group in jobs.items())):
        name, on, may_be = key  # type: ignore[misc]
        explained = verdict.detail or may_be == "passed"
        if not (verdict.verdict in may_be.split() and len(verdict.detail) <= 300 and explained):
            wrong.append(f"{name} on {on}: {verdict.verdict}: {verdict.detail}")
    assert not wrong, "\n".join(wrong)
    assert no_survivors(WORD)


def test_as_many_programs_as_the_documentation_says() -> None:
    text = (Path(__file__).parents[3] / "docs" / "grading.md").read_text("utf-8")
    num_programs = sum(map(len, CLASSES.values()))
    assert f"{num_programs} hostile programs of our own in {len(CLASSES)} classes" in text and num_programs == 571


def test_what_hostile_programs_reach_for_is_there() -> None:
    """A program that replaces what is gone would be refused for nothing."""
    code = "\n".join(program.code for programs in CLASSES.values() for program in programs.values())
    reached = set(re.findall(r"\b(cell|judge|link|remote|values)(?:'\])?\.([A-Za-z]\w*(?:\.[a-z_]\w*)?)", code))
    assert {("link", "run_program"), ("judge", "same_output"), ("values", "Encoder.item")} <= reached
    for module, name in reached:
        operator.attrgetter(name)(importlib.import_module(f"loop.grading.inside.{module}"))
    assert set(re.findall(r"loop\.grading\.inside\.(\w+)", code)) <= set(sandbox._INSIDE)


@pytest.mark.parametrize("name", CLASSES)
def test_no_hostile_program_passes(opened: Sandbox, words: dict[str, str], name: str) -> None:
    check(opened, CLASSES[name], words, most=999 if name == "names" else 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CLASSES if any(" " in p.on for p in CLASSES[name].values())])
def test_no_hostile_program_passes_any_test(opened: Sandbox, words: dict[str, str], name: str) -> None:
    check(opened, CLASSES[name], words, most=999)


def sample(every: int) -> dict[str, Program]:
    """Some of every class, few that only end by the clock."""
    quick = {name: [n for n, p in programs.items() if p.may_be != "timeout"] for name, programs in CLASSES.items()}
    return {name: CLASSES[kind][name] for kind, names in quick.items() for name in names[::every]}


@AS_USER
def test_a_sample_as_a_user_without_rights(words: dict[str, str]) -> None:
    check(as_user(MODES_AS_USER[0]), sample(8), words, most=1, strict=False)


@AS_USER
@pytest.mark.parametrize(
    "names",
    [
        ("kill the parent", "stop everyone"),
        pytest.param(("stop the parent", "interrupt the parent", "kill everyone"), marks=pytest.mark.slow),
    ],
)
def test_a_sample_in_a_sandbox_of_its_own(words: dict[str, str], names: tuple[str, ...]) -> None:
    """There the warm interpreter is in the same namespace as the program, which could end or stop it."""
    programs = {name: CLASSES["staying"][name] for name in names}
    check(as_user(MODES_AS_USER[1]), programs | sample(60), words, most=1, strict=False)


@AS_USER
@pytest.mark.slow
@pytest.mark.parametrize(("mode", "most", "but"), [(MODES_AS_USER[0], 2, ""), (MODES_AS_USER[1], 1, "date a device")])
@pytest.mark.parametrize("name", CLASSES)
def test_no_hostile_program_passes_as_a_user(words: dict[str, str], name: str, mode: Any, most: int, but: str) -> None:
    programs = {key: program for key, program in CLASSES[name].items() if key != but}
    check(as_user(mode), programs, words, most=most, strict=False)


def test_the_search_of_memory_finds_what_is_there(mark: str) -> None:
    code = SWEEP + "def f(x):\n    del x\n    return (sweep(rb'given-[0-9a-f]{32}') or [b''])[0].decode()"
    payload = {"tests": [f"assert f({GIVEN!r}) == {GIVEN!r}"], "setup": "", "imports": []}
    problem = Problem(task_id="given", statement="", kind="mbpp", payload=payload)
    verdict = Grader(timeout_s=PATIENT_S, num_workers=1).grade_one(problem, code)
    assert verdict.verdict == "passed", verdict


def test_nothing_outlives_a_killed_parent(mark: str) -> None:
    program = (
        "from loop.grading import interpreter\nfrom loop.grading.grader import Grader\n"
        f"interpreter.ENVIRONMENT['MARK'] = {mark + 'child'!r}\n"
        "from loop.grading.problem import Problem\n"
        f"problem = Problem.model_validate_json({PROBLEMS['function'].model_dump_json()!r})\n"
        "Grader(timeout_s=86400).grade_one(problem, 'import os\\nos.fork() or os.setsid()\\nwhile True: os.getppid()')\n"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        deadline, num_running = time.monotonic() + PATIENT_S, 0
        while num_running < 4 and time.monotonic() < deadline:  # the warm one, the tests', the solution, its child
            time.sleep(0.05)
            num_running = num_survivors(mark + "child")
        parent.kill()
    assert num_running >= 4
    assert no_survivors(mark + "child")
