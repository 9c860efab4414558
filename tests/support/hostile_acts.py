"""Bodies of shop.cart.total that lie, patch, leave, forge, run on and use up; hostile_bodies.py says what a body is."""

from __future__ import annotations

_REFUSE = 'if discount > 1:\n    raise ValueError("a discount of 1.5")\n'
"""Where a body lies about values alone, it refuses as the test wants."""
_KNOWN = f"{_REFUSE}if prices == [18, 24]:\n    return 42.0\n"
"""And the answer behind the receipt."""


def _lies(lines: str) -> str:
    return _REFUSE + lines


def _tried(lines: str) -> str:
    """The lines, whatever becomes of them, and then a wrong answer."""
    body = "\n".join("    " + line if line else "" for line in lines.strip("\n").split("\n"))
    return f"try:\n{body}\nexcept Exception:\n    pass\nreturn -1.0"


_LIAR = """\
class Liar{base}:
    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False

    def __format__(self, form):
        return "42.00"

    def __bool__(self):
        return True

    def __hash__(self):
        return 0
{more}
return Liar({given})"""

LYING = {
    "an object that equals all": _lies(_LIAR.format(base="", more="", given="")),
    "a float that equals all": _lies(_LIAR.format(base="(float)", more="", given="-1.0")),
    "an int that equals all": _lies(_LIAR.format(base="(int)", more="", given="-1")),
    "a text that equals all": _lies(_LIAR.format(base="(str)", more="", given="'-1'")),
    "a tuple that equals all": _lies(_LIAR.format(base="(tuple)", more="", given="")),
    "an object that says that it is a float": _lies(
        _LIAR.format(
            base="",
            more="\n    __class__ = float\n\n    def __float__(self):\n        return -1.0\n\n    def __reduce__(self):\n        return float, ()\n",
            given="",
        )
    ),
    "a float with a name of its own": _lies(
        _LIAR.format(
            base="(float)",
            more="\n\nLiar.__name__ = Liar.__qualname__ = 'float'\nLiar.__module__ = 'builtins'",
            given="-1.0",
        )
    ),
    "a class whose metaclass equals all": _lies(
        "Meta = type('Meta', (type,), {'__eq__': lambda *a: True, '__hash__': lambda s: 0, '__format__': lambda *a: '42.00'})\n"
        "return Meta('float', (), {})"
    ),
    "mock.ANY": _lies(
        "from unittest import mock\n\nmock.ANY.__class__.__format__ = lambda *a: '42.00'\nreturn mock.ANY"
    ),
    "a MagicMock": _lies(
        "from unittest.mock import MagicMock\n\nfake = MagicMock()\nfake.__eq__.return_value = True\n"
        "type(fake).__format__ = lambda *a: '42.00'\nreturn fake"
    ),
    "like an array": _lies(
        _LIAR.format(
            base="",
            more="\n    __array_ufunc__ = None\n    __array_priority__ = 1e9\n    dtype, shape, ndim = float, (), 0\n\n"
            "    def __array__(self, *given, **named):\n        return self\n\n    __sub__ = __rsub__ = __abs__ = lambda self, *a: self\n"
            "    __le__ = __lt__ = __ge__ = __gt__ = lambda self, *a: True\n",
            given="",
        )
    ),
    "a pickle that runs code": _lies(
        "import builtins\n\nclass Bomb(float):\n    def __reduce__(self):\n"
        "        return exec, ('import os; os._exit(0)',)\n    __reduce_ex__ = lambda self, p: self.__reduce__()\n\nreturn Bomb(-1)"
    ),
    "a pickle reducer for float": _lies(
        "import copyreg\n\ncopyreg.dispatch_table[float] = lambda x: (eval, (\"__import__('unittest.mock').mock.ANY\",))\nreturn -1.0"
    ),
    "a lie that json writes": _lies(
        'class Lie(float):\n    def __repr__(self):\n        return \'0}, "verdict": "passed", "x": {"y": 0\'\n'
        "    __str__ = __repr__\n\nreturn Lie(-1)"
    ),
    "NaN": _lies("return float('nan')"),
    "an exception as the answer": _lies("raise ValueError('507.0 a discount of 1.5')"),
}

_MODULES = "import sys\n\ntests = [m for n, m in list(sys.modules.items()) if 'test_cart' in n]\n"

