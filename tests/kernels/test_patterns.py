"""Patterns and lists: windows against a loop over tokens, against FlexAttention, and lists against their masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fpsattention.kernels.attention import fps_attention
from fpsattention.kernels.grid import TokenGrid, choose_tiling, run_tiling
from fpsattention.kernels.patterns import (
    Full,
    Skip,
    Window,
    block_lists,
    density,
    pattern_pairs,
    pattern_rows,
    stack_rows,
)
from fpsattention.kernels.plan import BlockLists
from hypothesis import given
from hypothesis import strategies as st

from . import oracle

axis = st.integers(1, 12)
extra = st.sampled_from([0, 0, 3, 40])
grids = st.builds(TokenGrid, axis, axis, axis, extra, extra)
extents = st.one_of(st.none(), st.integers(1, 15), st.integers(1, 100).map(lambda n: f"{n}%"))


def pieces_along(length: int, n: int) -> list[int]:
    """Return the piece of every coordinate of an axis that is split into ``n`` balanced pieces."""
    bounds = [i * length // n for i in range(n + 1)]
    return [next(i for i in range(n) if bounds[i] <= c < bounds[i + 1]) for c in range(length)]


def seen_pieces(extent: int | str | None, length: int, n: int) -> list[range]:
    """Return the key pieces that each of the ``n`` query pieces of an axis sees, by the rule of windows."""
    largest = max(pieces_along(length, n).count(i) for i in range(n))
    if extent is None:
        k = n
    elif isinstance(extent, str):
        k = max(1, min(n, math.ceil(round(n * float(extent[:-1]) / 100, 9))))
    else:
        k = min(n, math.ceil(extent / largest))
    starts = [min(max(i - k // 2, 0), n - k) for i in range(n)]
    return [range(start, start + k) for start in starts]


def naive_video_mask(grid: TokenGrid, pieces: tuple[int, int, int], window: tuple) -> np.ndarray:
    """Return which video token sees which, bool (video, video), token by token."""
    axes = [pieces_along(length, n) for length, n in zip(grid.shape, pieces)]
    seen = [seen_pieces(extent, length, n) for extent, length, n in zip(window, grid.shape, pieces)]
    per_axis = [
        np.array([[key in row[query] for key in column] for query in column]) for row, column in zip(seen, axes)
    ]
    t, h, w = per_axis
    mask = t[:, None, None, :, None, None] & h[None, :, None, None, :, None] & w[None, None, :, None, None, :]
    return mask.reshape(grid.video, grid.video)


@given(grid=grids, window=st.tuples(extents, extents, extents), slots=st.sampled_from([8, 16, 64]))
def test_a_window_is_what_the_rule_says_for_every_pair_of_tokens(grid, window, slots):
    tiling = choose_tiling(grid, slots)
    tile = tiling.tile_of_token
    tokens = Window(*window).mask(tiling)[tile][:, tile]
    video = slice(grid.prefix, grid.prefix + grid.video)
    assert np.array_equal(tokens[video, video], naive_video_mask(grid, tiling.pieces, window))
    # Tokens outside the video see all and are seen by all.
    outside = np.ones(grid.tokens, dtype=bool)
    outside[video] = False
    assert tokens[outside].all() and tokens[:, outside].all()
    assert density(Window(*window).mask(tiling), tiling.live) == tokens.mean()


@given(grid=grids, window=st.tuples(extents, extents, extents))
def test_every_tile_of_the_video_sees_equally_many_and_itself(grid, window):
    tiling = choose_tiling(grid, 16)
    pattern = Window(*window)
    mask = pattern.mask(tiling)
    inside = slice(tiling.prefix_tiles, tiling.prefix_tiles + tiling.video_tiles)
    assert (mask[inside, inside].sum(1) == np.prod(pattern.tiles(tiling))).all()
    assert mask.diagonal().all()


def test_windows_that_can_be_counted_by_hand():
    tiling = choose_tiling(TokenGrid(1, 1, 20), 4)
    assert tiling.pieces == (1, 1, 5)
    seen = [np.flatnonzero(row).tolist() for row in Window(None, None, 12).mask(tiling)]
    assert seen == [[0, 1, 2], [0, 1, 2], [1, 2, 3], [2, 3, 4], [2, 3, 4]]
    seen = [np.flatnonzero(row).tolist() for row in Window(None, None, 5).mask(tiling)]
    assert seen == [[0, 1], [0, 1], [1, 2], [2, 3], [3, 4]]
    assert Window(1, 1, 1).tiles(tiling) == (1, 1, 1)
    assert Window(1, 1, "60%").tiles(tiling) == (1, 1, 3) and Window(1, 1, "61%").tiles(tiling) == (1, 1, 4)
    assert Window(1, 1, 999).tiles(tiling) == Window(None, None, None).tiles(tiling) == (1, 1, 5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [(4, 6, 5), (None, 3, 8), (1, 1, 1)])
def test_flex_attention_agrees(window):
    """An independent judge: the rule as a mask_mod over token indices, run by torch's FlexAttention."""
    from torch.nn.attention.flex_attention import create_mask, flex_attention

    grid = TokenGrid(4, 7, 9, prefix=5, suffix=3)
    plan = oracle.make_plan("bf16 - " + " ".join("all" if e is None else str(e) for e in window), grid, 2, slots=16)
    axes = [torch.tensor(pieces_along(length, n)) for length, n in zip(grid.shape, plan.tiling.pieces)]
    starts, sizes = [], []
    for extent, length, n in zip(window, grid.shape, plan.tiling.pieces):
        rows = seen_pieces(extent, length, n)
        starts.append(torch.tensor([row.start for row in rows]))
        sizes.append(len(rows[0]))

    def coordinates(token):
        video = (token - grid.prefix).clamp(0, grid.video - 1)
        return video // (grid.h * grid.w), video // grid.w % grid.h, video % grid.w

    def mask_mod(b, h, q_idx, kv_idx):
        inside = (q_idx >= grid.prefix) & (q_idx < grid.prefix + grid.video)
        inside = inside & (kv_idx >= grid.prefix) & (kv_idx < grid.prefix + grid.video)
        seen = inside | ~inside
        for pieces, start, size, q_at, k_at in zip(axes, starts, sizes, coordinates(q_idx), coordinates(kv_idx)):
            first = start[pieces[q_at]]
            seen = seen & (pieces[k_at] >= first) & (pieces[k_at] < first + size)
        return seen | ~inside

    tokens = grid.tokens
    mask = create_mask(mask_mod, None, None, tokens, tokens, device="cpu")[0, 0]
    assert torch.equal(mask, oracle.visible(plan, 1, 1)[0, 0])
    q, k, v, _ = oracle.tensors(1, tokens, 2, 64)

    def score_mod(score, b, h, q_idx, kv_idx):
        return torch.where(mask_mod(b, h, q_idx, kv_idx), score, -math.inf)

    expected = flex_attention(*(x.transpose(1, 2) for x in (q, k, v)), score_mod=score_mod).transpose(1, 2)
    assert oracle.error(fps_attention(q, k, v, plan), expected) < 1e-5


