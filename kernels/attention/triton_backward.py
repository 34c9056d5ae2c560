"""The Triton backward: what it needs, and how it is launched.

Importing this module imports no triton; launching does.
"""

from __future__ import annotations

import math

import torch

from .. import triton_runtime
from ..quantize.fp8 import channel_scales, fake_quantize_, group_scales, to_tiles, token_mean, true_quantize
from .spec import Spec

HEAD_DIMS = (64, 128)
MIN_SLOTS = {"none": 16, "e4m3": 32, "int8": 16}


def backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    rowmax: torch.Tensor,
    spec: Spec,
    *,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ``(dq, dk, dv)``, contiguous, of q's shape and dtype: the straight-through gradient of the forward.

    q, k, v, grad, out: ``(B, S, H, D)``, any strides; lse and rowmax: the forward's, float32 ``(B, H, S)`` in log2
    units. ``dtype``: that of the products (float32 is for tests); sums are float32. Takes as extra memory one tile
    ordered copy in ``dtype`` of q, k, v and grad, and eight bytes per row. Raises ValueError for other head dimensions.
    """
    from .triton_backward_kernels import backward_keys, backward_queries, backward_rows

    batch, tokens, heads, dim = q.shape
    if dim not in HEAD_DIMS:
        raise ValueError(f"the Triton kernels take head dimension 64 or 128, got {dim}.")
    tiles, width = spec.index.shape
    slots = max(MIN_SLOTS[spec.format], 1 << (width - 1).bit_length())
    index, pattern = spec.index.contiguous(), spec.pattern_of_head.contiguous()
    grad, out = (x if x.stride(-1) == 1 else x.contiguous() for x in (grad, out))
    rounded = spec.format == "e4m3"

    qc, kc, vc, q_scale, k_scale = tiles_for_backward(q, k, v, spec, dtype)
    rows = torch.empty_like(qc)
    bias, delta = (torch.empty(qc.shape[:-1], dtype=torch.float32, device=q.device) for _ in range(2))
    block = min(slots, 64)
    triton_runtime.launch(
        backward_rows, (tiles * (slots // block), batch * heads), q,
        grad, out, lse.contiguous(), rowmax.contiguous(), index, rows, bias, delta,
        *(x.stride(axis) for x in (grad, out) for axis in (0, 2, 1)),
        heads, tokens, index.shape[1],
        ROUNDED=rounded, SLOTS=slots, D=dim, BLOCK=block, num_warps=4,
    )  # fmt: skip

    dq, dk, dv = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    per_token = q_scale.shape[-1] != tiles or slots == 1
    for kernel, targets, ids, count in (
        (backward_queries, (dq,), spec.ids, spec.count),
        (backward_keys, (dk, dv), spec.key_ids, spec.key_count),
    ):
        options = launch_options(kernel.__name__, triton_runtime.capability(q.device), slots, dim, dtype)
        ids = ids.contiguous()
        triton_runtime.launch(
            kernel, (tiles * (slots // options["BLOCK"]), batch * heads), q,
            qc, kc, vc, rows, q_scale, k_scale, bias, delta, *targets, index, ids, count.contiguous(), pattern,
            1.0 / math.sqrt(dim), heads, tokens, tiles, index.shape[1], ids.shape[-1], ids.shape[0],
            heads if pattern.shape[0] > 1 else 0,
            ROUNDED=rounded, SCALE_PER_TOKEN=per_token, DESCRIPTORS=False, SLOTS=slots, D=dim, **options,
        )  # fmt: skip
    return dq, dk, dv


def launch_options(name: str, capability: int, slots: int, dim: int, dtype: torch.dtype) -> dict[str, int]:
    return {"BLOCK": min(slots, 64), "STEP": min(slots, 64), "num_warps": 4, "num_stages": 2}


def tiles_for_backward(q, k, v, spec: Spec, dtype: torch.dtype):
    tiles, width = spec.index.shape
    slots = max(MIN_SLOTS[spec.format], 1 << (width - 1).bit_length())
    index = torch.nn.functional.pad(spec.index, (0, slots - width), value=-1)
    qt, kt, vt = (to_tiles(x, index) for x in (q, k, v))
    ones = torch.ones(qt.shape[0], qt.shape[1], tiles, device=q.device)
    scales = [ones, ones]
    if spec.format != "none":
        if spec.smooth_k:
            kt -= token_mean(k)
            kt.masked_fill_((index < 0)[None, None, :, :, None], 0.0)
        groups = [group_scales(x, spec.granularity, spec.cube, spec.cubes, spec.format) for x in (qt, kt)]
        qt, kt = (true_quantize(x, s, spec.format).float() for x, s in zip((qt, kt), groups))
        scales = [s.reshape(*s.shape[:2], -1) for s in groups]
    if spec.format == "e4m3":
        fake_quantize_(vt, channel_scales(vt))
    return *(x.flatten(2, 3).to(dtype) for x in (qt, kt, vt)), *scales
