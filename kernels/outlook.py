"""What a schedule comes to on a video before anything is sampled: the token grid, and per step phase and density.

``nodes/web/core`` computes the same in the browser; ``tests/fixtures/schedule_cases.json`` holds both to one answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .grid import GridError, TokenGrid
from .head_table import HeadTable
from .plan import step_densities
from .schedule import Schedule

# Wan's VAEs: 4 frames a latent frame; 8 pixels a latent pixel (16 for Wan2.2 5B), and 2 x 2 of those are a token.
FRAMES_PER_TOKEN = 4
PIXELS_PER_TOKEN = 16
MAX_TOKENS = 2_000_000


@dataclass(frozen=True)
class StepOutlook:
    """One step of a run; ``density`` is 1.0 when dense and None where a selector decides while sampling, or a head
    table that is not given."""

    index: int
    sigma: float
    phase: int
    attention: str
    density: float | None


def video_grid(width: int, height: int, frames: int, pixels: int = PIXELS_PER_TOKEN) -> TokenGrid:
    """Return the token grid of a video of ``width`` x ``height`` pixels and ``frames`` frames, as the host makes it.

    ``pixels`` is the side of a token: 16 for Wan2.1 and Wan2.2 A14B, 32 for Wan2.2 5B. Raises GridError for a size
    that is not positive, or more than two million tokens.
    """
    for name, value in (("width", width), ("height", height), ("frames", frames)):
        if value < 1:
            raise GridError(f"a video has at least one pixel and one frame, got {name} {value}.")
    latent = pixels // 2
    t = (frames - 1) // FRAMES_PER_TOKEN + 1
    h, w = (math.ceil(max(1, n // latent) / 2) for n in (height, width))
    if t * h * w > MAX_TOKENS:
        raise GridError(
            f"{width} x {height} x {frames} frames are {t * h * w} tokens, at most {MAX_TOKENS} are planned; "
            "choose a smaller video."
        )
    return TokenGrid(t, h, w)


def sampler_sigmas(steps: int, shift: float) -> list[float]:
    """Return the steps + 1 sigmas of a run from 1 to 0: equal parts of the trajectory under Wan's shift."""
    parts = (1 - i / steps for i in range(steps + 1))
    return [shift * u / (1 + (shift - 1) * u) for u in parts]


def step_outlooks(
    schedule: Schedule,
    grid: TokenGrid,
    sigmas: Sequence[float],
    *,
    slots: int = 64,
    tile: tuple[int, int, int] | None = None,
    table: HeadTable | None = None,
) -> list[StepOutlook]:
    """Return every step of a run whose steps start at ``sigmas`` (without the final zero)."""
    densities = step_densities(schedule, grid, list(sigmas), slots=slots, tile=tile, table=table)
    steps = []
    for index, (sigma, density) in enumerate(zip(sigmas, densities)):
        phase, what = schedule.at(sigma)
        steps.append(StepOutlook(index, sigma, phase, what.attention, density))
    return steps
