"""What a stage of a round works from: the configuration's settings, adapted to what was decided on the head so far.

It is stored with the stage's first attempt, and every later attempt works from what was stored.
"""

from __future__ import annotations

from dataclasses import fields

from loop.config.section import keys_of
from loop.config.settings import Training
from loop.errors import ConfigError
from loop.prompts.sources import prompts_of_round
from loop.run.session import Session
from loop.stages.sampling import seed_of
from loop.stages.training import rows_sha256
from policies.adaptation import Adaptable, adapted, in_words, rollbacks_in_a_row
from policies.evidence import Line
from policies.line import Shown
from store.garbage import best_round
from store.ledger import CANDIDATES, TIP_LOOKED_AT
from store.records import Json, Round

MOST_VERDICTS = 1000


def frozen_input(session: Session, round: Round) -> Json:
    """The input of the stage that the round is at. ConfigError for a training that would repeat one that was not kept."""
    config, parent = session.loaded.config, round.parent_checkpoint
    used, why_adapted = settings_of(session, round)
    match round.stage:
        case "sampling":
            chosen = prompts_of_round(session.prompts, config.prompts.per_round, config.seed, round.number)
            decoding = config.sampling.model_dump(mode="json", exclude={"num_samples", "control"})
            return {
                "checkpoint": parent,
                "prompt_ids": [prompt.id for prompt in chosen],
                "decoding": decoding | {"temperature": used.temperature},
                "data": used.data.model_dump(mode="json"),
                "adapted": why_adapted,
            }
        case "training":
            num_rows, sha256 = rows_sha256(session.corpus.training_rows(round.run_id, round.number))
            seed = {"seed": seed_of(config.seed, "training", round.number)}
            settings = config.training.model_dump(mode="json") | used.training() | seed
            inputs = {"checkpoint": parent, "num_rows": num_rows, "rows_sha256": sha256, "settings": settings}
            refuse_a_repetition(session, round, inputs)
            return inputs
        case "evaluating":
            sides: Json = {"head": session.run.head_checkpoint}
            if round.candidate_checkpoint is not None:
                sides["candidate"] = round.candidate_checkpoint
            else:
                trained = session.ledger.stage(round.run_id, round.number, "training")
                assert trained is not None and trained.output is not None
                sides[CANDIDATES] = trained.output[CANDIDATES]
            line, best = line_of(session), best_so_far(session)
            return (
                sides
                | ({"best": best} if best else {})
                | ({"line": line.model_dump(exclude_none=True)} if line else {})
            )
        case _:
            evaluated = session.ledger.stage(round.run_id, round.number, "evaluating")
            assert evaluated is not None and evaluated.output is not None
            return evaluated.input | evaluated.output


def best_so_far(session: Session) -> Json | None:
    """The best kept round where it is not the head, if a gate wants to see it."""
    run, ledger = session.run, session.ledger
    if not session.policy.needs_best:
        return None
    number = best_round(ledger, run, session.loaded.config.decide.suite)
    round = ledger.round(run.id, number) if number else None
    sha256 = round.candidate_checkpoint if round else run.base_checkpoint
    return {"round": number, "checkpoint": sha256} if sha256 != run.head_checkpoint else None


def goal_of(session: Session) -> int:
    """How many rounds are decided in all when the run ends; 0 for no end."""
    return session.loaded.config.rounds if session.goal is None else session.goal


def line_of(session: Session) -> Line | None:
    """Where the candidate of the open round stands in a line, and when that is looked at; None where nothing is carried."""
    run, policy, suite, goal = session.run, session.policy, session.decider, goal_of(session)
    return policy.next_line(
        run.depth,
        run.num_failed_lines,
        newest_line(session),
        _shown(session),
        len(suite.of_split(policy.confirm or policy.split)),
        suite.config.num_samples,
        is_last=bool(goal) and run.num_decided + 1 >= goal,
        closing=_tip_may_be_shown(session),
    )


