"""Evidence against loops over pairs of tokens in float64, families against planted heads, agreement against counts."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fpsattention.kernels.grid import TokenGrid, choose_tiling, run_tiling
from fpsattention.kernels.headsearch.classify import (
    classify,
    concentrations,
    families,
    prompt_dependence,
    stripe_candidates,
)
from fpsattention.kernels.headsearch.evidence import (
    MEASURED,
    EvidenceError,
    evidence,
    running_mean,
    sample_rows,
)
from fpsattention.kernels.headsearch.gathered import Gathered
from fpsattention.kernels.pattern_text import FAMILIES
from fpsattention.kernels.patterns import Stripe
from hypothesis import given
from hypothesis import strategies as st

from .planted import TRUTH, planted, planted_layer, stripe_tiles

RAGGED = TokenGrid(5, 9, 10, prefix=3, suffix=5)
GRIDS = [
    TokenGrid(7, 8, 12),
    RAGGED,
    TokenGrid(4, 10, 6, suffix=70),
    TokenGrid(13, 11, 18, prefix=1),
    TokenGrid(2, 7, 7),
]
sides = st.integers(1, 9)
grids = st.builds(TokenGrid, sides, sides, sides, st.integers(0, 70), st.integers(0, 5))


def naive(q, k, v, tiling, rows) -> dict[str, np.ndarray]:
    """Return the fields of one head's evidence, one pair of tokens at a time."""
    grid = tiling.grid
    q, k, v = (x.double().numpy() for x in (q, k, v))
    starts = [0, 1, 2, 3, 5, 7, 9]
    rings = sum(start < max(grid.h, grid.w) for start in starts)
    found = {
        "frames": np.zeros((2, grid.t, grid.t)),
        "distance": np.zeros((grid.t, rings)),
        "down": np.zeros(grid.h),
        "across": np.zeros(grid.w),
        "tiles": np.zeros((2, tiling.count)),
        "area": np.zeros((grid.t, rings)),
    }
    sums = {"entropy": 0.0, "peak": 0.0, "power": 0.0}
    frame_of = {int(r): int(r - grid.prefix) // (grid.h * grid.w) for r in rows}
    per_frame = {t: [r for r in frame_of if frame_of[r] == t] for t in range(grid.t)}
    for frame, members in per_frame.items():
        for number, row in enumerate(sorted(members)):
            half, weight = number % 2, 1 / (grid.t * len(members))
            in_half = len(members[number % 2 :: 2])
            p = np.exp(k @ q[row] / math.sqrt(q.shape[1]))
            p /= p.sum()
            sums["entropy"] -= weight * (p * np.log(p)).sum() / math.log(grid.tokens)
            sums["peak"] += weight * p.max()
            sums["power"] += weight * ((p @ v) ** 2).mean()
            y, x = divmod((row - grid.prefix) % (grid.h * grid.w), grid.w)
            for key, mass in enumerate(p):
                found["tiles"][half, tiling.tile_of_token[key]] += mass / (grid.t * in_half)
                place = key - grid.prefix
                if not 0 <= place < grid.video:
                    continue
                there, (ky, kx) = place // (grid.h * grid.w), divmod(place % (grid.h * grid.w), grid.w)
                far = max(abs(y - ky), abs(x - kx))
                ring = max(i for i, start in enumerate(starts) if start <= far)
                found["frames"][half, frame, there] += mass / in_half
                found["distance"][abs(frame - there), ring] += weight * mass
                found["area"][abs(frame - there), ring] += weight / grid.video
                found["down"][abs(y - ky)] += weight * mass
                found["across"][abs(x - kx)] += weight * mass
    return found | {name: np.array(value) for name, value in sums.items()}


@pytest.mark.parametrize("grid", [TokenGrid(3, 5, 6, prefix=2, suffix=4), TokenGrid(2, 3, 10), TokenGrid(4, 4, 3)])
@pytest.mark.parametrize("sampled", [False, True])
def test_every_figure_is_that_of_full_attention_in_float64(grid, sampled):
    tiling = choose_tiling(grid, 16)
    rows = sample_rows(tiling, 12) if sampled else np.arange(grid.prefix, grid.prefix + grid.video)
    heads = [planted(grid, name, 5, tiling=tiling, gain=3.0) for name in ("window", "vertical stripe", "full")]
    found = evidence(*(torch.stack(x, 1) for x in zip(*heads)), tiling, rows)
    for i, (q, k, v) in enumerate(heads):
        for name, value in naive(q, k, v, tiling, rows).items():
            mine = found.area if name == "area" else getattr(found, name)[0, i]
            np.testing.assert_allclose(mine, value, rtol=1e-4, atol=1e-6, err_msg=name)
    outside = found.columns[0].sum(-1) - found.by_time[0].sum(-1)
    inside = slice(tiling.prefix_tiles, tiling.prefix_tiles + tiling.video_tiles)
    np.testing.assert_allclose(found.columns[0].sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.delete(found.columns[0], np.r_[inside], axis=-1).sum(-1), outside, atol=1e-5)
    np.testing.assert_allclose(found.same_place[0], found.distance[0, :, 1:, 0].sum(-1))
    np.testing.assert_allclose(found.share.sum(), 1)


@given(grids, st.integers(1, 300), st.integers(0, 5))
def test_samples_hold_as_many_rows_of_every_frame(grid, rows, seed):
    tiling = choose_tiling(grid)
    chosen = sample_rows(tiling, rows, seed)
    assert (np.diff(chosen) >= 0).all()
    places = grid.h * grid.w
    counts = np.bincount((chosen - grid.prefix) // places, minlength=grid.t)
    assert chosen.min() >= grid.prefix and len(counts) == grid.t
    assert set(counts) == {max(2, min(round(rows / grid.t), places))}
    np.testing.assert_array_equal(chosen, sample_rows(tiling, rows, seed))


def test_every_token_is_equally_likely_and_rows_spread_over_tiles():
    grid = TokenGrid(2, 6, 7, prefix=1)
    tiling = choose_tiling(grid, 12)
    drawn = np.concatenate([sample_rows(tiling, 10, seed) for seed in range(4000)])
    counts = np.bincount(drawn, minlength=grid.tokens)
    assert counts[0] == 0
    # 4000 x 5 of 42 places: 476 each; one standard deviation is about 21.
    np.testing.assert_allclose(counts[1:], 4000 * 5 / 42, atol=5 * 21)
    # As many rows per frame as tiles side by side: every tile gives one of each frame.
    tiling = choose_tiling(TokenGrid(2, 16, 16), 32)
    assert tiling.pieces == (1, 4, 4)
    for seed in range(5):
        assert set(np.bincount(tiling.tile_of_token[sample_rows(tiling, 32, seed)], minlength=16)) == {2}


def test_the_error_of_a_sample_shrinks_with_its_rows():
    grid = TokenGrid(4, 10, 12, prefix=2)
    tiling = choose_tiling(grid)
    # Noise makes rows differ, so that a few of them are not all.
    qkv = planted_layer(grid, ["window", "full"], 1, gain=2.0, noise=2.0)
    exact = evidence(*qkv, tiling, np.arange(2, 482))

    def error(rows: int) -> np.ndarray:
        found = [evidence(*qkv, tiling, sample_rows(tiling, rows, seed)) for seed in range(12)]
        names = ("distance", "down", "across", "columns", "entropy")
        return np.array([np.mean([np.abs(getattr(f, n) - getattr(exact, n)).mean() for f in found]) for n in names])

    few, some, many = error(16), error(64), error(240)
    assert (some < 0.7 * few).all() and (many < 0.7 * some).all(), (few, some, many)
    # Four times the rows, half the error.
    assert 1.5 < np.mean(few / some) < 3.0


def test_samples_keep_apart_and_their_order_does_not_matter():
    tiling = choose_tiling(RAGGED)
    qkv = planted_layer(RAGGED, ["diagonal", "vertical stripe"], 2, batch=3)
    both, order = evidence(*qkv, tiling), [2, 0, 1]
    turned = evidence(*(x[order] for x in qkv), tiling)
    alone = evidence(*(x[1] for x in qkv), tiling)
    for name in MEASURED:
        mine = getattr(both, name)
        np.testing.assert_array_equal(getattr(turned, name), mine[order])
        np.testing.assert_allclose(getattr(turned.mean(), name), getattr(both.mean(), name), rtol=1e-13)
        np.testing.assert_array_equal(getattr(both.sample(1), name), mine[1:2])
        np.testing.assert_allclose(getattr(alone, name), mine[1:2], rtol=1e-5, atol=1e-9)
    assert classify(turned) == classify(both)


@pytest.mark.parametrize("limit", [1, 100_000, 1 << 20])
def test_small_chunks_give_the_same(limit):
    tiling = choose_tiling(RAGGED)
    qkv = planted_layer(RAGGED, ["diagonal", "vertical stripe", "full"], 2, batch=2)
    whole, parts = evidence(*qkv, tiling), evidence(*qkv, tiling, chunk_bytes=limit)
    for name in MEASURED:
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-5, atol=1e-8, err_msg=name)


def test_chunks_bound_what_is_computed_at_once(monkeypatch):
    grid = TokenGrid(4, 16, 16)
    sizes = []
    softmax = torch.softmax
    monkeypatch.setattr(torch, "softmax", lambda x, dim: sizes.append(x.numel()) or softmax(x, dim))
    evidence(*planted_layer(grid, ["full"] * 4, 0), choose_tiling(grid), chunk_bytes=1 << 20)
    assert len(sizes) > 4 and max(sizes) * 16 <= 1 << 20


def test_half_precision_tensors_are_read_in_float32():
    tiling = choose_tiling(RAGGED)
    qkv = [x.bfloat16() for x in planted_layer(RAGGED, ["window", "full"], 3)]
    low, high = evidence(*qkv, tiling), evidence(*(x.float() for x in qkv), tiling)
    np.testing.assert_array_equal(low.distance, high.distance)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g.t}x{g.h}x{g.w}+{g.prefix}+{g.suffix}")
