"""The densities that a grid allows: windows that keep all of time first, and other shapes of equal density.

At equal density, windows over all frames lose far less than local ones on the videos that were measured
(docs/decisions.md), so a schedule is made of them; the other shapes are measured beside them, so that a model for which
that is wrong shows it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..grid import Tiling, TokenGrid, choose_tiling
from ..patterns import Window, band
from ..schedule import Phase
from .errors import ProfileError

# Densities that a ladder aims at; a grid of few tiles reaches only some of them.
AIMED = (0.03, 0.05, 0.08, 0.12, 0.16, 0.20, 0.25, 0.30, 0.40, 0.50, 0.65, 0.80)
# A window may be this much longer along one axis than along the other, as shares of the axes.
MAX_ASPECT = 2.5
# Shares of time of the other shapes.
TIME_SHARES = (0.6, 0.3, 0.0)


@dataclass(frozen=True)
class Level:
    """One density of a schedule: a window in tiles along (t, h, w) as ``window`` says it, or dense (``tiles`` None)."""

    density: float
    window: tuple[str | None, str | None, str | None] | None = None
    tiles: tuple[int, int, int] | None = None

    @property
    def is_dense(self) -> bool:
        """True for the host's own attention."""
        return self.window is None

    @property
    def text(self) -> str:
        """The window as a schedule writes it, or ``dense``."""
        return "dense" if self.window is None else " ".join("all" if e is None else e for e in self.window)

    def phase(self, until: float, granularity: str = "x1") -> Phase:
        """Return this level as the phase of a schedule down to ``until``."""
        if self.window is None:
            return Phase(until, "dense")
        return Phase(until, "fp8", granularity, self.window)


DENSE = Level(1.0)


def window_level(tiling: Tiling, tiles: tuple[int, int, int]) -> Level:
    """Return the level that sees ``tiles`` tiles along (t, h, w) of ``tiling``, with its exact density."""
    window = tuple(_share(k, n) for k, n in zip(tiles, tiling.pieces))
    return Level(_density(tiling, tiles), window, tuple(tiles))


def ladder(
    grid: TokenGrid, *, slots: int = 64, tile: tuple[int, int, int] | None = None, target: float | None = None
) -> list[Level]:
    """Return the levels of ``grid`` with all of time in ascending density; the last is dense.

    One of them is the densest near-square window that does not exceed ``target``. Raises ProfileError for a grid on
    which every window with all of time sees everything.
    """
    tiling = choose_tiling(grid, slots, tile)
    nt, nh, nw = tiling.pieces
    if nh * nw == 1:
        raise ProfileError(
            f"a frame of {grid.h} x {grid.w} tokens is a single tile, so no window can leave anything out; "
            "profile a larger video."
        )
    levels = [window_level(tiling, (nt, kh, kw)) for kh in range(1, nh + 1) for kw in range(1, nw + 1)]
    levels = [level for level in levels if level.tiles != (nt, nh, nw)]
    least = min(levels, key=lambda level: level.density)
    chosen = {least.tiles: least}
    for aimed in AIMED:
        if aimed >= least.density:
            nearest = min(levels, key=lambda level: _distance(level, aimed, tiling))
            chosen[nearest.tiles] = nearest
    if target is not None:
        below = [level for level in levels if level.density <= target + 1e-9 and _aspect(level, tiling) <= MAX_ASPECT]
        if below:
            best = max(below, key=lambda level: (level.density, -_aspect(level, tiling)))
            chosen[best.tiles] = best
    distinct = {round(level.density, 6): level for level in sorted(chosen.values(), key=lambda x: -_aspect(x, tiling))}
    return [distinct[key] for key in sorted(distinct)] + [DENSE]


def other_shapes(
    grid: TokenGrid, density: float, *, slots: int = 64, tile: tuple[int, int, int] | None = None
) -> list[Level]:
    """Return windows of about ``density`` that leave out time, from most of it to one tile; none may exist."""
    tiling = choose_tiling(grid, slots, tile)
    nt, nh, nw = tiling.pieces
    found: dict[tuple[int, int, int], Level] = {}
    for share in TIME_SHARES:
        kt = max(1, round(share * nt))
        if kt < nt:
            same = [window_level(tiling, (kt, kh, kw)) for kh in range(1, nh + 1) for kw in range(1, nw + 1)]
            nearest = min(same, key=lambda level: _distance(level, density, tiling))
            found.setdefault(nearest.tiles, nearest)
    return list(found.values())


def seen_tiles(levels: list[Level], tiling: Tiling, tiles: np.ndarray) -> np.ndarray:
    """Return bool ``(levels, len(tiles), count)``: which key tiles some query tiles see; all of them for dense.

    Only these rows are made: with all of them, a long video's would take gigabytes.
    """
    seen = np.ones((len(levels), len(tiles), tiling.count), dtype=bool)
    for rows, level in zip(seen, levels):
        if level.window is not None:
            rows[:] = Window(*level.window).seen(tiling, tiles)
    return seen


def _share(k: int, n: int) -> str | None:
    """The extent of k of n tiles as a share of the axis, so that it means the same at other sizes."""
    return None if k >= n else f"{max(1, int(100 * k / n))}%"


def _density(tiling: Tiling, tiles: tuple[int, int, int]) -> float:
    """The share of (query, key) pairs: windows and tile sizes are products over the axes; extra tokens see all."""
    video = 1.0
    for bounds, n, k in zip(tiling.bounds, tiling.pieces, tiles):
        lengths = np.diff(bounds).astype(np.float64)
        video *= float(lengths @ band(n, k) @ lengths) / float(lengths.sum()) ** 2
    tokens, inside = tiling.grid.tokens, tiling.grid.video
    return (video * inside**2 + tokens**2 - inside**2) / tokens**2


def _aspect(level: Level, tiling: Tiling) -> float:
    h, w = (k / n for k, n in zip(level.tiles[1:], tiling.pieces[1:]))
    return max(h / w, w / h)


def _distance(level: Level, density: float, tiling: Tiling) -> float:
    return abs(math.log(level.density / density)) + 0.5 * math.log(_aspect(level, tiling))
