"""A spatial or a temporal window per head and call (Sparse VideoGen, SVG, arXiv 2502.01776, ICML 2025).

What is published: a spatial head attends within its frame and near ones, a temporal head to its own place in all
frames; text and first frame are kept for both, because they hold much of the attention of both (section 3); which one a
head is, is found in every call from about 1 % of the query rows, by the MSE against full attention (section 4). The
public code (svg-project/Sparse-VideoGen, Wan) samples 64 rows from the first 10,000 and unites both masks with as many
leading key columns as a frame has tokens. In its temporal mask, whose tokens are ordered by place, these columns are a
few places over all frames and not the first frame; here they are the first frame in both, as the paper says.

On 3D tiles both are windows: spatial is short in time, temporal keeps all of time and is short in space. A tile of the
first frames is several frames deep (3 of 21 at 720p: 14 % of all keys), so it is united with the windows only where it
takes at most half of the density that is asked for.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import torch

from ..block_lists import BlockLists
from ..grid import Tiling
from ..patterns import FirstFrames, Pattern, Union, band
from ..plan import AttentionPlan
from ..schedule import Phase
from . import sampled
from .sta import tile_window

# Windows this near to the density, relative to it, count as equally dense; then the best shape is taken.
TOLERANCE = 0.05
FIRST_SHARE = 0.5


def candidates(tiling: Tiling, density: float) -> tuple[Pattern, Pattern]:
    """Return the spatial and the temporal pattern on ``tiling`` whose densities are nearest to ``density``.

    Spatial: whole frames, as many as fit, or a part of one tile of frames where even that is too much. Temporal: a part
    of every frame. A part has about the same share of height and width.
    """
    nt, nh, nw = tiling.pieces
    first = _density(tiling, (1, 1, 1), first_only=True) <= FIRST_SHARE * density
    parts = list(product(range(1, nh + 1), range(1, nw + 1)))
    spatial = [(1, h, w) for h, w in parts] + [(t, nh, nw) for t in range(2, nt + 1)]
    temporal = [(nt, h, w) for h, w in parts]
    chosen = [tile_window(tiling, _nearest(tiling, windows, density, first)) for windows in (spatial, temporal)]
    return tuple(Union((window, FirstFrames(1))) if first else window for window in chosen)


def _nearest(tiling: Tiling, windows: list[tuple[int, int, int]], density: float, first: bool) -> tuple[int, int, int]:
    """Return the window, in tiles, whose density is nearest; of those about as near, the one with the best shape."""
    _, nh, nw = tiling.pieces
    gaps = [abs(_density(tiling, window, first) - density) for window in windows]
    near = max(min(gaps), TOLERANCE * density)

    def rank(index: int) -> tuple[float, float]:
        _, h, w = windows[index]
        return abs(math.log(h * nw / (w * nh))), gaps[index]

    return windows[min((i for i, gap in enumerate(gaps) if gap <= near), key=rank)]


def _density(tiling: Tiling, window: tuple[int, int, int], first: bool = False, *, first_only: bool = False) -> float:
    """Return the exact density of a window in tiles, united with the ``first`` frames' tiles or ``first_only`` these.

    Every part is a product over the axes, so no mask of tiles by tiles is needed.
    """
    sizes = [np.diff(bounds).astype(np.float64) for bounds in tiling.bounds]
    bands = [band(len(size), k) for size, k in zip(sizes, window)]
    t, h, w = (float(size @ seen @ size) for size, seen in zip(sizes, bands))
    frames, area = sizes[0].sum(), float(sizes[1].sum() * sizes[2].sum()) ** 2
    begin = frames * sizes[0][0] * area
    both = float(sizes[0] @ bands[0][:, 0]) * sizes[0][0] * h * w
    inside = begin if first_only else t * h * w + (begin - both if first else 0.0)
    return (tiling.grid.tokens**2 - tiling.grid.video**2 + inside) / tiling.grid.tokens**2


class SpatialOrTemporal:
    """Chooses per sample and head, in every call, between a spatial and a temporal pattern of one density."""

    online = True
    per_layer = False

    def __init__(self, density: float) -> None:
        self.density = density

    def prepare(self, tiling: Tiling, device: torch.device | str) -> sampled.Candidates:
        """Return both patterns' lists and the sampled rows on ``tiling``; the first is the spatial one."""
        return sampled.Candidates.of(list(candidates(tiling, self.density)), tiling, device)

    def select(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan) -> BlockLists:
        """Return the lists of a call with q, k, v ``(B, S, H, D)``."""
        return sampled.choose(q, k, v, plan)


def build(phase: Phase) -> SpatialOrTemporal:
    """Return the selector of ``phase``, ``svg DENSITY``."""
    return SpatialOrTemporal(float(phase.selector.split()[1]))