def test_full_and_skip():
    for tiling in (choose_tiling(TokenGrid(3, 7, 5, 4), 16), run_tiling(TokenGrid(3, 7, 5, 4), 16)):
        assert Full().mask(tiling).shape == (tiling.count, tiling.count) and Full().mask(tiling).all()
        assert not Skip().mask(tiling).any()
        assert density(Full().mask(tiling), tiling.live) == 1.0 and density(Skip().mask(tiling), tiling.live) == 0.0


@given(
    tiles=st.integers(1, 30),
    patterns=st.integers(1, 4),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_lists_hold_the_mask_and_transposed_lists_its_transpose(tiles, patterns, share, seed):
    masks = oracle.random_masks(tiles, patterns, share, seed, empty_rows=True)
    lists = BlockLists.from_masks(masks, np.zeros((1, 1), np.int32), "cpu")
    for ids, count, expected in (
        (lists.ids, lists.count, masks),
        (lists.key_ids, lists.key_count, masks.transpose(0, 2, 1)),
    ):
        assert ids.dtype == count.dtype == torch.int32 and ids.is_contiguous()
        assert ids.shape == (patterns, tiles, max(1, expected.sum(-1).max()))
        back = np.zeros_like(masks)
        for p in range(patterns):
            for i in range(tiles):
                row = ids[p, i, : count[p, i]].numpy()
                assert np.all(np.diff(row) > 0)
                back[p, i, row] = True
                assert (ids[p, i, count[p, i] :] == 0).all()
        assert np.array_equal(back, expected)


def test_lists_of_nothing_have_one_place():
    ids, count = block_lists(np.zeros((2, 3, 3), dtype=bool))
    assert ids.shape == (2, 3, 1) and not count.any()


@given(grid=grids, window=st.tuples(extents, extents, extents), slots=st.sampled_from([4, 16, 64]))
def test_a_windows_own_lists_are_those_of_its_mask(grid, window, slots):
    """Made from the window's arithmetic, without a mask: equal to the last entry, pairs of tokens included."""
    tiling = choose_tiling(grid, slots)
    some = np.arange(tiling.count)[::-2]
    assert np.array_equal(Window(*window).seen(tiling, some), Window(*window).mask(tiling)[some])
    for pattern in (Window(*window), Full(), Skip()):
        mask = pattern.mask(tiling)
        for transposed, seen in ((False, mask), (True, mask.T)):
            for own, expected in zip(pattern_rows(pattern, tiling, transposed), block_lists(seen[None])):
                assert own.dtype == np.int32 and np.array_equal(own, expected[0])
        assert pattern_pairs(pattern, tiling) / float(grid.tokens) ** 2 == density(mask, tiling.live)


def test_lists_of_different_patterns_stand_beside_each_other():
    tiling = choose_tiling(TokenGrid(4, 9, 10, 7, 3), 32)
    patterns = [Window(None, 4, 3), Full(), Skip(), Window(1, 1, 1)]
    masks = np.stack([pattern.mask(tiling) for pattern in patterns])
    for transposed in (False, True):
        own = stack_rows([pattern_rows(pattern, tiling, transposed) for pattern in patterns])
        for ours, expected in zip(own, block_lists(masks.transpose(0, 2, 1) if transposed else masks)):
            assert np.array_equal(ours, expected)
    lists = BlockLists.from_patterns(patterns, tiling, np.zeros((1, 4), np.int32), "cpu")
    for name in ("ids", "count", "key_ids", "key_count"):
        assert torch.equal(getattr(lists, name), getattr(BlockLists.from_masks(masks, np.zeros((1, 4)), "cpu"), name))
