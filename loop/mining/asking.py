"""What a model is shown of a function: its place in class and module, its signature and docstring; nothing of its body.

What of the module is shown is chosen by what the function's neighbours use, and what its own signature and docstring name. The body
has no say, since a choice by it would tell something of it.
"""

from __future__ import annotations

import ast
import copy
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from loop.mining.functions import Definition, Function, Module, dedented

BUDGET_CHARS = 6000
"""About 1,500 tokens of code."""
_MOST_LINES = 12
"""A constant or an __init__ longer than this is left out, or shown by its first line."""


def prompt_of(function: Function, module: Module, budget_chars: int = BUDGET_CHARS) -> str:
    """The text that a model continues: at the end stands the function up to where its body begins.

    Where the budget does not hold all, what the fewest neighbours use is left out; imports and the function itself stay.
    """
    lines = module.text.splitlines(keepends=True)
    imports = "".join(_text(lines, node) for node in module.tree.body if isinstance(node, ast.Import | ast.ImportFrom))
    head = _head(function, lines)
    *outer, _ = function.qualname.split(".")
    pieces = list(_pieces(function, module, lines, bool(outer)))
    opening, members = _class(function, module, lines) if outer else ("", [])
    left = budget_chars - len(imports) - len(head) - len(opening)
    chosen: set[int] = set()
    every = [*pieces, *members]
    for _, number, text in sorted((-rank, number, text) for number, (rank, text) in enumerate(every)):
        if len(text) <= left and not leaks(text, function):
            chosen.add(number)
            left -= len(text)
    above = "".join(text for number, (_, text) in enumerate(pieces) if number in chosen)
    inside = "".join(text for number, (_, text) in enumerate(members, len(pieces)) if number in chosen)
    parts = [imports.rstrip("\n"), above.rstrip("\n"), (opening + inside + head).rstrip("\n")]
    return "\n\n".join(part for part in parts if part) + "\n"


def leaks(text: str, function: Function) -> bool:
    """Whether two consecutive lines of the body, or a body of one line, stand in this text, however they are indented."""
    body = [line for line in map(_squeezed, function.body.splitlines()) if line]
    shown = [line for line in map(_squeezed, text.splitlines()) if line]
    if len(body) == 1:
        return body[0] in shown
    pairs = set(pairwise(body))
    return any(pair in pairs and sum(map(len, pair)) > 16 for pair in pairwise(shown))


def _squeezed(line: str) -> str:
    return " ".join(line.split())


def _text(lines: list[str], node: ast.stmt) -> str:
    first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])
    return "".join(lines[first - 1 : node.end_lineno]).rstrip("\n") + "\n"


def _head(function: Function, lines: list[str]) -> str:
    """The function up to its body; one that stands in a condition is moved to where it stands without."""
    too_far = function.node.col_offset - 4 * function.qualname.count(".")
    text = "".join(lines[function.first - 1 : function.body_first - 1])
    return dedented(text, too_far) if too_far > 0 else text


def _signature(node: Definition, lines: list[str]) -> str:
    """A function without its body, but with the first line of its docstring."""
    first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    indent = " " * node.col_offset
    begun = node.body[0].lineno
    text = "".join(lines[first - 1 : begun - 1]) if begun > node.lineno else ""
    if not text.rstrip().endswith(":"):
        bare = ast.unparse(_bare(node)).removesuffix("\n    pass")
        text = "".join(f"{indent}{line}\n" for line in bare.splitlines())
    return f"{text}{_said(node, indent)}{indent}    ...\n"


def _said(node: Definition | ast.ClassDef, indent: str) -> str:
    """The first line of a docstring as a docstring, where it can stand on one line as it is."""
    words = (ast.get_docstring(node) or "").strip().partition("\n")[0]
    return f'{indent}    """{words}"""\n' if words and not re.search(r'"""|\\|"$', words) else ""


def _bare(node: Definition) -> Definition:
    copied = copy.copy(node)
    copied.body = [ast.Pass()]
    return ast.fix_missing_locations(copied)


