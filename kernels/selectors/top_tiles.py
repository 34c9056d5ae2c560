"""Key tiles by their mean keys, in every call: ``topk`` a share of them, ``cdf`` up to a share of the attention mass.

SpargeAttn (arXiv 2502.18137, sections 3.2 to 3.4): the mean query of a query tile meets the mean key of every key tile,
a softmax over key tiles predicts the attention mass of each, and the largest are computed. A mean says little about a
tile whose rows differ, so a tile whose rows' mean cosine similarity (over all pairs, a row with itself included, as in
the public code thu-ml/SpargeAttn) does not exceed a gate is always computed: all of a query tile's row, all of a key
tile's column. Similarity of keys is measured after subtracting their mean over all tokens, as there; softmax does not
see that. The public defaults: no gate in effect for top-k (simthreshd1 -0.1; this similarity is never below 0), 0.6 for
the CDF. A gated key tile takes no part in the softmax and comes on top of what is chosen.

Where this differs: tiles have different numbers of live rows, and one of n rows with the score s holds about n exp(s)
of the mass, so scores get log(n) added. Tiles outside the video see all and are seen by all; they too come on top.
``cdf M`` takes the smallest set whose mass reaches M (the public code the largest that stays below), at least one tile.
The second stage (skipping P V by the running maximum) is the kernel's affair and is not done.
"""

from __future__ import annotations

import math

import torch

from ..block_lists import BlockLists, Layout
from ..plan import AttentionPlan
from ..quantize.fp8 import token_mean
from ..schedule import Phase
from .mask_lists import ListMaker, head_chunks, tile_rows, wants_gradient

# What the public code sets where nothing is said.
DEFAULT_GATE = {"topk": -0.1, "cdf": 0.6}
# Instead of minus infinity: a row of nothing but gated tiles has a softmax too.
_LOWEST = -1e30


class TopTiles:
    """Chooses per query tile, in every call, the key tiles with the largest predicted mass.

    ``share``: of the video's key tiles (``topk``), or of the attention mass (``cdf``). A ``gate`` below 0 is none.
    """

    online = True
    per_layer = False

    def __init__(self, kind: str, share: float, gate: float | None = None) -> None:
        self.kind, self.share = kind, share
        self.gate = DEFAULT_GATE[kind] if gate is None else gate

    def select(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan) -> BlockLists:
        """Return the lists of a call with q, k, v ``(B, S, H, D)``."""
        layout, tiling = plan.layout, plan.tiling
        batch, _, heads, dim = q.shape
        tiles, width = layout.index.shape
        gated = self.gate >= 0
        even = self.kind == "topk" and not gated and tiling.video_tiles == tiles
        longest = self._kept(tiles) if even else tiles
        # At once, per head: q or k in tile order (as given, with a gate twice in float32), and of the tiles' pairs the
        # scores, their sorted copy and 64-bit places, or a mask's running sums and places.
        held = tiles * (width * dim * (q.element_size() + 8 * gated) + 28 * tiles)
        # Autocast would turn the products into bf16.
        made = ListMaker(layout, batch, heads, longest, transposed=wants_gradient(q, k, v))
        with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
            for chunk in head_chunks(batch, heads, held):
                made.add(chunk, self._mask(q[:, :, chunk], k[:, :, chunk], plan))
            return made.lists(plan.grid.tokens)

    def _kept(self, tiles: int) -> int:
        """Return how many of ``tiles`` key tiles top-k keeps; the small number keeps 15 % of 20 tiles at 3."""
        return max(1, min(tiles, math.ceil(self.share * tiles - 1e-9)))

    def _mask(self, q: torch.Tensor, k: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
        """Return bool ``(B, H, tiles, tiles)``: query tile (row) sees key tile."""
        layout, tiling = plan.layout, plan.tiling
        inside = slice(tiling.prefix_tiles, tiling.prefix_tiles + tiling.video_tiles)
        shift = token_mean(k)
        (queries, q_like), (keys, k_like) = self._means(q, None, layout), self._means(k, shift, layout)
        scores = queries[:, :, inside] @ (keys[:, :, inside] - shift[..., 0, :]).transpose(-1, -2)
        scores = scores / math.sqrt(q.shape[-1]) + layout.live[inside].float().log()
        # What is not a number counts as large, so that broken keys are seen and not hidden.
        scores = scores.nan_to_num(-_LOWEST, -_LOWEST, _LOWEST)
        if k_like is not None:
            scores = scores.masked_fill(~k_like[:, :, None, inside], _LOWEST)
        video = self._top(scores)
        if k_like is not None:
            video = video | ~k_like[:, :, None, inside] | ~q_like[:, :, inside, None]
        mask = video.new_ones((*video.shape[:2], tiling.count, tiling.count))
        mask[:, :, inside, inside] = video
        return mask

    def _means(
        self, x: torch.Tensor, shift: torch.Tensor | None, layout: Layout
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the tiles' means, float32 ``(B, H, tiles, D)``, and with a gate bool ``(B, H, tiles)``: the rows, less
        ``shift``, are alike."""
        rows, live = tile_rows(x, layout), layout.live.float()[:, None]
        means = rows.sum(-2, dtype=torch.float32) / live
        if self.gate < 0:
            return means, None
        rows = rows.float() if shift is None else rows - shift
        # The squared length of the mean of unit rows is the mean over all pairs of their cosines. As a product, so that
        # unit rows are never written down.
        weight = 1.0 / torch.linalg.vector_norm(rows, dim=-1).clamp_min(1e-20) / live
        unit_mean = weight.masked_fill(layout.index < 0, 0.0)[..., None, :] @ rows
        return means, unit_mean.square().sum((-2, -1)) > self.gate

    def _top(self, scores: torch.Tensor) -> torch.Tensor:
        """Return bool of the shape of ``scores (B, H, queries, keys)``: the key tiles that are kept."""
        if self.share >= 1:
            return torch.ones_like(scores, dtype=torch.bool)
        mask = torch.zeros_like(scores, dtype=torch.bool)
        if self.kind == "topk":
            return mask.scatter_(-1, scores.topk(self._kept(scores.shape[-1]), dim=-1, sorted=False).indices, True)
        mass, place = scores.softmax(-1).sort(dim=-1, descending=True)
        return mask.scatter_(-1, place, mass.cumsum(-1) - mass < self.share)


def build(phase: Phase) -> TopTiles:
    """Return the selector of ``phase``: ``topk SHARE [GATE]`` or ``cdf MASS [GATE]``."""
    kind, *numbers = phase.selector.split()
    return TopTiles(kind, *(float(number) for number in numbers))
