"""What runs inside the sandbox: one solution with its tests. Nothing imports it: it is sent in whole.

Standard input holds this file, compiled, and one marshalled job; the pipe that was standard error carries lines back:
`ready`, then `result INDEX JSON` per LiveCodeBench test, then `verdict WORD TEXT` (`passed` with the parent's nonce).
It stays in one interpreter with the solution, so a program that walks frames can still find the nonce.
"""

# ruff: noqa: SIM115

from __future__ import annotations

import marshal
import os
import resource
import sys

TYPE_CHECKING = False  # importing `typing` would double the time to start
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType
    from typing import Any

    Say = Callable[[str], None]

MAX_DETAIL = 300
NO_FILE = os.open(os.devnull, os.O_RDWR)


def main() -> None:
    # the real standard error becomes a private pipe; what the solution writes there goes nowhere
    out = os.dup(2)
    job = marshal.load(sys.stdin.buffer)
    drop_rights(job["uid"])
    limit(job["limits"])
    space = fresh_module("__main__" if job["kind"] == "stdin" else "solution")
    exec(job["imports"], space)  # the suite's own: where they fail, the harness is at fault, not the solution
    for stream in (0, 1, 2):
        os.dup2(NO_FILE, stream)
    say = speaker(out)
    say("ready")
    try:
        say("verdict " + RUN[job["kind"]](job, space, say))
    except SystemExit as stop:
        say("verdict error " + describe(stop))
    except BaseException as error:
        word = "failed" if isinstance(error, AssertionError) and where(error).startswith("test") else "error"
        say("verdict " + word + " " + describe(error))
    finally:
        os._exit(0)


def drop_rights(uid: int) -> None:
    """Root's processes are not counted against RLIMIT_NPROC: become nobody in particular."""
    if uid:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)


def limit(limits: dict[str, int]) -> None:
    for name, value in limits.items():
        which = getattr(resource, name, None)
        if which is None:
            continue
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # at the end of its CPU time a program gets SIGXCPU, which tells this end from others; a second later it is killed
        resource.setrlimit(which, (value, value + 1 if name == "RLIMIT_CPU" and value != hard else value))


def speaker(out: int) -> Say:
    """Write whole lines; the functions are bound here because a solution may replace those in `os`."""
    write = os.write

    def say(line: str) -> None:
        rest = line.replace("\n", " ").encode("utf-8", "backslashreplace") + b"\n"
        while rest:
            rest = rest[write(out, rest) :]

    return say


def fresh_module(name: str) -> dict[str, Any]:
    module = type(sys)(name)
    sys.modules[name] = module
    return module.__dict__


def run_tests(job: dict[str, Any], space: dict[str, Any], say: Say) -> str:
    """HumanEval and MBPP: the solution, then one test after the other in the solution's own namespace."""
    run = exec  # a solution may replace the builtins
    nonce: str = job["nonce"]
    tests = [compile(text, f"<{name}>", "exec", dont_inherit=True) for name, text in job["tests"]]
    run(compile(job["code"], "<solution>", "exec", dont_inherit=True), space)
    for test in tests:
        run(test, space)
    return "passed " + nonce


def run_functional(job: dict[str, Any], space: dict[str, Any], say: Say) -> str:
    """LiveCodeBench with a function: say each value; the parent holds the answers and compares."""
    import json

    dumps, loads, name = json.dumps, json.loads, job["func_name"]
    exec(compile(job["code"], "<solution>", "exec", dont_inherit=True), space)
    if hasattr(space.get("Solution"), name):
        function = getattr(space["Solution"](), name)
    elif name in space:
        function = space[name]
    else:
        return f"error the program defines no {name}"
    for number, text in enumerate(job["inputs"]):
        try:
            value = plain(function(*[loads(line) for line in text.split("\n")]))
        except BaseException as error:
            return f"error test {number + 1}: {describe(error)}"
        say(f"result {number} {dumps(value)}")
    return "done "


