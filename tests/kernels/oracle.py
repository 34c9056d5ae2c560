"""What attention must give, written from the definitions: loops over tokens and queries, float64, no tiles.

Only a plan's public tensors are read: the token of every slot, the lists, the pattern of a head.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from fpsattention.kernels.grid import TokenGrid
from fpsattention.kernels.plan import AttentionPlan, BlockLists, Plans
from fpsattention.kernels.schedule import Schedule

E4M3_MAX = 448.0


def make_plan(row: str, grid: TokenGrid, heads: int, **settings) -> AttentionPlan:
    """Return the plan of a schedule with the one row ``0.00 {row}``."""
    return Plans(Schedule.parse(f"0.00 {row}"), grid, heads, **settings).at(0.5)


def with_lists(plan: AttentionPlan, lists: BlockLists) -> AttentionPlan:
    """Return ``plan`` with these lists."""
    return dataclasses.replace(plan, lists=lists)


def with_masks(plan: AttentionPlan, masks: np.ndarray, pattern_of_head: list[list[int]]) -> AttentionPlan:
    """Return ``plan`` with the lists of boolean ``masks (P, tiles, tiles)``."""
    return with_lists(plan, BlockLists.from_masks(masks, np.array(pattern_of_head, np.int32), "cpu"))


def random_masks(tiles: int, patterns: int, share: float, seed: int, empty_rows: bool = False) -> np.ndarray:
    """Return random boolean masks ``(patterns, tiles, tiles)``; every row sees something unless ``empty_rows``."""
    random = np.random.default_rng(seed)
    masks = random.random((patterns, tiles, tiles)) < share
    if not empty_rows:
        masks[:, np.arange(tiles), random.integers(0, tiles, tiles)] = True
    return masks


def tensors(batch: int, tokens: int, heads: int, dim: int, seed: int = 0, std: float = 1.0, dtype=torch.float32):
    """Return q, k, v and an output gradient, ``(B, S, H, D)``; scores have about the standard deviation ``std``."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v, grad = (torch.randn(batch, tokens, heads, dim, generator=generator) for _ in range(4))
    return [x.to(dtype) for x in (q * std, k, v, grad)]


def tile_of_token(plan: AttentionPlan) -> torch.Tensor:
    """Return the tile of every token, ``(S,)``."""
    tile = torch.full((plan.grid.tokens,), -1)
    for i, row in enumerate(plan.layout.index.tolist()):
        for token in row:
            if token >= 0:
                tile[token] = i
    return tile


def visible(plan: AttentionPlan, batch: int, heads: int) -> torch.Tensor:
    """Return which key every query sees, bool ``(B, H, S, S)`` in token order."""
    ids, count, patterns = (x.tolist() for x in (plan.lists.ids, plan.lists.count, plan.lists.pattern_of_head))
    tile = tile_of_token(plan)
    tiles = len(count[0])
    result = torch.zeros(batch, heads, plan.grid.tokens, plan.grid.tokens, dtype=torch.bool)
    for b in range(batch):
        for h in range(heads):
            pattern = patterns[b if len(patterns) > 1 else 0][h]
            mask = torch.zeros(tiles, tiles, dtype=torch.bool)
            for i in range(tiles):
                mask[i, ids[pattern][i][: count[pattern][i]]] = True
            result[b, h] = mask[tile][:, tile]
    return result


def per_query(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return ``out (B, S, H, D)`` and ``lse (B, H, S)`` (log2 units) in float64, one query at a time."""
    q, k, v = (x.detach().double() for x in (q, k, v))
    batch, tokens, heads, dim = q.shape
    out, lse = torch.zeros_like(q), torch.full((batch, heads, tokens), -math.inf, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for i in range(tokens):
                keys = seen[b, h, i].nonzero().flatten()
                if len(keys):
                    scores = k[b, keys, h] @ q[b, i, h] / math.sqrt(dim)
                    out[b, i, h] = torch.softmax(scores, 0) @ v[b, keys, h]
                    lse[b, h, i] = torch.logsumexp(scores, 0) / math.log(2)
    return out, lse


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Return attention ``(B, S, H, D)`` in the inputs' dtype as autograd sees it; rows without keys are 0."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).masked_fill(~seen, -math.inf)
    scores = scores.masked_fill(~seen.any(-1, keepdim=True), 0.0)
    weights = torch.softmax(scores, -1) * seen
    return (weights @ v).transpose(1, 2)


def e4m3(x: torch.Tensor) -> torch.Tensor:
    """Return ``x`` rounded by torch's own cast."""
    return x.float().clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).to(x.dtype)