@pytest.mark.parametrize("rows", [48, 192])
def test_planted_families_are_found(grid, rows):
    tiling = choose_tiling(grid)
    names = list(TRUTH)
    hits = []
    for seed in range(8):
        # From bumps that hold most of the mass to bumps that hold a good half of it among noise.
        qkv = planted_layer(grid, names, seed, gain=(3.5, 5.0, 8.0)[seed % 3], noise=(0.5, 1.0)[seed % 2], dim=64)
        words = classify(evidence(*qkv, tiling, sample_rows(tiling, rows, seed)))
        assert set(words) <= set(FAMILIES)
        hits += [word == TRUTH[name] for word, name in zip(words, names)]
    assert np.mean(hits) >= 0.95, f"{np.mean(hits):.3f} of {len(hits)}"


def test_heads_between_families_are_full():
    tiling = choose_tiling(RAGGED)
    # Few keys per query, but nowhere in particular.
    peaked = planted(RAGGED, "full", 1, noise=4.0)
    found = evidence(*(x[:, None] for x in peaked), tiling)
    assert classify(found) == ["full"] and found.entropy.item() < 0.8
    faint = [planted(RAGGED, name, 1, gain=0.5) for name in ("diagonal", "vertical stripe", "window")]
    assert classify(evidence(*(torch.stack(x, 1) for x in zip(*faint)), tiling)) == ["full"] * 3


