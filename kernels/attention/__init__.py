"""FP8 block-sparse attention over 3D tiles: one op, several backends, one plain-torch reference."""

from __future__ import annotations

import torch

from ..plan import AttentionPlan, BlockLists
from ..selectors.mask_lists import wants_gradient
from . import op
from .dispatch import (
    BACKENDS,
    FP8_FORM,
    BackendError,
    backends,
    choose_backend,
    chosen_backends,
    force_backend,
    forget_backends,
    requested,
    resolve_backend,
)
from .spec import Spec

__all__ = [
    "BACKENDS",
    "BackendError",
    "backends",
    "choose_backend",
    "chosen_backends",
    "force_backend",
    "forget_backends",
    "fps_attention",
    "make_spec",
    "resolve_backend",
]


def fps_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: AttentionPlan,
    *,
    backend: str = "auto",
    lists: BlockLists | None = None,
) -> torch.Tensor:
    """Return attention of ``q, k, v (B, S, H, D)`` by ``plan``, with q's shape and dtype.

    q and k are taken after RoPE; D is 64 or 128; S must be the plan's token count. Differentiable. ``auto`` takes the
    best backend that can run (``resolve_backend`` says which and why, ``force_backend`` overrides), a named one raises
    BackendError if it cannot. Any strides will do as long as channels are contiguous: views of a fused projection are
    read where they are; else the input is copied. Waits for nothing and reads nothing back from the device.
    ``lists`` are those of this call where the caller has asked the plan for them already (``lists_for``).
    Raises ValueError, one sentence, where q, k, v and the plan do not fit each other.
    """
    if q.dim() != 4 or q.shape != k.shape or q.shape != v.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"q, k and v must share one shape (B, S, H, D), got {shapes}.")
    if q.shape[1] != plan.grid.tokens:
        raise ValueError(f"q has {q.shape[1]} tokens, the plan's grid {plan.grid} has {plan.grid.tokens}; plan again.")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v must share one dtype, got {q.dtype}, {k.dtype} and {v.dtype}.")
    name, _ = resolve_backend(requested(backend), q.device, q.dtype, q.shape[-1], plan.attention)
    layout = plan.layout
    if not q.device == k.device == v.device == layout.index.device:
        devices = f"{q.device}, {k.device} and {v.device}"
        raise ValueError(f"q, k and v are on {devices}, the plan is on {layout.index.device}; plan for their device.")
    if lists is None:
        lists = plan.lists_for(q, k, v)
    if problem := lists.problem(layout.index.shape[0], q.shape[0], q.shape[2]):
        raise ValueError(f"the plan's lists do not fit: {problem}; plan again.")
    if lists.forward_only and wants_gradient(q, k, v):
        raise ValueError(
            "these lists were made without gradients and have no backward; ask the plan for them (lists_for) with "
            "gradients on and the q, k, v of this call."
        )
    if q.numel() == 0:
        return torch.empty_like(q, memory_format=torch.contiguous_format)
    spec = make_spec(plan, lists, name)
    return op.attention_forward(q, k, v, *spec.tensors, *spec.scalars, name)[0]


def make_spec(plan: AttentionPlan, lists: BlockLists, backend: str) -> Spec:
    """Return what the op needs of ``plan`` with ``lists`` for ``backend``, a name from ``resolve_backend``."""
    layout = plan.layout
    # Without FP8 in the forward there must be none in the backward.
    form = FP8_FORM[backend] if plan.attention == "fp8" else "none"
    # A short last tile is looked for at the end of a list; lists that are made in the call may be in any order.
    uniform = layout.uniform if plan.lists is not None or layout.uniform == layout.last else 0
    return Spec(
        layout.index, layout.live, layout.cube,
        lists.ids, lists.count, lists.pattern_of_head, lists.key_ids, lists.key_count,
        layout.cubes, uniform, layout.last,
        plan.granularity if form != "none" else None, plan.smooth_k, form,
    )  # fmt: skip
