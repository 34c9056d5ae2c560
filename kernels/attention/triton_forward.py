"""The Triton forward: what it needs, and how it is launched.

Importing this module imports no triton; launching does.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch

from ..triton_runtime import launch

HEAD_DIMS = (64, 128)
BF16_DTYPES = (torch.bfloat16, torch.float16)
# The matrix instructions multiply 16 16-bit or 32 FP8 numbers at a time; a tile is the summed axis of P V.
MIN_SLOTS = {"bf16": 16, "fp8": 32}


class Layout(Protocol):
    """Where the tokens of a tile are, on the device of q."""

    index: torch.Tensor  # int32 or int64 (tiles, width): the token of every slot, live rows first, -1 where dead
    live: torch.Tensor  # int32 (tiles,)


class Lists(Protocol):
    """Which key tiles every query tile sees, on the device of q."""

    ids: torch.Tensor  # int32 (patterns, tiles, longest list)
    count: torch.Tensor  # int32 (patterns, tiles); 0 is legal
    pattern_of_head: torch.Tensor  # int32 (1 or B, H)


def forward_bf16(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lay: Layout,
    lists: Lists,
    *,
    scale: float,
    return_lse: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Return ``(out, lse, rowmax)`` of sparse attention on bf16 or fp16 tensors in token order.

    q, k, v: ``(B, S, H, D)``, any strides. ``out`` is contiguous, of q's shape and dtype. With ``return_lse``, ``lse``
    and ``rowmax`` (the largest score, rounded up to an integer) are float32 ``(B, H, S)`` in log2 units, else None.
    A query whose list is empty gets output 0, lse -inf and rowmax 0. Tiles are computed on as many rows as the next
    power of two of the index' width. Raises ValueError for a dtype or a head dimension that the kernel does not take.
    """
    if q.dtype not in BF16_DTYPES or not q.dtype == k.dtype == v.dtype:
        raise ValueError(
            f"the bf16 kernel takes bfloat16 or float16 tensors of one dtype, got {q.dtype}, {k.dtype} and {v.dtype}."
        )
    batch, tokens, heads, dim = q.shape
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    slots = max(MIN_SLOTS["bf16"], 1 << (lay.index.shape[1] - 1).bit_length())
    strides = [x.stride(axis) for x in (q, k, v) for axis in (0, 2, 1)]
    return _launch(
        (q, k, v),
        (None, None, None),
        [*strides, 1],
        lay,
        lists,
        shape=(batch, tokens, heads, dim),
        slots=slots,
        scale=scale,
        out_dtype=q.dtype,
        return_lse=return_lse,
    )


