"""Questions about the pixels of a picture: where a color stands, how far it reaches, whether something is hatched."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from fpsattention.nodes.drawing import SOFT, WIDTH

# So far a thing may stand from its place, in pixels.
NEAR = 2


class Picture:
    """An IMAGE's pixels, and questions about colors in parts of it: ``x0, x1, y0, y1`` without the last of each."""

    def __init__(self, image: torch.Tensor):
        self.pixels = (image[0].numpy() * 255).round().astype(np.uint8)
        self.height = len(self.pixels)

    def mask(self, color: Sequence[int], x0: float, x1: float, y0: float, y1: float) -> np.ndarray:
        part = self.pixels[round(y0) : round(y1), round(x0) : round(x1)]
        assert part.size, (x0, x1, y0, y1)
        return (part == np.array(color, dtype=np.uint8)).all(-1)

    def extent(self, color, x0, x1, y0, y1) -> tuple[int, int, int, int]:
        """The box of what has ``color`` there, as left, right, top, bottom, each the last pixel of it."""
        mask = self.mask(color, x0, x1, y0, y1)
        assert mask.any(), f"no {color} at {x0:.0f}-{x1:.0f}, {y0:.0f}-{y1:.0f}"
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        left, top = round(x0), round(y0)
        return left + columns[0], left + columns[-1], top + rows[0], top + rows[-1]

    def share(self, color, x0, x1, y0, y1) -> float:
        """How much of the part has ``color``."""
        return float(self.mask(color, x0, x1, y0, y1).mean())

    def follows(self, color, x0, x1, y) -> float:
        """In how many of the columns ``color`` stands at ``y``."""
        return float(self.mask(color, x0, x1, y - NEAR, y + NEAR + 1).any(0).mean())

    def is_hatched(self, color, x0, x1, y0, y1) -> bool:
        """Whether the inside is hatched (True) or filled (False); fails for what is neither."""
        share = self.share(color, x0 + 3, x1 - 3, y0 + 3, y1 - 3)
        assert 0.04 < share < 0.4 or share > 0.8, f"{share:.0%} of {color}"
        return share < 0.4

    def has_ink(self, x0, x1, y0, y1) -> bool:
        """Whether something dark or soft is written there."""
        part = self.pixels[round(y0) : round(y1), round(x0) : round(x1)].astype(int).sum(-1)
        return bool((part < sum(SOFT) + 60).sum() > 20)


def near(found: float, place: float) -> bool:
    return abs(found - place) <= NEAR


def plot_base(picture: Picture, colors: Sequence) -> int:
    """The row on which bars of the colors stand: the end of the longest unbroken column of any of them."""
    longest, base = 0, 0
    for color in colors:
        mask = picture.mask(color, 0, WIDTH, 0, picture.height)
        run = np.zeros(WIDTH, dtype=int)
        for y, row in enumerate(mask):
            run = (run + 1) * row
            if run.max() > longest:
                longest, base = int(run.max()), y
    return base


def drawn(picture: Picture, color: Sequence[int], place: tuple[float, float], reach: int = 3, least: int = 1) -> bool:
    """Whether ``least`` pixels of the color stand around the place; a point of a curve has more than its line."""
    x, y = place
    return int(picture.mask(color, x - reach, x + reach + 1, y - reach, y + reach + 1).sum()) >= least
