"""What the pictures show is what was drawn into them: bars, lines, windows, cells and hatching, found at their places.

Places come from the data and from the layout that a picture's module names; letters are looked for as ink.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fpsattention.kernels.bench.timing import Timing
from fpsattention.kernels.calibration_file import ENVIRONMENT
from fpsattention.kernels.contestants import Ours, Row, Size
from fpsattention.kernels.grid import TokenGrid
from fpsattention.kernels.measure import Measurement
from fpsattention.kernels.presets import preset
from fpsattention.kernels.schedule import Schedule
from fpsattention.nodes import benchmark_image, drawing, head_map, preview_image, report_image, report_times
from fpsattention.nodes.drawing import COLORS, GRID, INK, MARGIN, PAPER, WIDTH, bar, color_of, page
from fpsattention.nodes.preview_outlook import Preview, make_preview
from fpsattention.nodes.record import Run, Step
from fpsattention.nodes.settings import Settings

from .pictures import NEAR, Picture, near, plot_base


def test_hatching_and_filling_are_told_apart():
    picture, draw = page(200, "title", "subtitle")
    bar(draw, (100, 100, 140, 180), COLORS[0])
    bar(draw, (200, 100, 240, 180), COLORS[0], hatched=True)
    seen = Picture(torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None])
    assert seen.extent(COLORS[0], 80, 160, 80, 199) == (100, 140, 100, 180)
    assert seen.extent(COLORS[0], 180, 260, 80, 199) == (200, 240, 100, 180)
    assert not seen.is_hatched(COLORS[0], 100, 140, 100, 180) and seen.is_hatched(COLORS[0], 200, 240, 100, 180)
    assert seen.has_ink(MARGIN, 300, 18, 44) and seen.has_ink(MARGIN, 300, 46, 66)
    assert not seen.has_ink(300, WIDTH, 80, 199)


THREE = Schedule.parse("0.90 dense\n0.60 bf16 - 5 80% 60%\n0.00 fp8 x1 all 60% 45%")
TOP, BASE, RIGHT = preview_image._TOP, preview_image._BASE, preview_image._RIGHT


@pytest.fixture(scope="module")
def preview(tmp_path_factory) -> Preview:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT, str(tmp_path_factory.mktemp("none") / "calibration.json"))
        return make_preview(THREE, 832, 480, 81, 8, 5.0)[0]


@pytest.fixture(scope="module")
def previewed(preview) -> Picture:
    return Picture(preview_image.preview_image(preview, "a card"))


def test_preview_has_a_bar_per_step_as_high_as_its_density(preview, previewed):
    slot = (RIGHT - MARGIN) / len(preview.steps)
    assert len({step.phase for step in preview.steps}) == 3
    for step in preview.steps:
        x0, x1 = MARGIN + (step.index + 0.06) * slot, MARGIN + (step.index + 0.94) * slot
        left, right, top, bottom = previewed.extent(color_of(step.phase), x0, x1, TOP - 5, BASE + 4)
        assert near((left + right) / 2, MARGIN + (step.index + 0.5) * slot)
        assert near(bottom, BASE) and near(bottom - top, step.density * preview_image.PLOT)
        # Beside the line of work and the number, which stand on the bars.
        dense = step.attention == "dense"
        edge = previewed.share(color_of(step.phase), left + 3, left + 9, top + 3, bottom - 3)
        assert (edge < 0.4) if dense else (edge > 0.75), (step.index, edge)
        for other in {0, 1, 2} - {step.phase}:
            assert not previewed.mask(color_of(other), x0, x1, TOP - 5, BASE + 4).any()
        assert previewed.has_ink(x0, x1, BASE + 4, BASE + 34)


def test_preview_draws_the_work_so_far(preview, previewed):
    slot = (RIGHT - MARGIN) / len(preview.steps)
    for i, share in enumerate(preview.cumulative):
        x = MARGIN + (i + 1) * slot
        _, _, top, bottom = previewed.extent(INK, x - 1, x + 1, TOP - 5, BASE + 4)
        assert near((top + bottom) / 2, BASE - share * preview_image.PLOT), i
    for share in (0.25, 0.5, 0.75, 1.0):
        assert previewed.follows(GRID, MARGIN + 1, MARGIN + slot * 0.1, BASE - share * preview_image.PLOT) == 1
        y = BASE - share * preview_image.PLOT
        assert previewed.has_ink(MARGIN - 50, MARGIN - 6, y - 8, y + 8)


def test_preview_panels_show_what_a_query_tile_sees(preview, previewed):
    """Filled as far as the window reaches in height, width and time; the query's own tile in full color."""
    space = preview_image._PANEL_WIDTH + preview_image._SPACE
    for phase in preview.phases:
        color, left, top = color_of(phase.index), MARGIN + phase.index * space, BASE + 84
        swatch = previewed.extent(color, left, left + 20, top, top + 18)
        assert previewed.is_hatched(color, *swatch) == (phase.phase.attention == "dense")
        assert previewed.has_ink(left + 24, left + 200, top, top + 16)
        if phase.axes is None:
            assert previewed.has_ink(left, left + 200, top + 48, top + 70)
            continue
        width, height = preview_image._fit(preview.grid.w, preview.grid.h)
        across = (left, left + width), phase.axes[2], phase.tiling.bounds[2]
        down = (top + 68, top + 68 + height), phase.axes[1], phase.tiling.bounds[1]
        check_window(previewed, color, across, down)
        # The strip of time stands beside it, all of it as wide as the window.
        begin, end, _, _ = previewed.extent(color, left + width + 12, left + space - 4, *down[0])
        time = phase.axes[0], phase.tiling.bounds[0]
        check_window(previewed, color, ((begin, end), (0, 0, 1), [0, 1]), (down[0], *time))


