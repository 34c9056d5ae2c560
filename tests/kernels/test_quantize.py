"""FP8 quantization: rounding against torch's own cast, scales against loops over tokens, and what rounding costs.

e4m3 keeps 3 mantissa bits: a number is off by up to 1/16 of its binade, uniformly, that is 2.4 % of its size in the
root mean square; numbers far below a group's largest are subnormal and lose more, hence bounds of 3 %.
"""

from __future__ import annotations

import math

import pytest
import torch
from fpsattention.kernels.attention import fps_attention
from fpsattention.kernels.grid import TokenGrid
from fpsattention.kernels.quantize.fp8 import (
    channel_scales,
    fake_quantize_,
    group_scales,
    quantize_tiles,
    round_e4m3_,
    to_tiles,
    token_mean,
    true_quantize,
)

from . import oracle

RAGGED = TokenGrid(3, 7, 9, prefix=5, suffix=13)
GRANULARITIES = ["token", "x1", "x2", "x4", "x8"]


def same_as_cast(x: torch.Tensor) -> None:
    expected = x.to(torch.float8_e4m3fn).float()
    rounded = round_e4m3_(x.clone())
    assert torch.equal(rounded.nan_to_num(nan=12345.0), expected.nan_to_num(nan=12345.0))


def test_rounding_of_all_codes_their_midpoints_and_neighbors():
    codes = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(torch.float8_e4m3fn).float()
    finite = codes[codes.isfinite()].sort().values.unique()
    middle = ((finite[1:].double() + finite[:-1].double()) / 2).float()
    exact = torch.cat([finite, middle])
    up, down = (torch.nextafter(exact, torch.full_like(exact, to)) for to in (math.inf, -math.inf))
    everything = torch.cat([exact, up, down])
    same_as_cast(everything[everything.abs() <= 448])
    same_as_cast(codes)


def test_rounding_of_every_float_of_a_binade_and_of_all_magnitudes():
    """Between powers of two the rounding of normal numbers repeats, so one binade of all 2^23 floats stands for all."""
    same_as_cast(torch.arange(0x3F800000, 0x40000000, dtype=torch.int32).view(torch.float32))
    # 448 down to the smallest float, and both sides of the change to subnormals at 2^-6.
    same_as_cast(torch.arange(0, 0x43E00001, 997, dtype=torch.int32).view(torch.float32))
    edge = int(torch.tensor(2.0**-6).view(torch.int32))
    same_as_cast(-torch.arange(edge - 100_000, edge + 100_000, dtype=torch.int32).view(torch.float32))


def test_rounding_keeps_nan_and_works_in_place_on_strided_views():
    x = torch.randn(6, 8)
    x[1, 2] = math.nan
    view = x.t()[::2]
    expected = view.contiguous().to(torch.float8_e4m3fn).float()
    assert round_e4m3_(view) is view
    assert torch.equal(view.nan_to_num(7.0), expected.nan_to_num(7.0)) and x[1, 2].isnan()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_scales_are_the_largest_of_each_group(granularity):
    plan = oracle.make_plan(f"fp8 {granularity} all 3 3", RAGGED, 2, slots=16)
    x = oracle.tensors(2, RAGGED.tokens, 2, 64, seed=1)[0]
    x[:, :, 1] *= 100
    tiled = to_tiles(x, plan.layout.index)
    scales = group_scales(tiled, granularity, plan.layout.cube, plan.layout.cubes)
    assert scales.shape == (*tiled.shape[:3], tiled.shape[3] if granularity == "token" else 1, 1)
    expected = oracle.token_scales(x, oracle.groups_of(plan)).transpose(1, 2)
    back = scales.expand(*tiled.shape[:4], 1).flatten(2, 3)
    slots = plan.layout.index.flatten()
    live = slots >= 0
    assert torch.equal(back[:, :, live], expected[:, :, slots[live]])


def test_granularities_differ_where_the_grid_has_more_tiles():
    grid = TokenGrid(9, 20, 18)
    plans = [oracle.make_plan(f"fp8 {granularity} 2 2 2", grid, 1, slots=16) for granularity in GRANULARITIES]
    groups = [len(oracle.groups_of(plan).unique()) for plan in plans]
    assert groups == sorted(groups, reverse=True) and len(set(groups)) == 5 and groups[-1] > 1


def test_tiles_hold_every_token_and_zeros():
    plan = oracle.make_plan("fp8 x1 all 3 3", RAGGED, 2, slots=16)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = oracle.tensors(2, RAGGED.tokens, 2, 64, dtype=dtype)[0]
        tiled = to_tiles(x, plan.layout.index)
        assert tiled.dtype == torch.float32 and tiled.is_contiguous()
        for tile, row in enumerate(plan.layout.index.tolist()):
            for slot, token in enumerate(row):
                expected = x[:, token].float() if token >= 0 else torch.zeros(2, 2, 64)
                assert torch.equal(tiled[:, :, tile, slot], expected)


