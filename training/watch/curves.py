"""Records of a run as series that can be drawn: smoothed, thinned, and paired with those of a dense run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .rates import bucket

POINTS = 800  # of a drawn line; more cannot be seen
Record = dict[str, Any]


@dataclass(frozen=True)
class Series:
    """Values by optimizer step; steps count from 1, as a reader does."""

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)

    def smoothed(self, window: int) -> Series:
        """Return the mean of the last ``window`` values at every step."""
        return Series(self.steps, trailing_mean(self.values, window))

    def thinned(self, points: int = POINTS) -> Series:
        """Return at most about ``points`` of the values, the last one among them."""
        if len(self) <= points:
            return self
        chosen = np.unique(np.linspace(0, len(self) - 1, points).round().astype(int))
        return Series(self.steps[chosen], self.values[chosen])


def series(records: Sequence[Record], value: str | Callable[[Record], float | None]) -> Series:
    """Return a key of the records, or what a function makes of them; records without it are left out."""
    get = value if callable(value) else lambda record: record.get(value)
    found = [(record["step"] + 1, number) for record in records if (number := get(record)) is not None]
    return Series(np.array([s for s, _ in found], dtype=int), np.array([v for _, v in found], dtype=float))


def grouped(records: Sequence[Record], split: Callable[[Record], dict[int, float]]) -> dict[int, Series]:
    """Return one series for each key of what ``split`` makes of a record."""
    found: dict[int, list[tuple[int, float]]] = {}
    for record in records:
        for key, value in split(record).items():
            found.setdefault(key, []).append((record["step"] + 1, value))
    return {
        key: Series(np.array([s for s, _ in pairs], dtype=int), np.array([v for _, v in pairs], dtype=float))
        for key, pairs in sorted(found.items())
    }


def window_of(count: int) -> int:
    """Return over how many values a curve of that length is smoothed."""
    return max(1, min(200, count // 25))


def trailing_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return the mean of the last ``window`` values at every place, of fewer at the start."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


@dataclass(frozen=True)
class Excess:
    """How much higher a run's loss is than a dense run's, as a share, on steps that both took.

    ``half`` is the half width of a 95 % interval of the paired difference; ``same`` counts the steps in which both saw
    the same samples at the same noise levels.
    """

    steps: np.ndarray
    values: np.ndarray
    half: np.ndarray
    window: int
    same: int

    @property
    def last(self) -> tuple[float, float]:
        """The excess over the last window, and its half width."""
        return float(self.values[-1]), float(self.half[-1])

    @property
    def paired(self) -> bool:
        """True if every compared step saw the same samples at the same noise levels."""
        return self.same == len(self.steps)


def excess_over(run: Sequence[Record], dense: Sequence[Record]) -> Excess | None:
    """Return the smoothed relative excess of ``run`` over ``dense``; None if they share fewer than two steps."""
    pairs = _pairs(run, dense)
    if len(pairs) < 2:
        return None
    window = window_of(len(pairs))
    ours, theirs = (np.array([pair[i]["loss"] for pair in pairs], dtype=float) for i in (0, 1))
    base = trailing_mean(theirs, window)
    difference = ours - theirs
    mean = trailing_mean(difference, window)
    count = np.minimum(np.arange(1, len(pairs) + 1), window)
    variance = np.maximum(0.0, trailing_mean(difference**2, window) - mean**2) * count / np.maximum(1, count - 1)
    same = sum(_alike(a, b) for a, b in pairs)
    steps = np.array([a["step"] + 1 for a, _ in pairs])
    return Excess(steps, mean / base, 1.96 * np.sqrt(variance / count) / base, window, same)


def excess_per_sigma(run: Sequence[Record], dense: Sequence[Record]) -> dict[int, tuple[float, float, int]]:
    """Return by noise-level bucket the relative excess over dense, its half width and the samples, of the last half.

    Only samples that both runs saw at the same noise level in the same step count.
    """
    pairs = [pair for pair in _pairs(run, dense) if _alike(*pair)]
    found: dict[int, list[tuple[float, float]]] = {}
    for ours, theirs in pairs[len(pairs) // 2 :]:
        both = zip(ours["sigma"], ours.get("losses") or [], theirs.get("losses") or [])
        for sigma, a, b in both:
            found.setdefault(bucket(sigma), []).append((a, b))
    result = {}
    for key, values in sorted(found.items()):
        a, b = np.array(values, dtype=float).T
        spread = 1.96 * (a - b).std(ddof=1) / np.sqrt(len(a)) if len(a) > 1 else 0.0
        result[key] = (float(a.mean() / b.mean() - 1), float(spread / b.mean()), len(a))
    return result


def _pairs(run: Sequence[Record], dense: Sequence[Record]) -> list[tuple[Record, Record]]:
    theirs = {record["step"]: record for record in dense if record.get("loss") is not None}
    return [(r, theirs[r["step"]]) for r in run if r.get("loss") is not None and r["step"] in theirs]


def _alike(ours: Record, theirs: Record) -> bool:
    keys = ("sigma", "samples")
    return ours.get("sigma") is not None and all(ours.get(key) == theirs.get(key) for key in keys)
