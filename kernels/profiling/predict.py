"""What a schedule will do to the final latent, from runs in which one segment alone was sparse.

Two things are measured: the mean squared error of the final latent when segment s alone runs at the probing density,
and the same when all segments do. The attention error of sampled rows says how a segment's error changes with density;
it is used for nothing else, since between segments it may rank the other way round. Errors of several segments combine
as a power mean whose exponent makes the all-sparse run come out right: 1 if they are independent, less if they add up
in one direction, more if one error hides another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEAST_POWER, LARGEST_POWER = 0.25, 8.0


@dataclass(frozen=True)
class Prediction:
    """``parts[s][l]`` is the squared error of the final latent if segment s alone runs at level l; ``power`` combines
    the segments."""

    parts: tuple[tuple[float, ...], ...]
    power: float

    def error(self, levels: Sequence[int]) -> float:
        """Return the predicted mean squared error of the final latent for a level per segment."""
        return sum(self.parts[s][level] ** self.power for s, level in enumerate(levels)) ** (1 / self.power)

    @property
    def terms(self) -> list[list[float]]:
        """The summands that the search minimizes."""
        return [[part**self.power for part in row] for row in self.parts]

    def limit(self, error: float) -> float:
        """Return the sum of terms that a mean squared error of ``error`` is."""
        return error**self.power

    def from_sum(self, total: float) -> float:
        """Return the mean squared error that a sum of terms is."""
        return max(total, 0.0) ** (1 / self.power)


def make_prediction(
    singles: Sequence[float], together: float | None, curves: Sequence[Sequence[float]], probing: int
) -> Prediction:
    """Return the prediction from final errors and row errors.

    ``singles[s]`` is the mean squared error with segment s alone at level ``probing``, ``together`` that with all of
    them (None: taken as independent), ``curves[s][l]`` the squared row error of level l in segment s (0 when dense).
    """
    parts = []
    for single, curve in zip(singles, curves):
        falling = _falling(curve)
        scale = falling[probing]
        parts.append(tuple(single * (value / scale if scale > 0 else 0.0) for value in falling))
    return Prediction(tuple(parts), 1.0 if together is None else fit_power(singles, together))


def fit_power(singles: Sequence[float], together: float) -> float:
    """Return the exponent p with ``sum(single^p)^(1/p) = together``, kept within sensible bounds."""
    positive = [single for single in singles if single > 0]
    if len(positive) < 2 or together <= 0:
        return 1.0
    if together <= max(positive):
        return LARGEST_POWER
    low, high = LEAST_POWER, LARGEST_POWER

    def combined(power: float) -> float:
        # Relative to the largest, so that small errors do not underflow.
        top = max(positive)
        return top * sum((single / top) ** power for single in positive) ** (1 / power)

    if combined(low) <= together:
        return low
    if combined(high) >= together:
        return high
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if combined(middle) > together else (low, middle)
    return math.sqrt(low * high)


def psnr(error: float, peak: float) -> float:
    """Return the peak signal-to-noise ratio in dB of a mean squared ``error``; infinity without any."""
    return math.inf if error <= 0 else 10 * math.log10(peak * peak / error)


def mean_squared(ratio: float, peak: float) -> float:
    """Return the mean squared error that a ``psnr`` of ``ratio`` dB is."""
    return peak * peak / 10 ** (ratio / 10)


def _falling(curve: Sequence[float]) -> list[float]:
    """More density cannot lose more; where sampled rows say so, that is noise."""
    values, floor = [], 0.0
    for value in reversed(curve):
        floor = max(floor, value)
        values.append(floor)
    return values[::-1]