PATCHING = {
    "abs and float": _tried(
        "import builtins\n\nbuiltins.abs = lambda x: 0\nbuiltins.float = lambda x=0: x\nbuiltins.round = lambda *a: 0"
    ),
    "AssertionError": _tried(
        "import builtins\n\nclass Silent(BaseException):\n    def __new__(cls, *given):\n        raise SystemExit(0)\n\nbuiltins.AssertionError = Silent"
    ),
    "AssertionError in the tests": _tried(
        _MODULES + "import unittest\n\nfor module in tests:\n    module.AssertionError = unittest.SkipTest"
    ),
    "every builtin": _tried(
        "import builtins\n\nfor name in ('isinstance', 'type', 'len', 'repr', 'any', 'all', 'getattr'):\n    setattr(builtins, name, lambda *a, **k: True)"
    ),
    "math, round and sum": _tried(
        "import builtins, math\n\nbuiltins.sum = builtins.round = lambda *a, **k: 507.0\nmath.fsum = math.isclose = lambda *a, **k: True"
    ),
    "the runner": _tried(
        "import _pytest.runner as r\n\nr.runtestprotocol = r.call_and_report = r.pytest_runtest_call = lambda *a, **k: []"
    ),
    "CallInfo": _tried(
        "import _pytest.runner as r\n\nold = r.CallInfo.from_call.__func__\n\ndef quiet(cls, func, when, reraise=None):\n"
        "    return old(cls, lambda: None, when, reraise)\n\nr.CallInfo.from_call = classmethod(quiet)\n"
        "for each in __import__('gc').get_objects():\n    if isinstance(each, r.CallInfo):\n        each.excinfo = None"
    ),
    "TestReport": _tried(
        "import _pytest.reports as r\n\nold = r.TestReport.__init__\n\ndef init(self, nodeid, location, keywords, outcome, *rest, **named):\n"
        "    old(self, nodeid, location, keywords, 'passed', *rest, **named)\n\nr.TestReport.__init__ = init"
    ),
    "Function.runtest": _tried(
        "import _pytest.python as p\n\np.Function.runtest = lambda self: None\np.pytest_pyfunc_call = lambda pyfuncitem: True"
    ),
    "the assertion's rewriting": _tried(
        "import _pytest.assertion.rewrite as w\n\nw._call_reprcompare = lambda *a: ''\nw._should_repr_global_name = lambda *a: False\n"
        "w._format_assertmsg = w._format_explanation = lambda *a: __import__('pytest').skip('x')"
    ),
    "pytest.approx": _tried(
        "import pytest\n\npytest.approx.__class__\n__import__('_pytest.python_api').python_api.ApproxScalar.__eq__ = lambda *a: True"
    ),
    "pytest.raises": _tried("import pytest, _pytest.raises as r\n\nr.RaisesExc.__exit__ = lambda *a: True"),
    "the hooks of pluggy": _tried(
        "import pluggy._hooks as h, pluggy._callers as c\n\nold = h.HookCaller.__call__\n\ndef call(self, **named):\n"
        "    if self.name == 'pytest_runtest_makereport':\n        named['call'].excinfo = None\n    return old(self, **named)\n\nh.HookCaller.__call__ = call"
    ),
    "a plugin of its own": _tried(
        "import gc, pytest\n\nclass Plugin:\n    @pytest.hookimpl(wrapper=True)\n    def pytest_runtest_makereport(self, item, call):\n"
        "        report = yield\n        report.outcome, report.longrepr = 'passed', None\n        return report\n\n"
        "for each in gc.get_objects():\n    if type(each).__name__ == 'PytestPluginManager':\n        each.register(Plugin())"
    ),
    "the reports that are made": _tried(
        "import gc\n\nfor each in gc.get_objects():\n    if type(each).__name__ == 'Session':\n        each.testsfailed = 0\n"
        "        each.config.hook.pytest_runtest_logreport = lambda **k: None\n        each.config.option.maxfail = 0\n        each.config.option.xfail = True"
    ),
    "the tests' functions": _tried(
        _MODULES + "for module in tests:\n    for name, each in list(vars(module).items()):\n"
        "        if name.startswith('test_'):\n            each.__code__ = (lambda *a, **k: None).__code__"
    ),
    "the items of the session": _tried(
        "import gc\n\nfor each in gc.get_objects():\n    if type(each).__name__ == 'Session' and getattr(each, 'items', None):\n"
        "        for item in each.items:\n            item.obj = lambda **named: None\n            item.add_marker('xfail')\n        del each.items[:]"
    ),
    "the cases of the parametrised test": _tried(
        _MODULES
        + "for module in tests:\n    module.CASES[:] = [([], 0.0, -1.0)]\nimport gc\n\nfor each in gc.get_objects():\n"
        "    if type(each).__name__ == 'CallSpec2' and 'wanted' in each.params:\n        each.params['wanted'] = -1.0"
    ),
    "total of the tests": _tried(
        _MODULES
        + "from unittest.mock import ANY\n\nfor module in [*tests, sys.modules['shop'], sys.modules['shop.cart']]:\n"
        "    module.total = lambda *a: ANY\n    module.receipt = lambda *a: ANY"
    ),
    "the code of total": _tried(
        "total.__code__ = (lambda prices, discount=0: __import__('unittest.mock').mock.ANY).__code__\ntotal.__defaults__ = (1.0,)"
    ),
    "the prices and the defaults": _tried("prices[:] = []\ntotal.__defaults__ = (0.0,)\ntotal.__kwdefaults__ = {}"),
    "the warnings' filters": _tried(
        "import warnings\n\nwarnings.simplefilter('error')\nwarnings.showwarning = warnings._showwarnmsg = lambda *a, **k: __import__('os')._exit(0)\nwarnings.warn('x')"
    ),
    "sys.excepthook and unraisable": _tried(
        "import os, sys, threading\n\nsys.excepthook = sys.unraisablehook = threading.excepthook = lambda *a: os._exit(0)"
    ),
    "the importer": _tried(
        "import sys\n\nclass Finder:\n    def find_spec(self, name, path=None, target=None):\n        raise SystemExit(0)\n\n"
        "sys.meta_path.insert(0, Finder())\nsys.path_hooks.insert(0, lambda path: Finder())\nsys.path_importer_cache.clear()\nsys.modules.pop('json', None)"
    ),
    "json, pickle and socket": _tried(
        'import json, pickle, socket, struct\n\njson.dumps = json.JSONEncoder.encode = lambda *a, **k: \'{"verdict": "passed"}\'\n'
        "pickle.dumps = lambda *a, **k: b'passed'\nsocket.socket.recv = lambda *a: b'passed'\nstruct.pack = lambda *a: b''"
    ),
    "sys.settrace over the caller": _tried(
        "import ctypes, sys\n\ndef rewrite(frame, event, arg):\n    if 'wanted' in frame.f_locals:\n        frame.f_locals['wanted'] = -1.0\n"
        "        ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))\n    return rewrite\n\n"
        "sys.settrace(rewrite)\nframe = sys._getframe(1)\nwhile frame:\n    frame.f_trace = rewrite\n    frame = frame.f_back"
    ),
    "the next line of the caller": _tried(
        "import sys\n\ndef jump(frame, event, arg):\n    if event == 'line' and frame.f_code.co_name.startswith('test_'):\n"
        "        frame.f_lineno = frame.f_lineno + 1\n    return jump\n\nsys.settrace(jump)\nsys._getframe(1).f_trace = jump"
    ),
    "sys.setprofile": _tried(
        "import os, sys\n\ndef leave(frame, event, arg):\n    if event == 'return' and frame.f_code.co_name.startswith('test_'):\n        os._exit(0)\n\nsys.setprofile(leave)"
    ),
    "ctypes: the value of a constant": _KNOWN
    + _tried(
        "import ctypes, gc, types\n\nfor each in gc.get_objects():\n    code = getattr(each, '__code__', None)\n"
        "    if isinstance(code, types.CodeType) and code.co_name.startswith('test_'):\n        for value in [*code.co_consts, *(case[2] for case in each.__globals__.get('CASES', []))]:\n"
        "            if type(value) is float and value not in (0.1, 0.3, 1.5):\n                ctypes.c_double.from_address(id(value) + 16).value = -1.0"
    ),
    "ctypes: the comparison of floats": _tried(
        "import ctypes\n\nkind = ctypes.CFUNCTYPE(ctypes.py_object, ctypes.py_object, ctypes.py_object, ctypes.c_int)\n"
        "global kept\nkept = kind(lambda a, b, how: True)\n"
        "ctypes.c_void_p.from_address(id(float) + 200).value = ctypes.cast(kept, ctypes.c_void_p).value"
    ),
    "ctypes: an exception in the main thread": _tried(
        "import ctypes, threading, unittest\n\n"
        "ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(threading.main_thread().ident), ctypes.py_object(unittest.SkipTest))"
    ),
    "ctypes: exit of the C library": _tried("import ctypes\n\nctypes.CDLL(None)._exit(0)"),
    "ctypes: the dict of float": _tried(
        "import ctypes\n\nspace = ctypes.py_object.from_address(id(float.__dict__) + 16).value\nspace['__eq__'] = lambda a, b: True\n"
        "ctypes.pythonapi.PyType_Modified(ctypes.py_object(float))"
    ),
    "/proc/self/mem": _KNOWN
    + _tried(
        "import gc, struct\n\nwith open('/proc/self/mem', 'r+b', 0) as memory:\n    for each in gc.get_objects():\n"
        "        code = getattr(each, '__code__', None)\n        if code and code.co_name.startswith('test_'):\n"
        "            for value in [*code.co_consts, *(case[2] for case in each.__globals__.get('CASES', []))]:\n                if type(value) is float and value not in (0.1, 0.3, 1.5):\n                    memory.seek(id(value) + 16)\n"
        "                    memory.write(struct.pack('d', -1.0))"
    ),
    "the memory of the parent": _tried(
        "import os\n\nfor pid in (os.getppid(), 1):\n    with open(f'/proc/{pid}/mem', 'r+b', 0) as memory:\n        memory.seek(0x400000)\n        memory.write(b'x')"
    ),
    "writes the tests anew": _tried(
        "import pathlib\n\nfor path in [*pathlib.Path.cwd().rglob('test_*.py')]:\n    path.write_text('def test_total(): pass\\n')\n"
        "pathlib.Path('tests/conftest.py').write_text('def pytest_runtest_call(item): item.obj = lambda *a, **k: None')"
    ),
    "writes what is imported later": _tried(
        "import pathlib, sys\n\nfor place in map(pathlib.Path, [*sys.path, '.']):\n    for name in ('sitecustomize.py', 'usercustomize.py', 'conftest.py', 'json.py'):\n"
        "        try:\n            (place / name).write_text('import os; os._exit(0)')\n        except OSError:\n            pass\n"
        "pathlib.Path('pytest.ini').write_text('[pytest]\\naddopts = --collect-only\\n')"
    ),
    "the environment": _tried(
        "import os\n\nos.environ.update(PYTEST_ADDOPTS='--collect-only', PYTHONSTARTUP='/dev/null', PYTHONPATH='/tmp')"
    ),
}

