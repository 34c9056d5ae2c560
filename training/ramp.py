"""How sparsity and FP8 set in: windows shrink from everything to the schedule's own in a few jumps.

Switching a dense model to few tiles at once is reported to leave the loss on a plateau. Phases keep their places along
the trajectory, so a step's phase is the same with and without a ramp. The stage is a function of the step alone:
nothing of it has to be saved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..kernels.grid import TokenGrid
from ..kernels.schedule import GRANULARITIES, Phase, Schedule
from .sparse import SparseAttention


@dataclass(frozen=True)
class Ramp:
    """``steps`` until the schedule is reached, in ``stages`` jumps; FP8 phases run in bf16 before ``fp8_after``."""

    steps: int = 0
    stages: int = 4
    fp8_after: int = 0

    def stage(self, step: int) -> int:
        """Return how many jumps are done at a step, 0 ... stages."""
        return self.stages if step >= self.steps else step * self.stages // self.steps

    def at(self, attention: SparseAttention, step: int, grid: TokenGrid) -> SparseAttention:
        """Return what attention does at a step on a grid: the run's own attention once the ramp is over."""
        share = self.stage(step) / self.stages
        early = step < self.fp8_after
        if share == 1 and not early:
            return attention
        phases = tuple(_eased(phase, share, early, grid) for phase in attention.schedule.phases)
        return replace(attention, schedule=Schedule(phases))


def _eased(phase: Phase, share: float, early: bool, grid: TokenGrid) -> Phase:
    """Return the phase at ``share`` of the ramp: window extents go linearly from the whole axis, scales from fine."""
    if phase.attention == "dense":
        return phase
    changes: dict = {}
    if share < 1:
        if phase.window is None:
            # A selector has no window to widen: everything is seen until the last jump.
            changes |= {"window": (None, None, None), "selector": None}
        else:
            axes = zip(phase.window, (grid.t, grid.h, grid.w), strict=True)
            changes["window"] = tuple(_extent(extent, whole, share) for extent, whole in axes)
        if phase.granularity in GRANULARITIES[1:]:
            rank = GRANULARITIES.index(phase.granularity)
            changes["granularity"] = GRANULARITIES[1 + math.floor((rank - 1) * share)]
    if early and phase.attention == "fp8":
        changes |= {"attention": "bf16", "granularity": None}
    return replace(phase, **changes)


def _extent(extent: int | str | None, whole: int, share: float) -> int | None:
    if extent is None:
        return None
    target = whole * float(extent[:-1]) / 100 if isinstance(extent, str) else extent
    eased = math.ceil(whole + (min(target, whole) - whole) * share)
    return None if eased >= whole else max(1, eased)
