"""What a profile costs, counted in dense steps before it starts: floating-point operations, no measurement.

A dense step is one call of the model (guidance calls it twice, and the probe looks at one of the two, so with guidance
the share is half). Row probes cost what their rows cost of an attention call, once per pass over the keys; a one-step
loss costs a model call at its density.
"""

from __future__ import annotations

from dataclasses import dataclass

from .rows import GRANULARITIES, ROWS, TILES

# Row probes and one-step losses together stay below this many dense steps.
LIMIT = 3.0
# A model that is so small that all of this is less (a second of a CPU or two) is probed in full.
SMALL = 2e11
# At most this many layers and steps are probed.
MAX_LAYERS, MAX_STEPS = 8, 32
# What quantizing at one granularity reads and writes, per number of q, k and v.
_BYTES = 20
# Probes compute in float32 without tensor cores, the model in 16 bits with them: on data center cards up to 15 times
# slower per operation, and a byte takes as long as 150 of the model's operations. The limit holds with these factors,
# which are 1 and 10 for a model that computes in float32 itself.
FLOAT32, PER_BYTE, PER_BYTE_FLOAT32 = 15.0, 150.0, 10.0


@dataclass(frozen=True)
class ModelShape:
    """What a Wan's operations depend on."""

    dim: int
    ffn: int
    layers: int
    text: int = 512


@dataclass(frozen=True)
class Effort:
    """What is probed, and what that costs in dense steps: ``rows`` for the row probes, ``loss`` for one one-step
    loss."""

    steps: tuple[int, ...]
    layers: tuple[int, ...]
    one_step: tuple[int, ...]
    rows: float
    loss: float

    @property
    def total(self) -> float:
        """Dense steps."""
        return self.rows + self.loss * len(self.one_step)


def attention_flops(shape: ModelShape, tokens: int) -> float:
    """Return the operations of one dense self-attention call."""
    return 4.0 * tokens * tokens * shape.dim


def forward_flops(shape: ModelShape, tokens: int, density: float = 1.0) -> float:
    """Return the operations of one model call with self-attention at ``density``."""
    projections = 8.0 * tokens * shape.dim**2 + 4.0 * tokens * shape.dim**2 + 4.0 * shape.text * shape.dim**2
    cross = 4.0 * tokens * shape.text * shape.dim
    feed_forward = 4.0 * tokens * shape.dim * shape.ffn
    return shape.layers * (density * attention_flops(shape, tokens) + projections + cross + feed_forward)


def probe_flops(
    shape: ModelShape, tokens: int, rows: int = TILES * ROWS, passes: int = 1 + len(GRANULARITIES)
) -> float:
    """Return the operations of one row probe of one layer: ``passes`` passes of ``rows`` rows over all keys."""
    return passes * 4.0 * rows * tokens * shape.dim


def probe_bytes(shape: ModelShape, tokens: int, granularities: int = len(GRANULARITIES)) -> float:
    """Return what one row probe of one layer moves to quantize q, k and v at every granularity."""
    return granularities * _BYTES * 3.0 * tokens * shape.dim


def plan_effort(
    shape: ModelShape,
    tokens: int,
    steps: int,
    density: float,
    *,
    candidates: tuple[int, ...] = (),
    float32: bool = False,
) -> Effort:
    """Return what may be probed within three dense steps: all steps (at most 32) at up to 8 layers, and of the
    ``candidates`` as many one-step losses at ``density`` as fit beside them, spread evenly.

    ``float32`` says that the model computes in it. Row probes take at most half of the limit; layers go first where
    they would not fit, then steps.
    """
    call = forward_flops(shape, tokens)
    limit = max(LIMIT, SMALL / call)
    slower, per_byte = (1.0, PER_BYTE_FLOAT32) if float32 else (FLOAT32, PER_BYTE)
    one = (slower * probe_flops(shape, tokens) + per_byte * probe_bytes(shape, tokens)) / call
    layers, chosen = min(MAX_LAYERS, shape.layers), min(MAX_STEPS, steps)
    while layers > 1 and one * layers * chosen > limit / 2:
        layers -= 1
    while chosen > 1 and one * layers * chosen > limit / 2:
        chosen -= 1
    rows = one * layers * chosen
    loss = forward_flops(shape, tokens, density) / call
    fitting = max(0, int((limit - rows) / loss + 1e-9))
    picked = tuple(candidates[i] for i in spread(len(candidates), fitting))
    return Effort(spread(steps, chosen), spread(shape.layers, layers), picked, rows, loss)


def spread(total: int, count: int) -> tuple[int, ...]:
    """Return ``count`` of the numbers 0 ... total - 1, evenly spread with both ends (the middle if only one)."""
    if count >= total:
        return tuple(range(total))
    if count <= 1:
        return (total // 2,) if count and total else ()
    return tuple(round(i * (total - 1) / (count - 1)) for i in range(count))
