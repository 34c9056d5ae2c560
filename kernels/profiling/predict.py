"""What a schedule will do to the final latent, from runs in which one segment alone was sparse.

Measured are the mean squared error of the final latent when segment s alone runs at the probing density, the same when
all segments do, and the same at one more density. The attention error of sampled rows says how a segment's error falls
with density, up to an exponent that the runs at two densities give; it is used for nothing else, since between segments
it may rank the other way round. Errors of several segments combine as a power mean whose exponent makes the all-sparse
run come out right: 1 if they are independent, less if they add up in one direction, more if one hides another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEAST_POWER, LARGEST_POWER = 0.25, 8.0
LEAST_BEND, LARGEST_BEND = 0.2, 2.0


@dataclass(frozen=True)
class Prediction:
    """``singles[s]`` is the squared error of the final latent if segment s alone runs at the probing level, ``curves``
    ``[s][l]`` what level l has of the row error there, squared (1 at the probing level, 0 when dense), ``bend`` the
    exponent from row errors to final ones, and ``power`` combines the segments."""

    singles: tuple[float, ...]
    curves: tuple[tuple[float, ...], ...]
    power: float
    bend: float = 1.0

    def part(self, segment: int, level: int) -> float:
        """Return the squared error of the final latent if ``segment`` alone runs at ``level``."""
        curve = self.curves[segment][level]
        return self.singles[segment] * curve**self.bend if curve > 0 else 0.0

    def error(self, levels: Sequence[int]) -> float:
        """Return the predicted mean squared error of the final latent for a level per segment."""
        return self.from_sum(sum(self.part(s, level) ** self.power for s, level in enumerate(levels)))

    @property
    def terms(self) -> list[list[float]]:
        """The summands that the search minimizes, ``[segment][level]``."""
        levels = range(len(self.curves[0]))
        return [[self.part(s, level) ** self.power for level in levels] for s in range(len(self.singles))]

    def limit(self, error: float) -> float:
        """Return the sum of terms that a mean squared error of ``error`` is."""
        return error**self.power

    def from_sum(self, total: float) -> float:
        """Return the mean squared error that a sum of terms is."""
        return max(total, 0.0) ** (1 / self.power)


def make_prediction(
    singles: Sequence[float], together: float, curves: Sequence[Sequence[float]], probing: int
) -> Prediction:
    """Return the prediction from final errors and row errors.

    ``singles[s]`` is the mean squared error with segment s alone at level ``probing``, ``together`` that with all of
    them, ``curves[s][l]`` the squared row error of level l in segment s (0 when dense).
    """
    shapes = []
    for curve in curves:
        falling = _falling(curve)
        scale = falling[probing]
        shapes.append(tuple(value / scale if scale > 0 else 0.0 for value in falling))
    return Prediction(tuple(singles), tuple(shapes), fit_power(singles, together))


def bent(prediction: Prediction, measured: Sequence[tuple[Sequence[int], float]]) -> Prediction:
    """Return ``prediction`` with the bend that comes nearest, in dB, to runs that were measured (levels, mean squared
    error); a bend far from 1 must be worth it. Runs without any error say nothing."""
    known = [(levels, error) for levels, error in measured if error > 0]

    def misfit(bend: float) -> float:
        trial = Prediction(prediction.singles, prediction.curves, prediction.power, bend)
        off = [_decibels(trial.error(levels)) - _decibels(error) for levels, error in known]
        return sum(x * x for x in off) + 0.2 * math.log(bend) ** 2

    ratio = LARGEST_BEND / LEAST_BEND
    trials = [LEAST_BEND * ratio ** (i / 60) for i in range(61)]
    best = min(trials, key=misfit) if known else 1.0
    return Prediction(prediction.singles, prediction.curves, prediction.power, best)


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


def _decibels(error: float) -> float:
    return 10 * math.log10(max(error, 1e-300))


def _falling(curve: Sequence[float]) -> list[float]:
    """More density cannot lose more; where sampled rows say so, that is noise."""
    values, floor = [], 0.0
    for value in reversed(curve):
        floor = max(floor, value)
        values.append(floor)
    return values[::-1]
