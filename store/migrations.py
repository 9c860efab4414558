"""The schema as a numbered, append-only list of migrations. A released migration is never edited; add another.

To add a column to a table, say completions: a migration here, a field in records.py, and whoever writes or reads it
(corpus.py: `_row` and `_covered` name the fields by hand and in order, and the hashes of old rows must stay). Before that, pack a store of the present schema into tests/golden: every old store must open.

The comment beside each column and at the top of each table stays in SQLite's own schema; docs/schema.md is made from
it (schema_page.py). Keep one column to a line. In ALTER TABLE the comment is written `/* -- What it holds. */`; a
table whose definition ends with a line such as PRIMARY KEY is made anew instead, as in _HOLDS, or its comments mix.

sqlite-utils runs these scripts, but not as its own `Migrations`: those keep their record in another table than the one
by which earlier versions know a store that is too new for them, and a reader would have to import them to look.
"""

from __future__ import annotations

from typing import NamedTuple

_FIRST_APPEND_ONLY = (
    "events", "prompts", "decode_settings", "completions", "selections", "suites", "problems", "decisions",
)  # fmt: skip
_PROBE_TABLES = ("probes", "probe_results")
_COLLECTED_TABLES = ("collected",)
_EARLIER_TABLES = ("earlier_selections",)
APPEND_ONLY = (*_FIRST_APPEND_ONLY, *_PROBE_TABLES, *_COLLECTED_TABLES, *_EARLIER_TABLES)
FULL_TEXT = "completions_fts"  # with tables of its own behind it, whose names begin so


class Migration(NamedTuple):
    """One step from one schema to the next. All that a store lacks are applied in one transaction."""

    number: int
    name: str
    sql: str


