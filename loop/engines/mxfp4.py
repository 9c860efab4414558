"""Checkpoints in MXFP4, as GPT-OSS comes: two weights in a byte, and a scale for each block of 32. Imports no torch.

Training needs the weights in bfloat16 and saves a candidate so. A base that is served in MXFP4 would compute in other
numbers than its candidates, by more than a round changes: so the base of a run is dequantised, too, once.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path

BLOCKS, SCALES = "_blocks", "_scales"
MOST_HEADER_BYTES = 100_000_000


def is_mxfp4(directory: Path) -> bool:
    """Whether the config of a model directory says so; False where it cannot be read."""
    try:
        config = json.loads((directory / "config.json").read_bytes())
        return bool(config["quantization_config"]["quant_method"] == "mxfp4")
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def num_weights(path: Path) -> int:
    """What the header of a safetensors file says: eight bytes of length, then JSON with a shape for each tensor."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(min(length, MOST_HEADER_BYTES)))
    return sum(_in_tensor(name, each) for name, each in header.items() if name != "__metadata__")


def _in_tensor(name: str, tensor: dict[str, object]) -> int:
    num = math.prod(tensor["shape"])  # type: ignore[call-overload]
    if tensor["dtype"] != "U8":
        return int(num)
    return 0 if name.endswith(SCALES) else int(num) * (2 if name.endswith(BLOCKS) else 1)


def dequantised_bytes(directory: Path) -> int:
    """The size of a checkpoint's weights in bfloat16."""
    return 2 * sum(map(num_weights, directory.glob("*.safetensors")))


def name_of_dequantised(directory: Path) -> str:
    """A name for the dequantised copy: another one where the directory, or a size or time of a file in it, is another."""
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(directory.glob("*.*"))]
    key = hashlib.sha256(json.dumps([str(directory), facts]).encode()).hexdigest()[:16]
    return f"mxfp4-bfloat16-1-{key}"  # 1: of the conversion
