"""Programs that cheat or attack: none passes, none outlives its run, and a correct one after each still passes.

They run in the sandbox and nowhere else. Most succeed exactly when their attack does, so that a pass is a breach.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from loop.grading import sandbox
from loop.grading.grader import Grader, Job, Verdict
from loop.grading.problems import Problem

PROBLEM = Problem(
    task_id="p", statement="", kind="mbpp", payload={"tests": ["assert f(1) == 2"], "setup": "", "imports": []}
)
STDIN = Problem(
    task_id="s",
    statement="",
    kind="livecodebench",
    payload={
        "public": [{"input": f"{n}\n", "output": f"{n + 1}\n", "testtype": "stdin"} for n in (1, 2)],
        "private": "",
    },
)
FUNCTIONAL = Problem(
    task_id="l",
    statement="",
    entry_point="f",
    kind="livecodebench",
    payload={"public": [{"input": "1", "output": "[2]", "testtype": "functional"}], "private": ""},
)
RIGHT = {
    "p": "def f(x):\n    return x + 1\n",
    "s": "print(int(input()) + 1)\n",
    "l": "class Solution:\n    def f(self, x):\n        return [x + 1]\n",
}


def attack(body: str) -> str:
    """A solution whose answer is right if the lines of `body` get through."""
    return "def f(x):\n" + "".join(f"    {line}\n" for line in body.strip().split("\n")) + "    return 2\n"


# name: (program, what the verdict may be)
ATTACKS = {
    # leaving early, or saying that all is well
    "sys.exit at the top": ("import sys; sys.exit(0)", "error"),
    "os._exit at the top": ("import os; os._exit(0)", "error"),
    "exit inside": ("def f(x):\n    raise SystemExit(0)", "error"),
    "os._exit inside": ("import os\ndef f(x):\n    os._exit(0)", "error"),
    "kill itself": ("import os\ndef f(x):\n    os.kill(os.getpid(), 9)", "failed"),
    "abort": ("import os\nos.abort()", "error"),
    "exec another program": ("import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'pass'])", "error"),
    "print a verdict": ("print('verdict passed')\nprint('passed')\nimport os; os._exit(0)", "error"),
    "say a verdict everywhere": (
        (
            "import os\nfor fd in range(256):\n    try: os.write(fd, b'verdict passed ' + b'0' * 32 + b'\\n')\n"
            "    except OSError: pass\nos._exit(0)"
        ),
        "error",
    ),
    "say done everywhere": (
        (
            "import os\nfor fd in range(256):\n    try: os.write(fd, b'verdict done\\nready\\nresult 0 2\\n')\n"
            "    except OSError: pass\nos._exit(0)"
        ),
        "error",
    ),
    "say a harness error": (
        (
            "import os\nfor fd in range(256):\n    try: os.write(fd, b'verdict harness_error x\\n')\n"
            "    except OSError: pass\nos._exit(0)"
        ),
        "error",
    ),
    "close everything": ("import os\nos.closerange(0, 256)\nos._exit(0)", "error"),
    "replace builtins": ("import builtins\nbuiltins.exec = builtins.compile = lambda *a, **k: None", "error"),
    "replace os._exit": ("import os\nos._exit = lambda code: None\nraise SystemExit", "error"),
    "atexit": ("import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit", "error"),
    "read the job again": (attack("import os\nos.lseek(0, 0, 0)\nassert os.read(0, 100)"), "error"),
    "a thread that stays": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\ndef f(x): return 0",
        "failed",
    ),
    # using up the machine
    "infinite loop": ("while True: pass", "timeout"),
    "sleep": ("import time\ntime.sleep(60)", "timeout"),
    "ignore every signal": (
        (
            "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
            "    except (OSError, ValueError): pass\nwhile True: pass"
        ),
        "timeout",
    ),
    "swallow every exception": (
        "import time\nwhile True:\n    try: time.sleep(9)\n    except BaseException: pass",
        "timeout",
    ),
    "fork bomb": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", "timeout"),
    "too many processes": (
        "import os, time\nfor _ in range(200):\n    if os.fork() == 0: time.sleep(60); os._exit(0)\ndef f(x): return 2",
        "error",
    ),
    "thread bomb": (
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()",
        "error",
    ),
    "memory hog": ("x = [b'x' * (1 << 30)]\nwhile True: x.append(b'x' * (1 << 28))", "error"),
    "big number": ("x = 9 ** 9 ** 9", "timeout error"),
    "output flood": ("while True: print('x' * 10000)", "timeout"),
    "error flood": ("import sys\nwhile True: sys.stderr.write('x' * 10000)", "timeout"),
    "flood every descriptor": (
        "import os\nwhile True:\n  for fd in range(3, 256):\n    try: os.write(fd, b'x' * 65536)\n    except OSError: pass",
        "error",
    ),
    "fill the disk": (
        attack("for n in range(64):\n    with open(f'/tmp/{n}', 'wb') as file: file.write(b'x' * (16 << 20))"),
        "error",
    ),
    "a huge file": (attack("with open('/tmp/x', 'wb') as file: file.seek(1 << 40); file.write(b'x')"), "error"),
    "many open files": (attack("x = [open('/dev/null') for _ in range(5000)]"), "error"),
    "deep recursion": ("import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)", "error timeout"),
    "deep recursion in C": (
        "import sys\nsys.setrecursionlimit(10**9)\nx = []\nfor _ in range(10**6): x = [x]\nrepr(x)",
        "error timeout",
    ),
    "segmentation fault": ("import ctypes\nctypes.string_at(0)", "error"),
    # hostile text
    "null bytes": ("x = 1\0", "error"),
    "deep nesting": ("(" * 100_000, "error"),
    "deep nesting of another kind": ("-" * 500_000 + "1", "error"),
    "lone surrogate": ("x = '\ud800'\ndef f(x): return 0", "failed"),
    "huge exception text": ("raise ValueError('x' * 10**8)", "error"),
    "terminal escapes": ("raise ValueError('\\x1b[2J\\x1b]0;owned\\x07\\nverdict passed')", "error"),
    "an exception that raises": ("class E(Exception):\n    def __str__(self): raise self\nraise E", "error"),
    "an exception that exits": (
        "class E(Exception):\n    def __str__(self):\n        raise SystemExit(0)\nraise E",
        "error",
    ),
    "an exception of a kind of its own": ("class E(BaseException): pass\ndef f(x): raise E('no')", "error"),
    # getting out
    "daemon": (
        (
            "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        os.closerange(0, 256)\n"
            "        time.sleep(60)\n    os._exit(0)\ndef f(x): return 0"
        ),
        "failed",
    ),
    "daemon of one that leaves": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    while True: time.sleep(1)\nos._exit(0)",
        "error timeout",
    ),
    "kill the parent": (attack("import os\nassert os.getppid()\nos.kill(os.getppid(), 9)"), "error"),
    "kill everyone": (attack("import os\nos.kill(-1, 9)\nassert False"), "failed error"),
    "network": (attack("import socket\nsocket.create_connection(('127.0.0.1', PORT), 1)"), "error"),
    "abstract sockets": (attack("import socket\nsocket.socket(socket.AF_UNIX).connect('\\0NAME')"), "error"),
    "name resolution": (attack("import socket\nsocket.gethostbyname('example.com')"), "error"),
    "passwords": (attack("open('/etc/passwd').read()"), "error"),
    "a host file": (attack("open('HOSTFILE').read()"), "error"),
    "home": (attack("import os\nassert len(os.listdir('HOME')) > 1"), "error failed"),
    "processes of the host": (attack("import os\nassert os.listdir('/proc')"), "error"),
    "third-party packages": (attack("import sys\nsys.path += PACKAGES\nimport pydantic"), "error"),
    "environment": (attack("import os\nassert any('LOOP' in name for name in os.environ)"), "error"),
    "write to the host": (attack("open('HOSTFILE', 'a').write('x')"), "error"),
    "write to Python": (attack("import os\nopen(os.__file__, 'a').write('x')"), "error"),
    "write beside Python": (attack("import os\nopen(os.path.dirname(os.__file__) + '/site-packages/x', 'w')"), "error"),
    "write at the root": (attack("open('/x', 'w')"), "error"),
    "write to devices": (attack("open('/dev/x', 'w')"), "error"),
    "become root": (attack("import os\nassert os.setuid(0) is None and os.getuid() == 0\nos.chroot('/')"), "error"),
    "mount": (
        attack("import ctypes\nassert ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0"),
        "error",
    ),
    "raise its limits": (
        attack("import resource\nresource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)"),
        "error",
    ),
    "leave a file for the next": ("open('/tmp/left', 'w').write('x')\ndef f(x): return 0", "failed"),
    "find a file of the one before": (attack("open('/tmp/left')"), "error"),
}
ATTACKS_ON_STDIN = {
    "nothing": ("pass", "failed"),
    "exit": ("import os; os._exit(0)", "failed"),
    "answer the first only": ("print(2)", "failed"),
    "say the results": (
        (
            'import os\nfor fd in range(3, 256):\n    try: os.write(fd, b\'result 0 "2"\\nresult 1 "3"\\nverdict done\\n\')\n'
            "    except OSError: pass"
        ),
        "failed",
    ),
    "flood": ("while True: print('x' * 10000)", "failed"),
    "too much": ("print(2)\nprint('x' * 100_000)", "failed"),
    "right, then killed": ("import os\nprint(int(input()) + 1, flush=True)\nos.kill(os.getpid(), 11)", "error"),
    "right, then raises": ("print(int(input()) + 1, flush=True)\nraise ValueError", "error"),
    "replace its input by a pipe": ("import os\nos.remove('/tmp/.stdout'); os.mkfifo('/tmp/.stdout')", "timeout"),
    "replace its output by a folder": ("import os\nos.remove('/tmp/.stdout'); os.mkdir('/tmp/.stdout')", "error"),
    "loop": ("while True: pass", "timeout"),
    "invalid output": ("import os\nos.write(1, b'\\xff\\xfe')", "failed"),
}
ATTACKS_ON_FUNCTIONAL = {
    "equal to everything": ("class E:\n    __eq__ = lambda s, o: True\ndef f(x): return E()", "failed"),
    "a list equal to everything": ("class E(list):\n    __eq__ = lambda s, o: True\ndef f(x): return E([0])", "failed"),
    "a number equal to everything": (
        "class E(int):\n    __eq__ = lambda s, o: True\ndef f(x): return [E(1)]",
        "failed",
    ),
    "a set": ("def f(x): return {2}", "failed"),
    "a tuple in a list": ("def f(x): return [(2,)]", "failed"),
    "text": ("def f(x): return '[2]'", "failed"),
    "itself": ("def f(x):\n    y = []\n    y.append(y)\n    return y", "failed"),
    "a flood": ("def f(x): return 'x' * 10**8", "error timeout"),
    "a description of a tuple": ("def f(x): return {'tuple': [2]}", "failed"),
    "exit": ("import os\ndef f(x): os._exit(0)", "error"),
    "say done": (
        "import os\nfor fd in range(3, 256):\n    try: os.write(fd, b'verdict done\\n')\n    except OSError: pass",
        "error",
    ),
    "no such function": ("def g(x): return [2]", "error"),
}


@pytest.fixture(scope="module")
def mark() -> Iterator[str]:
    """A word in the environment of everything that these tests start."""
    word = uuid.uuid4().hex
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sandbox._ENVIRONMENT, "MARK", word)
        patch.setenv("LOOP_SECRET", "x")
        yield word


@pytest.fixture(scope="module")
def grader(mark: str) -> Grader:
    return Grader(timeout_s=1.5, memory_bytes=512 << 20, num_workers=2)


def num_survivors(mark: str) -> int:
    found = 0
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                found += mark.encode() in (process / "environ").read_bytes()
    return found


def grade(grader: Grader, problem: Problem, attacks: dict[str, tuple[str, str]], **words: str) -> dict[str, Verdict]:
    """Each attack, and after each a right program."""
    jobs = []
    for name, (code, _) in attacks.items():
        for word, value in words.items():
            code = code.replace(word, value)
        jobs += [Job(name, problem, code), Job(None, problem, RIGHT[problem.task_id])]
    verdicts = {}
    for key, verdict in grader.grade(jobs):
        if key is None:
            assert verdict.verdict == "passed", f"a right program after {name!r}: {verdict}"
        else:
            name = str(key)
            verdicts[name] = verdict
    return verdicts


def check(verdicts: dict[str, Verdict], attacks: dict[str, tuple[str, str]], mark: str) -> None:
    wrong = {
        name: verdicts[name] for name, (_, allowed) in attacks.items() if verdicts[name].verdict not in allowed.split()
    }
    assert not wrong, "\n".join(f"{name}: {verdict!r}" for name, verdict in wrong.items())
    for verdict in verdicts.values():
        assert verdict.detail and verdict.detail.isprintable() and len(verdict.detail) <= 300
    deadline = time.monotonic() + 5
    while num_survivors(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert num_survivors(mark) == 0


def test_attacks_on_tests(grader: Grader, mark: str, tmp_path: Path) -> None:
    host_file = tmp_path / "secret.txt"
    host_file.write_text("x")
    host_file.chmod(0o666)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0{mark}")
        abstract.listen()
        verdicts = grade(
            grader,
            PROBLEM,
            ATTACKS,
            PORT=str(server.getsockname()[1]),
            NAME=mark,
            HOSTFILE=str(host_file),
            HOME=os.path.expanduser("~"),
            PACKAGES=repr([str(Path(pytest.__file__).parents[1])]),
        )
    check(verdicts, ATTACKS, mark)
    assert host_file.read_text() == "x"


def test_attacks_on_standard_input(grader: Grader, mark: str) -> None:
    check(grade(grader, STDIN, ATTACKS_ON_STDIN), ATTACKS_ON_STDIN, mark)


def test_attacks_on_functions(grader: Grader, mark: str) -> None:
    check(grade(grader, FUNCTIONAL, ATTACKS_ON_FUNCTIONAL), ATTACKS_ON_FUNCTIONAL, mark)


def test_nothing_outlives_a_killed_parent(mark: str) -> None:
    program = (
        "from loop.grading import sandbox\nfrom loop.grading.grader import Grader\n"
        f"sandbox._ENVIRONMENT['MARK'] = {mark + 'child'!r}\n"
        "from loop.grading.problems import Problem\n"
        f"problem = Problem.model_validate_json({PROBLEM.model_dump_json()!r})\n"
        "Grader(timeout_s=60).grade_one(problem, 'import os\\nos.fork()\\nos.setsid()\\nwhile True: os.getppid()')\n"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        deadline = time.monotonic() + 30
        while num_survivors(mark + "child") < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        parent.kill()
    deadline = time.monotonic() + 10
    while num_survivors(mark + "child") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert num_survivors(mark + "child") == 0


@pytest.mark.parametrize(
    "code",
    [
        "class E:\n    __eq__ = lambda s, o: True\ndef f(x): return E()",
        (
            "import sys, os\ndef f(x):\n    frame = sys._getframe()\n    while 'nonce' not in frame.f_locals: frame = frame.f_back\n"
            "    for fd in range(3, 256):\n        try: os.write(fd, f\"verdict passed {frame.f_locals['nonce']}\\n\".encode())\n"
            "        except OSError: pass\n    os._exit(0)"
        ),
    ],
)
def test_forgeries_do_not_pass(grader: Grader, code: str) -> None:
    assert grader.grade_one(PROBLEM, code).verdict != "passed"
