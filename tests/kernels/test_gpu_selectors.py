"""Online selectors on a CUDA card: the choices of the CPU, every backend on their lists, and no wait for the device.

With ``GPU_STANDIN=1 TRITON_INTERPRET=1`` the same tests run on small grids in Triton's interpreter.
"""

from __future__ import annotations

import os

import pytest
import torch
from fpsattention.kernels.attention import fps_attention
from fpsattention.kernels.grid import TokenGrid
from fpsattention.kernels.plan import Plans, clear_plans
from fpsattention.kernels.schedule import Schedule

from .test_gpu import BOUND, GRADIENT_BOUND, error, reference_of, runnable, scene

pytestmark = pytest.mark.gpu

STANDIN = os.environ.get("GPU_STANDIN") == "1"
GRIDS = {"even": TokenGrid(9, 30, 52), "ragged": TokenGrid(5, 17, 23, 48, 13)}
if STANDIN:
    GRIDS = {"ragged": TokenGrid(2, 5, 6, 3, 2)}
WORDS = ["svg 0.3", "sta", "topk 0.15", "topk 0.15 0.02", "cdf 0.9 -1", "cdf 0.9 0.02"]


def mask_of(lists, tiles: int) -> torch.Tensor:
    """Return bool ``(B, H, tiles, tiles)`` on the CPU: which tile sees which."""
    lists_ids, count = lists.ids.cpu().long(), lists.count.cpu()
    used = torch.arange(lists_ids.shape[-1]) < count[..., None]
    mask = torch.zeros(*lists_ids.shape[:2], tiles + 1, dtype=torch.bool)
    mask.scatter_(-1, lists_ids.where(used, torch.tensor(tiles)), True)
    return mask[..., :tiles][lists.pattern_of_head.cpu().long()]


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
@pytest.mark.parametrize("words", WORDS)
def test_the_choices_are_those_of_the_cpu(cuda, grid, words):
    plan, (q, k, v, _) = scene(cuda, grid, f"bf16 - {words}", batch=2)
    there = plan.lists_for(q, k, v)
    here = Plans(Schedule.parse(f"0.00 bf16 - {words}"), grid, 3, slots=64).at(0.5)
    lists = here.lists_for(*(x.cpu() for x in (q, k, v)))
    tiles = plan.tiling.count
    # Sums in another order may turn a few near ties, and a head whose two best patterns are equally good.
    differing = (mask_of(there, tiles) != mask_of(lists, tiles)).double().mean((2, 3))
    assert float(differing.median()) < 2e-3 and float(differing.mean()) < 0.1
    assert abs(float(there.density) - float(lists.density)) < 0.02
    assert float(there.density) == pytest.approx(share(mask_of(there, tiles), plan.layout.live.cpu()), rel=1e-5)
    clear_plans()


def share(mask: torch.Tensor, live: torch.Tensor) -> float:
    """Return the mean share of token pairs under masks of tiles."""
    live = live.double()
    return float((mask.double() @ live @ live / live.sum() ** 2).mean())


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
@pytest.mark.parametrize("slots", [64, 128])
@pytest.mark.parametrize("row", [f"fp8 x1 {words}" for words in WORDS] + ["bf16 - svg 0.3", "bf16 - topk 0.15"])
def test_every_backend_equals_the_reference(cuda, grid, slots, row):
    plan, (q, k, v, _) = scene(cuda, grid, row, slots)
    for name in runnable(cuda, plan):
        ours = fps_attention(q, k, v, plan, backend=name)
        assert error(ours, reference_of(plan, q, k, v, name)) <= BOUND[name], name
    clear_plans()


@pytest.mark.parametrize("row", ["fp8 x1 svg 0.3", "fp8 x1 topk 0.3", "bf16 - cdf 0.9 -1", "bf16 - sta"])
def test_gradients_equal_the_references(cuda, row):
    plan, (q, k, v, grad) = scene(cuda, GRIDS["ragged"], row)
    for name in runnable(cuda, plan):
        if name == "triton-int8" or (name == "triton-bf16" and plan.attention == "fp8"):
            continue
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        found = torch.autograd.grad(fps_attention(*leaves, plan, backend=name), leaves, grad)
        lists = plan.lists_for(*leaves)
        exact = [x.detach().float().requires_grad_() for x in (q, k, v)]
        expected = fps_attention(*exact, plan, backend="reference", lists=lists)
        for ours, theirs in zip(found, torch.autograd.grad(expected, exact, grad.float())):
            assert error(ours, theirs) <= GRADIENT_BOUND, name
    clear_plans()


@pytest.mark.skipif(STANDIN, reason="a stand-in has no device to wait for")
@pytest.mark.parametrize("words", WORDS)
def test_no_call_waits_for_the_device(cuda, words):
    plan, (q, k, v, grad) = scene(cuda, GRIDS["ragged"], f"bf16 - {words}")
    for name in runnable(cuda, plan):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        torch.autograd.grad(fps_attention(*leaves, plan, backend=name), leaves, grad)
        torch.cuda.set_sync_debug_mode("error")
        try:
            torch.autograd.grad(fps_attention(*leaves, plan, backend=name), leaves, grad)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(STANDIN, reason="a stand-in has no device memory")
@pytest.mark.parametrize("words", ["svg 0.3", "sta", "topk 0.15", "cdf 0.9 -1", "cdf 0.9"])
def test_memory_at_720p_stays_bounded(cuda, words):
    """Forty heads: what a call adds to the lists that it returns is a chunk of heads, not all of them."""
    grid = TokenGrid(21, 45, 80)
    plan, (q, k, v, _) = scene(cuda, grid, f"fp8 x1 {words}", heads=40)
    with torch.no_grad():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        lists = plan.lists_for(q, k, v)
        held = torch.cuda.memory_allocated() - before
        assert torch.cuda.max_memory_allocated() - before - held < 1.25 * 2**30
        assert held < 300 * 2**20 and float(lists.density) > 0
    clear_plans()
