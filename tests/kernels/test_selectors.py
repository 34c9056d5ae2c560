"""The selector interface: a static selector per head and layer and an online one, without a changed signature."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
from fpsattention.kernels import selectors
from fpsattention.kernels.attention import fps_attention
from fpsattention.kernels.grid import TokenGrid
from fpsattention.kernels.patterns import Full, Skip, Window, density
from fpsattention.kernels.plan import BlockLists, Plans, attention_work, clear_plans
from fpsattention.kernels.schedule import Schedule, ScheduleError

from . import oracle

GRID = TokenGrid(2, 6, 8, prefix=3)
HEADS = 3


class PerHead:
    """Each head has a pattern of its own, and each layer another order of them."""

    online = False
    per_layer = True

    def __init__(self, phase):
        self.extent = int(phase.selector.split()[1])

    def patterns(self, tiling, heads, layer):
        patterns = [Full(), Skip(), Window(None, self.extent, None)]
        return patterns, ((np.arange(heads) + layer) % 3).astype(np.int32)[None]


class BestTiles:
    """Each query tile sees the key tiles whose mean key fits its mean query best: device only, fixed shapes."""

    online = True
    per_layer = False

    def __init__(self, phase):
        self.share = float(phase.selector.split()[1])

    def select(self, q, k, v, plan):
        index = plan.layout.index
        live = (index >= 0).float()
        sums = [(x.float()[:, index.clamp_min(0)] * live[..., None, None]).sum(2) for x in (q, k)]
        means = [total / live.sum(1)[:, None, None] for total in sums]
        scores = torch.einsum("bihd,bjhd->bhij", *means).flatten(0, 1)
        tiles = scores.shape[-1]
        keep = max(1, round(tiles * self.share))
        ids = scores.topk(keep, dim=-1).indices.int()
        mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(2, ids.long(), True)
        by_key = mask.transpose(1, 2).int()
        heads = torch.arange(len(scores), dtype=torch.int32, device=q.device).view(q.shape[0], q.shape[2])
        return BlockLists(
            ids,
            torch.full_like(ids[..., 0], keep),
            heads,
            by_key.argsort(dim=-1, descending=True, stable=True).int(),
            by_key.sum(-1, dtype=torch.int32),
        )


@pytest.fixture
def toys(monkeypatch):
    """Register both selectors as a new file in the selectors' folder would."""
    for word, cls in (("toyheads", PerHead), ("toybest", BestTiles)):
        module = types.ModuleType(f"{selectors.__name__}.{word}")
        module.build = cls
        monkeypatch.setitem(sys.modules, module.__name__, module)
        arguments = (selectors.Argument("number", 0.0, 99.0, "0.5"),)
        made = selectors.Word(word, arguments, per_layer=cls.per_layer, online=cls.online)
        monkeypatch.setitem(selectors.SELECTORS, word, made)
    yield
    clear_plans()


def test_a_selector_is_a_word_in_the_schedule(toys):
    schedule = Schedule.parse("0.5 dense\n0 fp8 x1 toybest 0.5 ")
    assert schedule.phases[1].selector == "toybest 0.5" and schedule.phases[1].window is None
    assert Schedule.parse(schedule.format()) == Schedule.parse(schedule.to_json()) == schedule
    assert not schedule.phases[1].is_full
    with pytest.raises(ScheduleError, match=r"column 10: 'toy' is no window; .*toybest, toyheads"):
        Schedule.parse("0 fp8 x1 toy 3")


@pytest.mark.parametrize("row", ["bf16 -", "fp8 x1"])
def test_a_static_selector_per_head_and_layer(toys, row):
    plans = Plans(Schedule.parse(f"0 {row} toyheads 2"), GRID, HEADS, slots=8)
    q, k, v, _ = oracle.tensors(2, GRID.tokens, HEADS, 64)
    for layer in (0, 1):
        plan = plans.at(0.3, layer)
        assert plan.selector is None and plans.at(0.2, layer) is plan and plans.at(0.3, 1 - layer) is not plan
        window = density(Window(None, 2, None).mask(plan.tiling), plan.tiling.live)
        assert plan.density == plans.density(0.3, layer) == pytest.approx((1 + 0 + window) / 3)
        seen = oracle.visible(plan, 2, HEADS)
        skipped = {0: 1, 1: 0}[layer]
        assert not seen[:, skipped].any() and seen[:, (skipped + 2) % 3].all()
        out = fps_attention(q, k, v, plan)
        expected = oracle.exact(q, k, v, seen)
        assert (out[:, :, skipped] == 0).all()
        assert oracle.error(out, expected) < (1e-5 if row == "bf16 -" else 0.08)


@pytest.mark.parametrize("row", ["bf16 -", "fp8 x1"])
def test_an_online_selector_makes_lists_in_every_call(toys, row):
    schedule = Schedule.parse(f"0 {row} toybest 0.3")
    plans = Plans(schedule, GRID, HEADS, slots=8)
    plan = plans.at(0.3)
    assert plan.lists is None and plan.density is None and plans.describe(0.3)["window"] == "toybest 0.3"
    assert attention_work(schedule, GRID, [0.5]) is None
    q, k, v, grad = oracle.tensors(2, GRID.tokens, HEADS, 64, std=3.0)
    tiles = plan.tiling.count
    lists = plan.lists_for(q, k, v)
    assert lists.pattern_of_head.tolist() == [[0, 1, 2], [3, 4, 5]] and lists.ids.shape == (
        6,
        tiles,
        round(tiles * 0.3),
    )
    made = oracle.with_lists(plan, lists)
    seen = oracle.visible(made, 2, HEADS)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    out = fps_attention(*inputs, plan)
    expected = oracle.exact(*inputs, seen)
    grads, expected_grads = (torch.autograd.grad(o, inputs, grad) for o in (out, expected))
    for a, b in zip((out, *grads), (expected, *expected_grads)):
        assert oracle.error(a, b) < (1e-5 if row == "bf16 -" else 0.12)
    # Other queries, other lists.
    assert not torch.equal(plan.lists_for(q.flip(1), k, v).ids, lists.ids)


def test_an_online_selector_is_traced_with_the_call(toys):
    plan = Plans(Schedule.parse("0 fp8 x1 toybest 0.3"), GRID, HEADS, slots=8).at(0.3)
    q, k, v, _ = oracle.tensors(1, GRID.tokens, HEADS, 64)
    compiled = torch.compile(lambda *x: fps_attention(*x, plan), fullgraph=True, backend="aot_eager")
    assert oracle.error(compiled(q, k, v), fps_attention(q, k, v, plan)) < 1e-3
