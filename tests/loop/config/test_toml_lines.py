"""Where keys stand in a TOML text: against texts written together with the line of everything in them."""

import tomllib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from loop.config.toml_lines import KeyPath, key_lines, line_of

BARE = ("a", "b", "top_p", "7", "x-y")
QUOTED = {'"k#v"': "k#v", "'[t]'": "[t]", '"é\\u00e9"': "éé", '"="': "=", "''": ""}
SCALARS = (
    "1", "-1.5e3", "true", "1979-05-27 07:32:00", '"plain"', '"with \\" and # and ["', "'C:\\'", '""',
    '"""first\n[two]\nthree = 3\n"""', '"""ends in quotes"""""', '"""\\\n   folded \\"""\n # not a comment"""',
    "'''\nfour = 4 # \"\"\"\n'''", "'''it''s'''''",
)  # fmt: skip
ENDS = ("\n", "  # comment = 1\n", "\n\n", "\n# [no.table]\n", "\r\n")


class Writer:
    """Writes TOML and notes the line at which each thing begins."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.text = ""
        self.expected: dict[KeyPath, int] = {}

    def any_of(self, *options: str) -> str:
        return str(self.draw(st.sampled_from(options)))

    def times(self, least: int, most: int) -> range:
        return range(self.draw(st.integers(least, most)))

    def note(self, *paths: KeyPath) -> None:
        for path in paths:
            self.expected.setdefault(path, self.text.count("\n") + 1)

    def key(self, taken: set[str]) -> tuple[str, str]:
        """A key as it is written and as it reads, not used before."""
        free = {**{key: key for key in BARE}, **QUOTED}
        written = self.any_of(*(key for key, read in free.items() if read not in taken))
        taken.add(free[written])
        return written, free[written]

    def value(self, path: KeyPath, depth: int, on_a_line: bool = False) -> None:
        kind = self.any_of("scalar", "scalar", *(("array", "inline") if depth else ()))
        if kind == "array":
            gaps = ["", " "] if on_a_line else ["", " ", "\n  ", " # ]\n"]
            self.text += "["
            for index in self.times(0, 3):
                self.text += self.any_of(*gaps)
                self.note((*path, index))
                self.value((*path, index), depth - 1, on_a_line)
                self.text += self.any_of(*gaps) + ","
            self.text += "]"
        elif kind == "inline":
            self.text += "{"
            taken: set[str] = set()
            for index in self.times(0, 2):
                self.text += ", " if index else " "
                self.pair(path, taken, depth - 1, on_a_line=True)
            self.text += "}"
        else:
            self.text += self.any_of(*(scalar for scalar in SCALARS if not on_a_line or "\n" not in scalar))

    def pair(self, table: KeyPath, taken: set[str], depth: int, on_a_line: bool = False) -> None:
        written, read = self.key(taken)
        path: KeyPath = (*table, read)
        self.note(path)
        if self.draw(st.booleans()):  # a dotted key; its first part stays this pair's alone
            more, read = self.key(set())
            written, path = written + self.any_of(".", " . ") + more, (*path, read)
            self.note(path)
        self.text += written + self.any_of("=", " = ")
        self.value(path, depth, on_a_line)

    def table(self, header: str, path: KeyPath, taken: set[str]) -> None:
        """A header, and pairs below it."""
        self.note(path[:1], path)
        self.text += header
        for _ in self.times(0, 3):
            self.text += self.any_of("", "  ", "\t")
            self.pair(path, taken, depth=2)
            self.text += self.any_of(*ENDS)

    def document(self) -> None:
        taken: set[str] = set()
        self.table("", (), taken)
        for _ in self.times(0, 3):
            written, read = self.key(taken)
            if self.draw(st.booleans()):
                for index in self.times(1, 3):
                    self.table(f"[[{written}]]{self.any_of(*ENDS)}", (read, index), {"sub"})
                    if self.draw(st.booleans()):
                        self.table(f"[ {written} . sub ]\n", (read, index, "sub"), set())
            else:
                self.table(f"[{written}.sub]\n", (read, "sub"), set())
        self.expected.pop((), None)


@st.composite
def documents(draw: Any) -> Writer:
    """A TOML text and the lines of all that is in it."""
    writer = Writer(draw)
    writer.document()
    return writer


def paths(value: Any, path: KeyPath = ()) -> set[KeyPath]:
    """The path of everything inside."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {inner for key, entry in entries for inner in {(*path, key)} | paths(entry, (*path, key))}


@settings(max_examples=200)
@given(documents())
def test_every_key_is_found_where_it_stands(document: Writer) -> None:
    assert paths(tomllib.loads(document.text)) == set(document.expected)
    assert key_lines(document.text) == document.expected


def test_a_table_named_after_its_subtable_has_its_own_line() -> None:
    assert key_lines("[a.b]\n[a]\n") == {("a",): 2, ("a", "b"): 1}


def test_what_is_not_in_the_file_has_the_line_of_what_is_around_it() -> None:
    lines = key_lines("\n[model]\nsource = 'x'\n")
    assert line_of(lines, ("model", "revision")) == 2
    assert line_of(lines, ("decide", "suite")) == 1
