"""Sampling while something else computes self-attention: the search, or the gathering of evidence before it.

Prompt and negative prompt of a clip run in one call of the model, so that both are measured before a head's pattern is
chosen; so do the clips of one batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise

import torch

from ...kernels.outlook import sampler_sigmas
from ..attention import attention_state, compute_device
from ..model import WanTransformer3DModel, autocast
from ..sparse import DENSE
from ..step import model_inputs

Attend = Callable[[int, float, torch.Tensor, torch.Tensor, torch.Tensor, Sequence[int]], torch.Tensor]
"""(layer, sigma, q, k, v, branch of every sample) -> the output of self-attention, all (B, S, H, D)."""


@dataclass(frozen=True)
class Clip:
    """What one video is sampled from: the prompt's embedding (L, D) and the seed of the starting noise."""

    text: torch.Tensor
    seed: int


@dataclass(frozen=True)
class Sampler:
    """How all clips are sampled: latents (16, T, H, W), Euler steps under the shift, guidance; ``start`` is the first
    step's sigma where that is not 1."""

    shape: tuple[int, int, int, int]
    steps: int = 20
    shift: float = 5.0
    cfg: float = 1.0
    negative: torch.Tensor | None = None
    dtype: str = "fp32"
    start: float | None = None

    @cached_property
    def sigmas(self) -> tuple[float, ...]:
        """The steps + 1 noise levels, ending at 0."""
        first, *rest = sampler_sigmas(self.steps, self.shift)
        return (first if self.start is None else self.start, *rest)


def noise(sampler: Sampler, clips: Sequence[Clip]) -> torch.Tensor:
    """Return the starting noise (clips, 16, T, H, W): ComfyUI's, one generator per video, on the CPU."""
    each = [torch.randn((1, *sampler.shape), generator=torch.Generator().manual_seed(clip.seed)) for clip in clips]
    return torch.cat(each)


@torch.no_grad()
def run_step(
    model: WanTransformer3DModel,
    sampler: Sampler,
    clips: Sequence[Clip],
    x: torch.Tensor,
    step: int,
    attend: Attend,
    wanted: Callable[[float, int], bool],
) -> torch.Tensor:
    """Return the latents after Euler step ``step`` of ``x`` (clips, 16, T, H, W); ``attend`` computes self-attention in
    the layers that are ``wanted(sigma, layer)``, the model's own dense attention in the others."""
    sigma, following = list(pairwise(sampler.sigmas))[step]
    device = compute_device(model)
    guided = sampler.cfg != 1.0
    negative = torch.zeros_like(clips[0].text) if sampler.negative is None else sampler.negative
    texts = [clip.text for clip in clips] + [negative] * (len(clips) if guided else 0)
    branches = [0] * len(clips) + [1] * (len(clips) if guided else 0)
    x = x.to(device)
    both = torch.cat([x, x]) if guided else x
    level = torch.full((len(both),), sigma, device=device)
    state, training = attention_state(model), model.training
    model.eval()
    try:
        with (
            state.step(DENSE, sigma, sampler.shape),
            _instead(model, partial(_call, attend, sigma, branches), lambda layer: wanted(sigma, layer)),
            autocast(device, sampler.dtype),
        ):
            velocity = model(*model_inputs(both, level, texts), return_dict=False)[0].float()
    finally:
        model.train(training)
    if guided:
        with_text, without = velocity.chunk(2)
        velocity = without + sampler.cfg * (with_text - without)
    return x + velocity * (following - sigma)


def _call(attend: Attend, sigma: float, branches: Sequence[int], layer: int, *qkv: torch.Tensor) -> torch.Tensor:
    q, k, v = qkv
    # Patterns are searched in the numerics in which they will run: autocast would change single products.
    with torch.autocast(q.device.type, enabled=False):
        return attend(layer, sigma, q, k, v, branches)


@contextlib.contextmanager
def _instead(
    model: WanTransformer3DModel, call: Callable[..., torch.Tensor], wanted: Callable[[int], bool]
) -> Iterator[None]:
    processors = [block.attn1.processor for block in model.blocks]
    try:
        for layer, processor in enumerate(processors):
            processor.instead = partial(call, layer) if wanted(layer) else None
        yield
    finally:
        for processor in processors:
            processor.instead = None
