"""Where keys stand in a TOML text: against texts written together with the line of everything in them."""

import tomllib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from loop.config.toml_lines import KeyPath, key_lines, line_of

BARE = ("a", "b", "top_p", "7", "x-y")
QUOTED = {'"k#v"': "k#v", "'[t]'": "[t]", '"é\\u00e9"': "éé", '"="': "=", "''": ""}
SCALARS = (
    "1",
    "-1.5e3",
    "true",
    "1979-05-27 07:32:00",
    '"plain"',
    '"with \\" and # and ["',
    "'C:\\'",
    '""',
    '"""one\n[two]\nthree = 3\n"""',
    '"""ends in quotes"""""',
    '"""\\\n   folded \\"""\n # not a comment"""',
    "'''\nfour = 4 # \"\"\"\n'''",
    "'''it''s'''''",
)
ENDS = ("\n", "  # comment = 1\n", "\n\n", "\n# [no.table]\n", "\r\n")


class Writer:
    """Writes TOML and notes the line at which each thing begins."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.text = ""
        self.expected: dict[KeyPath, int] = {}

    def note(self, path: KeyPath) -> None:
        self.expected.setdefault(path, self.text.count("\n") + 1)

    def key(self, taken: set[str]) -> tuple[str, str]:
        """A key as it is written and as it reads, not used before."""
        free = {**{key: key for key in BARE}, **QUOTED}
        written = self.draw(st.sampled_from([key for key, read in free.items() if read not in taken]))
        taken.add(free[written])
        return written, free[written]

    def value(self, path: KeyPath, depth: int, one_line: bool = False) -> None:
        kind = self.draw(st.sampled_from(["scalar", "scalar", "array", "inline"][: 4 if depth else 2]))
        if kind == "array":
            gaps = ["", " "] if one_line else ["", " ", "\n  ", " # ]\n"]
            self.text += "["
            for index in range(self.draw(st.integers(0, 3))):
                self.text += self.draw(st.sampled_from(gaps))
                self.note((*path, index))
                self.value((*path, index), depth - 1, one_line)
                self.text += self.draw(st.sampled_from(gaps)) + ","
            self.text += "]"
        elif kind == "inline":
            self.text += "{"
            taken: set[str] = set()
            for index in range(self.draw(st.integers(0, 2))):
                self.text += ", " if index else " "
                self.pair(path, taken, depth - 1, one_line=True)
            self.text += "}"
        else:
            options = [scalar for scalar in SCALARS if not one_line or "\n" not in scalar]
            self.text += self.draw(st.sampled_from(options))

    def pair(self, table: KeyPath, taken: set[str], depth: int, one_line: bool = False) -> None:
        written, read = self.key(taken)
        path: KeyPath = (*table, read)
        self.note(path)
        if self.draw(st.booleans()):  # a dotted key; its first part stays this pair's alone
            more, read = self.key(set())
            written, path = f"{written}{self.draw(st.sampled_from(['.', ' . ']))}{more}", (*path, read)
            self.note(path)
        self.text += f"{written}{self.draw(st.sampled_from(['=', ' = ']))}"
        self.value(path, depth, one_line)

    def pairs(self, table: KeyPath, taken: set[str]) -> None:
        for _ in range(self.draw(st.integers(0, 3))):
            self.text += self.draw(st.sampled_from(["", "  ", "\t"]))
            self.pair(table, taken, depth=2)
            self.text += self.draw(st.sampled_from(ENDS))

    def document(self) -> None:
        taken: set[str] = set()
        self.pairs((), taken)
        for _ in range(self.draw(st.integers(0, 3))):
            written, read = self.key(taken)
            if self.draw(st.booleans()):
                for index in range(self.draw(st.integers(1, 3))):
                    self.note((read,))
                    self.note((read, index))
                    self.text += f"[[{written}]]{self.draw(st.sampled_from(ENDS))}"
                    self.pairs((read, index), {"sub"})
                    if self.draw(st.booleans()):
                        self.note((read, index, "sub"))
                        self.text += f"[ {written} . sub ]\n"
                        self.pairs((read, index, "sub"), set())
            else:
                self.note((read,))
                self.note((read, "sub"))
                self.text += f"[{written}.sub]\n"
                self.pairs((read, "sub"), set())


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
