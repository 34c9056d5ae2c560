"""Token grids and their 3D tiles.

A Wan sequence is a video grid of ``t x h x w`` latent tokens in raster order, with optional extra tokens in front
(a reference image) or behind (audio, pose). Tiles cut the grid into boxes of at most ``slots`` tokens. Every axis is
split into balanced uneven pieces (lengths differ by at most one), so nothing has to be divisible by anything; extra
tokens form tiles of their own, before and after the video's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from numbers import Integral

import numpy as np

# What a file may say. Fewer slots to a tile make plans of gigabytes, more make a tile of a whole small video, and to
# look for the best tile of a trillion slots would take days.
LEAST_SLOTS, MOST_SLOTS = 2, 4096
# A trained tile is kept on another grid while it needs at most this much more slots than the best tile there.
TILE_REUSE_TOLERANCE = 1.015
# A kernel knows the live count of a uniform tiling at compile time; reading it per tile costs registers, hence time.
UNEVEN_COST = 1.06
# Well-shaped tiles may need this much more slots than the best of any shape.
SHAPE_COST = 1.5
MAX_TILE_FRAMES = 7
MAX_TILE_ASPECT = 2.5


class GridError(ValueError):
    """A grid or a tile that cannot exist."""


@dataclass(frozen=True)
class TokenGrid:
    """The token layout of one sequence: ``prefix`` extra tokens, then ``t*h*w`` video tokens, then ``suffix`` extra."""

    t: int
    h: int
    w: int
    prefix: int = 0
    suffix: int = 0

    def __post_init__(self) -> None:
        for name in ("t", "h", "w", "prefix", "suffix"):
            if not isinstance(getattr(self, name), Integral):
                raise GridError(f"a token grid has whole numbers of tokens, got {getattr(self, name)!r} for {name}.")
        for name in ("t", "h", "w"):
            if getattr(self, name) < 1:
                raise GridError(f"a token grid needs at least one token along {name}, got {getattr(self, name)}.")
        if self.prefix < 0 or self.suffix < 0:
            raise GridError(f"extra tokens cannot be negative, got prefix {self.prefix} and suffix {self.suffix}.")

    @property
    def video(self) -> int:
        """Video tokens."""
        return self.t * self.h * self.w

    @property
    def tokens(self) -> int:
        """All tokens of the sequence."""
        return self.prefix + self.video + self.suffix

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(t, h, w)``."""
        return (self.t, self.h, self.w)


def split_bounds(length: int, pieces: int) -> np.ndarray:
    """Return the ``pieces + 1`` bounds that split ``length`` into pieces which differ by at most one."""
    return (np.arange(pieces + 1, dtype=np.int64) * length) // pieces


