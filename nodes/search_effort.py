"""What a search costs, counted in dense runs before it starts: floating-point operations, no measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..kernels.grid import Tiling
from ..kernels.headsearch.gathered import MOST_STRIPES
from ..kernels.headsearch.search import Request
from ..kernels.patterns import Pattern, pattern_pairs
from ..kernels.profiling.cost import ModelShape, forward_flops


@dataclass(frozen=True)
class Effort:
    """``steps`` are those of every pass over one prompt and seed, in dense steps of time; a search makes ``passes`` of
    ``clips`` each, after a dense run where it ``looks`` first."""

    steps: tuple[float, ...]
    clips: int
    passes: int
    looks: bool

    @property
    def search_steps(self) -> int:
        """Steps that the model is called for, over all."""
        return len(self.steps) * (self.clips * self.passes + self.looks)

    @property
    def dense_runs(self) -> float:
        """The time of everything, in dense runs."""
        return float(np.mean(self.steps)) * self.clips * self.passes + self.looks

    def sentence(self, candidates: int) -> str:
        """Return what is going to run."""
        look = "a dense run that looks at the heads, then " if self.looks else ""
        times = f"{self.passes} passes over " if self.passes > 1 else ""
        runs = f"{self.clips} run{'s' * (self.clips > 1)} of {len(self.steps)} steps"
        return (
            f"{look}{times}{runs} with {candidates} candidates: about the time of {self.dense_runs:.1f} dense runs by "
            "their operations; on a small video launching all of them takes longer than that."
        )


def search_effort(
    request: Request,
    candidates: Sequence[Pattern],
    tiling: Tiling,
    shape: ModelShape,
    sigmas: Sequence[float],
    *,
    clips: int,
    stripes: float = 0.0,
) -> Effort:
    """Return the effort on one grid: a searched call computes every candidate, full attention among them, and what is
    chosen."""
    densities = [pattern_pairs(pattern, tiling) / float(tiling.grid.tokens) ** 2 for pattern in candidates]
    # Stripes are found while looking, at most so many.
    tried = sum(densities) + MOST_STRIPES * stripes
    chosen = request.budget or sum(densities) / len(densities)
    part = 1 - len(request.dense_layers) / shape.layers
    dense = forward_flops(shape, tiling.grid.tokens)

    def step(sigma: float) -> float:
        if not request.schedule.at(sigma)[1].uses_heads:
            return 1.0
        return forward_flops(shape, tiling.grid.tokens, 1 + part * (tried + chosen - 1)) / dense

    passes = 1 if request.budget is None else 2
    return Effort(tuple(map(step, sigmas)), clips, passes, stripes > 0)
