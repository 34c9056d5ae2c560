"""Cells: what is measured, one shape, density and direction at a time, and in which order.

A cell is plain data that travels to a child process as JSON. This module imports no torch, so listing costs nothing.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import asdict, dataclass, fields
from functools import lru_cache

import numpy as np

from ..grid import TokenGrid, choose_tiling
from ..patterns import band

RESOLUTIONS = {"480p": (480, 832), "720p": (720, 1280)}
FRAMES = (33, 81, 121)
HEADS = (12, 40)
BATCHES = (1, 2)
DENSITIES = (100, 50, 25, 15, 10, 5)
DIRECTIONS = ("forward", "backward")
SLOTS = (64, 128)
# A window whose density is this close to the target counts as a hit; among hits the one that keeps most of time wins.
HIT = 0.03
# Minutes of the first cells are worth most: what users run, at the densities of the presets.
DENSITY_RANK = {15: 0, 25: 1, 100: 2, 10: 3, 5: 4, 50: 5}


class CellError(ValueError):
    """A cell that cannot be asked for; the message is one sentence."""


@dataclass(frozen=True)
class Cell:
    """One measurement: ``kind`` says which, the other fields what of; ``limit`` is its time limit in seconds.

    ``grid`` is (t, h, w) in latent tokens; ``density`` the target in percent. The fields from ``model`` on
    belong to the kind 'model'; 'msfp' has a ``model`` too.
    """

    id: str
    kind: str
    grid: tuple[int, int, int] = (1, 1, 1)
    heads: int = 1
    batch: int = 1
    dim: int = 128
    density: int = 100
    direction: str = "forward"
    limit: float = 300.0
    model: str = ""
    schedule: str = ""
    linears: str = "bf16"
    compiled: bool = False
    label: str = ""
    slots: int = 64
    shift: float = 5.0

    def to_json(self) -> str:
        """Return the cell as JSON text."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Cell:
        """Return the cell that ``to_json`` wrote; raises CellError for anything else."""
        try:
            data = json.loads(text)
            known = {field.name for field in fields(Cell)}
            return Cell(**{k: tuple(v) if k == "grid" else v for k, v in data.items() if k in known})
        except (ValueError, TypeError, AttributeError) as error:
            raise CellError(f"this is no cell ({error}): {text[:80]}") from None


