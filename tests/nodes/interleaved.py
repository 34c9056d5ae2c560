"""Measures how much longer one of two functions takes: interleaved pairs, the median of their differences."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

PAIRS = 200
# What a schedule without a sparse phase may cost: seconds per self-attention call, and per step of 40 blocks. A shared
# machine gets three times that unless FPS_STRICT=1.
PER_CALL, PER_STEP = 50e-6, 5e-3
SLACK = 1.0 if os.environ.get("FPS_STRICT") == "1" else 3.0


@dataclass(frozen=True)
class Added:
    """What the second function takes more than the first, in seconds: median, and the interval that holds the true
    median with 95 %; ``base`` is the first one's median."""

    median: float
    low: float
    high: float
    base: float

    def line(self, what: str, blocks: int, times: float = 1) -> str:
        """Return the figures in words: per model call and per attention call, beside ``times`` their bounds."""
        low, median, high = (f"{value * 1e3:.3f}" for value in (self.low, self.median, self.high))
        less, call, more = (f"{value / blocks * 1e6:.1f}" for value in (self.low, self.median, self.high))
        return (
            f"{what:<42} {median:>6} ms a step [{low}, {high}] of {times * PER_STEP * 1e3:g}, "
            f"{call:>5} us a self-attention call [{less}, {more}] of {times * PER_CALL * 1e6:g}; "
            f"without it {self.base * 1e3:.1f} ms"
        )

    def within(self, blocks: int, times: float = 1) -> bool:
        """True if a step and an attention call take at most ``times`` their bounds, with the slack of this run."""
        times *= SLACK
        return self.median <= times * PER_STEP and self.median / blocks <= times * PER_CALL


def added(plain: Callable[[], object], patched: Callable[[], object], pairs: int = PAIRS) -> Added:
    """Return how much longer ``patched`` takes, in processor time, so that a busy machine matters little."""
    for _ in range(5):
        plain(), patched()
    differences, base = [], []
    gc.collect()
    gc.disable()
    try:
        for pair in range(pairs):
            # Alternately the one and the other first: what follows a call must not always hit the same one.
            order = (plain, patched) if pair % 2 else (patched, plain)
            times = {function: _seconds(function) for function in order}
            differences.append(times[patched] - times[plain])
            base.append(times[plain])
    finally:
        gc.enable()
    differences.sort()
    # Order statistics: the ranks n/2 -+ 0.98 sqrt(n) enclose the median with 95 %.
    reach = round(0.98 * pairs**0.5)
    low, high = differences[max(pairs // 2 - reach, 0)], differences[min(pairs // 2 + reach, pairs - 1)]
    return Added(statistics.median(differences), low, high, statistics.median(base))


def _seconds(function: Callable[[], object]) -> float:
    start = time.thread_time()
    function()
    return time.thread_time() - start
