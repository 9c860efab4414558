"""What the harness itself uses, replaced in the solution's process; and messages in the harness's name."""

from __future__ import annotations

from tests.support.hostile_programs.problems import ALL, TEXTS, Program, programs

_FORGE = "return {'value': SECRET_IS_NOT_HERE, 'containers': [], 'given': [], 'verdict': 'passed', 'detail': '', 'ended': False}"


def _patched(lines: str) -> str:
    return f"import builtins, json, os, socket, struct, sys\n{lines}\ndef f(x): return 0"


_LOOP = "cell, values, judge = (sys.modules[f'loop.grading.inside.{n}'] for n in ('cell', 'values', 'judge'))\n"
PATCHES = programs(
    "error failed timeout",
    {
        "json": 'json.dumps = json.JSONEncoder.encode = lambda *a, **k: \'{"verdict": "passed"}\'\njson.loads = lambda *a: {}',
        "struct": "struct.pack = struct.unpack = lambda *a: b''\nstruct.Struct = None",
        "os.write": "os.write = lambda fd, part: len(part)",
        "os.read": "os.read = lambda fd, n: b''",
        "os._exit": "os._exit = sys.exit = lambda *a: None\nraise SystemExit",
        "socket": "socket.socket = socket.socketpair = None",
        "pickle": "import pickle, copyreg\nclass E:\n    def __reduce__(s): return (os._exit, (0,))\npickle.loads = lambda *a: E()",
        "isinstance": "builtins.isinstance = lambda *a: True",
        "type": "builtins.type = lambda *a: str",
        "len": "builtins.len = lambda *a: 1",
        "every builtin": Program(
            _patched(
                "for name in dir(builtins):\n    if not name.startswith('__'): setattr(builtins, name, lambda *a, **k: True)"
            ),
            "error failed timeout",
            TEXTS,
        ),
        "no builtins": Program(_patched("builtins.__dict__.clear()"), "error failed timeout", TEXTS),
        "exec and compile": "builtins.exec = builtins.compile = lambda *a, **k: None",
        "the importer": "builtins.__import__ = lambda *a, **k: sys\nsys.modules.clear()",
        "the encoder": f"{_LOOP}values.Encoder.item = lambda s, v: ['T', 'object']\nvalues.Encoder._item = values.Encoder.item",
        "the answers": f"{_LOOP}def answer(s, q):\n    {_FORGE.replace('SECRET_IS_NOT_HERE', 'True')}\ncell.Link.answers = lambda s, q: [answer(s, q)]",
        "answers that are the question": f"{_LOOP}cell.Link.answers = lambda s, q: [q] * 9",
        "answers that are text": f"{_LOOP}cell.Link.answers = lambda s, q: ['passed'] * 9",
        "no answers": f"{_LOOP}cell.Link.answers = lambda s, q: s.answers(q)",
        "the sender": f'{_LOOP}cell.send = values.send = lambda write, m: write(b\'{{"verdict": "passed"}}\')',
        "the judge": f"{_LOOP}judge.judge = lambda *a: {{'verdict': 'passed', 'detail': '', 'ended': False}}\njudge.same_output = lambda *a: True",
        "runs the judge itself": f"{_LOOP}values.send(lambda p: os.write(3, p), {{'ready': True}})\njudge.main(3)",
        "runs the server itself": f"{_LOOP}cell.serve(socket.socket(fileno=3), 0)",
        "the comparison of programs": Program(
            "import sys\nsys.modules['loop.grading.inside.judge'].same_output = lambda *a: True\nprint(0)",
            "failed",
            "stdin hidden",
        ),
        "the runner of programs": Program(
            "import sys\nsys.modules['loop.grading.inside.link'].run_program = lambda *a: {'output': 'x'}\nprint(0)",
            "failed",
            "stdin",
        ),
    },
    ALL,
    _patched,
)

