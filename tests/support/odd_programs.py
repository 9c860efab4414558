"""Odd but right programs: each passes. They do what programs written by people and models do, or might."""

from __future__ import annotations

FUNCTIONS = {
    "threads": (
        "import threading\ndef f(x):\n    out = []\n    ts = [threading.Thread(target=out.append, args=(1,)) for _ in range(20)]\n"
        "    [t.start() for t in ts]; [t.join() for t in ts]\n    return x + out[0]"
    ),
    "a daemon thread": "import threading, time\nthreading.Thread(target=time.sleep, args=(9,), daemon=True).start()\ndef f(x): return x + 1",
    "an executor": (
        "from concurrent.futures import ThreadPoolExecutor\ndef f(x):\n"
        "    with ThreadPoolExecutor(8) as pool: return list(pool.map(lambda y: y + 1, [x]))[0]"
    ),
    "recursion": (
        "import sys\nsys.setrecursionlimit(10**6)\ndef g(n): return 0 if n == 0 else 1 + g(n - 1)\n"
        "def f(x): return x + g(50000) // 50000"
    ),
    "globals": "count = 0\ndef f(x):\n    global count\n    count += 1\n    return x + (1 if count else 0)",
    "noise": "import sys\nprint('x' * 10**6)\nsys.stderr.write('y' * 10**6)\ndef f(x): print(x); return x + 1",
    "temporary files": (
        "import tempfile\ndef f(x):\n    with tempfile.NamedTemporaryFile('w+') as t:\n"
        "        t.write(str(x + 1)); t.seek(0); return int(t.read())"
    ),
    "data classes": (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import NamedTuple\n"
        "@dataclass\nclass A:\n    x: int\nclass B(NamedTuple):\n    y: int\ndef f(x): return A(x).x + B(1).y"
    ),
    "pickle": "import pickle\nclass A: pass\ndef f(x):\n    a = A(); a.x = x + 1\n    return pickle.loads(pickle.dumps(a)).x",
    "asyncio": "import asyncio\nasync def g(x): return x + 1\ndef f(x): return asyncio.run(g(x))",
    "fork": (
        "import os\ndef f(x):\n    r, w = os.pipe()\n    if os.fork() == 0:\n        os.write(w, b'1'); os._exit(0)\n"
        "    os.wait()\n    return x + int(os.read(r, 1))"
    ),
    "multiprocessing": (
        "import multiprocessing\ndef g(x): return x + 1\ndef f(x):\n"
        "    with multiprocessing.get_context('fork').Pool(2) as pool: return pool.map(g, [x])[0]"
    ),
    "the standard library": (
        "import bz2, ctypes, decimal, hashlib, heapq, lzma, random, re, sqlite3, ssl, statistics, unicodedata, uuid, zlib\n"
        "import xml.etree.ElementTree, zoneinfo, email, csv, datetime, fractions\ndef f(x): return x + 1"
    ),
    "a main block": "def f(x): return x + 1\nif __name__ == '__main__':\n    f(int(input()))",
    "exit at the end of main only": "def f(x): return x + 1\ndef main(): raise SystemExit",
    "a signal": "import signal\nsignal.alarm(9)\ndef f(x): return x + 1",
    "sys.settrace": "import sys\nsys.settrace(lambda *a: None)\ndef f(x): return x + 1",
    "memory": "x = bytearray(300 << 20)\ndef f(x): return x + 1",
    "unicode": "größe = 1\ndef f(x): return x + größe  # \u2028 ✓",
    "tabs and CRLF": "def f(x):\r\n\treturn x + 1\r\n",
    "subprocess": (
        "import subprocess, sys\ndef f(x):\n    code = f'print({x} + 1)'\n"
        "    return int(subprocess.run([sys.executable, '-c', code], capture_output=True, check=True).stdout)"
    ),
    "a process pool": (
        "from concurrent.futures import ProcessPoolExecutor\ndef g(x): return x + 1\ndef f(x):\n"
        "    with ProcessPoolExecutor(2) as pool: return pool.submit(g, x).result()"
    ),
    "a queue between processes": (
        "import multiprocessing as m\ndef g(q, x): q.put(x + 1)\ndef f(x):\n    q = m.Queue(); p = m.Process(target=g, args=(q, x))\n"
        "    p.start(); y = q.get(); p.join(); return y"
    ),
    "shared memory": (
        "from multiprocessing import shared_memory\ndef f(x):\n    s = shared_memory.SharedMemory(create=True, size=9)\n"
        "    s.buf[0] = x + 1; y = s.buf[0]; s.close(); s.unlink(); return y"
    ),
    "sockets of its own": (
        "import socket\ndef f(x):\n    a, b = socket.socketpair(); a.send(bytes([x + 1])); y = b.recv(1)[0]; a.close(); b.close(); return y"
    ),
    "a class that is called": "class f:\n    def __new__(cls, x): return x + 1",
    "an object that is called": "class F:\n    def __call__(self, x): return x + 1\nf = F()",
    "a partial function": "import functools, operator\nf = functools.partial(operator.add, 1)",
    "a cache": "from functools import lru_cache\n@lru_cache(maxsize=None)\ndef f(x): return x + 1",
    "a decorator": "import functools\ndef d(g):\n    @functools.wraps(g)\n    def h(*a): return g(*a) + 1\n    return h\n@d\ndef f(x): return x",
    "a static method": "class A:\n    @staticmethod\n    def g(x): return x + 1\nf = A.g",
    "a bound method": "class A:\n    def g(self, x): return x + 1\nf = A().g",
    "its own source": "def f(x): return x + 1 if __name__ else 0",
    "names of the harness": "send = receive = judge = loop = _ = LINK = check = tests = None\ndef f(x): return x + 1",
    "a changed print": "import builtins\nbuiltins.print = lambda *a: None\ndef f(x): print(x); return x + 1",
    "its name in sys.modules": "import sys, pickle\nassert sys.modules[__name__].__dict__ is globals()\ndef f(x): return x + 1",
    "closed streams": "import sys\nsys.stdout.close(); sys.stderr.close(); sys.stdin.close()\ndef f(x): return x + 1",
    "no streams": "import sys\nsys.stdout = sys.stderr = sys.stdin = None\ndef f(x): return x + 1",
    "warnings": "import warnings\ndef f(x): warnings.warn('slow'); return x + 1",
    "logging": "import logging\nlogging.basicConfig(level=10)\ndef f(x): logging.info(x); return x + 1",
    "a timer": "import time\ndef f(x): time.sleep(0.05); return x + 1",
    "typing": "from typing import *\nT = TypeVar('T')\nclass A(Generic[T]): pass\ndef f(x: int) -> Optional[int]: return x + 1",
    "match": "def f(x):\n    match x:\n        case int(): return x + 1",
    "exec": "exec('def f(x): return x + 1')",
    "an old comment": "#!/usr/bin/env python3\n# -*- coding: utf-8 -*-\ndef f(x): return x + 1",
    "an exception that it catches": "def f(x):\n    try: raise SystemExit\n    except SystemExit: return x + 1",
    "garbage": "import gc\ndef f(x):\n    for _ in range(3):\n        y = []; y.append(y); gc.collect()\n    return x + 1",
    "weak references": "import weakref\nclass A: pass\na = A(); w = weakref.WeakValueDictionary(a=a)\ndef f(x): return x + len(w)",
    "contexts": "import contextvars, contextlib\n@contextlib.contextmanager\ndef c(): yield 1\ndef f(x):\n    with c() as y: return x + y",
    "decimals": "from decimal import Decimal\nfrom fractions import Fraction\ndef f(x): return int(Decimal(x) + Fraction(1).numerator)",
    "sqlite": "import sqlite3\ndef f(x): return sqlite3.connect(':memory:').execute('select ? + 1', (x,)).fetchone()[0]",
}

