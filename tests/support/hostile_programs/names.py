"""A solution that defines nothing, and names that the suite itself offers."""

from __future__ import annotations

from tests.support.hostile_programs.problems import ALL, OFFERED, SEARCHED, Program

_NOTHING = {
    "nothing": "pass",
    "an empty class": "class Solution: pass",
    "another function": "def other(*xs): return 0",
    "a use": "def other(*xs): return ENTRY(*xs)",
    "another name for it": "try: other = ENTRY\nexcept NameError: pass",
    "a name in a class": "class Solution:\n    try: other = ENTRY\n    except NameError: pass",
    "a name that is not bound": "try: pass\nexcept Exception as ENTRY: pass\nfor ENTRY in (): pass",
    "a name that would be bound": "def other():\n    global ENTRY\n    ENTRY = 1\nif 0:\n    def ENTRY(*xs): pass",
    "a name that is gone": "ENTRY = 1\ndel ENTRY",
    "every name of the module": "def __getattr__(name): return lambda *xs: 0",
    "every name of an object": "class Solution:\n    __getattr__ = lambda s, name: lambda *xs: 0",
    "every name of a class": (
        "class M(type):\n    __getattr__ = lambda s, name: lambda *xs: 0\nclass Solution(metaclass=M): pass"
    ),
}
_PROMPTED = [task_id for task_id in OFFERED if task_id.startswith(("prompt:", "plus:"))]
_IMPORTED = [task_id for task_id in OFFERED if task_id not in _PROMPTED]
NAMES = {
    f"{name}, {where}": Program(before + code, "error", " ".join(ids[number :: len(_NOTHING)]))
    for where, before, ids in (
        ("beside imports", "", _IMPORTED),
        ("after a prompt", "from math import *\n\n\n", _PROMPTED),
    )
    for number, (name, code) in enumerate(_NOTHING.items())
    if ids[number :: len(_NOTHING)]
} | {
    # what is called is the program's, whatever the suite imports under the same name
    "wrong where the suite is right": Program(
        "def ENTRY(*xs): return 'wrong'",
        "failed",
        " ".join(task_id for task_id in OFFERED if not task_id.startswith(("live:", "defines:"))),
    ),
    "names of the tests' own": Program(
        "set = sorted = str = all = map = abs = max = len = isinstance = lambda *xs: True\n"
        "class math: isclose = staticmethod(lambda *xs: True)\ndef f(x): return 0",
        on=f"{ALL} around",
    ),
    "a check of its own": Program("def check(x): pass\ncandidate = METADATA = check\ndef f(x): return 0", on="checked"),
    "helpers of its own": Program("def same(a, b): return True\ndef f(x): return 0", on="helped set_up"),
    "the tests as a module": Program("import tests\ndef f(x): return 0", "error", SEARCHED),
    "exceptions of the harness": Program(
        "import sys\nfrom loop.grading.inside import judge, remote\nraise judge.SuiteAtFault('x')", "error", "function"
    ),
    "exceptions of the harness, when asked": Program(
        "from loop.grading.inside import remote\ndef f(x): raise remote.NotReady('x')", "error", "function"
    ),
}
