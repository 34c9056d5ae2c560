"""The MSFP kernels on a CUDA card against plain torch on the same card and on the CPU: the same bits.

With ``GPU_STANDIN=1 TRITON_INTERPRET=1`` the same tests run on small layers in Triton's interpreter.
"""

from __future__ import annotations

import os

import pytest
import torch
from fpsattention.kernels.msfp import ops
from fpsattention.kernels.msfp.formats import FloatFormat, candidates
from fpsattention.kernels.msfp.inputs import DYNAMIC, STATIC, InputQuantizer
from fpsattention.kernels.msfp.packing import pack
from fpsattention.kernels.msfp.weights import CHANNEL, TENSOR, PackedWeight, WeightFormat, dequantize_reference

pytestmark = pytest.mark.gpu

STANDIN = os.environ.get("GPU_STANDIN") == "1"
SHAPES = ((1536, 8960), (5120, 5120), (64, 1536))
TOKENS = 1000
if STANDIN:
    from fpsattention.kernels.bench import standin

    if reason := standin.prepare():
        pytest.skip(reason, allow_module_level=True)
    SHAPES, TOKENS = ((24, 64),), 20

FORMATS = [form for bits in (4, 6, 8) for signed in (True, False) for form in candidates(bits, signed)]
FORMATS.append(FloatFormat.parse("e0m3"))


def bits(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x.isnan(), float("nan"), x).view({4: torch.int32, 2: torch.int16}[x.itemsize])


def weight_of(form: FloatFormat, granularity, rows: int, columns: int, scales=torch.float32) -> PackedWeight:
    """Return random codes and scales on the CPU."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2**form.bits, (rows, columns), generator=generator, dtype=torch.uint8)
    packed = WeightFormat(form, granularity)
    shape = packed.scale_shape(rows, columns)
    scale = ((torch.rand(shape, generator=generator) + 0.1) / form.top).to(scales)
    zero = None if form.signed else (-torch.rand(shape, generator=generator)).to(scales)
    return PackedWeight(pack(codes, form.bits), scale, zero, packed, columns)


@pytest.mark.parametrize("granularity", [TENSOR, CHANNEL, 32])
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_values_are_those_of_the_cpu(cuda, form, granularity):
    rows, columns = SHAPES[0]
    for scales in (torch.float32, torch.bfloat16):
        weight = weight_of(form, granularity, rows, columns, scales)
        on_card = weight.to(cuda)
        assert ops.why_plain(on_card, None, cuda) is None
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            found = ops.dequantize(on_card, dtype)
            assert torch.equal(bits(found.cpu()), bits(dequantize_reference(weight, dtype)))


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_inputs_are_rounded_as_on_the_cpu(cuda, form):
    columns = SHAPES[0][1]
    x = torch.randn(2, TOKENS, columns, generator=torch.Generator().manual_seed(0))
    x[0, 3] *= 1e3
    x[0, 4] = 0.0
    x[1, 5, 6] = float("nan")
    for quantizer in (
        InputQuantizer(form, STATIC, 2.7, 0.0 if form.signed else -0.17),
        InputQuantizer(form, DYNAMIC, 1.0),
        InputQuantizer(form, DYNAMIC, 0.63),
    ):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            y = x.to(dtype)
            wanted = bits(quantizer.reference(y))
            assert torch.equal(bits(ops.quantize_input(y.to(cuda), quantizer).cpu()), wanted)
            # Plain torch rounds the same on a card: no division may become one by a reciprocal.
            assert torch.equal(bits(quantizer.reference(y.to(cuda)).cpu()), wanted)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["e2m1", "ue2m2", "e2m3", "e4m3"])
def test_few_rows_times_a_packed_weight(cuda, name, shape):
    weight = weight_of(FloatFormat.parse(name), 32, *shape).to(cuda)
    generator = torch.Generator().manual_seed(1)
    for rows in (1, 16, 33, 64):
        x = torch.randn(rows, shape[1], generator=generator).to(cuda)
        bias = torch.randn(shape[0], generator=generator).to(cuda)
        for dtype in (torch.bfloat16, torch.float16):
            a, b = x.to(dtype), bias.to(dtype)
            values = dequantize_reference(weight, dtype)
            exact = a.double() @ values.double().t() + b.double()
            size = a.double().abs() @ values.double().abs().t() + b.double().abs()
            found = ops.linear(a, weight, b)
            # Rounded once; a float32 sum of n numbers in any order is within n eps of their sizes, some 2^-14 here.
            assert ((found.double() - exact).abs() <= torch.finfo(dtype).eps * exact.abs() + 2.0**-14 * size).all()
            assert torch.equal(found, ops.linear(a, weight, b)), "two calls give the same bits"


def test_many_rows_are_multiplied_by_torch(cuda):
    weight = weight_of(FloatFormat.parse("e2m1"), 32, *SHAPES[0]).to(cuda)
    x = torch.randn(max(65, TOKENS), SHAPES[0][1], device=cuda).bfloat16()
    wanted = torch.nn.functional.linear(x, dequantize_reference(weight, torch.bfloat16))
    assert torch.equal(ops.linear(x, weight), wanted)


@pytest.mark.skipif(STANDIN, reason="takes 10 GB")
def test_more_numbers_than_31_bits_count(cuda):
    quantizer = InputQuantizer(FloatFormat.parse("e2m1"), STATIC, 3.0)
    x = torch.randn(1, 13824, generator=torch.Generator().manual_seed(0)).bfloat16()
    wanted = quantizer.reference(x).to(cuda)
    found = ops.quantize_input(x.to(cuda).expand(160_000, -1), quantizer)
    assert found.numel() > 2**31 and all(torch.equal(part, wanted.expand_as(part)) for part in found.split(10_000))


@pytest.mark.skipif(STANDIN, reason="compiles for a card")
def test_compiled_layers_are_the_eager_ones(cuda):
    """Inductor must not round a quantizer's division otherwise, which would change codes."""
    weight = weight_of(FloatFormat.parse("e2m1"), 32, *SHAPES[0]).to(cuda)
    quantizer = InputQuantizer(FloatFormat.parse("ue2m2"), DYNAMIC, 1.0)
    compiled = torch.compile(lambda x: ops.linear(x, weight, None, quantizer), fullgraph=True)
    for rows in (8, 500):
        x = torch.randn(rows, SHAPES[0][1], device=cuda).bfloat16()
        assert torch.equal(compiled(x), ops.linear(x, weight, None, quantizer))
