"""The Triton backward: how its kernels are launched on a call's tensors.

Importing this module imports no triton; launching does.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from .. import triton_runtime
from ..quantize.triton_quantize import tiles_for_backward
from .spec import HEAD_DIMS, Spec


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
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ``(dq, dk, dv)``, contiguous, of q's shape and dtype: the straight-through gradient of the forward.

    q, k, v, grad, out: ``(B, S, H, D)``, any strides; lse and rowmax: the forward's, float32 ``(B, H, S)`` in log2
    units. ``dtype`` is that of the products' operands, by default bfloat16, which holds every code; float16 inputs
    that nothing rounds keep theirs; float32 is for tests. Sums are float32. Beside the results it takes a copy in
    ``dtype`` of q, k, v and grad in tile order, and twelve bytes per row of each head. Raises ValueError for other head
    dimensions.
    """
    from .triton_backward_kernels import backward_keys, backward_queries, backward_rows

    batch, tokens, heads, dim = q.shape
    if dim not in HEAD_DIMS:
        raise ValueError(f"the Triton kernels take head dimension 64 or 128, got {dim}.")
    tiles, width = spec.index.shape
    index, pattern = spec.index.contiguous(), spec.pattern_of_head.contiguous()
    grad, out = (x if x.stride(-1) == 1 else x.contiguous() for x in (grad, out))
    rounded = spec.format == "e4m3"
    if dtype is None:
        dtype = torch.float16 if spec.format == "none" and q.dtype == torch.float16 else torch.bfloat16

    qc, kc, vc, q_scale, k_scale = tiles_for_backward(q, k, v, spec, dtype)
    slots = qc.shape[2] // tiles
    per_token = q_scale.shape[-1] != tiles
    gc = torch.empty_like(qc)
    bias, delta, scaled_delta = (torch.empty(qc.shape[:3], dtype=torch.float32, device=q.device) for _ in range(3))
    block = min(slots, 64)
    triton_runtime.launch(
        backward_rows, (tiles * (slots // block), batch * heads), q,
        grad, out, lse.contiguous(), rowmax.contiguous(), index, q_scale, gc, bias, delta, scaled_delta,
        *(x.stride(axis) for x in (grad, out) for axis in (0, 2, 1)),
        heads, tokens, width,
        ROUNDED=rounded, SCALE_PER_TOKEN=per_token, SLOTS=slots, D=dim, BLOCK=block, num_warps=4,
    )  # fmt: skip

    dq, dk, dv = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    capability = triton_runtime.capability(q.device)
    for kernel, row_delta, targets, ids, count in (
        (backward_queries, delta, (dq,), spec.ids, spec.count),
        (backward_keys, scaled_delta, (dk, dv), spec.key_ids, spec.key_count),
    ):
        over_keys = kernel is backward_keys
        options = launch_options(capability, slots, dim, over_keys=over_keys, dtype=dtype)
        sources = [qc, kc, vc, gc]
        if options["DESCRIPTORS"]:
            # The program's own rows: keys and values for dK and dV, queries and gradients for dQ.
            own = (False, True, True, False) if over_keys else (True, False, False, True)
            sources = [_descriptor(x, options["BLOCK" if mine else "STEP"]) for x, mine in zip(sources, own)]
        triton_runtime.launch(
            kernel, (tiles * (slots // options["BLOCK"]), batch * heads), q,
            *sources, q_scale, k_scale, bias, row_delta, *targets, index, ids.contiguous(), count.contiguous(), pattern,
            1.0 / math.sqrt(dim), heads, tokens, tiles, width, ids.shape[-1], ids.shape[0],
            heads if pattern.shape[0] > 1 else 0,
            ROUNDED=rounded, SCALE_PER_TOKEN=per_token, SLOTS=slots, D=dim, **options,
        )  # fmt: skip
    return dq, dk, dv


def launch_options(
    capability: int, slots: int, dim: int, *, over_keys: bool, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Any]:
    """Return the block sizes, warps, stages and kind of loads of one kernel; no 16-bit one spills registers.

    ``BLOCK`` rows are a program's own and stay, ``STEP`` rows of the listed tiles come and go.
    """
    if dtype == torch.float32:
        return {"BLOCK": min(slots, 32), "STEP": min(slots, 32), "DESCRIPTORS": False, "num_warps": 4, "num_stages": 1}
    # Hopper and data-center Blackwell: one warpgroup for every 64 rows of its own. dK and dV fill its registers at 64
    # rows a step, dQ leaves room for 128. Others: 64 rows are shared by eight warps, or by four with a narrow head.
    wide = capability in (90, 100, 103)
    block = min(slots, 128 if wide else 64)
    if wide:
        step, warps = (block if dim == 128 and not over_keys else min(block, 64)), max(4, block // 16)
    else:
        step, warps = (min(block, 64), 8) if dim == 128 and block == 64 else (min(block, 32), 4)
    options = {"BLOCK": block, "STEP": step, "num_warps": min(warps, block // 8), "num_stages": 2}
    if wide and capability >= 100:
        options["maxnreg"] = 255  # else the assembler aims at 128 and spills
    return {**options, "DESCRIPTORS": capability >= 90 and block >= 64}


def _descriptor(x: torch.Tensor, rows: int) -> Any:
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(x.view(-1, x.shape[-1]), [rows, x.shape[-1]])
