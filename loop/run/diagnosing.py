"""Locks and forks in a round: base, head and candidate at every position of the same few texts by the base.

The texts are the base's answers to some of the prompts that are graded, drawn with the settings that training data is
drawn with: the contexts that training works on, without those that only a tail token leads to, and prompts that no
fine-tune has seen. They are written once in a run; each checkpoint follows them once. What is stored is not done again.
The arithmetic is in policies/diagnosis.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import repeat

from loop.engines.base import Forced, SamplingParams
from loop.run.session import Session
from loop.stages.evaluating import params_of
from loop.stages.sampling import request_of, seed_of
from loop.words import round_name
from policies import diagnosis as arithmetic
from policies.diagnosis import Compared, Positions, Who
from store.canonical import sha256_of
from store.records import Json, Probe, ProbeResult, Prompt, Round

TEXTS_AT_ONCE = 32  # sent to the engine in one message
_COLUMNS = ("entropy", "top_token_id", "top_probability", "logprobs", "rest")


def diagnose(session: Session, round: Round, head: str) -> Json:
    """The summary of a round with a candidate, as JSON (policies.diagnosis.Summary); {} where it is switched off."""
    settings = session.loaded.config.diagnosis
    assert round.candidate_checkpoint is not None, round
    checkpoints: dict[Who, str] = {
        "base": session.run.base_checkpoint,
        "head": head,
        "candidate": round.candidate_checkpoint,
    }
    for checkpoint in checkpoints.values():
        measure(session, round, checkpoint)
    if not settings.num_prompts:
        return {}
    records = {who: _records(session, checkpoint) for who, checkpoint in checkpoints.items()}
    positions = {
        who: [Positions(**{name: text[name] for name in _COLUMNS}) for text in texts] for who, texts in records.items()
    }
    sequences = [
        Compared(**{who: texts[index] for who, texts in positions.items()}, num_kept=base["num_kept"])
        for index, base in enumerate(records["base"])
    ]
    summary = arithmetic.summarise(sequences, settings.lock_below_nats, settings.fork_above_nats)
    return {"probe": _probe_id(session), **asdict(summary)}


def measure(session: Session, round: Round, checkpoint: str) -> None:
    """Have a checkpoint follow the probe, unless that is stored. It costs least while a worker serves these weights."""
    settings, corpus = session.loaded.config.diagnosis, session.corpus
    result_id = _result_id(session, checkpoint)
    if not settings.num_prompts or corpus.probes.has_result(result_id):
        return
    base = session.run.base_checkpoint
    if checkpoint != base:
        measure(session, round, base)  # says which tokens are followed
    probe = _probe(session, round)
    followed = [record["at"] for record in _records(session, base)] if checkpoint != base else repeat(None)
    texts = [
        Forced(id=str(index), prompt_token_ids=text["prompt_token_ids"], token_ids=text["token_ids"], at=at)
        for index, (text, at) in enumerate(zip(probe.sequences, followed, strict=False))
    ]
    row = session.ledger.checkpoints.known(checkpoint)
    what = f"locks and forks of {round_name(row.round)}"
    made_from = {  # the texts, too: what two runs have drawn may differ where engines do
        "probe": _asked(session),
        "texts": [text.model_dump(mode="json") for text in texts],
    }
    own = {"id": result_id, "probe_id": probe.id, "round": row.round}
    with session.sharing.record("probe_result", round.number, what, checkpoint, own, **made_from) as is_missing:
        if is_missing:
            session.watch.stage(round.number, "evaluating", f"{what} ({len(texts)} texts)")
            records = _follow(session, checkpoint, texts, is_base=checkpoint == base)
            corpus.probes.add_result(ProbeResult(result_id, probe.id, round.run_id, row.round, checkpoint, records))
    session.safe_point()


def _follow(session: Session, checkpoint: str, texts: Sequence[Forced], is_base: bool) -> list[Json]:
    """What is stored of each text. Which tokens are followed, and how many are kept, only the base says."""
    columns = {*_COLUMNS, "at", "num_kept"} if is_base else {*_COLUMNS}
    prober, top = session.sampler(checkpoint), session.loaded.config.diagnosis.top
    truncation = _drawn(session).model_copy(update={"repetition_penalty": 1.0, "stop": ()})  # says what counts as kept
    records: dict[str, Json] = {}
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        for probed in prober.probe(texts[start : start + TEXTS_AT_ONCE], truncation, top):
            records |= {each.id: each.model_dump(mode="json", include=columns) for each in probed}
    return [records[text.id] for text in texts]


def _probe(session: Session, round: Round) -> Probe:
    probe_id, corpus = _probe_id(session), session.corpus
    if corpus.probes.get(probe_id) is None:
        settings_id = corpus.add_decode_settings(_drawn(session).model_dump(mode="json"))
        what, base = "the texts of locks and forks", session.run.base_checkpoint
        shared = session.sharing.record("probe", round.number, what, base, {"id": probe_id}, asked=_asked(session))
        with shared as is_missing:
            if is_missing:
                _write_probe(session, round, probe_id, settings_id)
    probe = corpus.probes.get(probe_id)
    assert probe is not None
    return probe


def _write_probe(session: Session, round: Round, probe_id: str, settings_id: str) -> None:
    """The base answers the prompts. Stored as a whole: a kill before that costs seconds, and the same is drawn again."""
    base, prompts = session.run.base_checkpoint, _prompts(session)
    session.watch.stage(round.number, "evaluating", f"locks and forks: the base writes {len(prompts)} texts")
    seed = session.loaded.config.seed
    requests = [request_of(prompt, prompt.id, seed_of(seed, "diagnosis", prompt.id)) for prompt in prompts]
    sampler = session.sampler(base)
    written = {text.id: text for batch in sampler.generate(requests, _drawn(session)) for text in batch}
    columns = {"text", "prompt_token_ids", "token_ids"}
    sequences: list[Json] = [
        {"prompt_id": prompt.id, **written[prompt.id].model_dump(mode="json", include=columns)} for prompt in prompts
    ]
    session.corpus.probes.add(Probe(probe_id, round.run_id, base, settings_id, sampler.tokenizer_sha256, sequences))
    session.safe_point()


def _prompts(session: Session) -> list[Prompt]:
    """`num_prompts` of those that the suite that decides is asked with, chosen by hash; only of the split that is opened first."""
    suite = session.decider
    prompts = [suite.prompts[problem.prompt_id] for problem in suite.of_split(session.policy.split)]
    seed = session.loaded.config.seed
    chosen = sorted(prompts, key=lambda prompt: (seed_of(seed, "diagnosis", prompt.id), prompt.id))
    return chosen[: session.loaded.config.diagnosis.num_prompts]


def _drawn(session: Session) -> SamplingParams:
    """How the texts are drawn: as training data is, ended as the suite's answers are."""
    config = session.loaded.config
    drawn = config.sampling.model_dump(include={"temperature", "top_k", "top_p", "repetition_penalty"})
    stop = params_of(session.decider.config).stop
    return SamplingParams(**drawn, max_new_tokens=config.diagnosis.max_new_tokens, stop=stop)


def _asked(session: Session) -> list[object]:
    """All that asks for the probe and for what is recorded of it. Thresholds are applied later and are not part of it."""
    config = session.loaded.config
    prompt_ids = [prompt.id for prompt in _prompts(session)]
    drawn = _drawn(session).model_dump(mode="json")
    return [session.run.base_checkpoint, prompt_ids, drawn, config.seed, config.diagnosis.top]


def _probe_id(session: Session) -> str:
    return sha256_of([session.run_id, *_asked(session)])


def _result_id(session: Session, checkpoint: str) -> str:
    return sha256_of([_probe_id(session), checkpoint])


def _records(session: Session, checkpoint: str) -> list[Json]:
    result = session.corpus.probes.result(_result_id(session, checkpoint))
    assert result is not None, "measured before"
    return result.records
