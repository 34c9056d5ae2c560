"""The attention override of one model call: which call is self-attention, and whether it may run sparse.

A ``Call`` lives as long as one call of the diffusion model. The block patch hands it each block's plan; the first
attention call that follows inside the block is the self-attention. Nothing here reads a device value, caches or logs:
that all happens in the wrapper, so that a compiled block sees only tensors and flags.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..kernels.attention import fps_attention
from ..kernels.attention.dispatch import HEAD_DIMS
from .record import Step


class Call:
    """The state of one call of the diffusion model in a sparse phase."""

    def __init__(self, plans: list, backend: str, step: Step, known_layout: bool, previous: Callable | None):
        self.plans = plans
        self.backend = backend
        self.step = step
        self.known_layout = known_layout
        self.previous = previous
        self.blocks = 0
        self.attended = False
        self.outside = 0
        self._inside = False
        self._plan = None
        self._reason: str | None = None

    def enter(self, block: int) -> bool:
        """A block begins: its first attention call is its self-attention. False if it had begun already."""
        if self._inside:
            return False
        self._inside = True
        self._plan = self.plans[block]
        self._reason = None
        self.blocks += 1
        return True

    def leave(self) -> None:
        """A block is over: count what its self-attention did."""
        self._inside = False
        if self._plan is not None:
            self.step.decline("another node took over the attention of these blocks")
        elif self._reason is not None:
            self.step.decline(self._reason)
        else:
            self.step.sparse += 1
        self._plan = None

    def override(self, func: Callable, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
        """The host's hook: run a block's self-attention sparse, hand everything else on unchanged."""
        plan, self._plan = self._plan, None
        self.attended = True
        if plan is not None:
            heads = kwargs.get("heads", args[0] if args else None)
            self._reason = dense_reason(q, k, v, heads, args, kwargs, plan, self.known_layout)
            if self._reason is None:
                b, s, _ = q.shape
                shape = (b, s, heads, -1)
                out = fps_attention(q.view(shape), k.view(shape), v.view(shape), plan, backend=self.backend)
                return out.reshape(b, s, -1)
        elif not self._inside and q.shape == k.shape and q.shape[1] == self.plans[0].grid.tokens != 512:
            # 512 tokens may be text. Elsewhere a call of the video's own length is a self-attention that no block
            # patch announced, such as VACE's control blocks.
            self.outside += 1
        if self.previous is not None:
            return self.previous(func, q, k, v, *args, **kwargs)
        return func(q, k, v, *args, **kwargs)

    def settle(self) -> None:
        """The model call is over: count the blocks that never reached the block patch."""
        missed = len(self.plans) - self.blocks
        if not self.attended and not self.blocks:
            # Nothing was computed, so nothing stayed dense either.
            self.step.reasons["another node skipped the model in this step"] = 0
        elif missed:
            self.step.decline("another node replaced the patch of these blocks", missed)
        extra = self.outside - missed if missed else self.outside
        if extra > 0:
            self.step.decline("attention outside the main blocks (VACE control blocks) is left dense", extra)


def dense_reason(
    q: Any, k: Any, v: Any, heads: int | None, args: tuple, kwargs: dict, plan: Any, known_layout: bool
) -> str | None:
    """Return why a self-attention call must stay dense, or None if it may run sparse."""
    if kwargs.get("skip_reshape") or q.ndim != 3:
        return "q, k and v are not laid out as (batch, tokens, channels)"
    if kwargs.get("mask", args[1] if len(args) > 1 else None) is not None:
        return "the call has an attention mask"
    if not heads or q.shape[-1] % heads:
        return f"{q.shape[-1]} channels do not split into {heads} heads"
    if q.shape != k.shape or q.shape != v.shape:
        return "q, k and v differ in shape"
    if q.shape[-1] // heads not in HEAD_DIMS:
        supported = " and ".join(map(str, HEAD_DIMS))
        return f"the head dimension is {q.shape[-1] // heads}, {supported} are supported"
    tokens, expected = q.shape[1], plan.grid.tokens
    if tokens != expected:
        if not known_layout:
            return f"{tokens - expected} extra tokens in a model class that is not known"
        return f"the sequence has {tokens} tokens where {expected} were expected from the latent"
    return None
