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

# Numbers of a tensor per thread: four 16-byte loads on the way, and 64 registers suffice for a pass over a tile. Where
# a tile is reduced over its rows, twice as many per thread halve what crosses warps.
_PER_THREAD = 32
_PER_THREAD_EXTREMES = 64
# Registers per thread where 16-bit numbers become codes. 64 lets four programs of 64 slots share a multiprocessor; left
# alone, the compiler takes a few more. On Blackwell 64 would spill.
_REGISTERS, _REGISTERS_BLACKWELL = 64, 72
# Tokens that a program of the channel statistics takes at once, and how many programs share the sequence: some four
# waves on an H200, and the same number on every card, so that no sum depends on the card.
STATISTICS_ROWS = 32
_STATISTICS_PROGRAMS = 2048
# Loops over blocks copy them to shared memory this many steps ahead, as far as they take at most so many bytes: four
# programs then share a multiprocessor of an H200, and one still fits those with 99 KB.
_STAGES = 4
_STAGES_BYTES = 48 * 1024
# What one step of the reduction takes: parts of the sequence, and tiles.
_FINISH_PARTS = 128
_FINISH_TILES = 32


@dataclass(frozen=True)
class Quantized:
    """What the forward reads. ``q, k (B, H, tiles*slots, D)``: e4m3 or int8 codes, dead rows 0; ``q_scale, k_scale``
    float32, ``(B, H, tiles*slots)`` for 'token', else ``(B, H, tiles)``; ``v (B, H, D, tiles*slots)``: e4m3 codes,
    slots in ``V_ORDER``, dead columns 0, with ``v_scale (B, H, D)``; both None for 'int8', which takes V as it is.

    What is not finite does not count for a scale. An infinity becomes the largest code; a NaN stays one in e4m3, and
    becomes 0 in int8, which cannot say it."""

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


