"""The preview as a picture: density and work per step, and the tiles that a middle query tile sees in every phase."""

from __future__ import annotations

import math
import textwrap

import torch
from PIL import ImageDraw

from .drawing import GRID, INK, MARGIN, PAPER, SOFT, WIDTH, bar, color_of, font, image_tensor, page, share_lines
from .preview_outlook import PhaseOutlook, Preview
from .preview_text import density_words, grid_line, headline, seconds_lines, tiles_line

PLOT = 220
_TOP = 128
_BASE = _TOP + PLOT
_RIGHT = WIDTH - 48
_COLUMNS, _PANEL, _SHORT_PANEL, _SPACE = 3, 190, 110, 24
_WIDEST = 180
_PANEL_WIDTH = (_RIGHT - MARGIN - (_COLUMNS - 1) * _SPACE) / _COLUMNS
# The video's outline in a panel.
_VIDEO = (190, 96)
_LINE = 18
_LETTERS = 145


def preview_image(preview: Preview, card: str | None) -> torch.Tensor:
    """Return the picture of ``preview`` as an IMAGE tensor ``(1, height, width, 3)`` in 0..1."""
    lines = [*(f"Note: {note}" for note in preview.notes), *seconds_lines(preview, card)]
    below = [part for line in lines for part in textwrap.wrap(line, _LETTERS)]
    panels = _BASE + 84
    rows = [preview.phases[i : i + _COLUMNS] for i in range(0, len(preview.phases), _COLUMNS)]
    heights = [_PANEL if any(phase.axes for phase in row) else _SHORT_PANEL for row in rows]
    end = panels + sum(heights)
    height = end + _LINE * len(below) + 24
    picture, draw = page(height, "FPSAttention: what this schedule comes to", grid_line(preview))
    draw.text((MARGIN, 78), headline(preview), font=font(16), fill=INK)
    _plot(draw, preview)
    for number, row in enumerate(rows):
        for column, phase in enumerate(row):
            left = MARGIN + column * (_PANEL_WIDTH + _SPACE)
            _panel(draw, preview, phase, left, panels + sum(heights[:number]))
    for number, line in enumerate(below):
        draw.text((MARGIN, end + number * _LINE), line, font=font(13), fill=SOFT)
    return image_tensor(picture)


def _plot(draw: ImageDraw.ImageDraw, preview: Preview) -> None:
    share_lines(draw, MARGIN, _RIGHT, _BASE, PLOT)
    slot = (_RIGHT - MARGIN) / len(preview.steps)
    every = max(1, math.ceil(80 / slot))
    half = min(slot * 0.76, _WIDEST) / 2 if slot >= 6 else slot / 2
    labels = []
    for step in preview.steps:
        middle = MARGIN + (step.index + 0.5) * slot
        share = 1.0 if step.density is None else step.density
        box = (middle - half, _BASE - share * PLOT, middle + half, _BASE)
        bar(draw, box, color_of(step.phase), hatched=step.attention == "dense" or step.density is None)
        if step.index % every == 0:
            draw.text((middle, _BASE + 4), f"{step.index}", font=font(13), fill=INK, anchor="ma")
            draw.text((middle, _BASE + 20), f"sigma {step.sigma:.3f}", font=font(13), fill=SOFT, anchor="ma")
            if step.attention != "dense":
                labels.append((middle, box[1] - 3, _share(step.density)))
    _work(draw, preview, slot)
    for x, y, label in labels:
        draw.text((x, y), label, font=font(13), fill=INK, anchor="mb", stroke_width=2, stroke_fill=PAPER)
    note = "bars: density of a step (hatched: dense); line: attention work so far, as a share of a dense run"
    draw.text((MARGIN, _BASE + 46), note, font=font(13), fill=SOFT)


def _share(density: float | None) -> str:
    if density is None:
        return "?"
    return f"{density:.0%}" if density >= 0.01 else "<1%"


def _work(draw: ImageDraw.ImageDraw, preview: Preview, slot: float) -> None:
    """The work so far, a line with a light rim so that it shows on the bars."""
    points = [(MARGIN, _BASE)]
    points += [(MARGIN + (i + 1) * slot, _BASE - share * PLOT) for i, share in enumerate(preview.cumulative)]
    draw.line(points, fill=PAPER, width=5, joint="curve")
    draw.line(points, fill=INK, width=2, joint="curve")
    x, y = points[-1]
    draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=INK, outline=PAPER)
    text = f"{preview.cumulative[-1]:.0%}"
    draw.text((x + 8, y), text, font=font(13), fill=INK, anchor="lm", stroke_width=2, stroke_fill=PAPER)


