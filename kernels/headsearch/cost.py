"""What a pattern costs: the hardware-aware term of the search, and the time of whole plans.

Sparse-vDiT's cost of a head is its density (arXiv 2506.03065, section 4.2, Eq. 2); it measures no time. Here it is
either that exact density, or the milliseconds that the pattern takes on this card, grid and head size. Of a pattern
that was not measured, curves over density answer, and every answer says where it comes from.

The time of one attention call is ``fixed + sum over heads of the pattern's time``: ``fixed`` is what launching takes,
a head's time holds its share of quantizing q, k and v, so that even ``skip`` takes some.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..calibration import Calibration, CalibrationError
from ..grid import Tiling
from ..head_table import HeadTable
from ..measure_patterns import Call, measure_pattern_costs
from ..pattern_text import format_pattern
from ..patterns import Full, Pattern, pattern_pairs
from .times import PatternTimes

__all__ = ["KINDS", "Call", "CostError", "Costs", "layer_milliseconds", "pattern_costs", "plan_milliseconds"]

KINDS = ("density", "measured")
log = logging.getLogger(__name__)


class CostError(ValueError):
    """Costs that cannot be given; the message is one sentence."""


@dataclass(frozen=True, eq=False)
class Costs:
    """The costs of ``patterns``, P of them.

    ``relative`` float64 ``(P,)``: 1.0 is what Full takes, 0 nothing. ``densities`` float64 ``(P,)``: exact shares of
    token pairs. ``kind`` is what ``relative`` holds: 'density', or 'measured'. ``sources`` says per pattern, in words,
    where its cost comes from. Measured ones have ``ms`` float64 ``(P,)``: milliseconds of one head in one call;
    ``fixed_ms``: milliseconds of one call beyond its heads; ``full_layer_ms``: milliseconds per head of a layer whose
    heads are all full, which runs without lists (None: not known). ``notes`` are sentences for people.
    """

    patterns: tuple[Pattern, ...]
    relative: np.ndarray
    densities: np.ndarray
    kind: str
    sources: list[str]
    ms: np.ndarray | None = None
    fixed_ms: float = 0.0
    full_layer_ms: float | None = None
    notes: tuple[str, ...] = ()

    def says(self) -> str:
        """Return in one line what the costs are and where they come from."""
        counts = {source: self.sources.count(source) for source in dict.fromkeys(self.sources)}
        where = "; ".join(f"{n} x {source}" if len(counts) > 1 else source for source, n in counts.items())
        what = {"density": "cost is density", "measured": "cost is measured time"}[self.kind]
        return " ".join([f"{what} ({where}).", *self.notes])


def pattern_costs(
    patterns: Sequence[Pattern],
    tiling: Tiling,
    *,
    kind: str = "density",
    call: Call | None = None,
    calibration: Calibration | None = None,
    measure: bool = True,
    seconds: float = 60.0,
    clock: object | None = None,
    tick: Callable[[float], None] = lambda share: None,
) -> Costs:
    """Return the costs of ``patterns`` on ``tiling``; raises CostError, one sentence, for what cannot be asked.

    'density' needs nothing else. 'measured' needs ``call``: device, heads, head size and attention. Per pattern the
    first of these that is there answers, and ``sources`` names it: this pattern measured on this grid; measured now,
    where ``measure`` allows it, within ``seconds`` in all; this pattern measured on a near grid, by the pairs that it
    computes; the curve of its family over density; the curve of windows that the benchmark measured; density times
    Full. Where nothing was measured and nothing can be, all are densities, ``kind`` says so and ``notes`` why.

    Times are looked for and kept in ``calibration``, which the caller then saves; without one in the calibration file.
    ``clock`` replaces ``bench.timing.Clock``. ``tick`` is called with the share that is done; what it raises ends it.
    """
    if kind not in KINDS:
        raise CostError(f"'{kind}' is no kind of cost; choose one of {', '.join(KINDS)}.")
    patterns = tuple(patterns)
    if not patterns:
        raise CostError("there is no pattern to price; name one at least, such as 'full'.")
    densities = np.array([pattern_pairs(p, tiling) / float(tiling.grid.tokens) ** 2 for p in patterns])
    if kind == "density":
        return Costs(patterns, densities.copy(), densities, "density", ["exact density"] * len(patterns))
    if call is None:
        raise CostError("measured costs are of a device; say which with call=Call(device, heads, head_dim, ...).")
    own = calibration is None
    calibration = Calibration.load() if own else calibration
    notes = [f"The calibration: {calibration.problem}"] if calibration.problem else []
    times = PatternTimes.of(calibration, tiling, call)
    wanted = times.missing(patterns)
    if measure and wanted:
        done = measure_pattern_costs(wanted, tiling, call, seconds=seconds, clock=clock, tick=tick)
        notes += done.notes
        for entry in done.entries:
            calibration.put(entry)
        if own and done.entries:
            notes += _save(calibration)
        times = PatternTimes.of(calibration, tiling, call, fresh=done.entries)
    found = [times.of_pattern(p, d) for p, d in zip(patterns, densities)]
    full = times.of_pattern(Full(), 1.0)
    if full is None or any(each is None for each in found):
        why = f"density: no time was measured for {call.words()} on {tiling.grid.tokens:,} tokens"
        return Costs(patterns, densities.copy(), densities, "density", [why] * len(patterns), notes=tuple(notes))
    ms = np.array([each.ms for each in found])
    return Costs(
        patterns, ms / full.ms, densities, "measured", [each.source for each in found], ms,
        times.fixed_ms, times.full_layer_ms, tuple(notes),
    )  # fmt: skip


def _save(calibration: Calibration) -> list[str]:
    try:
        calibration.save()
    except CalibrationError as error:
        log.warning("The costs of patterns were measured and not kept: %s", error)
        return [f"The times were not kept: {error}"]
    return []


def layer_milliseconds(pattern_of_head: np.ndarray, costs: Costs) -> float:
    """Return the expected milliseconds of one attention call, from ``costs.patterns``' numbers ``(heads,)``, or
    ``(samples, heads)`` where samples differ; raises CostError."""
    chosen = np.asarray(pattern_of_head)
    if costs.ms is None:
        raise CostError(
            "these costs are densities and hold no times; ask for kind='measured' on a device with a clock."
        )
    if chosen.size == 0 or chosen.dtype.kind not in "iu" or chosen.min() < 0 or chosen.max() >= len(costs.patterns):
        raise CostError(f"heads need numbers from 0 to {len(costs.patterns) - 1}, the patterns that were priced.")
    full = [i for i, pattern in enumerate(costs.patterns) if isinstance(pattern, Full)]
    if costs.full_layer_ms is not None and np.isin(chosen, full).all():
        return chosen.size * costs.full_layer_ms
    return costs.fixed_ms + float(costs.ms[chosen].sum())


def plan_milliseconds(table: HeadTable | np.ndarray, costs: Costs, *, band: int = 0, branch: int = 0) -> np.ndarray:
    """Return the expected milliseconds of the attention call of every layer, float64 ``(layers,)``; their sum is the
    plan's.

    ``table`` is a head table, of which one ``band`` and ``branch`` counts and whose patterns ``costs`` must hold, or
    the numbers of ``costs.patterns`` as an array ``(layers, heads)``. Raises CostError.
    """
    if not isinstance(table, HeadTable):
        return np.array([layer_milliseconds(row, costs) for row in np.atleast_2d(table)])
    place = {format_pattern(p): i for i, p in enumerate(costs.patterns)}
    words = [format_pattern(p) for p in table.patterns]
    chosen = table.bands[band].chosen[branch]
    unpriced = [words[i] for i in np.unique(chosen) if words[i] not in place]
    if unpriced:
        raise CostError(f"the pattern '{unpriced[0][:80]}' has no cost; price all of the table's patterns.")
    numbers = np.array([place.get(word, -1) for word in words])
    return plan_milliseconds(numbers[chosen], costs)
