"""Packed weights and input quantizers: values against loops in float64, and the hardware's FP4 forms as instances."""

from __future__ import annotations

import math
import os
import subprocess

import pytest
import torch
from fpsattention.kernels.msfp import ops
from fpsattention.kernels.msfp.formats import E2M1, E4M3FN, FloatFormat, FormatError
from fpsattention.kernels.msfp.inputs import DYNAMIC, STATIC, InputQuantizer
from fpsattention.kernels.msfp.packing import pack
from fpsattention.kernels.msfp.rounding import encode
from fpsattention.kernels.msfp.weights import (
    CHANNEL,
    TENSOR,
    PackedWeight,
    WeightFormat,
    dequantize_reference,
    quantize_weight,
)  # fmt: skip
from hypothesis import example, given
from hypothesis import strategies as st

NAMES = ("e2m1", "e0m3", "e3m0", "ue2m2", "e2m3", "ue3m3", "e4m3", "e4m3fn", "ue4m4")
GRANULARITIES = (TENSOR, CHANNEL, 8, 16)


def weight_of(name: str, granularity: str | int, rows: int = 6, columns: int = 48, seed: int = 0, dtype=torch.float32):
    """Return a random packed weight and the matrix it was made of."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator)
    form = WeightFormat(FloatFormat.parse(name), granularity)
    shape = form.scale_shape(rows, columns)
    scale = (torch.rand(shape, generator=generator) + 0.5).mul(3 / form.form.top).to(dtype)
    zero = None if form.form.signed else (-torch.rand(shape, generator=generator) * 2).to(dtype)
    return quantize_weight(matrix, form, scale, zero), matrix


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_the_scale_of_its_own_group(name, granularity, dtype):
    weight, matrix = weight_of(name, granularity, dtype=dtype)
    rows, columns = matrix.shape
    values = sorted({float(v) for v in weight.format.form.values})
    scale, zero = weight.scale.double(), None if weight.zero is None else weight.zero.double()
    found = dequantize_reference(weight)
    assert found.shape == weight.shape == (rows, columns) and found.dtype == torch.float32
    for row in range(rows):
        for column in range(columns):
            group = {TENSOR: (0, 0), CHANNEL: (row, 0)}.get(granularity)
            group = group or (row, column // granularity)
            s, z = float(scale[group]), 0.0 if zero is None else float(zero[group])
            exact = [v * s + z for v in values]
            least = min(abs(v - float(matrix[row, column])) for v in exact)
            number = float(found[row, column])
            assert min(abs(number - v) for v in exact) <= 1e-6 * (abs(number) + abs(z))
            assert abs(number - float(matrix[row, column])) <= least + 1e-5
    for narrow in (torch.bfloat16, torch.float16):
        assert torch.equal(dequantize_reference(weight, narrow), found.to(narrow))
        assert torch.equal(ops.dequantize(weight, narrow), found.to(narrow))


def test_sizes():
    weight, _ = weight_of("e2m1", 16, rows=4, columns=64, dtype=torch.bfloat16)
    assert weight.nbytes == 4 * 32 + 4 * 4 * 2
    assert weight.format.bits(4, 64, 16) == 5.0 and weight.format.bits(4, 64) == 6.0
    assert WeightFormat(E2M1, CHANNEL).bits(4, 64, 16) == 4.25
    assert WeightFormat(E2M1, TENSOR).scale_shape(4, 64) == (1, 1)
    moved = weight.to("meta")
    assert moved.codes.is_meta and moved.scale.is_meta and moved.shape == (4, 64)
    unsigned, _ = weight_of("ue2m2", 16)
    assert unsigned.to("meta").zero.is_meta


@pytest.mark.parametrize("granularity", ["", "row", "Tensor", 0, 7, -16, True, 16.0, None, ["tensor"], "x" * 500])
def test_a_granularity_that_does_not_exist_gets_one_sentence(granularity):
    with pytest.raises(FormatError, match="granularity is") as caught:
        WeightFormat(E2M1, granularity)
    assert len(str(caught.value)) < 200


def test_weights_that_contradict_themselves_are_refused():
    codes, scale = torch.zeros(4, 8, dtype=torch.uint8), torch.ones(4, 2)
    form, unsigned = WeightFormat(E2M1, 8), WeightFormat(FloatFormat.parse("ue2m2"), 8)
    assert PackedWeight(codes, scale, None, form, 16).shape == (4, 16)
    for arguments, words in (
        ((codes, scale, None, form, 15), "does not fill its bytes"),
        ((codes, scale, None, form, 18), "uint8 with 9 to a row"),
        ((codes.int(), scale, None, form, 16), "codes are torch.int32"),
        ((codes[0], scale, None, form, 16), "those of 16 columns"),
        ((codes, scale[:3], None, form, 16), r"scales have shape \(3, 2\), they must have \(4, 2\)"),
        ((codes, torch.ones(()), None, form, 16), r"scales have shape \(\)"),
        ((codes, scale, scale, form, 16), "signed and has no zero point"),
        ((codes, scale, None, unsigned, 16), "unsigned and needs a zero point"),
        ((codes, scale, scale[:, :1], unsigned, 16), "zero points have shape"),
        ((codes, scale, None, WeightFormat(E2M1, 12), 16), "does not divide into groups of 12"),
    ):
        with pytest.raises(FormatError, match=words):
            PackedWeight(*arguments)


# --- forms of the hardware


def test_powers_of_two_per_32_are_mxfp4():
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    x = torch.randn(16, 128, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 4, 16)[:, None]
    theirs = mx.MXTensor.to_mx(x, torch.float4_e2m1fn_x2, 32)
    scale = theirs.scale.view(torch.uint8).to(torch.int32).reshape(16, 4)
    # One step of e2m1 is half of its one.
    ours = quantize_weight(x, WeightFormat(E2M1, 32), (scale << 23).view(torch.float32) / 2)
    assert torch.equal(dequantize_reference(ours), theirs.dequantize(torch.float32))
    # They keep the sign of a zero.
    codes = theirs.qdata.view(torch.uint8).reshape(16, 64)
    low, high = codes & 15, codes >> 4
    clean = torch.where(low == 8, 0, low) | (torch.where(high == 8, 0, high) << 4)
    assert torch.equal(ours.codes, clean)


def test_e4m3_scales_per_16_are_nvfp4():
    nv = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    x = torch.randn(16, 128, generator=torch.Generator().manual_seed(1))
    scales, codes = nv.nvfp4_quantize(x)
    ours = PackedWeight(codes, scales.float() / 2, None, WeightFormat(E2M1, 16), 128)
    theirs = nv.NVFP4Tensor(codes, scales, 16, torch.float32).dequantize(torch.float32)
    assert torch.equal(dequantize_reference(ours), theirs)
    # Rounded by us with these scales: the same but for quotients that their reciprocal pushes over a tie.
    mine = dequantize_reference(quantize_weight(x, ours.format, ours.scale))
    assert float((mine != theirs).float().mean()) < 1e-3


HOST = """
import sys, torch
import comfy_kitchen as kitchen
x, one = torch.load(sys.argv[1]), torch.tensor(0.5)
with kitchen.use_backend("eager"):
    codes, scales = kitchen.quantize_nvfp4(x, one, hi_first=False)
    values = kitchen.dequantize_nvfp4(codes, one, scales, torch.float32, hi_first=False)
