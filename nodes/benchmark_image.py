"""The benchmark as a picture: one bar per contestant, as long as its milliseconds, dense ones hatched."""

from __future__ import annotations

import textwrap

import torch
from PIL import ImageDraw

from ..kernels.contestants import Row
from ..kernels.measure import Measurement
from .benchmark_text import conditions, headline, label_of
from .drawing import COLORS, GRID, INK, MARGIN, PAPER, SOFT, WIDTH, bar, font, image_tensor, page

_BAR, _GAP, _LINE = 26, 14, 18
_LEFT = 280
_RIGHT = WIDTH - 190
_LETTERS = 145


def benchmark_image(result: Measurement, video: str, kept: str) -> torch.Tensor:
    """Return the picture of ``result`` as an IMAGE tensor ``(1, height, width, 3)`` in 0..1."""
    below = [part for line in (*conditions(result), *result.notes, kept) for part in textwrap.wrap(line, _LETTERS)]
    plot = 112
    base = plot + max(1, len(result.rows)) * (_BAR + _GAP)
    picture, draw = page(base + 66 + _LINE * len(below), "FPSAttention: milliseconds of one attention call", video)
    draw.text((MARGIN, 78), textwrap.shorten(headline(result), 135, placeholder="..."), font=font(16), fill=INK)
    longest = max((row.timing.high for row in result.rows if row.timing), default=0.0)
    if longest:
        _axis(draw, longest, plot, base)
    dense = result.strongest()
    for number, row in enumerate(result.rows):
        top = plot + number * (_BAR + _GAP) + _GAP // 2
        _row(draw, result, row, top, longest, dense)
    if not result.rows:
        draw.text((MARGIN, plot + 10), "Nothing could be measured.", font=font(16), fill=INK)
    for number, line in enumerate(below):
        draw.text((MARGIN, base + 48 + number * _LINE), line, font=font(13), fill=SOFT)
    return image_tensor(picture)


def _axis(draw: ImageDraw.ImageDraw, longest: float, top: float, base: float) -> None:
    step = nice_step(longest)
    for number in range(int(longest / step * 1.0001) + 1):
        value = number * step
        x = _LEFT + (_RIGHT - _LEFT) * value / longest
        draw.line((x, top, x, base), fill=GRID)
        draw.text((x, base + 6), f"{value:g}", font=font(13), fill=SOFT, anchor="ma")
    draw.text((_RIGHT + 30, base + 6), "ms", font=font(13), fill=SOFT, anchor="la")


def nice_step(longest: float) -> float:
    """Return the distance of 4 to 8 axis lines up to ``longest``: 1, 2 or 5 times a power of ten."""
    power = 1e-6
    while True:
        for factor in (1, 2, 5):
            if longest / (factor * power) <= 8:
                return factor * power
        power *= 10


def digits(ms: float) -> int:
    """Return how many digits after the point say about a thousandth of ``ms``."""
    return 0 if ms >= 100 else 1 if ms >= 10 else 2 if ms >= 1 else 3


def _row(
    draw: ImageDraw.ImageDraw, result: Measurement, row: Row, top: float, longest: float, dense: Row | None
) -> None:
    middle = top + _BAR / 2
    label = label_of(row) if row.family == "dense" else f"FPSAttention {row.density:.1%}"
    draw.text((_LEFT - 12, middle), label, font=font(14), fill=INK, anchor="rm")
    if row.timing is None:
        note = textwrap.shorten(row.note, 100, placeholder="...")
        place = draw.textbbox((_LEFT + 8, middle), note, font=font(13), anchor="lm")
        draw.rectangle((place[0] - 4, place[1] - 2, place[2] + 4, place[3] + 2), fill=PAPER)
        draw.text((_LEFT + 8, middle), note, font=font(13), fill=SOFT, anchor="lm")
        return

    def x_of(ms: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * ms / longest

    timing = row.timing
    ours = row.family == "ours"
    bar(draw, (_LEFT, top, max(x_of(timing.median), _LEFT + 2), top + _BAR), COLORS[0 if ours else 1], hatched=not ours)
    if timing.count > 1:
        draw.line((x_of(timing.low), middle, x_of(timing.high), middle), fill=INK, width=1)
        for end in (timing.low, timing.high):
            draw.line((x_of(end), middle - 5, x_of(end), middle + 5), fill=INK, width=1)
    text = f"{timing.median:,.{digits(timing.median)}f} ms"
    if row is dense:
        text += "  = 1"
    elif dense is not None:
        text += f"  {result.speedup(row):.2f}x"
    draw.text((max(x_of(timing.high), _LEFT + 2) + 10, middle), text, font=font(14), fill=INK, anchor="lm")