def _panel(draw: ImageDraw.ImageDraw, preview: Preview, phase: PhaseOutlook, left: float, top: float) -> None:
    color = color_of(phase.index)
    dense = phase.phase.attention == "dense"
    bar(draw, (left, top, left + 16, top + 14), color, hatched=dense)
    draw.text((left + 24, top + 7), _title(phase), font=font(14), fill=INK, anchor="lm")
    detail = "until sigma " + f"{phase.phase.until:g}, {_steps(phase)}"
    if not dense:
        detail += f", density {density_words(phase)}"
    draw.text((left, top + 24), detail, font=font(13), fill=SOFT)
    if phase.axes is None:
        for number, line in enumerate(textwrap.wrap(tiles_line(phase), 44)):
            draw.text((left, top + 50 + number * _LINE), line, font=font(13), fill=INK)
        return
    _, nh, nw = phase.tiling.pieces
    (t, first_t, seen_t), rows, columns = phase.axes
    width, height = _fit(preview.grid.w, preview.grid.h)
    y = top + 48
    plane = f"h x w: {rows[2]} of {nh} x {columns[2]} of {nw} tiles"
    draw.text((left, y), plane, font=font(13), fill=INK)
    _plane(draw, phase, (left, y + 20, left + width, y + 20 + height), color)
    strip = left + max(width, draw.textlength(plane, font=font(13))) + 24
    draw.text((strip, y), f"t: {seen_t} of {phase.tiling.pieces[0]}", font=font(13), fill=INK)
    _axis(draw, (strip, y + 20, strip + 18, y + 20 + height), phase.tiling.bounds[0], (t, first_t, seen_t), color)


def _title(phase: PhaseOutlook) -> str:
    attention = " ".join(filter(None, [phase.phase.attention, phase.phase.granularity]))
    return f"phase {phase.index + 1}: {attention}" + ("" if phase.window == "dense" else f"  {phase.window}")


def _steps(phase: PhaseOutlook) -> str:
    count = len(phase.steps)
    return "no step" if not count else f"{count} step{'s' if count != 1 else ''}"


def _fit(w: int, h: int) -> tuple[float, float]:
    scale = min(_VIDEO[0] / w, _VIDEO[1] / h)
    return max(12.0, w * scale), max(12.0, h * scale)


def _plane(draw: ImageDraw.ImageDraw, phase: PhaseOutlook, box: tuple, color: tuple) -> None:
    """Height and width: the tiles of one frame, those seen filled, the query's own outlined."""
    x0, y0, x1, y1 = box
    _, rows, columns = phase.tiling.bounds
    ys = [y0 + (y1 - y0) * b / rows[-1] for b in rows]
    xs = [x0 + (x1 - x0) * b / columns[-1] for b in columns]
    _, (h, first_h, seen_h), (w, first_w, seen_w) = phase.axes
    draw.rectangle((xs[first_w], ys[first_h], xs[first_w + seen_w], ys[first_h + seen_h]), fill=_light(color))
    if min(xs[1] - xs[0], ys[1] - ys[0]) >= 4:
        for x in xs:
            draw.line((x, y0, x, y1), fill=GRID)
        for y in ys:
            draw.line((x0, y, x1, y), fill=GRID)
    draw.rectangle((xs[first_w], ys[first_h], xs[first_w + seen_w], ys[first_h + seen_h]), outline=color, width=2)
    draw.rectangle((xs[w], ys[h], xs[w + 1], ys[h + 1]), fill=color)
    draw.rectangle(box, outline=SOFT)


def _axis(draw: ImageDraw.ImageDraw, box: tuple, bounds: list, axis: tuple[int, int, int], color: tuple) -> None:
    """Time: one tile above the other, those seen filled, the query's own in full color."""
    x0, y0, x1, y1 = box
    ys = [y0 + (y1 - y0) * b / bounds[-1] for b in bounds]
    query, first, seen = axis
    draw.rectangle((x0, ys[first], x1, ys[first + seen]), fill=_light(color))
    if ys[1] - ys[0] >= 4:
        for y in ys:
            draw.line((x0, y, x1, y), fill=GRID)
    draw.rectangle((x0, ys[first], x1, ys[first + seen]), outline=color, width=2)
    draw.rectangle((x0, ys[query], x1, ys[query + 1]), fill=color)
    draw.rectangle(box, outline=SOFT)


def _light(color: tuple[int, int, int]) -> tuple[int, int, int]:
    return tuple(round(255 - (255 - c) * 0.35) for c in color)
