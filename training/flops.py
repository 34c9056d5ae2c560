"""Floating-point operations of a Wan forward pass: what rates and utilization are counted in."""

from __future__ import annotations

from .names import WanShape

# A backward pass computes two products for every one of the forward; recomputation is not counted as work done.
WITH_BACKWARD = 3.0


def forward_flops(shape: WanShape, tokens: int, density: float = 1.0, text_tokens: int = 512) -> float:
    """Return the operations of one forward of one sample, with self-attention over ``density`` of all pairs.

    Two operations per multiply-add; embeddings, norms and the head are left out (below 0.1 % at Wan's sizes).
    """
    d, f, n = shape.dim, shape.ffn_dim, tokens
    attention = 4.0 * n * n * d * density
    linears = 8.0 * n * d * d + 4.0 * n * d * f
    cross = 4.0 * n * d * d + 4.0 * text_tokens * d * d + 4.0 * n * text_tokens * d
    return shape.layers * (attention + linears + cross)