@pytest.mark.parametrize("name", ["same row", "same column"])
def test_bands_are_limits_in_space(name):
    grid = TokenGrid(6, 14, 15, prefix=2)
    found = evidence(*planted_layer(grid, [name] * 2, 1), choose_tiling(grid))
    assert classify(found) == ["multi-diagonal"] * 2
    near = (found.down if name == "same row" else found.across)[0, :, 0]
    assert (near > 0.6).all()


def test_mass_outside_the_video_does_not_hide_what_is_inside():
    found = evidence(*planted_layer(RAGGED, ["diagonal", "multi-diagonal"], 1), choose_tiling(RAGGED))
    less = replace(found, **{name: 0.4 * getattr(found, name) for name in ("frames", "distance", "down", "across")})
    np.testing.assert_allclose(concentrations(less), concentrations(found), atol=1e-12)


@given(st.integers(0, 999))
def test_the_best_box_is_the_best_of_all(seed):
    random = np.random.default_rng(seed)
    found = evidence(*planted_layer(RAGGED, ["full"], 1), choose_tiling(RAGGED))
    mass = random.random(found.distance.shape) ** 4 * found.area
    mass /= mass.sum()
    best = -1.0
    for a, b in itertools.product(range(mass.shape[-2]), range(mass.shape[-1])):
        area = found.area[: a + 1, : b + 1].sum()
        if area <= 0.25:
            held = mass[0, 0, : a + 1, : b + 1].sum()
            best = max(best, held + (1 - held) * (0.25 - area) / (1 - area))
    both = concentrations(replace(found, distance=mass))[0, 0, 2]
    assert both == pytest.approx((best - 0.25) / 0.75)


