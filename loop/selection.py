"""What a round's fine-tune sees: the round's own completions and those of earlier rounds, as the data policy wants them.

Memory holds a description of each completion that comes into question, never their texts.
"""

from __future__ import annotations

from collections.abc import Iterable

from loop.errors import ConfigError
from loop.session import Session
from loop.stages.collecting import Chosen, choose, collect
from loop.stages.evaluating import grade
from loop.stages.sampling import seed_of
from policies.data import AnyData, Candidate, PastRound, why_not
from store.records import CompletionVerdict, Round

NUM_RESULTS_AT_ONCE = 32  # how many are stored in one transaction, hence at most run twice after a kill


def select(session: Session, round: Round, policy: AnyData) -> Chosen:
    """Which completions are used, and why not the others. The same after every restart, whenever it is asked.

    ConfigError if none is left.
    """
    corpus, config = session.corpus, session.loaded.config
    openings = {prompt.id: prompt.content["opening"] for prompt in session.prompts}
    past = {one.number: one for one in past_rounds(session, round)}
    present = _described(session, round)
    collected = [
        item
        for number in [*policy.wanted(list(past.values())), round.number]
        for item in collect(
            corpus.texts(round.run_id, number), openings, config.collect, number, past.get(number, present).from_base
        )
    ]
    verdicts = {}
    if policy.passed_tests:
        wanted = (one for one, why in collected if why is None and why_not(policy, one, "passed") is None)
        verdicts = _verdicts(session, round, wanted)
    seed = seed_of(config.seed, "data", round.number)
    chosen = choose(policy, collected, verdicts, corpus.texts_of, round.run_id, round.number, seed)
    if not any(selection.used for selection in chosen.selections):
        raise ConfigError(
            f"all {len(collected)} completions were left out of training (`loopctl samples` says why); "
            "start again in a new run_dir with other prompts, or ask for less in [collect]"
        )
    return chosen


def past_rounds(session: Session, round: Round) -> list[PastRound]:
    """The rounds whose completions a policy may take: sampled to the end, from the base or a head that led to this one.

    Whether the candidate was kept does not matter. What was drawn from heads that were given up since is left alone.
    """
    ledger, heads = session.ledger, set()
    sha256: str | None = round.parent_checkpoint
    while sha256 is not None and sha256 not in heads:
        heads.add(sha256)
        row = ledger.checkpoint(sha256)
        sha256 = row.parent if row else None
    return [
        _described(session, earlier)
        for earlier in ledger.rounds(round.run_id)
        if earlier.number < round.number and earlier.stage != "sampling" and earlier.parent_checkpoint in heads
    ]


def _described(session: Session, round: Round) -> PastRound:
    return PastRound(round.number, round.state == "kept", round.parent_checkpoint == session.run.base_checkpoint)


def _verdicts(session: Session, round: Round, wanted: Iterable[Candidate]) -> dict[str, str]:
    """How completions do on their prompts' tests, where there are any. What is known is not run again."""
    corpus = session.corpus
    asked = {prompt.id: prompt for prompt in session.prompts}
    by_round: dict[int, set[str]] = {}
    for candidate in wanted:
        if candidate.prompt_id in session.tests:
            by_round.setdefault(candidate.round, set()).add(candidate.id)
    found: dict[str, str] = {}
    for number, ids in sorted(by_round.items()):
        found |= corpus.test_verdicts(round.run_id, number)
        unknown = ids - found.keys()
        if not unknown:
            continue
        session.watch.stage(round.number, "grading", f"{len(unknown)} completions on their prompts' tests")
        completions = (one for one in corpus.completions(round.run_id, number) if one.id in unknown)
        waiting: list[CompletionVerdict] = []
        graded = grade(completions, session.tests, asked, "", session.grader)
        for num_graded, said in enumerate(graded, start=1):
            assert said.verdict != "harness_error", "grading raises then"
            waiting.append(
                CompletionVerdict(said.completion_id, said.verdict, said.detail, said.duration_s, said.sandbox)
            )
            if len(waiting) >= NUM_RESULTS_AT_ONCE or num_graded == len(unknown):
                corpus.add_test_results(waiting)
                waiting = []
                session.safe_point()
            session.watch.progress(num_graded, len(unknown))
        found |= corpus.test_verdicts(round.run_id, number)
    return found
