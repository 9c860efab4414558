"""The memory of a fine-tune and of sampling as formulas of the model's sizes. Pure arithmetic, in bytes.

Each term is derived from what PyTorch holds at one moment, and stands in the table of docs/recipes.md. `bench/estimate.py`
prints the sums beside those of `loop.engines.memory_tracker`, which counts; they differ by less than a tenth. With P
parameters of which p are in a layer, N processes, L layers, T tokens in a pass, H, I, V the hidden size, the width inside
the feed-forward part and the vocabulary, D and K the queries' and the keys' heads times their size, E experts of which a
token uses k. On a GPU weights lie in float32 shards and are gathered a layer at a time in bfloat16 (FSDP); the processes of
a CPU compute in float32. A single process on a GPU computes under autocast, with its residual stream in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from loop.engines.base import TrainingPass
from loop.fitting.shape import Shape

MASTER = 4  # bytes of a float32 number: weights, gradients, each of AdamW's two moments
BATCHED_TOKENS = 16_384  # of vLLM's `LLM`: the tokens of one pass
BATCHED_ROWS = 1024  # sequences whose logits vLLM may hold at once
VLLM_SHARE = 0.92  # of a GPU that vLLM takes


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes in one process at the worst moment of a step. `at_rest`: what also lies there between two steps."""

    at_rest: int  # weights and AdamW's moments, 12 P / N; of an adapter its own, over 2 P / N
    gradients: int  # of the layers that the backward pass has left behind
    inputs: int  # of the layers, kept by gradient checkpointing; without it all that they need in their backward pass
    layer: int  # one layer at work: its activations and their gradients
    gathered: int  # whole weights of a layer, their gradients, and those that are being sent
    head: int  # the output layer: weights, gradients, a tile of logits

    @property
    def peak(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def training_memory(shape: Shape, work: TrainingPass) -> TrainingMemory:
    """What one process of a fine-tune holds at most: the worst of four moments of a step."""
    num, tokens = work.num_processes, work.num_rows * work.row_tokens
    total, layer = shape.num_parameters, shape.num_in_a_layer
    table = shape.vocabulary * shape.hidden
    compute = 2 if work.on_gpu else 4  # bytes of a number while computing
    residual = 2 if work.on_gpu and (num > 1 or work.lora_rank is not None) else 4
    adapted = shape.num_adapted(work.lora_rank) if work.lora_rank is not None else 0
    whole = not adapted
    at_rest = 3 * MASTER * total // num if whole else compute * total // num + 3 * MASTER * adapted
    trained = MASTER * whole  # bytes of gradient for each weight
    below = trained * (total - (1 if shape.tied else 2) * table) // num  # gradients of all layers
    top = 0 if shape.tied or num == 1 else trained * table // num  # of an output layer of its own, as a shard
    ends = tokens * shape.hidden * residual  # the input of one layer
    kept = ends if work.gradient_checkpointing else tokens * _kept(shape, work, residual)
    at_work = tokens * _at_work(shape, work, residual) + _mask(work)
    gathered, head = _gathered(layer, num, compute, whole), _head(table, shape.tied, work, whole)
    adapters = MASTER * adapted
    moments = [
        TrainingMemory(at_rest, top + adapters, shape.num_layers * kept, at_work, gathered, head.above),
        TrainingMemory(
            at_rest, below - trained * layer // 2 // num + top + adapters, kept, at_work, gathered, head.below
        ),
        TrainingMemory(at_rest, below + top + adapters, 0, 0, 0, head.last),
        TrainingMemory(at_rest, trained * total // num + adapters, 0, 0, 0, 0),  # AdamW works in place
    ]
    if (
        num == 1 and work.on_gpu and whole
    ):  # autocast keeps its bfloat16 copies of the weights until the forward pass ends
        moments.append(TrainingMemory(at_rest, 0, shape.num_layers * kept, at_work // 2, compute * total, 0))
    return max(moments, key=lambda moment: moment.peak)


def _gathered(layer: int, num: int, compute: int, whole: bool) -> int:
    """The layer's weights and, where they are trained, their gradients and the float32 copy of them that is being sent."""
    if num == 1:
        return compute * layer if whole and compute == 2 else 0  # the cast weights
    return 2 * compute * layer if not whole else (2 * compute + MASTER) * layer


@dataclass(frozen=True, slots=True)
class _Head:
    """Bytes beside the shards that belong to embedding and output layer, while the backward pass is in the highest layer, in the
    lowest, and in the embedding."""

    above: int
    below: int
    last: int


def _head(table: int, tied: bool, work: TrainingPass, whole: bool) -> _Head:
    """The output layer's gradient is computed in float32, 4 V H, and sent so.

    transformers ties embedding and output layer after it has sharded both: each gathers the table for itself, and has a
    gradient of its own until both are added up at the end.
    """
    compute, num = (2 if work.on_gpu else 4), work.num_processes
    if not whole:
        copies = 0 if num == 1 else 2 * compute * table
        return _Head(copies, copies, copies)
    if num == 1:
        return _Head(MASTER * table, MASTER * table, (3 if tied else 2) * MASTER * table)
    if tied:
        return _Head(3 * compute * table, 3 * compute * table, (4 * compute + MASTER) * table)
    return _Head(MASTER * table, 0, (2 * compute + MASTER) * table)


def _attention(shape: Shape, compute: int, residual: int) -> int:
    """Bytes a token of what attention and the two norms keep for the backward pass.

    A norm keeps its input in float32, and its result before and after the weights. Attention keeps queries, keys and values
    as they enter the product, and its result; a model that normalises queries and keys keeps them like any norm's.
    """
    norms = 2 * shape.hidden * (MASTER + 2 * residual + (compute if residual != compute else 0))
    heads = 2 * compute * (shape.queries + shape.keys)
    if shape.norms_queries:
        heads += (MASTER + compute) * (shape.queries + shape.keys)
    return norms + heads


def _kept(shape: Shape, work: TrainingPass, residual: int) -> int:
    """Bytes a token of what a whole layer keeps, where nothing is computed again."""
    compute = 2 if work.on_gpu else 4
    return _attention(shape, compute, residual) + 4 * compute * _inside(shape) + 4 * compute * _copies(shape)


def _at_work(shape: Shape, work: TrainingPass, residual: int) -> int:
    """Bytes a token of the layer that is in its backward pass, in its feed-forward part: where it holds most.

    There are gate, up, the gate's activation, and the gradients of their product, of up and of the activation: 6 I. A mixture
    has a copy of each token for each of the k experts that it uses: five of these (in, out, weighted, two gradients).
    An adapter adds a float32 copy of its layer's input, and what it adds to each output.
    """
    compute = 2 if work.on_gpu else 4
    at_work = shape.hidden * compute + 6 * compute * _inside(shape) + 5 * compute * _copies(shape)
    if work.lora_rank is not None:
        at_work += compute * _inside(shape) + 6 * compute * shape.hidden
    kept = _attention(shape, compute, residual) if work.gradient_checkpointing else 0
    return at_work + kept


def _inside(shape: Shape) -> int:
    return shape.inside * max(1, shape.num_used)


def _copies(shape: Shape) -> int:
    return shape.hidden * shape.num_used


def _mask(work: TrainingPass) -> int:
    """Rows that are padded to one length need a mask, row_tokens squared: a byte, and a number of the computation."""
    return work.num_rows * work.row_tokens**2 * (1 + (2 if work.on_gpu else 4)) if work.padded else 0


@dataclass(frozen=True, slots=True)
class SamplingMemory:
    """Bytes on each GPU of an engine (on a CPU: of the engine). `token`: of the cache, for each token that is under way."""

    weights: int
    activations: int
    token: int


def sampling_memory(shape: Shape, num_gpus: int, on_gpu: bool, number_bytes: int) -> SamplingMemory:
    """`num_gpus` share an engine. A pass of vLLM holds its tokens' states and feed-forward parts, and logits in float32."""
    weights = number_bytes * shape.num_parameters // num_gpus
    token = 2 * shape.num_layers * shape.keys * number_bytes // num_gpus
    activations = 0
    if on_gpu:
        states = 4 * shape.hidden + (3 * _inside(shape) + 2 * _copies(shape)) // num_gpus
        activations = BATCHED_TOKENS * states * number_bytes + BATCHED_ROWS * shape.vocabulary * MASTER
    return SamplingMemory(weights, activations, token)
