"""The order in which samples are visited: a function of seed and epoch only, never of the number of processes."""

from __future__ import annotations

import numpy as np


def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """Return a permutation int64 (n,) of the samples for one epoch; every rank computes the same one."""
    return np.random.default_rng((seed, epoch, 0x6F72646572)).permutation(n).astype(np.int64)