def product_rows(
    a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray], stride: int, fill: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of every pair of a row of ``a`` and one of ``b``, each given as (values, count).

    Values ``(rows, longest)`` are ascending, unused entries anything. A pair's row holds ``x * stride + y`` for all of
    its x and y, ascending if every y is below ``stride``; pairs are in row-major order, unused entries are ``fill``.
    """
    (xs, x_count), (ys, y_count) = a, b
    count = x_count[:, None] * y_count[None, :]
    shape = (len(xs), len(ys), max(1, int(count.max(initial=0))))
    out = np.full(shape, fill, dtype=xs.dtype) if fill else np.zeros(shape, dtype=xs.dtype)
    # Rows of one length are made at once: a window and a tiling know few lengths.
    for m in np.unique(x_count).tolist():
        rows = _select(x_count == m)
        x = xs[rows, :m] * stride
        for n in np.unique(y_count).tolist():
            columns = _select(y_count == n)
            y = ys[columns, :n]
            block = (x[:, None, :, None] + y[None, :, None, :]).reshape(len(x), len(y), m * n)
            if isinstance(rows, slice) or isinstance(columns, slice):
                out[rows, columns, : m * n] = block
            else:
                out[rows[:, None], columns[None, :], : m * n] = block
    return out.reshape(-1, shape[2]), count.reshape(-1)


def _select(chosen: np.ndarray) -> slice | np.ndarray:
    return slice(None) if chosen.all() else np.flatnonzero(chosen)


@dataclass(frozen=True)
class Tiling:
    """A grid cut into tiles.

    ``pieces`` is the number of tiles along (t, h, w). With ``runs`` the whole sequence is cut into plain runs of
    ``slots`` tokens instead (``pieces = (1, 1, n)``): the least-padded layout, used when every tile sees every tile.
    Tiles are numbered prefix first, then video in raster order, then suffix.
    """

    grid: TokenGrid
    pieces: tuple[int, int, int]
    slots: int
    runs: bool = False

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Piece bounds along (t, h, w); for runs the last axis is the whole sequence, and only the last run shorter."""
        if self.runs:
            one, full = np.array([0, 1]), np.arange(self.pieces[2] + 1, dtype=np.int64) * self.slots
            return one, one, np.minimum(full, self.grid.tokens)
        return tuple(split_bounds(length, n) for length, n in zip(self.grid.shape, self.pieces))

    @property
    def tile(self) -> tuple[int, int, int]:
        """The largest tile's extents along (t, h, w) in tokens."""
        return tuple(int(np.diff(b).max()) for b in self.bounds)

    @property
    def prefix_tiles(self) -> int:
        """Tiles of extra tokens in front."""
        return 0 if self.runs else -(-self.grid.prefix // self.slots)

    @property
    def suffix_tiles(self) -> int:
        """Tiles of extra tokens behind."""
        return 0 if self.runs else -(-self.grid.suffix // self.slots)

    @property
    def video_tiles(self) -> int:
        """Tiles of the video grid (all of them for runs)."""
        return self.pieces[0] * self.pieces[1] * self.pieces[2]

    @property
    def count(self) -> int:
        """All tiles."""
        return self.prefix_tiles + self.video_tiles + self.suffix_tiles

    @cached_property
    def live(self) -> np.ndarray:
        """Live tokens per tile, int64 ``(count,)``."""
        dt, dh, dw = (np.diff(b) for b in self.bounds)
        video = (dt[:, None, None] * dh[None, :, None] * dw[None, None, :]).reshape(-1)
        if self.runs:
            return video
        return np.concatenate([self._extra_sizes(self.grid.prefix), video, self._extra_sizes(self.grid.suffix)])

    @cached_property
    def width(self) -> int:
        """Rows of the largest tile: no layout needs more, ``slots`` is what a kernel reserves."""
        return int(self.live.max())

    @cached_property
    def index(self) -> np.ndarray:
        """Token of every slot, int64 ``(count, width)``: live rows first, -1 where dead."""
        index = np.full((self.count, self.width), -1, dtype=np.int64)
        rows = [ranges(bounds[:-1], np.diff(bounds)) for bounds in self.bounds]
        _, h, w = (1, 1, 1) if self.runs else self.grid.shape
        video, _ = product_rows(rows[0], product_rows(rows[1], rows[2], w, -1), h * w, -1)
        if self.runs:
            return video
        first, last = self.prefix_tiles, self.prefix_tiles + self.video_tiles
        index[first:last, : video.shape[1]] = np.where(video >= 0, video + self.grid.prefix, -1)
        for top, offset, tokens in (
            (0, 0, self.grid.prefix),
            (last, self.grid.tokens - self.grid.suffix, self.grid.suffix),
        ):
            if tokens:
                sizes = self._extra_sizes(tokens)
                extra, live = ranges(offset + np.cumsum(sizes) - sizes, sizes)
                for row, count in enumerate(live):
                    index[top + row, :count] = extra[row, :count]
        return index

    @cached_property
    def tile_of_token(self) -> np.ndarray:
        """Tile of every token of the sequence, int64 ``(tokens,)``."""
        axes = [np.repeat(np.arange(n), np.diff(b)) for n, b in zip(self.pieces, self.bounds)]
        _, nh, nw = self.pieces
        video = ((axes[0][:, None, None] * nh + axes[1][None, :, None]) * nw + axes[2][None, None, :]).reshape(-1)
        if self.runs:
            return video
        prefix = np.repeat(np.arange(self.prefix_tiles), self._extra_sizes(self.grid.prefix))
        suffix = np.repeat(np.arange(self.suffix_tiles), self._extra_sizes(self.grid.suffix))
        return np.concatenate([prefix, video + self.prefix_tiles, suffix + self.prefix_tiles + self.video_tiles])

    @property
    def padding(self) -> float:
        """Reserved slots over tokens, minus one."""
        return self.count * self.slots / self.grid.tokens - 1.0

    def cubes(self, n: int) -> np.ndarray:
        """Return the cube of every tile, int64 ``(count,)``: ``n x n x n`` video tiles share a cube, counted from the
        grid's origin (border cubes are smaller), and n neighboring runs of a run tiling; every tile of extra tokens is
        a cube of its own."""
        cubes_per_axis = [-(-p // n) for p in self.pieces]
        axes = [np.arange(p) // n for p in self.pieces]
        video = (
            (axes[0][:, None, None] * cubes_per_axis[1] + axes[1][None, :, None]) * cubes_per_axis[2]
            + axes[2][None, None, :]
        ).reshape(-1)
        extra = int(np.prod(cubes_per_axis)) + np.arange(self.prefix_tiles + self.suffix_tiles)
        return np.concatenate([extra[: self.prefix_tiles], video, extra[self.prefix_tiles :]])

    def _extra_sizes(self, tokens: int) -> np.ndarray:
        return np.diff(split_bounds(tokens, -(-tokens // self.slots))) if tokens else np.zeros(0, dtype=np.int64)


def ranges(start: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows ``start, start + 1, ...`` of ``size`` numbers each, as (values, count)."""
    return start[:, None] + np.arange(int(size.max(initial=0))), size


def _candidates(grid: TokenGrid, slots: int) -> list[tuple[tuple[int, int, int], tuple[int, int, int]]]:
    """Return every distinct ``(pieces, largest tile)`` whose largest tile fits ``slots``."""
    found = {}
    for a in range(1, min(grid.t, slots) + 1):
        for b in range(1, min(grid.h, slots // a) + 1):
            for c in range(1, min(grid.w, slots // (a * b)) + 1):
                pieces = tuple(-(-length // extent) for length, extent in zip(grid.shape, (a, b, c)))
                tile = tuple(-(-length // n) for length, n in zip(grid.shape, pieces))
                found[pieces] = tile
    return list(found.items())


@lru_cache(maxsize=256)
def choose_tiling(grid: TokenGrid, slots: int = 64, tile: tuple[int, int, int] | None = None) -> Tiling:
    """Return the tiling of ``grid`` with the fewest slots, preferring uniform, not frame-thin, nearly square tiles.

    ``tile`` is the tile a model was trained with: it is kept while its slots are within 1.5 % of the best for this
    grid, else the search decides. Raises GridError for a slot count below 1 and a tile that does not fit its slots.
    """
    if slots < 1:
        raise GridError(f"a tile needs at least one slot, got {slots}.")
    if tile is not None and (len(tile) != 3 or min(tile) < 1 or math.prod(tile) > slots):
        raise GridError(f"a tile has three extents with at most {slots} tokens in all, got {tile}.")
    candidates = _candidates(grid, slots)

    def shaped(extents: tuple[int, int, int]) -> bool:
        t, h, w = extents
        return t <= MAX_TILE_FRAMES and max(h, w) <= MAX_TILE_ASPECT * min(h, w)

    def cost(pieces: tuple[int, int, int]) -> float:
        uneven = any(length % n for length, n in zip(grid.shape, pieces))
        return pieces[0] * pieces[1] * pieces[2] * (UNEVEN_COST if uneven else 1.0)

    # On small or thin grids well-shaped tiles are nearly empty; then any shape will do.
    pool = [c for c in candidates if shaped(c[1])]
    cheapest, cheapest_shaped = (min(cost(pieces) for pieces, _ in group) for group in (candidates, pool))
    if cheapest_shaped <= cheapest * SHAPE_COST:
        cheapest = cheapest_shaped
    else:
        pool = candidates

    def rank(candidate: tuple[tuple[int, int, int], tuple[int, int, int]]) -> tuple:
        pieces, (t, h, w) = candidate
        return (t < min(2, grid.t), max(h, w) / min(h, w), cost(pieces), -t, -w)

    equal = [c for c in pool if cost(c[0]) <= cheapest * TILE_REUSE_TOLERANCE]
    best = Tiling(grid, min(equal, key=rank)[0], slots)
    if tile is not None:
        trained = Tiling(grid, tuple(-(-length // extent) for length, extent in zip(grid.shape, tile)), slots)
        if trained.video_tiles <= best.video_tiles * TILE_REUSE_TOLERANCE:
            return trained
    return best


@lru_cache(maxsize=256)
def run_tiling(grid: TokenGrid, slots: int = 128) -> Tiling:
    """Return the sequence cut into plain runs of at most ``slots`` tokens: the layout of a full list."""
    return Tiling(grid, (1, 1, -(-grid.tokens // slots)), slots, runs=True)
