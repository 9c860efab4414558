"""Programs that leave early, use up the machine, or hold hostile text."""

from __future__ import annotations

from tests.support.hostile_programs.problems import Program, attack, programs

LEAVING = programs(
    "error",
    {
        "sys.exit at the top": "import sys; sys.exit(0)",
        "os._exit at the top": "import os; os._exit(0)",
        "exit inside": "def f(x):\n    raise SystemExit(0)",
        "os._exit inside": "import os\ndef f(x):\n    os._exit(0)",
        "kill itself": Program("import os\ndef f(x):\n    os.kill(os.getpid(), 9)"),
        "abort": "import os\nos.abort()",
        "exec another program": "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'pass'])",
        "exec one that talks": (
            "import os, sys\nos.set_inheritable(3, True)\n"
            "os.execv(sys.executable, [sys.executable, '-c', 'import os\\nwhile os.write(3, b\"\\\\x04\\\\0\\\\0\\\\0true\"): pass'])"
        ),
        "print a verdict": "print('verdict passed')\nprint('passed')\nimport os; os._exit(0)",
        "close everything": "import os\nos.closerange(0, 256)\nos._exit(0)",
        "close everything and stay": "import os, time\nos.closerange(0, 256)\ntime.sleep(60)",
        "atexit": "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit",
        "a child that leaves twice": Program(
            "import os\nos.fork()\ndef f(x):\n    os._exit(0)", "error failed timeout"
        ),
        "a finalizer that leaves": "import os\nclass E:\n    def __del__(s): os._exit(0)\nx = E(); del x",
        "a signal that leaves": (
            "import os, signal\nsignal.signal(signal.SIGALRM, lambda *a: os._exit(0))\nsignal.setitimer(0, 0.01)\n"
            "import time\ndef f(x): time.sleep(0.5); return 0"
        ),
        "leaves in the middle of an answer": Program(
            "import os\nclass E(list):\n    def __iter__(s): os._exit(0)\n    __len__ = __getitem__ = __iter__\ndef f(x): return E([2])"
        ),
        "read the job again": attack("import os\nos.lseek(0, 0, 0)\nassert os.read(0, 100)"),
        "a hook for exceptions": "import os, sys\nsys.excepthook = sys.unraisablehook = lambda *a: os._exit(0)\n1 / 0",
        "nothing at all": "pass",
        "no such name": Program("def g(x): return 2", "error", "function ones text live"),
    },
)

USING_UP = programs(
    "error",
    {
        "infinite loop": Program("while True: pass", "timeout"),
        "a loop that cannot be interrupted": Program(
            "def f(x):\n    while True:\n        try:\n            while True: 9 ** 999999\n        except BaseException: pass",
            "timeout",
        ),
        "ignore every signal": Program(
            "import signal, time\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
            "    except (OSError, ValueError): pass\nwhile True:\n    try: time.sleep(9)\n    except BaseException: pass",
            "timeout",
        ),
        "block every signal": Program(
            "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nsignal.sigwait([signal.SIGUSR1])",
            "timeout",
        ),
        "wait for a pipe": Program("import os\nos.mkfifo('/tmp/p')\nopen('/tmp/p')", "timeout"),
        "fork bomb": Program("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", "timeout"),
        "a family that never ends": Program(
            "import os\nwhile True:\n    try:\n        if os.fork(): os._exit(0)\n    except OSError: pass",
            "error timeout",
        ),
        "too many processes": "import os, time\nfor _ in range(200):\n    if os.fork() == 0: time.sleep(60); os._exit(0)\ndef f(x): return 2",
        "thread bomb": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()",
        "memory hog": "x = [b'x' * (1 << 30)]\nwhile True: x.append(b'x' * (1 << 28))",
        "many hogs together": Program(
            "import os, time\nfor _ in range(12):\n    if os.fork() == 0: x = b'x' * (200 << 20); time.sleep(60); os._exit(0)\ntime.sleep(60)",
            "error timeout",
        ),
        "hogs that cannot be looked at": Program(
            "import ctypes, os, time\nfor _ in range(12):\n    if os.fork() == 0:\n        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\n"
            "        x = b'x' * (200 << 20); time.sleep(60); os._exit(0)\ntime.sleep(60)",
            "error timeout",
        ),
        "memory without a process": Program(
            attack("import os\nn = os.memfd_create('x')\nx = b'x' * (1 << 20)\nfor _ in range(32): os.write(n, x)")
        ),
        "memory in many files without a name": Program(
            attack(
                "import os\nx = b'x' * (1 << 20)\nfor _ in range(20):\n    n = os.memfd_create('x')\n    for _ in range(60): os.write(n, x)"
            )
        ),
        "shared memory that stays": Program(
            attack("import ctypes\nassert ctypes.CDLL(None).shmget(0, 64 << 20, 0o1666) >= 0")
        ),
        "messages that stay": Program(attack("import ctypes\nassert ctypes.CDLL(None).msgget(7, 0o1666) >= 0")),
        "semaphores that stay": Program(attack("import ctypes\nassert ctypes.CDLL(None).semget(7, 100, 0o1666) >= 0")),
        "shared memory in files": attack(
            "from multiprocessing import shared_memory\nx = [shared_memory.SharedMemory(create=True, size=32 << 20) for _ in range(9)]\n"
            "for one in x: one.buf[:] = bytes(32 << 20)"
        ),
        "big number": Program("x = 9 ** 9 ** 9", "timeout error"),
        "output flood": Program("for _ in range(10**4): print('x' * 10000)\nraise ValueError", "error timeout"),
        "error flood": Program(
            "import sys\nfor _ in range(10**4): sys.stderr.write('x' * 10000)\nraise ValueError", "error timeout"
        ),
        "flood every descriptor": "import os\nwhile True:\n  for fd in range(3, 256):\n    try: os.write(fd, b'x' * 65536)\n    except OSError: pass",
        "fill the disk": attack(
            "for n in range(64):\n    with open(f'/tmp/{n}', 'wb') as file: file.write(b'x' * (16 << 20))"
        ),
        "fill the disk with names": Program(
            attack("for n in range(10**6): open(f'/tmp/{n}', 'w').close()"), "error timeout"
        ),
        "deep folders": attack("import os\nfor n in range(10**5): os.mkdir('x'); os.chdir('x')\nassert n < 99"),
        "a huge file": attack("with open('/tmp/x', 'wb') as file: file.seek(1 << 40); file.write(b'x')"),
        "many open files": attack("x = [open('/dev/null') for _ in range(5000)]"),
        "deep recursion": Program("import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)", "error timeout"),
        "deep recursion in C": Program(
            "import sys\nsys.setrecursionlimit(10**9)\nx = []\nfor _ in range(10**6): x = [x]\nrepr(x)", "error timeout"
        ),
        "segmentation fault": "import ctypes\nctypes.string_at(0)",
        "a child that dies of memory": Program(
            "import os\nif os.fork() == 0: x = b'x' * (1 << 40)\nos.wait()\ndef f(x): return 0", "error failed timeout"
        ),
        "a regular expression without end": Program(
            "import re\ndef f(x): return re.match('(a|a)*b', 'a' * 99)", "timeout"
        ),
    },
)

