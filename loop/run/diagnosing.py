"""Locks and forks in a round: base, head and candidate at every position of the same few texts by the base.

The texts are the base's answers to some of the prompts that are graded, drawn with the settings that training data is
drawn with: the contexts that training works on, without those that only a tail token leads to, and prompts that no
fine-tune has seen. They are written once in a run; each checkpoint follows them once. What is stored is not done again.
The arithmetic is in policies/diagnosis.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from loop.engines.base import Forced, Probed, Request, SamplingParams
from loop.run.evaluation import of_split
from loop.run.session import Session
from loop.run.sharing import turn
from loop.stages.evaluating import params_of
from loop.stages.sampling import seed_of
from policies import diagnosis as arithmetic
from policies.diagnosis import Compared, Positions, Who
from store.canonical import sha256_of
from store.records import Json, Probe, ProbeResult, Prompt, Round

TEXTS_AT_ONCE = 32  # sent to the engine in one message
_COLUMNS = ("entropy", "top_token_id", "top_probability", "logprobs", "rest")


def diagnose(session: Session, round: Round) -> Json:
    """The summary of a round with a candidate, as JSON (policies.diagnosis.Summary); {} where it is switched off.

    Measures what is still missing, and nothing else.
    """
    settings = session.loaded.config.diagnosis
    checkpoints = _checkpoints(session, round)
    for checkpoint in checkpoints.values():
        measure(session, round, checkpoint)
    if not settings.num_prompts:
        return {}
    found = {who: _result(session, checkpoint).records for who, checkpoint in checkpoints.items()}
    sequences = [
        Compared(**{who: _positions(records[index]) for who, records in found.items()}, num_kept=base["num_kept"])
        for index, base in enumerate(found["base"])
    ]
    summary = arithmetic.summarise(sequences, settings.lock_below_nats, settings.fork_above_nats)
    return {"probe": _probe_id(session), **asdict(summary)}


def signals(summary: Json) -> dict[str, dict[str, float]]:
    """What a decision may look at, by flat names, for candidate, head and base; {} for the summary {}.

    lock_tail_mass, lock_top_probability, fork_entropy and entropy (over all positions) of each; kl_to_head, kl_to_base and
    lock_top_changed of the candidate. A name is left out where the texts have no lock or no fork.
    """
    return arithmetic.signals(summary_of(summary)) if summary else {}


def summary_of(summary: Json) -> arithmetic.Summary:
    """What `diagnose` returned, as the arithmetic has it."""
    return arithmetic.summary_of(summary)


def measure(session: Session, round: Round, checkpoint: str) -> None:
    """Have a checkpoint follow the probe, unless that is stored. It costs least while a worker serves these weights."""
    settings, corpus = session.loaded.config.diagnosis, session.corpus
    result_id = _result_id(session, checkpoint)
    if not settings.num_prompts or corpus.probes.has_result(result_id):
        return
    base = session.run.base_checkpoint
    if checkpoint != base:
        measure(session, round, base)  # says which tokens are followed
    probe = corpus.probes.get(_probe_id(session)) or _shared_probe(session, round)
    at: list[Any] = [None] * len(probe.sequences)
    if checkpoint != base:
        at = [record["at"] for record in _result(session, base).records]
    texts = [
        Forced(id=str(index), prompt_token_ids=one["prompt_token_ids"], token_ids=one["token_ids"], at=tokens)
        for index, (one, tokens) in enumerate(zip(probe.sequences, at, strict=True))
    ]
    row = session.ledger.checkpoints.get(checkpoint)
    assert row is not None, checkpoint
    who = f"round {row.round}" if row.round else "the base"
    what = f"locks and forks of {who}"
    followed = [
        (one["prompt_token_ids"], one["token_ids"], tokens) for one, tokens in zip(probe.sequences, at, strict=True)
    ]
    made_from = {"probe": _inputs(session), "texts": followed}  # what two runs have drawn may differ where engines do
    with turn(session, round.number, "evaluating", what, checkpoint, **made_from) as ours:
        if not ours.take_probe_result(result_id, probe.id, row.round):
            session.watch.stage(round.number, "evaluating", f"{what} ({len(texts)} texts)")
            prober = session.prober(checkpoint)
            records: dict[int, Json] = {}
            for start in range(0, len(texts), TEXTS_AT_ONCE):
                batch = texts[start : start + TEXTS_AT_ONCE]
                for probed in prober.probe(batch, _truncation(session), settings.top):
                    records |= {int(one.id): _record(one, checkpoint == base) for one in probed}
            corpus.probes.add_result(
                ProbeResult(
                    id=result_id,
                    probe_id=probe.id,
                    run_id=round.run_id,
                    round=row.round,
                    checkpoint=checkpoint,
                    records=[records[index] for index in range(len(texts))],
                )
            )
            ours.done(probe_result=result_id)
    session.safe_point()


def _shared_probe(session: Session, round: Round) -> Probe:
    base, what = session.run.base_checkpoint, "the texts of locks and forks"
    with turn(session, round.number, "evaluating", what, base, texts=_inputs(session)) as ours:
        session.corpus.add_decode_settings(_drawn(session).model_dump(mode="json"))
        if not ours.take_probe(_probe_id(session)):
            _write_probe(session, round)
            ours.done(probe=_probe_id(session))
    probe = session.corpus.probes.get(_probe_id(session))
    assert probe is not None
    return probe


def _inputs(session: Session) -> Json:
    """All that the texts depend on, and `top`, on which their records depend."""
    return {
        "base": session.run.base_checkpoint,
        "prompt_ids": [prompt.id for prompt in _prompts(session)],
        "drawn": _drawn(session).model_dump(mode="json"),
        "truncation": _truncation(session).model_dump(mode="json"),
        "seed": session.loaded.config.seed,
        "top": session.loaded.config.diagnosis.top,
    }


def _write_probe(session: Session, round: Round) -> Probe:
    """The base answers the prompts. Stored as a whole: a kill before that costs seconds, and the same is drawn again."""
    config, base = session.loaded.config, session.run.base_checkpoint
    asked = {prompt.id: prompt for prompt in _prompts(session)}
    session.watch.stage(round.number, "evaluating", f"locks and forks: the base writes {len(asked)} texts")
    requests = [
        Request(
            id=prompt.id,
            messages=tuple(prompt.content["messages"]),
            prefill=prompt.content["prefill"],
            seed=seed_of(config.seed, "diagnosis", prompt.id),
        )
        for prompt in asked.values()
    ]
    sampler = session.sampler(base)
    written = {one.id: one for batch in sampler.generate(requests, _drawn(session)) for one in batch}
    probe = Probe(
        id=_probe_id(session),
        run_id=round.run_id,
        checkpoint=base,
        decode_settings_id=session.corpus.add_decode_settings(_drawn(session).model_dump(mode="json")),
        tokenizer_sha256=sampler.tokenizer_sha256,
        sequences=[
            {
                "prompt_id": prompt_id,
                "text": written[prompt_id].text,
                "prompt_token_ids": list(written[prompt_id].prompt_token_ids),
                "token_ids": list(written[prompt_id].token_ids),
            }
            for prompt_id in asked
        ],
    )
    session.corpus.probes.add(probe)
    session.safe_point()
    return probe


def _prompts(session: Session) -> list[Prompt]:
    """`num_prompts` of those that the suite that decides is asked with, chosen by hash; only of the split that is opened first."""
    suite = session.decider
    prompts = [suite.prompts[one.prompt_id] for one in of_split(session, suite, session.policy.split, 0).problems]
    seed = session.loaded.config.seed
    chosen = sorted(prompts, key=lambda prompt: (seed_of(seed, "diagnosis", prompt.id), prompt.id))
    return chosen[: session.loaded.config.diagnosis.num_prompts]


def _drawn(session: Session) -> SamplingParams:
    """How the texts are drawn: as training data is, ended as the suite's answers are."""
    suite = params_of(session.decider.config)
    sampling = session.loaded.config.sampling
    return SamplingParams(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        repetition_penalty=sampling.repetition_penalty,
        max_new_tokens=session.loaded.config.diagnosis.max_new_tokens,
        stop=suite.stop,
    )


