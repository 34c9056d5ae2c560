"""The profile as a picture: sensitivity and proposal, windows, granularities, and a map of steps and layers."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import ImageDraw

from ..kernels.profiling.study import FINAL_LATENT, ONE_STEP_LOSS, ROW_ERROR, Study
from ..kernels.profiling.trajectory import Segment
from . import drawing as pen
from .profile_plots import Axis, curves, heat_map, log_ticks, number
from .profile_text import Facts, headline

_HALF = (pen.WIDTH - 2 * pen.MARGIN - 72) // 2
_RIGHT = pen.WIDTH - pen.MARGIN - _HALF + 24
_PLOT = 200
_ROW = _PLOT + 110
_BARS = {
    FINAL_LATENT: "squared error of the final latent per step, each part alone sparse",
    ONE_STEP_LOSS: "squared one-step loss, one step alone sparse",
    ROW_ERROR: "squared error of attention rows, as one-step losses are not complete",
}


def profile_image(study: Study, facts: Facts) -> torch.Tensor:
    """Return the picture as an IMAGE tensor ``(1, height, width, 3)`` in 0..1."""
    layers = max(1, len(study.table.layers))
    map_height = max(90, min(_PLOT, 22 * layers))
    height = 96 + 3 * _ROW + map_height + 90
    picture, draw = pen.page(height, "FPSAttention: where the model needs its attention", headline(study))
    top = 110
    _sensitivity(draw, study, top)
    top += _ROW
    _windows(draw, study, pen.MARGIN, top)
    _granularities(draw, study, _RIGHT, top)
    top += _ROW
    _steps(draw, study, facts, pen.MARGIN, top)
    _losses(draw, study, _RIGHT, top)
    top += _ROW
    level = study.levels[study.probing]
    title = f"Attention error per step and layer, window {level.text} (density {level.density:.2f})"
    values = study.table.relative(level.text).T
    box = (pen.MARGIN, top, pen.WIDTH - 110, top + map_height)
    heat_map(draw, box, title, values, [str(s) for s in study.table.steps], [str(x) for x in study.table.layers])
    return pen.image_tensor(picture)


def _sensitivity(draw: ImageDraw.ImageDraw, study: Study, top: int) -> None:
    """A bar per part of the run, as wide as its steps: harm per step; and lines: the proposed and uniform density."""
    left, right, base = pen.MARGIN, pen.WIDTH - 64, top + 24 + _PLOT
    harm = study.harm()
    title = f"Bars: {_BARS[study.told_by]} (left).   Lines: density (right)"
    # Higher than the other titles: the PSNR stands above the largest bar, which reaches the last line.
    draw.text((left, top - 22), title, font=pen.font(15), fill=pen.INK)
    largest = max(harm) or 1.0
    steps = sum(segment.steps for segment in study.segments)
    pen.share_lines(draw, left, right, base, _PLOT)
    places = []
    for segment, value in zip(study.segments, harm):
        x0 = left + (right - left) * segment.first / steps
        x1 = left + (right - left) * (segment.last + 1) / steps
        places.append((x0, x1))
        height = value / largest * _PLOT
        pen.bar(draw, (x0 + 4, base - height, x1 - 4, base), pen.COLORS[4])
        middle = (x0 + x1) / 2
        draw.text((middle, base + 5), _steps_of(segment), font=pen.font(13), fill=pen.INK, anchor="ma")
        last = f" to {segment.sigmas[-1]:.3f}" if segment.steps > 1 else ""
        sigmas = f"sigma {segment.sigmas[0]:.3f}{last}"
        if x1 - x0 > 130:
            draw.text((middle, base + 21), sigmas, font=pen.font(13), fill=pen.SOFT, anchor="ma")
    for candidate, color, width in ((study.uniform, pen.SOFT, 2), (study.proposal, pen.COLORS[5], 4)):
        if candidate is None:
            continue
        points = []
        for (x0, x1), level in zip(places, candidate.levels):
            y = base - study.levels[level].density * _PLOT
            points += [(x0, y), (x1, y)]
        draw.line(points, fill=color, width=width)
        if candidate is study.proposal:
            _densities(draw, study, places, base)
    for segment, value, (x0, x1) in zip(study.segments, harm, places):
        if study.measured and value > 0:
            place = ((x0 + x1) / 2, base - value / largest * _PLOT - 5)
            _label(draw, place, f"{study.psnr(value * segment.steps):.1f} dB", pen.SOFT, "mb")
    for share in (0.0, 0.5, 1.0):
        draw.text((right + 8, base - share * _PLOT), number(share), font=pen.font(13), fill=pen.COLORS[5], anchor="lm")
    y = base + 48
    legend = [
        (pen.COLORS[4], "relative to the largest; above: PSNR" if study.measured else "relative to the largest"),
        (pen.COLORS[5], "proposed density"),
    ]
    if study.uniform is not None:
        legend.append((pen.SOFT, "uniform density compared with"))
    _legend(draw, left, y, legend)


def _densities(draw: ImageDraw.ImageDraw, study: Study, places: list, base: float) -> None:
    """The proposed density over the first part of each phase."""
    levels = study.proposal.levels
    for i, level in enumerate(levels):
        if i and levels[i - 1] == level:
            continue
        density = study.levels[level].density
        text = "dense" if study.levels[level].is_dense else number(density, percent=True)
        below = density > 0.85
        place = (places[i][0] + 10, base - density * _PLOT + (7 if below else -7))
        _label(draw, place, text, pen.COLORS[5], "lt" if below else "lb")


def _steps_of(segment: Segment) -> str:
    return f"step {segment.name}" if segment.steps == 1 else f"steps {segment.name}"


def _label(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, color: tuple, anchor: str) -> None:
    """Letters that stay readable on bars and lines."""
    letters = pen.font(13)
    box = draw.textbbox(place, text, font=letters, anchor=anchor)
    draw.rectangle((box[0] - 3, box[1] - 2, box[2] + 3, box[3] + 2), fill=pen.PAPER)
    draw.text(place, text, font=letters, fill=color, anchor=anchor)


def _windows(draw: ImageDraw.ImageDraw, study: Study, left: int, top: int) -> None:
    """Row error over density, a line per part of the run; crosses: windows that leave out time."""
    levels = [level for level in study.levels if not level.is_dense]
    lines = []
    for i, segment in enumerate(study.segments):
        values = [math.sqrt(value) for value in study.table.curve(segment, levels)]
        lines.append((_steps_of(segment), _shade(i, len(study.segments)), values))
    others = [level for level in study.table.plan.windows if level.window[0] is not None]
    marks = [(level.density, math.sqrt(study.table.mean_square(level.text))) for level in others]
    x = Axis([level.density for level in levels] + [m[0] for m in marks], log=True)
    title = "Attention error over density (crosses: windows that leave out time)"
    box = (left, top + 24, left + _HALF, top + 24 + _PLOT)
    curves(draw, box, title, x, [level.density for level in levels], lines, marks=marks)
    _legend(draw, left, top + _PLOT + 58, [(color, name) for name, color, _ in lines], room=_HALF)


def _granularities(draw: ImageDraw.ImageDraw, study: Study, left: int, top: int) -> None:
    """A bar per granularity: relative error of the rows, whiskers from the best to the worst step."""
    names = study.table.plan.granularities
    base, right = top + 24 + _PLOT, left + _HALF
    draw.text(
        (left, top - 8), "FP8 granularity: attention error (mean, whiskers: steps)", font=pen.font(15), fill=pen.INK
    )
    means = [math.sqrt(study.table.mean_square(name)) for name in names]
    spans = []
    for name in names:
        with np.errstate(all="ignore"):
            per_step = np.sqrt(np.nanmean(np.square(study.table.relative(name)), axis=1))
        spans.append((float(np.nanmin(per_step)), float(np.nanmax(per_step))))
    top_value = max(1e-12, *(high for _, high in spans)) * 1.15
    for tick in log_ticks(0.0, top_value, linear=True):
        y = base - tick / top_value * _PLOT
        draw.line((left, y, right, y), fill=pen.GRID)
        draw.text((left - 6, y), number(tick, percent=True), font=pen.font(12), fill=pen.SOFT, anchor="rm")
    slot = (right - left) / len(names)
    for i, (name, mean, (low, high)) in enumerate(zip(names, means, spans)):
        x0, x1 = left + i * slot + slot * 0.16, left + (i + 1) * slot - slot * 0.16
        color = pen.COLORS[0] if name.startswith("x") else pen.COLORS[1]
        pen.bar(draw, (x0, base - mean / top_value * _PLOT, x1, base), color)
        middle = (x0 + x1) / 2
        draw.line((middle, base - low / top_value * _PLOT, middle, base - high / top_value * _PLOT), fill=pen.INK)
        draw.text((middle, base + 5), name, font=pen.font(13), fill=pen.INK, anchor="ma")
        snr = "exact" if mean <= 0 else f"{-20 * math.log10(mean):.1f} dB"
        draw.text((middle, base + 22), snr, font=pen.font(12), fill=pen.SOFT, anchor="ma")
    _legend(draw, left, top + _PLOT + 72, [(pen.COLORS[0], "3D tiles"), (pen.COLORS[1], "others")], room=_HALF)


def _steps(draw: ImageDraw.ImageDraw, study: Study, facts: Facts, left: int, top: int) -> None:
    """Signal-to-noise ratio per step of FP8 x1, x8 and the probing window, as in the paper's Figure 5."""
    level = study.levels[study.probing]
    shown = [("fp8 token", "token", pen.COLORS[1]), ("fp8 x1", "x1", pen.COLORS[0]), ("fp8 x8", "x8", pen.COLORS[2])]
    shown.append((f"window, density {level.density:.2f}", level.text, pen.COLORS[5]))
    lines = []
    for label, name, color in shown:
        if name in study.table.plan.names:
            errors = np.sqrt(np.nanmean(np.square(study.table.relative(name)), axis=1))
            lines.append((label, color, [float(-20 * math.log10(max(e, 1e-9))) for e in errors]))
    steps = study.table.steps
    box = (left, top + 24, left + _HALF, top + 24 + _PLOT)
    title = "SNR of attention rows per step (dB, higher is better)"
    x = Axis([float(step) for step in steps], whole=True)
    curves(draw, box, title, x, [float(step) for step in steps], lines, logarithmic=False, unit="")
    _legend(draw, left, top + _PLOT + 58, [(color, label) for label, color, _ in lines], room=_HALF)


