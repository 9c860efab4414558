"""The line: what its looks may spend, when they come, and that no order of events lets a run spend more than alpha."""

from __future__ import annotations

from typing import Any, Literal, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.decision import Action
from policies.evidence import Line, read_evidence
from policies.gates import Improvement, Look
from policies.line import MAX_CARRIED, Shown, closing_share, first_look, share
from policies.policy import Policy, build_policy
from policies.statistics import sign_flip_p_value

POLICY = Policy((Improvement(),), "select", unclear="carry", max_carried=5)
Course = Literal["keep", "carry", "fail", "by hand"]


def following(line: Line | None, course: Course, depth: int, policy: Policy = POLICY, **more: Any) -> Line:
    """The line of the next round after one that ended like this."""
    action: Action = "rollback" if course == "fail" else "carry" if course == "by hand" else course
    before = None if line is None else (line, action)
    now = policy.next_line(depth, 0, before, more.pop("shown", None), 200, 4, **more)
    assert now is not None
    return now


@given(st.lists(st.tuples(st.sampled_from(get_args(Course)), st.booleans(), st.floats(-0.1, 0.3)), max_size=60))
def test_whatever_happens_no_more_than_alpha_is_spent(courses: list[tuple[Course, bool, float]]) -> None:
    """Looks that did not end in a keep spend. A keep spends nothing; a line that fails, all that it had."""
    line, depth, spent, shown = following(None, "keep", 0), 0, 0.0, None
    for course, is_last, gain in courses:
        if course == "keep" and not line.look:
            course = "carry"  # what is not looked at is not kept
        if line.look:
            assert spent + share(line) <= 1 + 1e-12
        spent += share(line) if line.look and course != "keep" else 0.0
        if course == "fail" and depth and not line.last:
            spent += closing_share(line)  # a look at the tip before it is given up
            assert spent <= 1 + 1e-12
        if course == "keep":
            shown = Shown(gain, depth + 1, 0.02, 4)
        depth = depth + 1 if course == "carry" and depth < 5 else 0
        line = following(line, course if depth or course != "carry" else "fail", depth, shown=shown, is_last=is_last)
    assert spent <= 1


def test_a_keep_gives_back_what_its_line_has_not_looked_for() -> None:
    begun = following(None, "keep", 0)
    assert (begun.left, begun.num_looks, share(begun)) == (1.0, 0, pytest.approx(0.24))
    assert following(begun, "keep", 0).left == 1.0, "no look was in vain"
    second = following(begun, "carry", 1)
    assert (second.left, second.num_looks, second.next_look) == (1.0, 1, 2) and share(second) == pytest.approx(0.144)
    assert following(second, "keep", 0).left == pytest.approx(0.76), "one was"
    for failed in ("fail", "by hand"):
        assert following(second, failed, 0).left == 0.4, "a line that fails has spent all of its share"


def test_looks_come_ever_later_and_the_last_one_takes_what_is_left() -> None:
    line, looks = following(None, "keep", 0), []
    for depth in range(1, 6):
        line = following(line, "carry", depth)
        looks += [line.depth + 1] if line.look else []
    assert looks == [2, 3, 5, 6], "each half as long again; and no round follows max_carried"
    assert line.last and line.num_looks == 4 and share(line) == pytest.approx(0.6 * 0.6**4)


def test_a_run_that_is_given_more_rounds_goes_on_with_its_line_at_another_share() -> None:
    last = following(following(None, "keep", 0), "carry", 1, is_last=True)
    assert last.last and share(last) == pytest.approx(0.36)
    after = following(last, "carry", 2)
    assert (after.left, after.num_looks, after.next_look, after.last) == (0.4, 0, 3, False)


