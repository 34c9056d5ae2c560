"""The reference against attention written from its definition: float64 loops, and a dense oracle with autograd.

Bounds. Sparsity alone is float32 arithmetic: 1e-5 relative L2, and 1e-6 was seen. FP8 is compared with the oracle of
the same rounding at 1e-5 too, but a score that is off by 1e-7 can push one weight over a rounding tie, and that single
weight then differs by 1/16: enough to fail. So these tests look for inputs that keep clear of every tie (``TIE``, ten
times what float32 loses), which small problems with logits of unit size have; larger ones get a looser bound.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from fpsattention.kernels.attention import fps_attention, make_spec
from fpsattention.kernels.attention.op import attention_forward
from fpsattention.kernels.grid import TokenGrid

from . import oracle

TIGHT = 1e-5
TIE = 3e-6
SMALL = TokenGrid(3, 3, 5, prefix=3, suffix=2)
RAGGED = TokenGrid(3, 7, 9, prefix=5, suffix=13)


def forward(q, k, v, plan):
    """Return the op's ``(out, lse, rowmax)``."""
    spec = make_spec(plan, plan.lists, "reference")
    return attention_forward(q, k, v, *spec.tensors, *spec.scalars, "reference")


def gradients(function, q, k, v, grad):
    """Return ``out, dq, dk, dv`` of ``function(q, k, v)``."""
    inputs = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out = function(*inputs)
    return (out.detach(), *torch.autograd.grad(out, inputs, grad.to(out.dtype)))


def clear_of_ties(plan, batch, heads, dim, std=1.0):
    """Return inputs ``(q, k, v, grad)`` on which no number of the FP8 rule comes near a rounding tie."""
    for seed in range(200):
        q, k, v, grad = oracle.tensors(batch, plan.grid.tokens, heads, dim, seed, std)
        if oracle.fp8_attention(q, k, v, plan)[3] > TIE:
            return q, k, v, grad
    raise AssertionError("no inputs clear of ties; make the problem smaller")


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("window", ["all 4 3", "2 3 3", "1 1 1"])
def test_sparsity_alone_is_exact(window, dim):
    plan = oracle.make_plan(f"bf16 - {window}", RAGGED, 2, slots=16)
    q, k, v, grad = oracle.tensors(2, RAGGED.tokens, 2, dim)
    seen = oracle.visible(plan, 2, 2)
    out, lse, rowmax = forward(q, k, v, plan)
    expected_out, expected_lse = oracle.per_query(q, k, v, seen)
    assert oracle.error(out, expected_out) < TIGHT and oracle.error(lse, expected_lse) < TIGHT
    scores = torch.einsum("bshd,bthd->bhst", q, k).masked_fill(~seen, -math.inf) / (math.sqrt(dim) * math.log(2))
    assert torch.allclose(rowmax, scores.amax(-1), atol=1e-4)
    ours = gradients(lambda *x: fps_attention(*x, plan), q, k, v, grad)
    for a, b in zip(ours, gradients(lambda *x: oracle.exact(*x, seen), *(x.double() for x in (q, k, v)), grad)):
        assert oracle.error(a, b) < TIGHT