def _losses(draw: ImageDraw.ImageDraw, study: Study, left: int, top: int) -> None:
    """Row error, one-step loss and final harm per part, each relative to its own largest: do they rank alike?"""
    segments = study.segments
    rows = [study.row_error(segment) for segment in segments]
    loss = [study.loss(segment) for segment in segments]
    groups = [("attention rows", pen.COLORS[0], rows), ("one-step loss", pen.COLORS[1], loss)]
    if study.measured:
        groups.append(("final latent", pen.COLORS[4], [math.sqrt(value) for value in study.harm()]))
    base, right = top + 24 + _PLOT, left + _HALF
    title = f"{len(groups)} measures of the same parts, each relative to its largest"
    draw.text((left, top - 8), title, font=pen.font(15), fill=pen.INK)
    pen.share_lines(draw, left, right, base, _PLOT)
    slot = (right - left) / len(segments)
    for i, segment in enumerate(segments):
        for j, (_, color, values) in enumerate(groups):
            largest = max((value for value in values if value is not None), default=0.0)
            if values[i] is None or largest <= 0:
                continue
            width = slot * 0.76 / len(groups)
            x0 = left + i * slot + slot * 0.12 + j * width
            pen.bar(draw, (x0, base - values[i] / largest * _PLOT, x0 + width - 2, base), color)
        middle = left + (i + 0.5) * slot
        draw.text((middle, base + 5), segment.name, font=pen.font(13), fill=pen.INK, anchor="ma")
    _legend(draw, left, top + _PLOT + 58, [(color, name) for name, color, _ in groups], room=_HALF)


def _shade(index: int, count: int) -> tuple[int, int, int]:
    """From the first color to the last along the run."""
    early, late = pen.COLORS[0], pen.COLORS[1]
    share = index / max(count - 1, 1)
    return tuple(round(a + (b - a) * share) for a, b in zip(early, late))


def _legend(draw: ImageDraw.ImageDraw, left: int, y: int, items: list, room: float = 1e9) -> None:
    x = left
    for color, label in items:
        width = 28 + draw.textlength(label, font=pen.font(13))
        if x > left and x + width > left + room:
            x, y = left, y + 17
        draw.rectangle((x, y, x + 12, y + 12), fill=color)
        draw.text((x + 17, y + 6), label, font=pen.font(13), fill=pen.INK, anchor="lm")
        x += width + 8
