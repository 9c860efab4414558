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
from store.garbage import best_round
from store.records import Json, Round

MOST_VERDICTS = 1000


def frozen_input(session: Session, round: Round) -> Json:
    """The input of the stage that the round is at. ConfigError for a training that would repeat one that was rolled back."""
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
            sides = {"head": parent, "candidate": round.candidate_checkpoint}
            return sides | ({"best": best} if (best := best_so_far(session)) else {})
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


def settings_of(session: Session, round: Round) -> tuple[Adaptable, str | None]:
    """The settings of a round that has begun, and what was changed in them and why, in one line.

    Only decisions on the round's own parent count: whoever moves the head by hand begins anew.
    """
    config = session.loaded.config
    training = config.training.model_dump(include={field.name for field in fields(Adaptable)})
    configured = Adaptable(temperature=config.sampling.temperature, data=config.collect.data, **training)
    verdicts = session.ledger.verdicts_on(round.run_id, round.parent_checkpoint, MOST_VERDICTS)
    num_rollbacks = rollbacks_in_a_row(verdicts)
    used = adapted(config.after_rollback, num_rollbacks, configured)
    return used, in_words(configured, used, num_rollbacks)


def refuse_a_repetition(session: Session, round: Round, inputs: Json) -> None:
    """ConfigError if a round that was rolled back on this head was trained on the same tokens with the same settings.

    It cannot happen where sampling draws: every round has seeds of its own. It does where nothing is left to be drawn, as
    with top_k = 1 or a temperature near 0; then the run would go in circles for as long as it is let.
    """
    for earlier in session.ledger.rounds(round.run_id):
        if (earlier.state, earlier.parent_checkpoint) != ("rolled_back", round.parent_checkpoint):
            continue
        stage = session.ledger.stage(round.run_id, earlier.number, "training")
        if stage is not None and _what_counts(stage.input) == _what_counts(inputs):
            raise ConfigError(
                f"training would repeat round {earlier.number}, which was rolled back: the same completions of the same "
                "head, the same settings; start again in a new run_dir with a higher sampling.temperature or top_k, more "
                "prompts, or changes in [after_rollback]"
            )


def _what_counts(inputs: Json) -> Json:
    """All but the seed and what only costs memory and time."""
    other = ("seed", *keys_of(Training, "cost"))
    return {**inputs, "settings": {key: value for key, value in inputs["settings"].items() if key not in other}}
