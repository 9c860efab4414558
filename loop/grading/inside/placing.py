"""Puts a candidate's code into a function of an imported package, so that everything that holds the function has the new one.

The package was imported with a stub in place of the function's body, so no process that runs a candidate has ever held the
original. The candidate's text is parsed here, inside the sandbox, since text that is nested deep enough ends an interpreter.
"""

from __future__ import annotations

import ast
import gc
from types import CodeType, FunctionType

CANDIDATE = "<solution>"
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Misplaced(Exception):
    """The program holds nothing that could stand in the function's place; the text says why."""


def code_within(module: CodeType, qualname: str) -> CodeType:
    """The code of a function or method in that of its module: the last of this name, as a later definition counts."""
    code = module
    for name in qualname.split("."):
        inner = [part for part in code.co_consts if isinstance(part, CodeType) and part.co_name == name]
        if not inner:
            raise LookupError(qualname)
        code = inner[-1]
    return code


def functions_of(text: str, path: str, qualname: str) -> list[FunctionType]:
    """The functions made from this one in the module with this text and path: several, if it was imported several times."""
    wanted = code_within(compile(text, path, "exec", dont_inherit=True), qualname)
    place = path, wanted.co_name, wanted.co_firstlineno
    return [
        thing
        for thing in gc.get_objects()
        if type(thing) is FunctionType
        and (thing.__code__.co_filename, thing.__code__.co_name, thing.__code__.co_firstlineno) == place
    ]


class Place:
    """A function's place in its module, for any number of candidates. Raises SyntaxError and the like.

    To compile a candidate takes its function alone, in its classes: the rest of a long module would take most of the time.
    """

    def __init__(self, text: str, qualname: str) -> None:
        module = ast.parse(text)
        self._qualname = qualname
        *self._classes, self._name = qualname.split(".")
        self._bound = {bound for statement in module.body for bound in _bound(statement)}
        self._target = _defined(module, self._classes, self._name)
        nest: list[ast.stmt] = [] if self._target is None else [self._target]
        for number in range(len(self._classes), 0, -1):
            around = _class(module, self._classes[:number])
            if around is not None:
                around.body, around.decorator_list, around.bases, around.keywords = nest, [], [], []
                nest = [around]
        flags = [each for each in module.body if isinstance(each, ast.ImportFrom) and each.module == "__future__"]
        self._module = ast.Module([*flags, *nest], [])

    def code_of(self, candidate: ast.Module) -> CodeType:
        """The candidate's code, compiled in the place of the function in its module. Raises Misplaced, SyntaxError and the like.

        The signature and decorators stay those of the module. What the program imports or defines beside the function, and the
        module lacks, becomes part of the body.
        """
        name, classes, target = self._name, self._classes, self._target
        source = _defined(candidate, classes, name) or _anywhere(candidate, name)
        if target is None or source is None:
            raise Misplaced(f"the program defines no {name}")
        if _names(source.args) != _names(target.args):
            raise Misplaced(f"its parameters are {_shown(source.args)} and not {_shown(target.args)}")
        beside = [
            statement
            for statement in candidate.body
            if isinstance(statement, (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.ClassDef, *_FUNCTIONS))
            and not (isinstance(statement, ast.ImportFrom) and statement.module == "__future__")
            and (bound := _bound(statement))
            and not bound & (self._bound | {name} | set(classes))
        ]
        # a method always refers to its class, as the stub does, so that both have the same cells
        cell = [ast.If(ast.Constant(False), [ast.Expr(ast.Name("__class__", ast.Load()))], [])] if classes else []
        target.body = [*cell, *beside, *source.body]
        ast.fix_missing_locations(self._module)
        return code_within(compile(self._module, CANDIDATE, "exec", dont_inherit=True), self._qualname)


def parsed(program: str) -> ast.Module:
    """A candidate's syntax. Raises SyntaxError and the like."""
    return ast.parse(program.encode("utf-8", "replace").decode())


def put(functions: list[FunctionType], code: CodeType) -> None:
    """Give the functions this code. Raises Misplaced if it needs other cells than they have."""
    for function in functions:
        try:
            function.__code__ = code
        except ValueError as error:
            raise Misplaced(str(error)) from None


def _defined(module: ast.Module, classes: list[str], name: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    around = _class(module, classes) if classes else module
    inside = [] if around is None else _flat(around.body)
    last = [part for part in inside if isinstance(part, _FUNCTIONS) and part.name == name]
    return last[-1] if last else None


def _class(module: ast.Module, classes: list[str]) -> ast.ClassDef | None:
    """The class at the end of these names, each in the one before: the last of its name."""
    body, last = module.body, None
    for each in classes:
        inner = [part for part in _flat(body) if isinstance(part, ast.ClassDef) and part.name == each]
        if not inner:
            return None
        last = inner[-1]
        body = last.body
    return last


def _anywhere(module: ast.Module, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    last = [part for part in ast.walk(module) if isinstance(part, _FUNCTIONS) and part.name == name]
    return last[-1] if last else None


def _flat(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements of a body, with those under its conditions, as `if sys.version_info` and `try` around an import."""
    flat: list[ast.stmt] = []
    for statement in body:
        flat.append(statement)
        for part in ("body", "orelse", "finalbody") if isinstance(statement, (ast.If, ast.Try, ast.With)) else ():
            flat += _flat(getattr(statement, part, []))
        for handler in getattr(statement, "handlers", ()):
            flat += _flat(handler.body)
    return flat


def _names(arguments: ast.arguments) -> list[tuple[str, str]]:
    kinds = ("posonlyargs", "args", "kwonlyargs")
    plain = [(kind, each.arg) for kind in kinds for each in getattr(arguments, kind)]
    stars = [(kind, each.arg) for kind in ("vararg", "kwarg") if (each := getattr(arguments, kind)) is not None]
    return plain + stars


def _shown(arguments: ast.arguments) -> str:
    return "(" + ", ".join(name for _, name in _names(arguments))[:200] + ")"


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a statement at the top of a module gives a value."""
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return {(each.asname or each.name).partition(".")[0] for each in statement.names}
    if isinstance(statement, (ast.ClassDef, *_FUNCTIONS)):
        return {statement.name}
    stored = (part.id for part in ast.walk(statement) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store))
    return set(stored)