def straight_through(x: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """Return ``rounded`` with the gradient of ``x``."""
    return x + (rounded - x).detach()


def nearest_tie(x: torch.Tensor) -> float:
    """Return how close ``x`` (magnitudes up to 448) comes to a point where its rounding changes, relative to it."""
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    ties = (codes[1:] + codes[:-1]) / 2
    x = x.detach().double().abs().flatten()
    x = x[x > 0]
    after = torch.searchsorted(ties, x).clamp(max=len(ties) - 1)
    gaps = torch.minimum((ties[after] - x).abs(), (ties[(after - 1).clamp(min=0)] - x).abs())
    return float((gaps / x).min()) if len(x) else math.inf


def token_scales(x: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Return the scale of every token, float32 ``(B, S, H, 1)``, of ``x (B, S, H, D)``; equal ``groups (S,)`` share."""
    scales = torch.ones(*x.shape[:3], 1)
    for b in range(x.shape[0]):
        for h in range(x.shape[2]):
            for group in groups.unique():
                members = groups == group
                largest = x[b, members, h].abs().max() / E4M3_MAX
                scales[b, members, h] = largest if largest > 0 else 1.0
    return scales


def groups_of(plan: AttentionPlan) -> torch.Tensor:
    """Return the group of every token that shares a scale, ``(S,)``, from the tiling's pieces."""
    if plan.granularity == "token":
        return torch.arange(plan.grid.tokens)
    n = int(plan.granularity[1:])
    tiling, tile = plan.tiling, tile_of_token(plan)
    groups = {}
    numbers = []
    for i in tile.tolist():
        inside = i - tiling.prefix_tiles
        if 0 <= inside < tiling.video_tiles:
            key = tuple(p // n for p in np.unravel_index(inside, tiling.pieces))
        else:
            key = i
        numbers.append(groups.setdefault(key, len(groups)))
    return torch.tensor(numbers)


def fp8_attention(q, k, v, plan: AttentionPlan) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """Return ``out (B, S, H, D)``, lse and row maximum ``(B, H, S)`` in log2 units by the FP8 rule, and how close any
    number came to a rounding tie (relative). Differentiable: rounding passes gradients straight through.

    q, k, v are rounded in float32, as the rule says; everything after that is float64.
    """
    seen = visible(plan, q.shape[0], q.shape[2])
    groups = groups_of(plan)
    smooth = k - k.detach().mean(1, keepdim=True) if plan.smooth_k else k
    margin, rounded = math.inf, []
    for x in (q, smooth, v):
        base = x.detach().float()
        scale = base.abs().amax(1, keepdim=True) / E4M3_MAX if x is v else token_scales(base, groups)
        code = (base / scale).clamp(-E4M3_MAX, E4M3_MAX)
        margin = min(margin, nearest_tie(code))
        rounded.append(straight_through(x.double(), (e4m3(code) * scale).double()).transpose(1, 2))
    qr, kr, vr = rounded
    scores = qr @ kr.transpose(2, 3) * (math.log2(math.e) / math.sqrt(q.shape[-1]))
    scores = scores.masked_fill(~seen, -math.inf)
    largest = scores.detach().amax(-1, keepdim=True)
    rowmax = largest.ceil().nan_to_num(neginf=0.0)
    finite = largest[largest.isfinite()]
    if len(finite):
        margin = min(margin, float((finite - finite.round()).abs().min()))
    weights = torch.exp2(scores - rowmax + 8)
    margin = min(margin, nearest_tie(weights))
    weights = straight_through(weights, e4m3(weights))
    total = weights.sum(-1, keepdim=True)
    empty = ~seen.any(-1, keepdim=True)
    out = (weights @ vr / total.masked_fill(empty, 1.0)).transpose(1, 2)
    lse = (rowmax - 8 + total.log2())[..., 0]
    return out, lse, rowmax[..., 0], margin


def int8_attention(q, k, v, plan: AttentionPlan) -> tuple[torch.Tensor, float]:
    """Return ``out (B, S, H, D)`` with Q and K rounded to 8-bit integers and nothing else rounded, in float64 after
    that, and how close any number came to a rounding tie. Rounding passes gradients straight through."""
    groups, margin, rounded = groups_of(plan), math.inf, []
    smooth = k - k.detach().mean(1, keepdim=True) if plan.smooth_k else k
    for x in (q, smooth):
        base = x.detach().float()
        scale = token_scales(base, groups) * (E4M3_MAX / 127)
        code = (base / scale).clamp(-127, 127)
        margin = min(margin, float(((code - code.floor()) - 0.5).abs().min()))
        rounded.append(straight_through(x.double(), (code.round() * scale).double()))
    return exact(*rounded, v.double(), visible(plan, q.shape[0], q.shape[2])), margin


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the relative L2 error."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-300))
