"""Quantization in Triton: what it writes, how its kernels are launched, and the bytes that it moves.

Two passes over memory, nothing copied in between. The statistics need every token before the first code can be
written: K's mean, V's channel maxima and, where cubes of tiles share a scale, the maxima over cubes (K's from its
extremes per tile and channel, because the mean is known only afterwards). Then one program per tile and head gathers
its rows and writes codes. What needs no statistic skips the first pass.

Importing this module imports no triton; launching does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .. import triton_runtime
from ..attention.spec import Spec
from .fp8 import E4M3_MAX, LARGEST, SMALLEST_SCALE, V_ORDER

__all__ = ["V_ORDER", "Quantized", "quantize", "tiles_for_backward"]

# Numbers per thread. 32 of every tensor are four 16-byte loads in flight and, all three held, about 100 registers.
_PER_THREAD = 32
# Rows that a program of the statistics takes at once where they need not be tiles, and how many programs share the
# sequence: several waves on any card, and the same number on every card, so that sums do not depend on it.
_STATISTICS_ROWS = 32
_STATISTICS_PROGRAMS = 4096
_FINISH_ROWS = 32


@dataclass(frozen=True)
class Quantized:
    """What the forward reads. ``q, k (B, H, tiles*slots, D)``: e4m3 or int8 codes, dead rows 0; ``q_scale, k_scale``
    float32, ``(B, H, tiles*slots)`` for 'token', else ``(B, H, tiles)``; ``v (B, H, D, tiles*slots)``: e4m3 codes,
    slots in ``V_ORDER``, dead columns 0, with ``v_scale (B, H, D)``; both None for 'int8', which takes V as it is."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor | None
    q_scale: torch.Tensor
    k_scale: torch.Tensor
    v_scale: torch.Tensor | None


@dataclass(frozen=True)
class _Statistics:
    """What a code depends on beside its own tile, each None where nothing needs it: K's ``mean``, V's ``v_scale`` and
    its reciprocal ``(B*H, D)``, the bits of the maxima over cubes ``(B*H, cubes)``."""

    mean: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None
    v_inverse: torch.Tensor | None = None
    q_amax: torch.Tensor | None = None
    k_amax: torch.Tensor | None = None


def slots_of(width: int, form: str) -> int:
    """Return the rows reserved for a tile of ``width``: a power of two, as the tensor cores need."""
    return max(32 if form == "e4m3" else 16, 1 << (width - 1).bit_length())


def quantize(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: Spec) -> Quantized:
    """Return ``q, k, v (B, S, H, D)`` (any strides) as codes in tile order; ``spec.format`` is 'e4m3' or 'int8'.

    Raises ValueError for another format.
    """
    if spec.format not in LARGEST:
        raise ValueError(f"quantization writes e4m3 or int8 codes, got the format '{spec.format}'.")
    q, k, v = (_rows_of(x) for x in (q, k, v))
    batch, _, heads, dim = q.shape
    slots, tiles = slots_of(spec.index.shape[1], spec.format), spec.index.shape[0]
    e4m3 = spec.format == "e4m3"
    dtype = torch.float8_e4m3fn if e4m3 else torch.int8
    codes = [torch.empty(batch, heads, tiles * slots, dim, dtype=dtype, device=q.device) for _ in range(2)]
    values = torch.empty(batch, heads, dim, tiles * slots, dtype=dtype, device=q.device) if e4m3 else None
    statistics = _statistics(q, k, v, spec)
    scales = _write(q, k, v, spec, statistics, (*codes, values), slots, transposed=True)
    v_scale = statistics.v_scale.view(batch, heads, dim) if e4m3 else None
    return Quantized(*codes, values, *scales, v_scale)


def tiles_for_backward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: Spec, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """Return ``(qc, kc, vc, q_scale, k_scale)``: ``(B, H, tiles*slots, D)`` in ``dtype``, and scales as ``Quantized``.

    qc and kc hold the values of the codes, not scaled, and vc V as the forward sees it: rounded to e4m3 and scaled for
    'e4m3', as it is otherwise. With the format 'none' q and k are copies and the scales ``(B, H, tiles)`` are 1. Dead
    rows are 0.
    """
    q, k, v = (_rows_of(x) for x in (q, k, v))
    batch, _, heads, dim = q.shape
    slots, tiles = slots_of(spec.index.shape[1], spec.format), spec.index.shape[0]
    out = [torch.empty(batch, heads, tiles * slots, dim, dtype=dtype, device=q.device) for _ in range(3)]
    statistics = _statistics(q, k, v, spec) if spec.format != "none" else _Statistics()
    return (*out, *_write(q, k, v, spec, statistics, out, slots, transposed=False))


