"""Measures how much longer one of two functions takes: interleaved pairs, the median of their differences."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

PAIRS = 200


@dataclass(frozen=True)
class Added:
    """What the second function takes more than the first, in seconds: median, and the interval that holds the true
    median with 95 %; ``base`` is the first one's median."""

    median: float
    low: float
    high: float
    base: float

    def line(self, what: str, blocks: int) -> str:
        """Return the figures in words: per model call, and per block."""
        return (
            f"{what:<46} {self.median * 1e3:6.3f} ms a call [{self.low * 1e3:.3f}, {self.high * 1e3:.3f}], "
            f"{self.median / blocks * 1e6:5.1f} us a block; without it {self.base * 1e3:.1f} ms"
        )


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
