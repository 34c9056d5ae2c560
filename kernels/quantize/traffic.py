"""The bytes that quantization moves and holds, from the shapes of its launches. Nothing is launched or allocated."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..attention.spec import Spec
from .triton_quantize import STATISTICS_ROWS, parts_of, slots_of


@dataclass(frozen=True)
class Traffic:
    """The bytes that one call of ``quantize`` reads from and writes to a card's memory, and the new ones that it holds
    at its end, before its statistics are freed; ``statistics`` are those read before the first code is written."""

    read: int
    written: int
    held: int
    statistics: int

    @property
    def moved(self) -> int:
        """Read and written: over the time of a call this compares with the bandwidth of a copy."""
        return self.read + self.written


def traffic(q: torch.Tensor, spec: Spec) -> Traffic:
    """Return the traffic of ``quantize`` on tensors like ``q (B, S, H, D)``, also on the device 'meta'.

    Tables that a kernel writes and the next one reads count both ways, though a card's cache may keep them. The token
    indices count once a pass.
    """
    batch, tokens, heads, dim = q.shape
    tiles, width = spec.index.shape
    rows, channels = batch * heads, batch * heads * dim
    e4m3, shared = spec.format == "e4m3", spec.granularity not in ("token", "x1")
    one, index = q.numel() * q.element_size(), spec.index.numel() * spec.index.element_size()

    tables, loads = 0, 0
    if shared:
        tables += 2 * tiles * channels * q.element_size() + parts_of(tiles, rows)[1] * channels * 4
        tables += 2 * rows * spec.cubes * 4
        loads += 2 * (one + index)
    parts = parts_of(-(-tokens // STATISTICS_ROWS), rows)[1]
    for needed in (spec.smooth_k and not shared, e4m3):
        loads += needed * one
        tables += needed * parts * channels * 4
    tables += (bool(spec.smooth_k) + 2 * e4m3) * channels * 4

    reserved = rows * tiles * slots_of(width, spec.format)
    codes = (3 if e4m3 else 2) * reserved * dim
    scales = 2 * 4 * (reserved if spec.granularity == "token" else rows * tiles)
    return Traffic(
        read=loads + tables + (3 if e4m3 else 2) * one + index,
        written=tables + codes + scales,
        held=tables + codes + scales,
        statistics=loads + tables,
    )
