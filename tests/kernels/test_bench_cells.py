"""Cells: their order, their shapes, and the windows that stand for densities."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from fpsattention.kernels.bench import cells
from fpsattention.kernels.bench.cells import Cell, CellError, window_for
from fpsattention.kernels.grid import TokenGrid, choose_tiling
from fpsattention.kernels.patterns import Window, density
from fpsattention.kernels.plan import Plans
from fpsattention.kernels.schedule import Schedule

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402


def test_the_most_valuable_cell_comes_first():
    ordered = cells.attention_cells()
    assert ordered[0].id == "720p-81f-h40-b1-fwd-d15"
    # The whole forward curve of the main shape stands before any other shape's, and before most of its backward.
    curve = [i for i, cell in enumerate(ordered) if cell.id.startswith("720p-81f-h40-b1-fwd")]
    assert curve == list(range(6))
    first_other = min(i for i, cell in enumerate(ordered) if not cell.id.startswith("720p-81f-h40-b1"))
    assert all(cell.direction == "backward" for cell in ordered[6:first_other])


def test_every_combination_is_there_once():
    ordered = cells.attention_cells()
    assert len(ordered) == len({cell.id for cell in ordered}) == 2 * 3 * 2 * 2 * 2 * 6
    names = [cell.id for cell in cells.standard_cells()]
    assert len(names) == len(set(names))
    assert {"ceilings", "start-fwd", "start-bwd"} <= set(names[:8])


def test_latent_grids_are_wans():
    assert cells.latent_grid("480p", 81) == (21, 30, 52)
    assert cells.latent_grid("720p", 81) == (21, 45, 80)
    assert cells.latent_grid("720p", 33)[0] == 9 and cells.latent_grid("720p", 121)[0] == 31


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: cells.latent_grid("4k", 81), "'4k' is no resolution"),
        (lambda: cells.latent_grid("480p", 80), "4n + 1 frames, got 80"),
        (lambda: window_for((2, 4, 4), 64, 0), "above 0 and at most 100 %, got 0"),
        (lambda: window_for((2, 4, 4), 64, 101), "got 101"),
        (lambda: cells.select(cells.attention_cells(), "1080p"), "no cell's name holds '1080p'"),
        (lambda: Cell.from_json("[1"), "this is no cell"),
    ],
)
def test_what_cannot_be_is_one_sentence(call, says):
    with pytest.raises(CellError) as caught:
        call()
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_cell_survives_its_json():
    for cell in (*cells.standard_cells()[:8], *cells.tune_cells(False)):
        assert Cell.from_json(cell.to_json()) == cell


def test_select_takes_parts_of_names():
    chosen = cells.select(cells.attention_cells(), "480p-81f-h12-b1-fwd-d15, 720p-33f-h12-b2-bwd-d5")
    assert [cell.density for cell in chosen] == [15, 5]  # d5 does not mean d50


grids = st.tuples(st.integers(1, 9), st.integers(1, 24), st.integers(1, 24))


@given(grids, st.sampled_from([16, 64, 128]), st.floats(1, 100))
def test_a_windows_density_is_exact_and_no_other_is_much_nearer(grid, slots, percent):
    found = window_for(grid, slots, percent)
    tiling = choose_tiling(TokenGrid(*grid), slots)
    assert found.density == pytest.approx(density(Window(*found.extents).mask(tiling), tiling.live), rel=1e-9)
    if percent == 100:
        return
    assert Window(*found.extents).tiles(tiling) == found.tiles

    def miss(tiles):
        window = Window(*(k * extent for k, extent in zip(tiles, tiling.tile)))
        return abs(density(window.mask(tiling), tiling.live) / (percent / 100) - 1)

    all_tiles = itertools.product(*(sorted({1, (n + 1) // 2, n}) for n in tiling.pieces))
    assert miss(found.tiles) <= max(cells.HIT, min(map(miss, all_tiles))) + 1e-9


@given(grids, st.sampled_from([64, 128]))
def test_more_density_never_means_fewer_pairs_by_much(grid, slots):
    found = [window_for(grid, slots, percent).density for percent in (5, 10, 15, 25, 50, 100)]
    # A hit may lie 3 % beside its target on either side; otherwise densities rise with their targets.
    assert all(b >= a * (1 - 2 * cells.HIT) - 1e-12 for a, b in itertools.pairwise(found))
    assert found[-1] == 1.0


@pytest.mark.parametrize("slots", [64, 128])
@pytest.mark.parametrize("percent", [50, 25, 15, 10, 5])
@pytest.mark.parametrize("grid", [(21, 45, 80), (21, 30, 52)])
def test_wans_grids_meet_their_densities(grid, percent, slots):
    found = window_for(grid, slots, percent)
    assert abs(found.density / (percent / 100) - 1) < 0.12
    plans = Plans(Schedule.parse(f"0.00 fp8 x1 {found.words}"), TokenGrid(*grid), 2, slots=slots)
    assert plans.density(0.5) == pytest.approx(found.density, rel=1e-9)


def test_windows_keep_time_where_they_can():
    found = window_for((21, 45, 80), 64, 15)
    assert found.extents[0] is None
    assert np.prod(found.tiles) / np.prod(choose_tiling(TokenGrid(21, 45, 80), 64).pieces) == found.density
