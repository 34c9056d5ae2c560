"""Activation checkpointing: blocks are recomputed in backward, whole or all but their attention.

``attention`` keeps what the attention ops return (output and row statistics), so that the dearest part of a block at
75,600 tokens runs once forward and once backward; the linear layers before it are recomputed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ..model import WanTransformer3DModel


def recompute_blocks(model: WanTransformer3DModel, mode: str) -> None:
    """Make every block of the model keep its input only; ``mode`` is 'none', 'full' or 'attention'.

    The block's forward is wrapped, not the block: parameter names stay, and sharding hooks run outside.
    """
    if mode == "none":
        return
    extra = {} if mode == "full" else {"context_fn": _keep_attention}
    for block in model.blocks:
        block.forward = _recomputed(block.forward, extra)


def _recomputed(forward: Callable, extra: dict) -> Callable:
    # A function of our own: torch.compile finds nothing to compile behind a functools.partial, and does not say so.
    def run(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **extra, **kwargs)

    return run


def _attention_ops() -> frozenset:
    """Return every op that is attention: ours, and the forms that torch's dense one takes."""
    aten = torch.ops.aten
    names = (
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
    )
    dense = [getattr(aten, name).default for name in names if hasattr(aten, name)]
    return frozenset([torch.ops.fpsattention.forward.default, *dense])


def _keep_attention():
    kept = _attention_ops()

    def policy(_context, op, *args, **_kwargs):
        # Cross-attention looks at 512 tokens only: to run it again is cheap, to keep it would take as much as its like.
        keep = op in kept and args[0].shape == args[1].shape
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
