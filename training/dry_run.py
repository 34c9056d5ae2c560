"""The plan of a run, told before it starts: tokens, tiles, densities, parameters, memory, files. Loads no weights."""

from __future__ import annotations

from dataclasses import dataclass

from .config import RunConfig
from .names import WanShape

# Bytes that autograd keeps per token and block, measured on diffusers' Wan with torch's saved-tensor hooks:
# (per channel of dim, per channel of ffn).
SAVED = {"fp32": (88, 8), "bf16": (68, 4)}
# Outside the blocks, per channel of dim.
SAVED_OUTSIDE = 17
DENSITY_SAMPLES = 400


@dataclass(frozen=True)
class Memory:
    """A step's memory in bytes."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.weights + self.gradients + self.optimizer + self.average + self.activations


def estimate_memory(config: RunConfig, shape: WanShape, tokens: int) -> Memory:
    """Return what a training step needs: float32 weights, gradients and two moments, and the saved activations."""
    weights = shape.parameters * 4
    per_dim, per_ffn = SAVED[config.dtype]
    block = (per_dim * shape.dim + per_ffn * shape.ffn_dim) * tokens
    element = 4 if config.dtype == "fp32" else 2
    if config.activation_checkpointing:
        # Every block keeps its input; one block at a time is recomputed with all that it saves.
        activations = shape.layers * shape.dim * element * tokens + block
    else:
        activations = shape.layers * block
    activations = config.optim.batch * (activations + SAVED_OUTSIDE * shape.dim * tokens)
    return Memory(weights, weights, 2 * weights, weights if config.ema else 0, activations)
