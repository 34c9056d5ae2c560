"""The visiting order depends on seed and place only; sets are woven by weight, and each runs through its own epochs."""

from __future__ import annotations

import numpy as np
import pytest
from fpsattention.training.data.order import SetSpan, bucket_of, order, plan_step, sample_at, set_at
from hypothesis import given, settings
from hypothesis import strategies as st


class Data(list):
    """Samples of several sets: (count, weight) each."""

    def __init__(self, sets):
        first, spans = 0, []
        for number, (count, weight) in enumerate(sets):
            spans.append(SetSpan(f"set{number}", weight, first, count))
            first += count
        super().__init__(range(first))
        self.sets = tuple(spans)


SETS = st.lists(st.tuples(st.integers(1, 40), st.floats(0.01, 50)), min_size=1, max_size=5).map(Data)


@pytest.mark.parametrize("n", [0, 1, 2, 17, 1000])
def test_is_a_permutation(n):
    assert sorted(order(3, 5, n).tolist()) == list(range(n))


def test_same_seed_and_epoch_same_order():
    assert np.array_equal(order(1, 2, 50), order(1, 2, 50))
    assert not np.array_equal(order(1, 2, 50), order(1, 3, 50))
    assert not np.array_equal(order(1, 2, 50), order(2, 2, 50))


def test_is_the_same_everywhere():
    """Pinned: a checkpoint's place in an epoch means the same sample on every machine and numpy version."""
    assert order(0, 0, 8).tolist() == [2, 0, 5, 1, 3, 6, 4, 7]
    data = Data([(5, 1.0), (3, 2.0)])
    assert plan_step(0, 3, 6, data) == [(4, 7), (1, 3), (4, 5), (4, 6), (5, 7), (1, 1)]


def test_one_set_is_visited_as_its_plain_order():
    plan = [pair for step in range(4) for pair in plan_step(7, step, 5, list(range(9)))]
    assert plan == [(place // 9, int(order(7, place // 9, 9)[place % 9])) for place in range(20)]


@settings(deadline=None, max_examples=60)
@given(SETS, st.integers(0, 2**40), st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 6))
def test_any_number_of_processes_sees_the_same_samples(data, seed, step, samples, processes):
    whole = plan_step(seed, step, samples, data)
    shares = [plan_step(seed, step, samples, data)[rank::processes] for rank in range(processes)]
    assert sorted(pair for share in shares for pair in share) == sorted(whole)
    # Steps of another size are the same sequence, cut elsewhere.
    single = [plan_step(seed, place, 1, data)[0] for place in range(step * samples, (step + 1) * samples)]
    assert single == whole


@settings(deadline=None, max_examples=40)
@given(SETS, st.integers(0, 2**20))
def test_every_sample_of_a_set_once_per_epoch_of_that_set(data, seed):
    seen = [[] for _ in data.sets]
    for place in range(300):
        epoch, index = sample_at(seed, place, data.sets)
        which = next(i for i, s in enumerate(data.sets) if s.first <= index < s.first + s.count)
        seen[which].append((epoch, index))
    for span, pairs in zip(data.sets, seen, strict=True):
        assert [epoch for epoch, _ in pairs] == [rank // span.count for rank in range(len(pairs))]
        for epoch in range(len(pairs) // span.count):
            indices = sorted(index for e, index in pairs if e == epoch)
            assert indices == list(range(span.first, span.first + span.count))


@settings(deadline=None, max_examples=60)
@given(SETS, st.integers(0, 2**20), st.integers(0, 10**9), st.integers(1, 400))
def test_weights_hold_in_every_stretch(data, seed, first, length):
    """At any two places the counts differ from the weights' share by no more than a few samples per set."""
    weights = tuple(span.weight for span in data.sets)
    before, after = (taken(seed, place, weights) for place in (first, first + length))
    for weight, a, b in zip(weights, before, after, strict=True):
        share = weight / sum(weights)
        bound = len(weights) + 2
        assert abs(b - (first + length) * share) <= bound + (first + length) * 2**-31
        assert abs((b - a) - length * share) <= 2 * bound


def taken(seed, place, weights):
    """How many samples of each set come before ``place``, by asking who comes next."""
    counts = [0] * len(weights)
    missing = set(range(len(weights)))
    for ahead in range(1 << 20):
        which, rank = set_at(seed, place + ahead, weights)
        if which in missing:
            counts[which] = rank
            missing.discard(which)
        if not missing:
            return counts
    raise AssertionError("a set is never visited")


def test_a_sets_order_does_not_depend_on_the_other_sets():
    def visits(sets):
        found = []
        for place in range(400):
            epoch, index = sample_at(5, place, sets)
            first = next(s.first for s in sets if s.name == "a")
            if first <= index < first + 10:
                found.append((epoch, index - first))
        return found[:60]

    a = SetSpan("a", 1.0, 0, 10)
    one = visits((a, SetSpan("b", 1.0, 10, 3)))
    other = visits((SetSpan("c", 0.5, 0, 7), SetSpan("a", 1.0, 7, 10), SetSpan("d", 2.0, 17, 4)))
    assert one == other


def test_no_samples():
    with pytest.raises(ValueError, match="training part of the data is empty"):
        plan_step(0, 0, 1, [])


def test_a_late_step_is_as_quick_as_the_first():
    import time

    data = Data([(100_000, 1.0), (1_000_000, 3.0)])
    plan_step(0, 10**9, 8, data)
    start = time.perf_counter()
    for step in range(50):
        plan_step(0, 10**9 + step, 8, data)
    assert time.perf_counter() - start < 1.0


def test_buckets_of_plain_lists():
    import torch

    assert bucket_of([{"latent": torch.zeros(16, 3, 4, 6)}], 0) == (3, 4, 6)
