"""The profile's picture: every plot is drawn, at the places that the numbers of a made-up study say."""

from __future__ import annotations

import importlib
import math
import sys
from dataclasses import fields
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
from fpsattention.kernels.grid import TokenGrid
from fpsattention.kernels.outlook import sampler_sigmas
from fpsattention.kernels.profiling.rows import plan_rows
from fpsattention.kernels.profiling.study import Candidate, Goal, Study, probing_level
from fpsattention.kernels.profiling.table import RowTable
from fpsattention.kernels.profiling.trajectory import cut, schedule_of
from fpsattention.kernels.profiling.windows import ladder, other_shapes
from fpsattention.nodes.drawing import COLORS, INK, MARGIN, SOFT, WIDTH

from .pictures import Picture, drawn, near

# Pixels of a curve's point, of which a later curve may hide some; its line alone has fewer there.
POINT = 22
STEPS, LAYERS = 9, 4
HARM, FACTOR = (4e-6, 1e-6, 2e-6), (1.0, 2.0, 4.0)
COARSE = {"token": 0.02, "x1": 0.03, "x8": 0.008}


@pytest.fixture(scope="module")
def node():
    """The modules that draw the profile. They import the host's node API; for want of a host something stands there."""
    package, before = importlib.import_module("fpsattention.nodes"), set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("comfy_api", "comfy_api.v0_0_2"):
            module = ModuleType(name)
            module.__dict__.update(ComfyExtension=object, io=MagicMock(), ui=MagicMock())
            patch.setitem(sys.modules, name, module)
        names = {name: f"fpsattention.nodes.profile_{name}" for name in ("image", "plots", "text")}
        yield SimpleNamespace(**{name: importlib.import_module(module) for name, module in names.items()})
    # What has seen the stand-in goes with it.
    for name in set(sys.modules) - before:
        leaf = name.removeprefix("fpsattention.nodes.")
        if leaf.startswith(("_api", "profile")):
            del sys.modules[name]
            vars(package).pop(leaf, None)


