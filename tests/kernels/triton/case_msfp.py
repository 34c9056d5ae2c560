"""The MSFP kernels in the interpreter, against plain torch to the bit, and the product in float64. Run by
test_interpreted.py."""

from __future__ import annotations

import math

import interpreter
import pytest
import torch

interpreter.correct()

from fpsattention.kernels import triton_runtime  # noqa: E402
from fpsattention.kernels.msfp import op, ops, triton_msfp  # noqa: E402
from fpsattention.kernels.msfp.formats import BITS, E4M3FN, FloatFormat  # noqa: E402
from fpsattention.kernels.msfp.inputs import DYNAMIC, STATIC, InputQuantizer  # noqa: E402
from fpsattention.kernels.msfp.packing import pack  # noqa: E402
from fpsattention.kernels.msfp.weights import (  # noqa: E402
    CHANNEL,
    TENSOR,
    PackedWeight,
    WeightFormat,
    dequantize_reference,
)

FORMATS = [
    FloatFormat(exponent, bits - signed - exponent, signed)
    for bits in BITS
    for signed in (True, False)
    for exponent in range(min(5, bits - signed) + 1)
] + [E4M3FN]
SOME = ("e2m1", "ue2m2", "e0m3", "e3m0", "ue4m0", "e2m3", "ue3m3", "e4m3", "ue5m3")
TYPES = (torch.float32, torch.bfloat16, torch.float16)