def _warps(numbers: int, per_thread: int = _PER_THREAD) -> int:
    return max(1, min(32, numbers // (32 * per_thread)))


def _stages(*blocks: int) -> int:
    """Return how many steps ahead a loop over ``blocks`` bytes a step loads, plus one."""
    return max(1, min(_STAGES, 1 + _STAGES_BYTES // sum(blocks)))


def parts_of(blocks: int, rows: int) -> tuple[int, int]:
    """Return the blocks of a part and the parts, for programs that share ``blocks`` blocks of each of ``rows``."""
    steps = -(-blocks // -(-_STATISTICS_PROGRAMS // rows))
    return steps, -(-blocks // steps)


def _table(x: torch.Tensor, lines: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    batch, _, heads, dim = x.shape
    return torch.empty(batch * heads, lines, dim, dtype=dtype, device=x.device)


def _statistics(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: Spec) -> _Statistics:
    """Return what the codes of ``spec`` depend on beside their own tiles."""
    e4m3, shared = spec.format == "e4m3", spec.granularity not in ("token", "x1")
    if not (e4m3 or shared or spec.smooth_k):
        return _Statistics()
    from .triton_quantize_kernels import finish_statistics

    tokens, tiles = k.shape[1], spec.index.shape[0]
    cube = spec.cube.contiguous()
    k_sum = v_amax = low = high = q_amax = k_amax = None
    if shared:
        q_amax, k_amax = torch.zeros(2, q.shape[0] * q.shape[2], spec.cubes, dtype=torch.int32, device=q.device)
        _query_maxima(q, spec, cube, q_amax)
        k_sum, low, high = _key_extremes(k, spec)
    if e4m3 or not shared:
        summed, v_amax = _channel_statistics(k, v, spec.smooth_k and not shared, e4m3)
        k_sum = k_sum if shared else summed
    if not spec.smooth_k:
        k_sum = None
    mean = None if k_sum is None else _table(k, 1)
    v_scale, v_inverse = (_table(v, 1), _table(v, 1)) if e4m3 else (None, None)
    blocks = int(e4m3) + (-(-tiles // _FINISH_TILES) if shared else int(spec.smooth_k))
    triton_runtime.launch(
        finish_statistics,
        (blocks * q.shape[0] * q.shape[2],),
        q,
        *(k_sum, v_amax, low, high, cube, mean, v_scale, v_inverse, k_amax),
        *(
            q.shape[0] * q.shape[2],
            tokens,
            tiles,
            spec.cubes,
            *(0 if x is None else x.shape[1] for x in (k_sum, v_amax)),
        ),
        LARGEST_V=E4M3_MAX,
        PARTS=_FINISH_PARTS,
        BLOCK=_FINISH_TILES,
        D=q.shape[-1],
        num_warps=8,
    )
    return _Statistics(mean, v_scale, v_inverse, q_amax, k_amax)


def _channel_statistics(
    k: torch.Tensor, v: torch.Tensor, sums: bool, maxima: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the sums of K and the maxima of V over parts of the sequence, ``(B*H, parts, D)``."""
    from .triton_quantize_kernels import channel_statistics

    batch, tokens, heads, dim = k.shape
    steps, parts = parts_of(-(-tokens // STATISTICS_ROWS), batch * heads)
    k_sum = _table(k, parts) if sums else None
    v_amax = _table(v, parts) if maxima else None
    block = STATISTICS_ROWS * dim
    triton_runtime.launch(
        channel_statistics,
        (parts * batch * heads,),
        k,
        *(k, v, k_sum, v_amax, *_strides(k, v), heads, batch * heads, tokens, parts, steps),
        BLOCK=STATISTICS_ROWS,
        STAGES=_stages(sums * block * k.itemsize, maxima * block * v.itemsize),
        D=dim,
        num_warps=_warps(block),
    )
    return k_sum, v_amax


def _query_maxima(q: torch.Tensor, spec: Spec, cube: torch.Tensor, amax: torch.Tensor) -> None:
    """Raise ``amax (B*H, cubes)`` to the bits of the largest of Q."""
    from .triton_quantize_kernels import query_maxima

    batch, _, heads, dim = q.shape
    tiles, width = spec.index.shape
    slots = slots_of(width, spec.format)
    triton_runtime.launch(
        query_maxima,
        (tiles * batch * heads,),
        q,
        *(q, spec.index.contiguous(), cube, amax, *_strides(q), heads, batch * heads, width, spec.cubes),
        SLOTS=slots,
        D=dim,
        num_warps=_warps(slots * dim),
    )


def _key_extremes(k: torch.Tensor, spec: Spec) -> tuple[torch.Tensor, ...]:
    """Return K's sums over parts of the tiles, and its smallest and largest numbers by tile and channel."""
    from .triton_quantize_kernels import key_extremes

    batch, _, heads, dim = k.shape
    tiles, width = spec.index.shape
    slots = slots_of(width, spec.format)
    steps, parts = parts_of(tiles, batch * heads)
    k_sum, low, high = _table(k, parts), _table(k, tiles, k.dtype), _table(k, tiles, k.dtype)
    triton_runtime.launch(
        key_extremes,
        (parts * batch * heads,),
        k,
        *(k, spec.index.contiguous(), low, high, k_sum, *_strides(k)),
        *(heads, batch * heads, tiles, width, parts, steps),
        STAGES=_stages(slots * dim * k.itemsize),
        SLOTS=slots,
        D=dim,
        num_warps=_warps(slots * dim, _PER_THREAD_EXTREMES),
    )
    return k_sum, low, high


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
    limited = transposed and q.element_size() == 2
    registers = _REGISTERS if triton_runtime.capability(q.device) < 100 else _REGISTERS_BLACKWELL
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
        TRANSPOSED=transposed and out[2] is not None,
        SLOTS=slots,
        D=dim,
        num_warps=_warps(slots * dim),
        **({"maxnreg": registers} if limited else {}),
    )
    return scales