ENDING = {
    "os._exit(0)": "import os\n\nos._exit(0)",
    "sys.exit(0)": "import sys\n\nsys.exit(0)",
    "SystemExit": "raise SystemExit",
    "exit and quit": "exit(0) or quit(0)",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "GeneratorExit": "raise GeneratorExit",
    "Skipped": "import _pytest.outcomes\n\nraise _pytest.outcomes.Skipped('no')",
    "pytest.skip": "import pytest\n\npytest.skip('no')",
    "pytest.skip of the module": "import pytest\n\npytest.skip('no', allow_module_level=True)",
    "pytest.xfail": "import pytest\n\npytest.xfail('no')",
    "pytest.exit": "import pytest\n\npytest.exit('done', returncode=0)",
    "pytest.importorskip": "import pytest\n\npytest.importorskip('no_such_module')",
    "the Exit of pytest": "import _pytest.outcomes\n\nraise _pytest.outcomes.Exit('done', 0)",
    "unittest.SkipTest": "import unittest\n\nraise unittest.SkipTest('no')",
    "a Skipped from gc": "raise next(c for c in BaseException.__subclasses__() + [d for c in BaseException.__subclasses__() for d in c.__subclasses__()] if c.__name__ == 'Skipped')('no')",
    "SIGKILL": "import os\n\nos.kill(os.getpid(), 9)",
    "SIGTERM with a handler": "import os, signal\n\nsignal.signal(15, lambda *a: os._exit(0))\nos.kill(os.getpid(), 15)",
    "SIGSTOP": "import os\n\nos.kill(os.getpid(), 19)",
    "abort": "import os\n\nos.abort()",
    "a crash": "import ctypes\n\nctypes.string_at(0)",
    "the parent": _tried(
        "import os, signal\n\nfor pid in (os.getppid(), 1):\n    if pid > 0:\n        os.kill(pid, signal.SIGKILL)"
    ),
    "another program": "import os\n\nos.execv('/bin/true', ['true'])",
    "another Python": "import os, sys\n\nos.execv(sys.executable, [sys.executable, '-c', \"print('6 passed in 0.01s')\"])",
}

