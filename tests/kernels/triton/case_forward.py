"""The Triton forward in the interpreter, against float64 attention under a mask. Run by test_interpreted.py.

Tolerances, relative L2 unless said, with what these scenes gave:
* BF16 against exact attention on the same inputs, 4e-3 (2.4e-3): weights and outputs are rounded to 8 bits.
* FP8 against its own rule in float64, 1e-4 (5e-8; 4e-5 on peaked rows): the same rounded inputs and weights, so only
  float32 sums differ, and weights below 2**-14 of the largest, which may be rounded under an earlier maximum.
* FP8 against exact attention on the dequantized inputs, 0.03 (0.026): the weights' rounding to e4m3.
* FP8 against exact attention on the original inputs, 0.06 (0.053): all rounding, on N(0, 1). Its LSE, root mean square
  in log2 units, 0.03 (0.021); the largest single one depends on how few keys a row sees.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import interpreter
import pytest
import scene
import torch

interpreter.correct()

from fpsattention.kernels.attention import configs  # noqa: E402
from fpsattention.kernels.attention.triton_forward import forward_codes, mask_of  # noqa: E402

BF16_TOLERANCE = 4e-3
FP8_RULE_TOLERANCE = 1e-4
FP8_WEIGHTS_TOLERANCE = 0.03
FP8_TOLERANCE, FP8_LSE_TOLERANCE = 0.06, 0.03


def run_bf16(q, k, v, lay, lists, **options):
    return forward_codes(q, k, v, None, scene.spec(lay, lists), **options)


def run_codes(c, x, lists=None, form="e4m3", dtype=torch.float32, **options):
    """Run on the codes ``x``; an output in float32 shows more than one in bfloat16."""
    spec = scene.spec(c.lay, lists or c.lists, form, x.q_scale.shape[-1] == x.q.shape[-2])
    v = c.v if form == "int8" else c.v.to(dtype)
    return forward_codes(c.q.to(dtype), c.k, v, x, spec, **options)


def case(name: str) -> SimpleNamespace:
    """Return one scene: layout, lists, shape."""
    if name == "two patterns, uniform tiles":
        live, slots, batch, heads, dim = [60] * 5, 64, 1, 2, 128
        lists = scene.lists([scene.band(5, 1), scene.full(5)], [[0, 1]])
    elif name == "ragged, patterns per batch":
        live, slots, batch, heads, dim = [64, 1, 30, 17], 64, 2, 2, 128
        lists = scene.lists([scene.band(4, 1), scene.full(4), [[3], [], [0, 2], [1]]], [[0, 1], [2, 0]])
    elif name == "prefix and suffix tiles":
        # Tile 0 and the last one see all and are seen by all; the others see a neighbor.
        live, slots, batch, heads, dim = [5, 48, 48, 48, 13], 64, 1, 1, 64
        rows = [[0, 1, 2, 3, 4], [0, 1, 2, 4], [0, 2, 3, 4], [0, 2, 3, 4], [0, 1, 2, 3, 4]]
        lists = scene.lists([rows], [[0]])
    elif name == "128 slots":
        # Tile 2 leaves half of its slots dead: a whole block of keys without a live one.
        live, slots, batch, heads, dim = [120, 128, 40, 120], 128, 1, 1, 128
        lists = scene.lists([scene.band(4, 1)], [[0]])
    elif name == "runs, the last one short":
        live, slots, batch, heads, dim = [128, 128, 41], 128, 1, 2, 128
        lists = scene.lists([scene.full(3), [[], [2], [0, 2]]], [[0, 1]])
    elif name == "one odd tile at the end":
        # 60 of 64 rows everywhere but in the last tile, which is in some lists, alone in one and missing in others.
        live, slots, batch, heads, dim = [60, 60, 60, 60, 13], 64, 1, 2, 128
        lists = scene.lists([scene.full(5), [[0, 1], [4], [], [1, 2, 3], [0, 3, 4]]], [[0, 1]])
    elif name == "256 slots":
        live, slots, batch, heads, dim = [252, 252], 256, 1, 1, 64
        lists = scene.lists([scene.full(2)], [[0]])
    elif name == "32 slots":
        live, slots, batch, heads, dim = [30, 32, 7, 24, 30], 32, 1, 2, 64
        lists = scene.lists([scene.band(5, 1)], [[0, 0]])
    lay = scene.layout(live, max(live))
    q, k, v = scene.tensors(batch, lay.tokens, heads, dim)
    return SimpleNamespace(lay=lay, lists=lists, q=q, k=k, v=v, slots=slots, scale=dim**-0.5)


CASES = [
    "two patterns, uniform tiles",
    "ragged, patterns per batch",
    "prefix and suffix tiles",
    "128 slots",
    "runs, the last one short",
    "one odd tile at the end",
    "256 slots",
    "32 slots",
]


# Every way to launch: cards differ in descriptors, block sizes, paired tiles and where sums are made.
CARDS = [80, 89, 90, 100, 120]


def visible(c):
    return scene.masks(c.lay, c.lists, c.q.shape[0], c.q.shape[2])


@pytest.mark.parametrize("name", CASES)
def test_bf16_is_masked_attention(name):
    c = case(name)
    out, lse, rowmax = run_bf16(c.q, c.k, c.v, c.lay, c.lists)
    expected, expected_lse = scene.attention(c.q, c.k, c.v, visible(c), c.scale)
    assert out.shape == c.q.shape and out.dtype == c.q.dtype and out.is_contiguous()
    assert scene.error(out, expected) < BF16_TOLERANCE
    assert torch.allclose(lse.double(), expected_lse, atol=1e-4)
    seen = torch.isfinite(expected_lse)
    assert torch.equal(rowmax, rowmax.ceil()) and (rowmax[~seen] == 0).all()


@pytest.mark.parametrize("per_token", [True, False], ids=["token scales", "tile scales"])
@pytest.mark.parametrize("name", CASES)
def test_fp8_follows_its_rule(name, per_token):
    c = case(name)
    x = scene.quantize(c.lay, c.q, c.k, c.v, c.slots, per_token)
    out, lse, rowmax = run_codes(c, x)
    mask = visible(c)
    expected = scene.quantized_attention(x.q_back, x.k_back, x.v_back, mask, c.scale)
    assert scene.error(out, expected[0]) < FP8_RULE_TOLERANCE
    assert torch.allclose(lse.double(), expected[1], atol=1e-4)
    # A maximum within float32 rounding of an integer may be rounded up to the next one: none in these scenes.
    assert torch.equal(rowmax.double(), expected[2])
    dequantized, _ = scene.attention(x.q_back, x.k_back, x.v_back, mask, c.scale)
    assert scene.error(out, dequantized) < FP8_WEIGHTS_TOLERANCE
    exact, exact_lse = scene.attention(c.q, c.k, c.v, mask, c.scale)
    assert scene.error(out, exact) < FP8_TOLERANCE
    seen = torch.isfinite(exact_lse)
    assert (lse[seen] - exact_lse[seen]).square().mean().sqrt() < FP8_LSE_TOLERANCE


def test_outputs_follow_the_asked_type_and_statistics_are_optional():
    c = case("32 slots")
    out, lse, rowmax = run_bf16(c.q.half(), c.k.half(), c.v.half(), c.lay, c.lists, stats=False)
    expected, _ = scene.attention(c.q, c.k, c.v, visible(c), c.scale)
    assert out.dtype == torch.float16 and lse is None and rowmax is None
    assert scene.error(out, expected) < BF16_TOLERANCE
    x = scene.quantize(c.lay, c.q, c.k, c.v, c.slots, True)
    single, _, _ = run_codes(c, x)
    rounded, _, _ = run_codes(c, x, dtype=torch.bfloat16)
    assert torch.equal(rounded, single.bfloat16())


def test_16_slots_in_bf16():
    lay = scene.layout([12, 9, 12, 12], 12)
    lists = scene.lists([scene.band(4, 1)], [[0]])
    q, k, v = scene.tensors(1, lay.tokens, 1, 64)
    expected, _ = scene.attention(q, k, v, scene.masks(lay, lists, 1, 1), 0.125)
    assert scene.error(run_bf16(q, k, v, lay, lists)[0], expected) < BF16_TOLERANCE


def test_strided_inputs_and_wide_indices_give_the_same_bits():
    c = case("ragged, patterns per batch")
    expected = run_bf16(c.q, c.k, c.v, c.lay, c.lists)
    heads_first = c.q.transpose(1, 2).contiguous().transpose(1, 2)
    packed = torch.stack((c.k, c.v), dim=2).flatten(2, 3)  # (B, S, 2H, D)
    k, v = packed.chunk(2, dim=2)
    channels_apart = torch.stack((v, v), dim=-1)[..., 0]
    c.lay.index = c.lay.index.long()
    for value in (v, channels_apart):
        actual = run_bf16(heads_first, k, value, c.lay, c.lists)
        assert all(torch.equal(a, e) for a, e in zip(actual, expected))


def test_an_empty_list_gives_zeros_and_minus_infinity():
    c = case("ragged, patterns per batch")
    rows = c.lay.index[1, : c.lay.live[1]].long()  # tile 1 sees nothing under pattern 2: batch 1, head 0
    x = scene.quantize(c.lay, c.q, c.k, c.v, c.slots, False)
    for out, lse, rowmax in (run_bf16(c.q, c.k, c.v, c.lay, c.lists), run_codes(c, x)):
        assert (out[1, rows, 0] == 0).all()
        assert (lse[1, 0, rows] == -math.inf).all() and (rowmax[1, 0, rows] == 0).all()
        assert torch.isfinite(out).all()


def test_a_nan_stays_in_the_rows_that_see_it():
    c = case("two patterns, uniform tiles")
    token = int(c.lay.index[4, 3])
    touched = visible(c)[..., token].transpose(1, 2)  # (B, S, H)
    x = scene.quantize(c.lay, c.q, c.k, c.v, c.slots, True)
    for name in ("k", "v"):
        clean = run_bf16(c.q, c.k, c.v, c.lay, c.lists)[0]
        poisoned = {n: getattr(c, n).clone() for n in "qkv"}
        poisoned[name][:, token] = math.nan
        out = run_bf16(**poisoned, lay=c.lay, lists=c.lists)[0]
        assert out[touched].isnan().all() and torch.equal(out[~touched], clean[~touched])

        clean = run_codes(c, x)[0]
        bad = SimpleNamespace(**vars(x))
        codes = getattr(x, name).clone()
        row = 4 * c.slots + (3 if name == "k" else 5)  # V's slot 3 of every 16 lies at place 5
        codes.view(torch.uint8)[(slice(None), slice(None), row) if name == "k" else (..., row)] = 0x7F
        setattr(bad, name, codes)
        out = run_codes(c, bad)[0]
        assert out[touched].isnan().all() and torch.equal(out[~touched], clean[~touched])


def test_large_scores_stay_finite_and_right():
    c = case("two patterns, uniform tiles")
    q = c.q * 40  # scores spread over far more than 200 in log2
    expected, _ = scene.attention(q, c.k, c.v, visible(c), c.scale)
    assert scene.error(run_bf16(q, c.k, c.v, c.lay, c.lists)[0], expected) < BF16_TOLERANCE
    x = scene.quantize(c.lay, q, c.k, c.v, c.slots, True)
    out, lse, _ = run_codes(c, x)
    expected, _, rowmax = scene.quantized_attention(x.q_back, x.k_back, x.v_back, visible(c), c.scale)
    assert rowmax.max() > 200 and torch.isfinite(lse).all()
    assert scene.error(out, expected) < FP8_RULE_TOLERANCE


def test_the_order_of_a_list_does_not_matter():
    c = case("two patterns, uniform tiles")
    x = scene.quantize(c.lay, c.q * 4, c.k, c.v, c.slots, True)
    backwards = scene.lists([[row[::-1] for row in pattern] for pattern in c.lists.patterns], [[0, 1]])
    forth, back = run_codes(c, x)[0], run_codes(c, x, backwards)[0]
    assert scene.error(back, forth) < FP8_RULE_TOLERANCE


def test_dead_slots_weigh_nothing():
    c = case("ragged, patterns per batch")
    x = scene.quantize(c.lay, c.q, c.k, c.v, c.slots, True)
    clean = run_codes(c, x)
    dead = torch.arange(c.slots)[None, :] >= c.lay.live[:, None]
    for name, scale in (("q", x.q_scale), ("k", x.k_scale)):
        getattr(x, name).view(torch.uint8)[:, :, dead.flatten()] = 0x7E  # 448
        scale[:, :, dead.flatten()] = 1e4
    assert all(torch.equal(a, b) for a, b in zip(run_codes(c, x), clean))


@pytest.mark.parametrize("change", ["one tile removed", "shifted by one"])
def test_the_tolerance_notices_a_wrong_list(change):
    c = case("two patterns, uniform tiles")
    rows = [list(row) for row in c.lists.patterns[0]]
    if change == "one tile removed":
        rows[2].pop()
    else:
        rows = rows[1:] + rows[:1]
    wrong = scene.lists([rows, c.lists.patterns[1]], [[0, 1]])
    expected, _ = scene.attention(c.q, c.k, c.v, visible(c), c.scale)
    assert scene.error(run_bf16(c.q, c.k, c.v, c.lay, wrong)[0], expected) > 10 * BF16_TOLERANCE


@pytest.mark.parametrize("capability", CARDS)
@pytest.mark.parametrize("name", CASES)
def test_every_configuration_follows_the_rule(name, capability):
    c = case(name)
    kind, form = ("int8", "int8") if capability == 80 else ("fp8", "e4m3")
    x = scene.quantize(c.lay, c.q, c.k, c.v, c.slots, False, form)
    rule = scene.attention if form == "int8" else scene.quantized_attention
    expected = rule(x.q_back, x.k_back, x.v_back, visible(c), c.scale)
    mask, _ = mask_of(scene.spec(c.lay, c.lists, form), c.slots)
    for config in configs.candidates(kind, capability, c.slots, c.q.shape[-1], mask=mask):
        out, lse, _ = run_codes(
            c, x, form=form, config=config, dtype=torch.bfloat16 if form == "int8" else torch.float32
        )
        assert scene.error(out, expected[0]) < (BF16_TOLERANCE if form == "int8" else FP8_RULE_TOLERANCE)
        assert torch.allclose(lse.double(), expected[1], atol=1e-4)


@pytest.mark.parametrize("per_token", [True, False], ids=["token scales", "tile scales"])
def test_int8_is_closer_than_fp8(per_token):
    c = case("two patterns, uniform tiles")
    errors = {}
    for form in ("int8", "e4m3"):
        x = scene.quantize(c.lay, c.q, c.k, c.v, c.slots, per_token, form)
        out, _, _ = run_codes(c, x, form=form, dtype=torch.bfloat16)
        errors[form] = scene.error(out, scene.attention(c.q, c.k, c.v, visible(c), c.scale)[0])
    # Integers are even over a tile's range, and neither P nor V is rounded to 8 bits.
    assert errors["int8"] < 0.02 < errors["e4m3"] < FP8_TOLERANCE


def test_the_largest_integers_do_not_overflow():
    c = case("32 slots")
    x = scene.quantize(c.lay, torch.ones_like(c.q), torch.ones_like(c.k) * c.q.sign(), c.v, c.slots, False, "int8")
    assert x.q.max() == 127 and x.k.min() == -127
    out, _, _ = run_codes(c, x, form="int8", dtype=torch.bfloat16)
    expected, _ = scene.attention(x.q_back, x.k_back, c.v, visible(c), c.scale)
    assert scene.error(out, expected) < BF16_TOLERANCE


@pytest.mark.parametrize("form", ["none", "e4m3", "int8"])
def test_a_damaged_list_never_reads_out_of_bounds(form):
    """The interpreter reads real memory; every index is moved into range, so the result is that of the moved lists."""
    c = case("two patterns, uniform tiles")
    damaged = scene.lists(c.lists.patterns, [[0, 7]])
    damaged.ids[0, 1] = torch.tensor([-(2**31), 2**31 - 1, 3, 9, 9], dtype=torch.int32)
    damaged.count[1, 2] = 2**30
    moved = scene.lists(c.lists.patterns, [[0, 1]])
    moved.ids[0, 1] = torch.tensor([0, 4, 3, 4, 4], dtype=torch.int32)
    if form == "none":
        out, right = (run_bf16(c.q, c.k, c.v, c.lay, lists)[0] for lists in (damaged, moved))
    else:
        x = scene.quantize(c.lay, c.q, c.k, c.v, c.slots, False, form)
        out, right = (run_codes(c, x, lists, form, torch.bfloat16)[0] for lists in (damaged, moved))
    assert torch.isfinite(out).all() and torch.equal(out, right)


@pytest.mark.parametrize("width", range(1, 33))
def test_every_width_of_a_tile(width):
    lay = scene.layout([width, max(1, width - 1), width], width)
    lists = scene.lists([scene.band(3, 1)], [[0]])
    q, k, v = scene.tensors(1, lay.tokens, 1, 64)
    c = SimpleNamespace(lay=lay, lists=lists, q=q, k=k, v=v)
    x = scene.quantize(lay, q, k, v, 32, False)
    expected = scene.quantized_attention(x.q_back, x.k_back, x.v_back, scene.masks(lay, lists, 1, 1), 0.125)
    assert scene.error(run_codes(c, x)[0], expected[0]) < FP8_RULE_TOLERANCE