def test_fake_holds_what_true_times_scale_holds():
    x = torch.randn(2, 3, 4, 5, 64, generator=torch.Generator().manual_seed(0)) * 3
    for granularity in ("token", "x1"):
        scale = group_scales(x, granularity, torch.arange(4), 4)
        codes = true_quantize(x, scale)
        assert codes.dtype == torch.float8_e4m3fn
        assert torch.equal(fake_quantize_(x.clone(), scale), codes.float() * scale)
        # The largest of every group is exact: nothing is clipped, nothing left unused.
        assert torch.equal(codes.float().abs().amax((-1, -2)), torch.full((2, 3, 4), 448.0))


def test_fake_quantization_of_strided_tensors_is_in_place():
    x = torch.randn(3, 2, 4, 5, 64).transpose(0, 1)
    expected = fake_quantize_(x.contiguous().clone(), torch.ones(1, 1, 1, 1, 1))
    assert torch.equal(fake_quantize_(x, torch.ones(1, 1, 1, 1, 1)), expected)


def test_zeros_stay_zeros():
    x = torch.zeros(1, 1, 3, 4, 64)
    x[0, 0, 1] = 1e-30
    scale = group_scales(x, "x1", torch.arange(3), 3)
    assert scale[0, 0, 0] == scale[0, 0, 2] == 1.0
    assert torch.equal(fake_quantize_(x.clone(), scale)[0, 0, [0, 2]], x[0, 0, [0, 2]])
    assert torch.equal(channel_scales(torch.zeros(1, 1, 3, 4, 64)), torch.ones(1, 1, 1, 1, 64))


def test_values_have_a_scale_per_channel_over_all_tokens():
    v = torch.randn(2, 3, 4, 5, 64)
    scales = channel_scales(v)
    assert scales.shape == (2, 3, 1, 1, 64)
    for b in range(2):
        for h in range(3):
            for d in range(64):
                assert scales[b, h, 0, 0, d] == v[b, h, :, :, d].abs().max() / 448.0


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_rounding_a_normal_tensor_costs_less_than_3_percent(granularity):
    plan = oracle.make_plan(f"fp8 {granularity} all 3 3", RAGGED, 2, slots=16)
    tiled = to_tiles(oracle.tensors(1, RAGGED.tokens, 2, 128)[0], plan.layout.index)
    rounded = fake_quantize_(tiled.clone(), group_scales(tiled, granularity, plan.layout.cube, plan.layout.cubes))
    assert 0.015 < oracle.error(rounded, tiled) < 0.03


def test_the_mean_is_of_all_tokens_and_leaves_broken_ones_alone():
    k = torch.randn(2, 11, 3, 64)
    assert torch.allclose(token_mean(k)[:, :, 0, 0], k.double().mean(1).float(), atol=1e-6)
    half = k.half() * 3000
    assert token_mean(half).isfinite().all() and token_mean(half).dtype == torch.float32
    k[0, 4, 1, 7] = math.nan
    mean = token_mean(k)
    assert mean[0, 1, 0, 0, 7] == 0.0 and mean.isfinite().all()


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_one_broken_number_does_not_spread_over_its_cube(broken):
    plan = oracle.make_plan("fp8 x2 all 3 3", RAGGED, 2, slots=16)
    tiled = to_tiles(oracle.tensors(1, RAGGED.tokens, 2, 64)[0], plan.layout.index)
    tiled[0, 0, 3, 0, 5] = broken
    scales = group_scales(tiled, "x2", plan.layout.cube, plan.layout.cubes)
    assert scales.isfinite().all()
    rounded = fake_quantize_(tiled.clone(), scales)
    assert (~rounded.isfinite()).sum() == (1 if math.isnan(broken) else 0)


def output_error(plan, q, k, v) -> float:
    """Return the error of the plan's attention against exact attention over the same lists."""
    expected = oracle.exact(*(x.double() for x in (q, k, v)), oracle.visible(plan, *q.shape[0:3:2]))
    return oracle.error(fps_attention(q, k, v, plan), expected)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_attention_in_fp8_is_within_6_percent(granularity):
    """Rounding of Q, K, V and P together, on N(0, 1), where attention is flat and averages little signal."""
    plan = oracle.make_plan(f"fp8 {granularity} all 4 6", RAGGED, 2, slots=16)
    q, k, v, _ = oracle.tensors(1, RAGGED.tokens, 2, 128)
    assert output_error(plan, q, k, v) < 0.06