_TABLES = """
CREATE TABLE schema_migrations ( -- Which migrations this store has had.
    number INTEGER PRIMARY KEY, -- Its place in the list.
    name TEXT NOT NULL, -- What it is called.
    applied_at TEXT NOT NULL -- When it was applied (RFC 3339, UTC).
) STRICT;

CREATE TABLE runs ( -- A run: one configuration, one base, and rounds that move the head. Counters let status be instant.
    id TEXT PRIMARY KEY, -- Hash of name, configuration hash and seed.
    name TEXT NOT NULL UNIQUE, -- What reports call it.
    config_sha256 TEXT NOT NULL, -- Hash of the resolved configuration.
    config TEXT NOT NULL CHECK (json_valid(config)), -- The resolved configuration, as JSON.
    seed INTEGER NOT NULL, -- Every random draw of the run derives from it.
    state TEXT NOT NULL CHECK (state IN ('running', 'paused', 'idle', 'stopped', 'failed')), -- What the run is doing.
    reason TEXT, -- Why it is in that state, in words.
    created_at TEXT NOT NULL, -- When it was created (RFC 3339, UTC).
    base_checkpoint TEXT NOT NULL REFERENCES checkpoints (sha256) DEFERRABLE INITIALLY DEFERRED, -- Where it started.
    head_checkpoint TEXT NOT NULL REFERENCES checkpoints (sha256) DEFERRABLE INITIALLY DEFERRED, -- What is sampled next.
    head_round INTEGER NOT NULL CHECK (head_round >= 0), -- The round that made the head; 0 is the base.
    num_completions INTEGER NOT NULL CHECK (num_completions >= 0), -- Completions in the training corpus.
    completion_bytes INTEGER NOT NULL CHECK (completion_bytes >= 0), -- UTF-8 bytes of their stored texts.
    num_kept INTEGER NOT NULL CHECK (num_kept >= 0), -- Rounds that were kept.
    num_rolled_back INTEGER NOT NULL CHECK (num_rolled_back >= 0), -- Rounds that were rolled back.
    num_failed INTEGER NOT NULL CHECK (num_failed >= 0) -- Rounds that are failed now; a resumed one no longer counts.
) STRICT;

CREATE TABLE checkpoints ( -- A directory of weights, known by the hash of its manifest.
    sha256 TEXT PRIMARY KEY, -- Hash of the manifest, hence of every file.
    run_id TEXT NOT NULL REFERENCES runs (id) DEFERRABLE INITIALLY DEFERRED, -- The run that made or named it.
    round INTEGER NOT NULL CHECK (round >= 0), -- The round that made it; 0 is the base.
    kind TEXT NOT NULL CHECK (kind IN ('full', 'adapter')), -- All weights, or an adapter over others.
    path TEXT NOT NULL, -- Relative to the run directory, or absolute for a base outside it.
    parent TEXT REFERENCES checkpoints (sha256), -- The checkpoint that it was trained from.
    base TEXT REFERENCES checkpoints (sha256), -- The full weights that an adapter belongs to.
    size_bytes INTEGER NOT NULL CHECK (size_bytes >= 0), -- Of all its files.
    manifest TEXT NOT NULL CHECK (json_valid(manifest)), -- Size and SHA-256 of each file, as JSON.
    state TEXT NOT NULL CHECK (state IN ('present', 'quarantined', 'collected')), -- Whether it can be loaded.
    pinned INTEGER NOT NULL CHECK (pinned IN (0, 1)), -- 1 if garbage collection must leave it alone.
    created_at TEXT NOT NULL, -- When it was recorded (RFC 3339, UTC).
    origin TEXT NOT NULL CHECK (json_valid(origin)) -- Where it came from: source and revision, or training result.
) STRICT;

CREATE TABLE rounds ( -- A round: sample, train, evaluate, decide.
    run_id TEXT NOT NULL REFERENCES runs (id), -- The run.
    number INTEGER NOT NULL CHECK (number >= 1), -- Counts from 1 without gaps.
    state TEXT NOT NULL CHECK (state IN ('sampling', 'training', 'evaluating', 'deciding',
        'kept', 'rolled_back', 'failed', 'paused')), -- Where it is; moves by compare-and-swap only.
    stage TEXT NOT NULL CHECK (stage IN ('sampling', 'training', 'evaluating', 'deciding')), -- Where to go on.
    parent_checkpoint TEXT NOT NULL REFERENCES checkpoints (sha256), -- The head when it began.
    candidate_checkpoint TEXT REFERENCES checkpoints (sha256), -- What its fine-tune made.
    started_at TEXT NOT NULL, -- When it began (RFC 3339, UTC).
    finished_at TEXT, -- When it was kept, rolled back or failed.
    error TEXT, -- Why it failed.
    PRIMARY KEY (run_id, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE stages ( -- A stage of a round: done once, never done again.
    run_id TEXT NOT NULL, -- The run.
    round INTEGER NOT NULL, -- The round.
    name TEXT NOT NULL CHECK (name IN ('sampling', 'training', 'evaluating', 'deciding')), -- Which stage.
    input TEXT NOT NULL CHECK (json_valid(input)), -- Frozen by the first attempt, as JSON.
    output TEXT CHECK (output IS NULL OR json_valid(output)), -- What came out, as JSON; NULL until it is done.
    started_at TEXT NOT NULL, -- When the first attempt began (RFC 3339, UTC).
    finished_at TEXT, -- When it was done.
    PRIMARY KEY (run_id, round, name),
    FOREIGN KEY (run_id, round) REFERENCES rounds (run_id, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE attempts ( -- One try at a stage. With neither finished_at nor error, the process vanished.
    run_id TEXT NOT NULL, -- The run.
    round INTEGER NOT NULL, -- The round.
    stage TEXT NOT NULL, -- The stage.
    attempt INTEGER NOT NULL CHECK (attempt >= 1), -- Counts from 1 within the stage.
    started_at TEXT NOT NULL, -- When it began (RFC 3339, UTC).
    finished_at TEXT, -- When it succeeded or failed.
    error TEXT, -- Why it failed.
    PRIMARY KEY (run_id, round, stage, attempt),
    FOREIGN KEY (run_id, round, stage) REFERENCES stages (run_id, round, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE events ( -- The history: append-only, without gaps, each line covering the one before it.
    seq INTEGER PRIMARY KEY, -- Counts from 1 without gaps.
    at TEXT NOT NULL, -- When (RFC 3339, UTC).
    run_id TEXT NOT NULL REFERENCES runs (id), -- The run.
    kind TEXT NOT NULL, -- What happened.
    round INTEGER, -- In which round.
    stage TEXT, -- In which stage.
    data TEXT NOT NULL CHECK (json_valid(data)), -- The particulars, as JSON.
    previous_sha256 TEXT NOT NULL, -- The hash of the event before it; 64 zeros for the first.
    sha256 TEXT NOT NULL -- Hash of the canonical JSON of all other columns.
) STRICT;
CREATE INDEX events_of_round ON events (run_id, round, seq);

CREATE TABLE prompts ( -- What a model is asked.
    id TEXT PRIMARY KEY, -- Hash of content.
    source TEXT NOT NULL, -- Where it was first taken from.
    name TEXT NOT NULL, -- Its name there.
    statement TEXT NOT NULL, -- The task in words.
    content TEXT NOT NULL CHECK (json_valid(content)) -- Messages and prefill, as JSON.
) STRICT;
CREATE INDEX prompts_by_name ON prompts (name);

CREATE TABLE decode_settings ( -- A way of drawing tokens.
    id TEXT PRIMARY KEY, -- Hash of settings.
    settings TEXT NOT NULL CHECK (json_valid(settings)) -- Temperature, top_k, top_p and so on, as JSON.
) STRICT;

CREATE TABLE suites ( -- A yardstick: problems, prompt format and splits under one hash.
    sha256 TEXT PRIMARY KEY, -- Hash of all that it fixes.
    name TEXT NOT NULL, -- What reports call it.
    source TEXT NOT NULL, -- The file or built-in name that it was read from.
    prompt_format TEXT NOT NULL, -- How its problems are asked.
    num_problems INTEGER NOT NULL CHECK (num_problems >= 0) -- How many it has.
) STRICT;

CREATE TABLE problems ( -- A problem of a suite.
    suite_sha256 TEXT NOT NULL REFERENCES suites (sha256), -- The suite.
    task_id TEXT NOT NULL, -- Its name in the suite.
    position INTEGER NOT NULL, -- Its place in the suite's file.
    split TEXT NOT NULL, -- The part of the suite that it belongs to.
    difficulty TEXT, -- As the suite's file has it.
    prompt_id TEXT NOT NULL REFERENCES prompts (id), -- How it is asked.
    payload TEXT NOT NULL CHECK (json_valid(payload)), -- The problem as its file has it, as JSON.
    sha256 TEXT NOT NULL, -- Hash of the problem.
    PRIMARY KEY (suite_sha256, task_id)
) STRICT;

CREATE TABLE evaluations ( -- One checkpoint on one suite under one way of decoding.
    id TEXT PRIMARY KEY, -- Hash of what it fixes.
    run_id TEXT NOT NULL REFERENCES runs (id), -- The run.
    round INTEGER NOT NULL CHECK (round >= 0), -- The round where it was first needed.
    checkpoint TEXT NOT NULL REFERENCES checkpoints (sha256), -- What was evaluated.
    suite_sha256 TEXT NOT NULL REFERENCES suites (sha256), -- On what.
    suite_name TEXT NOT NULL, -- What the configuration called it.
    decode_settings_id TEXT NOT NULL REFERENCES decode_settings (id), -- How tokens were drawn.
    num_samples INTEGER NOT NULL CHECK (num_samples >= 1), -- Completions per problem.
    seed INTEGER NOT NULL, -- Its draws derive from it.
    split TEXT NOT NULL, -- The one split that was evaluated, or all of them.
    created_at TEXT NOT NULL, -- When it was begun (RFC 3339, UTC).
    finished_at TEXT, -- When the last verdict was in.
    metrics TEXT CHECK (metrics IS NULL OR json_valid(metrics)) -- pass@k and the rest, as JSON; NULL until it is finished.
) STRICT;
CREATE INDEX evaluations_of_checkpoint ON evaluations (run_id, checkpoint);

CREATE TABLE completions ( -- Every sampled text with its lineage: append-only. The corpus is where evaluation_id is NULL.
    arrival INTEGER PRIMARY KEY, -- Order of arrival.
    id TEXT NOT NULL UNIQUE, -- Hash of where it belongs, so that none is stored twice.
    run_id TEXT NOT NULL REFERENCES runs (id), -- The run.
    round INTEGER NOT NULL CHECK (round >= (evaluation_id IS NULL)), -- The round that asked for it.
    evaluation_id TEXT REFERENCES evaluations (id), -- The evaluation that asked for it; NULL in the training corpus.
    checkpoint TEXT NOT NULL REFERENCES checkpoints (sha256), -- The weights that wrote it.
    prompt_id TEXT NOT NULL REFERENCES prompts (id), -- What was asked.
    sample_index INTEGER NOT NULL CHECK (sample_index >= 0), -- Which of the prompt's samples, from 0.
    decode_settings_id TEXT NOT NULL REFERENCES decode_settings (id), -- How its tokens were drawn.
    seed INTEGER NOT NULL, -- What its draws were seeded with.
    num_tokens INTEGER NOT NULL CHECK (num_tokens >= 0), -- Tokens drawn.
    num_prompt_tokens INTEGER NOT NULL CHECK (num_prompt_tokens >= 0), -- Tokens in the prompt.
    finish_reason TEXT NOT NULL CHECK (finish_reason IN ('eos', 'stop', 'length')), -- Why it ended.
    logprob_sum REAL, -- Log-probability of the drawn tokens, in nats, where the engine gives it.
    created_at TEXT NOT NULL, -- When it was stored (RFC 3339, UTC).
    sha256 TEXT NOT NULL, -- Hash of content and lineage: all columns but arrival and created_at.
    tokenizer_sha256 TEXT NOT NULL, -- Hash of the tokenizer and chat template.
    text TEXT NOT NULL, -- What was written. NUL and lone surrogates appear as U+241B and four hex digits.
    token_ids TEXT NOT NULL CHECK (json_valid(token_ids)), -- The tokens drawn, as JSON.
    prompt_token_ids TEXT NOT NULL CHECK (json_valid(prompt_token_ids)) -- The prompt's tokens, as JSON.
) STRICT;
CREATE INDEX completions_corpus ON completions (run_id, round, arrival) WHERE evaluation_id IS NULL;
CREATE INDEX completions_of_evaluation ON completions (evaluation_id, arrival) WHERE evaluation_id IS NOT NULL;
CREATE INDEX completions_of_prompt ON completions (prompt_id, arrival) WHERE evaluation_id IS NULL;

CREATE TABLE selections ( -- Which completions a round's fine-tune saw, in which order, and why the others were left out.
    run_id TEXT NOT NULL, -- The run.
    round INTEGER NOT NULL, -- The round.
    position INTEGER NOT NULL, -- Its place in the round's list.
    completion_id TEXT NOT NULL REFERENCES completions (id), -- The completion.
    used INTEGER NOT NULL CHECK (used IN (0, 1)), -- 1 if the fine-tune saw it.
    reason TEXT, -- Why not, if not.
    PRIMARY KEY (run_id, round, completion_id),
    FOREIGN KEY (run_id, round) REFERENCES rounds (run_id, number)
) STRICT, WITHOUT ROWID;
CREATE INDEX selections_in_order ON selections (run_id, round, position);

CREATE TABLE verdicts ( -- How one completion did.
    evaluation_id TEXT NOT NULL REFERENCES evaluations (id), -- The evaluation.
    task_id TEXT NOT NULL, -- The problem.
    sample_index INTEGER NOT NULL CHECK (sample_index >= 0), -- Which of the problem's samples, from 0.
    completion_id TEXT NOT NULL REFERENCES completions (id), -- The completion.
    verdict TEXT NOT NULL CHECK (verdict IN ('passed', 'failed', 'timeout', 'error',
        'no_code', 'harness_error')), -- The outcome; harness_error says nothing about the completion.
    detail TEXT NOT NULL, -- What the grader saw, shortened.
    duration_s REAL NOT NULL, -- Wall time of the grading.
    sandbox TEXT NOT NULL, -- The level of isolation that it ran under.
    PRIMARY KEY (evaluation_id, task_id, sample_index)
) STRICT, WITHOUT ROWID;

CREATE TABLE decisions ( -- What the policy said and all that it saw, so that it can be replayed exactly.
    run_id TEXT NOT NULL, -- The run.
    round INTEGER NOT NULL, -- The round.
    verdict TEXT NOT NULL CHECK (verdict IN ('keep', 'rollback', 'inconclusive')), -- What was found.
    action TEXT NOT NULL, -- What was done about it.
    gates TEXT NOT NULL CHECK (json_valid(gates)), -- Each gate's verdict, figures and reason, as JSON.
    policy TEXT NOT NULL CHECK (json_valid(policy)), -- The policy, as JSON.
    evidence TEXT NOT NULL CHECK (json_valid(evidence)), -- The evidence, as JSON.
    head_before TEXT NOT NULL REFERENCES checkpoints (sha256), -- The head when it was taken.
    head_after TEXT NOT NULL REFERENCES checkpoints (sha256), -- The head from then on.
    decided_at TEXT NOT NULL, -- When (RFC 3339, UTC).
    PRIMARY KEY (run_id, round),
    FOREIGN KEY (run_id, round) REFERENCES rounds (run_id, number)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER events_without_gaps BEFORE INSERT ON events
WHEN NEW.seq IS NOT (SELECT coalesce(max(seq), 0) + 1 FROM events)
BEGIN SELECT RAISE(ABORT, 'events are numbered without gaps'); END;
"""