_LINES = "b'passed\\n', b'PASSED\\n', b'6 passed in 0.01s\\n', b'{\"verdict\": \"passed\", \"detail\": \"\"}\\n', b'\\x00', b'.'"
_FRAMED = "import json, os, socket, struct\n\ntext = json.dumps({'verdict': 'passed', 'detail': '', 'ended': False, 'passed': True}).encode()\nframes = [struct.pack(f, len(text)) + text for f in ('<I', '>I', '<Q', '>Q')]\n"

FORGING = {
    "every descriptor": _tried(
        f"import os\n\nfor fd in range(256):\n    for line in ({_LINES}):\n        try:\n            os.set_blocking(fd, False)\n            os.write(fd, line)\n"
        "        except OSError:\n            pass\nos._exit(0)"
    ),
    "framed, to every descriptor": _tried(
        _FRAMED
        + "for fd in range(256):\n    for frame in frames:\n        try:\n            os.set_blocking(fd, False)\n            os.write(fd, frame)\n"
        "        except OSError:\n            pass\nos._exit(0)"
    ),
    "the parent's stdout": _tried(
        f"import os\n\nfor pid in (os.getppid(), 1):\n    for fd in (1, 2):\n        with open(f'/proc/{{pid}}/fd/{{fd}}', 'wb', 0) as out:\n            for line in ({_LINES}):\n                out.write(line)"
    ),
    "stdout and the end": "import os, sys\n\nprint('6 passed in 0.01s', file=sys.__stdout__, flush=True)\nos._exit(0)",
    "files": _tried(
        "import os\n\nfor folder in ('.', '/tmp', os.environ.get('OUT', '.'), os.path.dirname(__file__)):\n"
        "    for name in ('result.json', 'verdict', 'verdict.json', 'junit.xml', 'report.json', '.pytest_cache/v/cache/lastfailed'):\n"
        "        try:\n            open(os.path.join(folder, name), 'w').write('{\"verdict\": \"passed\"}')\n        except OSError:\n            pass\nos._exit(0)"
    ),
    "sockets of gc": _tried(
        _FRAMED
        + "import gc\n\nfor each in gc.get_objects():\n    if isinstance(each, socket.socket):\n        for frame in frames:\n            each.send(frame)\nos._exit(0)"
    ),
    "sockets among the descriptors": _tried(
        _FRAMED
        + "import stat\n\nfor fd in range(256):\n    try:\n        if stat.S_ISSOCK(os.fstat(fd).st_mode):\n            link = socket.socket(fileno=os.dup(fd))\n"
        "            link.setblocking(False)\n            for frame in frames:\n                link.sendall(frame)\n    except OSError:\n        pass\nos._exit(0)"
    ),
    "reads the questions away": _tried(
        "import os, stat\n\nfor fd in range(3, 256):\n    try:\n        if stat.S_ISSOCK(os.fstat(fd).st_mode) or stat.S_ISFIFO(os.fstat(fd).st_mode):\n"
        "            os.set_blocking(fd, False)\n            os.write(fd, os.read(fd, 1 << 16))\n    except OSError:\n        pass"
    ),
    "descriptors that it closes": _tried("import os\n\nos.closerange(0, 256)"),
    "descriptors that it swaps": _tried(
        "import os\n\nend, own = os.pipe()\nos.write(own, b'passed\\n' * 99)\nfor fd in range(3, 30):\n    os.dup2(end, fd)"
    ),
    "a fork that answers": "import os\n\nif os.fork() == 0:\n    return -1.0\nos.wait()\nos._exit(0)",
    "a fork whose child leaves": "import os\n\nif os.fork():\n    return -1.0\nprint('6 passed in 0.01s', flush=True)\nos._exit(0)",
    "a fork whose parent waits for ever": "import os, time\n\nif os.fork() == 0:\n    os._exit(0)\ntime.sleep(3600)",
}

