"""Searches of formats and ranges against exhaustive ones, and mixup-sign on distributions that are known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from fpsattention.kernels.msfp.formats import FloatFormat, candidates
from fpsattention.kernels.msfp.inputs import DYNAMIC, STATIC, InputQuantizer
from fpsattention.kernels.msfp.weights import dequantize_reference
from fpsattention.training.quantize.layers import quantized_layers
from fpsattention.training.quantize.search_input import ASYMMETRIC, asymmetry, search_input
from fpsattention.training.quantize.search_weight import search_weight
from torch.nn import functional


def normal(count: int = 20_000, deviation: float = 1.0, seed: int = 0) -> torch.Tensor:
    return deviation * torch.randn(count, generator=torch.Generator().manual_seed(seed))


def naive_mse(values: np.ndarray, form: FloatFormat, maxval: float, zero: float) -> float:
    """Mean squared error to the nearest of all values that the format has, in float64."""
    levels = np.unique(np.array(form.values, dtype=np.float64)) * (maxval / form.top) + zero
    places = np.clip(np.searchsorted(levels, values), 1, len(levels) - 1)
    nearest = np.minimum(np.abs(values - levels[places - 1]), np.abs(values - levels[places]))
    return float((nearest**2).mean())


@pytest.mark.parametrize("bits", [4, 6])
@pytest.mark.parametrize("deviation", [1.0, 3.0])
@pytest.mark.parametrize("gate", [functional.silu, lambda x: functional.gelu(x, approximate="tanh")])
def test_after_a_gate_unsigned_with_a_zero_point_is_better(bits, deviation, gate):
    found = search_input(gate(normal(deviation=deviation))[:, None], bits)
    assert found.asymmetry > ASYMMETRIC
    assert not found.quantizer.form.signed and -0.28 < found.quantizer.zero < 0
    assert found.error == found.unsigned < 0.7 * found.signed


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_symmetric_inputs_stay_signed(bits):
    found = search_input(normal()[:, None], bits)
    assert abs(found.asymmetry) < ASYMMETRIC and found.unsigned is None and found.quantizer.form.signed


def test_an_asymmetric_input_may_still_be_better_signed():
    # Fine around 0, where an unsigned format has its coarse end.
    values = torch.cat([normal(20_000, 0.01), torch.full((200,), -1.0)])
    found = search_input(values[:, None], 4)
    assert found.asymmetry < -ASYMMETRIC and found.unsigned is not None
    assert found.quantizer.form.signed and found.error == found.signed < found.unsigned


@pytest.mark.parametrize("bits", [4, 6])
def test_the_static_search_is_near_an_exhaustive_one(bits):
    values = functional.gelu(normal(4000), approximate="tanh")
    exact, power = values.double().numpy(), float(values.double().square().mean())
    found = search_input(values[:, None], bits)
    best = np.inf
    for form in candidates(bits, False):
        for zero, share in itertools.product((float(values.min()), 0.0, *np.quantile(exact, (0.001, 0.01, 0.1))),
                                             np.geomspace(0.02, 1.0, 150)):  # fmt: skip
            reach = float(values.max()) - zero
            best = min(best, naive_mse(exact, form, share * reach, zero))
    assert found.unsigned * power <= 1.02 * best
    chosen = found.quantizer
    assert found.error * power == pytest.approx(naive_mse(exact, chosen.form, chosen.maxval, chosen.zero), rel=1e-4)


def test_errors_are_what_the_layer_will_do():
    tokens = functional.silu(normal(8192)).reshape(64, 128)
    for mode in (STATIC, DYNAMIC):
        found = search_input(tokens, 4, mode)
        error = (found.quantizer.reference(tokens) - tokens).double().square().mean() / tokens.double().square().mean()
        assert found.error == pytest.approx(float(error), rel=1e-5)


def test_methods_are_held_to_their_formats():
    tokens = functional.silu(normal())[:, None]
    assert search_input(tokens, 4, method="signed").quantizer.form.name == "e2m1"
    assert search_input(tokens, 6, method="signed").quantizer.form.name == "e3m2"
    whole = search_input(tokens, 4, method="int")
    assert whole.quantizer.form.name == "ue0m4" and whole.error == whole.integer
    assert search_input(tokens, 4).integer == whole.integer


def test_inputs_that_say_nothing():
    assert search_input(torch.zeros(64, 8), 4).quantizer is None
    for mode in ("static", "dynamic"):  # no file could hold such a range
        assert search_input(torch.randn(64, 8) * 1e-37, 4, mode).quantizer is None
    constant = search_input(torch.full((64, 8), 0.37), 4)
    assert constant.error < 1e-6
    negative = search_input(torch.full((64, 8), -2.5), 4)
    assert negative.error < 1e-6
    one = search_input(torch.tensor([[0.5]]), 4, DYNAMIC)
    assert one.error < 1e-6


@pytest.mark.parametrize("low, high, wanted", [(-1.0, 1.0, 0.0), (0.0, 2.0, 1.0), (-2.0, 0.0, -1.0), (-0.5, 1.5, 0.5)])
def test_asymmetry(low, high, wanted):
    values = torch.linspace(low, high, 100_001, dtype=torch.float64).float()
    assert asymmetry(values) == pytest.approx(wanted, abs=5e-3)


@pytest.mark.parametrize("granularity", ["tensor", "channel", 16])
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_are_packed_with_their_least_error(granularity, bits):
    weight = normal(32 * 64).reshape(32, 64) * torch.linspace(0.1, 2, 32)[:, None]
    found = search_weight(weight, bits, granularity)
    back = dequantize_reference(found.packed)
    power = float(weight.double().square().mean())
    assert found.error == pytest.approx(float((back - weight).double().square().mean()) / power, rel=1e-5)
    # No worse than the largest magnitude as the range, in any format that was tried.
    for form in candidates(bits, True):
        shape = found.packed.scale.shape
        grouped = weight.reshape(shape[0] if granularity != "tensor" else 1, shape[1], -1)
        plain = 0.0
        for row, scale in zip(grouped.flatten(0, 1), grouped.abs().amax(-1).flatten()):
            plain += naive_mse(row.double().numpy(), form, float(scale), 0.0) * len(row)
        assert found.error * power <= plain / weight.numel() * 1.001
    fewer = search_weight(weight, bits, "tensor")
    assert found.error <= fewer.error * 1.001


def test_weights_of_zeros_and_of_nothing_finite():
    zeros = search_weight(torch.zeros(8, 16), 4, 8)
    assert zeros.error == 0 and not dequantize_reference(zeros.packed).any()
    broken = torch.ones(4, 16)
    broken[1, 3] = float("nan")
    with pytest.raises(ValueError, match="1 of its 64 weights are not finite"):
        search_weight(broken, 4, "channel")


def test_group_scales_are_bf16_and_the_codes_know_it():
    weight = normal(64 * 64).reshape(64, 64)
    found = search_weight(weight, 4, 16)
    assert found.packed.scale.dtype == torch.bfloat16
    wider = search_weight(weight, 4, 16, scale_dtype=torch.float32)
    assert found.error < 1.02 * wider.error


def test_only_linear_layers_of_blocks_are_quantized():
    names = ["patch_embedding", "text_embedding.0", "time_projection.1", "head.head", "blocks.0.norm3",
             "blocks.0.self_attn.norm_q", "blocks.0.self_attn.q", "blocks.0.cross_attn.k_img", "blocks.0.ffn.2",
             "blocks.1.ffn.0", "blocks.1.cross_attn.v", "blocks.2.ffn.0"]  # fmt: skip
    assert quantized_layers(names, 3) == [*names[6:9], *names[9:]]
    assert quantized_layers(names, 3, keep_blocks=1) == ["blocks.1.ffn.0", "blocks.1.cross_attn.v"]
    assert quantized_layers(names, 3, keep=["ffn"]) == [*names[6:8], "blocks.1.cross_attn.v"]
    assert quantized_layers(names, 3, keep=["ffn.0", "self_attn.q"]) == [*names[7:9], "blocks.1.cross_attn.v"]


def test_a_dynamic_quantizer_follows_every_token():
    tokens = torch.stack([torch.linspace(-1, 1, 64), torch.linspace(-100, 100, 64)])
    found = search_input(tokens, 4, DYNAMIC)
    assert isinstance(found.quantizer, InputQuantizer) and found.quantizer.mode == DYNAMIC
    rounded = found.quantizer.reference(tokens)
    assert torch.allclose(rounded[0] * 100, rounded[1], rtol=1e-4)
