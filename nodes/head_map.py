"""Densities as a field of cells, the darker the denser: layer by head, or block by step."""

from __future__ import annotations

import numpy as np
from PIL import ImageDraw

from .drawing import GRID, INK, SOFT, font, scale, shade

# The least and the most height of a row in pixels, and the height that rows share where they fit.
_LEAST, _MOST, _SHARED = 3, 14, 240
_LABELS, _BELOW = 18, 34


def map_height(rows: int) -> int:
    """Return the height that ``draw_map`` needs."""
    return rows * _row(rows) + _LABELS + _BELOW


def _row(rows: int) -> int:
    return min(max(_SHARED // rows, _LEAST), _MOST)


def draw_map(
    draw: ImageDraw.ImageDraw,
    density: np.ndarray,
    names: tuple[str, str],
    caption: str,
    left: float,
    right: float,
    top: float,
) -> None:
    """Draw ``density (rows, columns)`` in 0..1, NaN for what did not run, from ``left`` to ``right``.

    ``names`` are what a row and a column is; below stand the shades and what they mean.
    """
    rows, columns = density.shape
    row, slot, small = _row(rows), (right - left) / columns, font(13)
    gap = int(row >= 6)
    for (y, x), value in np.ndenumerate(density):
        x0, x1, y0 = round(left + x * slot), round(left + (x + 1) * slot), top + y * row
        color = GRID if np.isnan(value) else shade(float(value))
        draw.rectangle((x0, y0, max(x0, x1 - 1 - gap), y0 + row - 1 - gap), fill=color)
    bottom = top + rows * row
    draw.rectangle((left - 1, top - 1, right, bottom), outline=SOFT)
    draw.text((left - 8, top), f"{names[0]} 0", font=font(11), fill=SOFT, anchor="rt")
    if rows > 1:
        draw.text((left - 8, bottom), f"{rows - 1}", font=font(11), fill=SOFT, anchor="rb")
    every = max(1, -(-44 // max(int(slot), 1)))
    for x in range(0, columns, every):
        name = f"{names[1]} {x}" if x == 0 else f"{x}"
        draw.text((left + (x + 0.5) * slot if x else left, bottom + 3), name, font=font(11), fill=SOFT,
                  anchor="ma" if x else "la")  # fmt: skip
    end = scale(draw, left, bottom + _LABELS + 4)
    draw.text((end + 9, bottom + _LABELS + 10), caption, font=small, fill=INK, anchor="lm")