def test_smoothing_pays_where_keys_share_an_offset():
    q, k, v, _ = oracle.tensors(1, RAGGED.tokens, 2, 128, std=1.0)
    k = k + 5 * torch.randn(1, 1, 2, 128, generator=torch.Generator().manual_seed(3))
    on = output_error(oracle.make_plan("fp8 x1 all 4 6", RAGGED, 2, slots=16), q, k, v)
    off = output_error(oracle.make_plan("fp8 x1 all 4 6", RAGGED, 2, slots=16, smooth_k=False), q, k, v)
    assert on < 0.11 and off > 1.5 * on


def test_an_outlier_channel_of_v_costs_the_others_nothing():
    plan = oracle.make_plan("fp8 x1 all 4 6", RAGGED, 2, slots=16)
    q, k, v, _ = oracle.tensors(1, RAGGED.tokens, 2, 128)
    plain = fps_attention(q, k, v, plan)
    v[..., 17] *= 20
    rest = [channel for channel in range(128) if channel != 17]
    assert torch.equal(fps_attention(q, k, v, plan)[..., rest], plain[..., rest])


def test_integers_leave_values_alone():
    plan = oracle.make_plan("fp8 x2 all 3 3", RAGGED, 2, slots=16)
    q, k, v, _ = oracle.tensors(1, RAGGED.tokens, 2, 64)
    layout = plan.layout
    q8, _, v8, q_scale, _, v_scale = quantize_tiles(
        q, k, v, layout.index, granularity="x2", cube=layout.cube, cubes=layout.cubes, smooth_k=True, form="int8"
    )
    assert q8.dtype == torch.int8 and v8 is None and v_scale is None
    slots = layout.index.flatten()
    back = (q8.unflatten(2, layout.index.shape) * q_scale[..., None, None]).flatten(2, 3)[:, :, slots >= 0]
    assert oracle.error(back, q.transpose(1, 2)[:, :, slots[slots >= 0]]) < 0.02


@pytest.mark.parametrize("granularity", ["token", "x2"])
def test_kernels_read_the_same_numbers(granularity):
    """What an FP8 kernel gets, times its scales, is what the reference computes with."""
    plan = oracle.make_plan(f"fp8 {granularity} all 3 3", RAGGED, 2, slots=16)
    q, k, v, _ = oracle.tensors(2, RAGGED.tokens, 2, 64)
    layout = plan.layout
    index = torch.nn.functional.pad(layout.index, (0, 32 - layout.index.shape[1]), value=-1)
    q8, k8, v8, q_scale, k_scale, v_scale = quantize_tiles(
        q, k, v, index, granularity=granularity, cube=layout.cube, cubes=layout.cubes, smooth_k=True
    )
    tiles = len(index)
    assert q8.shape == k8.shape == (2, 2, tiles * 32, 64) and v8.shape == (2, 2, 64, tiles * 32)
    assert q8.dtype == k8.dtype == v8.dtype == torch.float8_e4m3fn and v8.is_contiguous()
    assert q_scale.shape == ((2, 2, tiles * 32) if granularity == "token" else (2, 2, tiles))
    slots = index.flatten()
    for codes, scale, source in ((q8, q_scale, q), (k8, k_scale, k - k.mean(1, keepdim=True))):
        each = scale if granularity == "token" else scale.repeat_interleave(32, 2)
        assert (codes.float()[:, :, slots < 0] == 0).all()
        back = (codes.float() * each[..., None])[:, :, slots >= 0]
        expected = source.transpose(1, 2)[:, :, slots[slots >= 0]]
        assert oracle.error(back, expected) < 0.03
    order = torch.empty(16, dtype=torch.long)
    for high in range(2):
        for pair in range(4):
            for low in range(2):
                order[8 * high + 2 * pair + low] = 4 * pair + 2 * high + low
    natural = v8.float().unflatten(-1, (-1, 16))[..., order].flatten(-2)
    assert (natural[..., slots < 0] == 0).all()
    back = (natural * v_scale[..., None])[..., slots >= 0]
    assert oracle.error(back, v.permute(0, 2, 3, 1)[..., slots[slots >= 0]]) < 0.03


@pytest.mark.parametrize("broken", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("granularity", ["x1", "x2"])
def test_one_broken_number_spoils_no_scale(granularity, broken):
    """The scales of a tile or cube, and of a channel of V, are those of the numbers that are finite."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 4, 8, 16, generator=generator)
    cube = torch.tensor([0, 0, 1, 1]) if granularity == "x2" else torch.arange(4)
    without, spoiled = x.clone(), x.clone()
    without[0, 1, 2, 3, 5], spoiled[0, 1, 2, 3, 5] = 0.0, broken
    cubes = int(cube.max()) + 1
    assert torch.equal(group_scales(spoiled, granularity, cube, cubes), group_scales(without, granularity, cube, cubes))
    assert torch.equal(channel_scales(spoiled), channel_scales(without))
