"""Programs that look for the answer."""

from __future__ import annotations

from tests.support.hostile_programs.problems import SEARCHED, Program

_FIND = (
    "import re\nPATTERN = re.compile('expected-[0-9a-f]{32}')\n"
    "def found(text):\n    return next(iter(PATTERN.findall(text if isinstance(text, str) else repr(text))), None)\n"
)
# What is not mapped cannot be written from: EFAULT instead of the end. Reads all that lies near the objects of every kind.
SWEEP = (
    "import ctypes, os, re\ndef sweep(pattern):\n    libc = ctypes.CDLL(None)\n"
    "    libc.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]\n    libc.sbrk.restype = ctypes.c_void_p\n"
    "    near = [id(libc), id(ctypes), id(b'x' * 1000), libc.sbrk(0), ctypes.cast(libc.sbrk, ctypes.c_void_p).value,\n"
    "            ctypes.addressof(ctypes.create_string_buffer(1 << 22)), id(sweep), id(0), id('a'), id(object)]\n"
    "    seen, step = set(), 1 << 14\n    r, w = os.pipe2(os.O_NONBLOCK)\n    hits, last = set(), b''\n"
    "    for middle in near:\n        middle -= middle % step\n"
    "        for at in range(middle - (24 << 20), middle + (24 << 20), step):\n"
    "            if at in seen or at < 0: continue\n            seen.add(at)\n"
    "            for page in range(at, at + step, 4096) if libc.write(w, at, step) != step else ():\n"
    "                libc.write(w, page, 4096)\n"
    "            try: text = os.read(r, 1 << 17)\n            except BlockingIOError: last = b''; continue\n"
    "            hits.update(re.findall(pattern, last[-64:] + text)); last = text\n"
    "    return sorted(hits)\n"
)


def _search(body: str, may_be: str = "error failed", on: str = SEARCHED, first: str = "") -> Program:
    """`body` looks through things and gives what it found."""
    lines = "".join(f"    {line}\n" for line in body.strip().split("\n"))
    return Program(
        f"{_FIND}{first}def look(x=None):\n{lines}def f(x):\n    y = look(x)\n    return [y] if ON_LIVE else y\n",
        may_be,
        on,
    )