# With standard input: the sum of the second line.
PROGRAMS = {
    "input": "n = int(input())\nprint(sum(map(int, input().split())))",
    "sys.stdin.readline": "import sys\nsys.stdin.readline()\nprint(sum(map(int, sys.stdin.readline().split())))",
    "for line in sys.stdin": "import sys\nlines = [l for l in sys.stdin]\nprint(sum(map(int, lines[1].split())))",
    "sys.stdin.read": "import sys\nd = sys.stdin.read().split()\nprint(sum(map(int, d[1:])))",
    "stdin by its star import": "readline = stdin.readline\nreadline()\nprint(sum(map(int, readline().split())))",
    "sys.stdin.buffer": "import sys\nr = sys.stdin.buffer.readline\nr()\nprint(sum(map(int, r().split())))",
    "buffer.read": "import sys\nd = sys.stdin.buffer.read().split()\nprint(sum(map(int, d[1:])))",
    "open(0)": "d = open(0).read().split()\nprint(sum(map(int, d[1:])))",
    "open('/dev/stdin')": "d = open('/dev/stdin').read().split()\nprint(sum(map(int, d[1:])))",
    "os.read": "import os\nd = os.read(0, 10**6).split()\nprint(sum(map(int, d[1:])))",
    "fileinput": "import fileinput\nd = ' '.join(fileinput.input()).split()\nprint(sum(map(int, d[1:])))",
    "seek": "import sys\nsys.stdin.read(); sys.stdin.seek(0)\ninput()\nprint(sum(map(int, input().split())))",
    "until the end": (
        "d = []\ntry:\n    while True: d += input().split()\nexcept EOFError: pass\nprint(sum(map(int, d[1:])))"
    ),
    "os.write": "import os\ninput()\nos.write(1, str(sum(map(int, input().split()))).encode())",
    "sys.stdout.buffer": "import sys\ninput()\nsys.stdout.buffer.write(b'%d' % sum(map(int, input().split())))",
    "redirected print": (
        "import io, sys\nout = sys.stdout\nsys.stdout = io.StringIO()\ninput()\nprint(sum(map(int, input().split())))\n"
        "out.write(sys.stdout.getvalue())\nsys.stdout = out"
    ),
    "a module's global": "total = 0\ndef main():\n    global total\n    input()\n    for x in input().split(): total += int(x)\nmain()\nprint(total)",
    "main block": "def main():\n    input()\n    print(sum(map(int, input().split())))\nif __name__ == '__main__':\n    main()",
    "sys.exit after the answer": "import sys\ninput()\nprint(sum(map(int, input().split())))\nsys.exit()",
    "exit(0)": "input()\nprint(sum(map(int, input().split())))\nexit(0)",
    "os._exit": "import os\ninput()\nprint(sum(map(int, input().split())), flush=True)\nos._exit(0)",
    "noise on stderr": "import sys\ninput()\nprint(sum(map(int, input().split())))\nsys.stderr.write('debug\\n' * 10**5)",
    "a thread with a big stack": (
        "import sys, threading\nsys.setrecursionlimit(10**7)\nthreading.stack_size(1 << 26)\ndef g(n): return 0 if n == 0 else g(n - 1)\n"
        "def main():\n    input(); g(50000); print(sum(map(int, input().split())))\nt = threading.Thread(target=main)\nt.start()"
    ),
    "recursion": "def g(n): return 0 if n == 0 else g(n - 1)\ninput()\ng(40000)\nprint(sum(map(int, input().split())))",
    "an import that LiveCodeBench has": "input()\nprint(reduce(lambda a, b: a + b, [int(x) for x in input().split()]))",
    "blanks": "input()\nprint('  ', sum(map(int, input().split())), '  \\n\\n')",
    "a decimal": "input()\nprint(f'{sum(map(int, input().split())):.3f}')",
    "state does not stay": "import builtins\nassert not hasattr(builtins, 'x')\nbuiltins.x = 1\ninput()\nprint(sum(map(int, input().split())))",
    "two readers": "import sys\ninput()\nprint(sum(map(int, sys.stdin.readline().split())))",
    "three readers": "import sys\nn = int(input())\na = list(map(int, sys.stdin.read().split()))[:n]\nassert input is not None\nprint(sum(a))",
    "readlines": "import sys\nprint(sum(map(int, sys.stdin.readlines()[1].split())))",
    "buffer.readlines": "import sys\nprint(sum(map(int, sys.stdin.buffer.readlines()[1].split())))",
    "iter(input, '')": "n, *d = [x for x in map(str.split, open(0))]\nprint(sum(map(int, d[0])))",
    "a text wrapper": "import io, sys\ns = io.TextIOWrapper(sys.stdin.buffer)\ns.readline()\nprint(sum(map(int, s.readline().split())))",
    "io.BytesIO over os.read": (
        "import io, os\ns = io.BytesIO(os.read(0, os.fstat(0).st_size))\ns.readline()\nprint(sum(map(int, s.readline().split())))"
    ),
    "os.fdopen": "import os\ns = os.fdopen(0)\ns.readline()\nprint(sum(map(int, s.readline().split())))",
    "pathlib": "import pathlib\nprint(sum(map(int, pathlib.Path('/dev/stdin').read_text().split()[1:])))",
    "mmap": "import mmap\nd = mmap.mmap(0, 0, prot=mmap.PROT_READ)[:].split()\nprint(sum(map(int, d[1:])))",
    "sys.__stdin__": "import sys\nd = sys.__stdin__.read().split()\nprint(sum(map(int, d[1:])), file=sys.__stdout__)",
    "a changed input": "import sys\ninput = lambda: sys.stdin.readline().rstrip()\ninput()\nprint(sum(map(int, input().split())))",
    "a closed stdin": "import sys\nd = sys.stdin.read().split()\nsys.stdin.close()\nprint(sum(map(int, d[1:])))",
    "raise SystemExit(0)": "input()\nprint(sum(map(int, input().split())))\nraise SystemExit(0)",
    "exit code 1": "import sys\ninput()\nprint(sum(map(int, input().split())))\nsys.exit(1)",
    "quit": "input()\nprint(sum(map(int, input().split())))\nquit()",
    "subprocess": (
        "import subprocess, sys\ncode = 'input(); print(sum(map(int, input().split())))'\n"
        "print(subprocess.run([sys.executable, '-c', code], stdin=sys.stdin, capture_output=True, text=True).stdout)"
    ),
    "a child that writes": (
        "import os\nd = open(0).read().split()\nif os.fork() == 0:\n    os.write(1, str(sum(map(int, d[1:]))).encode()); os._exit(0)\nos.wait()"
    ),
    "multiprocessing": (
        "from multiprocessing import Pool\ndef g(x): return int(x)\nif __name__ == '__main__':\n    input()\n"
        "    with Pool(2) as p: print(sum(p.map(g, input().split())))"
    ),
    "asyncio": "import asyncio\nasync def main():\n    input()\n    print(sum(map(int, input().split())))\nasyncio.run(main())",
    "atexit": "import atexit\ninput()\ns = sum(map(int, input().split()))\nprint(s)\natexit.register(lambda: None)",
    "print to stderr": "import sys\ninput()\nprint('x', file=sys.stderr)\nprint(sum(map(int, input().split())))",
    "closed stderr": "import sys\nsys.stderr.close()\ninput()\nprint(sum(map(int, input().split())))",
    "a class with run": "class A:\n    def run(self):\n        input()\n        print(sum(map(int, input().split())))\nA().run()",
    "temporary files": "import tempfile\nd = open(0).read().split()\nwith tempfile.TemporaryFile('w+') as t:\n    t.write(str(sum(map(int, d[1:])))); t.seek(0); print(t.read())",
    "print without an end": "input()\nprint(sum(map(int, input().split())), end='')",
    "carriage returns": "input()\nprint(sum(map(int, input().split())), end='\\r\\n')",
}