def forward_fp8(
    qq: torch.Tensor,
    kq: torch.Tensor,
    vq: torch.Tensor,
    q_scale: torch.Tensor,
    k_scale: torch.Tensor,
    v_scale: torch.Tensor,
    lay: Layout,
    lists: Lists,
    *,
    tokens: int,
    scale: float,
    out_dtype: torch.dtype,
    return_lse: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Return ``(out, lse, rowmax)`` of sparse attention on e4m3 tensors in tile order.

    qq, kq: ``(B, H, tiles*slots, D)``, tile ``i`` in rows ``i*slots ..``, dead rows zero. vq: ``(B, H, D,
    tiles*slots)``, dead columns zero. q_scale, k_scale: float32 ``(B, H, tiles*slots)``, one per token, or
    ``(B, H, tiles)``, one per tile; v_scale: float32 ``(B, H, D)``. ``tokens`` is S: outputs are in token order, as in
    :func:`forward_bf16`. Raises ValueError for other dtypes, layouts or slot counts.
    """
    for name, x in (("q", qq), ("k", kq), ("v", vq)):
        if x.dtype != torch.float8_e4m3fn:
            raise ValueError(f"the fp8 kernel takes float8_e4m3fn tensors, got {x.dtype} for {name}.")
    batch, heads, rows, dim = qq.shape
    tiles = lay.index.shape[0]
    slots = rows // tiles
    if kq.shape != qq.shape or vq.shape != (batch, heads, dim, rows) or slots * tiles != rows:
        raise ValueError(
            f"the fp8 kernel takes q and k (B, H, tiles*slots, D) and v (B, H, D, tiles*slots) for {tiles} tiles, "
            f"got {tuple(qq.shape)}, {tuple(kq.shape)} and {tuple(vq.shape)}."
        )
    allowed = {(batch, heads, rows): True, (batch, heads, tiles): False}
    if q_scale.shape != k_scale.shape or tuple(q_scale.shape) not in allowed:
        raise ValueError(
            f"the fp8 kernel takes q and k scales of one shape, one of {list(allowed)}, "
            f"got {tuple(q_scale.shape)} and {tuple(k_scale.shape)}."
        )
    qq, kq, vq = (x.contiguous() for x in (qq, kq, vq))
    rows_strides = [heads * rows * dim, rows * dim, dim]
    return _launch(
        (qq, kq, vq),
        tuple(x.float().contiguous() for x in (q_scale, k_scale, v_scale)),
        [*rows_strides, *rows_strides, heads * rows * dim, rows * dim, 1, rows],
        lay,
        lists,
        shape=(batch, tokens, heads, dim),
        slots=slots,
        scale=scale,
        out_dtype=out_dtype,
        return_lse=return_lse,
        scale_per_token=allowed[tuple(q_scale.shape)],
    )


def launch_options(slots: int) -> dict[str, int]:
    """Return the block sizes, warps and stages for tiles of ``slots`` rows: small enough for every supported GPU."""
    block_m = min(slots, 128)
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": min(slots, 64),
        "num_warps": 8 if block_m == 128 else 4,
        "num_stages": 2,
    }


def _launch(
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    scales: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None],
    strides: list[int],
    lay: Layout,
    lists: Lists,
    *,
    shape: tuple[int, int, int, int],
    slots: int,
    scale: float,
    out_dtype: torch.dtype,
    return_lse: bool,
    scale_per_token: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Check what both variants share, allocate the outputs and launch on the tensors' device."""
    from .triton_kernels import sparse_attention_forward

    batch, tokens, heads, dim = shape
    fp8 = scales[0] is not None
    kind = "fp8" if fp8 else "bf16"
    if dim not in HEAD_DIMS:
        raise ValueError(f"the Triton kernels take head dimension 64 or 128, got {dim}.")
    if slots & (slots - 1) or slots < MIN_SLOTS[kind]:
        raise ValueError(f"the {kind} kernel takes a power of two of at least {MIN_SLOTS[kind]} slots, got {slots}.")
    tiles, width = lay.index.shape
    ids, count = lists.ids.contiguous(), lists.count.contiguous()
    pattern = lists.pattern_of_head.contiguous()
    device = tensors[0].device
    out = torch.empty(batch, tokens, heads, dim, dtype=out_dtype, device=device)
    lse = rowmax = None
    if return_lse:
        lse, rowmax = (torch.empty(batch, heads, tokens, dtype=torch.float32, device=device) for _ in range(2))
    options = launch_options(slots)
    grid = (tiles * (slots // options["BLOCK_M"]), batch * heads)
    launch(
        sparse_attention_forward,
        grid,
        tensors[0],
        *tensors,
        *scales,
        out,
        lse,
        rowmax,
        lay.index.contiguous(),
        lay.live,
        ids,
        count,
        pattern,
        scale * math.log2(math.e),
        *strides,
        heads,
        tokens,
        tiles,
        width,
        ids.shape[-1],
        heads if pattern.shape[0] > 1 else 0,
        FP8=fp8,
        SCALE_PER_TOKEN=scale_per_token,
        STATS=return_lse,
        SLOTS=slots,
        D=dim,
        **options,
    )
    return out, lse, rowmax
