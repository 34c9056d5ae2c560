"""Whether cheap measures rank the segments as the final latent does: they may not, and a report must say so."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation of ``a`` and ``b``, ties sharing their mean rank; None below three values or
    where one of them does not vary."""
    if len(a) != len(b) or len(a) < 3:
        return None
    ranks = [_ranks(np.asarray(x, dtype=np.float64)) for x in (a, b)]
    if any(np.ptp(r) == 0 for r in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def agreement(correlation: float | None) -> str:
    """Return in words what a rank correlation means."""
    if correlation is None:
        return "cannot be told"
    if correlation > 0.6:
        return "ranks them alike"
    return "ranks them the other way round" if correlation < -0.3 else "ranks them differently"


def _ranks(x: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    means = np.cumsum(counts) - (counts - 1) / 2
    return means[inverse]
