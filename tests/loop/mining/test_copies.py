"""Near copies: all pairs that the quadratic definition has, and groups that never part them."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from loop.mining.copies import MIN_FILES, groups, near_copies, normalised
from loop.mining.functions import Function, modules_of
from policies.data import shingles, similarity

LINES = st.lists(
    st.sampled_from(["x += 1", "y = x * 2", "for i in x: print(i)", "return y", "if x: return 3", "z = [x, y]"]),
    min_size=2,
    max_size=7,
)


def functions(tmp_path: Path, bodies: list[list[str]], files: int) -> list[Function]:
    for number, body in enumerate(bodies):
        path = tmp_path / "package" / f"m{number % files}.py"
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as file:
            file.write(f"def f{number}(x, y):\n" + "".join(f"    {line}\n" for line in body) + "\n")
    return [each for module in modules_of(tmp_path, ["."], 1)[0] for each in module.functions]


@settings(max_examples=60, deadline=None)
@given(st.lists(LINES, min_size=2, max_size=14), st.sampled_from([0.5, 0.7, 0.9]))
def test_no_pair_is_missed_and_none_is_made_up(tmp_path_factory, bodies: list[list[str]], least: float) -> None:  # type: ignore[no-untyped-def]
    made = functions(tmp_path_factory.mktemp("copies"), bodies, 3)
    sets = {each.id: shingles(normalised(each)) for each in made}
    wanted = {frozenset((a.id, b.id)) for a, b in combinations(made, 2) if similarity(sets[a.id], sets[b.id]) >= least}
    assert {frozenset((a.id, b.id)) for a, b in near_copies(made, least)} == wanted


@settings(max_examples=20, deadline=None)
@given(st.lists(LINES, min_size=MIN_FILES, max_size=20), st.sampled_from([2, MIN_FILES]))
def test_near_copies_and_functions_of_a_file_share_a_group(
    tmp_path_factory, bodies: list[list[str]], files: int
) -> None:  # type: ignore[no-untyped-def]
    made = functions(tmp_path_factory.mktemp("groups"), bodies, files)
    group = groups(made)
    for a, b in near_copies(made):
        assert group[a.id] == group[b.id]
    if files == MIN_FILES:
        assert all(group[a.id] == group[b.id] for a, b in combinations(made, 2) if a.file == b.file)


def test_names_of_variables_and_docstrings_do_not_tell_copies_apart(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "m.py").write_text(
        'def f(a, b: int) -> int:\n    """Doc."""\n    c = a + b\n    return c\n\ndef g(x, y):\n    # same\n    z = x + y\n    return z\n'
    )
    f, g = modules_of(tmp_path, ["."], 1)[0][0].functions
    assert normalised(f) == normalised(g)
