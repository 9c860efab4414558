"""Where a module's tests are: in a file with its name in the same folder under tests/, or in the one that is named here."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from pydantic import BaseModel

from loop.grading import formats
from policies.by_type import Registry
from policies.data import DATA_POLICIES
from policies.gates import GATES
from policies.stopping import STOP_RULES
from tests.support import ROOT, TESTS

# A test file, and the modules whose tests it holds beside those of its own name.
COVERS = {
    "loop/workers/test_cluster.py": "loop/workers: node_trainer ray_delivery ray_hub",
    "docs/test_words.py": "loop/config/page_of_keys",
    "loop/cli/test_files.py": "loop/cli: config doctor grade init; loop/system: disk exits files; loop/config/place",
    "loop/cli/test_measure.py": "loop/run/measuring",
    "loop/cli/test_read.py": "loop/cli: corpus main options rounds samples tables verify",
    "loop/cli/test_run.py": "loop/cli/progress; loop/system/signals",
    "loop/cli/test_safety.py": "loop/words",
    "loop/config/test_loading.py": "loop/config: mistakes same_run settings toml_file; loop/errors",
    "loop/config/test_times.py": "loop/config/cron",
    "loop/daemon/test_service.py": "loop/daemon/space",
    "loop/engines/test_distributed.py": "loop/engines: distributed_rank sharded; loop/system/trees",
    "loop/engines/test_distributed_faults.py": "loop/engines: distributed_launch lossy_log slate",
    "loop/engines/test_models.py": "loop/engines/hf_models; loop/run/base_model",
    "loop/engines/test_probers.py": "loop/engines/hf_prober",
    "loop/engines/test_samplers.py": "loop/engines: base fake",
    "loop/engines/test_server.py": "loop/engines: server_http server_sampler",
    "loop/engines/test_batching.py": "loop/engines: packed_rows rows step_trainer",
    "loop/engines/test_vllm.py": "loop/engines/vllm_sampler",
    "loop/experiments/test_facts.py": "loop/experiments/arithmetic",
    "loop/experiments/test_file.py": "loop/experiments/arms; loop/config/toml_text",
    "loop/experiments/test_running.py": "loop/cli/experiment",
    "loop/experiments/test_sharing.py": "loop/run/sharing; store/shared; loop/system/lock",
    "loop/fitting/test_estimate.py": "loop/fitting: fit machine times",
    "loop/grading/test_grader.py": "loop/grading: bubblewrap interpreter warm working_sandbox",
    "loop/grading/test_hostile.py": "loop/grading/sandbox; loop/grading/inside: cell link remote seccomp",
    "loop/grading/known/test_known.py": "loop/grading/known: benchmark humaneval livecodebench mbpp others plus",
    "loop/grading/test_plus.py": "loop/grading/formats/plus; loop/grading/inside/compare",
    "loop/grading/test_repositories.py": "loop/grading/formats/repository; loop/grading/inside: placing repository screen survey view",
    "loop/mining/test_functions.py": "loop/mining: asking bodies",
    "loop/mining/test_suite.py": "loop/mining: environment page proving surveying toml tree; loop/cli/suite",
    "loop/grading/test_suite.py": "loop/grading/problem; loop/grading/formats: fields format humaneval livecodebench mbpp",
    "loop/grading/test_text_formats.py": "loop/grading/formats: gsm8k ifeval math500 mmlu_pro; loop/grading/known: gsm8k ifeval math500 mmlu_pro",
    "loop/grading/test_values.py": "loop/grading/inside/values",
    "loop/grading/test_verdicts.py": "loop/grading/inside/judge",
    "loop/cli/test_compare.py": "loop/judging/words; loop/report/comparison_figures",
    "loop/judging/test_formats.py": "loop/judging: left results; "
    "loop/judging/formats: bigcodebench evalplus grade inspect lighteval livecodebench lm_eval ml_ssd",
    "loop/prompts/test_sources.py": "loop/prompts: data_set templates",
    "loop/judging/test_sampled.py": "loop/cli: asking eval; loop/judging/samples",
    "loop/publishing/test_exporting.py": "loop/cli/export; loop/publishing: card card_facts markdown; loop/reading/checkpoints",
    "loop/reading/test_gains.py": "loop/reading: as_json rounds",
    "loop/reading/test_replaying.py": "loop/cli: decide replay; loop/reading/decisions",
    "loop/reading/test_standing.py": "loop/cli/status; loop/reading/status_words",
    "loop/report/test_facts.py": "loop/report: browser charts experiment_figures run_figures",
    "loop/report/test_page.py": "loop/cli/report",
    "loop/run/test_choosing.py": "loop/stages: collecting packed",
    "loop/run/test_comparison.py": "loop/stages/deciding; loop/run/session",
    "loop/run/test_evaluation.py": "loop/run/answering; store/evaluations",
    "loop/serve/test_server.py": "loop/cli/serve; loop/serve: app live sources who_may_ask",
    "loop/watching/test_hooks.py": "loop/system/guarded; loop/watching/teller",
    "loop/watching/test_trackers.py": "loop/cli/track; loop/watching: tracker_process tracker_thread",
    "loop/workers/test_worker.py": "loop/workers: child process",
    "policies/test_drift.py": "policies/gates/drift",
    "policies/test_gates.py": "policies/gates: base best_so_far collapse improvement no_regression; policies: budget evidence",
    "policies/test_policy.py": "policies: decision mistakes",
    "store/test_db.py": "store: errors migrations schema_page",
    "store/test_ledger.py": "store: checkpoint_rows decision_rows events records",
    "store/test_selections.py": "store/canonical",
    "whole/test_daemon.py": "loop/cli: backup control doctor_deep service; loop/daemon: commands loopd",
    "whole/test_data_policies.py": "loop/run/adapting",
    "whole/test_kills.py": "store/failpoints",
    "whole/test_line.py": "loop/run/confirming",
    "whole/test_round_recovers.py": "loop/run/attempting",
    "whole/test_round_tiny.py": "loop/round; loop/stages/training",
}


def modules_of(text: str) -> list[str]:
    """["loop/system/disk", "loop/system/exits"] of "loop/system: disk exits"."""
    modules = []
    for part in text.split("; "):
        folder, colon, names = part.partition(": ")
        modules += [f"{folder}/{name}" for name in names.split()] if colon else [folder]
    return modules


def test_every_module_has_its_test_file_or_is_listed_with_the_one_that_covers_it() -> None:
    listed = [module for text in COVERS.values() for module in modules_of(text)]
    by_name, without = [], []
    for path in sorted(path for top in ("loop", "store", "policies") for path in (ROOT / top).rglob("*.py")):
        module = path.relative_to(ROOT).with_suffix("")
        if path.name.startswith("__"):
            continue
        (by_name if list((TESTS / module.parent).glob(f"test_{module.name}*.py")) else without).append(str(module))
    assert sorted(without) == sorted(listed), "either a file of its name, or one entry in COVERS"
    assert [file for file in COVERS if not (TESTS / file).exists()] == []
    assert not set(by_name) & set(listed)


@pytest.mark.parametrize("registry", [GATES, DATA_POLICIES, STOP_RULES], ids=lambda registry: registry.group)
def test_every_policy_of_ours_is_registered(registry: Registry[Any]) -> None:
    ours = {each for each in _below(registry.base) if each.__module__.startswith("policies.")}
    assert {each for each in ours if not each.model_fields["type"].is_required()} == set(registry.built_in.values())


def _below(model: type) -> set[type[BaseModel]]:
    return {below for child in model.__subclasses__() for below in ({child} | _below(child))}


def test_every_format_of_problem_files_is_registered() -> None:
    files = (ROOT / "loop/grading/formats").glob("*.py")
    made = [getattr(importlib.import_module(f"{formats.__name__}.{file.stem}"), "FORMAT", None) for file in files]
    assert {form.kind for form in made if form} == set(formats._BY_KIND)