def _tip_may_be_shown(session: Session) -> bool:
    """Whether every gate that asks for no gain has passed the tip, and other answers of it can be drawn."""
    ledger, last = session.ledger, session.ledger.last_decision(session.run_id)
    if last is None or last.action != "carry" or session.decider.config.greedy:
        return False
    looks = ledger.events.of(session.run_id, TIP_LOOKED_AT, last.round)  # by hand, with more samples
    gates = [*last.gates, *(gate for look in looks for gate in look.data["decision"]["gates"])]
    return all(gate["verdict"] == "pass" for gate in gates if gate["type"] != "improvement")


def _shown(session: Session) -> Shown | None:
    """What made the head, by the decision that kept it or the look that confirmed it; None for the base."""
    ledger, run = session.ledger, session.run
    decision = ledger.decision(run.id, run.head_round) if run.head_round else None
    if decision is None or "line" not in decision.evidence:
        return None
    looks = ledger.events.of(run.id, TIP_LOOKED_AT, run.head_round) if decision.verdict != "keep" else []
    gates = next((look.data["decision"]["gates"] for look in looks if look.data["shown"]), decision.gates)
    figures = next((gate["figures"] for gate in gates if "mean_square" in gate["figures"]), None)
    if figures is None:
        return None
    num_rounds = decision.evidence["line"]["depth"] + 1
    return Shown(figures["gain"], num_rounds, figures["mean_square"], figures["num_samples"])


def newest_line(session: Session) -> tuple[Line, str] | None:
    """Where the newest candidate that was decided on stood in its line, and what became of it; a later look at it counts."""
    last = session.ledger.last_decision(session.run_id)
    if last is None or "line" not in last.evidence:
        return None
    look = session.ledger.events.last_of(session.run_id, TIP_LOOKED_AT)
    if look is not None and look.round == last.round:
        return Line.model_validate(look.data["evidence"]["line"]), "keep" if look.data["shown"] else "carry"
    return Line.model_validate(last.evidence["line"]), last.action


def settings_of(session: Session, round: Round) -> tuple[Adaptable, str | None]:
    """The settings of a round that has begun, and what was changed in them and why, in one line.

    Only decisions on the present head count: whoever moves it by hand begins anew.
    """
    config = session.loaded.config
    training = config.training.model_dump(include={field.name for field in fields(Adaptable)})
    configured = Adaptable(temperature=config.sampling.temperature, data=config.collect.data, **training)
    verdicts = session.ledger.verdicts_on(round.run_id, session.run.head_checkpoint, MOST_VERDICTS)
    num_rollbacks = rollbacks_in_a_row(verdicts)
    used = adapted(config.after_rollback, num_rollbacks, configured)
    return used, in_words(configured, used, num_rollbacks)


def refuse_a_repetition(session: Session, round: Round, inputs: Json) -> None:
    """ConfigError if a round that was not kept was trained from the same weights on the same tokens with the same settings.

    It cannot happen where sampling draws: every round has seeds of its own. It does where nothing is left to be drawn, as
    with top_k = 1 or a temperature near 0; then the run would go in circles for as long as it is let.
    """
    for earlier in session.ledger.rounds(round.run_id):
        if earlier.state not in ("carried", "rolled_back") or earlier.parent_checkpoint != round.parent_checkpoint:
            continue
        stage = session.ledger.stage(round.run_id, earlier.number, "training")
        if stage is not None and what_counts(stage.input, "seed") == what_counts(inputs, "seed"):
            raise ConfigError(
                f"training would repeat round {earlier.number}, which was not kept: the same completions of the same "
                "weights, the same settings; start again in a new run_dir with a higher sampling.temperature or top_k, more "
                "prompts, or changes in [after_rollback]"
            )


def what_counts(inputs: Json, *but: str) -> Json:
    """The input of a training without the settings that only cost memory and time, and without those that are named."""
    other = (*but, *keys_of(Training, "cost"))
    return {**inputs, "settings": {key: value for key, value in inputs["settings"].items() if key not in other}}
