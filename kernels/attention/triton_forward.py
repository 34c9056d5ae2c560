"""The Triton forward: how the kernel is launched on a call's tensors.

Importing this module imports no triton; launching does.
"""

from __future__ import annotations

import math

import torch

from .. import triton_runtime
from ..quantize.triton_quantize import Quantized, quantize, slots_of
from .configs import Config, default
from .spec import Spec

# The code of 1.0 in e4m3.
E4M3_ONE = 0x38
KIND = {"none": "16", "e4m3": "fp8", "int8": "int8"}


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: Spec, *, stats: bool = True, config: Config | None = None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Return ``(out, lse, rowmax)`` of attention on ``q, k, v (B, S, H, D)`` by ``spec``.

    ``out`` is contiguous, of q's shape and dtype. With ``stats``, ``lse`` and ``rowmax`` (the largest score, rounded
    up to an integer) are float32 ``(B, H, S)`` in log2 units, else None; a query whose list is empty gets output 0,
    lse -inf and rowmax 0. Strides are free as long as channels are contiguous; only else are inputs copied.
    """
    if spec.format == "none":
        return forward_codes(q, k, v, None, spec, stats=stats, config=config)
    v = v if v.stride(-1) == 1 else v.contiguous()
    return forward_codes(q, k, v, quantize(q, k, v, spec), spec, stats=stats, config=config)


def forward_codes(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    codes: Quantized | None,
    spec: Spec,
    *,
    stats: bool = True,
    config: Config | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Return :func:`forward`'s result from the ``codes`` of q, k, v (None: the format 'none')."""
    from .triton_kernels import sparse_attention_forward

    kind = KIND[spec.format]
    batch, tokens, heads, dim = q.shape
    tiles, width = spec.index.shape
    slots = slots_of(width, spec.format)
    mask, live = mask_of(spec, slots)
    per_token = spec.granularity == "token"
    if config is None:
        config = default(kind, triton_runtime.capability(q.device), slots, dim, per_token=per_token, mask=mask)
    out = torch.empty((batch, tokens, heads, dim), dtype=q.dtype, device=q.device)
    lse = rowmax = None
    if stats:
        lse, rowmax = (torch.empty((batch, heads, tokens), dtype=torch.float32, device=q.device) for _ in range(2))
    scales = (None, None, None)
    if codes is not None:
        q, k, v = codes.q, codes.k, v if codes.v is None else codes.v
        scales = (codes.q_scale, codes.k_scale, codes.v_scale)
    if codes is None:
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    elif config.descriptors:
        k = _descriptor(k.view(-1, dim), (config.block_n, dim))
        v = _descriptor(v.view(-1, tiles * slots), (dim, config.block_n))
    # Codes are dense and in tile order: the kernel knows where they are.
    gathered = {"16": (q, k, v), "int8": (None, None, v), "fp8": (None, None, None)}[kind]
    strides = [0 if x is None else x.stride(axis) for x in gathered for axis in (0, 2, 1)]
    if mask == "last" and not config.odd_tile_first:
        mask, live = "count", slots
    ones = None
    if config.sum_by_mma:
        # Two kilobytes in every call: what is kept between calls would be shared by streams and captured graphs.
        ones = torch.full((128, 16), E4M3_ONE, dtype=torch.uint8, device=out.device).view(torch.float8_e4m3fn)
    triton_runtime.launch(
        sparse_attention_forward,
        (tiles * (slots // config.block_m), batch * heads),
        out,
        q,
        k,
        v,
        *scales,
        out,
        lse,
        rowmax,
        spec.index,
        spec.live,
        spec.ids,
        spec.count,
        spec.pattern_of_head,
        ones,
        math.log2(math.e) / math.sqrt(dim),
        *strides,
        heads,
        tokens,
        tiles,
        width,
        spec.ids.shape[-1],
        spec.ids.shape[0],
        heads if spec.pattern_of_head.shape[0] > 1 else 0,
        KIND=kind,
        SCALE_PER_TOKEN=per_token,
        MASK=mask,
        LIVE=live,
        STATS=stats,
        SLOTS=slots,
        D=dim,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        PAIRS=config.pairs,
        DESCRIPTORS=config.descriptors,
        SUM_BY_MMA=config.sum_by_mma,
        APART=config.apart,
        STAGES=config.stages,
        num_warps=config.warps,
        maxnreg=config.registers,
    )
    return out, lse, rowmax


def mask_of(spec: Spec, slots: int) -> tuple[str, int]:
    """Return how dead rows are told, and the live rows that are known when compiling (see the kernel's MASK, LIVE)."""
    if not spec.uniform:
        return "count", slots
    return ("constant" if spec.uniform == spec.last else "last"), spec.uniform


def _descriptor(x: torch.Tensor, block: tuple[int, int]) -> object:
    """Return a host descriptor of the dense 2D ``x`` for loads of ``block``."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(x, list(x.shape), list(x.stride()), list(block))
