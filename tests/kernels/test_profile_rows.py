"""Sampled rows are what the engine computes: windows, granularities, extra tokens, ragged tiles; and what they cost."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from fpsattention.kernels.attention import fps_attention
from fpsattention.kernels.grid import TokenGrid, choose_tiling
from fpsattention.kernels.patterns import Window, density
from fpsattention.kernels.plan import plans_for
from fpsattention.kernels.profiling.cost import (
    LIMIT,
    ModelShape,
    forward_flops,
    plan_effort,
    probe_bytes,
    probe_flops,
    spread,
)
from fpsattention.kernels.profiling.errors import ProfileError
from fpsattention.kernels.profiling.rows import GRANULARITIES, UNGROUPED, groups_of, plan_rows, row_errors, scales
from fpsattention.kernels.profiling.table import RowTable
from fpsattention.kernels.profiling.trajectory import cut
from fpsattention.kernels.profiling.windows import DENSE, ladder, other_shapes, window_level
from fpsattention.kernels.schedule import Phase, Schedule

GRIDS = [TokenGrid(3, 12, 16), TokenGrid(3, 7, 9), TokenGrid(5, 11, 13, prefix=20, suffix=7), TokenGrid(1, 16, 16)]


def inputs(grid: TokenGrid, heads: int = 2, logits: float = 1.0, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(grid.tokens, heads, 64, generator=generator) for _ in range(3))
    return [q * logits, k + 0.5, v]


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1).matmul(v).transpose(0, 1)


def engine(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: TokenGrid, phase: Phase) -> torch.Tensor:
    plan = plans_for(Schedule((phase,)), grid, q.shape[1]).at(0.5)
    return fps_attention(q[None], k[None], v[None], plan, backend="reference")[0]


def relative(out: torch.Tensor, true: torch.Tensor, rows: torch.Tensor) -> float:
    return float((out[rows].double() - true[rows]).norm() / true[rows].norm())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_rows_are_what_the_engine_computes(grid):
    levels = ladder(grid)
    plan = plan_rows(grid, [*levels, *other_shapes(grid, 0.3)], seed=3)
    q, k, v = inputs(grid, logits=2.0)
    errors = row_errors(q, k, v, plan)
    rows, true = torch.from_numpy(plan.rows.reshape(-1)), exact(q, k, v)
    for name, (square, norm, cosine) in zip(plan.names, errors.tolist()):
        if name in ("channel", "group"):
            continue
        if name in GRANULARITIES:
            # A window of all tiles, not a full list: the same tiles as the sparse phases.
            phase = Phase(0.0, "fp8", name, (999, 999, 999))
        else:
            level = next(level for level in plan.windows if level.text == name)
            phase = Phase(0.0, "bf16", None, level.window) if level.window else Phase(0.0, "dense")
        out = true if phase.attention == "dense" else engine(q, k, v, grid, phase)
        # FP8 amplifies the last bit where a value lies between two codes.
        close = {"rel": 0.02, "abs": 1e-4} if name in GRANULARITIES else {"rel": 1e-3, "abs": 1e-6}
        assert (square / norm) ** 0.5 == pytest.approx(relative(out, true, rows), **close), name
        between = torch.nn.functional.cosine_similarity(out[rows].double(), true[rows], dim=-1).mean()
        assert cosine == pytest.approx(float(between), abs=1e-4)


def test_the_plan_of_a_long_video_is_small():
    """446,400 tokens: whole masks of the windows would take 0.9 GB."""
    grid = TokenGrid(31, 90, 160)
    windows = [*ladder(grid, target=0.3), *other_shapes(grid, 0.3)]
    # Tilings stay cached.
    choose_tiling(grid)
    tracemalloc.start()
    try:
        plan = plan_rows(grid, windows)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert plan.visible.shape == (len(windows), len(plan.tiles), plan.tiling.count)
    assert peak < 30 * 2**20, f"{peak / 2**20:.1f} MiB"
    tokens = plan.visible.astype(np.float64) @ plan.tiling.live / grid.tokens
    assert np.allclose(tokens.mean(1), [level.density for level in windows], rtol=0.1)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_densities_are_exact_and_texts_give_the_windows_back(grid):
    tiling = choose_tiling(grid)
    levels = ladder(grid, target=0.4)
    assert levels[-1] == DENSE and levels == sorted(levels, key=lambda level: level.density)
    for level in [*levels[:-1], *other_shapes(grid, 0.3)]:
        window = Window(*level.window)
        assert window.tiles(tiling) == level.tiles
        assert level.density == pytest.approx(density(window.mask(tiling), tiling.live), abs=1e-12)
        assert level in levels[:-1] or level.tiles[0] < tiling.pieces[0]
        assert Schedule.parse(Schedule((level.phase(0.0),)).format()).phases[0].window == level.window
    assert all(level.tiles[0] == tiling.pieces[0] for level in levels[:-1])


def test_every_window_of_every_grid_can_be_written():
    for pieces in ((1, 1, 2), (3, 7, 11), (2, 30, 52), (5, 9, 17)):
        grid = TokenGrid(pieces[0] * 2, pieces[1] * 4, pieces[2] * 4)
        tiling = choose_tiling(grid)
        for kh in range(1, tiling.pieces[1] + 1):
            level = window_level(tiling, (1, kh, min(kh, tiling.pieces[2])))
            assert Window(*level.window).tiles(tiling) == level.tiles


def test_a_single_tile_per_frame_is_refused_in_one_sentence():
    with pytest.raises(ProfileError, match=r"single tile.*larger video"):
        ladder(TokenGrid(5, 2, 2))


def test_one_scale_serves_its_group_and_nobody_else():
    grid = TokenGrid(3, 12, 16)
    tiling = choose_tiling(grid)
    x = torch.randn(2, grid.tokens, 64, generator=torch.Generator().manual_seed(1))
    assert scales(x, "channel").shape == (2, 1, 64)
    counts = {"token": grid.tokens, "group": 9, "x1": tiling.count, "x2": 8, "x8": 1}
    for name, groups in counts.items():
        scale = scales(x, name, None if name in UNGROUPED else groups_of(name, tiling))[..., 0]
        largest = x.abs().amax(-1) / 448
        assert bool((scale >= largest - 1e-9).all())
        assert len(torch.unique(scale[0])) <= groups
        assert name in ("x2", "x8") or len(torch.unique(scale[0])) == groups
    x[0, 70] = 100.0
    touched = scales(x, "group", groups_of("group", tiling))[0, :, 0] > 0.2
    assert touched.nonzero().flatten().tolist() == list(range(64, 128))


def test_a_probe_waits_for_nothing_and_makes_its_groups_once(monkeypatch):
    """On tensors without data: whoever asks for a number on the host fails, as it would wait for a GPU."""
    grid = TokenGrid(3, 12, 16)
    plan = plan_rows(grid, ladder(grid)[:-1])
    q, k, v = (torch.empty(grid.tokens, 2, 64, device="meta") for _ in range(3))
    assert row_errors(q, k, v, plan).shape == (len(plan.names), 3)

    def made_again(*_):
        raise AssertionError("the second probe made them again")

    monkeypatch.setattr("fpsattention.kernels.profiling.rows.groups_of", made_again)
    monkeypatch.setattr(torch, "from_numpy", made_again)
    row_errors(q, k, v, plan)


def test_the_same_seed_samples_the_same_rows_and_few_tokens_are_enough():
    grid = TokenGrid(3, 12, 16)
    one, two, other = (plan_rows(grid, [], seed=seed).rows for seed in (1, 1, 2))
    assert np.array_equal(one, two) and not np.array_equal(one, other)
    tiny = plan_rows(TokenGrid(1, 3, 3), [], tiles=8, rows=16)
    assert 1 <= tiny.count <= 9 and tiny.rows.min() >= 0
    extra = TokenGrid(3, 12, 16, prefix=30, suffix=30)
    plan = plan_rows(extra, [])
    assert plan.rows.min() >= 30 and plan.rows.max() < 30 + 576


def test_wrong_sizes_are_a_sentence():
    grid = TokenGrid(3, 12, 16)
    with pytest.raises(ValueError, match="576 tokens"):
        row_errors(*inputs(TokenGrid(3, 12, 15)), plan_rows(grid, []))


def test_rows_far_from_their_window_lose_everything_but_stay_finite():
    """All of the weight lies outside of the window: the row is lost, and nothing is NaN."""
    grid = TokenGrid(1, 8, 64)
    levels = ladder(grid)
    q, k, v = (torch.zeros(grid.tokens, 1, 64) for _ in range(3))
    q[:], v[:] = 100.0, 1.0
    k[0] = 1.0
    errors = row_errors(q, k, v, plan_rows(grid, levels[:1]))
    assert bool(errors.isfinite().all())


def test_a_table_reads_back_what_was_put_in():
    grid = TokenGrid(3, 12, 16)
    levels = ladder(grid)
    plan = plan_rows(grid, levels, granularities=("x1",))
    table = RowTable(plan)
    for step in (0, 2):
        for layer in (1, 3):
            entry = np.ones((len(plan.names), 3))
            entry[:, 0] = 0.01 * (step + 1)
            table.entries[step, layer] = entry
    assert table.steps == [0, 2] and table.layers == [1, 3]
    assert table.relative("x1")[1, 0] == pytest.approx(0.03**0.5)
    segments = cut([1.0, 0.9, 0.8, 0.7], 4)
    assert table.curve(segments[0], levels)[:-1] == pytest.approx([0.01] * (len(levels) - 1))
    assert table.curve(segments[0], levels)[-1] == 0
    # Step 3 was not probed; the nearest was.
    assert table.curve(segments[3], levels)[0] == pytest.approx(0.03)


SHAPES = {
    "1.3B 480p": (ModelShape(1536, 8960, 30), 32760, 282.8e12),
    "14B 480p": (ModelShape(5120, 13824, 40), 32760, 1676.1e12),
    "1.3B 720p": (ModelShape(1536, 8960, 30), 75600, 1249.7e12),
    "14B 720p": (ModelShape(5120, 13824, 40), 75600, 6521.1e12),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("steps", [1, 4, 20, 50, 200])
def test_a_profile_costs_at_most_three_dense_steps(name, steps):
    """All row probes and one-step losses over a dense step: as operations, and as time on a card that computes float32
    15 times slower than the model's products and moves a byte while the model does 150 operations."""
    shape, tokens, known = SHAPES[name]
    step = forward_flops(shape, tokens)
    assert step == pytest.approx(known, rel=0.01)
    effort = plan_effort(shape, tokens, steps, 0.25, candidates=tuple(range(steps)))
    assert effort.total <= LIMIT == 3.0
    probes = len(effort.steps) * len(effort.layers)
    assert probes * probe_flops(shape, tokens) / step < 0.1
    seconds = probes * (15 * probe_flops(shape, tokens) + 150 * probe_bytes(shape, tokens)) / step
    assert effort.rows == pytest.approx(seconds)
    assert effort.total == pytest.approx(seconds + len(effort.one_step) * forward_flops(shape, tokens, 0.25) / step)
    assert len(effort.steps) == min(steps, 32) and len(effort.one_step) >= 1
    if name == "14B 720p" and steps == 20:
        assert len(effort.layers) == 8 and (effort.layers[0], effort.layers[-1]) == (0, 39)
        assert len(effort.one_step) == 3


def test_a_tiny_model_is_probed_in_full():
    effort = plan_effort(ModelShape(256, 512, 3), 576, 6, 0.3, candidates=tuple(range(6)), float32=True)
    assert (effort.steps, effort.layers) == (tuple(range(6)), (0, 1, 2)) and len(effort.one_step) == 6


def test_spread_keeps_both_ends():
    assert spread(10, 3) == (0, 4, 9) and spread(3, 10) == (0, 1, 2) and spread(5, 1) == (2,) and spread(5, 0) == ()
