"""Whether the store is what was written into it: every hash, sequence, counter and manifest, recomputed.

It reads one snapshot and repairs nothing. SQLite does not notice rows that are gone with the end of a lost WAL; the
high-water mark, a small file beside the database, does.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from store.canonical import sha256_of
from store.checkpoints import MANIFEST, manifest_sha256, read_manifest, verify
from store.corpus import Corpus, collected_sha256, completion_sha256, num_bytes
from store.db import Database, Row, query, scalar, select, snapshot, stream, unpack
from store.durable import written
from store.errors import DamagedCheckpoint, StoreError
from store.evaluations import verdicts_sha256
from store.events import BEFORE_THE_FIRST, Events, event_sha256
from store.ledger import Ledger, decision_sha256
from store.probes import probe_sha256
from store.records import DECIDED, STAGES, CollectedPart, Completion, Event, Run
from store.selections import selections_sha256

HIGH_WATER = "high_water.json"
MOST_FINDINGS = 50  # listed for each kind; further ones are only counted
_NEXT: dict[str, str] = dict(pairwise(STAGES))
_STATES = {"round_begun": "sampling", "training_undone": "training", "round_failed": "failed"}  # a round's, by event


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was written. `kind` is the check that noticed it."""

    kind: str
    message: str


@dataclass(slots=True)
class Verification:
    """The findings, and how many of each kind were looked at."""

    findings: list[Finding] = field(default_factory=list)
    checked: Counter[str] = field(default_factory=Counter)


def write_high_water(db: Database, run_dir: Path) -> None:
    """Note outside the database how far it has come. Call it now and then, after a commit."""
    with written(run_dir / HIGH_WATER) as file:
        file.write(json.dumps(_mark(db)).encode())


def _mark(db: Database) -> Row:
    last = Events(db).last()
    seq, sha256 = (last.seq, last.sha256) if last else (0, BEFORE_THE_FIRST)
    return {"seq": seq, "sha256": sha256, "arrival": scalar(db, "SELECT coalesce(max(arrival), 0) FROM completions")}


def verify_store(db: Database, run_dir: Path) -> Verification:
    """Check everything; `findings` is empty if all is well. Reads all weights: minutes for large ones."""
    result, noted = Verification(), _noted(run_dir)  # noted before the snapshot: a daemon may be writing both meanwhile
    with snapshot(db):
        for kind, check in (
            ("database", _database(db)),
            ("high water", _high_water(db, noted)),
            ("event", _events(db, result.checked)),
            ("prompt", _addresses(db, result.checked)),
            ("completion", _completions(db, result.checked)),
            ("evaluation", _evaluations(db, result.checked)),
            ("probe", _probes(db, result.checked)),
            ("collected", _collected(db, result.checked)),
            ("round", _rounds(db, result.checked)),
            ("checkpoint", _checkpoints(db, run_dir, result.checked)),
        ):
            _collect(result, kind, check)
    return result


def _collect(result: Verification, kind: str, messages: Iterable[str]) -> None:
    num = 0
    try:
        for num, message in enumerate(messages, start=1):
            if num <= MOST_FINDINGS:
                result.findings.append(Finding(kind, message))
    except (StoreError, ValueError, LookupError, TypeError) as error:  # what lies there can no longer be read
        result.findings.append(Finding(kind, f"the check cannot go on: {' '.join(str(error).split())}"))
    if num > MOST_FINDINGS:
        result.findings.append(Finding(kind, f"{num - MOST_FINDINGS} more of this kind"))


def _database(db: Database) -> Iterator[str]:
    for row in query(db, "PRAGMA integrity_check"):
        if row["integrity_check"] != "ok":
            yield " ".join(row["integrity_check"].split())
    for row in query(db, "PRAGMA foreign_key_check"):
        yield f"{row['table']}: a row (rowid {row['rowid']}) points to no row in {row['parent']}"


def _noted(run_dir: Path) -> str | None:
    path = run_dir / HIGH_WATER
    return path.read_text(encoding="utf-8") if path.exists() else None