@pytest.mark.parametrize(
    "time, space, both, columns, share, word",
    [
        (0.5, 0.49, 0.9, 0.0, 0.1, "diagonal"),
        (0.49, 0.5, 0.9, 0.0, 0.1, "multi-diagonal"),
        (0.5, 0.5, 0.9, 0.0, 0.1, "window"),
        (0.4, 0.4, 0.5, 0.0, 0.1, "window"),
        (0.4, 0.4, 0.4, 0.4, 0.1, "full"),
        (0.1, 0.1, 0.1, 0.5, 0.1, "vertical stripe"),
        (0.7, 0.1, 0.7, 0.7, 0.1, "vertical stripe"),
        (0.7, 0.1, 0.7, 0.6, 0.1, "diagonal"),
        (0.1, 0.7, 0.7, 0.6, 0.1, "multi-diagonal"),
        (0.9, 0.9, 0.9, 0.0, 1e-3, "skip"),
        (0.9, 0.0, 0.9, 0.0, 1.1e-3, "diagonal"),
        (0.0, 0.0, 0.0, 0.0, math.nan, "full"),
    ],
)
def test_ties_are_settled(time, space, both, columns, share, word):
    assert families(np.array([[time, space, both, columns]]), np.array([share])) == [word]


def test_only_negligible_output_is_skipped():
    tiling = choose_tiling(RAGGED)
    q, k, v = planted_layer(RAGGED, ["full", "diagonal", "full", "full"], 1)
    for factor, dead in ((1.0, False), (0.2, False), (0.01, True), (0.0, True)):
        less = v.clone()
        less[:, :, 2] *= factor
        words = classify(evidence(q, k, less, tiling))
        assert words == ["full", "diagonal", "skip" if dead else "full", "full"], factor
    assert classify(evidence(q, k, None, tiling)) == ["full", "diagonal", "full", "full"]
    assert classify(evidence(q, k, 0 * v, tiling)) == ["skip"] * 4


