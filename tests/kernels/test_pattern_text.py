"""Patterns in words: read, written and refused; stripes and unions against loops over tiles and tokens."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from fpsattention.kernels.grid import TokenGrid, choose_tiling
from fpsattention.kernels.pattern_text import PatternError, family, format_pattern, parse_pattern
from fpsattention.kernels.patterns import Stripe, pattern_pairs, pattern_rows
from hypothesis import given
from hypothesis import strategies as st

axis = st.integers(1, 8)
grids = st.builds(TokenGrid, axis, axis, axis, st.sampled_from([0, 5]), st.sampled_from([0, 9]))
extents = st.sampled_from(["all", "1", "3", "40%", "100%", "0.1%", "33.3%"])
windows = st.tuples(extents, extents, extents).map(lambda w: "window " + " ".join(w))
firsts = st.sampled_from(["first 1", "first 2", "first 50%", "first 99"])


@st.composite
def stripes(draw) -> str:
    pieces = draw(st.tuples(*[st.integers(1, 11)] * 3))
    tiles = draw(st.sets(st.integers(0, pieces[0] * pieces[1] * pieces[2] - 1), min_size=1, max_size=5))
    return format_pattern(Stripe(pieces, tuple(sorted(tiles))))


parts = st.one_of(windows, firsts, stripes())


@given(st.lists(parts, min_size=1, max_size=4), grids, st.sampled_from([1, 8, 64]))
def test_words_are_read_back_and_a_union_sees_what_any_part_sees(words, grid, slots):
    tiling = choose_tiling(grid, slots)
    pattern = parse_pattern(" + ".join(words))
    assert parse_pattern(format_pattern(pattern)) == pattern
    assert family(pattern) == "union" if len(words) > 1 else family(pattern) != "union"
    mask = pattern.mask(tiling)
    assert np.array_equal(mask, np.logical_or.reduce([parse_pattern(part).mask(tiling) for part in words]))
    assert pattern_pairs(pattern, tiling) == sum(int(tiling.live[i] * tiling.live[j]) for i, j in np.argwhere(mask))
    for transposed, seen in ((False, mask), (True, mask.T)):
        ids, count = pattern_rows(pattern, tiling, transposed)
        assert all(ids[i, : count[i]].tolist() == np.flatnonzero(row).tolist() for i, row in enumerate(seen))
    outside = np.r_[: tiling.prefix_tiles, tiling.prefix_tiles + tiling.video_tiles : tiling.count]
    assert mask[outside].all() and mask[:, outside].all()


@given(stripes(), grids, st.sampled_from([1, 8, 64]))
def test_a_stripe_on_other_tiles_is_carried_by_centers(words, grid, slots):
    """Exact fractions, tile by tile; also where an axis has fewer tokens than the stripe has pieces."""
    stripe, tiling = parse_pattern(words), choose_tiling(grid, slots)

    def center(index: int, pieces: int, length: int) -> Fraction:
        if pieces > length:
            return Fraction(2 * index + 1, 2 * pieces)
        return Fraction(index * length // pieces + (index + 1) * length // pieces, 2 * length)

    def carry(index, pieces, others) -> tuple[int, ...]:
        return tuple(int(center(i, n, length) * m) for i, n, m, length in zip(index, pieces, others, grid.shape))

    chosen = {tuple(map(int, np.unravel_index(tile, stripe.pieces))) for tile in stripe.tiles}
    mine = list(itertools.product(*map(range, tiling.pieces)))
    expected = {i for i in mine if carry(i, tiling.pieces, stripe.pieces) in chosen}
    expected |= {carry(i, stripe.pieces, tiling.pieces) for i in chosen}
    if stripe.pieces == tiling.pieces:
        expected = chosen
    assert {i for i, on in zip(mine, stripe.columns(tiling)) if on} == expected and expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "a pattern is text"),
        (["full"], "a pattern is text"),
        (None, "a pattern is text"),
        ("FULL", "no pattern that this version knows"),
        ("full 1", "stands alone"),
        ("full + first 1", "joins full or skip"),
        (" + ".join(["first 1"] * 9), "at most 8"),
        ("first 1 + ", "no pattern"),
        ("window 1 1", "three extents"),
        ("window 0 1 1", "not positive"),
        ("window 101% 1 1", "0-100 %"),
        ("window 1e3 1 1", "no extent"),
        ("window ٣ 1 1", "no extent"),
        ("first all", "one number of latent frames"),
        ("stripe 2x2x2", "pieces and tiles"),
        ("stripe 2x2x2 7-0", "not within 0 to 7"),
        ("stripe 2x2x2 8", "not within 0 to 7"),
        ("stripe 2x2x2 ,", "no tiles"),
        ("stripe 0x1x1 0", "allowed are 1"),
        ("stripe 1024x1024x1 0", "allowed are 1 to 65536"),
    ],
)
def test_what_is_no_pattern_gets_one_sentence(text, sentence):
    with pytest.raises(PatternError, match=sentence) as caught:
        parse_pattern(text)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
