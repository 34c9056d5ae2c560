"""Self-attention of the trained model: a diffusers attention processor that runs the plan of the current step.

Only self-attention (``attn1``) is touched; cross-attention stays diffusers' own. Which plan runs is a property of the
*step*, set around forward and backward together, because activation checkpointing runs the forward again in backward.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import scaled_dot_product_attention

from ..kernels.attention import fps_attention
from ..kernels.plan import AttentionPlan
from .model import WanTransformer3DModel
from .sparse import SparseAttention, latent_grid

if TYPE_CHECKING:
    from .parallel.sequence import SequenceGroup


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


# What a layer holds outside a step.
_OUTSIDE = "outside"
# Branches of guidance, as head tables number them.
PROMPT, NEGATIVE = 0, 1


class StepState:
    """The plan per layer that a model's self-attention follows until the step is left.

    Every layer is handed its plan on entry, so that compiled blocks only read it. ``layers`` are the attentions of the
    blocks, ``heads`` all heads of each; with a ``group`` this process computes its share of them.
    """

    def __init__(self, heads: int, layers: Sequence[torch.nn.Module]) -> None:
        self.heads = heads
        self.device: torch.device | None = None  # of the computation; None: where the weights are
        self.group: SequenceGroup | None = None
        self._layers = list(layers)
        self._sigma: float | None = None
        self._seen: torch.Tensor | None = None
        self._calls = 0

    @contextlib.contextmanager
    def step(
        self,
        attention: SparseAttention,
        sigma: float,
        latent_shape: Sequence[int],
        branch: int | Sequence[int] = PROMPT,
    ) -> Iterator[None]:
        """Hold the plans of this sigma and grid for everything inside, forward and backward.

        ``branch`` is PROMPT or NEGATIVE, of all samples or of each: a head table may tell them apart. Layers that the
        table does not know are dense. Raises RuntimeError when a step is entered inside another one: a recompute would
        read the wrong plan; ValueError, one sentence, for a table of a model with another number of heads.
        """
        if self._sigma is not None:
            raise RuntimeError(
                f"an attention step at sigma {self._sigma:g} is still open; leave it (after backward) "
                f"before entering sigma {sigma:g}"
            )
        grid, table, count = latent_grid(latent_shape), attention.heads, len(self._layers)
        if table is not None and table.heads != self.heads:
            raise ValueError(table.misfit(count, self.heads))
        rank, shared = (0, 1) if self.group is None else (self.group.rank, self.group.size)
        plans = attention.plans(grid, self.heads // shared, rank * (self.heads // shared))
        device = self.device or next(self._layers[0].parameters()).device
        branches = (branch,) if isinstance(branch, int) else tuple(branch)
        per_layer = [None] * count if plans is None else plans.layers(float(sigma), count, device, branches)
        self._sigma, self._seen, self._calls = float(sigma), None, 0
        try:
            for layer, plan in zip(self._layers, per_layer):
                layer.processor.plan, layer.processor.backend = plan, attention.backend
                layer.processor.tokens = grid.tokens
            yield
        finally:
            self._sigma = None
            for layer in self._layers:
                layer.processor.plan = _OUTSIDE

    @property
    def online_density(self) -> float | None:
        """The mean density that online selectors came to in the last step, over its calls, samples and the heads of
        this process; None where none decided, or compiled blocks did. Reading it waits for the device."""
        return None if self._seen is None else float(self._seen) / self._calls

    def note(self, density: torch.Tensor) -> None:
        """Take note of what one call came to; a recomputed call counts again, as all of its step do."""
        density = density.detach()
        self._seen = density if self._seen is None else self._seen + density
        self._calls += 1


class SelfAttention(_wan_processor()):  # type: ignore[misc]
    """Diffusers' processor for dense steps, ours for steps with a plan."""

    def __init__(self, state: StepState) -> None:
        super().__init__()
        self.state, self.backend, self.tokens = state, "auto", 0
        self.plan: AttentionPlan | str | None = _OUTSIDE
        # What computes attention in place of the plan: the search of head patterns puts itself here.
        self.instead: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None = None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        """Return self-attention's output (B, S, dim)."""
        plan = self.plan
        if isinstance(plan, str):
            raise RuntimeError("the model ran outside an attention step; wrap forward and backward in StepState.step")
        group = self.state.group
        if plan is None and group is None and self.instead is None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        q = attn.norm_q(attn.to_q(hidden_states)).unflatten(-1, (attn.heads, -1))
        k = attn.norm_k(attn.to_k(hidden_states)).unflatten(-1, (attn.heads, -1))
        v = attn.to_v(hidden_states).unflatten(-1, (attn.heads, -1))
        q, k = rotate(q, *rotary_emb).to(v.dtype), rotate(k, *rotary_emb).to(v.dtype)
        if group is not None:
            q, k, v = (group.to_heads(x, self.tokens) for x in (q, k, v))
        if self.instead is not None:
            out = self.instead(q, k, v)
        elif plan is None:
            out = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
        else:
            # The op chooses its own precisions: autocast inside it would change them.
            with torch.autocast(q.device.type, enabled=False):
                lists = plan.lists_for(q, k, v)
                # A compiled block must not change what is outside of it.
                if lists.density is not None and not torch.compiler.is_compiling():
                    self.state.note(lists.density)
                out = fps_attention(q, k, v, plan, backend=self.backend, lists=lists)
        if group is not None:
            out = group.to_tokens(out, self.tokens)
        return attn.to_out[1](attn.to_out[0](out.flatten(2)))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Return x (B, S, H, D) with neighboring channels rotated as pairs; cos and sin (1, S, 1, D) repeat per pair."""
    pairs = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    return x * cos + pairs * sin


def attention_state(model: WanTransformer3DModel) -> StepState:
    """Return the state that steers the model's self-attention, giving it our processors the first time."""
    first = model.blocks[0].attn1.processor
    if isinstance(first, SelfAttention):
        return first.state
    state = StepState(model.config.num_attention_heads, [block.attn1 for block in model.blocks])
    for block in model.blocks:
        block.attn1.set_processor(SelfAttention(state))
    return state


def compute_device(model: WanTransformer3DModel) -> torch.device:
    """Return the device that the model computes on, which is not where offloaded weights lie."""
    return attention_state(model).device or next(model.parameters()).device
