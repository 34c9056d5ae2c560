"""Hard cuts in a clip, by the change of color from frame to frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from av.video.frame import VideoFrame

Signature = np.ndarray
"""The share of each color, uint8 thumbnail counted into 4 x 4 x 4 bins, float32 (64,)."""

LEAST = 0.35  # share of the picture whose color changes at a cut, at least
AGAINST = 3.0  # times as much as around it: flashes, fades and fast motion change the frames beside, too
AROUND = 3  # frames on either side
_WIDTH, _HEIGHT = 64, 36


def signature(frame: VideoFrame) -> Signature:
    """Return the colors of a frame, wherever they are in the picture."""
    small = frame.reformat(width=_WIDTH, height=_HEIGHT, format="rgb24", interpolation="AREA").to_ndarray() >> 6
    bins = (small[..., 0] << 4 | small[..., 1] << 2 | small[..., 2]).ravel()
    return np.bincount(bins, minlength=64).astype(np.float32) / bins.size


def find_cuts(signatures: Sequence[tuple[int, Signature]]) -> tuple[int, ...]:
    """Return the numbers of the frames that begin a new scene, given (number, signature) in order."""
    if len(signatures) < 2:
        return ()
    values = np.stack([value for _, value in signatures])
    change = np.abs(np.diff(values, axis=0)).sum(1) / 2
    cuts = []
    for i, here in enumerate(change):
        beside = np.concatenate([change[max(0, i - AROUND) : i], change[i + 1 : i + 1 + AROUND]])
        if here >= LEAST and here >= AGAINST * (beside.mean() if beside.size else 0.0):
            cuts.append(signatures[i + 1][0])
    return tuple(cuts)


def within_scenes(starts: range, frames: int, cuts: Sequence[int]) -> list[int]:
    """Return the window starts whose ``frames`` frames hold no cut."""
    return [start for start in starts if not any(start < cut < start + frames for cut in cuts)]