@pytest.fixture(scope="module")
def study() -> Study:
    """Three parts of a run with numbers of their own: harm, row errors, losses; a proposal with three densities."""
    grid, goal = TokenGrid(5, 24, 32), Goal("density", 0.3, 25.0, 3)
    segments = cut(sampler_sigmas(STEPS, 3.0)[:-1], 3)
    levels = ladder(grid, target=goal.density)
    probing = probing_level(levels, goal)
    windows = [*levels[:-1], *other_shapes(grid, levels[probing].density)]
    plan = plan_rows(grid, windows, granularities=tuple(COARSE))
    table = RowTable(plan)
    for step in range(STEPS):
        for layer in range(LAYERS):
            errors = [error * (1 + 0.1 * step) for error in COARSE.values()]
            errors += [(1 / level.density - 1) ** 0.5 * 0.05 * FACTOR[step // 3] for level in windows]
            entry = np.ones((len(errors), 3))
            entry[:, 0] = np.square(errors) * (1 + 0.3 * layer)
            table.entries[step, layer] = entry
    made = Study(segments, levels, probing, 1.0, table, goal)
    made.singles = [harm * segment.steps for harm, segment in zip(HARM, segments)]
    made.one_step = {segment.first: loss for segment, loss in zip(segments, (0.1, 0.3, 0.2))}
    made.proposal = candidate(made, "proposal", (probing + 2, 1, probing), 22.0)
    made.uniform = candidate(made, "uniform", (probing,) * 3, 20.0)
    return made


def candidate(study: Study, name: str, levels: tuple[int, ...], measured: float) -> Candidate:
    chosen = [study.levels[level] for level in levels]
    work = sum(level.density for level in chosen) / 3
    return Candidate(name, levels, schedule_of(study.segments, chosen), work, None, measured)


@pytest.fixture(scope="module")
def profiled(study, node) -> Picture:
    facts = node.text.Facts(*[None] * len(fields(node.text.Facts)))
    return Picture(node.image.profile_image(study, facts))


@pytest.fixture(scope="module")
def bases(profiled, node) -> list[int]:
    """The rows on which the three rows of plots stand; the first from its bars."""
    x0, x1 = part(0)
    *_, base = profiled.extent(COLORS[4], x0 + 16, x1 - 16, 76, profiled.height // 3)
    return [base + number * node.image._ROW for number in range(4)]


def part(index: int) -> tuple[float, float]:
    """Where a part of the run begins and ends in the first plot."""
    wide = (WIDTH - 2 * MARGIN) / 3
    return MARGIN + index * wide, MARGIN + (index + 1) * wide


def test_profile_bars_are_as_high_as_the_harm(node, profiled, bases):
    for index, harm in enumerate(HARM):
        x0, x1 = part(index)
        box = profiled.extent(COLORS[4], x0 + 1, x1 - 1, bases[0] - node.image._PLOT - 4, bases[0] + 4)
        assert near(box[0], x0 + 4) and near(box[1], x1 - 4) and near(box[3], bases[0])
        assert near(bases[0] - box[2], harm / max(HARM) * node.image._PLOT)
        assert profiled.has_ink(x0, x1, box[2] - 24, box[2] - 4), "its PSNR"
        assert profiled.has_ink(x0, x1, bases[0] + 4, bases[0] + 34), "its steps"


def test_profile_draws_the_proposed_and_the_uniform_density(node, study, profiled, bases):
    for found, color in ((study.proposal, COLORS[5]), (study.uniform, SOFT)):
        for index, level in enumerate(found.levels):
            x0, x1 = part(index)
            y = bases[0] - study.levels[level].density * node.image._PLOT
            hidden = color == SOFT and level == study.proposal.levels[index]
            assert hidden or profiled.follows(color, x0 + 6, x1 - 6, y) > 0.7, (found.name, index)
    # The densities are written beside the line.
    for index, level in enumerate(study.proposal.levels):
        x0, y = part(index)[0], bases[0] - study.levels[level].density * node.image._PLOT
        assert profiled.has_ink(x0 + 8, x0 + 60, y - 22, y - 5), index


def test_profile_draws_errors_over_density(node, study, profiled, bases):
    """A line per part of the run with a point per window, and crosses for windows that leave out time."""
    levels = [level for level in study.levels if not level.is_dense]
    crosses = [level for level in study.table.plan.windows if level.window[0] is not None]
    assert crosses
    curves = [[math.sqrt(v) for v in study.table.curve(segment, levels)] for segment in study.segments]
    marks = [math.sqrt(study.table.mean_square(level.text)) for level in crosses]
    x = node.plots.Axis([level.density for level in [*levels, *crosses]], log=True)
    everything = [*marks, *(value for curve in curves for value in curve)]
    y = node.plots.Axis([min(everything) / 1.15, max(everything) * 1.15], log=True)

    def place(density: float, value: float) -> tuple[float, float]:
        return MARGIN + x.share(density) * node.image._HALF, bases[1] - y.share(value) * node.image._PLOT

    for index, curve in enumerate(curves):
        color = node.image._shade(index, len(curves))
        for level, value in zip(levels, curve):
            assert drawn(profiled, color, place(level.density, value), least=POINT), (index, level.text)
        (x0, y0), (x1, y1) = place(levels[0].density, curve[0]), place(levels[1].density, curve[1])
        assert drawn(profiled, color, ((x0 + x1) / 2, (y0 + y1) / 2)), "the line between points"
    for level, value in zip(crosses, marks):
        assert drawn(profiled, INK, place(level.density, value), 5), level.text


def test_profile_has_a_bar_per_granularity(node, study, profiled, bases):
    right = node.image._RIGHT
    slot = node.image._HALF / len(COARSE)
    each = {name: np.sqrt(np.square(study.table.relative(name)).mean(1)) for name in COARSE}
    top = max(values.max() for values in each.values()) * 1.15
    for index, (name, values) in enumerate(each.items()):
        color = COLORS[0] if name.startswith("x") else COLORS[1]
        x0, x1 = right + index * slot, right + (index + 1) * slot
        box = profiled.extent(color, x0, x1, bases[1] - node.image._PLOT, bases[1] + 4)
        mean = math.sqrt(study.table.mean_square(name))
        assert near(box[3], bases[1]) and near(bases[1] - box[2], mean / top * node.image._PLOT)
        assert near(box[0] - x0, slot * 0.16) and near(x1 - box[1], slot * 0.16)
        middle = (x0 + x1) / 2
        whisker = profiled.extent(INK, middle - 1, middle + 2, bases[1] - node.image._PLOT, bases[1])
        assert near(bases[1] - whisker[2], values.max() / top * node.image._PLOT)
        assert near(bases[1] - whisker[3], values.min() / top * node.image._PLOT)
        assert profiled.has_ink(x0, x1, bases[1] + 5, bases[1] + 36)


def test_profile_draws_the_signal_to_noise_of_every_step(node, study, profiled, bases):
    window = study.levels[study.probing].text
    shown = {"token": COLORS[1], "x1": COLORS[0], "x8": COLORS[2], window: COLORS[5]}
    values = {name: -20 * np.log10(np.sqrt(np.square(study.table.relative(name)).mean(1))) for name in shown}
    low, high = min(v.min() for v in values.values()), max(v.max() for v in values.values())
    y = node.plots.Axis([low - 0.08 * (high - low), high + 0.08 * (high - low)])
    for name, color in shown.items():
        for step, value in enumerate(values[name]):
            place = (MARGIN + step / (STEPS - 1) * node.image._HALF, bases[2] - y.share(value) * node.image._PLOT)
            assert drawn(profiled, color, place, least=POINT), (name, step)


def test_profile_compares_three_measures(node, study, profiled, bases):
    groups = {
        COLORS[0]: [study.row_error(segment) for segment in study.segments],
        COLORS[1]: [study.loss(segment) for segment in study.segments],
        COLORS[4]: [math.sqrt(harm) for harm in HARM],
    }
    slot = node.image._HALF / 3
    for index in range(3):
        begin = node.image._RIGHT + index * slot
        lefts = []
        for color, values in groups.items():
            box = profiled.extent(color, begin, begin + slot, bases[2] - node.image._PLOT - 4, bases[2] + 4)
            assert near(box[3], bases[2]) and near(bases[2] - box[2], values[index] / max(values) * node.image._PLOT)
            lefts.append(box[0])
        assert lefts == sorted(lefts)


def test_profile_maps_steps_and_layers(node, study, profiled, bases):
    """Every cell has the color of its error, the scale beside the map the colors from the least to the most."""
    values = study.table.relative(study.levels[study.probing].text).T
    assert values.shape == (LAYERS, STEPS)
    low, high = values.min(), values.max()
    top, right = bases[3] - node.image._PLOT - 24, WIDTH - 110
    scale = [
        profiled.extent(color, right + 12, right + 24, top - 4, profiled.height)[2:]
        for color in (node.plots._color(1.0), node.plots._color(0.0))
    ]
    bottom = scale[1][1] + 1
    assert near(scale[0][0], top) and bottom - top > 80
    wide, high_ = (right - MARGIN) / STEPS, (bottom - top) / LAYERS
    for layer in range(LAYERS):
        for step in range(STEPS):
            color = node.plots._color((values[layer, step] - low) / (high - low))
            box = (MARGIN + step * wide, MARGIN + (step + 1) * wide, top + layer * high_, top + (layer + 1) * high_)
            assert profiled.share(color, *box) > 0.85, (layer, step)
    assert profiled.has_ink(MARGIN, right, bottom + 3, bottom + 18), "steps"
    assert profiled.has_ink(MARGIN - 40, MARGIN - 4, top, bottom), "layers"


def test_profile_names_its_colors(node, profiled, bases):
    """Below every plot a square of each color that it has, and what it stands for."""
    left, right = (MARGIN, node.image._RIGHT - 40), (node.image._RIGHT, WIDTH)
    shades = [node.image._shade(index, 3) for index in range(3)]
    for row, across, colors in (
        (0, (MARGIN, WIDTH), (COLORS[4], COLORS[5], SOFT)),
        (1, left, shades),
        (1, right, (COLORS[0], COLORS[1])),
        (2, left, (COLORS[1], COLORS[0], COLORS[2], COLORS[5])),
        (2, right, (COLORS[0], COLORS[1], COLORS[4])),
    ):
        for color in colors:
            squares = profiled.mask(color, *across, bases[row] + 28, bases[row] + 95)
            assert squares.sum() >= 150 and squares.sum(0).max() >= 12, (row, color)
        assert profiled.has_ink(*across, bases[row] + 28, bases[row] + 95)
