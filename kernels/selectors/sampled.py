"""Choosing among fixed patterns per head by a sample of query rows, as SVG and STA do.

The rows attend to all keys in float32, and to those that each pattern leaves; the pattern whose output is nearest to
the full one wins. Softmax is computed once, tile by tile, each tile with its own maximum; a pattern then only adds up
the tiles that it sees, so that six patterns cost hardly more than two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import torch

from ..block_lists import BlockLists
from ..grid import Tiling, TokenGrid
from ..patterns import Pattern, pattern_pairs
from ..plan import AttentionPlan
from .mask_lists import has_dead_rows, head_chunks, tile_rows

# SVG's paper profiles about 1 % of the rows, its public code 64 rows of any video; 1 % of 75,600 rows would cost as
# much as 2 % of dense attention, in float32.
ROWS = 64
_SEED = 2502


@dataclass(frozen=True, eq=False)
class Candidates:
    """What no call changes: the ``lists`` of all patterns (whose ``pattern_of_head`` means nothing), the sampled
    ``rows`` int64 ``(R,)`` in tokens, ``seen`` bool ``(P + 1, R, tiles)`` (the first sees all), and each pattern's
    ``density`` float32 ``(P,)``."""

    lists: BlockLists
    rows: torch.Tensor
    seen: torch.Tensor
    density: torch.Tensor

    @staticmethod
    def of(patterns: list[Pattern], tiling: Tiling, device: torch.device | str) -> Candidates:
        """Return the candidates ``patterns`` on ``tiling``."""
        rows = sampled_rows(tiling.grid)
        tiles = tiling.tile_of_token[rows]
        seen = np.stack([np.ones((len(rows), tiling.count), bool), *(p.mask(tiling)[tiles] for p in patterns)])
        density = np.array([pattern_pairs(p, tiling) for p in patterns]) / float(tiling.grid.tokens) ** 2
        return Candidates(
            BlockLists.from_patterns(patterns, tiling, np.zeros((1, 1)), device),
            torch.from_numpy(rows).to(device),
            torch.from_numpy(seen).to(device),
            torch.from_numpy(density.astype(np.float32)).to(device),
        )

    @property
    def bytes(self) -> int:
        """Memory on the device."""
        lists = [getattr(self.lists, f.name) for f in fields(self.lists)]
        tensors = [x for x in (*lists, self.rows, self.seen, self.density) if isinstance(x, torch.Tensor)]
        return sum(x.numel() * x.element_size() for x in tensors)


def sampled_rows(grid: TokenGrid) -> np.ndarray:
    """Return up to ``ROWS`` query rows of the video, int64 ``(R,)``, ascending: one from each of as many equal parts of
    the sequence, at a place that is drawn once for all calls."""
    bounds = np.linspace(0, grid.video, min(ROWS, grid.video) + 1).astype(np.int64)
    return grid.prefix + np.random.default_rng(_SEED).integers(bounds[:-1], bounds[1:])


def choose(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan) -> BlockLists:
    """Return the lists of a call: for every sample and head the pattern of ``plan.prepared`` with the least error."""
    made: Candidates = plan.prepared
    # Autocast would turn the products into bf16.
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        chosen = errors(q, k, v, plan).argmin(0)
        density = made.density[chosen].mean()
    lists = made.lists
    heads = chosen.to(torch.int32)
    return BlockLists(lists.ids, lists.count, heads, lists.key_ids, lists.key_count, density=density)


def errors(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
    """Return float32 ``(P, B, H)``: the MSE of the sampled rows' outputs under each pattern against those in full."""
    made: Candidates = plan.prepared
    batch, _, heads, dim = q.shape
    tiles, width = plan.layout.index.shape
    rows = made.rows.shape[0]
    # At once: V in tile order (as given, mostly 16 bits, and in float32), the weights, and the tiles' outputs.
    held = 4 * tiles * (width * (3 * dim // 2 + rows) + rows * dim)
    found = []
    for chunk in head_chunks(batch, heads, held):
        out = _outputs(q[:, :, chunk], k[:, :, chunk], v[:, :, chunk], plan)
        found.append((out[..., 1:, :] - out[..., :1, :]).square().mean((2, 4)))
    return torch.cat(found, 1).permute(2, 0, 1)


def _outputs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
    """Return the sampled rows' outputs, float32 ``(B, H, R, P + 1, D)``."""
    made, layout = plan.prepared, plan.layout
    dim = q.shape[-1]
    queries = q.index_select(1, made.rows).permute(0, 2, 3, 1).float() / math.sqrt(dim)
    scores = tile_rows(k, layout).float() @ queries[:, :, None]  # (B, H, tiles, width, R)
    if has_dead_rows(layout):
        scores = scores.masked_fill((layout.index < 0)[:, :, None], -math.inf)
    largest = scores.amax(-2)  # (B, H, tiles, R); every tile has a live row
    weights = scores.sub_(largest[..., None, :]).exp_()
    total = weights.sum(-2)
    outputs = weights.transpose(-1, -2) @ tile_rows(v, layout).float()  # (B, H, tiles, R, D)
    largest, total = (x.transpose(-1, -2)[:, :, :, None] for x in (largest, total))  # (B, H, R, 1, tiles)
    # A pattern's tiles are put on one scale, that of the largest score among them, so none can vanish or overflow.
    seen = made.seen.transpose(0, 1)  # (R, P + 1, tiles)
    seen_largest = largest.masked_fill(~seen, -math.inf)
    share = (seen_largest - seen_largest.amax(-1, keepdim=True)).exp()
    return share @ outputs.transpose(2, 3) / (share * total).sum(-1, keepdim=True)
