"""What attention does in a run, told without a model: the schedule, its tiles, and the grid of latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..kernels.grid import TokenGrid
from ..kernels.plan import Plans, plans_for
from ..kernels.schedule import Schedule


@dataclass(frozen=True)
class SparseAttention:
    """What attention does along the trajectory: a schedule and how its tiles are made."""

    schedule: Schedule
    slots: int = 64
    tile: tuple[int, int, int] | None = None
    smooth_k: bool = True
    backend: str = "auto"

    def plans(self, grid: TokenGrid, heads: int) -> Plans | None:
        """Return the plans for a grid, or None if the schedule is dense throughout."""
        if self.schedule.is_dense:
            return None
        return plans_for(self.schedule, grid, heads, slots=self.slots, tile=self.tile, smooth_k=self.smooth_k)

    def phase(self, sigma: float) -> int:
        """Return the index of the phase that a sigma falls into."""
        return self.schedule.at(sigma)[0]


DENSE = SparseAttention(Schedule.parse("0 dense"))


def latent_grid(shape: Sequence[int]) -> TokenGrid:
    """Return the token grid of latents (..., T, H, W); patches are 1 x 2 x 2. Raises ValueError for an odd H or W."""
    t, h, w = shape[-3:]
    if h % 2 or w % 2:
        raise ValueError(
            f"latents of {h} x {w} do not divide into 2 x 2 patches; use video sizes that are multiples of 16"
        )
    return TokenGrid(t, h // 2, w // 2)