def test_rows_of_local_heads_are_no_columns():
    """With fewer rows than tiles, what the rows look at is a few tiles; the other half of the rows does not."""
    grid = TokenGrid(4, 24, 24)
    tiling = choose_tiling(grid, 16)
    found = evidence(*planted_layer(grid, ["window"] * 3, 0, gain=10.0), tiling, sample_rows(tiling, 24))
    top = np.sort(found.columns[0], -1)[:, -tiling.count // 4 :].sum(-1)
    assert tiling.count > 24 * 4 and (top > 0.6).all()
    assert (concentrations(found)[0, :, 3] < 0.2).all() and classify(found) == ["window"] * 3


def test_attention_to_tokens_outside_the_video_is_a_column():
    grid = TokenGrid(5, 8, 8, prefix=4)
    q, k, v = (x.clone()[:, None] for x in planted(grid, "full", 0))
    q[..., 0], k[..., 0] = 80.0, 0.0
    k[:4, :, 0] = 1.0
    assert classify(evidence(q, k, v, choose_tiling(grid))) == ["vertical stripe"]


@pytest.mark.parametrize("grid", [TokenGrid(7, 16, 24), TokenGrid(6, 15, 20, prefix=3, suffix=2)])
def test_stripes_are_the_planted_tiles(grid):
    tiling = choose_tiling(grid, 32)
    layer = [planted(grid, "vertical stripe", seed, prompt=i, tiling=tiling) for i, seed in enumerate([4, 9, 4, 9, 4])]
    layer += [planted(grid, name, 1, tiling=tiling) for name in ("diagonal", "window", "full")]
    found = evidence(*(torch.stack(x, 1) for x in zip(*layer)), tiling)
    wanted = {stripe_tiles(tiling, seed) for seed in (4, 9)}
    count = len(stripe_tiles(tiling, 4))
    stripes = stripe_candidates(found, tiling, count / tiling.video_tiles)
    assert {s.tiles for s in stripes} == wanted and all(s.pieces == tiling.pieces for s in stripes)
    # One of the size of both holds both; several layers are one list; a larger share holds the planted tiles and more.
    both = set().union(*map(set, wanted))
    (one,) = stripe_candidates([found, found], tiling, len(both) / tiling.video_tiles)
    assert isinstance(one, Stripe) and set(one.tiles) == both
    (wide,) = stripe_candidates(found, tiling, 0.5, most=1)
    assert len(wide.tiles) == math.ceil(tiling.video_tiles / 2) and both < set(wide.tiles)
    # Another order, and as many heads of one as of the other, whose mean is neither.
    turned = evidence(*(torch.stack(x, 1) for x in zip(*layer[:0:-1])), tiling)
    again = stripe_candidates(turned, tiling, count / tiling.video_tiles)
    assert {s.tiles for s in again} == wanted


def test_stripes_are_few_and_come_from_concentrated_heads_only():
    grid = TokenGrid(7, 16, 24)
    tiling = choose_tiling(grid, 32)
    many = planted_layer(grid, ["vertical stripe"] * 9, 3, tiling=tiling)
    found = evidence(*many, tiling)
    for most in (1, 2, 4):
        stripes = stripe_candidates(found, tiling, 0.08, most)
        assert 1 <= len(stripes) <= most and len({s.tiles for s in stripes}) == len(stripes)
        assert all(len(s.tiles) == math.ceil(0.08 * tiling.video_tiles) for s in stripes)
    assert len(stripe_candidates(found, tiling, 0.08, 4)) == 4
    none = evidence(*planted_layer(grid, ["diagonal", "window", "full"], 3), tiling)
    assert stripe_candidates(none, tiling, 0.08) == [] and stripe_candidates([], tiling, 0.08) == []


def test_variance_is_given_to_what_made_it():
    random = np.random.default_rng(0)
    shape = (6, 5, 8, 10, 4)

    def effect(*axes: int) -> np.ndarray:
        sizes = [n if i in axes else 1 for i, n in enumerate(shape)]
        return random.standard_normal(sizes)

    classes = np.zeros(shape[:4], dtype=int)
    ones = np.ones(shape)
    for name, axes in {"head": (2, 3, 4), "prompt": (0, 4), "step": (1, 4)}.items():
        found = prompt_dependence(effect(*axes) * ones, classes).variance
        assert found[name] == pytest.approx(1) and sum(found.values()) == pytest.approx(1)
    # Standard deviations 3, 1, 2 and 1 of heads, prompts, prompts per head and rest, over many levels of each.
    shape = (40, 6, 20, 30, 1)
    mixed = 3 * effect(2, 3) + effect(0) + 2 * effect(0, 2, 3) + effect(0, 1, 2, 3)
    found = prompt_dependence(mixed, np.zeros(shape[:4], dtype=int)).variance
    expected = {"head": 9 / 15, "prompt": 1 / 15, "head x prompt": 4 / 15, "residual": 1 / 15}
    assert found == pytest.approx(expected | {"step": 0, "head x step": 0}, abs=0.04)


@given(st.integers(2, 5), st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=2, max_size=9))
def test_agreement_is_that_of_counted_pairs(prompts, votes):
    classes = np.array(votes).T[:prompts]
    words = np.array(["full", "skip", "window", "diagonal"])[classes]
    shape = (prompts, 1, 1, len(votes))
    found = prompt_dependence(np.random.default_rng(0).random((*shape, 4)), words.reshape(shape))
    assert found.same == np.mean([len(set(column)) == 1 for column in words.T])
    pairs = [a == b for column in classes.T for a, b in itertools.combinations(column, 2)]
    flat = classes.ravel().tolist()
    chance = sum(a == b for a in flat for b in flat) / len(flat) ** 2
    assert found.same_by_chance == pytest.approx(sum((flat.count(c) / len(flat)) ** prompts for c in set(flat)))
    if chance == 1:
        assert math.isnan(found.kappa)
    else:
        assert found.kappa == pytest.approx((np.mean(pairs) - chance) / (1 - chance))