def _high_water(db: Database, noted: str | None) -> Iterator[str]:
    if noted is None:
        return
    mark = json.loads(noted)
    now = _mark(db)
    if now["seq"] < mark["seq"]:
        yield f"events after {now['seq']} are lost: there were {mark['seq']}"
    elif mark["seq"] and scalar(db, "SELECT sha256 FROM events WHERE seq = ?", (mark["seq"],)) != mark["sha256"]:
        yield f"event {mark['seq']} is another than there was"
    if now["arrival"] < mark["arrival"]:
        yield f"{mark['arrival'] - now['arrival']} completions are lost: there were {mark['arrival']}"


def _events(db: Database, checked: Counter[str]) -> Iterator[str]:
    seq, previous = 0, BEFORE_THE_FIRST
    for event in Events(db).every(after=-(2**63)):
        seq += 1
        checked["events"] += 1
        if event.seq != seq:
            yield f"events {seq} to {event.seq - 1} are missing"
        if event.previous_sha256 != previous:
            yield f"event {event.seq}: does not follow from the event before it"
        if event.sha256 != event_sha256(event):
            yield f"event {event.seq}: was altered (SHA-256)"
        seq, previous = event.seq, event.sha256


def _addresses(db: Database, checked: Counter[str]) -> Iterator[str]:
    for row in _pages(db, "prompts"):
        checked["prompts"] += 1
        if row["id"] != sha256_of(json.loads(row["content"])):
            yield f"prompt {row['id']}: the content was altered (SHA-256)"
    for row in _pages(db, "decode_settings"):
        checked["decode settings"] += 1
        if row["id"] != sha256_of(json.loads(row["settings"])):
            yield f"decode settings {row['id']}: were altered (SHA-256)"


def _completions(db: Database, checked: Counter[str]) -> Iterator[str]:
    counted: Counter[str] = Counter()
    num_bytes_of: Counter[str] = Counter()
    arrival = 0
    for row in _pages(db, "completions"):
        completion = unpack(Completion, row)
        checked["completions"] += 1
        arrival += 1
        if row["arrival"] != arrival:
            yield f"completions {arrival} to {row['arrival'] - 1} by arrival are missing"
            arrival = row["arrival"]
        if completion.sha256 != completion_sha256(completion):
            yield f"completion {completion.id}: was altered (SHA-256)"
        if completion.evaluation_id is None:
            counted[completion.run_id] += 1
            num_bytes_of[completion.run_id] += num_bytes(completion.text)
    for run in _runs(db):
        for counter, num in (("num_completions", counted[run.id]), ("completion_bytes", num_bytes_of[run.id])):
            if getattr(run, counter) != num:
                yield f"run {run.name}: {counter} is {getattr(run, counter)}, counted {num}"


def _evaluations(db: Database, checked: Counter[str]) -> Iterator[str]:
    corpus = Corpus(db)
    for run in _runs(db):
        for evaluation in corpus.evaluations.all(run.id):
            checked["evaluations"] += 1
            if (evaluation.finished_at is None) != (evaluation.metrics is None):
                yield f"evaluation {evaluation.id}: has metrics and is not finished, or the reverse"
    checked["verdicts"] = scalar(db, "SELECT count(*) FROM verdicts")
    strangers = (
        "SELECT v.evaluation_id, v.task_id, v.sample_index FROM verdicts AS v "
        "JOIN completions AS c ON c.id = v.completion_id WHERE c.evaluation_id IS NOT v.evaluation_id"
    )
    for row in query(db, f"{strangers} LIMIT {MOST_FINDINGS}"):
        yield f"evaluation {row['evaluation_id']}, {row['task_id']}: the verdict is on another evaluation's completion"


def _probes(db: Database, checked: Counter[str]) -> Iterator[str]:
    corpus = Corpus(db)
    for run in _runs(db):
        for probe in corpus.probes.all(run.id):
            checked["probes"] += 1
            if probe.sha256 != probe_sha256(probe):
                yield f"probe {probe.id}: was altered (SHA-256)"
        for result_id in corpus.probes.result_ids(run.id):  # one at a time: each may hold megabytes
            checked["probe results"] += 1
            result = corpus.probes.result(result_id)
            if result is None or result.sha256 != probe_sha256(result):
                yield f"probe result {result_id}: was altered (SHA-256)"


