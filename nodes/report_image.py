"""The report as a picture: one bar per step, as high as the density that ran, colored by phase, hatched when dense."""

from __future__ import annotations

import textwrap

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .record import Run, Step
from .report_text import findings, headline, layouts, steps_in_order
from .settings import Settings

WIDTH = 1120
PLOT = 220
MARGIN = 64
_RUN_HEIGHT = PLOT + 164
_LINE = 18
_LETTERS = 145

_INK, _SOFT, _PAPER = (32, 34, 38), (120, 124, 132), (250, 250, 248)
_GRID = (222, 222, 218)
# Okabe and Ito's colors: told apart by color-blind readers as well.
_PHASES = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0))


def report_image(settings: Settings, runs: list[Run], names: dict[str, str]) -> torch.Tensor:
    """Return the picture of ``runs`` as an IMAGE tensor ``(1, height, width, 3)`` in 0..1."""
    below = [[part for line in findings(run) for part in textwrap.wrap(line, _LETTERS)] for run in runs]
    height = 76 + sum(_RUN_HEIGHT + _LINE * len(lines) for lines in below) + (0 if runs else _RUN_HEIGHT // 3)
    picture = Image.new("RGB", (WIDTH, height), _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, 18), "FPSAttention: density per step", font=_font(22), fill=_INK)
    draw.text((MARGIN, 48), f"schedule from {settings.source}; 100 % = dense", font=_font(14), fill=_SOFT)
    if not runs:
        draw.text((MARGIN, 110), "No sampler run yet.", font=_font(16), fill=_INK)
    top = 76
    for number, (run, lines) in enumerate(zip(runs, below), 1):
        _draw_run(draw, settings, run, headline(run, number, names), top)
        top += _RUN_HEIGHT
        for line in lines:
            draw.text((MARGIN, top - 12), line, font=_font(13), fill=_INK)
            top += _LINE
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255.0)[None]


def _draw_run(draw: ImageDraw.ImageDraw, settings: Settings, run: Run, title: str, top: int) -> None:
    small = _font(13)
    draw.text((MARGIN, top + 6), title, font=_font(16), fill=_INK)
    draw.text((MARGIN, top + 28), "   ".join(layouts(settings, run))[:150], font=small, fill=_SOFT)
    base, left, right = top + 70 + PLOT, MARGIN, WIDTH - 24
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = base - share * PLOT
        draw.line((left, y, right, y), fill=_GRID)
        draw.text((left - 8, y), f"{share:.0%}", font=small, fill=_SOFT, anchor="rm")
    steps = steps_in_order(run)
    slot = (right - left) / max(len(steps), 1)
    every = max(1, int(np.ceil(80 / slot)))
    for position, step in enumerate(steps):
        x0 = left + position * slot
        box = (x0 + slot * 0.12, base - step.density * PLOT, x0 + slot * 0.88, base)
        _bar(draw, box, step)
        if position % every == 0:
            middle = x0 + slot / 2
            number = "-" if step.index is None else step.index
            draw.text((middle, base + 4), f"{number}", font=small, fill=_INK, anchor="ma")
            draw.text((middle, base + 20), f"sigma {step.sigma:.3f}", font=small, fill=_SOFT, anchor="ma")
            if slot * every > 50:
                draw.text((middle, box[1] - 3), f"{step.density:.0%}", font=small, fill=_INK, anchor="mb")
    _legend(draw, steps, left, base + 46)


def _legend(draw: ImageDraw.ImageDraw, steps: list[Step], left: int, y: int) -> None:
    x = left
    shown: dict[str, Step] = {}
    for step in steps:
        label = f"phase {step.phase + 1}: {step.attention}"
        if step.attention != "dense":
            label += f" {step.granularity or ''} on {step.backend}" if step.sparse else " (stayed dense)"
        shown.setdefault(label, step)
    for label, step in shown.items():
        _bar(draw, (x, y, x + 18, y + 14), step)
        draw.text((x + 24, y + 7), label, font=_font(13), fill=_INK, anchor="lm")
        x += 44 + draw.textlength(label, font=_font(13))


def _bar(draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], step: Step) -> None:
    """Filled where sparse attention ran; outlined and hatched where everything stayed dense."""
    color = _PHASES[step.phase % len(_PHASES)]
    x0, y0, x1, y1 = (round(v) for v in box)
    if y1 <= y0 or x1 <= x0:
        return
    if step.sparse:
        draw.rectangle((x0, y0, x1, y1), fill=color)
        return
    draw.rectangle((x0, y0, x1, y1), outline=color, width=2)
    for offset in range(-(y1 - y0), x1 - x0, 8):
        start, end = max(offset, 0), min(offset + (y1 - y0), x1 - x0)
        draw.line((x0 + start, y1 - (start - offset), x0 + end, y1 - (end - offset)), fill=color)


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    try:
        return ImageFont.load_default(size)
    except (TypeError, OSError, ImportError):
        return ImageFont.load_default()
