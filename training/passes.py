"""Which samples a step takes, and in which forward passes of which process.

Everything here follows from (seed, step) and the data, so every process computes the same answer and none has to ask.
A pass holds samples of one phase, one band of the head table and one size, because a forward runs one plan. Sharded
weights are gathered by all processes together, so each gets the same number of passes, and passes of like cost run at
the same time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from .config import RunConfig
from .data.order import bucket_of, plan_step
from .flow import parts_of_step, sample_sigma
from .sparse import SparseAttention


@dataclass(frozen=True)
class Place:
    """One sample of a step: which, at which noise level, in which phase, of which size, in which band of a table."""

    place: int
    epoch: int
    index: int
    part: tuple[int, int] | None
    sigma: float
    phase: int
    bucket: Hashable
    band: int = 0


@dataclass(frozen=True)
class Pass:
    """The samples of one forward; without ``counts`` a repeat that only keeps a process in step with the others."""

    places: tuple[Place, ...]
    counts: bool = True


def step_places(config: RunConfig, step: int, data: Sequence[Any], attention: SparseAttention) -> list[Place]:
    """Return every sample of a step with its noise level."""
    flow = config.flow.resolved()
    pairs = plan_step(config.seed, step, config.optim.samples, data)
    parts = parts_of_step(config.seed, step, len(pairs)) if config.flow.stratified else [None] * len(pairs)
    places = []
    for place, ((epoch, index), part) in enumerate(zip(pairs, parts, strict=True)):
        sigma = sample_sigma(flow, config.seed, epoch, index, part)
        bucket = bucket_of(data, index)
        phase, band = attention.part(sigma)
        places.append(Place(place, epoch, index, part, sigma, phase, bucket, band))
    return places


def deal(
    places: Sequence[Place], batch: int, processes: int, cost: Callable[[Place], float] = lambda _: 1.0
) -> list[list[Pass]]:
    """Return the passes of every process, equally many; the n-th passes of all processes cost about the same."""
    # No process idles while another takes several samples at once.
    size = min(batch, math.ceil(len(places) / processes))
    groups: dict[Any, list[Place]] = {}
    for place in places:
        groups.setdefault((place.phase, place.band, place.bucket), []).append(place)
    passes = [Pass(tuple(g[i : i + size])) for g in groups.values() for i in range(0, len(g), size)]
    if processes == 1:
        return [passes]
    passes.sort(key=lambda one: -sum(cost(place) for place in one.places))  # stable: ties keep the data's order
    rounds = [passes[i : i + processes] for i in range(0, len(passes), processes)]
    for row in rounds:
        row += [Pass(row[-1].places, counts=False)] * (processes - len(row))
    return [[row[process] for row in rounds] for process in range(processes)]
