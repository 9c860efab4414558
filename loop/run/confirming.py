"""A look at the tip between two rounds, with as many samples as the last look of a line: `loopctl confirm`.

It spends what its line has left, as a last look does. A kill loses nothing: what was measured is stored, and the same call
continues with it.
"""

from __future__ import annotations

from loop.errors import ConfigError, LoopError
from loop.run.adapting import best_so_far, newest_line
from loop.run.comparison import Comparison
from loop.run.session import Session
from policies.line import continued
from policies.policy import Policy
from store.ledger import TIP_LOOKED_AT, Ledger
from store.records import Json, Run


def may_confirm(policy: Policy, ledger: Ledger, run: Run) -> None:
    """ConfigError where nothing is carried, LoopError where the tip is the head or a round is under way."""
    if policy.unclear != "carry":
        raise ConfigError(f'decide.unclear is "{policy.unclear}": no round is carried, so there is no tip to look at')
    if (open_round := ledger.open_round(run.id)) is not None:
        raise LoopError(
            f"round {open_round.number} is at {open_round.state}, and is trained from the tip; `loopctl run` finishes it first"
        )
    last = ledger.last_round(run.id)
    if last is not None and last.state == "failed" and last.parent_checkpoint == run.tip_checkpoint:
        raise LoopError(f"round {last.number} failed, and is trained from the tip; `loopctl run` tries it again first")
    if not run.depth:
        raise LoopError("the tip is the head: nothing was carried since it was shown, so there is nothing to confirm")


def confirm(session: Session) -> Json:
    """Measure head and tip anew and decide on them; a tip that is shown to be better is the head from now on."""
    ledger, run, policy = session.ledger, session.run, session.policy
    may_confirm(policy, ledger, run)
    if (suite := session.decider.config).greedy:
        raise ConfigError(f"suite {suite.name!r} decodes greedily: a second look would see the same answers")
    newest, round = newest_line(session), ledger.round(run.id, run.tip_round)
    assert newest is not None and round is not None, "the tip was carried"
    line = continued(newest[0], last=True).model_copy(update={"depth": newest[0].depth})
    sides = {"head": run.head_checkpoint, "candidate": run.tip_checkpoint}
    best = best_so_far(session)
    inputs = sides | ({"best": best} if best else {}) | {"line": line.model_dump(exclude_none=True)}
    comparison = Comparison.of(session, round, inputs)
    before = ledger.events.last_of(run.id, TIP_LOOKED_AT)
    number = before.data["number"] + 1 if before else 1
    comparison.draw = f"confirm {number}"  # so that a look draws anew, and continues after a kill
    comparison.run()
    evidence = comparison.evidence()
    decision = policy.decide(evidence)
    shown = decision.verdict == "keep"
    data = {"number": number, "evidence": evidence.model_dump(mode="json")}
    answer: Json = {"decision": decision.model_dump(mode="json", exclude={"need"})}
    ledger.look_at_tip(run.id, shown=shown, head=run.head_checkpoint, tip=run.tip_checkpoint, **data, **answer)
    return {"round": run.tip_round, "shown": shown, "depth": run.depth, "head_before": run.head_round, **answer}