def gather(layers_of_prompt, tiling) -> Gathered:
    """Return what is gathered of heads' families per prompt and layer, at two steps."""
    gathered = Gathered()
    for prompt, layers in enumerate(layers_of_prompt):
        for layer, names in enumerate(layers):
            for step in (0.9, 0.3):
                qkv = planted_layer(tiling.grid, names, layer, prompt=10 * prompt + int(10 * step))
                gathered.add(f"prompt {prompt}", step, layer, evidence(*qkv, tiling, sample_rows(tiling, 48)))
    return gathered


LAYERS = [["diagonal", "multi-diagonal", "window", "full"], ["vertical stripe", "full", "skip", "diagonal"]]


def test_patterns_of_heads_and_patterns_of_prompts_are_told_apart():
    tiling = choose_tiling(RAGGED)
    heads = gather([LAYERS] * 3, tiling)
    found = heads.dependence()
    assert found.same == 1 and found.kappa == pytest.approx(1) and found.same_by_chance < 0.3
    assert found.variance["head"] > 0.98
    assert heads.classes(0.3).tolist() == [[TRUTH[name] for name in layer] for layer in LAYERS]
    # The same families in another order for every prompt.
    turned = [[names[i:] + names[:i] for names in LAYERS] for i in range(3)]
    found = gather(turned, tiling).dependence()
    assert found.same < 0.3 and found.kappa < 0.1
    assert found.variance["head x prompt"] > 0.5 > found.variance["head"]


def test_gathered_evidence_is_a_mean_and_survives_its_file(tmp_path):
    tiling = choose_tiling(RAGGED)
    samples = planted_layer(RAGGED, ["diagonal", "vertical stripe", "full"], 2, batch=4)
    whole, gathered = evidence(*samples, tiling), Gathered()
    for i in range(4):
        gathered.add("a" if i < 2 else "b", 0.5, 7, whole.sample(i))
    for name in MEASURED:
        np.testing.assert_allclose(getattr(gathered.means[0.5, 7], name), getattr(whole.mean(), name), rtol=1e-12)
    found, share, count = gathered.prompts["b", 0.5, 7]
    np.testing.assert_allclose(found, concentrations(whole)[2:].mean(0), atol=1e-12)
    np.testing.assert_allclose(share, whole.share[2:].mean(0))
    assert count == 2

    path = gathered.save(tmp_path / "made" / "evidence.npz")
    again = Gathered.load(path)
    assert again.counts == gathered.counts and list(tmp_path.joinpath("made").iterdir()) == [path]
    np.testing.assert_array_equal(again.classes(0.5), gathered.classes(0.5))
    for name in MEASURED:
        mine, saved = getattr(gathered.means[0.5, 7], name), getattr(again.means[0.5, 7], name)
        np.testing.assert_allclose(saved, mine, rtol=1e-3, atol=1e-7, err_msg=name)
    assert again.dependence() == gathered.dependence()
    again.add("b", 0.5, 7, whole.sample(0))
    assert again.counts[0.5, 7] == 5


