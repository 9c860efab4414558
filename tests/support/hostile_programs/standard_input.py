"""Programs on standard input."""

from __future__ import annotations

from tests.support.hostile_programs.problems import programs

STDIN = (
    programs(
        "failed",
        {
            "nothing": "pass",
            "exit": "import os; os._exit(0)",
            "answer the first only": "print(2)",
            "say the results everywhere": 'import os\nfor fd in range(3, 256):\n    try: os.write(fd, b\'{"output": "2"}\')\n    except OSError: pass',
            "too much": "print(2)\nprint('x' * 100_000)",
            "replace its output by zeros": "import os\nos.remove('/tmp/.stdout'); os.symlink('/dev/zero', '/tmp/.stdout')",
            "invalid output": "import os\nos.write(1, b'\\xff\\xfe')",
            "write for the next test": (
                "import os, time\nmain = os.getpid()\nif os.fork() == 0:\n    while os.getppid() == main: time.sleep(0.001)\n"
                "    while True: time.sleep(0.03); open('/tmp/.stdout', 'w').write('3')\nprint(2)"
            ),
            "keep its output open": "import os, time\nif os.fork() == 0:\n    while True: os.write(1, b'3'); time.sleep(0.001)\nprint(2)",
            "a child that stays": "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(60)\nprint(0)",
            "remember the test before": "import os\nn = len(open('/tmp/n').read()) if os.path.exists('/tmp/n') else 0\nopen('/tmp/n', 'a').write('x')\nprint(n + 5)",
            "numbers that are slow to compare": "print('9' * 3000 + 'e999999999')",
            "a number without end": "print('1e' + '9' * 3990)",
            "a million lines": "print('2\\n' * 10**6)",
        },
        "stdin",
    )
    | programs(
        "error failed",
        {
            "flood": "while True: print('x' * 10000)",
            "replace its input by a folder": "import os\nos.remove('/tmp/.stdin'); os.mkdir('/tmp/.stdin')",
            "replace its errors by zeros": "import os\nos.remove('/tmp/.error'); os.symlink('/dev/zero', '/tmp/.error')",
            "replace its input by Python": "import os\nos.remove('/tmp/.stdin'); os.symlink(os.__file__, '/tmp/.stdin')",
            "take the folder away": "import os\nos.chmod('/tmp', 0); os.remove('/tmp/.stdin')",
            "kill the one that asks": "import os\nos.kill(os.getppid(), 9)\nos.kill(1, 9)",
        },
        "stdin",
    )
    | programs(
        "error",
        {
            "right, then killed": "import os\nprint(int(input()) + 1, flush=True)\nos.kill(os.getpid(), 11)",
            "right, then raises": "print(int(input()) + 1, flush=True)\nraise ValueError",
            "replace its output by a folder": "import os\nos.remove('/tmp/.stdout'); os.mkdir('/tmp/.stdout')",
            "fill the disk": "while True: open('/tmp/' + str(id(input)), 'ab').write(b'x' * (1 << 24))",
        },
        "stdin",
    )
    | programs(
        "timeout",
        {
            "replace its output by a pipe": "import os\nos.remove('/tmp/.stdout'); os.mkfifo('/tmp/.stdout')",
            "loop": "while True: pass",
        },
        "stdin",
    )
)