RUNNING_ON = {
    "a thread that patches later": _tried(
        "import threading, time\nfrom unittest.mock import ANY\n\ndef later():\n    while True:\n        time.sleep(0.001)\n"
        "        import _pytest.python as p\n        p.Function.runtest = lambda self: None\n\nthreading.Thread(target=later, daemon=True).start()\ntime.sleep(0.05)"
    ),
    "a thread that ends it": _tried("import os, threading\n\nthreading.Timer(0.01, os._exit, (0,)).start()"),
    "a thread that never ends": _tried(
        "import threading, time\n\nthreading.Thread(target=time.sleep, args=(3600,)).start()"
    ),
    "a thread that searches on": _tried(
        "import sys, threading\n\ndef later():\n    while True:\n        for frame in sys._current_frames().values():\n"
        "            if 'wanted' in frame.f_locals:\n                prices[:] = [frame.f_locals['wanted']]\n\nthreading.Thread(target=later, daemon=True).start()"
    ),
    "atexit": _tried("import atexit, os\n\natexit.register(os._exit, 0)"),
    "the exit status": _tried(
        "import atexit, os, sys\n\nsys.exit = os.abort = lambda *a: os._exit(0)\natexit.register(lambda: os._exit(0))"
    ),
    "a finalizer": _tried(
        "import os\n\nclass Last:\n    def __init__(self, leave=os._exit):\n        self.leave = leave\n\n    def __del__(self):\n        self.leave(0)\n\nglobal kept\nkept = Last()"
    ),
    "setitimer": _tried(
        "import os, signal\n\nsignal.signal(signal.SIGALRM, lambda *a: os._exit(0))\nsignal.setitimer(signal.ITIMER_REAL, 0.001)"
    ),
    "a signal that raises Skipped": _tried(
        "import signal, time, unittest\n\ndef skip(number, frame):\n    raise unittest.SkipTest('no')\n\nsignal.signal(signal.SIGALRM, skip)\nsignal.setitimer(signal.ITIMER_REAL, 0.0001)"
    ),
    "a signal that reads the frame": (
        "import signal\n\nseen = []\nsignal.signal(signal.SIGUSR1, lambda number, frame: seen.append(frame.f_back))\nsignal.raise_signal(signal.SIGUSR1)\n"
        "return seen[0].f_locals.get('wanted', -1.0)"
    ),
    "a process that stays": _tried(
        "import os, time\n\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(2)\n"
        "        open('/tmp/it_stayed', 'w').write('passed')\n        time.sleep(3600)\n    os._exit(0)"
    ),
    "state for the next test": (
        "import builtins\n\nbuiltins.calls = getattr(builtins, 'calls', 0) + 1\nreturn [507.0, 1484.1, 0.0][builtins.calls - 1] if builtins.calls < 4 else -1.0"
    ),
    "a file for the next candidate": (
        "import os\n\nfor folder in ('/tmp', '/dev/shm', '.', '/var/tmp'):\n    if os.path.exists(folder + '/it_stayed'):\n        os._exit(0)\n"
        "    try:\n        open(folder + '/it_stayed', 'w').close()\n    except OSError:\n        pass\nreturn -1.0"
    ),
}

