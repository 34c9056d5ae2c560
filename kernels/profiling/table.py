"""Row errors of a whole run: a table over steps, layers, granularities and windows, and what is read from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from .rows import RowPlan
from .trajectory import Segment
from .windows import Level


@dataclass
class RowTable:
    """Errors by (step, layer): an array ``(names, 3)`` of squared error, squared norm and mean cosine each."""

    plan: RowPlan
    entries: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)

    @property
    def steps(self) -> list[int]:
        """Probed steps, ascending."""
        return sorted({step for step, _ in self.entries})

    @property
    def layers(self) -> list[int]:
        """Probed layers, ascending."""
        return sorted({layer for _, layer in self.entries})

    def relative(self, name: str) -> np.ndarray:
        """Return the relative L2 error of ``name``, ``(steps, layers)``; NaN where it was not probed."""
        index = self.plan.names.index(name)
        return self._grid(lambda entry: math.sqrt(entry[index, 0] / max(entry[index, 1], 1e-300)))

    def cosine(self, name: str) -> np.ndarray:
        """Return the mean cosine similarity of ``name``, ``(steps, layers)``."""
        index = self.plan.names.index(name)
        return self._grid(lambda entry: entry[index, 2])

    def mean_square(self, name: str, steps: list[int] | None = None) -> float:
        """Return the mean squared relative error of ``name`` over layers and ``steps`` (None: all probed)."""
        values = self.relative(name)
        if steps is not None:
            known = self.steps
            rows = [known.index(step) for step in steps if step in known]
            # A segment between two probed steps takes the nearest.
            rows = rows or [min(range(len(known)), key=lambda i: abs(known[i] - steps[0]))]
            values = values[rows]
        return float(np.nanmean(np.square(values)))

    def curve(self, segment: Segment, levels: list[Level]) -> list[float]:
        """Return the mean squared relative error of every level in ``segment``; 0 when dense."""
        steps = list(range(segment.first, segment.last + 1))
        return [0.0 if level.is_dense else self.mean_square(level.text, steps) for level in levels]

    def _grid(self, value) -> np.ndarray:
        table = [[self.entries.get((step, layer)) for layer in self.layers] for step in self.steps]
        return np.array([[math.nan if entry is None else value(entry) for entry in row] for row in table])


def decibels(relative: float) -> float:
    """Return the signal-to-noise ratio of a relative L2 error in dB."""
    return math.inf if relative <= 0 else -20 * math.log10(relative)
