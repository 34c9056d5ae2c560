"""The figures of a comparison: excess over the control, the share of the gap that is closed, paired intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Below this training-free excess a share of the gap is a share of nothing.
SMALLEST_GAP = 0.03


@dataclass(frozen=True)
class Figures:
    """What five losses say. ``closed`` is None, with the reason in ``refusal``, where a ratio would say nothing."""

    free: float
    """Training-free excess: A over the dense base."""
    control: float
    """Excess of B over D: the dense fine-tune, used sparse."""
    joint: float
    """Excess of C over D."""
    closed: float | None
    """(B - C) / (B - D), against the dense fine-tune."""
    against_base: float | None
    """(A - C) / (A - base), against the base as it was: where a dense fine-tune with a teacher's loss stays."""
    refusal: str | None


def figures(losses: Mapping[str, float]) -> Figures:
    """Return the figures of the losses ``base``, ``A``, ``B``, ``C`` and ``D``."""
    base, a, b, c, d = (losses[name] for name in ("base", "A", "B", "C", "D"))
    free, control, joint = a / base - 1, b / d - 1, c / d - 1
    if free < SMALLEST_GAP:
        refusal = f"the training-free excess is {free:+.1%}, below {SMALLEST_GAP:.0%}"
    elif b <= d:
        refusal = "the control used sparse is not worse than used dense"
    else:
        return Figures(free, control, joint, (b - c) / (b - d), (a - c) / (a - base), None)
    return Figures(free, control, joint, None, None, refusal)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation (0 for a single value)."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, 0.0
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def paired_interval(
    first: Sequence[float], second: Sequence[float], *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Return the mean of ``second - first`` over pairs, and its 95 % bootstrap interval.

    Raises ValueError for sequences of different lengths or fewer than two pairs.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"a paired interval needs two or more pairs, got {len(first)} and {len(second)} values")
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(len(differences), size=(resamples, len(differences)))
    means = differences[picks].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(differences.mean()), float(low), float(high)
