"""Which piece of a clip a sample is: fixed by seed, clip content, part and number, whatever else is in the folder."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .buckets import Bucket
from .settings import DataConfig
from .video import Clip, Size, cover_size

Part = Literal["train", "val"]
LEVELS = 4  # sizes of a clip that are kept; a sample's scale is one of them


@dataclass(frozen=True)
class Cut:
    """Where one sample lies: window start (frames), size level, crop corner (pixels), mirrored or not."""

    start: int
    level: int
    top: int
    left: int
    flip: bool


def scales(config: DataConfig) -> tuple[float, ...]:
    """Return the scales at which clips are kept, evenly spaced in ratio over ``scale_range``."""
    low, high = config.scale_range
    if high / low < 1.01:
        return (low,)
    return tuple(low * (high / low) ** (i / (LEVELS - 1)) for i in range(LEVELS))


def level_sizes(config: DataConfig, bucket: Bucket, source: Size) -> list[Size]:
    """Return the (height, width) of each level for a source of (height, width)."""
    return [cover_size(source, bucket[1], bucket[2], scale) for scale in scales(config)]


def usable_length(config: DataConfig, length: int) -> int:
    """Return how many frames of a clip of ``length`` are for training; the rest is held out."""
    return math.floor(length * (1 - config.holdout)) if config.holdout else length


def part_range(config: DataConfig, length: int, part: Part, frames: int | None = None) -> range:
    """Return the starts that ``part`` of a clip of ``length`` frames offers to a window of ``frames``.

    ``frames`` None stands for ``config.frames``. The range is empty if the part is too short.
    """
    cut = usable_length(config, length)
    first, end = (0, cut) if part == "train" else (cut, length)
    return range(first, max(first, end - (frames or config.frames) + 1))


def image_part(config: DataConfig, digest: str) -> Part:
    """Return the part that an image is in, by its content: the share ``holdout`` of all images is held out."""
    place = int(hashlib.sha256(f"{config.seed} {digest} part".encode()).hexdigest()[:8], 16)
    return "val" if place < config.holdout * (1 << 32) else "train"


def draw_cut(
    config: DataConfig, bucket: Bucket, digest: str, part: Part, number: int, starts: Sequence[int], sizes: list[Size]
) -> Cut:
    """Return sample ``number`` of a clip's ``part``: the same one in every run with this seed and these sizes."""
    seed = hashlib.sha256(f"{config.seed} {digest} {part} {number}".encode()).digest()
    rng = np.random.default_rng(np.frombuffer(seed, dtype=np.uint32))
    start = starts[int(rng.integers(len(starts)))]
    level = int(rng.integers(len(sizes)))
    height, width = sizes[level]
    top = int(rng.integers(height - bucket[1] + 1))
    left = int(rng.integers(width - bucket[2] + 1))
    return Cut(start, level, top, left, bool(config.flip and part == "train" and rng.integers(2)))


def take(bucket: Bucket, clip: Clip, cut: Cut) -> Tensor:
    """Return the pixels of ``cut``: float32 (3, T, H, W) in [-1, 1]."""
    frames, height, width = bucket
    window = clip.frames[cut.level][cut.start : cut.start + frames]
    window = window[:, cut.top : cut.top + height, cut.left : cut.left + width]
    video = torch.from_numpy(np.ascontiguousarray(window)).permute(3, 0, 1, 2).float().div_(127.5).sub_(1)
    return video.flip(-1) if cut.flip else video