def _collected(db: Database, checked: Counter[str]) -> Iterator[str]:
    for row in _pages(db, "collected"):
        part = unpack(CollectedPart, row)
        checked["collected parts"] += 1
        if part.sha256 != collected_sha256(part):
            yield f"round {part.round}: what was collected of it was altered (SHA-256 of part {part.part})"


@dataclass(slots=True)
class _Story:
    """What the events of one run say that the other tables must say too. Round 0 stands for the run itself."""

    states: dict[int, str] = field(default_factory=dict)
    hashes: dict[int, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    head: tuple[int, str] = (0, "")
    tip: str = ""
    line: tuple[int, int] = (0, 0)  # its depth, and how many lines failed
    candidates: dict[int, str] = field(default_factory=dict)

    def read(self, event: Event) -> None:
        number, data = event.round or 0, event.data
        hashes, of_run = self.hashes[number], self.hashes[0]
        if event.kind in _STATES:
            self.states[number] = _STATES[event.kind]
        match event.kind:
            case "run_created":
                self.head, self.tip = (0, data["base"]), data["base"]
                hashes["configuration"] = sha256_of(data["config"])
            case "run_state":
                hashes["state"] = sha256_of([data["state"], data["reason"]])
            case "head_moved":
                self.head, self.tip = (number, data["head_after"]), data["head_after"]
                self._end_line(failed=True)
            case "attempt_begun":
                hashes[f"{event.stage} input"] = data["input_sha256"]
            case "stage_finished":
                self.states[number] = _NEXT[event.stage or ""]
                self.candidates[number] = data.get("candidate") or self.candidates.get(number, "")
                hashes |= {what.removesuffix("_sha256"): data[what] for what in data if what.endswith("_sha256")}
                hashes[f"{event.stage} output"] = hashes.pop("output")
            case "training_undone":
                self.candidates[number] = ""
                for what in ("training output", "candidate", "evaluating input", "evaluating output", "deciding input"):
                    hashes.pop(what, None)
            case "candidate_chosen":
                self.candidates[number] = data["candidate"]
            case "round_resumed":
                self.states[number] = event.stage or ""
            case "round_decided":
                keep, carry = data["verdict"] == "keep", data["action"] == "carry"
                self.states[number] = "kept" if keep else "carried" if carry else "rolled_back"
                self.head = (number, data["head_after"]) if keep else self.head
                self.tip = self.candidates[number] if carry else self.head[1]
                if carry:
                    self.line = (self.line[0] + 1, self.line[1])
                else:
                    self._end_line(failed=not keep)
                hashes["decision"] = data["decision_sha256"]
            case "tip_looked_at" if data["shown"]:
                self.states[number], self.head = "kept", (number, self.tip)
                self._end_line(failed=False)
            case "evaluation_reopened":
                for what in ("evaluation", "verdicts of evaluation"):
                    of_run.pop(f"{what} {data['evaluation']}", None)
            case "evaluation_finished":
                of_run[f"evaluation {data['evaluation']}"] = sha256_of(data["metrics"])
                of_run[f"verdicts of evaluation {data['evaluation']}"] = data["verdicts_sha256"]
            case "probe_stored" | "probe_result_stored":
                of_run[f"{event.kind.removesuffix('_stored').replace('_', ' ')} {data['id']}"] = data["sha256"]

    def _end_line(self, *, failed: bool) -> None:
        depth, num_failed = self.line
        self.line = (0, num_failed + (failed and depth > 0))


def _rounds(db: Database, checked: Counter[str]) -> Iterator[str]:
    ledger, corpus = Ledger(db), Corpus(db)
    stories: dict[str, _Story] = defaultdict(_Story)
    for event in Events(db).every():
        stories[event.run_id].read(event)
    for run in _runs(db):
        story = stories[run.id]
        if (run.head_round, run.head_checkpoint) != story.head:
            yield f"run {run.name}: the head is round {run.head_round}, which does not follow from the decisions"
        if (run.tip_checkpoint, run.depth, run.num_failed_lines) != (story.tip, *story.line):
            yield f"run {run.name}: the tip is round {run.tip_round}, which does not follow from the decisions"
        actual = {"configuration": sha256_of(run.config)}
        if (run.state, run.reason) != ("idle", None) or "state" in story.hashes[0]:
            actual["state"] = sha256_of([run.state, run.reason])
        for evaluation in corpus.evaluations.all(run.id):
            if evaluation.metrics is not None:
                verdicts = corpus.evaluations.verdicts(evaluation.id)
                actual[f"evaluation {evaluation.id}"] = sha256_of(evaluation.metrics)
                actual[f"verdicts of evaluation {evaluation.id}"] = verdicts_sha256(verdicts)
        actual |= corpus.probes.hashes(run.id)
        yield from _differences(f"run {run.name}", story.hashes[0], actual)
        rounds = ledger.rounds(run.id)
        counted = Counter(round.state for round in rounds)
        for state in (*DECIDED, "failed"):
            if getattr(run, f"num_{state}") != counted[state]:
                yield f"run {run.name}: num_{state} is {getattr(run, f'num_{state}')}, counted {counted[state]}"
        for round in rounds:
            checked["rounds"] += 1
            if story.states.pop(round.number, None) != round.state:
                yield f"round {round.number}: is {round.state}, which does not follow from the events"
            if story.candidates.get(round.number, "") != (round.candidate_checkpoint or ""):
                yield f"round {round.number}: its candidate does not follow from the events"
            expected = story.hashes[round.number]
            actual = {}
            for stage in ledger.stages(run.id, round.number):
                actual[f"{stage.name} input"] = sha256_of(stage.input)
                if stage.output is not None and stage.name != "deciding":  # that one repeats the decision
                    actual[f"{stage.name} output"] = sha256_of(stage.output)
            if "selections" in expected:
                actual["selections"] = selections_sha256(corpus.selections(run.id, round.number))
            if decision := ledger.decision(run.id, round.number):
                checked["decisions"] += 1
                actual["decision"] = decision_sha256(decision)
            yield from _differences(f"round {round.number}", expected, actual)
        for number in story.states:
            yield f"round {number}: is missing"


def _differences(whose: str, expected: dict[str, str], actual: dict[str, str]) -> Iterator[str]:
    for what in sorted(expected.keys() | actual.keys()):
        if expected.get(what) != actual.get(what):
            yield f"{whose}: the {what} is missing, altered, or in no event"


def _checkpoints(db: Database, run_dir: Path, checked: Counter[str]) -> Iterator[str]:
    ledger = Ledger(db)
    for run in _runs(db):
        for checkpoint in ledger.checkpoints.all(run.id):
            checked["checkpoints"] += 1
            if manifest_sha256(checkpoint.manifest) != checkpoint.sha256:
                yield f"checkpoint {checkpoint.sha256}: the manifest was altered (SHA-256)"
            elif checkpoint.state == "present":
                directory = run_dir / checkpoint.path
                try:
                    verify(directory, checkpoint.manifest)
                    if checkpoint.manifest["whole_directory"] and read_manifest(directory) != checkpoint.manifest:
                        yield f"{directory / MANIFEST}: is another than the store's"
                except DamagedCheckpoint as error:
                    yield str(error)
                except OSError as error:
                    yield f"{error.filename}: cannot be checked: {error.strerror}"


def _runs(db: Database) -> list[Run]:
    return select(db, Run, "SELECT * FROM runs")


def _pages(db: Database, table: str) -> Iterator[Row]:
    sql = f"SELECT rowid AS row_number, * FROM {table} WHERE rowid > :row_number ORDER BY rowid"
    return stream(db, sql, {"row_number": -(2**63)})
