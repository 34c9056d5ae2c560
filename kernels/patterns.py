"""Patterns: which key tiles a query tile sees.

A pattern answers with one boolean mask over tiles; ``block_lists`` turns masks into the lists that kernels consume.
In 3D tile order a diagonal is a window that is short in time and a multi-diagonal one that is long in time and short
in space, so windows cover both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .grid import Tiling


class Pattern(Protocol):
    """Anything that says which tiles see which."""

    def mask(self, tiling: Tiling) -> np.ndarray:
        """Return bool ``(count, count)``: query tile (row) sees key tile (column)."""
        ...


@dataclass(frozen=True)
class Full:
    """Every tile sees every tile."""

    def mask(self, tiling: Tiling) -> np.ndarray:
        """See ``Pattern.mask``."""
        return np.ones((tiling.count, tiling.count), dtype=bool)


@dataclass(frozen=True)
class Skip:
    """Nothing is seen: the head's output is zero."""

    def mask(self, tiling: Tiling) -> np.ndarray:
        """See ``Pattern.mask``."""
        return np.zeros((tiling.count, tiling.count), dtype=bool)


@dataclass(frozen=True)
class Window:
    """A 3D sliding window of tiles: extents along (t, h, w) in tokens, as a share (``"60%"``), or None for all.

    An extent of W tokens covers ``ceil(W / largest piece)`` tiles, clamped into the grid so that every query tile
    sees equally many (the rule of sliding tile attention, arXiv 2502.04507; an even count reaches one tile further
    back than ahead). Tokens outside the video see all and are seen by all.
    """

    t: int | str | None
    h: int | str | None
    w: int | str | None

    def tiles(self, tiling: Tiling) -> tuple[int, int, int]:
        """Return the window in tiles along (t, h, w)."""
        return tuple(
            _tiles_along(extent, pieces, largest)
            for extent, pieces, largest in zip((self.t, self.h, self.w), tiling.pieces, tiling.tile)
        )

    def mask(self, tiling: Tiling) -> np.ndarray:
        """See ``Pattern.mask``."""
        axes = [band(n, k) for n, k in zip(tiling.pieces, self.tiles(tiling))]
        t, h, w = axes
        n = tiling.video_tiles
        video = t[:, None, None, :, None, None] & h[None, :, None, None, :, None] & w[None, None, :, None, None, :]
        mask = np.ones((tiling.count, tiling.count), dtype=bool)
        inside = slice(tiling.prefix_tiles, tiling.prefix_tiles + n)
        mask[inside, inside] = video.reshape(n, n)
        return mask


def _tiles_along(extent: int | str | None, pieces: int, largest: int) -> int:
    if extent is None:
        return pieces
    if isinstance(extent, str):
        # The small number keeps 60 % of 5 pieces at 3 despite binary fractions.
        return max(1, min(pieces, int(np.ceil(pieces * float(extent[:-1]) / 100 - 1e-9))))
    return min(pieces, -(-extent // largest))


def band(n: int, k: int) -> np.ndarray:
    """Return bool ``(n, n)``: piece i sees the k pieces from ``clamp(i - k//2, 0, n - k)`` on."""
    start = np.clip(np.arange(n) - k // 2, 0, n - k)[:, None]
    piece = np.arange(n)[None, :]
    return (piece >= start) & (piece < start + k)


def density(mask: np.ndarray, live: np.ndarray) -> float:
    """Return the share of (query, key) token pairs that a tile mask ``(count, count)`` computes."""
    live = live.astype(np.float64)
    return float(live @ mask @ live) / float(live.sum()) ** 2


def block_lists(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``ids`` int32 ``(P, rows, longest)`` (ascending, unused entries 0) and ``count`` int32 ``(P, rows)`` of
    the seen columns of boolean ``masks (P, rows, columns)``. A count of 0 is legal."""
    count = masks.sum(-1, dtype=np.int32)
    ids = np.zeros((*count.shape, max(1, int(count.max(initial=0)))), dtype=np.int32)
    pattern, row, column = np.nonzero(masks)
    first = np.cumsum(count.reshape(-1)) - count.reshape(-1)
    position = np.arange(len(column)) - np.repeat(first, count.reshape(-1))
    ids[pattern, row, position] = column
    return ids, count