def latent_grid(resolution: str, frames: int) -> tuple[int, int, int]:
    """Return Wan's latent token grid (t, h, w) of ``frames`` video frames at ``resolution`` ('480p' or '720p')."""
    if resolution not in RESOLUTIONS:
        raise CellError(f"'{resolution}' is no resolution; choose one of {', '.join(RESOLUTIONS)}.")
    if frames < 1 or frames % 4 != 1:
        raise CellError(f"Wan makes 4n + 1 frames, got {frames}; ask for example for 81.")
    height, width = RESOLUTIONS[resolution]
    return ((frames - 1) // 4 + 1, height // 16, width // 16)


@dataclass(frozen=True)
class WindowChoice:
    """A window for a density: ``tiles`` along (t, h, w), ``extents`` in tokens (None: all), the exact ``density``."""

    tiles: tuple[int, int, int]
    extents: tuple[int | None, int | None, int | None]
    density: float

    @property
    def words(self) -> str:
        """The three words of a schedule's window."""
        return " ".join("all" if extent is None else str(extent) for extent in self.extents)


@lru_cache(maxsize=512)
def window_for(
    grid: tuple[int, int, int], slots: int, percent: float, tile: tuple[int, int, int] | None = None
) -> WindowChoice:
    """Return the window on the tile grid whose token density is nearest to ``percent``; ``tile`` as for
    ``choose_tiling``.

    Densities within 3 % of the target count as hits; among them the window that keeps most of time wins, then the most
    even one in height and width. 100 is always 'all all all'. Raises CellError outside (0, 100].
    """
    if not 0 < percent <= 100:
        raise CellError(f"a density is above 0 and at most 100 %, got {percent:g}.")
    tiling = choose_tiling(TokenGrid(*grid), slots, tile)
    if percent == 100:
        return WindowChoice(tiling.pieces, (None, None, None), 1.0)
    axes = []
    for n, bounds in zip(tiling.pieces, tiling.bounds):
        live = np.diff(bounds).astype(np.float64)
        axes.append([float(live @ band(n, k) @ live) / live.sum() ** 2 for k in range(1, n + 1)])
    target = percent / 100

    def rank(tiles: tuple[int, int, int]) -> tuple:
        share = [k / n for k, n in zip(tiles, tiling.pieces)]
        error = abs(_product(axes, tiles) / target - 1)
        return (0 if error <= HIT else error, -share[0], abs(share[1] - share[2]), error)

    best = min(itertools.product(*(range(1, n + 1) for n in tiling.pieces)), key=rank)
    extents = tuple(None if k == n else k * e for k, n, e in zip(best, tiling.pieces, tiling.tile))
    return WindowChoice(best, extents, _product(axes, best))


def _product(axes: list[list[float]], tiles: tuple[int, int, int]) -> float:
    return float(np.prod([axis[k - 1] for axis, k in zip(axes, tiles)]))


def attention_cells(dim: int = 128) -> list[Cell]:
    """Return every attention cell, the most valuable first: 720p, 40 heads, 81 frames, forward."""
    ranked = []
    for resolution, frames, heads, batch, direction, density in itertools.product(
        RESOLUTIONS, FRAMES, HEADS, BATCHES, DIRECTIONS, DENSITIES
    ):
        grid = latent_grid(resolution, frames)
        name = "fwd" if direction == "forward" else "bwd"
        cell = Cell(
            f"{resolution}-{frames}f-h{heads}-b{batch}-{name}-d{density}",
            "attention", grid, heads, batch, dim, density, direction,
            limit=240.0 if direction == "forward" else 400.0,
        )  # fmt: skip
        # Users' main sizes are 14B at 720p and 1.3B at 480p; then the mixed ones.
        size = {("720p", 40): 0.0, ("480p", 12): 4.0, ("480p", 40): 6.0, ("720p", 12): 7.0}[(resolution, heads)]
        distance = (
            size
            + {81: 0.0, 121: 8.0, 33: 9.0}[frames]
            + (10.0 if batch == 2 else 0.0)
            + (2.5 if direction == "backward" else 0.0)
            + 0.4 * DENSITY_RANK[density]
        )
        ranked.append((distance, cell))
    return [cell for _, cell in sorted(ranked, key=lambda pair: pair[0])]


# The one Wan-like canvas that sliding tile attention's Triton kernel takes.
STA_GRID = (18, 48, 80)


def standard_cells() -> list[Cell]:
    """Return the cells of a plain run: the card's ceilings, the best cell, first-call times, then all others."""
    attention = attention_cells()
    first = attention[0]
    start = [
        Cell(f"start-{name}", "start", first.grid, first.heads, 1, first.dim, 15, direction, 240.0)
        for name, direction in (("fwd", "forward"), ("bwd", "backward"))
    ]
    sta = Cell("sta-18x48x80-h40-b1-fwd-d15", "attention", STA_GRID, 40, 1, 128, 15, limit=500.0, label="sta")
    return [Cell("ceilings", "ceilings", limit=120.0), *attention[:3], *start, *attention[3:24], sta, *attention[24:]]


def quick_cells() -> list[Cell]:
    """Return four cells that say the most: ceilings, 720p 14B at 15 % and dense, and its backward."""
    chosen = ("720p-81f-h40-b1-fwd-d15", "720p-81f-h40-b1-fwd-d100", "720p-81f-h40-b1-bwd-d15")
    by_id = {cell.id: cell for cell in attention_cells()}
    return [Cell("ceilings", "ceilings", limit=120.0), *(by_id[name] for name in chosen)]


def standin_cells() -> list[Cell]:
    """Return small cells that take the same paths on a machine without a card."""
    grid = (2, 8, 8)
    return [
        Cell("ceilings", "ceilings", limit=120.0),
        Cell("standin-fwd-d25", "attention", grid, 1, 1, 64, 25, limit=180.0),
        Cell("standin-fwd-d100", "attention", grid, 1, 1, 64, 100, limit=180.0),
        Cell("standin-bwd-d25", "attention", grid, 1, 1, 64, 25, "backward", limit=180.0),
        Cell("start-fwd", "start", grid, 1, 1, 64, 25, limit=120.0),
    ]


def smoke_cells(standin: bool) -> list[Cell]:
    """Return what runs first on a new card: every kernel once, checked, and one small timed cell."""
    grid = (2, 8, 8) if standin else (9, 30, 52)
    heads, dim = (1, 64) if standin else (12, 128)
    return [
        Cell("checks", "checks", grid, heads, 1, dim, 25, "backward", limit=120.0),
        Cell("smoke-fwd-d15", "attention", grid, heads, 1, dim, 15, limit=100.0),
    ]


def tune_cells(standin: bool) -> list[Cell]:
    """Return the cells that time every configuration of the forward kernels."""
    if standin:
        return [Cell("tune-standin", "tune", (2, 8, 8), 1, 1, 64, 25, limit=120.0)]
    shapes = [("720p", 40, 15), ("720p", 40, 100), ("480p", 12, 15)]
    return [
        Cell(f"tune-{r}-h{heads}-d{d}", "tune", latent_grid(r, 81), heads, 1, 128, d, limit=500.0)
        for r, heads, d in shapes
    ]


def heads_cells(standin: bool) -> list[Cell]:
    """Return the cells of head tables, the label being the attention; stand-ins run the reference: a small one that
    tries the path, and a medium grid whose times are worth something."""
    if standin:
        small = [Cell("heads-small-fp8", "heads", (2, 8, 8), 4, 1, 64, limit=120.0, label="fp8")]
        medium = [
            Cell(f"heads-medium-{label}", "heads", (6, 16, 24), 8, 1, 64, limit=1800.0, label=label)
            for label in ("fp8", "bf16")
        ]
        return small + medium
    sizes = (("480p", 12, "fp8"), ("720p", 40, "fp8"), ("480p", 12, "bf16"))
    return [
        Cell(f"heads-{r}-h{heads}-{label}", "heads", latent_grid(r, 81), heads, limit=240.0, dim=128, label=label)
        for r, heads, label in sizes
    ]


def msfp_cells(standin: bool) -> list[Cell]:
    """Return the cells of 4-bit linear layers: video, text and time tokens of both sizes of Wan."""
    if standin:
        grids = (("video", (2, 8, 8)), ("text", (1, 1, 512)), ("time", (1, 1, 1)))
        return [Cell(f"msfp-tiny-{name}", "msfp", grid, limit=120.0, model="tiny") for name, grid in grids]
    found = []
    for model, resolutions in (("wan2.1-14b", ("720p", "480p")), ("wan2.1-1.3b", ("480p",))):
        grids = [(r, latent_grid(r, 81)) for r in resolutions] + [("text", (1, 1, 512)), ("time", (1, 1, 1))]
        found += [Cell(f"msfp-{model}-{name}", "msfp", grid, limit=120.0, model=model) for name, grid in grids]
    return found


def select(cells: list[Cell], only: str | None) -> list[Cell]:
    """Return the cells whose id holds one of the comma-separated words of ``only``; raises CellError if none does."""
    if not only:
        return cells
    words = [word.strip() for word in only.split(",") if word.strip()]
    # d5 is not meant where d50 stands.
    patterns = [re.compile(re.escape(word) + r"(?!\d)") for word in words]
    chosen = [cell for cell in cells if any(pattern.search(cell.id) for pattern in patterns)]
    if not chosen:
        raise CellError(f"no cell's name holds '{only}'; names look like {cells[0].id} and {cells[-1].id}.")
    return chosen
