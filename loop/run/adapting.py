"""The settings that a round really uses: the configuration's, changed by what was decided on the present head so far."""

from __future__ import annotations

from loop.config.section import keys_of
from loop.config.settings import Training
from loop.errors import ConfigError
from loop.run.session import Session
from policies.adaptation import Adaptable, adapted, in_words, rollbacks_in_a_row
from store.records import Json, Round

MOST_VERDICTS = 1000


def settings_of(session: Session, round: Round) -> tuple[Adaptable, str | None]:
    """The settings of a round that has begun, and what was changed in them and why, in one line.

    Only decisions on the round's own parent count: whoever moves the head by hand begins anew.
    """
    config = session.loaded.config
    verdicts = session.ledger.verdicts_on(round.run_id, round.parent_checkpoint, MOST_VERDICTS)
    training = config.training
    configured = Adaptable(
        temperature=config.sampling.temperature,
        learning_rate=training.learning_rate,
        min_learning_rate=training.min_learning_rate,
        num_steps=training.num_steps,
        num_epochs=training.num_epochs,
        warmup_steps=training.warmup_steps,
        data=config.collect.data,
    )
    num_rollbacks = rollbacks_in_a_row(verdicts)
    used = adapted(config.after_rollback, num_rollbacks, configured)
    return used, in_words(configured, used, num_rollbacks)


def refuse_a_repetition(session: Session, round: Round, inputs: Json) -> None:
    """ConfigError if a round that was rolled back on this head was trained on the same tokens with the same settings.

    It cannot happen where sampling draws: every round has seeds of its own. It does where nothing is left to be drawn, as
    with top_k = 1 or a temperature near 0; then the run would go in circles for as long as it is let.
    """
    for earlier in session.ledger.rounds(round.run_id):
        if earlier.state != "rolled_back" or earlier.parent_checkpoint != round.parent_checkpoint:
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