def check_window(picture: Picture, color, across, down) -> None:
    """Along each direction: where the video stands, the axis (query, first, number), and the tiles' bounds."""
    seen, query, video = [], [], []
    for (begin, end), (at, first, number), bounds in (across, down):
        places = [begin + (end - begin) * bound / bounds[-1] for bound in bounds]
        seen += [places[first], places[first + number]]
        query += [places[at], places[at + 1]]
        video += [begin, end]
    found = picture.extent(color, video[0] - 4, video[1] + 5, video[2] - 4, video[3] + 5)
    assert all(near(one, other) for one, other in zip(found, seen)), (found, seen)
    assert picture.share(color, query[0] + 1, query[1] - 1, query[2] + 1, query[3] - 1) > 0.9
    light = preview_image._light(color)
    whole = picture.mask(light, *video).sum()
    area = (seen[1] - seen[0]) * (seen[3] - seen[2]) - (query[1] - query[0]) * (query[3] - query[2])
    # What is missing is the border and the lines between tiles.
    assert 0.5 * area <= whole <= area and whole == picture.mask(light, *seen).sum()


def test_preview_says_what_stands_below(preview, previewed):
    assert previewed.has_ink(MARGIN, 400, previewed.height - 24 - 18, previewed.height - 18)


CASES = [("dense one", "dense", 12.0), ("dense two", "dense", 8.0), ("ours", "ours", 9.0), ("ours", "ours", 1.5)]


@pytest.fixture(scope="module")
def benchmarked() -> tuple[Measurement, Picture]:
    size = Size(TokenGrid(21, 45, 80), 40, 128, torch.bfloat16, torch.device("cpu"))
    rows = [
        Row(f"{name}{i}", family, 1.0 if family == "dense" else ms / 10, "all 9 9")
        for i, (name, family, ms) in enumerate(CASES)
    ]
    for row, (*_, ms) in zip(rows, CASES):
        row.timing = Timing(ms, ms * 0.9, ms * 1.1, ms * 0.9, 9)
    rows.append(Row("left out", "dense", 1.0, note="it was left out"))
    kind = Ours("triton-fp8", "fp8", "x1")
    result = Measurement(size, size, rows, [], "Card", kind, host="dense one0", date="2026-11-21T20:00:00+00:00")
    return result, Picture(benchmark_image.benchmark_image(result, "video", "Kept."))