def _append_only(tables: tuple[str, ...]) -> str:
    return "".join(
        f"CREATE TRIGGER {table}_no_{action} BEFORE {action.upper()} ON {table}\n"
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END;\n"
        for table in tables
        for action in ("update", "delete")
    )


_VIEWS = """
CREATE VIEW corpus AS -- The training corpus beside what was asked and whether the fine-tune saw it.
SELECT c.arrival, c.round, p.name AS prompt, p.statement, c.text, c.finish_reason, c.num_tokens, c.logprob_sum,
    s.used, s.reason AS left_out_because, c.checkpoint, c.sample_index, c.created_at, c.id
FROM completions AS c JOIN prompts AS p ON p.id = c.prompt_id
LEFT JOIN selections AS s ON s.run_id = c.run_id AND s.round = c.round AND s.completion_id = c.id
WHERE c.evaluation_id IS NULL;

CREATE VIEW round_results AS -- One line per round: how it ended, what was decided and how many attempts it took.
SELECT r.run_id, r.number AS round, r.state, r.stage, d.verdict, d.action, d.gates, r.error, r.started_at, r.finished_at,
    (SELECT count(*) FROM attempts AS a WHERE a.run_id = r.run_id AND a.round = r.number) AS num_attempts,
    r.parent_checkpoint, r.candidate_checkpoint, d.head_after
FROM rounds AS r LEFT JOIN decisions AS d ON d.run_id = r.run_id AND d.round = r.number;

CREATE VIEW evaluation_results AS -- Verdicts counted per evaluation and split.
SELECT e.round, e.suite_name, p.split, count(*) AS num_verdicts, sum(v.verdict = 'passed') AS num_passed,
    sum(v.verdict = 'timeout') AS num_timeouts, sum(v.verdict = 'no_code') AS num_no_code, e.checkpoint,
    e.finished_at, e.id AS evaluation_id
FROM evaluations AS e JOIN verdicts AS v ON v.evaluation_id = e.id
JOIN problems AS p ON p.suite_sha256 = e.suite_sha256 AND p.task_id = v.task_id
GROUP BY e.id, p.split;
"""

