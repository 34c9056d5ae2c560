"""What the pack's pictures share: page, colors, letters, bars, plot lines, and the way to an IMAGE."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

WIDTH = 1120
MARGIN = 64

INK, SOFT, PAPER = (32, 34, 38), (120, 124, 132), (250, 250, 248)
GRID = (222, 222, 218)
# Okabe and Ito's colors: told apart by color-blind readers as well.
COLORS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0))
_HATCH = 8
# From paper to the darkest of a single hue: brightness alone tells the order.
DARKEST = (8, 48, 107)

Box = tuple[float, float, float, float]


def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Return Pillow's own font at ``size``, or its only size where Pillow cannot scale it."""
    try:
        return ImageFont.load_default(size)
    except (TypeError, OSError, ImportError):
        return ImageFont.load_default()


def page(height: int, title: str, subtitle: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Return an empty picture of ``height`` with its two headlines, which end at 76, and the pen for it."""
    picture = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, 18), title, font=font(22), fill=INK)
    draw.text((MARGIN, 48), subtitle, font=font(14), fill=SOFT)
    return picture, draw


def image_tensor(picture: Image.Image) -> torch.Tensor:
    """Return ``picture`` as an IMAGE tensor ``(1, height, width, 3)`` in 0..1."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255.0)[None]


def color_of(phase: int) -> tuple[int, int, int]:
    """Return the color of a phase, counted from 0."""
    return COLORS[phase % len(COLORS)]


def bar(draw: ImageDraw.ImageDraw, box: Box, color: tuple[int, int, int], *, hatched: bool = False) -> None:
    """Draw a filled bar, or an outlined and hatched one, which means dense."""
    x0, y0, x1, y1 = (round(v) for v in box)
    if y1 <= y0 or x1 <= x0:
        return
    if not hatched:
        draw.rectangle((x0, y0, x1, y1), fill=color)
        return
    draw.rectangle((x0, y0, x1, y1), outline=color, width=2)
    for offset in range(-(y1 - y0), x1 - x0, _HATCH):
        start, end = max(offset, 0), min(offset + (y1 - y0), x1 - x0)
        draw.line((x0 + start, y1 - (start - offset), x0 + end, y1 - (end - offset)), fill=color)


def share_lines(draw: ImageDraw.ImageDraw, left: float, right: float, base: float, height: float) -> None:
    """Draw the lines 0, 25, ..., 100 % over ``base`` with their numbers to the left."""
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = base - share * height
        draw.line((left, y, right, y), fill=GRID)
        draw.text((left - 8, y), f"{share:.0%}", font=font(13), fill=SOFT, anchor="rm")


def shade(share: float) -> tuple[int, int, int]:
    """Return the color of a share: paper at 0, darkest at 1 and beyond."""
    share = min(max(share, 0.0), 1.0)
    return tuple(round(light + (dark - light) * share) for light, dark in zip(PAPER, DARKEST))


def scale(draw: ImageDraw.ImageDraw, left: float, top: float) -> float:
    """Draw the shades from 0 to 1 and return where they end."""
    for place in range(40):
        x = left + place * 3
        draw.rectangle((x, top, x + 2, top + 12), fill=shade(place / 39))
    draw.rectangle((left, top, left + 119, top + 12), outline=SOFT)
    return left + 119