def test_the_file_of_a_large_model_stays_small(tmp_path):
    grid = TokenGrid(21, 30, 52)
    tiling = choose_tiling(grid)
    q, k, v = (torch.randn(grid.tokens, 1, 8) for _ in range(3))
    one, gathered = evidence(q, k, v, tiling, sample_rows(tiling, 42)), Gathered()
    for layer in range(20):
        gathered.add("a", 0.5, layer, one)
    # 20 heads; 30 layers x 12 heads x 4 steps are 72 times as much.
    assert 72 * gathered.save(tmp_path / "e.npz").stat().st_size < 10 << 20


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no zip", None, "pickle", "other", "shape", "newer"])
def test_a_file_that_is_no_evidence_is_one_sentence(tmp_path, damage):
    tiling = choose_tiling(RAGGED)
    gathered = Gathered()
    gathered.add("a", 0.5, 0, evidence(*planted_layer(RAGGED, ["full"], 0), tiling))
    path = gathered.save(tmp_path / "evidence.npz")
    arrays = dict(np.load(path))
    if damage is None:
        path.write_bytes(path.read_bytes()[:-200])
    elif isinstance(damage, bytes):
        path.write_bytes(damage)
    elif damage == "pickle":
        np.savez(path, facts=np.array([{"kind": 1}], dtype=object))
    elif damage == "other":
        np.savez(path, weights=np.zeros(3))
    elif damage == "shape":
        np.savez(path, **(arrays | {"tiles": arrays["tiles"][..., :-1]}))
    else:
        facts = arrays["facts"].tobytes().replace(b'"version": 1', b'"version": 2')
        np.savez(path, **(arrays | {"facts": np.frombuffer(facts, dtype=np.uint8)}))
    with pytest.raises(EvidenceError) as caught:
        Gathered.load(path)
    text = str(caught.value)
    assert "evidence.npz" in text and text.endswith(".") and "\n" not in text
    if damage == "newer":
        assert "v2" in text


def test_no_damaged_byte_raises_anything_else(tmp_path):
    tiling = choose_tiling(TokenGrid(2, 4, 4), 8)
    gathered = Gathered()
    gathered.add("a", 0.5, 0, evidence(*planted_layer(TokenGrid(2, 4, 4), ["full"], 0), tiling))
    path = gathered.save(tmp_path / "evidence.npz")
    whole, random, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(200):
        data = bytearray(whole)
        data[random.integers(len(data))] = random.integers(256)
        path.write_bytes(data)
        try:
            Gathered.load(path)
        except EvidenceError:
            refused += 1
    assert refused > 100


def test_bad_input_is_one_sentence(tmp_path):
    tiling = choose_tiling(RAGGED)
    q, k, v = planted_layer(RAGGED, ["full", "diagonal"], 0)
    found = evidence(q, k, v, tiling)
    other = evidence(*planted_layer(TokenGrid(3, 7, 7), ["full", "full"], 0), choose_tiling(TokenGrid(3, 7, 7)))
    lacking = Gathered()
    lacking.add("a", 0.5, 0, found)
    lacking.add("a", 0.5, 1, found)
    lacking.add("b", 0.5, 0, found)
    cases = {
        "q has 457": lambda: evidence(q[:, 1:], k[:, 1:], v[:, 1:], tiling),
        "one shape": lambda: evidence(q, k[:, :, :1], v, tiling),
        "plain runs": lambda: evidence(q, k, v, run_tiling(RAGGED)),
        "rows are video tokens 3 to 452, got 0": lambda: evidence(q, k, v, tiling, np.arange(400)),
        "frame 4 has 0": lambda: evidence(q, k, v, tiling, np.arange(3, 300)),
        "list of token numbers": lambda: evidence(q, k, v, tiling, np.array([0.5])),
        "at least one row": lambda: sample_rows(tiling, 0),
        "got 1.5": lambda: stripe_candidates(found, tiling, 1.5),
        "got 0": lambda: stripe_candidates(found, tiling, 0.5, most=0),
        "measure it on this tiling": lambda: stripe_candidates(other, tiling, 0.5),
        "gather it apart": lambda: running_mean(found, other, 0.5),
        "sigma 0.5, layer 1": lacking.dependence,
        "two prompts": lambda: prompt_dependence(np.zeros((1, 1, 2, 2, 4)), np.zeros((1, 1, 2, 2))),
        "five axes": lambda: prompt_dependence(np.zeros((2, 2, 4)), np.zeros((2, 2))),
        "no evidence to save": lambda: Gathered().save(tmp_path / "x.npz"),
        "there is no file": lambda: Gathered.load(tmp_path / "y.npz"),
        "cannot be written": lambda: lacking.save("/dev/null/x.npz"),
    }
    for words, call in cases.items():
        with pytest.raises(EvidenceError, match=words) as caught:
            call()
        assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    with pytest.raises(EvidenceError):
        lacking.add("a", 0.5, 0, other)
    assert lacking.counts == {(0.5, 0): 2, (0.5, 1): 1}
    assert replace(found, power=found.power * np.nan).share.shape == (1, 2)