torch.save((codes, values), sys.argv[2])
"""


@pytest.mark.skipif(not os.environ.get("COMFYUI_PYTHON"), reason="COMFYUI_PYTHON is not set")
def test_comfyui_s_nvfp4_is_an_instance(tmp_path):
    """Their codes and values, with the scales that their algorithm says (NVFP4: largest / 6, rounded to e4m3)."""
    x = torch.randn(128, 128, generator=torch.Generator().manual_seed(2))
    torch.save(x, tmp_path / "x.pt")
    command = [os.environ["COMFYUI_PYTHON"], "-c", HOST, str(tmp_path / "x.pt"), str(tmp_path / "out.pt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    codes, values = torch.load(tmp_path / "out.pt")
    scale = (x.view(128, 8, 16).abs().amax(-1) / 6 / 0.5).to(torch.float8_e4m3fn).float() * 0.5 / 2
    ours = quantize_weight(x, WeightFormat(E2M1, 16), scale)
    assert torch.equal(dequantize_reference(ours), values)
    low, high = codes & 15, codes >> 4
    assert torch.equal(ours.codes, torch.where(low == 8, 0, low) | (torch.where(high == 8, 0, high) << 4))


# --- inputs


def static(name: str, maxval: float, zero: float = 0.0) -> InputQuantizer:
    return InputQuantizer(FloatFormat.parse(name), STATIC, maxval, zero)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_static_inputs_lie_on_the_values_of_their_range(name, dtype):
    form = FloatFormat.parse(name)
    quantizer = static(name, 2.5, 0.0 if form.signed else -0.17)
    x = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = ops.quantize_input(x, quantizer)
    assert found.dtype == dtype and found.shape == x.shape
    values = torch.tensor(form.values, dtype=torch.float64).unique() * 2.5 / form.top + quantizer.zero
    precision = 2.5 * (1e-6 if dtype == torch.float32 else 2.0**-8)
    off, least = ((y[..., None] - values).abs().amin(-1) for y in (found.double(), x.double()))
    assert (off <= precision).all()
    assert ((found.double() - x.double()).abs() <= least + precision).all()
    assert torch.equal(ops.quantize_input(x, None), x)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [1.0, 0.7])
def test_dynamic_inputs_follow_every_token(name, share):
    form = FloatFormat.parse(name)
    quantizer = InputQuantizer(form, DYNAMIC, share)
    x = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0)) + 0.3
    x[0, 1] *= 1000
    x[1, 2] = 0.5
    x[1, 3] = 0.0
    found = ops.quantize_input(x, quantizer)
    for token, mine in zip(x.view(-1, 32).double(), found.view(-1, 32).double()):
        low = 0.0 if form.signed else float(token.min())
        span = float(token.abs().max()) if form.signed else float(token.max()) - low
        values = torch.tensor(form.values, dtype=torch.float64).unique() * (span * share / form.top) + low
        wanted = values[(token[:, None] - values).abs().argmin(-1)]
        assert torch.allclose(mine, wanted, rtol=1e-6, atol=1e-6 * max(span, abs(low)))
    if share == 1.0:
        assert torch.allclose(found.amax(-1)[0], x.amax(-1)[0], rtol=1e-6) or form.signed


def test_one_number_is_a_token_too():
    x = torch.tensor([[3.0]])
    for quantizer in (static("e2m1", 3.0), static("ue2m2", 3.0, -0.5), InputQuantizer(E2M1, DYNAMIC, 1.0)):
        assert ops.quantize_input(x, quantizer).shape == (1, 1)
    assert ops.quantize_input(x, static("e2m1", 3.0)) == 3.0
    assert ops.quantize_input(torch.zeros(0, 8), InputQuantizer(E2M1, DYNAMIC, 1.0)).shape == (0, 8)


def test_a_token_that_is_not_finite_spoils_no_other():
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    x[1, 4] = math.nan
    for form in (E2M1, FloatFormat.parse("ue2m2")):
        found = ops.quantize_input(x, InputQuantizer(form, DYNAMIC, 1.0))
        assert found[[0, 2]].isfinite().all() and found[1].isnan().all()
        kept = ops.quantize_input(x, InputQuantizer(form, STATIC, 1.0))
        assert kept.isnan().sum() == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((E2M1, "static", 0.0), "maxval is 0"),
        ((E2M1, "static", -1.0), "maxval is -1"),
        ((E2M1, "static", math.nan), "maxval is nan"),
        ((E2M1, "static", math.inf), "maxval is inf"),
        ((E2M1, "static", 1e300), "maxval is 1e\\+300"),
        ((E2M1, "static", 1e-44), "maxval is 1e-44"),
        ((E2M1, "static", 1.0, 0.1), "zero point 0.1"),
        ((FloatFormat.parse("ue2m2"), "static", 1.0, math.nan), "zero is nan"),
        ((FloatFormat.parse("ue2m2"), "static", 1.0, -1e300), "zero is -1e\\+300"),
        ((FloatFormat.parse("ue2m2"), "dynamic", 1.0, -0.2), "zero point -0.2"),
        ((E2M1, "auto", 1.0), "mode is 'auto'"),
        ((E2M1, None, 1.0), "mode is 'None'"),
    ],
)
def test_quantizers_that_cannot_be_are_refused(arguments, words):
    with pytest.raises(FormatError, match=words) as caught:
        InputQuantizer(*arguments)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


quantizers = st.one_of(
    st.builds(static, st.sampled_from(["e2m1", "e0m3", "e4m3fn", "e2m3"]), st.floats(1e-6, 1e6)),
    st.builds(static, st.sampled_from(["ue2m2", "ue4m4"]), st.floats(1e-6, 1e6), st.floats(-10, 10)),
    st.builds(InputQuantizer, st.sampled_from([E2M1, E4M3FN]), st.just(DYNAMIC), st.floats(0.1, 1)),
)


@given(quantizers)
def test_a_file_gives_the_quantizer_back(quantizer):
    assert InputQuantizer.from_dict(quantizer.to_dict()) == quantizer
    assert quantizer.form.name in quantizer.text


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@example({"maxval": 10**400})
@example({"zero": -(10**400)})
@given(st.dictionaries(st.sampled_from(["format", "mode", "maxval", "zero", "x"]), anything) | anything)
def test_whatever_a_file_says_is_a_quantizer_or_one_sentence(found):
    for known in ({}, {"format": "ue2m2", "mode": "static", "maxval": 1.0, "zero": 0.0}):
        values = {**known, **found} if isinstance(found, dict) else found
        try:
            quantizer = InputQuantizer.from_dict(values)
        except FormatError as error:
            assert "\n" not in str(error) and len(str(error)) < 300
        else:
            assert ops.quantize_input(torch.ones(2, 4), quantizer).isfinite().all()


# --- the product


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_is_the_product_of_what_was_rounded(dtype):
    weight, _ = weight_of("e2m1", 16, rows=10, columns=64)
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    bias = torch.randn(10, generator=torch.Generator().manual_seed(1)).to(dtype)
    quantizer = static("e2m3", 3.0)
    exact = quantizer.reference(x).double() @ dequantize_reference(weight, dtype).double().t() + bias.double()
    found = ops.linear(x, weight, bias, quantizer)
    assert found.dtype == dtype and found.shape == (2, 3, 10)
    precision = 1e-6 if dtype == torch.float32 else 2.0**-8
    assert ((found.double() - exact).abs() <= precision * (exact.abs() + 1)).all()
    assert torch.equal(ops.linear(x, weight), torch.nn.functional.linear(x, dequantize_reference(weight, dtype)))


def test_codes_are_packed_as_they_are():
    weight, matrix = weight_of("ue2m2", 16)
    grouped = matrix.view(6, 3, 16)
    codes = encode(grouped, weight.format.form, weight.scale[..., None], weight.zero[..., None])
    assert torch.equal(weight.codes, pack(codes.view(6, 48), 4))