def test_benchmark_has_a_bar_per_row_as_long_as_its_time(benchmarked):
    result, picture = benchmarked
    timed = [row for row in result.rows if row.timing]
    left, right = benchmark_image._LEFT, benchmark_image._RIGHT
    wide = (right - left) / max(row.timing.high for row in timed)
    starts = bars_at(picture, left + 1)
    assert len(starts) == len(timed) == 4
    for row, (top, bottom) in zip(timed, starts):
        color = COLORS[0 if row.family == "ours" else 1]
        assert near(bottom - top, benchmark_image._BAR)
        box = picture.extent(color, left - 8, WIDTH, top, bottom + 1)
        assert near(box[0], left) and near(box[1] - box[0], row.timing.median * wide)
        assert picture.is_hatched(color, *box) == (row.family == "dense")
        # The quartiles, the name before it and the time behind it.
        middle, end = (top + bottom) / 2, left + row.timing.high * wide
        whisker = picture.extent(INK, left, end + 5, middle - 5, middle + 6)
        assert near(whisker[0], left + row.timing.low * wide) and near(whisker[1], end)
        assert near(whisker[3] - whisker[2], 10)
        assert picture.has_ink(0, left - 8, top, bottom) and picture.has_ink(end + 8, WIDTH, top, bottom)
    pitch = starts[1][0] - starts[0][0]
    below = starts[-1][0] + pitch
    assert near(pitch, benchmark_image._BAR + benchmark_image._GAP)
    assert picture.has_ink(left, right, below, below + benchmark_image._BAR), "why a row has no bar"


def test_benchmark_has_lines_at_round_times(benchmarked):
    result, picture = benchmarked
    longest = max(row.timing.high for row in result.rows if row.timing)
    left, right = benchmark_image._LEFT, benchmark_image._RIGHT
    (_, first), (second, _), *_ = bars_at(picture, left + 1)
    step = benchmark_image.nice_step(longest)
    for number in range(int(longest / step) + 1):
        x = left + (right - left) * number * step / longest
        assert picture.mask(GRID, x - NEAR, x + NEAR + 1, first + 2, second - 2).any(1).all(), number


def bars_at(picture: Picture, x: int) -> list[tuple[int, int]]:
    """First and last row of every bar that the column crosses, whatever its color."""
    column = np.any([picture.mask(color, x, x + 1, 0, picture.height)[:, 0] for color in COLORS[:2]], axis=0)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], column.astype(int), [0]])))
    return [(int(begin), int(end) - 1) for begin, end in edges.reshape(-1, 2)]


def report_step(index: int, density: float, blocks: list[float]) -> Step:
    step = Step(1.0 - index / 8, index, index, "fp8", "x1", backend="reference", planned_density=density, evaluations=1)
    step.grid, step.seconds, step.blocks = (3, 6, 8), sum(blocks), blocks
    if density < 1:
        step.sparse, step.work = 4, 4 * density
    else:
        step.dense = 4
    return step


@pytest.fixture(scope="module")
def reported() -> tuple[Run, Picture]:
    """Five steps in phases of their own, so that every bar has its own color; the last computed nothing."""
    run = Run(None, None, None, 1, finished=True, sample_sigmas=[1.0 - i / 8 for i in range(6)])
    # 97 % of the blocks are not longer than the scale: the longest is the only one above.
    blocks = [[1.0 + 0.5 * step + 0.11 * block for block in range(3)] for step in range(4)]
    for index, density in enumerate((1.0, 0.75, 0.4, 0.1)):
        step = report_step(index, density, blocks[index])
        run.steps[step.sigma] = step
    skipped = Step(0.5, 4, 4, "fp8", "x1", evaluations=1)
    skipped.skip("another node answered")
    run.steps[0.5] = skipped
    return run, Picture(report_image.report_image(Settings(preset("mild"), "the test"), [run], {}))