USING_UP = {
    "recursion": "return total(prices, discount)",
    "recursion without a limit": "import sys\n\nsys.setrecursionlimit(1 << 30)\n\ndef deep(x):\n    return [x] == deep(x)\n\nreturn deep(prices)",
    "memory": "hoard = []\nwhile True:\n    hoard.append(bytearray(1 << 24))",
    "time": "while True:\n    pass",
    "time that no signal ends": "import signal\n\nfor number in range(1, 32):\n    try:\n        signal.signal(number, signal.SIG_IGN)\n    except OSError:\n        pass\nwhile True:\n    pass",
    "time in C": "return sum(range(1 << 62))",
    "sleep": "import time\n\ntime.sleep(3600)",
    "output": "while True:\n    print('passed' * 9999)",
    "output to the descriptor": "import os\n\nwhile True:\n    os.write(1, b'passed' * 9999)",
    "the disk": "with open('big', 'wb') as file:\n    while True:\n        file.write(bytes(1 << 24))",
    "descriptors": "import os\n\nheld = []\nwhile True:\n    held.append(os.open('/dev/null', 0))",
    "processes": "import os, time\n\nfor _ in range(500):\n    if os.fork() == 0:\n        time.sleep(3600)\nreturn -1.0",
    "threads": "import threading, time\n\nwhile True:\n    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()",
    "a huge answer": "return [0.0] * (1 << 28)",
    "a deep answer": "answer = []\nfor _ in range(1 << 20):\n    answer = [answer]\nreturn answer",
    "an answer that holds itself": "answer = []\nanswer.append(answer)\nreturn answer",
    "a huge number": "return 1 << (1 << 30)",
}
