"""What attention does in a run, told without a model: the schedule, its tiles, its head table, the grid of latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..kernels.grid import Tiling, TokenGrid, choose_tiling
from ..kernels.head_table import HeadTable
from ..kernels.plan import Plans, plans_for
from ..kernels.schedule import Schedule


@dataclass(frozen=True)
class SparseAttention:
    """What attention does along the trajectory: a schedule and how its tiles are made.

    ``table`` is the head table that a schedule with the word ``heads`` needs; another schedule does not look at it.
    """

    schedule: Schedule
    slots: int = 64
    tile: tuple[int, int, int] | None = None
    smooth_k: bool = True
    backend: str = "auto"
    table: HeadTable | None = None

    @property
    def heads(self) -> HeadTable | None:
        """The head table if the schedule uses it."""
        return self.table if self.schedule.uses_heads else None

    def plans(self, grid: TokenGrid, heads: int, first_head: int = 0) -> Plans | None:
        """Return the plans for a grid and ``heads`` heads from ``first_head`` on, or None if all phases are dense."""
        if self.schedule.is_dense:
            return None
        return plans_for(
            self.schedule, grid, heads, slots=self.slots, tile=self.tile, smooth_k=self.smooth_k, table=self.heads,
            first_head=first_head,
        )  # fmt: skip

    def phase(self, sigma: float) -> int:
        """Return the index of the phase that a sigma falls into."""
        return self.schedule.at(sigma)[0]

    def part(self, sigma: float) -> tuple[int, int]:
        """Return phase and band of the head table: where both are equal, one plan serves."""
        index, phase = self.schedule.at(sigma)
        return index, self.heads.band_at(sigma) if phase.uses_heads and self.heads is not None else 0

    def density(self, grid: TokenGrid, sigma: float, negative: float = 0.0) -> float | None:
        """Return the share of (query, key) pairs at a sigma, over layers and heads; None if it is decided online.

        ``negative`` is the share of the samples that are of the negative prompt, which may have patterns of its own.
        """
        plans = self.plans(grid, 1 if self.heads is None else self.heads.heads)
        if plans is None:
            return 1.0
        if self.heads is None or self.heads.branches == 1 or not self.schedule.at(sigma)[1].uses_heads:
            return plans.mean_density(sigma)
        own, other = _branch_densities(self.heads, plans.tiling(sigma), plans.band(sigma))
        return (1 - negative) * own + negative * other

    def carried_over(self, grid: TokenGrid) -> str | None:
        """Return what is to be said where the head table was made for another grid or other tiles, else None."""
        return None if self.heads is None else self.heads.note_for(choose_tiling(grid, self.slots, self.tile))


@lru_cache(maxsize=256)
def _branch_densities(table: HeadTable, tiling: Tiling, band: int) -> tuple[float, ...]:
    return tuple(float(branch.mean()) for branch in table.head_densities(tiling, band))


DENSE = SparseAttention(Schedule.parse("0 dense"))


def latent_grid(shape: Sequence[int]) -> TokenGrid:
    """Return the token grid of latents (..., T, H, W); patches are 1 x 2 x 2. Raises ValueError for an odd H or W."""
    t, h, w = shape[-3:]
    if h % 2 or w % 2:
        raise ValueError(
            f"latents of {h} x {w} do not divide into 2 x 2 patches; use video sizes that are multiples of 16"
        )
    return TokenGrid(t, h // 2, w // 2)