SEARCHES = {
    "frames": _search(
        "import sys\nframe, hits = sys._getframe(), []\nwhile frame:\n"
        "    hits.append(found([frame.f_locals, frame.f_code.co_consts])); frame = frame.f_back\nreturn next(filter(None, hits), None)"
    ),
    "frames' globals": _search(
        "import sys\nframe, hits = sys._getframe(), []\nwhile frame:\n"
        "    hits += [found([name, value]) for name, value in list(frame.f_globals.items()) if name != 'PATTERN']; frame = frame.f_back\n"
        "return next(filter(None, hits), None)"
    ),
    "all objects": _search(
        "import gc\nfor thing in gc.get_objects():\n    for part in [thing, *gc.get_referents(thing)]:\n"
        "        if type(part) in (str, bytes):\n            hit = found(part if type(part) is str else part.decode('latin-1'))\n"
        "            if hit: return hit"
    ),
    "the objects of frozen generations": _search(
        "import gc\ngc.unfreeze(); gc.collect()\nfor thing in gc.get_objects():\n    if isinstance(thing, dict):\n"
        "        for part in list(thing.values()):\n            hit = type(part) in (str, bytes) and found(str(part))\n"
        "            if hit: return hit"
    ),
    "modules": _search(
        "import sys\nfor module in list(sys.modules.values()):\n    for name, part in list(vars(module).items()):\n"
        "        if type(part) in (str, list, dict, tuple, bytes):\n            try: hit = found(part)\n"
        "            except Exception: continue\n            if hit: return hit"
    ),
    "tracebacks": _search(
        "import sys\ntry: raise ValueError\nexcept ValueError as error:\n    frame, hits = error.__traceback__.tb_frame, []\n"
        "    while frame.f_back: frame = frame.f_back; hits.append(found(frame.f_locals))\nreturn next(filter(None, hits), None)"
    ),
    "a trace of the harness": _search(
        "return next(filter(None, HITS), None)",
        first=(
            "import sys\nHITS = []\ndef trace(frame, event, value):\n    try: HITS.append(found([frame.f_locals, value]))\n"
            "    except Exception: pass\n    return trace\nsys.settrace(trace); sys.setprofile(trace)\n"
            "frame = sys._getframe()\nwhile frame: frame.f_trace = trace; frame = frame.f_back\n"
        ),
    ),
    "an audit hook": _search(
        "return next(filter(None, HITS), None)",
        first="import sys\nHITS = []\nsys.addaudithook(lambda event, args: HITS.append(found(args)))\n",
    ),
    "memory": _search(
        "return (sweep(rb'expected-[0-9a-f]{32}') or [b''])[0].decode()", "error failed timeout", first=SWEEP
    ),
    "memory, as wide characters": _search(
        "return ''.join(map(chr, (sweep(b'(?:' + b'..'.join(b'expected-').replace(b'..', b'\\0') + b'\\0)(?:[0-9a-f]\\0){32}') or [b''])[0][::2]))",
        "error failed timeout",
        first=SWEEP,
    ),
    "/proc/self/mem": _search("return found(open('/proc/self/mem', 'rb').read().decode('latin-1'))"),
    "/proc/self/environ": _search("return found(open('/proc/self/environ').read())"),
    "other processes' memory": _search(
        "import os\nfor pid in range(1, 40000):\n    if os.path.exists(f'/proc/{pid}/mem'): return found(open(f'/proc/{pid}/cmdline').read())"
    ),
    "the environment": _search("import os, sys\nreturn found([dict(os.environ), sys.argv, sys.orig_argv, sys.path])"),
    "every file": _search(
        "import os\nfor top in ('/tmp', '/dev', '/proc', '/run', '/var', '/home', '/root', '/etc', '/mnt', '/opt'):\n"
        "    for folder, _, names in os.walk(top):\n        for name in names:\n            path = os.path.join(folder, name)\n"
        "            if os.path.isfile(path) and path.endswith(('.json', '.py', '.txt', '.stdin')) and '/lib/python' not in path:\n"
        "                hit = found(open(path, errors='replace').read())\n                if hit: return hit",
        "error failed timeout",
    ),
    "every descriptor": _search(
        "import os\nhits = []\nfor fd in range(256):\n    try: os.set_blocking(fd, False); hits.append(found(os.read(fd, 1 << 20).decode('latin-1')))\n"
        "    except OSError: pass\nreturn next(filter(None, hits), None)"
    ),
    "what comes next on the socket": _search(
        "import socket, time\none = socket.socket(fileno=3)\none.setblocking(False)\ntime.sleep(0.1)\n"
        "try: return found(one.recv(1 << 20, socket.MSG_PEEK).decode('latin-1'))\nexcept OSError: return None"
    ),
    "who is at the other end": _search(
        "import os, socket\none = socket.socket(fileno=3)\npid = os.open and one.getsockopt(1, 17, 12)\n"
        "pid = int.from_bytes(pid[:4], 'little')\nassert pid, 'a process that is not seen'\nreturn found(open(f'/proc/{pid}/mem', 'rb').read())"
    ),
    "json.loads that listens": _search(
        "return next(filter(None, HITS), None)",
        first=(
            "import json\nHITS, old = [], json.loads\ndef loads(text, *a, **k):\n    HITS.append(found(str(text)))\n    return old(text, *a, **k)\n"
            "json.loads = json.JSONDecoder.decode = loads\nimport sys\nfor name, module in list(sys.modules.items()):\n"
            "    if name.startswith('loop'):\n        for key in ('_loads', 'loads'):\n            if hasattr(module, key): setattr(module, key, loads)\n"
        ),
    ),
    "a receive that listens": _search(
        "return next(filter(None, HITS), None)",
        first=(
            "import sys\nHITS = []\nvalues, cell = sys.modules['loop.grading.inside.values'], sys.modules['loop.grading.inside.cell']\nold = values.receive\n"
            "def receive(read):\n    said = old(read)\n    HITS.append(found(said))\n    return said\nvalues.receive = cell.receive = receive\n"
        ),
    ),
    "the judge's module": _search(
        "import sys, gc\njudge = sys.modules['loop.grading.inside.judge']\n"
        "return found([vars(judge), [vars(s) for s in gc.get_objects() if type(s) is sys.modules['loop.grading.inside.remote'].Solution]])"
    ),
    "on standard input": Program(
        SWEEP + "hits = sweep(rb'expected-[0-9a-f]{32}')\nprint(hits and hits[0].decode())", "failed timeout", "hidden"
    ),
    "files beside a program": Program(
        "import os\nprint(*[open(f'/tmp/{n}').read() for n in os.listdir('/tmp')])", "failed", "hidden"
    ),
}