_CONTROL = """
CREATE TABLE control ( -- What people and failures have asked of a run, until it is carried out or taken back.
    run_id TEXT PRIMARY KEY REFERENCES runs (id), -- The run.
    held_by TEXT CHECK (held_by IN ('user', 'failure')), -- Who paused the run until it is resumed; NULL: nobody.
    hold_reason TEXT, -- Why, and what would help.
    released_at TEXT, -- When a hold was last taken back (RFC 3339, UTC).
    wanted_head INTEGER CHECK (wanted_head >= 0) -- The round that the head moves to at the next safe point.
) STRICT;
CREATE INDEX evaluations_of_suite ON evaluations (run_id, suite_name, round);
"""

_TEST_RESULTS = """
CREATE TABLE test_results ( -- Which completions of the training corpus pass their prompts' tests, where a data policy asks.
    completion_id TEXT PRIMARY KEY REFERENCES completions (id), -- The completion.
    verdict TEXT NOT NULL CHECK (verdict IN ('passed', 'failed', 'timeout', 'error', 'no_code')), -- The outcome.
    detail TEXT NOT NULL, -- What the grader saw, shortened.
    duration_s REAL NOT NULL, -- Wall time of the grading.
    sandbox TEXT NOT NULL -- The level of isolation that it ran under.
) STRICT, WITHOUT ROWID;
"""

