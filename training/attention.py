"""Self-attention of the trained model: a diffusers attention processor that runs the plan of the current step.

Only self-attention (``attn1``) is touched; cross-attention stays diffusers' own. Which plan runs is a property of the
*step*, set around forward and backward together, because activation checkpointing runs the forward again in backward.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence

import torch

from ..kernels.attention import fps_attention
from ..kernels.plan import AttentionPlan, Plans
from .model import WanTransformer3DModel
from .sparse import SparseAttention, latent_grid


def _wan_processor() -> type:
    """Return diffusers' processor class; raises ImportError with a sentence if its call differs from what is known."""
    try:
        from diffusers.models.transformers.transformer_wan import WanAttnProcessor
    except ImportError:
        raise ImportError("this diffusers has no WanAttnProcessor; install diffusers 0.39 to 0.42") from None
    have = list(inspect.signature(WanAttnProcessor.__call__).parameters)[1:6]
    want = ["attn", "hidden_states", "encoder_hidden_states", "attention_mask", "rotary_emb"]
    if have != want:
        raise ImportError(f"diffusers' WanAttnProcessor takes {have}, expected {want}; install diffusers 0.39 to 0.42")
    return WanAttnProcessor


class StepState:
    """The plan per layer that a model's self-attention follows until the step is left."""

    def __init__(self, heads: int) -> None:
        self.heads = heads
        self._plans: Plans | None = None
        self._sigma: float | None = None
        self._backend = "auto"

    @contextlib.contextmanager
    def step(self, attention: SparseAttention, sigma: float, latent_shape: Sequence[int]) -> Iterator[None]:
        """Hold the plan of this sigma and grid for everything inside, forward and backward.

        Raises RuntimeError when a step is entered inside another one: a recompute would read the wrong plan.
        """
        if self._sigma is not None:
            raise RuntimeError(
                f"an attention step at sigma {self._sigma:g} is still open; leave it (after backward) "
                f"before entering sigma {sigma:g}"
            )
        self._plans = attention.plans(latent_grid(latent_shape), self.heads)
        self._sigma, self._backend = float(sigma), attention.backend
        try:
            yield
        finally:
            self._plans, self._sigma = None, None

    def plan(self, layer: int, device: torch.device) -> AttentionPlan | None:
        """Return the plan of a layer, None for dense; raises RuntimeError outside a step."""
        if self._sigma is None:
            raise RuntimeError("the model ran outside an attention step; wrap forward and backward in StepState.step")
        return None if self._plans is None else self._plans.at(self._sigma, layer, device)

    @property
    def backend(self) -> str:
        """The backend that the step asks for."""
        return self._backend


class SelfAttention(_wan_processor()):  # type: ignore[misc]
    """Diffusers' processor for dense steps, ours for steps with a plan."""

    def __init__(self, state: StepState, layer: int) -> None:
        super().__init__()
        self.state, self.layer = state, layer

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        """Return self-attention's output (B, S, dim)."""
        plan = self.state.plan(self.layer, hidden_states.device)
        if plan is None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        q = attn.norm_q(attn.to_q(hidden_states)).unflatten(-1, (attn.heads, -1))
        k = attn.norm_k(attn.to_k(hidden_states)).unflatten(-1, (attn.heads, -1))
        v = attn.to_v(hidden_states).unflatten(-1, (attn.heads, -1))
        q, k = rotate(q, *rotary_emb).to(v.dtype), rotate(k, *rotary_emb).to(v.dtype)
        # The op chooses its own precisions: autocast inside it would change them.
        with torch.autocast(q.device.type, enabled=False):
            out = fps_attention(q, k, v, plan, backend=self.state.backend).flatten(2)
        return attn.to_out[1](attn.to_out[0](out))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Return x (B, S, H, D) with neighboring channels rotated as pairs; cos and sin (1, S, 1, D) repeat per pair."""
    pairs = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    return x * cos + pairs * sin


def attention_state(model: WanTransformer3DModel) -> StepState:
    """Return the state that steers the model's self-attention, giving it our processors the first time."""
    first = model.blocks[0].attn1.processor
    if isinstance(first, SelfAttention):
        return first.state
    state = StepState(model.config.num_attention_heads)
    for layer, block in enumerate(model.blocks):
        block.attn1.set_processor(SelfAttention(state, layer))
    return state