TEXT = programs(
    "error",
    {
        "null bytes": "x = 1\0",
        "deep nesting": "(" * 100_000,
        "deep nesting of another kind": "-" * 500_000 + "1",
        "deep attributes": "x = a" + ".a" * 200_000,
        "deep blocks": "".join(" " * n + "if 1:\n" for n in range(120)) + " " * 120 + "pass",
        "lone surrogate": Program("x = '\ud800'\ndef f(x): return 0", "failed"),
        "another encoding": "# coding: rot13\nqrs s(k): erghea 2",
        "a million lines": Program("x = 1\n" * 300_000 + "def f(x): return 0", "failed timeout error"),
        "a huge constant": Program("x = 'x' * 10**7 if 0 else '" + "x" * (8 << 20) + "'\ndef f(x): return len(x)"),
        "a constant that folds": "x = ((('x' * 4096) * 4096) * 4096) * 4096",
        "huge exception text": "raise ValueError('x' * 10**8)",
        "terminal escapes": "raise ValueError('\\x1b[2J\\x1b]0;owned\\x07\\nverdict passed')",
        "an exception that raises": "class E(Exception):\n    def __str__(self): raise self\nraise E",
        "an exception that exits": "class E(Exception):\n    def __str__(self):\n        raise SystemExit(0)\nraise E",
        "an exception that leaves": "import os\nclass E(Exception):\n    def __str__(self): os._exit(0)\nraise E",
        "an exception that never ends": Program(
            "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E", "timeout"
        ),
        "an exception with lying parts": (
            "class E(Exception):\n    args = property(lambda s: [s] * 9)\n    __traceback__ = property(lambda s: s)\n"
            "    __class__ = property(lambda s: int)\n    tb_frame = tb_next = None\nraise E"
        ),
        "an exception of a kind with a long name": "E = type('E' * 10**7, (Exception,), {})\nraise E",
        "an exception whose kind lies": (
            "class M(type):\n    __name__ = property(lambda s: 1 / 0)\n    __mro__ = property(lambda s: 1 / 0)\n"
            "class E(Exception, metaclass=M): pass\nraise E"
        ),
        "an exception of a kind of its own": "class E(BaseException): pass\ndef f(x): raise E('no')",
        "a syntax error with a lying message": "e = SyntaxError('x')\ne.msg = type('E', (), {'__str__': lambda s: 1 / 0})()\ne.lineno = 'x'\ne.filename = '<solution>'\nraise e",
    },
)
