"""A run cut into segments of neighboring steps, with ends that a schedule can say in sigma."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..schedule import SIGMA_TOLERANCE, Schedule
from .errors import ProfileError
from .windows import DENSE, Level


@dataclass(frozen=True)
class Segment:
    """Steps ``first`` ... ``last`` of a run and the sigma ``until`` that ends them in a schedule."""

    first: int
    last: int
    until: float
    sigmas: tuple[float, ...]

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.last - self.first + 1

    @property
    def name(self) -> str:
        """The steps in words, counted from 0 as FPSAttention Report does."""
        return f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"


def cut(sigmas: Sequence[float], count: int) -> list[Segment]:
    """Return at most ``count`` segments of equally many steps that start at ``sigmas`` (without the final zero).

    Steps that share a sigma stay together, because a schedule could not tell them apart. Raises ProfileError for
    sigmas that do not fall.
    """
    values = [float(sigma) for sigma in sigmas]
    if not values:
        raise ProfileError("the run has no step; set steps to 1 or more.")
    if any(b > a + SIGMA_TOLERANCE for a, b in pairwise(values)):
        raise ProfileError("the noise level rises during this run, which a schedule cannot follow; choose a scheduler.")
    parts = [part for part in np.array_split(np.arange(len(values)), min(count, len(values))) if len(part)]
    starts = [0]
    for part in parts[1:]:
        start = int(part[0])
        while start < len(values) and values[start - 1] - values[start] < 10 * SIGMA_TOLERANCE:
            start += 1
        if starts[-1] < start < len(values):
            starts.append(start)
    ends = [*(s - 1 for s in starts[1:]), len(values) - 1]
    untils = [*(boundary(values[s - 1], values[s]) for s in starts[1:]), 0.0]
    return [Segment(a, b, until, tuple(values[a : b + 1])) for a, b, until in zip(starts, ends, untils)]


def boundary(above: float, below: float) -> float:
    """Return the shortest number that has ``above`` before it and ``below`` behind it as the end of a phase."""
    middle = (above + below) / 2
    for digits in range(2, 8):
        value = round(middle, digits)
        if below + 2 * SIGMA_TOLERANCE < value <= min(above, 1.0):
            return value
    return min(middle, 1.0)


def schedule_of(segments: Sequence[Segment], levels: Sequence[Level], granularity: str = "x1") -> Schedule:
    """Return the schedule that runs ``levels[i]`` in ``segments[i]``; equal neighbors become one phase."""
    phases = []
    for i, (segment, level) in enumerate(zip(segments, levels)):
        if i + 1 < len(levels) and levels[i + 1] == level:
            continue
        phases.append(level.phase(segment.until, granularity))
    return Schedule(tuple(phases))


def only(segments: Sequence[Segment], index: int, level: Level, granularity: str = "x1") -> Schedule:
    """Return the schedule that is dense but for ``level`` in segment ``index``."""
    return schedule_of(segments, [level if i == index else DENSE for i in range(len(segments))], granularity)


def mean_density(segments: Sequence[Segment], levels: Sequence[Level]) -> float:
    """Return the attention work: the mean density over all steps."""
    steps = sum(segment.steps for segment in segments)
    return sum(segment.steps * level.density for segment, level in zip(segments, levels)) / steps