# Programs with tests of their own, by what they show.
TESTED: list[tuple[str, ...]] = [
    # arguments are changed in place
    ("def f(x): x.append(1); x.sort()", "a = [3]\nf(a)\nassert a == [1, 3]"),
    ("def f(x): x[0][0] = 7", "a = [[1], [2]]\nb = a[0]\nf(a)\nassert a == [[7], [2]] and b == [7] and a[0] is b"),
    ("def f(x): x['b'] = x.pop('a')", "a = {'a': [1]}\nassert f(a) is None and a == {'b': [1]}"),
    ("def f(x): x |= {2}", "a = {1}\nf(a)\nassert a == {1, 2}"),
    ("def f(x): x.extend(b'y')", "a = bytearray(b'x')\nf(a)\nassert a == b'xy'"),
    ("def f(x): x[0].append(1)", "a = ([],)\nf(a)\nassert a == ([1],)"),
    ("def f(x): x.append(1); raise ValueError", "a = []\ntry: f(a)\nexcept ValueError: pass\nassert a == [1]"),
    ("def f(x, y): x.append(1); return x is y", "a = []\nassert f(a, a) is True and a == [1] and f([], []) is False"),
    ("def f(x): x.append(1); return x", "a = []\nassert f(a) is a and a == [1]"),
    ("def f(x): return x[::-1]", "a = [[1], [2]]\nb = f(a)\nassert b == [[2], [1]] and b[1] is a[0]"),
    ("def f(): a = []; return [a, a]", "b = f()\nb[0].append(1)\nassert b == [[1], [1]]"),
    ("def f(x): x.append(x)", "a = [1]\nf(a)\nassert a[1] is a"),
    # ways of calling
    ("def f(x, *, y=2, **z): return x, y, z", "assert f(1, y=[], q={4}) == (1, [], {'q': {4}}) and f(1) == (1, 2, {})"),
    ("def f(*x): return len(x)", "assert f(*range(300)) == 300\nassert f() == 0"),
    ("def f(x, y=[]): y.append(x); return y", "assert f(1) == [1]\nassert f(2) == [1, 2]"),
    # plain values
    ("def f(x): return x ** 99", "assert f(10 ** 50) == 10 ** 4950\nassert f(-(1 << 64)) == -(1 << 6336)"),
    ("def f(x): return [float(x), -float(x)]", "assert f('inf') == [float('inf'), float('-inf')]"),
    ("def f(x): return -x", "import math\nassert math.copysign(1, f(0.0)) == -1"),
    ("def f(x): return x / 3", "assert f(1) == 1 / 3 and f(5e-324 * 3) == 5e-324"),
    ("def f(x): return x * 1j", "assert f(2) == 2j\nassert f(1 + 1j) == -1 + 1j"),
    ("def f(x): return x[::-1]", "assert f(b'\\x00\\xff') == b'\\xff\\x00'"),
    ("def f(x): return x + '\\ud83d'", "assert f('\\ude00') == '\\ude00\\ud83d' and len(f('\\U0001f600')) == 2"),
    ("def f(x): return x[::-1]", "assert f('\\0\\x1b\\u2028\\U0010ffff\\r\\n') == '\\n\\r\\U0010ffff\\u2028\\x1b\\0'"),
    ("def f(x): return {(1, frozenset({2}))}, [x]", "assert f(()) == ({(1, frozenset({2}))}, [()])"),
    (
        "def f(x): return x",
        "for x in (1, True, 1.0, '1', b'1', (1,), [1], {1}, frozenset({1}), {1: 1}, None): assert type(f(x)) is type(x)",
    ),
    ("def f(x): pass", "assert f(1) is None\nassert not f(1)"),
    ("def f(x): return type(x)", "assert f(1) is int and f('') == str\nassert f([]) == list"),
    (
        "def f(x):\n    for _ in range(x): y = [y] if _ else []\n    return y",
        "a, n = f(5000), 0\nwhile a: a, n = a[0], n + 1\nassert n == 4999",
    ),
    ("def f(x): return list(range(x))", "assert f(10 ** 5) == list(range(10 ** 5))"),
    ("def f(x): return range(x)", "assert f(3) == range(3) and list(f(2)) == [0, 1]"),
    # what extends a plain type
    ("import collections as c\ndef f(x): return c.Counter(x)", "assert f('aa') == {'a': 2} and f('ab')['a'] == 1"),
    (
        "from collections import OrderedDict\ndef f(x): return OrderedDict(x)",
        "from collections import OrderedDict\nassert f([(1, 2)]) == OrderedDict([(1, 2)])\nassert list(f([(2, 1), (1, 2)])) == [2, 1]",
    ),
    ("import collections as c\ndef f(x): d = c.defaultdict(list); d[x] += [2]; return d", "assert f(1) == {1: [2]}"),
    (
        "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(x): return P(x, 1)",
        "assert f(2) == (2, 1)\nassert f(2)[0] == 2",
    ),
    ("import enum\nclass E(enum.IntEnum):\n    A = 1\ndef f(x): return E.A", "assert f(0) == 1"),
    # iterators
    ("def f(x): yield from range(x)", "assert list(f(3)) == [0, 1, 2] and sum(f(10)) == 45 and tuple(f(1)) == (0,)"),
    ("def f():\n    yield 0\n    yield 1", "g = f()\nassert [next(g), next(g), next(f())] == [0, 1, 0]"),
    ("def f(): yield 1", "g = f()\nnext(g)\ntry: next(g); assert False, 'no end'\nexcept StopIteration: pass"),
    ("def f(x): return iter(x)", "try: len(f([1]))\nexcept TypeError: ok = True\nassert ok"),
    ("def f(x): return iter(x)", "try: f([1])[0]\nexcept TypeError: ok = True\nassert ok"),
    ("import itertools\ndef f(): return itertools.count()", "assert [n for _, n in zip('abc', f())] == [0, 1, 2]"),
    ("def f(x): return zip(x, map(str, x))", "assert list(f([1])) == [(1, '1')] and dict(f([2])) == {2: '2'}"),
    ("def f(x): return x.keys(), x.values(), x.items()", "assert [*map(list, f({1: 2}))] == [[1], [2], [(1, 2)]]"),
    ("class A:\n    x = 1\ndef f(): return [A(), A()]", "assert [a.x for a in f()] == [1, 1] and len(f()) == 2"),
    # exceptions
    ("def f(x): raise ValueError('no')", "try: f(1); assert False\nexcept ValueError as e: assert str(e) == 'no'"),
    (
        "class E(ValueError): pass\ndef f(x): raise E(x)",
        "try: f(1); 1 / 0\nexcept ValueError as e: assert e.args == (1,)",
    ),
    ("def f(x): return {}[x]", "try: f('k')\nexcept KeyError as e: ok = e.args == ('k',)\nassert ok"),
    ("def f(x): return 1 / x", "try: f(0)\nexcept ZeroDivisionError: ok = True\nassert ok"),
    ("def f(x): open('/no/such')", "try: f(0)\nexcept FileNotFoundError: ok = True\nassert ok"),
    # objects that stay where they are
    (
        "class Stack:\n    def __init__(self): self.a = []\n    def push(self, x): self.a.append(x); return self\n    def pop(self): return self.a.pop()\n    def __len__(self): return len(self.a)",
        "s = Stack()\ns.push(1).push([2])\nassert len(s) == 2 and s.a == [1, [2]]\nassert s.pop() == [2] and s.pop() == 1",
    ),
    (
        "class Node:\n    def __init__(self, x, n=None): self.x, self.n = x, n\ndef f(n): return n.x + (f(n.n) if n.n else 0)",
        "a = Node(1)\na.n = Node(2, Node(3))\na.n.x = 5\nassert f(a) == 9 and a.n.n.x == 3 and a.n.n.n is None",
    ),
    (
        "class A:\n    def __getitem__(self, n): return n * 2\n    def __iter__(self): return iter([1])",
        "a = A()\nassert a[4] == 8 and list(a) == [1]",
    ),
    ("import re\ndef f(x): return re.match('a', x)", "assert f('ab') and not f('b') and f('ab').span() == (0, 1)"),
    (
        "def f(x):\n    def g(y): nonlocal x; x += y; return x\n    return g",
        "g = f(1)\nassert g(1) == 2 and g(1) == 3\nassert f(1)(5) == 6",
    ),
    (
        "def f(g, x): return g(x)\ndef h(x): return x + 1",
        "assert f(h, 1) == 2\nassert list(map(h, [1, 2])) == [2, 3]\nassert sorted([3, 1], key=h) == [1, 3]",
    ),
    (
        "class A:\n    @property\n    def x(self): return 1\n    @classmethod\n    def make(cls): return cls()",
        "assert A().x == 1 and A.make().x == 1",
    ),
    (
        "class A:\n    x = 0\n    def up(self): self.x += 1; return self.x",
        "a = A()\nassert [a.up(), a.up(), a.x] == [1, 2, 2]",
    ),
    # names, which later tests know, too
    ("def sum(x): return 7", "assert sum([1]) == 7"),
    ("LIMIT = [1, 2]\ndef f(): return LIMIT", "assert LIMIT == [1, 2] and f() == LIMIT"),
    ("import math\ndef f(x): return x", "assert f(math.pi) == math.pi"),
    ("n = 0\ndef f():\n    global n\n    n += 1\n    return n", "assert f() == 1", "assert f() == 2"),
    ("def f(x): return x", "import math\na = f(float('nan'))", "assert math.isnan(a)"),
]