_PROBES = """
CREATE TABLE probes ( -- Texts by the base on which checkpoints are compared token by token.
    id TEXT PRIMARY KEY, -- Hash of what it asks for: weights, prompts, decoding, seed and how much is recorded.
    run_id TEXT NOT NULL REFERENCES runs (id), -- The run.
    checkpoint TEXT NOT NULL REFERENCES checkpoints (sha256), -- The weights that wrote the texts.
    decode_settings_id TEXT NOT NULL REFERENCES decode_settings (id), -- How their tokens were drawn.
    created_at TEXT NOT NULL, -- When it was stored (RFC 3339, UTC).
    sha256 TEXT NOT NULL, -- Hash of content and lineage: all columns but created_at.
    tokenizer_sha256 TEXT NOT NULL, -- Hash of the tokenizer and chat template.
    sequences TEXT NOT NULL CHECK (json_valid(sequences)) -- Each text with its prompt and the token ids of both, as JSON.
) STRICT;

CREATE TABLE probe_results ( -- What one checkpoint would have written at each position of a probe.
    id TEXT PRIMARY KEY, -- Hash of probe and checkpoint, so that none is measured twice.
    probe_id TEXT NOT NULL REFERENCES probes (id), -- The probe.
    run_id TEXT NOT NULL REFERENCES runs (id), -- The run.
    round INTEGER NOT NULL CHECK (round >= 0), -- The round that made the checkpoint; 0 is the base.
    checkpoint TEXT NOT NULL REFERENCES checkpoints (sha256), -- What was measured.
    created_at TEXT NOT NULL, -- When it was stored (RFC 3339, UTC).
    sha256 TEXT NOT NULL, -- Hash of records and lineage: all columns but created_at.
    records BLOB NOT NULL -- zlib of JSON: per sequence and position entropy, top token, log-probabilities (nats).
) STRICT;
CREATE INDEX probe_results_of_checkpoint ON probe_results (probe_id, checkpoint);
"""

