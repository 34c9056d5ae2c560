"""What stands in for self-attention while heads are searched, on the fake host, and what a search is said to cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fpsattention.kernels.grid import TokenGrid, choose_tiling
from fpsattention.kernels.headsearch.candidates import read_candidates
from fpsattention.kernels.headsearch.rule import Rule
from fpsattention.kernels.headsearch.search import HeadSearch, Request
from fpsattention.kernels.patterns import pattern_pairs
from fpsattention.kernels.profiling.cost import ModelShape
from fpsattention.kernels.schedule import Schedule
from fpsattention.nodes.override import TAKEN
from fpsattention.nodes.search_attention import Look, Seek
from fpsattention.nodes.search_effort import search_effort

GRID, LAYERS, HEADS = TokenGrid(3, 12, 16), 3, 2
WORDS = ("skip", "window 1 all all", "window all 40% 40%", "first 1")
SCHEDULE = "0.50 bf16 - heads\n0.00 dense"


def request(**more) -> Request:
    return Request(Schedule.parse(SCHEDULE), (0.8, 0.0), tuple(read_candidates(WORDS)), **more)


def seeking(asked: Request, checks: list | None = None) -> Seek:
    made: list = [] if checks is None else checks
    return Seek(lambda grid: HeadSearch(asked, grid, LAYERS, HEADS, slots=16), lambda: made.append(1))


def naive(grid: TokenGrid, host, asked: Request, sigmas: list[float]) -> dict:
    """Algorithm 1 by masks and PyTorch's attention in float64: the choice per step, layer and head."""
    tiling = choose_tiling(grid, 16)
    tile_of = np.empty(grid.tokens, dtype=np.int64)
    for tile, row in enumerate(tiling.index):
        tile_of[row[row >= 0]] = tile
    masks = [torch.tensor(p.mask(tiling)[tile_of][:, tile_of]) for p in asked.candidates]
    costs = [pattern_pairs(p, tiling) / grid.tokens**2 for p in asked.candidates]
    chosen, seen = {}, []

    def override(func, q, k, v, heads, **kwargs):
        options = kwargs["transformer_options"]
        block, sigma = options["block_index"], float(options["sigmas"][0])
        if q.shape != k.shape or sigma < 0.5:
            return func(q, k, v, heads=heads, **kwargs)
        b, s, width = q.shape
        q, k, v = (x.view(b, s, heads, -1).transpose(1, 2)[0].double() for x in (q, k, v))
        full = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None])[0]
        out = torch.empty_like(full)
        for head in range(heads):
            losses, outs = [], []
            for mask, cost in zip(masks, costs):
                one = torch.zeros_like(full[head])
                if mask.any():
                    one = torch.nn.functional.scaled_dot_product_attention(
                        *(x[head][None, None] for x in (q, k, v)), attn_mask=mask
                    )[0, 0]
                error = float((one - full[head]).square().mean() / full.square().mean())
                losses.append(error + asked.rule.lam * cost)
                outs.append(one)
            best = 1 + int(np.argmin(losses[1:]))
            best = 0 if losses[best] > asked.rule.epsilon else best
            chosen[round(sigma, 4), block, head] = best
            out[head] = outs[best]
        seen.append(block)
        return out.float().transpose(0, 1).reshape(b, s, width)

    model = host.Patcher(host.WanModel(HEADS, LAYERS))
    model.model_options = {"transformer_options": {"optimized_attention_override": override}}
    chosen["out"] = host.run(model, sigmas)
    assert len(seen) == LAYERS * sum(sigma >= 0.5 for sigma in sigmas)
    return chosen


def test_it_chooses_as_algorithm_1_does_and_passes_the_chosen_output_on(host):
    asked = request(rule=Rule(0.05, 0.06))
    checks: list = []
    seek = seeking(asked, checks)
    model = host.Patcher(host.WanModel(HEADS, LAYERS))
    seek.install(model)
    sigmas = [0.9, 0.6, 0.3]
    outs = host.run(model, sigmas)
    wanted = naive(GRID, host, asked, sigmas)
    chosen = seek.search.choose()[0]
    for (band, sigma), layer, head in ((b, la, h) for b in enumerate((0.9, 0.6)) for la in range(3) for h in range(2)):
        assert chosen[band, 0, layer, head] == wanted[sigma, layer, head], (sigma, layer, head)
    assert len(np.unique(chosen)) > 1
    for got, expected in zip(outs, wanted["out"]):
        assert float((got - expected).norm() / expected.norm()) < 1e-5
    assert seek.blocks == LAYERS * 3 and len(checks) == LAYERS * 2 and seek.reasons == []


