"""Patterns: which key tiles a query tile sees.

A pattern answers with one boolean mask over tiles; ``block_lists`` turns masks into the lists that kernels consume.
A pattern that knows its lists without the mask says them itself (``rows``), because at a phase change of a long video
the masks would be what takes time.
In 3D tile order a diagonal is a window that is short in time and a multi-diagonal one that is long in time and short
in space, so windows cover both; a vertical stripe is a set of key tiles that every query tile sees. How patterns are
written is in ``pattern_text``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .grid import Tiling, product_rows, ranges, split_bounds


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

    def rows(self, tiling: Tiling, transposed: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """See ``pattern_rows``."""
        del transposed
        n = tiling.count
        return np.tile(np.arange(n, dtype=np.int32), (n, 1)), np.full(n, n, dtype=np.int32)

    def pairs(self, tiling: Tiling) -> int:
        """See ``pattern_pairs``."""
        return tiling.grid.tokens**2


@dataclass(frozen=True)
class Skip:
    """Nothing is seen: the head's output is zero."""

    def mask(self, tiling: Tiling) -> np.ndarray:
        """See ``Pattern.mask``."""
        return np.zeros((tiling.count, tiling.count), dtype=bool)

    def rows(self, tiling: Tiling, transposed: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """See ``pattern_rows``."""
        del transposed
        return np.zeros((tiling.count, 1), dtype=np.int32), np.zeros(tiling.count, dtype=np.int32)

    def pairs(self, tiling: Tiling) -> int:
        """See ``pattern_pairs``."""
        del tiling
        return 0


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

    def seen(self, tiling: Tiling, tiles: np.ndarray) -> np.ndarray:
        """Return bool ``(len(tiles), count)``: the rows of ``mask`` for some query tiles, without the others."""
        t, h, w = (band(n, k) for n, k in zip(tiling.pieces, self.tiles(tiling)))
        seen = np.ones((len(tiles), tiling.count), dtype=bool)
        first, n = tiling.prefix_tiles, tiling.video_tiles
        for row, tile in zip(seen, np.asarray(tiles) - first):
            if 0 <= tile < n:
                it, ih, iw = np.unravel_index(tile, tiling.pieces)
                row[first : first + n] = (t[it, :, None, None] & h[ih, :, None] & w[iw]).reshape(-1)
        return seen

    def rows(self, tiling: Tiling, transposed: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """See ``pattern_rows``."""
        axes = [
            _seen_by(start, k) if transposed else ranges(start, np.full_like(start, k))
            for start, k in zip(*self._starts(tiling))
        ]
        axes = [(values.astype(np.int32), count.astype(np.int32)) for values, count in axes]
        _, nh, nw = tiling.pieces
        video, count = product_rows(axes[0], product_rows(axes[1], axes[2], nw), nh * nw)
        front, behind, tiles = tiling.prefix_tiles, tiling.suffix_tiles, tiling.count
        if not front and not behind:
            return video, count
        ids = np.zeros((tiles, tiles), dtype=np.int32)
        counts = np.full(tiles, tiles, dtype=np.int32)
        last = front + tiling.video_tiles
        ids[:front] = ids[last:] = np.arange(tiles)
        inside = ids[front:last]
        inside[:, :front] = np.arange(front)
        inside[:, front : front + video.shape[1]] = video + front
        counts[front:last] = count + front + behind
        for n in np.unique(count).tolist():
            row = count == n
            inside[row, front + n :] = 0
            inside[row, front + n : front + n + behind] = np.arange(last, tiles)
        return ids, counts

    def pairs(self, tiling: Tiling) -> int:
        """See ``pattern_pairs``."""
        inside = 1
        for (start, k), bounds in zip(zip(*self._starts(tiling)), tiling.bounds):
            size = np.diff(bounds)
            upto = np.concatenate([[0], np.cumsum(size)])
            inside *= int(size @ (upto[start + k] - upto[start]))
        return tiling.grid.tokens**2 - tiling.grid.video**2 + inside

    def _starts(self, tiling: Tiling) -> tuple[list[np.ndarray], tuple[int, int, int]]:
        """Return the first piece that each piece of an axis sees, per axis, and how many it sees."""
        window = self.tiles(tiling)
        return [_first_seen(n, k) for n, k in zip(tiling.pieces, window)], window


@dataclass(frozen=True)
class FirstFrames:
    """A vertical stripe: every query sees the key tiles of the first ``frames`` (latent frames, or a share of them)."""

    frames: int | str

    def columns(self, tiling: Tiling) -> np.ndarray:
        """Return bool ``(video tiles,)``: the key tiles that all see."""
        nt, nh, nw = tiling.pieces
        return np.arange(nt).repeat(nh * nw) < _tiles_along(self.frames, nt, tiling.tile[0])

    def mask(self, tiling: Tiling) -> np.ndarray:
        """See ``Pattern.mask``."""
        return _stripe_mask(tiling, self.columns(tiling))


@dataclass(frozen=True)
class Stripe:
    """A vertical stripe: every query sees the key ``tiles`` (numbers in raster order) of a video cut into ``pieces``.

    On a grid that is cut otherwise the stripe is rebuilt by rule: the tiles whose centers lie in one of those tiles,
    and the tiles that hold the centers of those tiles, both as shares of the video.
    """

    pieces: tuple[int, int, int]
    tiles: tuple[int, ...]

    def columns(self, tiling: Tiling) -> np.ndarray:
        """Return bool ``(video tiles,)``: the key tiles that all see."""
        chosen = np.zeros(self.pieces, dtype=bool)
        chosen.reshape(-1)[list(self.tiles)] = True
        if tiling.pieces != self.pieces:
            chosen = _carried(chosen, tiling)
        return chosen.reshape(-1)

    def mask(self, tiling: Tiling) -> np.ndarray:
        """See ``Pattern.mask``."""
        return _stripe_mask(tiling, self.columns(tiling))


@dataclass(frozen=True)
class Union:
    """A query tile sees what it sees under any of ``parts``."""

    parts: tuple[Pattern, ...]

    def mask(self, tiling: Tiling) -> np.ndarray:
        """See ``Pattern.mask``."""
        return np.logical_or.reduce([part.mask(tiling) for part in self.parts])


def _stripe_mask(tiling: Tiling, columns: np.ndarray) -> np.ndarray:
    """Return the mask in which video queries see ``columns`` of the video, and tokens outside it see and are seen."""
    mask = np.ones((tiling.count, tiling.count), dtype=bool)
    inside = slice(tiling.prefix_tiles, tiling.prefix_tiles + tiling.video_tiles)
    mask[inside, inside] = columns[None, :]
    return mask


def _carried(chosen: np.ndarray, tiling: Tiling) -> np.ndarray:
    """Return bool of ``tiling.pieces``: the tiles there that stand for the ``chosen`` ones of other pieces."""

    def centers(pieces: tuple[int, ...]) -> list[np.ndarray]:
        bounds = [split_bounds(length, n) if n <= length else None for length, n in zip(tiling.grid.shape, pieces)]
        # An axis with fewer tokens than the stripe has pieces is cut evenly.
        return [
            (np.arange(n) + 0.5) / n if b is None else (b[:-1] + b[1:]) / (2 * b[-1]) for n, b in zip(pieces, bounds)
        ]

    def place(at: np.ndarray, pieces: int) -> np.ndarray:
        return np.minimum((at * pieces).astype(np.int64), pieces - 1)

    mine, theirs = centers(tiling.pieces), centers(chosen.shape)
    carried = chosen[np.ix_(*(place(at, n) for at, n in zip(mine, chosen.shape)))]
    where = [place(theirs[axis][index], tiling.pieces[axis]) for axis, index in enumerate(np.nonzero(chosen))]
    carried[tuple(where)] = True
    return carried


def _tiles_along(extent: int | str | None, pieces: int, largest: int) -> int:
    if extent is None:
        return pieces
    if isinstance(extent, str):
        # The small number keeps 60 % of 5 pieces at 3 despite binary fractions.
        return max(1, min(pieces, int(np.ceil(pieces * float(extent[:-1]) / 100 - 1e-9))))
    return min(pieces, -(-extent // largest))


def _first_seen(n: int, k: int) -> np.ndarray:
    """Return ``clamp(i - k//2, 0, n - k)`` for every piece i of an axis."""
    return np.clip(np.arange(n) - k // 2, 0, n - k)


def _seen_by(start: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which pieces see each piece, as (values, count), where piece i sees the k pieces from ``start[i]`` on."""
    pieces = np.arange(len(start))
    first = np.searchsorted(start, pieces - k, side="right")
    return ranges(first, np.searchsorted(start, pieces, side="right") - first)


def band(n: int, k: int) -> np.ndarray:
    """Return bool ``(n, n)``: piece i sees the k pieces from ``clamp(i - k//2, 0, n - k)`` on."""
    start = _first_seen(n, k)[:, None]
    piece = np.arange(n)[None, :]
    return (piece >= start) & (piece < start + k)


def density(mask: np.ndarray, live: np.ndarray) -> float:
    """Return the share of (query, key) token pairs that a tile mask ``(count, count)`` computes."""
    live = live.astype(np.float64)
    return float(live @ mask @ live) / float(live.sum()) ** 2


def pattern_pairs(pattern: Pattern, tiling: Tiling) -> int:
    """Return how many (query, key) pairs of tokens ``pattern`` computes."""
    if hasattr(pattern, "pairs"):
        return pattern.pairs(tiling)
    live = tiling.live
    return int(live @ pattern.mask(tiling).astype(np.int64) @ live)


def pattern_rows(pattern: Pattern, tiling: Tiling, transposed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return ``ids`` int32 ``(count, longest)`` and ``count`` int32 ``(count,)``: the tiles that every query tile sees,
    or with ``transposed`` the query tiles that see a key tile; ascending, unused entries 0."""
    if hasattr(pattern, "rows"):
        return pattern.rows(tiling, transposed)
    mask = pattern.mask(tiling)
    ids, count = block_lists((mask.T if transposed else mask)[None])
    return ids[0], count[0]


def stack_rows(rows: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of several patterns as ``ids (P, count, longest)`` and ``count (P, count)``."""
    count = np.stack([each for _, each in rows])
    longest = max(1, int(count.max(initial=0)))
    if len(rows) == 1 and rows[0][0].shape[1] == longest:
        return rows[0][0][None], count
    ids = np.zeros((*count.shape, longest), dtype=np.int32)
    for place, (each, _) in zip(ids, rows):
        place[:, : each.shape[1]] = each[:, :longest]
    return ids, count


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
