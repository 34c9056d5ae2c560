"""One of STA's windows per head and call (sliding tile attention, arXiv 2502.04507, section 4 and appendix).

STA finds a window per step, layer and head offline, as the one with the least MSE against dense attention over 16
prompts; the public code (hao-ai-lab/FastVideo) gives these candidates for Wan, in tiles of a grid of 3 x 6 x 10, beside
full attention. Here the search is done in every call, by sampled query rows, and full attention is no candidate: it
would always win. A result of the offline form is a head table.
"""

from __future__ import annotations

import torch

from ..block_lists import BlockLists
from ..grid import Tiling
from ..patterns import Window
from ..plan import AttentionPlan
from ..schedule import Phase
from . import sampled

PUBLISHED_GRID = (3, 6, 10)
PUBLISHED_WINDOWS = ((3, 1, 10), (1, 5, 7), (3, 3, 3), (1, 6, 5), (1, 3, 10), (3, 6, 1))


def windows(tiling: Tiling) -> list[Window]:
    """Return the published windows on ``tiling``: the same shares of the axes, rounded to whole tiles, one at least."""
    return [
        tile_window(tiling, tuple(_rounded(k * n, of) for k, n, of in zip(window, tiling.pieces, PUBLISHED_GRID)))
        for window in PUBLISHED_WINDOWS
    ]


def tile_window(tiling: Tiling, tiles: tuple[int, int, int]) -> Window:
    """Return the window of ``tiles`` tiles along (t, h, w)."""
    return Window(*(None if k >= n else k * size for k, n, size in zip(tiles, tiling.pieces, tiling.tile)))


def _rounded(numerator: int, denominator: int) -> int:
    """Return the quotient rounded to a whole number, halves up, at least 1."""
    return max(1, (2 * numerator + denominator) // (2 * denominator))


class TileWindows:
    """Chooses per sample and head, in every call, the window whose output is nearest to dense on sampled rows."""

    online = True
    per_layer = False

    def prepare(self, tiling: Tiling, device: torch.device | str) -> sampled.Candidates:
        """Return the windows' lists and the sampled rows on ``tiling``."""
        return sampled.Candidates.of(windows(tiling), tiling, device)

    def select(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan) -> BlockLists:
        """Return the lists of a call with q, k, v ``(B, S, H, D)``."""
        return sampled.choose(q, k, v, plan)


def build(phase: Phase) -> TileWindows:
    """Return the selector of ``phase``; it takes no number."""
    del phase
    return TileWindows()
