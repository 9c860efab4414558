"""Other bodies for a function: stubs, and four kinds of wrong ones that its tests must tell from its own."""

from __future__ import annotations

import ast
import copy
import hashlib
from collections.abc import Iterator

from loop.mining.functions import Definition, Function

_TURNED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
    ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot,
    ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip


def stub_of(function: Function) -> str:
    """A body that only raises. It makes a generator where the function is one, and refers to a method's class as `placed` does."""
    lines = ["__class__"] if function.in_class else []
    lines.append("raise NotImplementedError")
    return "\n".join(lines + (["yield"] if is_generator(function.node) else []))


def asking_stub_of(function: Function, asked: str) -> str:
    """A body that asks the candidate's process, through a builtin of this name."""
    written = {"vararg": "*{0}", "kwarg": "**{0}", "kwonlyargs": "{0}={0}"}
    return f"return {asked}({', '.join(written.get(kind, '{0}').format(name) for kind, name in function.parameters)})"


def program_of(function: Function, body: list[ast.stmt]) -> str:
    """A program that defines the function with this body."""
    node = copy.copy(function.node)
    node.decorator_list, node.body = [], body
    return ast.unparse(ast.fix_missing_locations(node)) + "\n"


def own_program(function: Function) -> str:
    return program_of(function, function.node.body)


def stub_program(function: Function) -> str:
    return program_of(function, ast.parse("raise NotImplementedError").body)


def wrong_programs(function: Function) -> Iterator[tuple[str, str]]:
    """The four kinds of wrong bodies as programs, each with its name; not those that say what the function itself says."""
    node, generates = function.node, is_generator(function.node)
    own = ast.dump(ast.Module(_code(node), []))
    bodies: dict[str, list[ast.stmt]] = {
        "a constant": _body(f"return {_constant(node)!r}", generates),
        "None": _body("return None", generates),
    }
    names = [
        name for kind, name in function.parameters if kind in ("posonlyargs", "args") and name not in ("self", "cls")
    ]
    if names:
        bodies["its first argument"] = _body(f"yield from {names[0]}" if generates else f"return {names[0]}", False)
    if turned := _turned(node):
        bodies["one operator turned"] = turned
    for name, body in bodies.items():
        if ast.dump(ast.Module(body, [])) != own:
            yield name, program_of(function, body)


def _body(text: str, generates: bool) -> list[ast.stmt]:
    return ast.parse("return\nyield" if generates else text).body


def is_generator(node: Definition) -> bool:
    return any(isinstance(each, ast.Yield | ast.YieldFrom) for each in _own_nodes(node))


def _own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function without those of functions inside."""
    waiting = list(ast.iter_child_nodes(node))
    while waiting:
        part = waiting.pop()
        yield part
        if not isinstance(part, Definition | ast.Lambda | ast.ClassDef):
            waiting += ast.iter_child_nodes(part)


def _code(node: Definition) -> list[ast.stmt]:
    first = node.body[0]
    is_text = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    return node.body[1:] if is_text else node.body


def _constant(node: Definition) -> object:
    """A constant of the type that the function seems to return."""
    for each in _own_nodes(node):
        value = each.value if isinstance(each, ast.Return) else None
        if isinstance(value, ast.List | ast.ListComp):
            return []
        if isinstance(value, ast.Dict | ast.DictComp):
            return {}
        if isinstance(value, ast.Tuple):
            return ()
        if isinstance(value, ast.JoinedStr) or (isinstance(value, ast.Constant) and isinstance(value.value, str)):
            return ""
        if isinstance(value, ast.Compare | ast.BoolOp) or (
            isinstance(value, ast.Constant) and isinstance(value.value, bool)
        ):
            return True
        if isinstance(value, ast.BinOp | ast.Constant):
            return 1
    return 1


def _turned(node: Definition) -> list[ast.stmt] | None:
    """The body with one operator, constant or condition turned, chosen by a hash of the body; None if it has none."""
    body = copy.deepcopy(_code(node))
    places = [
        (part, field)
        for statement in body
        for part in ast.walk(statement)
        for field in ("op", "ops", "value", "test")
        if _can_turn(part, field)
    ]
    if not places:
        return None
    number = int(hashlib.sha256(ast.dump(ast.Module(body, [])).encode()).hexdigest(), 16) % len(places)
    part, field = places[number]
    if field == "ops":
        part.ops[0] = _TURNED[type(part.ops[0])]()  # type: ignore[attr-defined]
    elif field == "op":
        part.op = _TURNED[type(part.op)]()  # type: ignore[attr-defined]
    elif field == "test":
        part.test = ast.UnaryOp(ast.Not(), part.test)  # type: ignore[attr-defined]
    else:
        part.value = not part.value if isinstance(part.value, bool) else part.value + 1  # type: ignore[attr-defined]
    return body


def _can_turn(part: ast.AST, field: str) -> bool:
    if field == "ops":
        return isinstance(part, ast.Compare) and type(part.ops[0]) in _TURNED
    if field == "op":
        return isinstance(part, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(part.op) in _TURNED
    if field == "test":
        return isinstance(part, ast.If | ast.While | ast.IfExp) and not isinstance(part.test, ast.Compare | ast.BoolOp)
    return isinstance(part, ast.Constant) and isinstance(part.value, bool | int)