def plain(value: object, depth: int = 0) -> object:
    """A value as JSON in which tuples, sets and other types cannot be taken for lists; subclasses count as their base."""
    if value is None or value is True or value is False:
        return value
    if depth > 200:
        return {"type": "nested too deeply"}
    if isinstance(value, int):
        return int.__add__(value, 0)
    if isinstance(value, float):
        return float.__add__(value, 0.0)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, list):
        return [plain(item, depth + 1) for item in list.__iter__(value)]
    if isinstance(value, tuple):
        return {"tuple": [plain(item, depth + 1) for item in tuple.__iter__(value)]}
    if isinstance(value, dict):
        return {"dict": [[plain(key, depth + 1), plain(item, depth + 1)] for key, item in dict.items(value)]}
    return {"type": type(value).__name__}


def run_stdin(job: dict[str, Any], space: dict[str, Any], say: Say) -> str:
    """LiveCodeBench with standard input: a fork of this process per test, so that no state passes from one to the next."""
    import json
    import signal

    code = compile(job["code"], "<solution>", "exec", dont_inherit=True)
    given, shown, told = (os.path.join(job["directory"], name) for name in (".stdin", ".stdout", ".error"))
    for number, (text, max_output) in enumerate(zip(job["inputs"], job["max_outputs"], strict=True), start=1):
        for path, content in ((given, text), (shown, ""), (told, "")):
            if os.path.lexists(path):
                os.unlink(path)
            with open(path, "x", encoding="utf-8", newline="", errors="surrogatepass") as file:
                file.write(content)
        child = os.fork()
        if child == 0:
            run_program(code, job["imports"], given, shown, told)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with open(told, encoding="utf-8", errors="replace") as file:
            error = file.read(2 * MAX_DETAIL)
        if status == -signal.SIGXCPU:
            return f"timeout test {number}: used up its CPU time"
        if error or status < 0:
            return f"error test {number}: {error or f'killed by signal {-status}'}"
        with open(shown, encoding="utf-8", errors="replace", newline="") as file:
            output = file.read(max_output + 1)
        if len(output) > max_output:
            return f"failed test {number}: wrote far more than the answer"
        say(f"result {number - 1} {json.dumps(output)}")
    return "done "


def run_program(code: CodeType, imports: str, given: str, shown: str, told: str) -> None:
    """The child: a program with its own standard streams. Never returns."""
    os.closerange(3, 256)
    os.dup2(os.open(given, os.O_RDONLY), 0)
    os.dup2(os.open(shown, os.O_WRONLY | os.O_APPEND), 1)
    os.closerange(3, 256)
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    sys.argv = ["solution.py"]
    space = fresh_module("__main__")
    leave, error = os._exit, None
    try:
        exec(imports, space)
        exec(code, space)
        wait_for_threads()
    except SystemExit:
        pass
    except BaseException as raised:
        error = raised
    try:
        sys.stdout.flush()
    except BaseException as raised:
        error = error or raised
    if error is not None:
        with open(told, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(describe(error))
    leave(0)


def wait_for_threads() -> None:
    threading = sys.modules.get("threading")
    if threading is None:
        return
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()


def where(error: BaseException) -> str:
    """The innermost place that we know by name, as in `line 4`, `test 2` or `test line 7`."""
    place, trace = "", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name == "<solution>" and (not place or place.startswith("line")):
            place = f"line {trace.tb_lineno}"
        elif name.startswith("<test ") or name == "<setup>":
            place = name[1:-1]
        elif name == "<check>":
            place = f"test line {trace.tb_lineno}"
        trace = trace.tb_next
    if not place and isinstance(error, SyntaxError) and error.filename == "<solution>":
        return f"line {error.lineno}"
    return place


def describe(error: BaseException) -> str:
    """One short line: where, what kind, what it says. A solution's exceptions may themselves raise or lie."""
    try:
        kind, place = type(error).__name__[:80], where(error)
        text = error.msg if isinstance(error, SyntaxError) else str(error)
        text = "".join(character if character.isprintable() else " " for character in str(text)[:MAX_DETAIL])
    except BaseException:
        return "an exception that cannot be shown"
    return (place + ": " if place else "") + kind + (": " + text if text.strip() else "")


RUN = {"tests": run_tests, "functional": run_functional, "stdin": run_stdin}
if __name__ == "__main__":
    main()