@pytest.mark.parametrize("window", ["all all all", "3 7 9", "99 99 100%"])
def test_a_window_over_everything_is_dense_attention(window):
    plan = oracle.make_plan(f"bf16 - {window}", RAGGED, 2, slots=16)
    assert plan.density == 1.0
    q, k, v, grad = oracle.tensors(1, RAGGED.tokens, 2, 128)

    def dense(q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    ours = gradients(lambda *x: fps_attention(*x, plan), q, k, v, grad)
    for a, b in zip(ours, gradients(dense, q, k, v, grad)):
        assert oracle.error(a, b) < 2e-6


FP8_CASES = {
    "token": ("token all 2 3", SMALL, 8, True),
    "x1": ("x1 all 2 3", SMALL, 8, True),
    "x1-unsmoothed": ("x1 1 2 3", SMALL, 8, False),
    "x2": ("x2 2 2 3", TokenGrid(3, 4, 5), 6, True),
    "x4": ("x4 all 1 3", TokenGrid(1, 3, 11, 0, 5), 3, True),
    "runs": ("x1 all all all", TokenGrid(2, 4, 5, 3, 0), 64, True),
    "ragged": ("x1 all 40% 60%", TokenGrid(2, 3, 7, 2, 3), 6, True),
}


@pytest.mark.parametrize("case", FP8_CASES)
def test_fp8_and_its_gradient_are_those_of_the_straight_through_oracle(case):
    row, grid, slots, smooth = FP8_CASES[case]
    plan = oracle.make_plan(f"fp8 {row}", grid, 2, slots=slots, smooth_k=smooth)
    q, k, v, grad = clear_of_ties(plan, 1, 2, 64)
    _, lse, rowmax = forward(q, k, v, plan)
    _, expected_lse, expected_rowmax, _ = oracle.fp8_attention(q, k, v, plan)
    assert torch.equal(rowmax.double(), expected_rowmax) and oracle.error(lse, expected_lse) < TIGHT
    ours = gradients(lambda *x: fps_attention(*x, plan), q, k, v, grad)
    expected = gradients(lambda *x: oracle.fp8_attention(*x, plan)[0], *(x.double() for x in (q, k, v)), grad)
    for name, a, b in zip(("out", "dq", "dk", "dv"), ours, expected):
        assert oracle.error(a, b) < TIGHT, name


@pytest.mark.parametrize("case", ["token", "x1", "x1-unsmoothed", "x2"])
def test_int8_and_its_gradient_are_those_of_the_straight_through_oracle(case):
    row, grid, slots, smooth = FP8_CASES[case]
    plan = oracle.make_plan(f"fp8 {row}", grid, 2, slots=slots, smooth_k=smooth)
    for seed in range(100):
        q, k, v, grad = oracle.tensors(1, grid.tokens, 2, 64, seed=seed)
        if oracle.int8_attention(q, k, v, plan)[1] > 1e-4:
            break
    spec = dataclasses.replace(make_spec(plan, plan.lists, "reference"), format="int8")

    def ours(q, k, v):
        return attention_forward(q, k, v, *spec.tensors, *spec.scalars, "reference")[0]

    expected = gradients(lambda *x: oracle.int8_attention(*x, plan)[0], *(x.double() for x in (q, k, v)), grad)
    for name, a, b in zip(("out", "dq", "dk", "dv"), gradients(ours, q, k, v, grad), expected):
        assert oracle.error(a, b) < TIGHT, name


@pytest.mark.parametrize("std", [1.0, 8.0])
def test_fp8_on_a_larger_problem_differs_by_single_roundings(std):
    plan = oracle.make_plan("fp8 x2 all 4 6", RAGGED, 2, slots=16)
    q, k, v, grad = oracle.tensors(2, RAGGED.tokens, 2, 128, std=std)
    ours = gradients(lambda *x: fps_attention(*x, plan), q, k, v, grad)
    expected = gradients(lambda *x: oracle.fp8_attention(*x, plan)[0], *(x.double() for x in (q, k, v)), grad)
    for a, b in zip(ours, expected):
        assert oracle.error(a, b) < 1e-3


def test_the_gradient_of_sparsity_alone_is_the_slope():
    """Central differences in float32, along random directions; the oracle above is exact, this one is independent."""
    plan = oracle.make_plan("bf16 - all 2 3", SMALL, 1, slots=8)
    q, k, v, grad = oracle.tensors(1, SMALL.tokens, 1, 64)
    _, *grads = gradients(lambda *x: fps_attention(*x, plan), q, k, v, grad)
    for i in range(3):
        direction = torch.randn(q.shape, generator=torch.Generator().manual_seed(i))
        step = 1e-2 * direction
        ends = []
        for sign in (1, -1):
            moved = [x + sign * step if j == i else x for j, x in enumerate((q, k, v))]
            ends.append((fps_attention(*moved, plan).double() * grad).sum())
        slope = float(ends[0] - ends[1]) / 2e-2
        assert slope == pytest.approx(float((grads[i].double() * direction).sum()), rel=2e-3, abs=2e-3)


def test_heads_and_samples_follow_their_own_patterns():
    plan = oracle.make_plan("fp8 x1 all 2 3", TokenGrid(2, 3, 5, 2), 3, slots=6)
    tiles = plan.tiling.count
    masks = oracle.random_masks(tiles, 3, 0.4, seed=1)
    masks[2] = False
    for heads in ([[0, 1, 0]], [[0, 1, 2], [1, 2, 0]]):
        patterned = oracle.with_masks(plan, masks, heads)
        q, k, v, grad = clear_of_ties(patterned, 2, 3, 64)
        ours = gradients(lambda *x, p=patterned: fps_attention(*x, p), q, k, v, grad)
        doubled = [x.double() for x in (q, k, v)]
        expected = gradients(lambda *x, p=patterned: oracle.fp8_attention(*x, p)[0], *doubled, grad)
        for a, b in zip(ours, expected):
            assert oracle.error(a, b) < TIGHT


@pytest.mark.parametrize("row", ["bf16 -", "fp8 x1"])
def test_what_sees_nothing_is_zero_and_gets_no_gradient(row):
    plan = oracle.make_plan(f"{row} all 2 3", RAGGED, 2, slots=16)
    tiles = plan.tiling.count
    masks = np.zeros((2, tiles, tiles), dtype=bool)
    # Head 0 skips; of head 1 the first tile sees nothing, and the last is seen by none. The first tile is ragged: its
    # tokens' statistics must not reach the dead rows of others.
    masks[1, 1:, :-1] = True
    plan = oracle.with_masks(plan, masks, [[0, 1]])
    q, k, v, grad = oracle.tensors(1, RAGGED.tokens, 2, 64)
    out, lse, rowmax = forward(q, k, v, plan)
    _, dq, dk, dv = gradients(lambda *x: fps_attention(*x, plan), q, k, v, grad)
    seen = oracle.visible(plan, 1, 2)
    blind, unseen = ~seen.any(-1), ~seen.any(-2)
    assert blind[0, 0].all() and blind[0, 1].any() and not blind[0, 1].all() and unseen[0, 1].any()
    for x, where in ((out, blind), (dq, blind), (dk, unseen), (dv, unseen)):
        assert (x.transpose(1, 2)[where] == 0).all() and x.isfinite().all()
        assert (x.transpose(1, 2)[~where] != 0).any(-1).all()
    assert (lse[blind] == -math.inf).all() and (rowmax[blind] == 0).all() and lse[~blind].isfinite().all()
    expected = gradients(lambda *x: oracle.exact(*x, seen), q, k, v, grad)
    bound = TIGHT if row == "bf16 -" else 0.08
    for a, b in zip((out, dq, dk, dv), expected):
        assert oracle.error(a, b) < bound


@pytest.mark.parametrize("row", ["bf16 -", "fp8 token", "fp8 x1"])
@pytest.mark.parametrize("broken", ["q", "k", "v"])
def test_nan_stays_with_the_rows_that_see_it(broken, row):
    grid = TokenGrid(2, 6, 10, prefix=5)
    plan = oracle.make_plan(f"{row} all 2 2", grid, 2, slots=8)
    tiles, token = plan.tiling.count, 40
    masks = np.eye(tiles, dtype=bool) | np.eye(tiles, k=1, dtype=bool)
    plan = oracle.with_masks(plan, masks[None], [[0, 0]])
    q, k, v, grad = oracle.tensors(1, grid.tokens, 2, 64)
    whole = fps_attention(q, k, v, plan)
    {"q": q, "k": k, "v": v}[broken][0, token, 1] = math.nan
    seen = oracle.visible(plan, 1, 2)
    reached = torch.zeros(1, 2, grid.tokens, dtype=torch.bool)
    if broken == "q":
        reached[0, 1, token] = True
    else:
        reached[0, 1] = seen[0, 1, :, token]
    out, *grads = gradients(lambda *x: fps_attention(*x, plan), q, k, v, grad)
    out = out.transpose(1, 2)
    assert out[reached].isnan().any(-1).all() and out[~reached].isfinite().all()
    # The other heads do not notice; within the head only the unsmoothed mean and a wider scale change the rounding.
    assert torch.equal(out[0, 0], whole.transpose(1, 2)[0, 0])
    assert oracle.error(out[~reached], whole.transpose(1, 2)[~reached]) < 0.1
    # A gradient is broken only where the row that it comes from sees the broken token.
    keys = (reached[..., None] & seen).any(-2)
    for x, broken_rows in zip(grads, (reached, keys, keys)):
        assert x.transpose(1, 2)[~broken_rows].isfinite().all()


@pytest.mark.parametrize("row", ["bf16 -", "fp8 x1", "fp8 token"])
def test_large_logits_stay_finite(row):
    plan = oracle.make_plan(f"{row} all 3 5", RAGGED, 2, slots=16)
    for std in (8.0, 60.0):
        q, k, v, grad = oracle.tensors(1, RAGGED.tokens, 2, 128, std=std)
        scores = torch.einsum("bshd,bthd->bhst", q, k) / math.sqrt(128)
        assert scores.abs().max() > (30 if std == 8.0 else 200)
        for result in gradients(lambda *x: fps_attention(*x, plan), q, k, v, grad):
            assert result.isfinite().all()
        # Nearly one-hot rows turn the rounding of Q and K into other winners; the values stay a convex mixture.
        assert fps_attention(q, k, v, plan).abs().max() <= v.abs().max() * 1.07


@pytest.mark.parametrize("offset", [-300.0, 300.0])
def test_dead_rows_of_a_ragged_tile_do_not_overflow(offset):
    """All scores of a row may be far below zero, where dead rows, whose score is zero, would be huge."""
    plan = oracle.make_plan("bf16 - all 3 5", RAGGED, 1, slots=16)
    assert (plan.layout.index < 0).any()
    q, k, v, grad = oracle.tensors(1, RAGGED.tokens, 1, 64)
    k = k * 0.01 + 1.0
    q = q * 0.01 + offset * math.log(2) / math.sqrt(64)
    ours = gradients(lambda *x: fps_attention(*x, plan), q, k, v, grad)
    doubled = (x.double() for x in (q, k, v))
    expected = gradients(lambda *x: oracle.exact(*x, oracle.visible(plan, 1, 1)), *doubled, grad)
    for a, b in zip(ours, expected):
        assert oracle.error(a, b) < 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("row", ["bf16 -", "fp8 x1"])
def test_half_precision_differs_by_the_rounding_of_its_output(row, dtype):
    plan = oracle.make_plan(f"{row} all 3 5", RAGGED, 2, slots=16)
    q, k, v, grad = oracle.tensors(1, RAGGED.tokens, 2, 128, dtype=dtype)
    ours = gradients(lambda *x: fps_attention(*x, plan), q, k, v, grad)
    full = gradients(lambda *x: fps_attention(*x, plan), *(x.float() for x in (q, k, v)), grad)
    for a, b in zip(ours, full):
        assert a.dtype == dtype and oracle.error(a, b) < (4e-3 if dtype == torch.bfloat16 else 5e-4)


def test_strides_do_not_matter():
    plan = oracle.make_plan("fp8 x1 all 3 5", RAGGED, 2, slots=16)
    q, k, v, grad = oracle.tensors(2, RAGGED.tokens, 2, 64)
    expected = gradients(lambda *x: fps_attention(*x, plan), q, k, v, grad)
    fused = torch.stack([q, k, v], dim=3).requires_grad_()
    out = fps_attention(*fused.unbind(3), plan)
    assert out.is_contiguous() and torch.equal(out, expected[0])
    # Heads first, as most models hold them, and a gradient that is a broadcast view.
    views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    assert torch.equal(fps_attention(*views, plan), expected[0])
    out.backward(grad.transpose(1, 2).contiguous().transpose(1, 2))
    for a, b in zip(fused.grad.unbind(3), expected[1:]):
        assert torch.equal(a, b)
    assert torch.autograd.grad(fps_attention(*fused.unbind(3), plan).sum(), fused)[0].isfinite().all()


@pytest.mark.parametrize("row", ["bf16 -", "fp8 x1"])
def test_the_order_of_a_list_hardly_matters(row):
    """Online selectors list tiles as they find them; also a full list, which has a short cut."""
    for window in ("all 3 5", "99 99 99"):
        plan = oracle.make_plan(f"{row} {window}", RAGGED, 2, slots=16)
        ids = plan.lists.ids.clone()
        for i, n in enumerate(plan.lists.count[0].tolist()):
            ids[0, i, :n] = ids[0, i, torch.randperm(n, generator=torch.Generator().manual_seed(i))]
        shuffled = dataclasses.replace(plan, lists=dataclasses.replace(plan.lists, ids=ids))
        q, k, v, grad = oracle.tensors(1, RAGGED.tokens, 2, 128)
        a = gradients(lambda *x, p=plan: fps_attention(*x, p), q, k, v, grad)
        b = gradients(lambda *x, p=shuffled: fps_attention(*x, p), q, k, v, grad)
        for x, y in zip(a, b):
            assert oracle.error(x, y) < (2e-6 if row == "bf16 -" else 1e-3)


def test_one_wrong_tile_fails_the_bounds():
    """What the bounds of this file are worth: the smallest mistake in a list stands far above them."""
    grid = TokenGrid(4, 12, 16)
    plan = oracle.make_plan("bf16 - all 9 12", grid, 1, slots=16)
    q, k, v, grad = oracle.tensors(1, grid.tokens, 1, 128)
    expected = gradients(lambda *x: oracle.exact(*x, oracle.visible(plan, 1, 1)), q, k, v, grad)
    lists = plan.lists
    tile = lists.ids.shape[1] // 2
    fewer, shifted = lists.count.clone(), lists.ids.clone()
    fewer[0, tile] -= 1
    shifted[0, tile, :] = (shifted[0, tile, :] + 1) % plan.tiling.count
    for mutated in ({"count": fewer}, {"ids": shifted}):
        wrong = dataclasses.replace(plan, lists=dataclasses.replace(lists, **mutated))
        ours = gradients(lambda *x, p=wrong: fps_attention(*x, p), q, k, v, grad)
        assert min(oracle.error(a, b) for a, b in zip(ours, expected)) > 100 * TIGHT