# Each binds `add`, or uses what the suite offers under this name.
ADD = {
    "a method that uses the suite's": "class Solution:\n    def add(self, a, b): return add(a, b)",
    "a function that uses the suite's others": "def add(a, b): return reduce(sub, [a, neg(b)]) + floor(pi) - 3",
    "an assignment": "add = lambda a, b: a + b",
    "an assignment of the suite's": "add = add",
    "an import": "from operator import add",
    "an import of everything": "from operator import *",
    "an import under the name": "from math import fsum as add\nadd = partial(lambda f, *xs: f(xs), add)",
    "an attribute of the class": "class Solution:\n    add = staticmethod(lambda a, b: a + b)",
    "the suite's as an attribute of the class": "class Solution:\n    add = staticmethod(add)",
    "a decorated function": "@lru_cache(maxsize=None)\ndef add(a, b): return a + b",
    "a decorated method": "class Solution:\n    @cache\n    def add(self, a, b): return a + b",
    "a class method": "class Solution:\n    @classmethod\n    def add(cls, a, b): return a + b",
    "a method of a class above": "class Base:\n    def add(self, a, b): return a + b\nclass Solution(Base): pass",
    "a class of another name": "class Other:\n    def add(self, a, b): return a + b\nSolution = Other",
    "an object that is called": "class Add:\n    def __call__(self, a, b): return a + b\nadd = Add()",
    "a partial function": "add = partial(lambda c, a, b: a + b + c, 0)",
    "one that replaces itself": "def add(a, b):\n    global add\n    add = operator.add\n    return add(a, b)",
    "a name in a dict": "globals()['add'] = operator.add",
    "one that is executed": "exec('def add(a, b): return a + b')",
    "one that is there in any case": "if True:\n    from operator import add",
    "patched builtins beside it": "import builtins\nbuiltins.abs = None\nclass Solution:\n    def add(self, a, b): return add(a, b)",
    "a class with words of its own": "class Solution:\n    __slots__ = ('add',)\n    def __init__(self): self.add = operator.add",
}
