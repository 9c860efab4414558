"""Samplers by their names: ours, another package's through its entry point, and names that nobody provides."""

from __future__ import annotations

import importlib.util
import re
from contextlib import closing
from pathlib import Path

import pytest

from loop.config.samplers import SAMPLERS, sampler_kind
from loop.engines.fake import write_fake_model
from loop.errors import ConfigError
from tests.support.configurations import VALID, load_text, mistakes_in
from tests.support.engines import HOT, ask, at, chat, remote

ECHO = """
from loop.engines.fake import FakeSampler

class EchoSampler(FakeSampler):
    def _complete(self, request, params):
        return super()._complete(request, params).model_copy(update={"text": request.beginning})
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of installed packages: echo-sampler offers "echo", and "twice" together with another."""
    for name, offers in (("echo_sampler", "echo = echo_sampler:EchoSampler\ntwice = a:B"), ("other", "twice = c:D")):
        facts = tmp_path / f"{name}-1.5.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.5\n")
        (facts / "entry_points.txt").write_text(f"[loop.samplers]\n{offers}\n")
    (tmp_path / "echo_sampler.py").write_text(ECHO)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_every_name_of_ours_has_its_class() -> None:
    """By the text of its file: vLLM is not installed everywhere."""
    for kind in SAMPLERS.values():
        module, _, name = kind.path.partition(":")
        spec = importlib.util.find_spec(module)
        assert spec is not None and spec.origin is not None
        assert re.search(rf"^class {name}\b", Path(spec.origin).read_text(), re.MULTILINE)
        assert kind.offered_by is None


def test_another_packages_sampler_samples(installed: Path) -> None:
    kind = sampler_kind("echo")
    assert (kind.offered_by, kind.computes_here) == ("echo-sampler 1.5", True)
    write_fake_model(installed / "model", 0.5)
    request = chat("r", seed=1)
    with closing(remote(at(installed / "model"), "echo", installed / "log")) as sampler:
        assert ask(sampler, [request], HOT)["r"].text == request.beginning


def test_what_cannot_be_imported_is_one_line(installed: Path) -> None:
    (installed / "echo_sampler.py").write_text("import no_such_module")
    with pytest.raises(ConfigError) as refused:
        remote(at(installed), "echo", installed / "log")
    what = "engine.sampler: echo_sampler:EchoSampler of echo-sampler 1.5 cannot be imported"
    assert str(refused.value) == f"{what}: No module named 'no_such_module'"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vlm", '"vlm" is unknown; give "auto", "transformers", "vllm", "server", "fake", "echo" or "twice"'),
        ("twice", '"twice" is offered more than once (a:B, c:D); uninstall all but one'),
    ],
)
def test_a_name_that_no_one_package_provides_is_a_mistake_in_the_configuration(
    installed: Path, tmp_path: Path, name: str, message: str
) -> None:  # fmt: skip
    assert mistakes_in(tmp_path, f'{VALID}\n[engine]\nsampler = "{name}"') == [f"19: engine.sampler: {message}"]
    assert load_text(tmp_path, f'{VALID}\n[engine]\nsampler = "echo"').config.engine.sampler == "echo"
