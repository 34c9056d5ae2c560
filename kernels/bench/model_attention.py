"""The attention of the benchmarked model: diffusers' Wan with our op or torch's in it, and marks around both."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from ..attention import fps_attention
from ..plan import AttentionPlan
from .timing import Clock

# Torch's dense attentions on a card; a whole step is compared with the faster one.
DENSE = ("cudnn", "fa2")
PARTS = ("self-attention", "cross-attention", "linears", "rest")


class Marks:
    """Pairs of marks by part of the model, while ``on``; device events on a card, seconds else."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.on = clock, False
        self.pairs: list[tuple[str, object, object]] = []

    @contextlib.contextmanager
    def around(self, part: str) -> Iterator[None]:
        """Mark beginning and end of a part."""
        if not self.on:
            yield
            return
        start = self.clock.mark()
        yield
        self.pairs.append((part, start, self.clock.mark()))

    def milliseconds(self) -> dict[str, float]:
        """Return the milliseconds by part and forget the marks."""
        self.clock.wait()
        found = dict.fromkeys(PARTS[:3], 0.0)
        for part, start, end in self.pairs:
            found[part] += self.clock.between(start, end)
        self.pairs.clear()
        return found


class State:
    """What every attention of the model follows: the plan of the step (None: dense), our backend, torch's one for what
    is dense, and the marks.

    Triton's interpreter takes seconds per call, so a stand-in's model runs on the plain reference.
    """

    def __init__(self, marks: Marks) -> None:
        self.plan: AttentionPlan | None = None
        self.backend = "auto" if marks.clock.cuda else "reference"
        self.dense = DENSE[0] if marks.clock.cuda else "torch"
        self.marks = marks


class Processor:
    """A diffusers attention processor: self-attention by the state's plan, cross-attention by torch."""

    def __init__(self, state: State) -> None:
        self.state = state

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Return the attention's output ``(B, S, dim)``."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q = attn.norm_q(attn.to_q(hidden_states)).unflatten(-1, (attn.heads, -1))
        k = attn.norm_k(attn.to_k(context)).unflatten(-1, (attn.heads, -1))
        v = attn.to_v(context).unflatten(-1, (attn.heads, -1))
        if rotary_emb is not None:
            q, k = rotate(q, *rotary_emb).to(v.dtype), rotate(k, *rotary_emb).to(v.dtype)
        crossed = encoder_hidden_states is not None
        # Read here, so that a compiled block is compiled again for the other one: torch chooses while it traces.
        if self.state.dense not in (*DENSE, "torch"):
            raise ValueError(f"'{self.state.dense}' is no dense attention; choose one of {', '.join(DENSE)}.")
        marks, plan = self.state.marks, None if crossed else self.state.plan
        if marks.on:
            with marks.around("cross-attention" if crossed else "self-attention"):
                out = attend(q, k, v, plan, self.state.backend)
        else:
            out = attend(q, k, v, plan, self.state.backend)
        return attn.to_out[1](attn.to_out[0](out.flatten(2)))


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan | None, backend: str) -> torch.Tensor:
    """Return attention of ``q, k, v (B, S, H, D)`` by the plan, or dense by torch."""
    if plan is not None:
        return fps_attention(q, k, v, plan, backend=backend)
    return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Return ``x (B, S, H, D)`` with neighboring channels rotated as pairs; cos and sin repeat per pair."""
    pairs = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    return x * cos + pairs * sin


def dense_backend(name: str) -> contextlib.AbstractContextManager:
    """Return the context of every step: one of torch's attentions forced, or for 'torch' its own choice."""
    backends = {"cudnn": SDPBackend.CUDNN_ATTENTION, "fa2": SDPBackend.FLASH_ATTENTION}
    return sdpa_kernel(backends[name]) if name in backends else contextlib.nullcontext()


def mark_linears(model: nn.Module, marks: Marks) -> Callable[[], None]:
    """Put marks around every linear layer of the model; return what takes them off again."""
    open_marks: list[object] = []
    handles = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            handles.append(module.register_forward_pre_hook(lambda m, a: open_marks.append(marks.clock.mark())))
            handles.append(
                module.register_forward_hook(
                    lambda m, a, out: marks.pairs.append(("linears", open_marks.pop(), marks.clock.mark()))
                )
            )

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove
