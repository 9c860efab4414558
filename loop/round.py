"""One round of Simple Self-Distillation, top to bottom: sample (and collect), train, evaluate, decide.

Each stage does only what is still missing, stores it before going on, and ends in one transaction that also moves the
round to the next stage. Whatever line the power goes out after, running the round again continues from there. What a stage
works from is frozen with its first attempt (run/adapting.py).
"""

from __future__ import annotations

from loop.config.section import keys_of
from loop.engines.base import SamplingParams
from loop.errors import LeftTraining
from loop.run.adapting import frozen_input
from loop.run.answering import Answers
from loop.run.attempting import Work, attempt, current_round
from loop.run.choosing import select
from loop.run.comparison import Comparison
from loop.run.competing import candidates_of, compete
from loop.run.session import Session
from loop.run.unfinished import forget_unfinished, unfinished
from loop.stages.sampling import Lineage, plan
from loop.stages.training import Trained, train
from policies.data import DATA_POLICIES
from store.checkpoints import CHECKPOINTS
from store.records import DecisionRow, Json, Round


def run_round(session: Session) -> Round:
    """Begin a round on the tip, or continue the one that is open or failed; returns it decided or failed."""
    round = current_round(session)
    while round.state in WORK_OF:
        session.safe_point(round)
        round = attempt(session, round, frozen_input, WORK_OF[round.state])
        session.index_texts()
    return round


def sampling(session: Session, round: Round, number: int, inputs: Json) -> Round:
    """The tip writes its own training data at T_train. All of it is stored as it came; then it is said what is used."""
    config = session.loaded.config
    prompts = [prompt for prompt in map(session.corpus.prompt, inputs["prompt_ids"]) if prompt is not None]
    assert len(prompts) == len(inputs["prompt_ids"]), "prompts are stored before the first round"
    settings = session.corpus.add_decode_settings(inputs["decoding"])
    lineage = Lineage(round.run_id, round.number, round.parent_checkpoint, None, settings)
    planned = plan(lineage, prompts, config.sampling.num_samples, config.seed)
    params = SamplingParams.model_validate(inputs["decoding"])
    answers = Answers(round.number, "sampling", f"{len(planned)} completions", planned, lineage, params)
    with session.sharing.answers(answers):
        for _ in answers.complete(session):
            pass
    policy = DATA_POLICIES.build(inputs["data"]) if "data" in inputs else config.collect.data  # older stores lack it
    chosen = select(session, round, policy)
    output: Json = {"num_completions": len(planned), "num_used": chosen.num_used}
    if chosen.num_earlier or chosen.earlier_left_out:
        output |= {"num_earlier": chosen.num_earlier, "earlier_left_out": chosen.earlier_left_out}
    return session.finish_stage(round, number, output, next_state="training", selections=chosen.selections())


def training(session: Session, round: Round, number: int, inputs: Json) -> Round:
    """Plain cross-entropy on the selected completions gives the candidate, or several along its way."""
    what = f"{inputs['num_rows']} completions"
    session.watch.stage(round.number, "training", what)
    parent = session.weights(round.parent_checkpoint)
    now = session.loaded.config.training  # what only costs memory and time may change between two attempts
    settings = inputs["settings"] | now.model_dump(include={*keys_of(type(now), "cost")})
    final_dir = session.loaded.run_dir / CHECKPOINTS / f"round-{round.number:04d}"
    kept = unfinished(session, round, inputs)

    def make() -> Trained:
        while True:
            rows = session.corpus.training_rows(round.run_id, round.number)
            trainer = session.engines.trainer(parent, session.is_called_away)
            try:
                return train(rows, parent, settings, trainer, final_dir, kept, session.hasher)
            except LeftTraining:
                session.safe_point()

    made_from = {"rows_sha256": inputs["rows_sha256"], "settings": settings}
    num = settings.get("candidates", 1)  # older stores lack it
    with session.sharing.weights(round.number, what, parent.sha256, final_dir, make, num, **made_from) as trained:
        candidates, output = candidates_of(session, round, parent, trained)
        round = session.finish_stage(round, number, output, next_state="evaluating", candidates=candidates)
    forget_unfinished(session)
    return round


def evaluating(session: Session, round: Round, number: int, inputs: Json) -> Round:
    """Head and candidate: same problems, same decoding settings, same seeds, until it is clear which one is better.

    Of several candidates the best on the first split is compared.
    """
    round, chosen = compete(session, round, inputs)
    comparison = Comparison.of(session, round, inputs | chosen)
    comparison.run()
    return session.finish_stage(round, number, comparison.as_output() | chosen, next_state="deciding")


def deciding(session: Session, round: Round, number: int, inputs: Json) -> Round:
    """The policy decides on the one figure that was named before the run; decision, state and head move together."""
    head, policy = inputs["head"], session.policy
    evidence = Comparison.of(session, round, inputs).evidence()
    decision = policy.decide(evidence)
    need: Json = decision.need or {}
    shown_tip = need.get("head") == "tip"  # which is the head from now on, although the candidate is refused
    row = DecisionRow(
        run_id=round.run_id,
        round=round.number,
        **decision.model_dump(mode="json", exclude={"need"}),
        policy=policy.as_json(),
        evidence=evidence.model_dump(mode="json"),
        head_before=head,
        head_after=inputs["candidate"]
        if decision.verdict == "keep"
        else round.parent_checkpoint
        if shown_tip
        else head,
    )
    why = f"round {round.number} is inconclusive, and decide.unclear is pause; `loopctl resume` continues with the head as it is"
    tip = next((gate for gate in row.gates if gate["type"] == "tip"), None)
    looked = {"shown": shown_tip, "decision": {"gates": [tip]}, "evidence": {"line": inputs["line"]}} if tip else None
    back_to = None if shown_tip else need.get("head")
    hold = why if decision.action == "pause" else None
    return session.ledger.decide(round, row, back_to=back_to, tip_looked_at=looked, hold=hold)


# By the state of a round. Their order is `store.records.STAGES`: each names the next in `next_state`.
WORK_OF: dict[str, Work] = {"sampling": sampling, "training": training, "evaluating": evaluating, "deciding": deciding}