SAY = (
    "import json, os, socket, struct, sys, time\n"
    "def say(message, fd=3):\n    text = message if type(message) is bytes else json.dumps(message).encode()\n"
    "    raw(struct.pack('<I', len(text)) + text, fd)\n"
    "def raw(text, fd=3):\n    while text: text = text[os.write(fd, text):]\n"
)
_OK = "'containers': [], 'given': []"
MESSAGES = {
    "null": "say(None)",
    "true": "say(True)",
    "a number": "say(7)",
    "a text": "say('passed')",
    "a list": "say([])",
    "an empty dict": "say({})",
    "a verdict": "say({'verdict': 'passed', 'detail': '', 'ended': False})",
    "ready": "say({'ready': True})",
    "broken": "say({'broken': 'the sandbox is broken'})",
    "a harness error": "say({'verdict': 'harness_error', 'detail': '', 'ended': True})",
    "no containers": "say({'value': 1, 'given': []})",
    "no given": "say({'value': 1, 'containers': []})",
    "neither value nor error": "say({" + _OK + "})",
    "both": "say({'value': 1, 'raised': {}, " + _OK + "})",
    "a value of no kind": "say({'value': ['x', 1], " + _OK + "})",
    "a container that is none": "say({'value': [5], " + _OK + "})",
    "a container below zero": "say({'value': [-1], 'containers': [['l', []]], 'given': []})",
    "a tuple in itself": "say({'value': [0], 'containers': [['t', [[0]]]], 'given': []})",
    "tuples in each other": "say({'value': [0], 'containers': [['t', [[1]]], ['t', [[0]]]], 'given': []})",
    "a frozenset in itself": "say({'value': [0], 'containers': [['z', [[0]]]], 'given': []})",
    "a set of lists": "say({'value': [1], 'containers': [['l', []], ['s', [[0]]]], 'given': []})",
    "half a dict": "say({'value': [0], 'containers': [['d', [1]]], 'given': []})",
    "a kind of container that is none": "say({'value': [0], 'containers': [['q', []]], 'given': []})",
    "containers of text": "say({'value': [0], 'containers': 'abc', 'given': []})",
    "containers that are a number": "say({'value': [0], 'containers': 5, 'given': []})",
    "containers without end": "say({'value': [0], 'containers': [['l', [[0]] * 99]] * 10**4, 'given': []})",
    "hex that is none": "say({'value': [0], 'containers': [['B', 'xyz']], 'given': []})",
    "a number that is none": "say({'value': ['i', 'zz'], " + _OK + "})",
    "a very long number": "say({'value': ['i', '0x' + 'f' * 10**7], " + _OK + "})",
    "a decimal without end": "say(b'{\"value\": ' + b'9' * 10**6 + b', \"containers\": [], \"given\": []}')",
    "a type that is none": "say({'value': ['T', 'exec'], " + _OK + "})",
    "the importer as a type": "say({'value': ['T', '__loader__'], " + _OK + "})",
    "a type by a list": "say({'value': ['T', []], " + _OK + "})",
    "a range of texts": "say({'value': ['r', 'a', 'b', 'c'], " + _OK + "})",
    "surrogates": "say({'value': ['u', 'eda080'], " + _OK + "})",
    "an object below zero": "say({'value': ['o', -1, 'x'], " + _OK + "})",
    "an object far away": "say({'value': ['o', 10**30, 'x'], " + _OK + "})",
    "an object without a number": "say({'value': ['o', 'x', 'x'], " + _OK + "})",
    "an infinite object": 'say(b\'{"value": ["o", Infinity, "x"], "containers": [], "given": []}\')',
    "an object with a very long kind": "say({'value': ['o', 0, '\u00e9' * 9 * 10**6], " + _OK + "})",
    "an object of a deep kind": "say(b'{\"value\": [\"o\", 0, ' + b'[' * 900 + b']' * 900 + b'], \"containers\": [], \"given\": []}')",
    "objects as keys": "say({'value': [0], 'containers': [['d', [['o', 0, 'x'], 1]]], 'given': []})",
    "given that is a number": "say({'value': 1, 'containers': [], 'given': 5})",
    "given without numbers": "say({'value': 1, 'containers': [], 'given': [['a', 'b'], [None, None]]})",
    "given too short": "say({'value': 1, 'containers': [], 'given': [[0]]})",
    "given that is not there": "say({'value': [0], 'containers': [['l', []]], 'given': [[0, 0], [99, 0]]})",
    "given below zero": "say({'value': [0], 'containers': [['l', []]], 'given': [[-1, -1], [0, -1]]})",
    "an error that is none": "say({'raised': 5, " + _OK + "})",
    "an error of the kind exec": (
        "say({'raised': {'builtin': 'exec', 'kind': 'E', 'text': '', 'line': 1, 'args': ['1']}, " + _OK + "})"
    ),
    "an error StopIteration": (
        "say({'raised': {'builtin': 'StopIteration', 'kind': 'E', 'text': '', 'line': 1, 'args': []}, " + _OK + "})"
    ),
    "an error with a very long text": (
        "say({'raised': {'builtin': 'ValueError', 'kind': 'E' * 10**7, 'text': '\u00e9' * 10**7, 'line': 10**4000, 'args': 5}, "
        + _OK
        + "})"
    ),
    "an error with a deep argument": (
        'say(b\'{"raised": {"builtin": "KeyError", "kind": [], "text": {}, "line": "x", "args": [\' + b\'[\' * 900 '
        "+ b']' * 900 + b']}, \"containers\": [], \"given\": []}')"
    ),
    "deep JSON": "say(b'[' * 10**6 + b']' * 10**6)",
    "deep containers": (
        "say({'value': [0], 'containers': [['t', [[n + 1]]] for n in range(10**4)] + [['t', []]], 'given': []})"
    ),
    "a tangle of tuples": (
        "say({'value': [0], 'containers': [['t', [[n + 1], [n + 1]]] for n in range(60)] + [['t', [1]]], 'given': []})"
    ),
    "numbers that collide": (
        "say({'value': [0], 'containers': [['s', [n * ((1 << 61) - 1) for n in range(1, 8)] + "
        "[['i', hex(n * ((1 << 61) - 1))] for n in range(10**5)]]], 'given': []})"
    ),
    "many empty dicts": "say(b'[' + b'{},' * (16 << 20) + b'0]')",
    "not JSON": "say(b'{passed}')",
    "not UTF-8": "say(b'\\xff\\xfe\\xff')",
    "UTF-16": "say('{}'.encode('utf-16'))",
    "nothing at all": "say(b'')",
    "a length of four gigabytes": "raw(b'\\xff\\xff\\xff\\xff')",
    "a length and no message": "raw(struct.pack('<I', 1000) + b'x')\nos.close(3)",
    "half a length": "raw(b'\\x01\\x00')\nos._exit(0)",
    "noise": "raw(bytes(range(256)) * 1000)",
    "the same answer twice": "say({'value': None, " + _OK + "})\nsay({'value': None, " + _OK + "})",
    "a hundred answers in advance": "for n in range(100): say({'value': True, " + _OK + "})",
    "handles in advance": (
        "for n in range(20): say({'value': [0], 'containers': [['t', ['value', ['o', n, 'f']]]], 'given': []})"
    ),
    "a module in advance": (
        "say({'value': None, " + _OK + "})\n"
        "for n in range(9): say({'value': [0], 'containers': [['t', ['module', 'os']]], 'given': []})"
    ),
    "descriptors": (
        "socket.send_fds(socket.socket(fileno=os.dup(3)), [b'\\x04\\x00\\x00\\x00null'], [os.open('/dev/zero', 0)] * 50)"
    ),
    "bytes out of band": "socket.socket(fileno=os.dup(3)).send(b'x', socket.MSG_OOB)",
    "a closed socket": "socket.socket(fileno=os.dup(3)).shutdown(2)",
    "another socket in its place": "one, other = socket.socketpair()\nos.dup2(one.fileno(), 3)\nsay({})",
    "a file in its place": "os.dup2(os.open('/dev/zero', 2), 3)",
    "a flood": "while True: raw(b'\\0' * 65536)",
    "answers of another thread": (
        "import threading\ndef more():\n    for n in range(2000): say({'value': True, " + _OK + "})\n"
        "threading.Thread(target=more, daemon=True).start()"
    ),
    "answers of another process": (
        "if os.fork() == 0:\n    for n in range(50): say({'value': 1, " + _OK + "})\n    os._exit(0)"
    ),
    "answers on every descriptor": (
        "for fd in range(256):\n    try: say({'verdict': 'passed', 'detail': '', 'ended': False}, fd)\n    except OSError: pass"
    ),
}
_SAID = "text swallowing checked"
_ONCE = "a flood; many empty dicts; numbers that collide; a tangle of tuples; noise; another socket in its place"
LINK = {
    f"{name}, {when}": Program(code, "error failed timeout", _SAID)
    for name, lines in MESSAGES.items()
    for when, code in {
        "at once": f"{SAY}{lines}\ndef f(x): return 0\n",
        "when asked": SAY + "def f(x):\n" + "".join(f"    {line}\n" for line in lines.split("\n")) + "    return 0\n",
    }.items()
    # twice would only cost time
    if when == "when asked" or name not in _ONCE.split("; ")
}