def test_looking_changes_nothing_and_sees_the_prompt_only(host):
    model = host.Patcher(host.WanModel(HEADS, LAYERS))
    before = host.run(model, [0.9, 0.3], batch=2)
    spent: list = []
    look = Look([0.9], lambda grid: choose_tiling(grid, 16), lambda: None, spent.append)
    look.install(model)
    assert all(map(torch.equal, host.run(model, [0.9, 0.3], batch=2), before))
    assert sorted(look.gathered.means) == [(pytest.approx(0.9), layer) for layer in range(LAYERS)]
    assert len(spent) == LAYERS and all(e.samples == 1 for e in look.gathered.means.values())


def test_a_call_that_cannot_be_searched_runs_as_it_was_and_is_said(host):
    """Another node's self-attention takes the place of the first block's."""

    class Taken(host.Block):
        def __call__(self, x, context, transformer_options):
            return x + host.optimized_attention(
                x, context, context, heads=self.heads, transformer_options=transformer_options
            )

    inner = host.WanModel(HEADS, LAYERS)
    inner.blocks[0] = Taken(inner.dim, HEADS, 0)
    expected = host.run(host.Patcher(inner), [0.3])
    model = host.Patcher(inner)
    seek = seeking(request())
    seek.install(model)
    assert torch.equal(host.run(model, [0.3])[0], expected[0]) and seek.reasons == []
    host.run(model, [0.9])
    counts = seek.search.counts.sum((0, 1))
    assert counts.tolist() == [0, 1, 1] and seek.reasons == [TAKEN]
    assert seek.search.choose()[0][0, 0, 0].tolist() == [0, 0]


def test_unknown_branches_are_searched_all_the_same(host):
    wan = host.WanModel(HEADS, LAYERS)
    forward = wan.forward

    def silent(x, timestep, context, clip_fea, concat, options, **kwargs):
        options.pop("cond_or_uncond")
        return forward(x, timestep, context, clip_fea, concat, options, **kwargs)

    wan.forward = silent
    model, seek = host.Patcher(wan), seeking(request(branches="separate"))
    seek.install(model)
    host.run(model, [0.9])
    assert seek.unknown_branches and seek.reasons == []
    assert seek.search.counts.sum((0, 2)).tolist() == [LAYERS, 0]


@pytest.mark.parametrize("dense_layers", [frozenset(), frozenset({0, 2})])
def test_the_effort_counts_what_is_computed(dense_layers):
    asked = request(budget=0.25, dense_layers=dense_layers)
    tiling, shape = choose_tiling(GRID, 16), ModelShape(256, 512, 3)
    tokens, dim = GRID.tokens, 256
    attention, rest = 4 * tokens**2 * dim, 12 * tokens * dim**2 + 4 * 512 * dim**2 + 4 * tokens * dim * (512 + 512)
    densities = [pattern_pairs(p, tiling) / tokens**2 for p in asked.candidates]
    effort = search_effort(asked, asked.candidates, tiling, shape, [0.9, 0.6, 0.3], clips=2, stripes=0.1)
    searched, plain = 3 - len(dense_layers), len(dense_layers)
    step = searched * (attention * (sum(densities) + 0.4 + 0.25) + rest) + plain * (attention + rest)
    step /= 3 * (attention + rest)
    assert effort.steps == pytest.approx((step, step, 1.0))
    # Two clips in two passes, and a look.
    assert effort.dense_runs == pytest.approx(4 * (2 * step + 1) / 3 + 1)
    assert effort.search_steps == 3 * 4 + 3
    assert "a dense run that looks at the heads, then 2 passes over 2 runs of 3 steps" in effort.sentence(5)