def test_report_has_a_bar_per_step_as_high_as_its_density(reported):
    run, picture = reported
    steps = list(run.steps.values())
    base = plot_base(picture, [color_of(step.phase) for step in steps])
    plot, centers = (base - report_image.PLOT - 5, base + 4), []
    for step in steps[:4]:
        color = color_of(step.phase)
        left, right, top, bottom = picture.extent(color, MARGIN, WIDTH, *plot)
        assert near(bottom, base) and near(bottom - top, step.density * report_image.PLOT)
        assert picture.is_hatched(color, left, right, top, bottom) == (not step.sparse)
        assert picture.has_ink(left, right, base + 4, base + 34), "its number and noise level"
        assert picture.has_ink(left, right, top - 18, top - 1), "its density"
        # In the legend as well.
        swatch = picture.extent(color, MARGIN, WIDTH, base + 40, base + 64)
        assert picture.is_hatched(color, *swatch) == (not step.sparse)
        centers.append((left + right) / 2)
    assert np.allclose(np.diff(centers), centers[1] - centers[0], atol=NEAR)
    assert near(centers[0] - MARGIN, (centers[1] - centers[0]) / 2)
    assert not picture.mask(color_of(4), 0, WIDTH, 0, picture.height).any(), "a step that computed nothing"
    assert picture.has_ink(centers[3] + 100, WIDTH - 24, base - 20, base - 2), "which is said"
    gap = (centers[0] + centers[1]) / 2
    for share in (0.25, 0.5, 0.75, 1.0):
        assert picture.follows(GRID, gap - 3, gap + 4, base - share * report_image.PLOT) == 1


def test_report_shades_every_block_of_every_step(reported):
    """Steps from left to right, blocks from above, as dark as they took long."""
    run, picture = reported
    base = plot_base(picture, [color_of(step.phase) for step in run.steps.values()])
    steps = list(run.steps.values())
    times = sorted(seconds for step in steps for seconds in step.blocks)
    scale = times[int(0.97 * (len(times) - 1))]
    slot, row = (WIDTH - 24 - MARGIN) / len(steps), report_times.STRIP / 3
    centers = {}
    for position, step in enumerate(steps[:4]):
        for block, seconds in enumerate(step.blocks):
            color = drawing.shade(seconds / scale)
            box = picture.extent(color, MARGIN + position * slot, MARGIN + (position + 1) * slot, base + 66, base + 170)
            if seconds < scale:
                assert near(box[1] - box[0], slot - 2) and near(box[3] - box[2], row - 1)
                centers[position, block] = (box[2] + box[3]) / 2
    for (position, block), y in centers.items():
        assert near(y, centers[position, 0] + block * row)
    middle = {place: round(MARGIN + (place[0] + 0.5) * slot) for place in centers}
    dark = [int(picture.pixels[round(y), middle[place]].sum()) for place, y in centers.items()]
    assert dark == sorted(dark, reverse=True), "the later blocks took longer"


def test_pictures_are_on_paper(previewed, benchmarked, reported):
    for picture in (previewed, benchmarked[1], reported[1]):
        assert picture.pixels.shape[1] == WIDTH and picture.share(PAPER, 0, WIDTH, 0, picture.height) > 0.5
        assert picture.has_ink(MARGIN, 500, 16, 44) and picture.has_ink(MARGIN, 500, 46, 66), "headlines"


@pytest.mark.parametrize("shape", [(12, 30), (40, 40), (1, 3)])
def test_a_map_has_a_cell_per_head_as_dark_as_its_density(shape):
    density = np.random.default_rng(0).random(shape)
    density[0, 1] = np.nan
    height = head_map.map_height(shape[0])
    picture, draw = page(100 + height, "title", "subtitle")
    head_map.draw_map(draw, density, ("head", "layer"), "what it is", MARGIN, WIDTH - 24, 90)
    seen = Picture(torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None])
    slot, row = (WIDTH - 24 - MARGIN) / shape[1], (height - 52) / shape[0]
    for (y, x), value in np.ndenumerate(density):
        color = GRID if np.isnan(value) else drawing.shade(value)
        place = (MARGIN + (x + 0.2) * slot, MARGIN + (x + 0.8) * slot, 90 + y * row + 1, 90 + (y + 1) * row - 2)
        assert seen.share(color, *place) == 1, (y, x)
    assert seen.has_ink(MARGIN + 120, 400, 90 + height - 34, 90 + height), "what the shades mean"