def _rows_of(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _strides(*tensors: torch.Tensor) -> list[int]:
    return [x.stride(axis) for x in tensors for axis in (0, 1, 2)]


def _warps(numbers: int) -> int:
    return max(1, min(32, numbers // (32 * _PER_THREAD)))


def _shared(spec: Spec) -> bool:
    """Whether several tiles share a scale."""
    return spec.granularity not in ("token", "x1")


def _statistics(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: Spec) -> _Statistics:
    """Return what the codes of ``spec`` depend on beside their own tiles."""
    channels, shared = spec.format == "e4m3", _shared(spec)
    if not (channels or shared or spec.smooth_k):
        return _Statistics()
    from .triton_quantize_kernels import finish_statistics, statistics

    batch, tokens, heads, dim = q.shape
    rows, (tiles, width), device = batch * heads, spec.index.shape, q.device
    block = slots_of(width, spec.format) if shared else _STATISTICS_ROWS
    blocks = tiles if shared else -(-tokens // block)
    steps = -(-blocks // -(-_STATISTICS_PROGRAMS // rows))
    parts = -(-blocks // steps)

    def table(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(rows, count, dim, dtype=dtype, device=device)

    k_sum = table(parts) if spec.smooth_k else None
    v_amax = table(parts) if channels else None
    low = high = q_amax = k_amax = None
    if shared:
        low, high = table(tiles, k.dtype), table(tiles, k.dtype)
        q_amax, k_amax = torch.zeros(2, rows, spec.cubes, dtype=torch.int32, device=device)
    index, cube = spec.index.contiguous(), spec.cube.contiguous()
    triton_runtime.launch(
        statistics,
        (parts * rows,),
        q,
        *(q, k, v, index, cube, q_amax, low, high, k_sum, v_amax, *_strides(q, k, v)),
        *(heads, rows, tokens, tiles, width, spec.cubes, parts, steps),
        BLOCK=block,
        D=dim,
        num_warps=_warps(block * dim),
    )
    mean = table(1) if spec.smooth_k else None
    v_scale, v_inverse = (table(1), table(1)) if channels else (None, None)
    finish_blocks = -(-tiles // _FINISH_ROWS) if shared else 1
    triton_runtime.launch(
        finish_statistics,
        (finish_blocks * rows,),
        q,
        *(k_sum, v_amax, low, high, cube, mean, v_scale, v_inverse, k_amax),
        *(rows, tokens, tiles, spec.cubes, parts),
        LARGEST_V=E4M3_MAX,
        BLOCK=_FINISH_ROWS,
        D=dim,
        num_warps=4,
    )
    return _Statistics(mean, v_scale, v_inverse, q_amax, k_amax)


def _write(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    spec: Spec,
    statistics: _Statistics,
    out: tuple[torch.Tensor | None, ...] | list[torch.Tensor],
    slots: int,
    *,
    transposed: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fill ``out`` (q, k, v) and return the scales of q and k."""
    from .triton_quantize_kernels import write_tiles

    batch, _, heads, dim = q.shape
    tiles, width = spec.index.shape
    shape = (batch, heads, tiles * slots if spec.granularity == "token" and spec.format != "none" else tiles)
    if spec.format == "none":
        scales = tuple(torch.ones(shape, dtype=torch.float32, device=q.device) for _ in range(2))
        granularity = "none"
    else:
        scales = tuple(torch.empty(shape, dtype=torch.float32, device=q.device) for _ in range(2))
        granularity = {"token": "token", "x1": "tile"}.get(spec.granularity, "cube")
    s = statistics
    triton_runtime.launch(
        write_tiles,
        (tiles * batch * heads,),
        q,
        *(q, k, v, spec.index.contiguous(), spec.cube.contiguous()),
        *(s.mean, s.v_scale, s.v_inverse, s.q_amax, s.k_amax),
        *(*out, *scales, *_strides(q, k, v)),
        *(heads, batch * heads, tiles, width, spec.cubes),
        GRANULARITY=granularity,
        FORM=spec.format,
        LARGEST=LARGEST.get(spec.format, 1.0),
        SMALLEST=SMALLEST_SCALE,
        TRANSPOSED=transposed,
        SLOTS=slots,
        D=dim,
        num_warps=_warps(slots * dim),
    )
    return scales