def _truncation(session: Session) -> SamplingParams:
    """What training data is truncated with; it says which of the base's tokens count as kept."""
    return _drawn(session).model_copy(update={"repetition_penalty": 1.0, "stop": ()})


def _probe_id(session: Session) -> str:
    """All that asks for the probe and for what is recorded of it. Thresholds are applied later and are not part of it."""
    return sha256_of(
        [
            session.run_id,
            session.run.base_checkpoint,
            [prompt.id for prompt in _prompts(session)],
            _drawn(session).model_dump(mode="json"),
            session.loaded.config.seed,
            session.loaded.config.diagnosis.top,
        ]
    )


def _result_id(session: Session, checkpoint: str) -> str:
    return sha256_of([_probe_id(session), checkpoint])


def _result(session: Session, checkpoint: str) -> ProbeResult:
    found = session.corpus.probes.result(_result_id(session, checkpoint))
    assert found is not None, "measured before"
    return found


def _checkpoints(session: Session, round: Round) -> dict[Who, str]:
    assert round.candidate_checkpoint is not None, round
    return {
        "base": session.run.base_checkpoint,
        "head": round.parent_checkpoint,
        "candidate": round.candidate_checkpoint,
    }


def _record(probed: Probed, is_base: bool) -> Json:
    """What is stored of one text. Which tokens are followed, and how many are kept, only the base says."""
    columns = (*_COLUMNS, "at", "num_kept") if is_base else _COLUMNS
    found = probed.model_dump(mode="json")
    return {name: found[name] for name in columns}


def _positions(record: Mapping[str, Any]) -> Positions:
    return Positions(**{name: record[name] for name in _COLUMNS})
