"""Figures 3 and 4 of the paper, on the study's base: what fake quantization of Q and K does to attention's output.

Q and K are rounded to e4m3 or INT8 with a scale per token, channel, group of 32 channels, tile, cube of tiles, or one
for the whole tensor; P and V stay exact. Then the whole of FP8 attention, Q, K, V and P, as the pack computes it. The
inputs are the base's own, or planted: larger logits (Q times a factor, so that a row's logits have a standard deviation
of 8), or outlier channels (4 channels of K times 16 and of Q by as much smaller, which changes no logit).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...kernels.attention import fps_attention
from ...kernels.grid import TokenGrid
from ...kernels.plan import AttentionPlan
from ...kernels.quantize.fp8 import LARGEST, fake_quantize_, group_scales, to_tiles
from ..attention import attention_state, rotate
from ..flow import noisy, sample_generator
from ..model import WanTransformer3DModel
from ..sparse import DENSE, SparseAttention
from ..step import model_inputs
from .plan import CORE
from .sizes import Size

FORMS = ("e4m3", "int8")
GRANULARITIES = ("token", "channel", "group 32", "tile", "cube x2", "tensor")
INPUTS = ("natural", "large logits", "outlier channels")
LOGIT_STD = 8.0
OUTLIERS, OUTLIER_FACTOR, GROUP = 4, 16.0, 32


@dataclass(frozen=True)
class Errors:
    """Cosine, mean squared error and signal-to-noise ratio in dB of an output against the exact one."""

    cosine: float
    mse: float
    snr: float

    @staticmethod
    def of(exact: Tensor, found: Tensor) -> Errors:
        """Return the errors of ``found``, over all its numbers."""
        a, b = exact.double().flatten(), found.double().flatten()
        error, power = float((a - b).square().mean()), float(a.square().mean())
        cosine = float(a @ b / (a.norm() * b.norm()).clamp_min(1e-30))
        return Errors(cosine, error, 10 * math.log10(power / error) if error else math.inf)


@torch.no_grad()
def captured(model: WanTransformer3DModel, inputs: Sequence[Any], latent_shape) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return every layer's ``(q, k, v)``, each (B, S, H, D) after norm and rotation, of one dense forward."""
    found: list[tuple[Tensor, Tensor, Tensor]] = []

    def hook(attn, args, kwargs) -> None:
        names = ("hidden_states", "encoder_hidden_states", "attention_mask", "rotary_emb")
        given = {**dict(zip(names, args)), **kwargs}
        x = given["hidden_states"]
        q, k, v = (part.unflatten(-1, (attn.heads, -1)) for part in (
            attn.norm_q(attn.to_q(x)), attn.norm_k(attn.to_k(x)), attn.to_v(x),
        ))  # fmt: skip
        found.append((rotate(q, *given["rotary_emb"]), rotate(k, *given["rotary_emb"]), v))

    handles = [block.attn1.register_forward_pre_hook(hook, with_kwargs=True) for block in model.blocks]
    try:
        with attention_state(model).step(DENSE, 0.5, latent_shape):
            model(*inputs, return_dict=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def planted(q: Tensor, k: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Return q and k ``(B, S, H, D)`` as they are, with larger logits, or with outlier channels."""
    if kind == "natural":
        return q, k
    if kind == "large logits":
        return q * max(1.0, LOGIT_STD / logit_std(q, k)), k
    factor = torch.ones(q.shape[-1])
    factor[:: q.shape[-1] // OUTLIERS] = OUTLIER_FACTOR
    return q / factor, k * factor


def logit_std(q: Tensor, k: Tensor) -> float:
    """Return the mean over rows of the standard deviation of a row's logits."""
    logits = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[-1])
    return float(logits.std(-1).mean())


def rounded(x: Tensor, granularity: str, form: str, tiles: AttentionPlan, cubes: AttentionPlan) -> Tensor:
    """Return ``x (B, S, H, D)`` rounded to ``form`` with one scale per unit of ``granularity``."""
    if granularity in ("tile", "cube x2"):
        layout = (tiles if granularity == "tile" else cubes).layout
        tiled = to_tiles(x, layout.index)
        scale = group_scales(tiled, "x", layout.cube, layout.cubes, form)
        tiled = fake_quantize_(tiled, scale, form)
        live = layout.index >= 0
        out = torch.empty_like(x)
        out[:, layout.index[live]] = tiled[:, :, live].transpose(1, 2)
        return out
    dims = {"token": (-1,), "channel": (1,), "tensor": (1, 2, 3)}
    y = x.clone()
    grouped = y.unflatten(-1, (-1, GROUP)) if granularity == "group 32" else y
    amax = grouped.abs().amax(dims.get(granularity, (-1,)), keepdim=True)
    scale = (amax / LARGEST[form]).clamp_min(1e-12)
    return fake_quantize_(grouped.clone(), scale, form).reshape(x.shape)


def exact_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Return attention's output ``(B, S, H, D)`` in float32; ``mask (S, S)`` says which keys a query sees."""
    parts = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(*parts, attn_mask=mask).transpose(1, 2)


def token_mask(plan: AttentionPlan) -> Tensor:
    """Return which tokens see which, bool ``(S, S)``, of a plan with one pattern."""
    lists, tiles = plan.lists, torch.from_numpy(plan.tiling.tile_of_token)
    seen = torch.zeros(plan.tiling.count, plan.tiling.count, dtype=torch.bool)
    for row, (ids, count) in enumerate(zip(lists.ids[0], lists.count[0])):
        seen[row, ids[: int(count)].long()] = True
    return seen[tiles][:, tiles]


def quantization_errors(
    model: WanTransformer3DModel, samples: Sequence[dict[str, Any]], sigma: float, size: Size, grid: TokenGrid
) -> dict[str, Any]:
    """Return errors by input, visibility, form and granularity, and how large the logits are; means over layers."""
    latent = torch.stack([sample["latent"].float() for sample in samples])
    noise = torch.stack(
        [torch.randn(latent.shape[1:], generator=sample_generator(99, i, 0)) for i in range(len(latent))]
    )
    level = torch.full((len(samples),), sigma)
    device = next(model.parameters()).device
    x = noisy(latent, noise, level).to(device)
    inputs = model_inputs(x, level.to(device), [sample["text"] for sample in samples])
    layers = [tuple(part.float().cpu() for part in layer) for layer in captured(model, inputs, latent.shape)]
    sparse = size.attention(CORE)
    rows: dict[str, Any] = {}
    for kind in INPUTS:
        per_layer = [_layer(q, k, v, kind, sparse, sigma, grid) for q, k, v in layers]
        rows[kind] = {
            name: {part: _mean([layer[name][part] for layer in per_layer]) for part in per_layer[0][name]}
            for name in per_layer[0]
        }
    return {"inputs": rows, "latents": len(samples), "layers": len(layers)}


def _layer(
    q: Tensor, k: Tensor, v: Tensor, kind: str, sparse: SparseAttention, sigma: float, grid: TokenGrid
) -> dict[str, dict[str, float]]:
    q, k = planted(q, k, kind)
    heads = q.shape[2]
    opened = replace(sparse, schedule=_all_of(sparse))
    tiles, full = (a.plans(grid, heads).at(sigma) for a in (sparse, opened))
    cubes = replace(sparse, schedule=_granularity_of(sparse, "x2")).plans(grid, heads).at(sigma)
    mask = token_mask(tiles)
    dense, windowed = exact_attention(q, k, v, None), exact_attention(q, k, v, mask)
    found = {
        "logits": {"std": logit_std(q, k)},
        "sparsity alone": vars(Errors.of(dense, windowed)),
        "FP8 attention, dense": vars(Errors.of(dense, fps_attention(q, k, v, full))),
        "FP8 attention, sparse, against sparse": vars(Errors.of(windowed, fps_attention(q, k, v, tiles))),
        "FP8 attention, sparse, against dense": vars(Errors.of(dense, fps_attention(q, k, v, tiles))),
    }
    for form in FORMS:
        for granularity in GRANULARITIES:
            a, b = (rounded(part, granularity, form, tiles, cubes) for part in (q, k))
            found[f"{form}, {granularity}, dense"] = vars(Errors.of(dense, exact_attention(a, b, v, None)))
            found[f"{form}, {granularity}, sparse"] = vars(Errors.of(windowed, exact_attention(a, b, v, mask)))
    return found


def _all_of(attention: SparseAttention):
    phases = tuple(replace(phase, window=(None, None, None)) for phase in attention.schedule.phases)
    return replace(attention.schedule, phases=phases)


def _granularity_of(attention: SparseAttention, granularity: str):
    phases = tuple(replace(phase, granularity=granularity) for phase in attention.schedule.phases)
    return replace(attention.schedule, phases=phases)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
