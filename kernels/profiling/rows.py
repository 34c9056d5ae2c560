"""Attention errors on a few sampled query rows: the model's own q, k and v, all keys, no kernel.

For one exact pass over the keys of a row every window comes free: the pass keeps its partial sums per key tile, and a
window is a sum over some tiles. A granularity costs a pass of its own, since its scores differ; it follows the rules of
``attention/reference.py`` (K smoothed, V per channel, P rounded), so that 'x1' here is what the kernels compute.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from ..attention.reference import P_SHIFT
from ..grid import Tiling, TokenGrid, choose_tiling
from ..quantize.fp8 import E4M3_MAX, SMALLEST_SCALE, fake_quantize_, round_e4m3_
from .windows import Level, seen_tiles

LOG2E = 1.4426950408889634
# One scale per token, per channel over all tokens, per 64 consecutive tokens, per cube of N x N x N tiles.
GRANULARITIES = ("token", "channel", "group", "x1", "x2", "x4", "x8")
UNGROUPED = ("token", "channel")
GROUP = 64
TILES, ROWS = 8, 16
# Numbers that one chunk of heads may hold.
BUDGET = 48 * 2**20


class Groups(NamedTuple):
    """The group of every token that shares a scale, int64 ``(S,)``, and the number of groups."""

    index: torch.Tensor
    count: int


class OnDevice(NamedTuple):
    """What every probe of a plan reads: ``index (tiles, width)``, ``visible (windows, n, tiles)`` as float32, the
    sampled ``rows (n * r,)``, and the groups of each granularity that has them."""

    index: torch.Tensor
    visible: torch.Tensor
    rows: torch.Tensor
    groups: dict[str, Groups]


@dataclass(frozen=True, eq=False)
class RowPlan:
    """Which rows are sampled and what they are compared with.

    ``tiles`` are the sampled query tiles, ``rows`` ``(n, r)`` their sampled tokens, ``visible`` bool ``(windows, n,
    tiles)`` what each sees. ``names`` are the granularities, then the windows' texts.
    """

    grid: TokenGrid
    tiling: Tiling
    tiles: np.ndarray
    rows: np.ndarray
    visible: np.ndarray
    granularities: tuple[str, ...]
    windows: tuple[Level, ...]
    _kept: dict[torch.device, OnDevice] = field(default_factory=dict, init=False, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """One name per measured error."""
        return (*self.granularities, *(level.text for level in self.windows))

    @property
    def count(self) -> int:
        """Sampled rows."""
        return int(self.rows.size)

    def on(self, device: torch.device) -> OnDevice:
        """Return the plan's tensors on ``device``, made once: a probe runs for every step, layer and few heads."""
        if device not in self._kept:
            groups = {name: groups_of(name, self.tiling) for name in self.granularities if name not in UNGROUPED}
            self._kept[device] = OnDevice(
                torch.from_numpy(self.tiling.index).to(device),
                torch.from_numpy(self.visible).to(device, torch.float32),
                torch.from_numpy(self.rows.reshape(-1)).to(device),
                {name: Groups(group.index.to(device), group.count) for name, group in groups.items()},
            )
        return self._kept[device]


def plan_rows(
    grid: TokenGrid,
    windows: list[Level],
    *,
    granularities: tuple[str, ...] = GRANULARITIES,
    slots: int = 64,
    tile: tuple[int, int, int] | None = None,
    tiles: int = TILES,
    rows: int = ROWS,
    seed: int = 0,
) -> RowPlan:
    """Return a plan that samples ``rows`` tokens of each of ``tiles`` video tiles of ``grid``, fewer if there are
    fewer; the same seed samples the same rows."""
    tiling = choose_tiling(grid, slots, tile)
    random = np.random.default_rng(seed)
    first = tiling.prefix_tiles
    chosen = first + np.sort(random.permutation(tiling.video_tiles)[: max(1, min(tiles, tiling.video_tiles))])
    each = int(min(rows, tiling.live[chosen].min()))
    picked = [np.sort(random.permutation(tiling.live[tile])[:each]) for tile in chosen]
    tokens = np.stack([tiling.index[tile][rows_of] for tile, rows_of in zip(chosen, picked)])
    visible = seen_tiles(windows, tiling, chosen)
    return RowPlan(grid, tiling, chosen, tokens, visible, tuple(granularities), tuple(windows))


