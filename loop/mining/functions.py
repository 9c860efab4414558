"""Finds the functions of a repository by reading its source; nothing of it is run."""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from loop.grading.repositories import read_source

OVERLOAD = "an overload"
Definition = ast.FunctionDef | ast.AsyncFunctionDef
_NO_PACKAGE = {
    "tests",
    "test",
    "testing",
    "docs",
    "doc",
    "examples",
    "example",
    "benchmarks",
    "scripts",
    "_vendor",
    "vendor",
    "vendored",
}
_NO_MODULE = {"setup.py", "conftest.py", "noxfile.py", "tasks.py"}


@dataclass(frozen=True)
class Function:
    """A function or method of a module. Lines count from 1; the body begins after the docstring.

    `source` is its text without the indentation it has in a class. `left_out` says why it is no problem, or "". `first` is the
    line of its first decorator.
    """

    file: str
    qualname: str
    first: int
    body_first: int
    last: int
    source: str
    body: str
    docstring: str
    node: Definition
    left_out: str = ""

    @property
    def id(self) -> str:
        """The same as long as the function's text is."""
        return f"{self.file}::{self.qualname}#{hashlib.sha256(self.source.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"

    @property
    def in_class(self) -> bool:
        return "." in self.qualname

    @property
    def is_plain(self) -> bool:
        """Whether callers give it all that it needs: no `self`, nothing to await."""
        static = any(isinstance(each, ast.Name) and each.id == "staticmethod" for each in self.node.decorator_list)
        return isinstance(self.node, ast.FunctionDef) and (not self.in_class or static)

    @property
    def parameters(self) -> list[tuple[str, str]]:
        """Kind and name of each, in order."""
        given = self.node.args
        plain = [(kind, each.arg) for kind in ("posonlyargs", "args") for each in getattr(given, kind)]
        star = [("vararg", given.vararg.arg)] if given.vararg else []
        named = [("kwonlyargs", each.arg) for each in given.kwonlyargs]
        return plain + star + named + ([("kwarg", given.kwarg.arg)] if given.kwarg else [])


@dataclass(frozen=True)
class Module:
    """A file of Python. `functions` are in the order of their lines."""

    file: str
    name: str
    text: str
    tree: ast.Module
    functions: tuple[Function, ...]


def roots_of(tree: Path) -> tuple[str, ...]:
    """The folders of a repository from which its packages are imported."""
    inner = [
        name
        for name in ("src", "lib", "python")
        if (tree / name).is_dir() and not (tree / name / "__init__.py").exists()
    ]
    return (*(name for name in inner if any((tree / name).rglob("*.py"))), ".")


def modules_of(
    tree: Path, roots: Sequence[str], min_lines: int = 3, max_lines: int = 60
) -> tuple[list[Module], dict[str, str]]:
    """The modules of the packages under these roots, and the files that are no Python that can be read, with the reason.

    Tests, documentation, examples and what is only there to build the package are left aside.
    """
    modules, broken = [], {}
    for path in sorted(tree.rglob("*.py")):
        file = path.relative_to(tree).as_posix()
        name = _module_name(file, roots)
        if name is None or is_test(file) or path.is_symlink():
            continue
        try:
            text = read_source(path)
            parsed = ast.parse(text)
        except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError, OSError) as error:
            broken[file] = f"{type(error).__name__}: {error}"
            continue
        functions = tuple(_functions(file, text, parsed, min_lines, max_lines))
        modules.append(Module(file, name, text, parsed, functions))
    return modules, broken


def is_test(file: str) -> bool:
    """Whether a file of this path belongs to the tests, by the names that pytest expects."""
    path = PurePosixPath(file)
    name = path.name
    return (
        name.startswith("test_")
        or name.endswith("_test.py")
        or name == "conftest.py"
        or bool({"tests", "test"} & set(path.parts[:-1]))
    )


def _module_name(file: str, roots: Sequence[str]) -> str | None:
    path = PurePosixPath(file)
    if path.name in _NO_MODULE or _NO_PACKAGE & set(path.parts[:-1]):
        return None
    for root in roots:
        if root == "." or path.parts[0] == root:
            parts = list((path if root == "." else path.relative_to(root)).with_suffix("").parts)
            if parts[-1] == "__init__":
                parts.pop()
            if parts and all(part.isidentifier() for part in parts):
                return ".".join(parts)
    return None