def test_what_was_shown_says_when_the_next_line_is_looked_at() -> None:
    def at(gain: float, num_rounds: int, num_problems: int = 200) -> int:
        return first_look(Shown(gain, num_rounds, 0.05 + 0.012 * num_rounds, 4), 0.0, 0.01, num_problems, 4, 31)

    assert first_look(None, 0.0, 0.01, 200, 4, 31) == 1, "nothing is known: a first gain may be large"
    assert at(0.15, 1) == 1 < at(0.05, 1) < at(0.05, 3) < at(0.02, 3) < at(0.01, 3) == 31
    assert at(0.05, 3, num_problems=2000) < at(0.05, 3)
    assert first_look(Shown(0.3, 1, 0.05, 4), 0.0, 1e-13, 200, 4, 31) == 31, "what is left shows nothing"
    assert first_look(Shown(-0.01, 1, 0.05, 4), 0.0, 0.01, 200, 4, 31) == 31
    assert first_look(Shown(-0.01, 1, 0.05, 4), -0.9, 0.01, 200, 4, 31) == 1, "almost anything will do"


def test_a_line_that_failed_is_not_waited_for_as_long_again() -> None:
    shown = Shown(0.03, 1, 0.06, 4)
    begun = following(None, "keep", 0, shown=shown)
    assert begun.next_look == 3, "one round of the line would not see three points"
    third = following(following(begun, "carry", 1), "carry", 2)
    for course, at in (("fail", 2), ("keep", 3)):
        assert following(third, course, 0, shown=shown).next_look == at


def evidence(ours: list[int], theirs: list[int], line: dict[str, Any] | None, **more: Any) -> Any:
    problems = [
        {"task_id": str(at), "candidate": [*mine], "head": [*head]}
        for at, (mine, head) in enumerate(zip(map(graded, ours), map(graded, theirs), strict=True))
    ]
    split = {"suite": "s", "problems": problems, **more}
    told: dict[str, Any] = {"round": 3, "rounds_so_far": 2, "splits": {"select": split}}
    return read_evidence(told | ({} if line is None else {"line": line}))


def graded(num_right: int) -> list[int]:
    return [1] * num_right + [0] * (4 - num_right)


LINE = {"depth": 1, "num_failed": 0, "left": 1.0, "num_looks": 0, "next_look": 2}


@pytest.mark.parametrize(
    ("better", "worse", "line", "action"),
    [
        (12, 0, LINE, "keep"),
        (3, 2, LINE, "carry"),
        (0, 3, LINE, "carry"),  # three of three have a chance of 1/8: above the limit
        (0, 4, LINE, "rollback"),
        (3, 2, LINE | {"depth": 5}, "rollback"),  # no line is longer
        (12, 0, LINE | {"next_look": 4}, "carry"),  # not looked at, however good
        (0, 4, LINE | {"next_look": 4}, "rollback"),  # but not carried where it is worse
        (12, 0, None, "keep"),
    ],
)
def test_what_is_not_shown_and_not_worse_is_carried(better: int, worse: int, line: Any, action: str) -> None:
    ours = [4] * better + [0] * worse + [2] * 20
    theirs = [0] * better + [4] * worse + [2] * 20
    decision = POLICY.decide(evidence(ours, theirs, line))
    assert decision.action == action
    if action == "carry":
        assert decision.verdict == "inconclusive" and decision.need is None


def test_a_candidate_that_is_not_looked_at_asks_for_no_more() -> None:
    some = {"num_planned": 100, "num_looks": 1}
    glimpse = evidence([2] * 50, [2] * 50, LINE | {"next_look": 4}, **some)
    decision = POLICY.decide(glimpse)
    assert decision.action == "carry" and "the line's next look comes when it is 4 rounds long" in decision.reasons[0]
    assert POLICY.decide(evidence([2] * 50, [2] * 50, LINE, **some)).action == "sample_more"


def test_a_look_that_gave_up_on_its_target_is_not_continued() -> None:
    """In parts: that a gain of target_gain is unlikely ends the look, and the line goes on: smaller gains add up, too."""
    policy = Policy((Improvement(target_gain=0.5),), "select", unclear="carry")
    decision = policy.decide(evidence([2] * 60, [2] * 60, LINE, num_planned=200, num_looks=4))
    assert decision.action == "carry" and "is unlikely" in decision.reasons[0]


