"""Reads from the store what `stages.collecting` chooses from: the round's own completions, and the earlier rounds that may be used.

Earlier rounds are read packed, a part at a time, and neither their texts nor their rows are needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial

from loop.errors import ConfigError
from loop.run.answering import store_verdicts
from loop.run.session import Session
from loop.stages.collecting import Chosen, Collected, Earlier, choose, collect, parts_of
from loop.stages.evaluating import grade
from loop.stages.packed import ENTRY, PARTS, Packed
from loop.stages.sampling import seed_of
from policies.data import CompletionFacts, DataPolicy, PastRound, why_not
from store.records import CollectedPart, CompletionVerdict, Round


def select(session: Session, round: Round, policy: DataPolicy) -> Chosen:
    """Which completions are used, and why not the others: the same after every restart. ConfigError if none is left."""
    corpus, config = session.corpus, session.loaded.config
    past = {earlier.number: earlier for earlier in past_rounds(session, round)}
    own = collected_of(session, round.number, _described(session, round).from_base)
    earlier = [earlier_of(session, past[number]) for number in policy.wanted(list(past.values()))]
    if policy.passed_tests:
        for each in earlier:
            parts = map(each.usable.described, range(PARTS))
            candidates = (described.candidate for part in parts for _, described in part)
            _run_tests(session, round, each.usable.round, policy, candidates)
        _run_tests(session, round, round.number, policy, (each.candidate for each in own if each.why is None))
    num_completions = len(own) + sum(each.num_completions for each in earlier)
    seed = seed_of(config.seed, "data", round.number)
    chosen = choose(policy, own, earlier, corpus.test_verdicts, corpus.texts_at, round.run_id, round.number, seed)
    if not chosen.num_used:
        raise ConfigError(
            f"all {num_completions} completions were left out of training (`loopctl samples` says why); "
            "start again in a new run_dir with other prompts, or ask for less in [collect]"
        )
    return chosen


def collected_of(session: Session, number: int, from_base: bool) -> list[Collected]:
    """All completions of a round, from their texts."""
    openings = {prompt.id: prompt.content["opening"] for prompt in session.prompts}
    texts = session.corpus.texts(session.run_id, number)
    return collect(texts, openings, session.loaded.config.collect, number, from_base)


def earlier_of(session: Session, past: PastRound) -> Earlier:
    """What is stored of an earlier round; the first call reads its texts, and stores it."""
    corpus, run_id, number = session.corpus, session.run_id, past.number
    settings = session.loaded.config.collect
    rule = {"version": 1, "min_lines": settings.min_lines, "drop_shortest": settings.drop_shortest}
    parts = corpus.collected(run_id, number, rule)
    if not parts:
        made = parts_of(collected_of(session, number, past.from_base))
        corpus.add_collected(CollectedPart(run_id, number, rule, part, *packed) for part, packed in enumerate(made))
        parts = corpus.collected(run_id, number, rule)
    left_out = sum((Counter(of_part) for _, of_part in parts), Counter[str]())
    num_usable = sum(size for size, _ in parts) // ENTRY.size
    entries = partial(corpus.collected_entries, run_id, number, rule)
    return Earlier(Packed(number, past.from_base, num_usable, entries), left_out)


def past_rounds(session: Session, round: Round) -> list[PastRound]:
    """The rounds whose completions a policy may take: sampled to the end, from the base or weights that led to these.

    Whether the candidate was kept does not matter. What was drawn from weights that were given up since is left alone.
    """
    ledger, heads = session.ledger, set()
    sha256: str | None = round.parent_checkpoint
    while sha256 is not None and sha256 not in heads:
        heads.add(sha256)
        row = ledger.checkpoints.get(sha256)
        sha256 = row.parent if row else None
    return [
        _described(session, earlier)
        for earlier in ledger.rounds(round.run_id)
        if earlier.number < round.number and earlier.stage != "sampling" and earlier.parent_checkpoint in heads
    ]


def _described(session: Session, round: Round) -> PastRound:
    return PastRound(round.number, round.state == "kept", round.parent_checkpoint == session.run.base_checkpoint)


def _run_tests(
    session: Session, round: Round, number: int, policy: DataPolicy, candidates: Iterable[CompletionFacts]
) -> None:
    """Run a round's completions on their prompts' tests, where there are any. What has a verdict is not run again."""
    corpus = session.corpus
    asked = {prompt.id: prompt for prompt in session.prompts}
    wanted = {c.id for c in candidates if c.prompt_id in session.tests and why_not(policy, c, "passed") is None}
    missing = wanted - corpus.test_verdicts(wanted).keys()
    if not missing:
        return
    session.watch.stage(round.number, "grading", f"{len(missing)} completions on their prompts' tests")
    completions = (c for c in corpus.completions(round.run_id, number) if c.id in missing)
    graded = grade(completions, session.tests, asked, "", session.grader)
    verdicts = (
        CompletionVerdict(v.completion_id, v.verdict, v.detail, v.duration_s, v.sandbox)
        for v in graded
        if v.verdict != "harness_error"  # for which `grade` raises
    )
    store_verdicts(session, verdicts, corpus.add_test_results, 0, len(missing))
