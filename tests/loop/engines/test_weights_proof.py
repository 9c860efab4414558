"""The proof of weights: what an engine is compared with, how far it may be from it, and that it is computed once."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path

import pytest
import torch

from loop.engines import weights_proof
from loop.engines.base import CheckpointRef
from loop.engines.hf_models import load_model
from loop.engines.weights_proof import LEAST_TOLERANCE, SPREADS, Proof, distance, reference, serves, tells_apart
from tests.support.tiny import make_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> CheckpointRef:
    return CheckpointRef(sha256="tiny", path=make_tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


def test_the_reference_is_in_float32_whatever_is_served(tiny: CheckpointRef) -> None:
    """It is made layer by layer from weights in bfloat16, and equals that of the same weights cast at once."""
    proof = reference(tiny, "bfloat16")
    model = load_model(tiny, torch.bfloat16, torch.device("cpu")).eval()
    rounded = weights_proof._logprobs(model, list(proof.token_ids))
    whole = weights_proof._logprobs(model.float(), list(proof.token_ids))
    assert proof.logprobs == whole != rounded
    assert proof.tolerance == max(LEAST_TOLERANCE["bfloat16"], SPREADS * distance(whole, rounded))
    assert reference(tiny, "float32").tolerance == LEAST_TOLERANCE["float32"]


def test_a_model_that_rounding_changes_much_is_given_more_room(
    tiny: CheckpointRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [(0.0, 0.0), (0.3, -0.3)]
    monkeypatch.setattr(weights_proof, "_logprobs", lambda model, token_ids: answers.pop())
    proof = reference(tiny, "bfloat16")
    assert proof.logprobs == (0.0, 0.0) and proof.tolerance == pytest.approx(0.9)


def test_it_is_computed_once_for_all_engines(
    tiny: CheckpointRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def slowly(checkpoint: CheckpointRef, dtype: str) -> Proof:
        computed.append(dtype)
        begun.set()
        assert go_on.wait(60)
        return Proof(token_ids=(1, 2), logprobs=(-0.5,), tolerance=0.1, eos=frozenset({0}))

    monkeypatch.setattr(weights_proof, "_computed", slowly)
    monkeypatch.setattr(weights_proof, "LOOK_S", 0.01)
    proofs: list[Proof] = []
    waited: list[int] = []

    def ask() -> None:
        proofs.append(reference(tiny, "float32", tmp_path / "proofs", lambda done, total: waited.append(1)))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert begun.wait(60)
    while len(waited) < 10:  # those that wait say so, and nobody ends them as stalled
        time.sleep(0.01)
    go_on.set()
    for thread in threads:
        thread.join()
    assert computed == ["float32"] and len(proofs) == 4 and len({*proofs}) == 1
    reference(tiny, "float32", tmp_path / "proofs")
    assert computed == ["float32"], "also for a later engine"
    reference(tiny, "bfloat16", tmp_path / "proofs")
    reference(tiny.model_copy(update={"sha256": "another"}), "float32", tmp_path / "proofs")
    assert computed == ["float32", "bfloat16", "float32"]
    for file in (tmp_path / "proofs").glob("*.json"):
        file.write_text('{"logprobs": [')
    reference(tiny, "float32", tmp_path / "proofs")
    assert len(computed) == 4, "what cannot be read is made anew"


def test_weights_pass_their_own_proof_alone() -> None:
    one, near, far = (Proof(token_ids=(1, 2), logprobs=(at,), tolerance=0.1) for at in (-1.0, -1.15, -1.3))
    assert serves(one, [-1.09]) and not serves(one, [-1.11]) and not serves(one, [math.nan]) and not serves(one, [])
    assert tells_apart(one, far) and not tells_apart(one, near)
