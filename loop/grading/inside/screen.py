"""What a candidate may not do that shares a process with its tests: reach for them, or leave something in their way.

Two lines of defence. `Screen` reads the candidate's syntax, before it runs: names that lead to frames, to other modules' insides
or to Python's own machinery are refused unless the function's module uses them itself, and so are classes that answer
comparisons as they like. `watch` is an audit hook, which cannot be taken off again: it ends the process where such a thing happens
all the same while the candidate's code is running. Neither makes a wall of one process: docs/repositories.md says what is left.
"""

from __future__ import annotations

import _thread
import ast
import os
import sys
from collections.abc import Callable
from types import FrameType

from loop.grading.inside.placing import CANDIDATE

# Names that lead from a value to the interpreter: refused wherever they stand.
_REACHING = {
    "__builtins__", "__class__", "__closure__", "__code__", "__dict__", "__getattribute__", "__globals__",
    "__import__", "__kwdefaults__", "__defaults__", "__loader__", "__module__", "__mro__", "__reduce__",
    "__reduce_ex__", "__spec__", "__subclasses__", "__subclasshook__", "__bases__", "__base__", "__traceback__",
    "__wrapped__", "__self__", "__func__", "__init_subclass__", "__set_name__", "__instancecheck__",
    "__subclasscheck__", "__class_getitem__", "__prepare__", "__new__", "__del__", "ag_frame", "cr_frame",
    "gi_frame", "tb_frame", "tb_next", "f_back", "f_builtins", "f_code", "f_globals", "f_locals", "_getframe",
    "_current_frames", "currentframe", "get_objects", "get_referents", "get_referrers", "settrace", "setprofile",
    "addaudithook", "excepthook", "unraisablehook", "meta_path", "path_hooks", "path_importer_cache", "_exit",
    "fork", "forkpty", "killpg", "execv", "execve", "execvp", "spawnv", "posix_spawn", "setitimer", "attrgetter",
    "methodcaller", "new_class", "breakpoint", "compile", "eval", "exec", "globals", "locals", "vars",
}  # fmt: skip
# Modules that do so: refused where they are imported, and as names that the function's module does not have.
_MODULES = {
    "builtins", "ctypes", "faulthandler", "gc", "importlib", "inspect", "linecache", "marshal", "mock", "pdb",
    "pickle", "pluggy", "_pytest", "pytest", "runpy", "types", "unittest", "doctest", "_thread", "signal", "atexit",
    "trace", "site", "sitecustomize", "usercustomize", "pkgutil", "zipimport", "codeop", "code", "dis", "symtable",
    "tracemalloc", "multiprocessing", "subprocess",
}  # fmt: skip
# Methods that answer comparisons as they like.
_LYING = {
    f"__{name}__"
    for name in "eq ne lt le gt ge hash bool contains len iter float int index str repr format abs round".split()  # noqa: SIM905
}
_AFAR = (
    "sys._getframe",
    "object.__getattr__",
    "gc.",
    "ctypes.",
    "sys.set",
    "sys.monitoring",
    "os.fork",
    "os.exec",
    "os.posix_spawn",
    "os.kill",
    "subprocess.",
)
_READS_SOURCE = (".py", ".pyc", ".pyo", ".pyi")
ENDED_BY_SCREEN = 97
"""The exit status of a process that `watch` has ended."""


class Screen:
    """What candidates for a function of this module may use: `text` is the module's, with a stub, `tests` the tests' modules."""

    def __init__(self, text: str, tests: set[str]) -> None:
        own = ast.parse(text)
        self._known, self._tests = _words(own) | _imported(own), tests
        self._bound = _bound_by_imports(own)

    def refusal(self, candidate: ast.Module) -> str:
        """Why a candidate may not share a process with its tests, or ""."""
        reached = sorted(
            (_words(candidate) - self._known) & (_REACHING | _LYING)
            or (_imported(candidate) - self._known) & (_MODULES | self._tests)
        )
        if reached:
            return f"it reaches for {reached[0]}, which the module itself does not use"
        imported = self._bound | _bound_by_imports(candidate)
        for node in ast.walk(candidate):
            if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load) and _root(node) in imported:
                return f"it changes {_root(node)}, which others use"
            if isinstance(node, ast.Call) and not _is_harmless(node, imported):
                return f"it uses {_root(node)} in a way that hides what it does"
            if isinstance(node, (ast.Global, ast.Nonlocal)) and not set(node.names) <= self._known:
                return f"it makes {node.names[0]} a name of the whole module"
        return ""


def _bound_by_imports(tree: ast.AST) -> set[str]:
    return {
        (name.asname or name.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in node.names
    }


def _words(tree: ast.AST) -> set[str]:
    """The names and attributes of a program, and those that lead to the interpreter and stand in its texts."""
    words: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            words.add(node.id)
        elif isinstance(node, ast.Attribute):
            words.add(node.attr)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            words.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            words.update(name.name for name in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words.update(word for word in _REACHING | _LYING if "_" in word and word in node.value)
        elif isinstance(node, ast.keyword) and node.arg:
            words.add(node.arg)
    return words


def _imported(tree: ast.AST) -> set[str]:
    """Every part of the names of modules that a program imports, or takes from `sys.modules`."""
    parts: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [name.name for name in node.names] + [getattr(node, "module", None) or ""]
            parts.update(part for name in names for part in name.split("."))
        elif isinstance(node, ast.Attribute) and node.attr == "modules":
            parts.add("importlib")
    return parts


def _root(node: ast.expr) -> str:
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _is_harmless(call: ast.Call, imported: set[str]) -> bool:
    """Whether a call of one of the functions that change or make anything says plainly what, and that is nobody else's."""
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    if name == "type":
        return len(call.args) == 1 and not call.keywords
    if name in ("setattr", "delattr", "getattr"):
        named = len(call.args) > 1 and isinstance(call.args[1], ast.Constant) and not call.keywords
        return named and (name == "getattr" or _root(call.args[0]) not in imported)
    return True


def watch(hidden: Callable[[str], bool]) -> None:
    """From now on, end this process where a candidate reaches for its tests; `hidden` tells files that it may not open."""
    thread, frame_of, leave, library = _thread.get_ident, sys._getframe, os._exit, os.path.dirname(os.__file__)
    quiet = tuple(
        os.path.join(library, name)
        for name in ("logging", "warnings.py", "collections", "typing.py", "enum.py", "dataclasses.py")
    )

    def asked_by_candidate(through_others: bool) -> bool:
        """Whether the nearest code that is not Python's own library is a candidate's, or any code `through_others`."""
        frame: FrameType | None = frame_of(4)
        while frame is not None:
            name = frame.f_code.co_filename
            if name == CANDIDATE:
                return True
            others = "site-packages" in name or not name.startswith((library, "<frozen"))
            if (others and not through_others) or name.startswith(quiet) or name.startswith("<frozen importlib"):
                return False
            frame = frame.f_back
        return False

    looking: set[int] = set()  # threads: walking up the frames is such an event itself

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        me = thread()
        if me in looking:
            return
        looking.add(me)
        try:
            look(event, arguments)
        finally:
            looking.discard(me)

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path = arguments[0]
            bad = isinstance(path, (str, bytes)) and hidden(os.fsdecode(path)) and asked_by_candidate(True)
        else:
            bad = event.startswith(_AFAR) and asked_by_candidate(False)
        if bad:
            leave(ENDED_BY_SCREEN)

    sys.addaudithook(hook)


def is_source(path: str) -> bool:
    return path.endswith(_READS_SOURCE)