_HOLDS = """
CREATE TABLE control_with_decisions ( -- What people and failures have asked of a run, until it is carried out or taken back.
    run_id TEXT PRIMARY KEY REFERENCES runs (id), -- The run.
    held_by TEXT CHECK (held_by IN ('user', 'failure', 'decision')), -- Who paused the run until it is resumed; NULL: nobody.
    hold_reason TEXT, -- Why, and what would help.
    released_at TEXT, -- When a hold was last taken back (RFC 3339, UTC).
    wanted_head INTEGER CHECK (wanted_head >= 0) -- The round that the head moves to at the next safe point.
) STRICT;
INSERT INTO control_with_decisions SELECT run_id, held_by, hold_reason, released_at, wanted_head FROM control;
DROP TABLE control;
ALTER TABLE control_with_decisions RENAME TO control;
"""

# It is filled after the completions are (store/search.py has the reasons), and can be made anew from them at any time.
_FULL_TEXT = """
CREATE VIRTUAL TABLE completions_fts -- The full-text index over completions.text; rowid is arrival. It follows some way behind.
USING fts5(text, content="completions", content_rowid="arrival", tokenize="unicode61");
"""

_COLLECTED = """
CREATE TABLE collected ( -- What of a round that has been sampled later rounds may train on, so that they need not read it again.
    run_id TEXT NOT NULL, -- The run.
    round INTEGER NOT NULL, -- The round.
    rule TEXT NOT NULL CHECK (json_valid(rule)), -- By which rule the others were left out, as JSON.
    part INTEGER NOT NULL CHECK (part BETWEEN 0 AND 15), -- The first hexadecimal digit of the ids of its prompts.
    left_out TEXT NOT NULL CHECK (json_valid(left_out)), -- Reason and number of the others, as JSON.
    sha256 TEXT NOT NULL, -- Hash of all other columns.
    entries BLOB NOT NULL, -- 96 bytes per completion; loop/stages/packed.py says which.
    PRIMARY KEY (run_id, round, rule, part),
    FOREIGN KEY (run_id, round) REFERENCES rounds (run_id, number)
) STRICT;
"""

