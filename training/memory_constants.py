"""What a block of diffusers' Wan keeps per token, as multiples of its widths: measured, not derived.

``training.memory_measure`` measures them with the trainer's own attention, adapters and recomputation, and tests hold
this table to it. They are whole numbers because tensors are: 60 bytes per channel are thirty bf16 tensors, or fifteen
of float32.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockCost:
    """Bytes per token of one block, each as (per channel of dim, per channel of ffn_dim)."""

    kept: tuple[float, float]
    """From its forward to its backward."""
    peaks: tuple[tuple[float, float], ...]
    """At most during its backward, beyond what was kept; which is the largest depends on the model's widths."""
    attention: tuple[float, float]
    """When the attention's backward has run, beyond what was kept: its own tile copies come on top."""


# By dtype, whether all weights are trained or adapters only, and what is recomputed. The row statistics of an attention
# are 8 bytes per head of 128 channels (log-sum-exp and maximum; 4 in torch's dense one): the odd hundredths.
CUDA = {
    ("bf16", "all", "none"): BlockCost((58.09, 4), ((8, 0),), (-33.97, -4)),
    ("bf16", "all", "full"): BlockCost((2, 0), ((60.09, 4),), (24.12, 0)),
    ("bf16", "all", "attention"): BlockCost((4.06, 0), ((58.03, 4),), (22.06, 0)),
    ("bf16", "lora", "none"): BlockCost((40.09, 4), ((-2, 4), (8, 0)), (-13.97, -4)),
    ("bf16", "lora", "full"): BlockCost((2, 0), ((34.09, 8), (50.09, 4)), (22.12, 0)),
    ("bf16", "lora", "attention"): BlockCost((4.06, 0), ((32.03, 8), (48.03, 4)), (20.06, 0)),
    ("fp32", "all", "none"): BlockCost((76.09, 8), ((-8, 4), (8, 0)), (-31.97, -8)),
    ("fp32", "all", "full"): BlockCost((4, 0), ((64.09, 12), (72.09, 8)), (40.12, 0)),
    ("fp32", "all", "attention"): BlockCost((8.06, 0), ((60.03, 12), (68.03, 8)), (36.06, 0)),
    ("fp32", "lora", "none"): BlockCost((56.09, 8), ((0, 8),), (-11.97, -8)),
    ("fp32", "lora", "full"): BlockCost((4, 0), ((52.09, 16), (68.09, 8)), (40.12, 0)),
    ("fp32", "lora", "attention"): BlockCost((8.06, 0), ((48.03, 16), (64.03, 8)), (36.06, 0)),
}
# On a CPU, and on a GPU before torch 2.9, an RMS norm whose weight is trained keeps more than its input.
UNFUSED = {
    ("bf16", "all", "none"): BlockCost((70.09, 4), ((8, 0),), (-37.97, -4)),
    ("bf16", "all", "full"): BlockCost((2, 0), ((72.09, 4),), (32.12, 0)),
    ("bf16", "all", "attention"): BlockCost((4.06, 0), ((70.03, 4),), (30.06, 0)),
    ("fp32", "all", "none"): BlockCost((88.09, 8), ((-8, 4), (8, 0)), (-35.97, -8)),
    ("fp32", "all", "full"): BlockCost((4, 0), ((76.09, 12), (84.09, 8)), (48.12, 0)),
    ("fp32", "all", "attention"): BlockCost((8.06, 0), ((72.03, 12), (80.03, 8)), (44.06, 0)),
}
# Outside the blocks, when the forward pass is over: per token and channel of dim (the last norm and layer), and per
# token (prediction, target and their differences, noisy latents: some ten float32 copies of 64 numbers).
OUTSIDE = {"all": 12, "lora": 4}
OUTSIDE_PER_TOKEN = 10 * 64 * 4
# A text's keys and values: per text token and channel of dim, in every block that is kept, and outside the blocks.
TEXT = {"bf16": 8, "fp32": 12}
TEXT_OUTSIDE = {"bf16": 12, "fp32": 23}
# Rotary tables: cosine and sine of 128 channels in float32.
ROTARY_PER_TOKEN = 2 * 128 * 4


def block_cost(dtype: str, trained: str, recompute: str, fused: bool) -> BlockCost:
    """Return the cost of a block; ``trained`` is 'all' or 'lora', ``fused`` says which RMS norm runs."""
    key = (dtype, trained, recompute)
    return CUDA[key] if fused else UNFUSED.get(key, CUDA[key])
