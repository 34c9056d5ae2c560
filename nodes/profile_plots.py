"""Two plots that only the profile needs: lines over an axis, and a map of colored cells."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import ImageDraw

from . import drawing as pen

# From light to dark, so that it reads in gray as well.
_LIGHT, _DARK = (247, 243, 228), (0, 60, 110)
_MISSING = (225, 225, 225)


class Axis:
    """A horizontal axis from its values: linear, or logarithmic."""

    def __init__(self, values: Sequence[float], log: bool = False, whole: bool = False):
        low, high = min(values), max(values)
        self.log, self.whole = log, whole
        if high <= low:
            low, high = (low * 0.8, low * 1.25 + 1e-9) if log else (low - 0.5, low + 0.5)
        self.low, self.high = low, high

    def share(self, value: float) -> float:
        """Return where ``value`` lies, 0 to 1."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Return some values to label."""
        if self.whole:
            every = max(1, round((self.high - self.low) / 8))
            return [float(i) for i in range(math.ceil(self.low), math.floor(self.high) + 1, every)]
        return log_ticks(self.low, self.high, linear=not self.log)


def log_ticks(low: float, high: float, linear: bool = False) -> list[float]:
    """Return round numbers from ``low`` to ``high``."""
    if linear:
        size = 10 ** math.floor(math.log10(max(high - low, 1e-12)))
        step = next(size * factor for factor in (0.2, 0.25, 0.5, 1, 2) if (high - low) / (size * factor) <= 6)
        first = math.ceil(low / step - 1e-9)
        return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    few = [10.0**e for e in exponents if low <= 10.0**e <= high]
    many = [f * 10.0**e for e in exponents for f in (1, 2, 5) if low * 0.999 <= f * 10.0**e <= high * 1.001]
    return few if len(few) >= 4 else many


def number(value: float, percent: bool = False) -> str:
    """Return ``value`` as a label."""
    return f"{100 * value:.3g} %" if percent else f"{value:.3g}"


def curves(
    draw: ImageDraw.ImageDraw,
    box: pen.Box,
    title: str,
    axis: Axis,
    xs: Sequence[float],
    lines: Sequence[tuple[str, tuple[int, int, int], Sequence[float]]],
    *,
    marks: Sequence[tuple[float, float]] = (),
    logarithmic: bool = True,
    unit: str = "percent",
) -> None:
    """Draw ``lines`` (label, color, values at ``xs``) and crosses at ``marks`` into ``box``."""
    left, top, right, base = box
    draw.text((left, top - 32), title, font=pen.font(15), fill=pen.INK)
    values = [v for _, _, line in lines for v in line] + [y for _, y in marks]
    values = [v for v in values if math.isfinite(v) and (v > 0 or not logarithmic)]
    if not values:
        draw.text((left + 8, top + 8), "nothing was lost", font=pen.font(14), fill=pen.SOFT)
        return
    margin = 1.15 if logarithmic else 1.0
    spread = 0 if logarithmic else 0.08 * (max(values) - min(values) or 1.0)
    vertical = Axis([min(values) / margin - spread, max(values) * margin + spread], log=logarithmic)

    def place(x: float, y: float) -> tuple[float, float]:
        low = max(y, vertical.low)
        return left + axis.share(x) * (right - left), base - vertical.share(low) * (base - top)

    for tick in vertical.ticks():
        _, y = place(axis.low, tick)
        draw.line((left, y, right, y), fill=pen.GRID)
        draw.text((left - 6, y), number(tick, unit == "percent"), font=pen.font(12), fill=pen.SOFT, anchor="rm")
    for tick in axis.ticks():
        x, _ = place(tick, vertical.low)
        draw.line((x, base, x, base + 4), fill=pen.SOFT)
        draw.text((x, base + 6), number(tick), font=pen.font(12), fill=pen.SOFT, anchor="ma")
    draw.line((left, base, right, base), fill=pen.SOFT)
    for _, color, line in lines:
        points = [place(x, y) for x, y in zip(xs, line) if math.isfinite(y)]
        if len(points) > 1:
            draw.line(points, fill=color, width=2)
        for x, y in points:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=color)
    for mark in marks:
        x, y = place(*mark)
        draw.line((x - 5, y - 5, x + 5, y + 5), fill=pen.INK, width=2)
        draw.line((x - 5, y + 5, x + 5, y - 5), fill=pen.INK, width=2)


def heat_map(
    draw: ImageDraw.ImageDraw, box: pen.Box, title: str, values: np.ndarray, columns: list[str], rows: list[str]
) -> None:
    """Draw ``values (rows, columns)`` as colored cells with a scale to the right; NaN is gray."""
    left, top, right, base = box
    draw.text((left, top - 26), title, font=pen.font(15), fill=pen.INK)
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    span = high - low if high > low else 1.0
    width, height = (right - left) / len(columns), (base - top) / len(rows)
    every = max(1, math.ceil(len(columns) * 26 / (right - left)))
    for i, name in enumerate(rows):
        draw.text((left - 8, top + (i + 0.5) * height), name, font=pen.font(12), fill=pen.SOFT, anchor="rm")
        for j in range(len(columns)):
            value = values[i, j]
            color = _color((value - low) / span) if math.isfinite(value) else _MISSING
            cell = (left + j * width, top + i * height, left + (j + 1) * width - 1, top + (i + 1) * height - 1)
            draw.rectangle(cell, fill=color)
    for j in range(0, len(columns), every):
        draw.text((left + (j + 0.5) * width, base + 4), columns[j], font=pen.font(12), fill=pen.SOFT, anchor="ma")
    draw.text(((left + right) / 2, base + 22), "step", font=pen.font(13), fill=pen.SOFT, anchor="ma")
    draw.text((left - 8, top - 8), "layer", font=pen.font(12), fill=pen.SOFT, anchor="rs")
    for k in range(50):
        y = base - (k + 1) * (base - top) / 50
        draw.rectangle((right + 12, y, right + 26, y + (base - top) / 50 + 1), fill=_color(k / 49))
    for share in (0.0, 1.0):
        y = base - share * (base - top)
        label = number(low + share * (high - low), percent=True)
        draw.text((right + 32, y), label, font=pen.font(12), fill=pen.SOFT, anchor="lm")


def _color(share: float) -> tuple[int, int, int]:
    share = min(1.0, max(0.0, share))
    return tuple(round(a + (b - a) * share) for a, b in zip(_LIGHT, _DARK))