def _pieces(function: Function, module: Module, lines: list[str], in_class: bool) -> Iterator[tuple[float, str]]:
    """What the module has beside imports and the function's own class, each with how many neighbours use it."""
    used = _used(function, module)
    own = function.qualname.split(".")[0]
    for node in module.tree.body:
        if isinstance(node, Definition):
            if node.name != own or in_class:
                yield used[node.name], _signature(node, lines) + "\n"
        elif isinstance(node, ast.ClassDef):
            if node.name != own:
                inner = [each for each in node.body if isinstance(each, Definition)]
                text = _opening(node, lines) + "".join(_signature(each, lines) for each in inner)
                yield used[node.name] - 0.5, (text if inner else text + "    ...\n") + "\n"
        elif isinstance(node, ast.Assign | ast.AnnAssign) and (node.end_lineno or 0) - node.lineno < _MOST_LINES:
            names = [
                each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
            ]
            if names:
                yield max(used[name] for name in names), _text(lines, node)


def _class(function: Function, module: Module, lines: list[str]) -> tuple[str, list[tuple[float, str]]]:
    """The lines that open the function's class, and what else it has, each with how many neighbours use it."""
    *outer, _ = function.qualname.split(".")
    body: Sequence[ast.stmt] = module.tree.body
    opening, node = "", None
    for name in outer:
        node = next((each for each in _flat(body) if isinstance(each, ast.ClassDef) and each.name == name), None)
        if node is None:
            return opening, []
        opening += _opening(node, lines)
        body = node.body
    used = _used(function, module)
    members: list[tuple[float, str]] = []
    for each in body:
        if isinstance(each, Definition) and each is not function.node and each.name != function.node.name:
            whole = each.name == "__init__" and (each.end_lineno or 0) - each.lineno < _MOST_LINES
            members.append(
                (used[each.name] + 2 * whole, (_text(lines, each) if whole else _signature(each, lines)) + "\n")
            )
        elif isinstance(each, ast.Assign | ast.AnnAssign) and (each.end_lineno or 0) - each.lineno < _MOST_LINES:
            members.append((1.5, _text(lines, each)))
    return opening, members


def _opening(node: ast.ClassDef, lines: list[str]) -> str:
    """A class up to its body, with the first line of its docstring."""
    first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    text = "".join(lines[first - 1 : max(node.body[0].lineno - 1, node.lineno)])
    if not text.rstrip().endswith(":"):
        bases = ", ".join(ast.unparse(each) for each in [*node.bases, *node.keywords])
        text = " " * node.col_offset + f"class {node.name}{f'({bases})' if bases else ''}:\n"
    said = _said(node, " " * node.col_offset)
    text += said + "\n" if said else ""
    return text


def _flat(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        for part in ("body", "orelse", "finalbody") if isinstance(node, ast.If | ast.Try | ast.With) else ():
            yield from _flat(getattr(node, part, []))


def _used(function: Function, module: Module) -> Counter[str]:
    """How many of the function's neighbours use each name; its own signature and docstring count more than all of them."""
    cls = function.qualname.rpartition(".")[0]
    neighbours = [
        each
        for each in module.functions
        if each.qualname != function.qualname and (each.qualname.rpartition(".")[0] == cls)
    ]
    used: Counter[str] = Counter()
    for each in neighbours:
        names = {part.id for part in ast.walk(each.node) if isinstance(part, ast.Name)}
        names |= {part.attr for part in ast.walk(each.node) if isinstance(part, ast.Attribute)}
        used.update(names)
    signature = [
        *ast.walk(function.node.args),
        *(part for each in function.node.decorator_list for part in ast.walk(each)),
    ]
    if function.node.returns:
        signature += ast.walk(function.node.returns)
    named = {part.id for part in signature if isinstance(part, ast.Name)} | set(re.findall(r"\w+", function.docstring))
    for name in named:
        used[name] += 1 + len(neighbours)
    return used