def bits(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor's numbers as integers, every NaN the same."""
    x = torch.where(x.isnan(), math.nan, x)
    return x.view({4: torch.int32, 2: torch.int16}[x.itemsize])


def weight_of(form: FloatFormat, granularity, rows: int, columns: int, scales=torch.float32, seed=0) -> PackedWeight:
    """Return random codes, every code among them if they are enough, with random scales and zero points."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**form.bits, (rows, columns), generator=generator, dtype=torch.uint8)
    packed = WeightFormat(form, granularity)
    shape = packed.scale_shape(rows, columns)
    scale = ((torch.rand(shape, generator=generator) + 0.1) / form.top).to(scales)
    zero = None if form.signed else (-torch.rand(shape, generator=generator)).to(scales)
    return PackedWeight(pack(codes, form.bits), scale, zero, packed, columns)


@pytest.fixture
def launched(monkeypatch):
    """Return the names of the kernels that were launched."""
    names, original = [], triton_runtime.launch

    def launch(kernel, *args, **options):
        names.append(kernel.fn.__name__)
        return original(kernel, *args, **options)

    monkeypatch.setattr(triton_runtime, "launch", launch)
    return names


# --- dequantize


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_every_code_of_every_format(form, launched):
    weight = weight_of(form, CHANNEL, 8, 256)
    assert torch.equal(bits(ops.dequantize(weight, torch.float32)), bits(dequantize_reference(weight)))
    assert launched == ["dequantize_units"]


@pytest.mark.parametrize("scales", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("granularity", [TENSOR, CHANNEL, 8, 24, 48])
@pytest.mark.parametrize("name", SOME)
def test_every_granularity_and_type(name, granularity, scales, launched):
    weight = weight_of(FloatFormat.parse(name), granularity, 5, 48, scales)
    for dtype in TYPES:
        found = ops.dequantize(weight, dtype)
        assert found.dtype == dtype and torch.equal(bits(found), bits(dequantize_reference(weight, dtype)))
    assert launched == ["dequantize_units"] * 3


def test_matrices_of_several_programs_and_none(launched):
    form = FloatFormat.parse("e2m1")
    for rows, columns in ((3, 4096), (257, 64), (1, 8)):
        weight = weight_of(form, CHANNEL, rows, columns)
        assert torch.equal(ops.dequantize(weight, torch.bfloat16), dequantize_reference(weight, torch.bfloat16))
    assert ops.dequantize(weight_of(form, CHANNEL, 0, 64), torch.float32).shape == (0, 64)
    assert len(launched) == 3


@pytest.mark.parametrize("scale", [0.0, 1e-42, 3e38, math.inf, math.nan])
def test_scales_at_the_ends_of_float32(scale):
    for name in SOME:
        weight = weight_of(FloatFormat.parse(name), CHANNEL, 2, 64)
        weight.scale.fill_(scale)
        assert torch.equal(bits(ops.dequantize(weight, torch.float32)), bits(dequantize_reference(weight)))


def test_codes_that_are_a_part_of_something():
    """Rows from the middle of a tensor, and columns of a wider one, whose rows are not neighbors."""
    form = FloatFormat.parse("e2m1")
    whole = weight_of(form, CHANNEL, 6, 64)
    for part in (slice(1, 5), slice(0, 6, 2)):
        weight = PackedWeight(whole.codes[part], whole.scale[part], None, whole.format, 64)
        assert torch.equal(ops.dequantize(weight, torch.float32), dequantize_reference(whole)[part])
    weight = PackedWeight(whole.codes[:, 8:16], whole.scale, None, whole.format, 16)
    assert torch.equal(ops.dequantize(weight, torch.float32), dequantize_reference(whole)[:, 16:32])
    odd = torch.empty(6 * 32 + 1, dtype=torch.uint8)[1:].view(6, 32).copy_(whole.codes)
    assert odd.data_ptr() % 4
    weight = PackedWeight(odd, whole.scale, None, whole.format, 64)
    assert torch.equal(ops.dequantize(weight, torch.float32), dequantize_reference(whole))


def test_what_the_kernels_do_not_read_is_computed_by_torch(launched, caplog):
    form, device = FloatFormat.parse("e2m1"), torch.device("cpu")
    for granularity, columns, words in ((CHANNEL, 20, "read rows in eights"), (12, 48, "read groups in eights")):
        weight = weight_of(form, granularity, 3, columns)
        assert words in ops.why_plain(weight, None, device)
        op._note.cache_clear()
        with caplog.at_level("WARNING"):
            assert torch.equal(ops.dequantize(weight, torch.float32), dequantize_reference(weight))
            x = torch.randn(2, columns).bfloat16()
            wanted = torch.nn.functional.linear(x, dequantize_reference(weight, torch.bfloat16))
            assert torch.equal(ops.linear(x, weight), wanted)
        assert [words in record.message for record in caplog.records] == [True]
        caplog.clear()
    dynamic = InputQuantizer(form, DYNAMIC, 1.0)
    x = torch.randn(2, triton_msfp.LONGEST_ROW + 8)
    assert torch.equal(ops.quantize_input(x, dynamic), dynamic.reference(x))
    assert launched == []
    assert ops.why_plain(weight_of(form, 16, 3, 48), dynamic, device) is None


# --- inputs


def points(form: FloatFormat, step: float, zero: float) -> torch.Tensor:
    """Return all values, all ties, and both neighbors of each; what is not finite; random numbers."""
    steps = torch.tensor(form.magnitudes, dtype=torch.float64)
    exact = torch.cat([steps, (steps[1:] + steps[:-1]) / 2]).float() * step
    around = [torch.nextafter(exact, torch.tensor(to)) for to in (math.inf, -math.inf)]
    random = torch.randn(300, generator=torch.Generator().manual_seed(0)) * step * form.top / 2
    found = torch.cat([exact, *around, random, torch.tensor([math.inf, math.nan, 0.0, 1e-42, 3e38])])
    return torch.cat([found, -found]) + zero


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_static_rounding_is_the_reference_to_the_bit(form, launched):
    for maxval, zero in ((float(form.top), 0.0), (2.7, -0.17)):
        quantizer = InputQuantizer(form, STATIC, maxval, 0.0 if form.signed else zero)
        x = points(form, maxval / form.top, quantizer.zero)
        for dtype in TYPES:
            y = x.to(dtype)
            assert torch.equal(bits(ops.quantize_input(y, quantizer)), bits(quantizer.reference(y)))
    assert launched == ["round_all"] * 6


@pytest.mark.parametrize("columns", [1, 7, 64, 1000])
@pytest.mark.parametrize("share", [1.0, 0.63])
@pytest.mark.parametrize("name", SOME)
def test_dynamic_rounding_is_the_reference_to_the_bit(name, share, columns, launched):
    quantizer = InputQuantizer(FloatFormat.parse(name), DYNAMIC, share)
    x = torch.randn(2, 5, columns, generator=torch.Generator().manual_seed(0)) + 0.2
    x[0, 1] *= 1e4
    x[0, 2] = 0.0
    x[0, 3] = x[0, 3].abs() + 1.0
    x[1, 0] = -3.0
    x[1, 3, columns // 2] = math.nan
    x[1, 4, columns // 2] = math.inf
    for dtype in TYPES:
        y = x.to(dtype)
        assert torch.equal(bits(ops.quantize_input(y, quantizer)), bits(quantizer.reference(y)))
    assert launched == ["round_rows"] * 3


def test_inputs_of_any_shape_and_strides():
    for quantizer in (InputQuantizer(E4M3FN, STATIC, 3.0), InputQuantizer(E4M3FN, DYNAMIC, 1.0)):
        x = torch.randn(6, 5, 4)
        for y in (x.transpose(0, 2), x[::2], x[:, :, 1:], x[0, 0], torch.zeros(0, 4), x[:0]):
            found = ops.quantize_input(y, quantizer)
            assert found.shape == y.shape and torch.equal(found, quantizer.reference(y))
        long = torch.randn(2, 2500)
        assert torch.equal(ops.quantize_input(long, quantizer), quantizer.reference(long))
    kept = x.clone().requires_grad_()
    assert not ops.quantize_input(kept, quantizer).requires_grad and torch.equal(kept, x)


# --- the product


@pytest.mark.parametrize("rows", [1, 16, 17, 64])
@pytest.mark.parametrize(("outputs", "columns"), [(32, 128), (40, 48), (7, 264)])
def test_few_rows_are_multiplied_in_one_kernel(rows, outputs, columns, launched):
    weight = weight_of(FloatFormat.parse("e2m1"), 8, outputs, columns)
    generator = torch.Generator().manual_seed(1)
    x, bias = torch.randn(rows, columns, generator=generator), torch.randn(outputs, generator=generator)
    for dtype in (torch.bfloat16, torch.float16):
        for b in (None, bias.to(dtype)):
            found = ops.linear(x.to(dtype), weight, b)
            exact = x.to(dtype).double() @ dequantize_reference(weight, dtype).double().t()
            exact = exact if b is None else exact + b.double()
            # Float32 sums, rounded once.
            assert found.dtype == dtype and found.shape == (rows, outputs)
            assert ((found.double() - exact).abs() <= torch.finfo(dtype).eps / 2 * exact.abs() + 1e-5).all()
    assert launched == ["packed_product"] * 4


@pytest.mark.parametrize("granularity", [TENSOR, CHANNEL, 24])
@pytest.mark.parametrize("name", SOME)
def test_the_product_reads_every_form(name, granularity, launched):
    weight = weight_of(FloatFormat.parse(name), granularity, 33, 72, torch.bfloat16)
    x = torch.randn(2, 3, 72, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = x.double() @ dequantize_reference(weight, torch.bfloat16).double().t()
    found = ops.linear(x, weight)
    assert found.shape == (2, 3, 33) and launched == ["packed_product"]
    assert ((found.double() - exact).abs() <= 2.0**-8 * exact.abs() + 1e-5).all()


def test_a_broken_row_spoils_no_other():
    weight = weight_of(FloatFormat.parse("ue2m2"), 16, 16, 48)
    x = torch.randn(3, 48).bfloat16()
    x[1, 5] = math.nan
    found = ops.linear(x, weight)
    assert found[1].isnan().all() and found[[0, 2]].isfinite().all()


def test_when_the_product_is_not_fused(launched):
    weight = weight_of(FloatFormat.parse("e2m1"), 16, 8, 32)
    quantizer = InputQuantizer(FloatFormat.parse("e2m3"), STATIC, 2.0)
    for x, fused in (
        (torch.randn(64, 32).bfloat16(), True),
        (torch.randn(65, 32).bfloat16(), False),
        (torch.randn(4, 32), False),
        (torch.randn(0, 32).bfloat16(), False),
        (torch.randn(4, 32).bfloat16().requires_grad_(), False),
    ):
        launched.clear()
        found = ops.linear(x, weight)
        assert launched == (["packed_product"] if fused else ["dequantize_units"])
        if x.requires_grad:
            found.sum().backward()
            wanted = dequantize_reference(weight, torch.bfloat16).sum(0).expand_as(x)
            assert torch.allclose(x.grad.float(), wanted.float(), rtol=0.02, atol=0.02)
    launched.clear()
    x = torch.randn(4, 32).bfloat16()
    assert torch.equal(ops.linear(x, weight, None, quantizer), ops.linear(quantizer.reference(x), weight))
    assert launched == ["round_all", "packed_product", "packed_product"]


# --- torch.compile


def test_ops_are_opaque_and_their_shapes_known():
    """torch's own check: schema, fakes, tracing with static and dynamic shapes."""
    weight = weight_of(FloatFormat.parse("ue2m2"), 16, 8, 32)
    x = torch.randn(2, 3, 32)
    bias = torch.randn(8).bfloat16()
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for each, arguments in (
        (op.msfp_dequantize, (*op.flat(weight), torch.bfloat16)),
        (op.msfp_quantize_input, (x.transpose(0, 1), "e2m1", STATIC, 2.0, 0.0)),
        (op.msfp_product, (x.bfloat16(), *op.flat(weight), bias)),
    ):
        torch.library.opcheck(each, arguments, test_utils=tests)


def test_compiled_layers_are_the_eager_ones():
    weight = weight_of(FloatFormat.parse("e2m1"), 16, 8, 32)
    quantizer = InputQuantizer(FloatFormat.parse("ue2m2"), STATIC, 2.0, -0.2)

    def layer(x):
        return ops.linear(x, weight, None, quantizer)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for rows in (3, 70):
        x = torch.randn(rows, 32).bfloat16()
        assert torch.equal(compiled(x), layer(x))
