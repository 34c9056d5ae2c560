"""Which sample comes when: a function of the seed and the place in the run, never of the number of processes.

Every data set runs through epochs of its own, each sample once per epoch in an order of that epoch. Several sets are
woven together by their weights, evenly: any stretch of the run holds each set's share up to a few samples.
"""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_UNIT = 1 << 32  # weights are counted in these parts, so that shares are exact integers on every machine
_LEAST_BLOCK = 64


@dataclass(frozen=True)
class SetSpan:
    """Where one data set lies among the samples: ``count`` of them from ``first`` on."""

    name: str
    weight: float
    first: int
    count: int


def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """Return a permutation int64 (n,) of the samples for one epoch; every rank computes the same one."""
    return np.random.default_rng((seed, epoch, 0x6F72646572)).permutation(n).astype(np.int64)


def plan_step(seed: int, step: int, samples_per_step: int, data: Sequence[Any]) -> list[tuple[int, int]]:
    """Return the (epoch of its set, index) of every sample of a step, over all processes.

    Depends on seed, step and the data only. ``data.sets`` (``SetSpan`` each) says which samples belong together; a
    sequence without it is one set. Raises ValueError when there is nothing to choose from.
    """
    if len(data) == 0:
        raise ValueError("the training part of the data is empty; give it more clips or frames")
    sets = tuple(getattr(data, "sets", ())) or (SetSpan("", 1.0, 0, len(data)),)
    first = step * samples_per_step
    return [sample_at(seed, place, sets) for place in range(first, first + samples_per_step)]


def sample_at(seed: int, place: int, sets: tuple[SetSpan, ...]) -> tuple[int, int]:
    """Return the (epoch of its set, index) of the sample at ``place``, counted from the start of the run."""
    chosen, rank = set_at(seed, place, tuple(one.weight for one in sets))
    span = sets[chosen]
    epoch, position = divmod(rank, span.count)
    # A set keeps its own order when others come and go; a single set has the plain one.
    key = seed if len(sets) == 1 else (seed << 32) + zlib.crc32(span.name.encode())
    return epoch, span.first + int(_order(key, epoch, span.count)[position])


def set_at(seed: int, place: int, weights: tuple[float, ...]) -> tuple[int, int]:
    """Return which set the sample at ``place`` is taken from, and how many were taken from that set before it."""
    if len(weights) == 1:
        return 0, place
    bounds, block = _shares(weights)
    number, position = divmod(place, block)
    chosen = _layout(seed, number, weights)
    which = int(chosen[position])
    before = _taken(bounds, number * block)[which]
    return which, before + int(np.count_nonzero(chosen[:position] == which))


def bucket_of(data: Sequence[Any], index: int) -> Hashable:
    """Return the latent shape (T, H, W) of a sample; without reading it where the data can tell."""
    if hasattr(data, "bucket"):
        return data.bucket(index)
    return tuple(data[index]["latent"].shape[1:])


_order = functools.lru_cache(maxsize=64)(order)


@functools.lru_cache(maxsize=64)
def _shares(weights: tuple[float, ...]) -> tuple[tuple[int, ...], int]:
    """Return the sets' borders on [0, _UNIT], and the length of a block, in which every set comes twice or more."""
    total = sum(weights)
    sizes = [max(1, round(weight / total * _UNIT)) for weight in weights]
    sizes[sizes.index(max(sizes))] += _UNIT - sum(sizes)
    bounds = [0]
    for size in sizes:
        bounds.append(bounds[-1] + size)
    block = _LEAST_BLOCK
    while block * min(sizes) < 2 * _UNIT:
        block *= 2
    return tuple(bounds), block


def _taken(bounds: tuple[int, ...], places: int) -> list[int]:
    """Return how many of the first ``places`` samples (whole blocks) are each set's; they sum to ``places``."""
    ends = [places * bound // _UNIT for bound in bounds]
    return [high - low for low, high in itertools.pairwise(ends)]


@functools.lru_cache(maxsize=16)
def _layout(seed: int, number: int, weights: tuple[float, ...]) -> np.ndarray:
    """Return the set of every place of a block: each set's places evenly spaced, from a random start."""
    bounds, block = _shares(weights)
    before, after = _taken(bounds, number * block), _taken(bounds, (number + 1) * block)
    counts = [b - a for a, b in zip(before, after, strict=True)]
    starts = np.random.default_rng((seed, number, 0x73657473)).random(len(weights))
    times = np.concatenate([(np.arange(count) + start) / count for count, start in zip(counts, starts, strict=True)])
    sets = np.repeat(np.arange(len(weights)), counts)
    return sets[np.argsort(times, kind="stable")]
