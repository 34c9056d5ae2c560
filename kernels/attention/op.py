"""The attention op: two ``torch.library`` custom ops (forward, backward) with fakes and an autograd formula.

They take tensors and scalars only, so ``torch.compile``, activation checkpointing and sharding see opaque ops.
"""

from __future__ import annotations

import torch

from .dispatch import run_backward, run_forward
from .spec import Spec


@torch.library.custom_op("fpsattention::forward", mutates_args=())
def attention_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    index: torch.Tensor,
    live: torch.Tensor,
    cube: torch.Tensor,
    ids: torch.Tensor,
    count: torch.Tensor,
    pattern_of_head: torch.Tensor,
    key_ids: torch.Tensor,
    key_count: torch.Tensor,
    cubes: int,
    uniform: int,
    last: int,
    granularity: str,
    smooth_k: bool,
    form: str,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ``(out (B,S,H,D), lse (B,H,S), rowmax (B,H,S))``; the last two float32 in log2 units. See ``Spec``."""
    tables = (index, live, cube, ids, count, pattern_of_head, key_ids, key_count)
    spec = Spec.make(*(x.contiguous() for x in tables), cubes, uniform, last, granularity, smooth_k, form)
    spec.check()
    # The numerics are decided here; autocast would turn single products into bf16.
    with torch.autocast(q.device.type, enabled=False):
        return run_forward(backend, q, k, v, spec)


@attention_forward.register_fake
def _(q, k, v, *args):
    batch, tokens, heads, _ = q.shape
    stats = q.new_empty((batch, heads, tokens), dtype=torch.float32)
    return torch.empty_like(q, memory_format=torch.contiguous_format), stats, torch.empty_like(stats)


@torch.library.custom_op("fpsattention::backward", mutates_args=())
def attention_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    rowmax: torch.Tensor,
    index: torch.Tensor,
    live: torch.Tensor,
    cube: torch.Tensor,
    ids: torch.Tensor,
    count: torch.Tensor,
    pattern_of_head: torch.Tensor,
    key_ids: torch.Tensor,
    key_count: torch.Tensor,
    cubes: int,
    uniform: int,
    last: int,
    granularity: str,
    smooth_k: bool,
    form: str,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ``(dq, dk, dv)``, the straight-through gradient that matches the forward."""
    tables = (index, live, cube, ids, count, pattern_of_head, key_ids, key_count)
    spec = Spec.make(*(x.contiguous() for x in tables), cubes, uniform, last, granularity, smooth_k, form)
    with torch.autocast(q.device.type, enabled=False):
        return run_backward(backend, grad, q, k, v, out, lse, rowmax, spec)


@attention_backward.register_fake
def _(grad, q, k, v, *args):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


def _save(ctx, inputs, output):
    q, k, v, *tensors = inputs[:11]
    ctx.save_for_backward(q, k, v, *output, *tensors)
    ctx.rest = inputs[11:]
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx, grad, _lse, _rowmax):
    q, k, v, out, lse, rowmax, *tensors = ctx.saved_tensors
    grads = attention_backward(grad, q, k, v, out, lse, rowmax, *tensors, *ctx.rest)
    return (*grads, *([None] * (len(tensors) + len(ctx.rest))))


attention_forward.register_autograd(_backward, setup_context=_save)