def _functions(file: str, text: str, tree: ast.Module, min_lines: int, max_lines: int) -> Iterator[Function]:
    lines = text.splitlines(keepends=True)
    met = [_function(file, lines, node, classes) for node, classes in _definitions(tree.body, ())]
    count: dict[str, int] = {}
    reasons = [_reason(function, min_lines, max_lines) for function in met]
    for function, reason in zip(met, reasons, strict=True):
        count[function.qualname] = count.get(function.qualname, 0) + (reason != OVERLOAD)
    for function, reason in zip(met, reasons, strict=True):
        twice = count[function.qualname] > 1 and not reason
        yield replace(function, left_out="defined more than once" if twice else reason)


def _definitions(body: Sequence[ast.stmt], classes: tuple[str, ...]) -> Iterator[tuple[Definition, tuple[str, ...]]]:
    for node in body:
        if isinstance(node, Definition):
            yield node, classes
        elif isinstance(node, ast.ClassDef):
            yield from _definitions(node.body, (*classes, node.name))
        elif isinstance(node, ast.If | ast.Try | ast.With):
            for part in ("body", "orelse", "finalbody"):
                yield from _definitions(getattr(node, part, []), classes)
            for handler in getattr(node, "handlers", ()):
                yield from _definitions(handler.body, classes)


def _function(file: str, lines: list[str], node: Definition, classes: tuple[str, ...]) -> Function:
    first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    last = node.end_lineno or node.lineno
    docstring = ast.get_docstring(node, clean=True) or ""
    rest = node.body[1:] if docstring or _is_text(node.body[0]) else node.body
    body_first = (
        min([rest[0].lineno, *(each.lineno for each in getattr(rest[0], "decorator_list", ()))]) if rest else last + 1
    )
    source = "".join(lines[first - 1 : last])
    indent = len(lines[first - 1]) - len(lines[first - 1].lstrip())
    if indent:
        source = dedented(source, indent)
    body = "".join(lines[body_first - 1 : last])
    return Function(file, ".".join((*classes, node.name)), first, body_first, last, source, body, docstring, node)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def dedented(text: str, indent: int) -> str:
    """The text with so much less indentation, but for lines inside of texts that have less."""
    return "".join(line[indent:] if not line[:indent].strip() else line for line in text.splitlines(keepends=True))


def _reason(function: Function, min_lines: int, max_lines: int) -> str:
    node = function.node
    rest = node.body[1:] if _is_text(node.body[0]) else node.body
    names = {_last_name(each) for each in node.decorator_list}
    if "overload" in names:
        return OVERLOAD
    if "abstractmethod" in names or "abstractproperty" in names:
        return "abstract"
    if not rest or all(_is_stub(each) for each in rest):
        return "a stub"
    if function.last == node.lineno or rest[0].lineno == node.lineno:
        return "on one line"
    num_lines = _code_lines(function.body)
    if len(rest) == 1 and _is_trivial(rest[0]):
        return "a trivial wrapper"
    if node.name == "__init__" and all(
        isinstance(each, ast.Assign | ast.AnnAssign) and not _calls(each) for each in rest
    ):
        return "an __init__ that only assigns"
    if num_lines < min_lines:
        return f"shorter than {min_lines} lines"
    if num_lines > max_lines:
        return f"longer than {max_lines} lines"
    if any(isinstance(each, ast.Nonlocal) for each in ast.walk(node)) and not any(
        isinstance(each, Definition) for part in rest for each in ast.walk(part)
    ):
        return "needs a variable of a function around it"
    return ""


def _last_name(node: ast.expr) -> str:
    while isinstance(node, ast.Call):
        node = node.func
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _is_stub(node: ast.stmt) -> bool:
    if isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
        return True
    return isinstance(node, ast.Raise) and node.exc is not None and _last_name(node.exc) == "NotImplementedError"


def _is_trivial(node: ast.stmt) -> bool:
    value = node.value if isinstance(node, ast.Return | ast.Expr) else None
    if isinstance(value, ast.Call):
        given = [*value.args, *(each.value for each in value.keywords)]
        return all(isinstance(each, ast.Name | ast.Constant | ast.Starred | ast.Attribute) for each in given)
    return isinstance(value, ast.Name | ast.Attribute | ast.Constant) or (
        isinstance(node, ast.Return) and value is None
    )


def _calls(node: ast.AST) -> bool:
    return any(isinstance(each, ast.Call) for each in ast.walk(node))


def _code_lines(text: str) -> int:
    """Lines that hold code: no blank ones and no comments."""
    try:
        kinds = (tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
        tokens = tokenize.generate_tokens(io.StringIO("if 1:\n" + text).readline)
        return len({token.start[0] for token in tokens if token.type not in kinds} - {1})
    except (tokenize.TokenError, SyntaxError, IndentationError):
        return sum(1 for line in text.splitlines() if line.strip() and not line.strip().startswith("#"))