_EARLIER = """
CREATE TABLE earlier_selections ( -- What a round's fine-tune saw of earlier rounds. Rounds by older versions have it in selections.
    run_id TEXT NOT NULL, -- The run.
    round INTEGER NOT NULL, -- The round whose fine-tune saw them.
    position INTEGER NOT NULL, -- The first one's place in the round's list; the others have the places after it.
    arrivals TEXT NOT NULL CHECK (json_valid(arrivals)), -- Their completions.arrival, in order, as JSON.
    PRIMARY KEY (run_id, round, position),
    FOREIGN KEY (run_id, round) REFERENCES rounds (run_id, number)
) STRICT;
"""

# "carried" joins the states of a round, and "paused", which nothing ever wrote, leaves them; a run knows its tip. Other tables
# refer to both: they find the new ones under the old names when the transaction ends, which is when SQLite then checks.
_LINES = """
PRAGMA defer_foreign_keys = ON;
CREATE TEMP TABLE rounds_before AS SELECT * FROM rounds;
CREATE TEMP TABLE runs_before AS SELECT * FROM runs ORDER BY rowid;
DROP TABLE rounds;
DROP TABLE runs;
CREATE TABLE runs ( -- A run: one configuration, one base, and rounds that move the head. Counters let status be instant.
    id TEXT PRIMARY KEY, -- Hash of name, configuration hash and seed.
    name TEXT NOT NULL UNIQUE, -- What reports call it.
    config_sha256 TEXT NOT NULL, -- Hash of the resolved configuration.
    config TEXT NOT NULL CHECK (json_valid(config)), -- The resolved configuration, as JSON.
    seed INTEGER NOT NULL, -- Every random draw of the run derives from it.
    state TEXT NOT NULL CHECK (state IN ('running', 'paused', 'idle', 'stopped', 'failed')), -- What the run is doing.
    reason TEXT, -- Why it is in that state, in words.
    created_at TEXT NOT NULL, -- When it was created (RFC 3339, UTC).
    base_checkpoint TEXT NOT NULL REFERENCES checkpoints (sha256) DEFERRABLE INITIALLY DEFERRED, -- Where it started.
    head_checkpoint TEXT NOT NULL REFERENCES checkpoints (sha256) DEFERRABLE INITIALLY DEFERRED, -- The best that was shown.
    head_round INTEGER NOT NULL CHECK (head_round >= 0), -- The round that made the head; 0 is the base.
    tip_checkpoint TEXT NOT NULL REFERENCES checkpoints (sha256) DEFERRABLE INITIALLY DEFERRED, -- What is sampled next.
    tip_round INTEGER NOT NULL CHECK (tip_round >= 0), -- The round that made the tip; 0 is the base.
    depth INTEGER NOT NULL CHECK (depth >= 0), -- Rounds that were carried since the head; 0: the tip is the head.
    num_completions INTEGER NOT NULL CHECK (num_completions >= 0), -- Completions in the training corpus.
    completion_bytes INTEGER NOT NULL CHECK (completion_bytes >= 0), -- UTF-8 bytes of their stored texts.
    num_kept INTEGER NOT NULL CHECK (num_kept >= 0), -- Rounds that were kept.
    num_carried INTEGER NOT NULL CHECK (num_carried >= 0), -- Rounds that were carried.
    num_rolled_back INTEGER NOT NULL CHECK (num_rolled_back >= 0), -- Rounds that were rolled back.
    num_failed INTEGER NOT NULL CHECK (num_failed >= 0), -- Rounds that are failed now; a resumed one no longer counts.
    num_failed_lines INTEGER NOT NULL CHECK (num_failed_lines >= 0) -- Lines of carried rounds that ended back at their head.
) STRICT;
CREATE TABLE rounds ( -- A round: sample, train, evaluate, decide.
    run_id TEXT NOT NULL REFERENCES runs (id), -- The run.
    number INTEGER NOT NULL CHECK (number >= 1), -- Counts from 1 without gaps.
    state TEXT NOT NULL CHECK (state IN ('sampling', 'training', 'evaluating', 'deciding',
        'kept', 'carried', 'rolled_back', 'failed')), -- Where it is; moves by compare-and-swap only.
    stage TEXT NOT NULL CHECK (stage IN ('sampling', 'training', 'evaluating', 'deciding')), -- Where to go on.
    parent_checkpoint TEXT NOT NULL REFERENCES checkpoints (sha256), -- The tip when it began: what it was trained from.
    candidate_checkpoint TEXT REFERENCES checkpoints (sha256), -- What its fine-tune made.
    started_at TEXT NOT NULL, -- When it began (RFC 3339, UTC).
    finished_at TEXT, -- When it was decided or failed.
    error TEXT, -- Why it failed.
    PRIMARY KEY (run_id, number)
) STRICT, WITHOUT ROWID;
INSERT INTO runs SELECT id, name, config_sha256, config, seed, state, reason, created_at, base_checkpoint, head_checkpoint,
    head_round, head_checkpoint, head_round, 0, num_completions, completion_bytes, num_kept, 0, num_rolled_back, num_failed, 0
    FROM runs_before;
INSERT INTO rounds SELECT * FROM rounds_before;
DROP TABLE rounds_before;
DROP TABLE runs_before;
"""

MIGRATIONS: tuple[Migration, ...] = (
    Migration(1, "the first schema", _TABLES + _append_only(_FIRST_APPEND_ONLY) + _VIEWS),
    Migration(2, "control", _CONTROL),
    Migration(3, "decisions", _TEST_RESULTS + _PROBES + _append_only(_PROBE_TABLES) + _HOLDS),
    Migration(4, "full text, collected", _FULL_TEXT + _COLLECTED + _append_only(_COLLECTED_TABLES)),
    Migration(5, "earlier selections", _EARLIER + _append_only(_EARLIER_TABLES)),
    Migration(6, "carried rounds", _LINES),
)
