"""On attention that was planted through q and k the search finds what was planted, stripes by evidence included."""

from __future__ import annotations

import numpy as np
import pytest
from fpsattention.kernels.grid import TokenGrid, choose_tiling
from fpsattention.kernels.headsearch.candidates import DEFAULT, read_candidates
from fpsattention.kernels.headsearch.classify import stripe_candidates
from fpsattention.kernels.headsearch.evidence import evidence
from fpsattention.kernels.headsearch.rule import Rule
from fpsattention.kernels.headsearch.search import HeadSearch, Request
from fpsattention.kernels.pattern_text import family
from fpsattention.kernels.patterns import Skip, Stripe
from fpsattention.kernels.schedule import Schedule

from .planted import STRIPE_SHARE, TRUTH, planted_layer, stripe_tiles

GRIDS = (TokenGrid(7, 8, 12), TokenGrid(8, 10, 9, prefix=5), TokenGrid(5, 9, 10))
FAMILIES = ("diagonal", "multi-diagonal", "window", "vertical stripe", "first frame", "full", "skip") * 2
SLOTS = 16
# Planted heads lose next to nothing with their own pattern, so little that uniform attention, which any sample of
# keys comes near to, must stay full: its best pattern loses 0.2 % of the layer's power.
RULE = Rule(0.001, 0.0015)


@pytest.mark.parametrize("row", ["bf16 -", "fp8 x1"])
def test_the_search_finds_what_was_planted(row):
    right, total, negligible = 0, 0, []
    for number, grid in enumerate(GRIDS):
        tiling = choose_tiling(grid, SLOTS)
        for seed in range(3 if row == "bf16 -" else 1):
            q, k, v = planted_layer(grid, FAMILIES, 10 * number + seed, batch=2, tiling=tiling)
            found = stripe_candidates(evidence(q, k, v, tiling), tiling, STRIPE_SHARE)
            # The planted stripes are among those that column mass finds.
            for i, name in enumerate(FAMILIES):
                if name == "vertical stripe":
                    wanted = set(stripe_tiles(tiling, 1000 * (10 * number + seed) + i))
                    assert any(wanted <= set(stripe.tiles) for stripe in found)
            patterns = (*read_candidates(DEFAULT), *found)
            search = HeadSearch(
                Request(Schedule.parse(f"0 {row} heads"), (0.0,), patterns, RULE), grid, 1, len(FAMILIES),
                slots=SLOTS, tile=tiling.tile,
            )  # fmt: skip
            out = search.attend(0, 0.5, q, k, v)
            chosen = [search.candidates[i] for i in search.choose()[0][0, 0, 0]]
            power = np.square(v.numpy()).mean((0, 1, 3))
            for i, (name, pattern) in enumerate(zip(FAMILIES, chosen)):
                right += family(pattern) == TRUTH[name] and (name != "vertical stripe" or isinstance(pattern, Stripe))
                total += 1
                if isinstance(pattern, Skip):
                    negligible.append(power[i] / power.mean())
                    assert (out[:, :, i] == 0).all()
    print(f"{row}: {right} of {total} heads")
    assert right / total >= 0.95, f"{right} of {total}"
    assert negligible and max(negligible) < 1e-4
