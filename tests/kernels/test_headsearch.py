"""The greedy search: choice by choice equal to a naive algorithm 1, planted patterns found, budgets met."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from fpsattention.kernels.grid import TokenGrid, choose_tiling
from fpsattention.kernels.head_table import HeadTable
from fpsattention.kernels.headsearch.candidates import DEFAULT, PAPER, CandidateError, distinct, read_candidates
from fpsattention.kernels.headsearch.rule import Rule, meet_budget
from fpsattention.kernels.headsearch.search import HeadSearch, Request, phase_bands, step_bands
from fpsattention.kernels.patterns import Full, Skip, density
from fpsattention.kernels.schedule import Schedule
from hypothesis import given, settings
from hypothesis import strategies as st

GRID = TokenGrid(4, 4, 6)
SIGMAS = (1.0, 0.8, 0.5, 0.2)


class Toy:
    """A model of a few attention layers, sampled with Euler steps: all that algorithm 1 needs of a video model."""

    def __init__(self, seed: int, grid: TokenGrid = GRID, layers: int = 3, heads: int = 4, dim: int = 64):
        generator = torch.Generator().manual_seed(seed)
        self.grid, self.layers, self.heads, self.dim = grid, layers, heads, dim
        width = heads * dim

        def weights(*shape, scale=1.0):
            return torch.randn(shape, generator=generator, dtype=torch.float64) * scale

        # Positional codes make heads that look near in one axis or another.
        places = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in grid.shape))
        waves = weights(3, width, scale=0.7) * (weights(3, width) > 0)
        self.code = torch.cat([torch.sin(places @ waves), torch.cos(places @ waves)], 1) @ weights(
            2 * width, width, scale=0.1
        )
        scales = [float(10 ** (0.9 * i / heads - 0.2)) for i in range(heads)]
        self.qkv = [weights(3, width, width, scale=width**-0.5) for _ in range(layers)]
        self.stretch = torch.tensor(scales, dtype=torch.float64).repeat_interleave(dim)
        self.out = [weights(width, width, scale=width**-0.5) for _ in range(layers)]
        self.first = weights(2, grid.tokens, width)

    def sample(self, attend) -> torch.Tensor:
        """Run the steps; ``attend(layer, sigma, q, k, v)`` is each self-attention."""
        x = self.first.clone()
        for sigma, following in itertools.pairwise((*SIGMAS, 0.0)):
            h = x + self.code
            for layer in range(self.layers):
                q, k, v = ((h @ w).unflatten(-1, (self.heads, self.dim)) for w in self.qkv[layer])
                q = q * self.stretch.unflatten(0, (self.heads, self.dim))
                o = attend(layer, sigma, q.float(), k.float(), v.float()).double()
                h = h + o.flatten(2) @ self.out[layer]
            x = x + (h - x) * (following - sigma)
        return x


def naive(toy, masks, costs, lam, epsilon, normalized):
    """Algorithm 1 as printed, one head at a time in float64: masked softmax, loss, choice, chosen output."""
    configuration = {}

    def attend(layer, sigma, q, k, v):
        q, k, v = (x.double() for x in (q, k, v))
        heads, outputs = q.shape[2], torch.zeros_like(q)

        def head(h, mask):
            out = torch.zeros(q.shape[0], q.shape[1], q.shape[3], dtype=torch.float64)
            for b in range(q.shape[0]):
                scores = q[b, :, h] @ k[b, :, h].T / math.sqrt(q.shape[3])
                if mask.any():
                    out[b] = torch.softmax(scores.masked_fill(~mask, -math.inf), -1) @ v[b, :, h]
            return out

        full = [head(h, masks[0]) for h in range(heads)]
        for h in range(heads):
            losses = []
            for mask, cost in zip(masks[1:], costs[1:]):
                error = 0.0
                out = head(h, mask)
                for b in range(q.shape[0]):
                    mse = float(((out[b] - full[h][b]) ** 2).mean())
                    layer_power = sum(float((full[g][b] ** 2).mean()) for g in range(heads)) / heads
                    error += (mse / layer_power if normalized else mse) / q.shape[0]
                losses.append(error + lam * cost)
            best = min(range(len(losses)), key=losses.__getitem__)
            chosen = 0 if losses[best] > epsilon else best + 1
            configuration[sigma, layer, h] = chosen
            outputs[:, :, h] = head(h, masks[chosen])
        return outputs.float()

    toy.sample(attend)
    return configuration


@pytest.mark.parametrize(
    ("seed", "error", "lam", "epsilon"),
    [
        (0, "mse", 0.5, 1.0),
        (1, "mse", 0.5, 0.9),
        (2, "normalized", 0.1, 0.16),
        (3, "normalized", 0.5, 0.35),
        (4, "mse", 0.0, 0.6),
    ],
)
def test_choices_are_those_of_a_naive_algorithm_1(seed, error, lam, epsilon):
    toy = Toy(seed)
    schedule = Schedule.parse("0 bf16 - heads")
    patterns = read_candidates(DEFAULT)
    request = Request(schedule, step_bands(SIGMAS), tuple(patterns), Rule(lam, epsilon), error=error)
    search = HeadSearch(request, GRID, toy.layers, toy.heads, slots=8)
    out = toy.sample(lambda layer, sigma, q, k, v: search.attend(layer, sigma, q, k, v))
    table = search.table("toy")

    # Tiles and densities in the test's own words.
    tiling, tile_of = search.tiling, torch.from_numpy(search.tiling.tile_of_token)
    masks = [torch.from_numpy(p.mask(tiling))[tile_of][:, tile_of] for p in search.candidates]
    costs = [float(mask.double().mean()) for mask in masks]
    expected = naive(toy, masks, costs, lam, epsilon, error == "normalized")
    found = search.choose()[0]
    for (sigma, layer, h), choice in expected.items():
        assert found[SIGMAS.index(sigma), 0, layer, h] == choice, (sigma, layer, h)
        band = table.bands[table.band_at(sigma)]
        assert table.patterns[band.chosen[0, layer, h]] == search.candidates[choice]
    assert len(expected) == found.size and len(set(expected.values())) > 2
    assert HeadTable.from_json(table.to_json()) == table

    # What was passed on is what the table does when it is used.
    from fpsattention.kernels.attention import fps_attention
    from fpsattention.kernels.plan import plans_for

    plans = plans_for(schedule, GRID, toy.heads, slots=8, tile=table.tile, table=table)

    def use(layer, sigma, q, k, v):
        plan = plans.at(sigma, layer)
        if plan is None:
            return torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(
                1, 2
            )
        return fps_attention(q, k, v, plan)

    assert float((toy.sample(use) - out).norm() / out.norm()) < 1e-4


def test_samples_and_steps_of_a_band_are_averaged_and_branches_kept_apart():
    toy = Toy(5)
    schedule = Schedule.parse("0.6 dense\n0 fp8 x1 heads")
    for branches in ("joint", "separate"):
        request = Request(
            schedule, phase_bands(schedule), tuple(read_candidates(PAPER)), Rule(0.1, 0.2), branches=branches
        )
        search = HeadSearch(request, GRID, toy.layers, toy.heads, slots=8)
        seen = []

        def attend(layer, sigma, q, k, v, search=search, seen=seen):
            if not search.searches(sigma, layer):
                return torch.nn.functional.scaled_dot_product_attention(
                    *(x.transpose(1, 2) for x in (q, k, v))
                ).transpose(1, 2)
            seen.append((layer, sigma))
            return search.attend(layer, sigma, q, k, v, branches=(0, 1))

        toy.sample(attend)
        assert {sigma for _, sigma in seen} == {0.5, 0.2}
        table = search.table()
        assert table.branches == (2 if branches == "separate" else 1) and len(table.bands) == 2
        # The dense phase was never searched: full there.
        assert all(isinstance(table.patterns[i], Full) for i in np.unique(table.bands[0].chosen))
        per = 2 if branches == "separate" else 4
        assert (
            search.counts[1] * search.counts.shape[1] == per * search.counts.shape[1]
        ).all() or branches == "separate"
        assert search.counts[0].sum() == 0 and search.counts[1].sum() == 2 * 2 * toy.layers


def test_dense_layers_stay_full_and_a_search_goes_on_from_its_state():
    toy = Toy(6)
    schedule = Schedule.parse("0 fp8 x1 heads")
    request = Request(
        schedule, step_bands(SIGMAS), tuple(read_candidates(PAPER)), Rule(0.5, 0.6), dense_layers=frozenset({1})
    )
    whole = HeadSearch(request, GRID, toy.layers, toy.heads, slots=8)
    parts = [HeadSearch(request, GRID, toy.layers, toy.heads, slots=8) for _ in range(2)]
    current = [0]

    def attend(layer, sigma, q, k, v):
        if not whole.searches(sigma, layer):
            return torch.zeros_like(q)
        out = whole.attend(layer, sigma, q, k, v)
        if sigma < 0.6 and current[0] == 0:
            parts[1].load({name: value.copy() for name, value in parts[0].state().items()})
            current[0] = 1
        parts[current[0]].attend(layer, sigma, q, k, v)
        return out

    toy.sample(attend)
    assert np.array_equal(parts[1].choose()[0], whole.choose()[0]) and (whole.choose()[0][:, :, 1] == 0).all()
    for layers, more in ((toy.layers + 1, {}), (toy.layers, {"fixed": np.zeros((1, 1))})):
        with pytest.raises(ValueError, match="another model, grid or set of candidates"):
            HeadSearch(request, GRID, layers, toy.heads, slots=8).load({**whole.state(), **more})


@pytest.mark.parametrize("budget", [0.5, 0.3, 0.15])
def test_a_budget_is_met_and_never_exceeded(budget):
    toy = Toy(7)
    schedule = Schedule.parse("0 bf16 - heads")
    request = Request(schedule, step_bands(SIGMAS), tuple(read_candidates(DEFAULT)), budget=budget)
    search = HeadSearch(request, GRID, toy.layers, toy.heads, slots=8)
    toy.sample(search.attend)
    search.next_pass()
    toy.sample(search.attend)
    table = search.table()
    tiling = choose_tiling(GRID, 8, table.tile)
    reached = np.mean([table.head_densities(tiling, band).mean() for band in range(len(table.bands))])
    assert budget - 0.03 < reached <= budget + 1e-9
    assert table.made["mean_density"] == pytest.approx(reached)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 1.0))
def test_a_budget_is_close_to_the_best_of_all_choices(seed, budget):
    """Against every combination of a few heads: never above the budget, and the sum of errors is at most what the
    convex relaxation leaves open, one climb."""
    random = np.random.default_rng(seed)
    costs = np.array([1.0, 0.0, 0.2, 0.5])
    errors = random.random((4, 4)) * random.random((4, 1))
    errors[:, 0] = 0.0
    chosen, lam = meet_budget(errors, costs, budget)
    assert costs[chosen].mean() <= budget + 1e-9 and lam >= 0
    best = min(
        sum(errors[h, c] for h, c in enumerate(choice))
        for choice in itertools.product(range(4), repeat=4)
        if costs[list(choice)].mean() <= budget + 1e-9
    )
    assert errors[np.arange(4), chosen].sum() <= best + errors.max() + 1e-9


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.0, 2.0))
def test_a_price_for_all_heads_is_the_budget_it_comes_to(seed, lam):
    """The rule with epsilon = lambda minimizes error at its own total cost: a budget of that cost does no worse."""
    random = np.random.default_rng(seed)
    costs = np.array([1.0, 0.0, 0.2, 0.5, 0.35])
    errors = random.random((12, 5))
    errors[:, 0] = 0.0
    by_price = Rule(lam, None).choose(errors, costs)
    spent = costs[by_price].mean()
    if spent <= 0:
        return
    by_budget, _ = meet_budget(errors, costs, spent)
    rows = np.arange(12)
    assert errors[rows, by_budget].sum() <= errors[rows, by_price].sum() + 1e-9


def test_the_published_rule():
    errors = np.array([[0.0, 0.9, 0.2, 0.4], [0.0, 3.0, 2.0, 1.5], [0.0, 0.01, 0.02, 0.3]])
    costs = np.array([1.0, 0.0, 0.3, 0.6])
    assert Rule(0.5, 1.0).choose(errors, costs).tolist() == [2, 0, 1]
    assert Rule(0.5, 5.0).choose(errors, costs).tolist() == [2, 3, 1]
    broken = np.array([[0.0, np.nan, np.nan, np.inf]])
    assert Rule(0.5, 1.0).choose(broken, costs).tolist() == [0] and Rule(0.5, None).choose(broken, costs).tolist() == [
        0
    ]
    for bad in ({"lam": -1.0}, {"epsilon": float("nan")}):
        with pytest.raises(ValueError, match="a number from 0 up"):
            Rule(**bad)


def test_a_straight_stretch_is_climbed_as_far_as_the_budget_reaches():
    errors, costs = np.array([[0.0, 0.5, 0.9], [0.0, 0.2, 0.4]]), np.array([1.0, 0.5, 0.1])
    chosen, lam = meet_budget(errors, costs, 0.5)
    assert chosen.tolist() == [1, 1] and lam == pytest.approx(0.5)
    # Nothing can be bought: the price is what the first climb would save, not nothing.
    chosen, lam = meet_budget(errors, costs, 0.1)
    assert chosen.tolist() == [2, 2] and lam == pytest.approx(1.0)


def test_a_video_of_one_tile_has_nothing_to_choose():
    request = Request(Schedule.parse("0 bf16 - heads"), (0.0,), tuple(read_candidates(["window 1 1 1"])))
    search = HeadSearch(request, TokenGrid(1, 1, 2), 1, 2, slots=8)
    q = torch.ones(1, 2, 2, 64)
    assert torch.allclose(search.attend(0, 0.5, q, q, q), q)
    assert search.table().counts() == {"full": 2}


@pytest.mark.parametrize("budget", [None, 0.4])
@pytest.mark.parametrize("aggregate", ["mean", "max"])
@pytest.mark.parametrize("error", ["normalized", "mse"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_head_that_overflows_stays_full(value, error, aggregate, budget):
    request = Request(
        Schedule.parse("0 bf16 - heads"),
        (0.0,),
        tuple(read_candidates(["skip", "window 1 all all"])),
        aggregate=aggregate,
        error=error,
        budget=budget,
    )
    search = HeadSearch(request, GRID, 1, 2, slots=8)
    q, k, v = (torch.randn(1, GRID.tokens, 2, 64, generator=torch.Generator().manual_seed(i)) for i in range(3))
    v[:, :, 0] = value
    for _ in range(2):
        search.attend(0, 0.5, q, k, v)
    chosen = search.choose()[0][0, 0, 0]
    assert chosen[0] == 0
    # Errors over a power that is not finite mean nothing; on their own they do.
    assert (chosen[1] == 0) == (error == "normalized")


def test_candidates_that_are_the_same_here_are_tried_once():
    tiling = choose_tiling(TokenGrid(7, 8, 12), 64)
    kept = distinct(read_candidates(DEFAULT), tiling)
    masks = [p.mask(tiling) for p in kept]
    assert isinstance(kept[0], Full) and Skip() in kept and len({m.tobytes() for m in masks}) == len(kept) > 5
    assert sorted({round(density(m, tiling.live), 4) for m in masks})[0] == 0
    for words, sentence in (
        (["full", "skip"], "no candidate beside"),
        (["window 1 2"], "three extents"),
        (["hop 3"], "hop"),
    ):
        with pytest.raises(CandidateError, match=sentence):
            read_candidates(words)
