"""The sizes that samples may have, and which of them suits a clip."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from .errors import DataError
from .settings import LATENT_STRIDE, DataConfig
from .video import Size

Bucket = tuple[int, int, int]
"""Frames, height and width of a sample in pixels."""

_ASPECTS = (9 / 16, 2 / 3, 3 / 4, 1.0, 4 / 3, 3 / 2, 16 / 9)  # height over width of the buckets that are made
_SAME_ASPECT = 1.06  # buckets whose aspect is this close fit equally well, and the longer one is better


def latent_shape(bucket: Bucket) -> tuple[int, int, int]:
    """Return the latent's (T, H, W)."""
    frames, height, width = bucket
    return (frames - 1) // 4 + 1, height // 8, width // 8


def tokens(bucket: Bucket) -> int:
    """Return how many tokens a sample has."""
    t, h, w = latent_shape(bucket)
    return t * (h // 2) * (w // 2)


@functools.lru_cache(maxsize=8)
def buckets_of(config: DataConfig) -> tuple[Bucket, ...]:
    """Return the buckets of videos, largest first."""
    if config.buckets:
        found = set(config.buckets)
    elif config.bucket_tokens is not None:
        found = _made(config)
    else:
        found = {(config.frames, config.height, config.width)}
    return tuple(sorted(found, key=lambda bucket: (-tokens(bucket), bucket)))


def image_buckets(config: DataConfig) -> tuple[Bucket, ...]:
    """Return the buckets of images: one frame of every size that videos have."""
    return tuple(dict.fromkeys((1, height, width) for _, height, width in buckets_of(config)))


def choose(config: DataConfig, size: Size, length: int, *, image: bool = False) -> Bucket | str:
    """Return the bucket of a clip of (height, width) with ``length`` usable frames, or a phrase that says why none.

    Of the buckets that are short enough, those of the nearest aspect; of these the longest, then the largest that the
    clip covers without being enlarged, else the smallest. A video becomes a single picture only if nothing else is
    wanted.
    """
    offered = image_buckets(config) if image else buckets_of(config)
    if not image and any(frames > 1 for frames, _, _ in offered):
        offered = tuple(bucket for bucket in offered if bucket[0] > 1)
    short = min(frames for frames, _, _ in offered)
    fitting = [bucket for bucket in offered if bucket[0] <= length]
    if not fitting:
        return f"do not hold one sample of {short}; use longer clips or lower data.frames"
    sharp = [bucket for bucket in fitting if _enlarged(size, bucket) <= config.max_upscale]
    if not sharp:
        least = min(fitting, key=lambda bucket: _enlarged(size, bucket))
        return (
            f"are {size[1]} x {size[0]} pixels and would be enlarged {_enlarged(size, least):.3g} times to cover"
            f" {least[2]} x {least[1]}, more than data.max_upscale = {config.max_upscale:g}; use larger clips"
        )
    nearest = min(_mismatch(size, bucket) for bucket in sharp)
    same = [bucket for bucket in sharp if _mismatch(size, bucket) <= nearest * _SAME_ASPECT]
    longest = max(frames for frames, _, _ in same)
    same = [bucket for bucket in same if bucket[0] == longest]
    covered = [bucket for bucket in same if _enlarged(size, bucket) <= 1]
    if covered:
        return max(covered, key=lambda bucket: (bucket[1] * bucket[2], bucket))
    return min(same, key=lambda bucket: (bucket[1] * bucket[2], bucket))


def histogram(chosen: Sequence[Bucket]) -> list[tuple[Bucket, int]]:
    """Return every bucket with its number of samples, largest bucket first."""
    counts: dict[Bucket, int] = {}
    for bucket in chosen:
        counts[bucket] = counts.get(bucket, 0) + 1
    return sorted(counts.items(), key=lambda item: (-tokens(item[0]), item[0]))


def _enlarged(size: Size, bucket: Bucket) -> float:
    """Return the factor by which a clip is enlarged to cover a bucket, 1 or less if it is not."""
    return max(bucket[1] / size[0], bucket[2] / size[1])


def _mismatch(size: Size, bucket: Bucket) -> float:
    """Return how many times wider or narrower the bucket is than the clip, 1 for the same aspect."""
    ratio = (size[0] / size[1]) / (bucket[1] / bucket[2])
    return max(ratio, 1 / ratio)


def _made(config: DataConfig) -> set[Bucket]:
    """Return the buckets within ``bucket_tokens``: halved lengths, seven aspects, never larger than is asked for."""
    found: set[Bucket] = set()
    lengths = [config.frames]
    while (half := (lengths[-1] // 2) // 4 * 4 + 1) > 1:
        lengths.append(half)
    for frames in lengths:
        area = min(config.bucket_tokens // ((frames - 1) // 4 + 1), config.height * config.width // LATENT_STRIDE**2)
        shapes = [_largest(area, aspect) for aspect in _ASPECTS]
        found |= {(frames, h * LATENT_STRIDE, w * LATENT_STRIDE) for h, w in filter(None, shapes)}
    if not found:
        raise DataError(f"data.bucket_tokens is {config.bucket_tokens}, too few for any bucket; raise it.")
    return found


def _largest(area: int, aspect: float) -> Size | None:
    """Return the (height, width) in tokens of ``area`` tokens or a little less, about ``aspect``; None for none."""
    best, best_score = None, 0.0
    for height in range(1, area + 1):
        width = min(area // height, max(1, round(height / aspect)))
        off = max(height / width / aspect, aspect * width / height)
        if off < _SAME_ASPECT * 1.05 and height * width / off**2 > best_score:
            best, best_score = (height, width), height * width / off**2
    return best
