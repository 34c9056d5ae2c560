"""The best levels of a few segments: an exact search over everything that at most n phases can say.

A state is (level of the last segment, phases so far); it keeps every pair of work and error that no other pair of the
same state beats in both. With ten levels and six segments that is thousands of states, not the millions of schedules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Choice:
    """A level for every segment, with its work (mean density) and its predicted error."""

    levels: tuple[int, ...]
    work: float
    error: float

    @property
    def phases(self) -> int:
        """Runs of equal neighbors."""
        return 1 + sum(a != b for a, b in pairwise(self.levels))


def frontier(
    densities: Sequence[float], weights: Sequence[float], errors: Sequence[Sequence[float]], phases: int
) -> list[Choice]:
    """Return the choices of at most ``phases`` phases that no other beats in both work and error, ascending in work.

    ``densities[l]`` is the work of level l, ``weights[s]`` the share of segment s in the run, ``errors[s][l]`` what
    level l costs in segment s; errors add up.
    """
    levels = range(len(densities))
    states = {(level, 1): [(weights[0] * densities[level], errors[0][level], (level,))] for level in levels}
    for segment in range(1, len(weights)):
        grown: dict[tuple[int, int], list[tuple[float, float, tuple[int, ...]]]] = {}
        for (last, used), kept in states.items():
            for level in levels:
                key = (level, used + (level != last))
                if key[1] > phases:
                    continue
                work, error = weights[segment] * densities[level], errors[segment][level]
                grown.setdefault(key, []).extend((w + work, e + error, (*path, level)) for w, e, path in kept)
        states = {key: _unbeaten(kept) for key, kept in grown.items()}
    return [Choice(path, w, e) for w, e, path in _unbeaten([item for kept in states.values() for item in kept])]


def least_error(choices: Sequence[Choice], work: float) -> Choice | None:
    """Return the choice of least error with at most ``work``, or None if all need more."""
    allowed = [choice for choice in choices if choice.work <= work + 1e-9]
    return min(allowed, key=lambda c: (c.error, c.work, c.phases)) if allowed else None


def least_work(choices: Sequence[Choice], error: float) -> Choice | None:
    """Return the choice of least work with at most ``error``, or None if all lose more."""
    allowed = [choice for choice in choices if choice.error <= error]
    return min(allowed, key=lambda c: (c.work, c.error, c.phases)) if allowed else None


def _unbeaten(items: list[tuple[float, float, tuple[int, ...]]]) -> list[tuple[float, float, tuple[int, ...]]]:
    kept, best = [], float("inf")
    for work, error, path in sorted(items):
        if error < best:
            kept.append((work, error, path))
            best = error
    return kept