def row_errors(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: RowPlan) -> torch.Tensor:
    """Return float64 ``(names, 3)`` on q's device: squared error, squared norm of the exact rows, mean cosine.

    q, k, v are one sample ``(S, H, D)`` after RoPE; sums run over the sampled rows of all heads. Nothing waits for the
    device, but for the plan's tensors the first time. Raises ValueError if S is not the plan's.
    """
    if q.shape[0] != plan.grid.tokens or q.shape != k.shape or q.shape != v.shape:
        raise ValueError(f"q, k and v must be (tokens, heads, D) with {plan.grid.tokens} tokens, got {tuple(q.shape)}.")
    tokens, heads, dim = q.shape
    index, visible, rows, groups = plan.on(q.device)
    held = plan.count * (index.numel() + index.shape[0] * dim) + 8 * tokens * dim
    step = max(1, min(heads, BUDGET // held))
    total = torch.zeros(len(plan.names), 3, dtype=torch.float64, device=q.device)
    for start in range(0, heads, step):
        part = slice(start, start + step)
        qh, kh, vh = (x[:, part].transpose(0, 1).float() for x in (q, k, v))
        exact, windowed = _windows(qh[:, rows], kh, vh, index, visible, len(plan.tiles))
        outputs = _quantized_all(qh, kh, vh, rows, plan.granularities, groups)
        outputs += list(windowed)
        for i, output in enumerate(outputs):
            total[i] += _compare(output, exact)
    total[:, 2] /= heads * plan.count
    return total


def _windows(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, index: torch.Tensor, visible: torch.Tensor, query_tiles: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the exact rows ``(H, R, D)`` and those of every window ``(W, H, R, D)`` from q ``(H, R, D)``."""
    heads, count, dim = q.shape
    tiles, width = index.shape
    scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(dim)
    p = (scores - scores.amax(-1, keepdim=True)).exp_()
    flat, dead = index.clamp_min(0).reshape(-1), (index < 0).reshape(-1)
    p = p.index_select(-1, flat).masked_fill_(dead, 0.0).view(heads, count, tiles, width)
    values = v.index_select(1, flat).view(heads, tiles, width, dim)
    sums = p.sum(-1)
    parts = torch.matmul(p.transpose(1, 2), values).transpose(1, 2)
    exact = parts.sum(2) / sums.sum(-1, keepdim=True)
    # Rows come tile by tile, and all rows of a tile see the same tiles.
    sums = sums.view(heads, query_tiles, -1, tiles)
    parts = parts.reshape(heads, query_tiles, -1, tiles, dim)
    seen = torch.einsum("wnt,hnrt->whnr", visible, sums)
    outputs = torch.einsum("wnt,hnrtd->whnrd", visible, parts)
    # A row whose window holds nothing of its weight comes out as zero.
    outputs = outputs / seen.clamp_min(torch.finfo(torch.float32).tiny)[..., None]
    return exact, outputs.flatten(2, 3)


def _quantized_all(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rows: torch.Tensor,
    granularities: tuple[str, ...],
    groups: dict[str, Groups],
) -> list[torch.Tensor]:
    """Return the rows ``(H, R, D)`` of dense attention from q, k, v ``(H, S, D)`` for every granularity."""
    if not granularities:
        return []
    smooth = k - k.mean(1, keepdim=True).nan_to_num_(0.0, 0.0, 0.0)
    values = fake_quantize_(v.clone()[None], scales(v, "channel")[None])[0]
    return [_quantized(name, q, smooth, values, rows, groups.get(name)) for name in granularities]


def _quantized(
    name: str, q: torch.Tensor, smooth: torch.Tensor, values: torch.Tensor, rows: torch.Tensor, groups: Groups | None
) -> torch.Tensor:
    """Return the rows for granularity ``name`` from q, smoothed k and quantized v ``(H, S, D)``."""
    q_scale, k_scale = scales(q, name, groups), scales(smooth, name, groups)
    q_rows = q[:, rows]
    q_rows = fake_quantize_(q_rows[None], _at(q_scale, rows)[None])[0]
    keys = fake_quantize_(smooth.clone()[None], k_scale[None])[0]
    scores = torch.matmul(q_rows, keys.transpose(-1, -2)) * (LOG2E / math.sqrt(q.shape[-1]))
    p = (scores - scores.amax(-1, keepdim=True).ceil() + P_SHIFT).exp2_()
    p = round_e4m3_(p)
    return torch.matmul(p, values) / p.sum(-1, keepdim=True)


def scales(x: torch.Tensor, name: str, groups: Groups | None = None) -> torch.Tensor:
    """Return the e4m3 scales of ``x (H, S, D)`` at granularity ``name``, ``(H, S, 1)``; per channel ``(H, 1, D)``.

    All but 'token' and 'channel' need the ``groups`` of ``name``.
    """
    if name == "channel":
        return _scale(x.abs().amax(1, keepdim=True))
    token = x.abs().amax(-1)
    if name == "token":
        return _scale(token)[..., None]
    index = groups.index.expand_as(token)
    largest = token.new_zeros(len(token), groups.count).scatter_reduce(1, index, token, "amax")
    return _scale(largest.gather(1, index))[..., None]


def groups_of(name: str, tiling: Tiling) -> Groups:
    """Return which tokens share a scale at granularity ``name``: 64 consecutive ones, or those of a cube of tiles."""
    if name == "group":
        index = torch.arange(tiling.grid.tokens) // GROUP
    else:
        index = torch.from_numpy(tiling.cubes(int(name[1:]))[tiling.tile_of_token])
    return Groups(index, int(index.max()) + 1)


def _scale(largest: torch.Tensor) -> torch.Tensor:
    scale = largest / torch.full_like(largest, E4M3_MAX)
    return torch.where(scale > SMALLEST_SCALE, scale, torch.ones_like(scale))


def _at(scale: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return scale if scale.shape[1] == 1 else scale[:, rows]


def _compare(output: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Return squared error, squared norm and the sum of cosines over rows."""
    cosine = torch.nn.functional.cosine_similarity(output, exact, dim=-1)
    sums = ((output - exact).square().sum(), exact.square().sum(), cosine.sum())
    return torch.stack([x.double() for x in sums])
