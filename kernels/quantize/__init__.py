"""Quantizers of Q, K and V for attention, at every granularity: plain torch, and the same numbers in Triton."""