def test_levels_are_the_lines_and_evidence_without_more_is_taken_to_have_spent() -> None:
    gate = Improvement(alpha=0.04)

    def level(**line: Any) -> float:
        return gate.level(7, Look("select", line=Line(**line)))

    assert level(depth=0, num_failed=0) == pytest.approx(0.04 * 0.24)
    assert level(depth=2, num_failed=1) == pytest.approx(0.04 * 0.4 * 0.6 * 0.6**2 * 0.4)
    assert level(depth=2, num_failed=1, left=1.0, num_looks=0) == pytest.approx(0.04 * 0.24)
    assert gate.level(7, Look("select", screening=True, line=Line(depth=0, num_failed=0))) == gate.screen


def test_a_line_of_which_nothing_is_said_may_have_failed_in_every_look() -> None:
    spent = [share(POLICY._untold(read_evidence(told(number)))) for number in range(200)]
    assert spent[0] == pytest.approx(0.24) and sum(spent) < 0.5 and spent == sorted(spent, reverse=True)


def told(rounds_so_far: int) -> dict[str, Any]:
    problem = {"task_id": "a", "candidate": [1], "head": [0]}
    splits = {"select": {"suite": "s", "problems": [problem]}}
    return {"round": rounds_so_far + 1, "rounds_so_far": rounds_so_far, "splits": splits}


def test_that_a_candidate_is_worse_is_asked_once_a_look() -> None:
    some = {"num_planned": 40, "num_looks": 4}
    first = evidence([1] * 5 + [2] * 5, [2] * 10, LINE, **some)
    assert POLICY.decide(first).action == "sample_more"
    whole = evidence([1] * 5 + [2] * 5, [2] * 10, LINE)
    assert POLICY.decide(whole).action == "rollback"


def test_the_policy_is_stored_with_its_lines_and_counts_looks_only() -> None:
    assert build_policy(**POLICY.as_json()) == POLICY
    rollback = Policy((Improvement(),), "select")
    assert "max_carried" not in rollback.as_json(), "older versions read what has no lines"
    splits = {"select": {}}
    assert POLICY.fruitless_after({"splits": splits, "line": LINE | {"next_look": 4}}, "inconclusive") == {"select": 0}
    assert POLICY.fruitless_after({"splits": splits, "line": LINE}, "inconclusive") == {"select": 1}
    assert rollback.fruitless_after({"splits": splits, "line": LINE | {"next_look": 4}}, "rollback") == {"select": 1}
    assert rollback.next_line(0, 0, None, None, 100, 4) is None
    assert first_look(Shown(0.0, 1, 0.02, 4), 0.0, 0.01, 100, 4, MAX_CARRIED + 1) == MAX_CARRIED + 1
    assert sign_flip_p_value([1] * 3) == 0.125 > 0.1 > sign_flip_p_value([1] * 4)


def in_a_line(ours: str, tip: str | None, at_the_tip: str | None = None, **line: Any) -> Any:
    """Evidence in which the head solves the second half of 24 problems, and each other side what its letters say: y and n."""
    head = "n" * 12 + "y" * 12
    problems = [
        {"task_id": str(at), "candidate": [mine] * 4, "head": [his] * 4} | ({} if tip is None else {"tip": [its] * 4})
        for at, (mine, its, his) in enumerate(
            zip(*(map("ny".index, side) for side in (ours, tip or ours, head)), strict=True)
        )
    ]
    splits: dict[str, Any] = {"select": {"suite": "s", "problems": problems}}
    if at_the_tip is not None:
        sides = (map("ny".index, side) for side in (at_the_tip, head))
        again = [
            {"task_id": str(at), "candidate": [mine] * 16, "head": [his] * 16}
            for at, (mine, his) in enumerate(zip(*sides, strict=True))
        ]
        splits["the tip"] = {"suite": "s", "problems": again}
    told = LINE | {"next_look": 4, "closing": True} | line
    return read_evidence({"round": 3, "rounds_so_far": 2, "splits": splits, "line": told})  # fmt: skip


GOOD, AS_HEAD, BAD = "y" * 24, "n" * 12 + "y" * 12, "n" * 12 + "y" * 6 + "n" * 6


