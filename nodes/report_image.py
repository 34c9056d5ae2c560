"""The report as a picture: one bar per step, as high as the density that ran, colored by phase, hatched when dense,
below it what every block took in that step, and where heads or layers differ their densities."""

from __future__ import annotations

import math
import textwrap

import torch
from PIL import ImageDraw

from .drawing import INK, MARGIN, SOFT, WIDTH, bar, color_of, font, image_tensor, page, share_lines
from .head_map import draw_map, map_height
from .head_use import HeadUse, layer_densities, pattern_lines, run_head_use, use_line
from .record import Run, Step
from .report_text import findings, headline, layouts, steps_in_order
from .report_times import draw_strip, strip_height, timings
from .settings import Settings

PLOT = 220
_RUN_HEIGHT = PLOT + 164
_LINE = 18
_LETTERS = 145
# Patterns that are told; the report's text has all of them.
_PATTERNS = 12


def report_image(settings: Settings, runs: list[Run], names: dict[str, str]) -> torch.Tensor:
    """Return the picture of ``runs`` as an IMAGE tensor ``(1, height, width, 3)`` in 0..1."""
    used = [run_head_use(settings, run) for run in runs]
    said = [_said(run, use) for run, use in zip(runs, used)]
    below = [[part for line in lines for part in textwrap.wrap(line, _LETTERS)] for lines in said]
    height = 76 + sum(_RUN_HEIGHT + _LINE * len(lines) for lines in below) + (0 if runs else _RUN_HEIGHT // 3)
    height += sum(strip_height(run) + _maps_height(run, use) for run, use in zip(runs, used))
    picture, draw = page(height, "FPSAttention: density per step", f"schedule from {settings.source}; 100 % = dense")
    if not runs:
        draw.text((MARGIN, 110), "No sampler run yet.", font=font(16), fill=INK)
    top = 76
    for number, (run, use, lines) in enumerate(zip(runs, used, below), 1):
        _draw_run(draw, settings, run, headline(run, number, names), top)
        top += _RUN_HEIGHT + strip_height(run)
        _draw_maps(draw, run, use, top - 20)
        top += _maps_height(run, use)
        for line in lines:
            draw.text((MARGIN, top - 12), line, font=font(13), fill=INK)
            top += _LINE
    return image_tensor(picture)


def _maps_height(run: Run, use: HeadUse | None) -> int:
    heads = 0 if use is None else map_height(use.density.shape[1]) + _LINE
    layers = layer_densities(steps_in_order(run))
    return heads + (0 if layers is None else map_height(len(layers)) + _LINE)


def _draw_maps(draw: ImageDraw.ImageDraw, run: Run, use: HeadUse | None, top: float) -> None:
    """Where a head table ran the density of every head, where a selector ran that of every block and step."""
    left, right = MARGIN, WIDTH - 24
    if use is not None:
        steps = f"{use.steps} step{'s' * (use.steps != 1)}"
        caption = f"density of each head, 0 to 100 %: mean over the {steps} that used the head table"
        draw_map(draw, use.density.T, ("head", "layer"), caption, left, right, top)
        top += map_height(use.density.shape[1]) + _LINE
    layers = layer_densities(steps_in_order(run))
    if layers is not None:
        caption = "density that was chosen for each block in each step, 0 to 100 %"
        draw_map(draw, layers, ("block", "step"), caption, left, right, top)


def _draw_run(draw: ImageDraw.ImageDraw, settings: Settings, run: Run, title: str, top: int) -> None:
    small = font(13)
    draw.text((MARGIN, top + 6), title, font=font(16), fill=INK)
    draw.text((MARGIN, top + 28), "   ".join(layouts(settings, run))[:150], font=small, fill=SOFT)
    base, left, right = top + 70 + PLOT, MARGIN, WIDTH - 24
    share_lines(draw, left, right, base, PLOT)
    steps = steps_in_order(run)
    slot = (right - left) / max(len(steps), 1)
    every = max(1, math.ceil(80 / slot))
    for position, step in enumerate(steps):
        x0 = left + position * slot
        box = (x0 + slot * 0.12, base - (step.density if step.calls else 0) * PLOT, x0 + slot * 0.88, base)
        if step.calls:
            _bar(draw, box, step)
        if position % every == 0:
            middle = x0 + slot / 2
            number = "-" if step.index is None else step.index
            draw.text((middle, base + 4), f"{number}", font=small, fill=INK, anchor="ma")
            draw.text((middle, base + 20), f"sigma {step.sigma:.3f}", font=small, fill=SOFT, anchor="ma")
            if slot * every > 50:
                written = f"{step.density:.0%}" if step.calls else "skipped"
                draw.text((middle, box[1] - 3), written, font=small, fill=INK, anchor="mb")
    _legend(draw, steps, left, base + 46)
    draw_strip(draw, steps, left, right, base + 74)


def _said(run: Run, use: HeadUse | None) -> list[str]:
    heads = [] if use is None else [use_line(use), *pattern_lines(use, _PATTERNS)]
    return [*heads, *findings(run), *timings(run)]


def _legend(draw: ImageDraw.ImageDraw, steps: list[Step], left: int, y: int) -> None:
    x = left
    shown: dict[str, Step] = {}
    for step in (step for step in steps if step.calls):
        label = f"phase {step.phase + 1}: {step.attention}"
        if step.attention != "dense":
            label += f" {step.granularity or ''} on {step.backend}" if step.sparse else " (stayed dense)"
        shown.setdefault(label, step)
    for label, step in shown.items():
        _bar(draw, (x, y, x + 18, y + 14), step)
        draw.text((x + 24, y + 7), label, font=font(13), fill=INK, anchor="lm")
        x += 44 + draw.textlength(label, font=font(13))


def _bar(draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], step: Step) -> None:
    """Filled where sparse attention ran; outlined and hatched where everything stayed dense."""
    bar(draw, box, color_of(step.phase), hatched=not step.sparse)
