"""Fake quantization of the study: planted inputs, granularities, and what is compared with what."""

from __future__ import annotations

import pytest
import torch
from fpsattention.kernels.grid import TokenGrid
from fpsattention.training.studies import quantization
from fpsattention.training.studies.quantization import (
    FORMS,
    GRANULARITIES,
    LOGIT_STD,
    Errors,
    exact_attention,
    logit_std,
    planted,
    rounded,
    token_mask,
)
from fpsattention.training.studies.sizes import CPU

GRID = TokenGrid(4, 8, 12)


@pytest.fixture
def qkv():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, GRID.tokens, 2, 128, generator=generator) for _ in range(3)]


@pytest.fixture
def plans():
    attention = CPU.attention("time 15")
    return attention.plans(GRID, 2).at(0.9)


def test_planted_logits_are_as_large_as_promised(qkv):
    q, k, _ = qkv
    assert logit_std(q, k) < 2
    assert logit_std(*planted(q, k, "large logits")) == pytest.approx(LOGIT_STD, rel=1e-4)


def test_outlier_channels_change_no_logit(qkv):
    q, k, v = qkv
    a, b = planted(q, k, "outlier channels")
    assert not torch.equal(k, b)
    torch.testing.assert_close(exact_attention(a, b, v, None), exact_attention(q, k, v, None))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_rounding_is_small_and_changes_something(qkv, plans, form, granularity):
    x = qkv[0]
    y = rounded(x, granularity, form, plans, plans)
    errors = Errors.of(x, y)
    assert y.shape == x.shape
    assert 25 < errors.snr < 50
    assert errors.cosine > 0.998


def test_outliers_spoil_coarse_integers_most(qkv, plans):
    _, k = planted(qkv[0], qkv[1], "outlier channels")
    snr = {
        (form, granularity): Errors.of(qkv[1], rounded(k, granularity, form, plans, plans) / (k / qkv[1])).snr
        for form in FORMS
        for granularity in ("channel", "tensor")
    }
    assert snr["int8", "channel"] - snr["int8", "tensor"] > 10
    assert snr["e4m3", "channel"] - snr["e4m3", "tensor"] < 3


def test_the_mask_is_the_plan(plans):
    mask = token_mask(plans)
    assert mask.float().mean() == pytest.approx(plans.density)
    assert mask.diagonal().all()


def test_errors_of_equal_outputs():
    x = torch.randn(10)
    assert Errors.of(x, x).snr == float("inf")
    assert Errors.of(x, 2 * x).cosine == pytest.approx(1)


def test_a_layer_compares_like_with_like(qkv):
    found = quantization._layer(*qkv, "natural", CPU.attention("time 15"), 0.9, GRID)
    assert found["FP8 attention, sparse, against sparse"]["snr"] > found["FP8 attention, sparse, against dense"]["snr"]
    assert found["sparsity alone"]["snr"] < found["FP8 attention, dense"]["snr"]