def test_a_line_ends_where_its_candidate_is_worse_than_the_tip() -> None:
    """As good as the head, which is no reason to carry it: what it was trained from was better."""
    decision = POLICY.decide(in_a_line(AS_HEAD, GOOD, closing=None))
    assert decision.action == "rollback" and "worse than the tip that it was trained from" in decision.reasons[0]
    assert POLICY.decide(in_a_line(AS_HEAD, None)).action == "carry", "nothing is known of the tip"
    assert POLICY.decide(in_a_line(AS_HEAD, AS_HEAD)).action == "carry"
    few = "y" * 5 + AS_HEAD[5:]
    assert POLICY.decide(in_a_line(AS_HEAD, few)).action == "carry", (
        "five of five have a chance of 1/32: above the limit"
    )
    assert POLICY.decide(in_a_line(AS_HEAD, "y" * 6 + AS_HEAD[6:], closing=None)).action == "rollback"


@pytest.mark.parametrize("ours", [BAD, AS_HEAD])
def test_what_was_carried_is_looked_at_before_it_is_given_up(ours: str) -> None:
    asked = POLICY.decide(in_a_line(ours, GOOD))
    assert (asked.verdict, asked.action, asked.need) == ("inconclusive", "sample_more", {"tip": True})
    shown = POLICY.decide(in_a_line(ours, GOOD, GOOD))
    assert (shown.verdict, shown.action, shown.need) == ("rollback", "rollback", {"head": "tip"})
    assert (shown.gates[-1].type, shown.gates[-1].verdict) == (
        "tip",
        "pass",
    ) and "the head from now on" in shown.reasons[-1]
    told = Line(**LINE | {"next_look": 4})
    assert (
        shown.gates[-1].figures["level"] == pytest.approx(0.05 * closing_share(told)) == pytest.approx(0.05 * 0.9 * 0.6)
    )
    again = POLICY.decide(in_a_line(ours, GOOD, AS_HEAD))
    assert (again.action, again.need, again.gates[-1].verdict) == ("rollback", None, "inconclusive")
    assert "not shown, and given up" in again.reasons[-1]


@pytest.mark.parametrize(
    ("line", "tip"), [({"closing": None}, GOOD), ({"closing": False}, GOOD), ({"last": True}, GOOD), ({}, AS_HEAD), ({}, BAD), ({"depth": 0}, GOOD)]
)  # fmt: skip
def test_a_look_at_a_tip_that_promises_nothing_is_not_taken(line: dict[str, Any], tip: str) -> None:
    decision = POLICY.decide(in_a_line(BAD, tip, **line))
    assert (decision.action, decision.need, len(decision.gates)) == ("rollback", None, 1)


def test_with_two_splits_the_tip_is_remembered_where_the_second_one_shows_nothing() -> None:
    """A candidate that looks better than the head on select, and worse than its tip there, is no reason to leave the tip."""
    policy = Policy((Improvement(),), "select", "confirm", "carry")
    slightly = "y" * 4 + AS_HEAD[4:]
    shown, alike = ("y" * 24, AS_HEAD)
    told = in_a_line(slightly, GOOD, next_look=2, closing=None).model_dump(mode="json")
    assert policy.decide(read_evidence(told)).action == "confirm"
    for ours, action in ((shown, "keep"), (alike, "rollback")):
        problems = [
            {"task_id": f"c{at}", "candidate": ["ny".index(mine)] * 4, "head": ["ny".index(his)] * 4}
            for at, (mine, his) in enumerate(zip(ours, AS_HEAD, strict=True))
        ]
        told["splits"]["confirm"] = {"suite": "s", "problems": problems}
        assert policy.decide(read_evidence(told)).action == action


def test_where_each_round_has_its_own_alpha_it_has_one_look() -> None:
    policy = Policy((Improvement(budget="round"),), "select", unclear="carry", max_carried=5)
    assert policy.decide(in_a_line(BAD, GOOD, next_look=2)).action == "rollback"
    assert policy.decide(in_a_line(BAD, GOOD)).need == {"tip": True}
    told = policy.decide(in_a_line(BAD, GOOD, GOOD)).gates[-1]
    assert told.figures["level"] == 0.05
