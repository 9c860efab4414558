"""What stays, and what others left."""

from __future__ import annotations

from tests.support.hostile_programs.problems import Program, attack, programs

STAYING = programs(
    "failed",
    {
        "a thread that stays": "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\ndef f(x): return 0",
        "daemon": (
            "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        os.closerange(0, 256)\n"
            "        time.sleep(60)\n    os._exit(0)\ndef f(x): return 0"
        ),
        "daemon of one that leaves": Program(
            "import os, time\nif os.fork() == 0:\n    os.setsid()\n    while True: time.sleep(1)\nos._exit(0)",
            "error timeout",
        ),
        "a stopped child": "import os, signal\nif os.fork() == 0:\n    os.kill(os.getpid(), signal.SIGSTOP)\ndef f(x): return 0",
        "a child in a session of its own that takes the name": (
            "import os, subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
            "def f(x): return 0"
        ),
        "kill the parent": Program(attack("import os\nassert os.getppid()\nos.kill(os.getppid(), 9)\nassert 0")),
        "stop the parent": Program(attack("import os\nassert os.getppid()\nos.kill(os.getppid(), 19)\nassert 0")),
        "interrupt the parent": Program(attack("import os\nassert os.getppid()\nos.kill(os.getppid(), 2)\nassert 0")),
        "kill everyone": Program(attack("import os\nos.kill(-1, 9)\nassert 0")),
        "stop everyone": Program(attack("import os\nos.kill(-1, 19)\nassert 0")),
        "every signal to everyone": Program(
            attack("import os\nfor n in range(1, 65):\n    if n != 32 and n != 33: os.kill(-1, n)\nassert 0")
        ),
        "signals to all numbers": Program(
            attack(
                "import os\nfor pid in range(1, 33000):\n    if pid != os.getpid():\n        try: os.kill(pid, 9)\n        except OSError: pass\nassert 0"
            )
        ),
        "kill the group": Program(attack("import os\nos.killpg(0, 9)\nassert 0"), "error failed timeout"),
        "signals through the other end": Program(
            attack(
                "import os, signal, socket\none = socket.socket(fileno=3)\npidfd = int.from_bytes(one.getsockopt(1, 77, 4), 'little')\n"
                "signal.pidfd_send_signal(pidfd, 0)"
            )
        ),
        "leave a file": "open('/tmp/left', 'w').write('x')\ndef f(x): return 0",
        "find a file": Program(attack("open('/tmp/left')"), "error"),
        "leave a file in shared memory": "from multiprocessing import shared_memory\nx = shared_memory.SharedMemory('left', True, 9)\nx.close()\ndef f(x): return 0",
        "find a file in shared memory": Program(
            attack("from multiprocessing import shared_memory\nx = shared_memory.SharedMemory('left')"), "error"
        ),
        "leave a queue of messages": "import ctypes, os\nctypes.CDLL(None).mq_open(b'/left', os.O_CREAT | os.O_RDWR, 0o666, None)\ndef f(x): return 0",
        "find a queue of messages": Program(
            attack("import ctypes, os\nassert ctypes.CDLL(None).mq_open(b'/left', os.O_RDWR) >= 0"), "error"
        ),
        "leave System V memory": "import ctypes\nctypes.CDLL(None).shmget(77, 4096, 0o1666)\ndef f(x): return 0",
        "find System V memory": Program(
            attack("import ctypes\nassert ctypes.CDLL(None).shmget(77, 4096, 0) >= 0"), "error"
        ),
        "leave a key": "import ctypes\nctypes.CDLL(None).syscall(KEYS, b'user', b'left', b'x', 1, -4)\ndef f(x): return 0",
        "find a key": Program(
            attack("import ctypes\nassert ctypes.CDLL(None).syscall(KEYS + 1, b'user', b'left', None, -4) > 0"), "error"
        ),
        "leave a name of the machine": "import socket\ntry: socket.sethostname('left')\nexcept OSError: pass\ndef f(x): return 0",
        "find a name of the machine": Program(
            attack("import socket\nassert socket.gethostname() == 'left'"), "error failed"
        ),
        "leave a change to Python": "import os, builtins\nbuiltins.left = os.left = 1\nint.__doc__\ndef f(x): return 0",
        "find a change to Python": Program(
            attack("import os, builtins\nassert hasattr(builtins, 'left') or hasattr(os, 'left')"), "failed error"
        ),
        "leave a way to get out": "import os\nos.environ['LEFT'] = '1'\nos.umask(0o777)\nos.nice(19)\ndef f(x): return 0",
        "find a way to get out": Program(
            attack("import os\nassert 'LEFT' in os.environ or os.umask(0) == 0o777 or os.nice(0) != NICENESS"),
            "failed error",
        ),
        "open a door for the others": (
            "import socket, time\none = socket.socket(socket.AF_UNIX)\none.bind('\\0door')\none.listen()\n"
            "try: two = socket.create_server(('127.0.0.1', 17171))\nexcept OSError: pass\ntime.sleep(0.4)\ndef f(x): return 0"
        ),
        "go through a door": Program(
            attack(
                "import socket, time\nfor _ in range(30):\n    time.sleep(0.01)\n    try: socket.socket(socket.AF_UNIX).connect('\\0door'); return 2\n"
                "    except OSError: pass\n    try: socket.create_connection(('127.0.0.1', 17171)); return 2\n    except OSError: pass\nassert 0"
            ),
            "failed error",
        ),
        "keep a file for the others": "import time\nopen('/tmp/shared', 'w').write('x')\ntime.sleep(0.3)\ndef f(x): return 0",
        "look for a file of the others": Program(
            attack(
                "import os, time\nfor _ in range(20):\n    time.sleep(0.01)\n    if os.path.exists('/tmp/shared'): return 2\nassert 0"
            ),
            "failed error",
        ),
    },
)
