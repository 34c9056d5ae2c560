"""Low-bit formats: tables against the IEEE formula and torchao's and torch's, rounding against a loop over all values.

The loops know nothing of steps in binades: they take the list of a format's values and look for the nearest.
"""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from fpsattention.kernels.msfp.formats import BITS, E4M3FN, INT4, FloatFormat, FormatError, candidates
from fpsattention.kernels.msfp.packing import pack, packed_width, unpack
from fpsattention.kernels.msfp.rounding import decode, encode, fake_quantize
from hypothesis import given
from hypothesis import strategies as st

FORMATS = [
    FloatFormat(exponent, bits - signed - exponent, signed)
    for bits in BITS
    for signed in (True, False)
    for exponent in range(min(5, bits - signed) + 1)
] + [E4M3FN]
ONE = torch.ones(1)
formats = st.sampled_from(FORMATS)


def ids(form: FloatFormat) -> str:
    return form.name


def value(form: FloatFormat, code: int) -> Fraction:
    """Return what IEEE 754's formula gives for a code, with its usual bias, in units of the smallest subnormal."""
    bias = 2 ** (form.exponent - 1) - 1 if form.exponent else 0
    sign = -1 if form.signed and code >> (form.bits - 1) else 1
    field = code >> form.mantissa & (2**form.exponent - 1)
    mantissa = Fraction(code & (2**form.mantissa - 1), 2**form.mantissa)
    power = Fraction(2) ** (max(field, 1) - bias)
    return sign * power * (mantissa + (field > 0)) / (Fraction(2) ** (1 - bias) / 2**form.mantissa)


def nearest(x: torch.Tensor, form: FloatFormat) -> torch.Tensor:
    """Return the format's values nearest to ``x`` in steps, ties to the even code: every number beside every value."""
    codes = range(2 ** (form.bits - form.signed) - form.reserved)
    values = torch.tensor([float(value(form, code)) for code in codes], dtype=torch.float64)
    found = []
    for number in x.double().tolist():
        if math.isnan(number) or (number < 0 and not form.signed):
            found.append(number if math.isnan(number) else 0.0)
            continue
        distance = (values - min(abs(number), float(values[-1]))).abs()
        near = (distance == distance.min()).nonzero().flatten().tolist()
        if len(near) > 1 and form.mantissa:
            near = [code for code in near if code % 2 == 0]
        elif len(near) > 1:
            # One digit: only zero's is even, and else the larger has it (IEEE 754-2019, section 4.3.1).
            near = [0] if near[0] == 0 else near[1:]
        (code,) = near
        found.append(math.copysign(float(values[code]), number))
    return torch.tensor(found)


def points(form: FloatFormat, seed: int = 0) -> torch.Tensor:
    """Return numbers in steps: all values, all ties, both neighbors of each, beyond the top, tiny and huge ones."""
    values = torch.tensor(sorted(float(abs(value(form, c))) for c in range(2**form.bits)), dtype=torch.float64).unique()
    exact = torch.cat([values, (values[1:] + values[:-1]) / 2]).float()
    assert torch.equal(exact.double()[len(values) :] * 2, values[1:] + values[:-1])
    around = [torch.nextafter(exact, torch.tensor(to)) for to in (math.inf, -math.inf)]
    generator = torch.Generator().manual_seed(seed)
    random = torch.rand(300, generator=generator) * form.top * 1.2
    spread = torch.exp2(torch.rand(100, generator=generator) * 50 - 20)
    found = torch.cat([exact, *around, random, spread, torch.tensor([1e-45, 1e-38, 3e38, math.inf])])
    return torch.cat([found, -found])


# --- tables


@pytest.mark.parametrize("form", FORMATS, ids=ids)
def test_every_code_has_the_value_of_the_formula(form):
    count = 2**form.bits
    wanted = [value(form, code) for code in range(count)]
    keep = [c for c in range(count) if (c & (2 ** (form.bits - form.signed) - 1)) < len(form.magnitudes)]
    assert len(keep) == count - form.reserved * (1 + form.signed)
    assert [Fraction(v) for v in form.values] == [wanted[c] for c in keep]
    decoded = decode(torch.tensor(keep, dtype=torch.uint8), form, ONE)
    assert decoded.dtype == torch.float32 and decoded.tolist() == [float(wanted[c]) for c in keep]
    assert form.top == max(wanted[c] for c in keep) == max(form.magnitudes)
    assert list(form.magnitudes) == sorted(set(form.magnitudes))
    codes = torch.tensor(keep, dtype=torch.uint8)
    back = encode(decoded, form, ONE)
    minus_zero = codes == (1 << (form.bits - 1)) if form.signed else torch.zeros_like(codes, dtype=torch.bool)
    assert torch.equal(back, torch.where(minus_zero, 0, codes))


def test_some_tables_in_full():
    assert FloatFormat(2, 1).magnitudes == (0, 1, 2, 3, 4, 6, 8, 12)
    assert FloatFormat(3, 0).magnitudes == (0, 1, 2, 4, 8, 16, 32, 64)
    assert FloatFormat(2, 2, False).magnitudes == (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28)
    assert FloatFormat(4, 0, False).magnitudes == (0, *(2**p for p in range(15)))
    assert INT4.magnitudes == FloatFormat(1, 2).magnitudes == tuple(range(8))


def test_the_hardware_s_e4m3fn_is_torch_s():
    codes = torch.arange(256, dtype=torch.int16).to(torch.uint8)
    theirs = codes.view(torch.float8_e4m3fn).float()
    number = ~theirs.isnan()
    assert int(number.sum()) == 254
    assert torch.equal(decode(codes, E4M3FN, torch.tensor([2.0**-9]))[number], theirs[number])
    x = theirs[number]
    middle = (x.unique()[1:].double() + x.unique()[:-1].double()).float() / 2
    for each in (x, middle, torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 100):
        each = each.clamp(-448, 448)
        assert torch.equal(fake_quantize(each, E4M3FN, torch.tensor([2.0**-9])), each.to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize(
    ("name", "step", "theirs"),
    [("e2m1", 0.5, "f4"), ("e2m3", 0.125, "f6_e2m3"), ("e3m2", 0.0625, "f6_e3m2")],
)
def test_torchao_s_fp4_and_fp6_are_these(name, step, theirs):
    kernels = pytest.importorskip("torchao.prototype.mx_formats.kernels")
    form, scale = FloatFormat.parse(name), torch.tensor([step])
    codes = torch.arange(2**form.bits, dtype=torch.uint8)
    assert torch.equal(decode(codes, form, scale), getattr(kernels, f"{theirs}_unpacked_to_f32")(codes))
    x = points(form) * step
    found = encode(x, form, scale)
    expected = getattr(kernels, f"f32_to_{theirs}_unpacked")(x)
    # They keep the sign of a zero.
    assert torch.equal(found, torch.where(expected == 1 << (form.bits - 1), 0, expected))


# --- rounding


@pytest.mark.parametrize("form", FORMATS, ids=ids)
def test_rounding_is_to_the_nearest_value_ties_to_even(form):
    x = points(form)
    wanted = nearest(x, form)
    assert torch.equal(fake_quantize(x, form, ONE), wanted)
    assert torch.equal(decode(encode(x, form, ONE), form, ONE), wanted)


@given(formats, st.floats(width=32, allow_nan=False), st.integers(-20, 20))
def test_powers_of_two_scale_through(form, x, power):
    """What is rounded and scaled by a power of two is the same as what is scaled and rounded."""
    factor = 2.0**power
    if not 1e-30 < abs(x) < 1e30:
        x = 0.0
    a = fake_quantize(torch.tensor([x]), form, ONE) * factor
    b = fake_quantize(torch.tensor([x * factor]), form, ONE * factor)
    assert torch.equal(a, b)


numbers = st.floats(-1e6, 1e6, width=32)
scales = st.floats(2.0**-10, 2.0**10, width=32)


@given(formats, st.lists(numbers, min_size=1, max_size=20), scales, st.floats(-10, 10, width=32))
def test_rounding_is_idempotent_monotone_and_within_half_a_step(form, xs, scale, zero):
    x = torch.tensor(sorted(xs))
    s = torch.tensor([scale])
    z = None if form.signed else torch.tensor([zero])
    rounded = fake_quantize(x, form, s, z)
    assert (rounded[1:] >= rounded[:-1]).all()
    codes = encode(x, form, s, z)
    assert torch.equal(decode(codes, form, s, z), rounded)
    low = 0.0 if z is None else zero
    top = form.top * scale
    if z is None:
        assert torch.equal(fake_quantize(rounded, form, s), rounded)
        assert torch.equal(fake_quantize(-x, form, s), -rounded)
    else:
        # Adding a zero point of another size loses bits: the code is the same wherever they suffice.
        fits = abs(zero) < 2.0**20 * scale
        assert not fits or torch.equal(encode(rounded, form, s, z), codes)
    for number, found in zip(x.tolist(), rounded.tolist()):
        inside = min(max(number, low if z is not None else -top), low + top)
        # The gap to the next larger value around the number, at most 2^-mantissa of it, at least one step.
        step = max(scale, abs(inside - low) * 2.0**-form.mantissa)
        assert abs(found - inside) <= step / 2 + 1e-5 * (abs(inside) + abs(zero))


@given(formats, st.lists(st.floats(width=32), min_size=1, max_size=20), st.floats(width=32, min_value=0))
def test_any_number_and_scale_give_a_value_or_nan(form, xs, scale):
    x, s = torch.tensor(xs), torch.tensor([scale])
    codes = encode(x, form, s)
    assert codes.dtype == torch.uint8 and (codes.int() < 2**form.bits).all()
    assert (codes.int() % 2 ** (form.bits - form.signed) < len(form.magnitudes)).all()
    rounded = fake_quantize(x, form, s)
    if math.isfinite(scale) and form.top * scale < 3e38:
        assert torch.equal(rounded.isnan(), x.isnan())
    if scale == 0:
        assert (rounded[~x.isnan()] == 0).all()


def test_what_is_not_finite():
    for form in FORMATS:
        x = torch.tensor([math.nan, math.inf, -math.inf, -0.0])
        found = fake_quantize(x, form, torch.tensor([0.5]))
        low = -form.top * 0.5 if form.signed else 0.0
        assert found[0].isnan() and found[1:].tolist() == [form.top * 0.5, low, 0.0]
        assert not found[3].signbit(), "zero has one code, without a sign"
        assert encode(x, form, ONE)[0] == 0
        zero = None if form.signed else torch.tensor([-0.25])
        flat = fake_quantize(torch.tensor([1.0, -2.0]), form, torch.zeros(1), zero)
        assert flat.tolist() == [0.0 if form.signed else -0.25] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["e2m1", "ue2m2", "e4m3", "e0m3", "ue3m3"])
def test_large_tensors_are_rounded_as_small_ones(name, dtype):
    """Beyond a cache's size the work is cut into blocks: nothing changes, for no shape of scales."""
    form = FloatFormat.parse(name)
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 700, 257), (700_001,), (5, 40_000)):
        x = torch.randn(shape, generator=generator).to(dtype)
        sizes = [(1,)] + [(*shape[:-1], 1)] * (len(shape) > 1) + [(shape[-1],)]
        for size in sizes:
            scale = torch.rand(size, generator=generator) + 0.1
            zero = None if form.signed else -torch.rand(size, generator=generator)
            found = fake_quantize(x, form, scale, zero)
            assert found.dtype == dtype and found.shape == x.shape
            flat, s = x.reshape(-1), scale.expand(shape).reshape(-1)
            z = None if zero is None else zero.expand(shape).reshape(-1)
            for part in (slice(0, 1000), slice(flat.numel() // 2, flat.numel() // 2 + 1000), slice(-1000, None)):
                small = fake_quantize(flat[part], form, s[part], None if z is None else z[part])
                assert torch.equal(found.reshape(-1)[part], small)


def test_rounding_leaves_its_input_alone_and_has_no_gradient():
    x = torch.randn(4, 8, requires_grad=True)
    kept = x.detach().clone()
    found = fake_quantize(x, INT4, ONE)
    assert torch.equal(x, kept) and not found.requires_grad
    strided = torch.randn(8, 6).t()
    assert torch.equal(fake_quantize(strided, INT4, ONE), fake_quantize(strided.contiguous(), INT4, ONE))
    assert fake_quantize(torch.zeros(0, 4), INT4, ONE).shape == (0, 4)


# --- names


@given(formats)
def test_names_give_the_format_back(form):
    assert FloatFormat.parse(form.name) == form


@pytest.mark.parametrize(
    "name",
    ["", "e2", "m1", "E2M1", "e2m1 ", "ue2m1", "e2m2", "e6m1", "e7m0", "e0m4", "e9m9", "e5m2fn", "ue5m3fn", "e2m1\n",
     "e٢m1", "nf4", None, 4, 2.5, ["e2m1"], {"e": 2}, "e2m1" * 1000],
)  # fmt: skip
def test_a_format_that_does_not_exist_gets_one_sentence(name):
    with pytest.raises(FormatError) as caught:
        FloatFormat.parse(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_formats_of_other_sizes_are_refused():
    for arguments in ((2, 2), (6, 1), (-1, 4), (4, -1), (2, 1, False)):
        with pytest.raises(FormatError):
            FloatFormat(*arguments)


def test_candidates_are_every_split():
    assert [f.name for f in candidates(4, True)] == ["e1m2", "e2m1", "e3m0"]
    assert [f.name for f in candidates(4, False)] == ["ue1m3", "ue2m2", "ue3m1", "ue4m0"]
    for bits in BITS:
        for signed in (True, False):
            assert all(f.bits == bits and f.signed == signed for f in candidates(bits, signed))
    with pytest.raises(FormatError, match="5 bits"):
        candidates(5, True)


# --- packing


@given(st.sampled_from(BITS), st.integers(1, 5), st.integers(1, 8), st.randoms(use_true_random=False))
def test_packed_rows_are_one_little_endian_number(bits, rows, units, random):
    columns = units * {4: 2, 6: 4, 8: 1}[bits]
    table = [[random.randrange(2**bits) for _ in range(columns)] for _ in range(rows)]
    codes = torch.tensor(table, dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (rows, packed_width(columns, bits)) == (rows, columns * bits // 8)
    for row, found in zip(table, packed.tolist()):
        number = sum(code << (bits * i) for i, code in enumerate(row))
        assert bytes(found) == number.to_bytes(columns * bits // 8, "little")
    assert torch.equal(unpack(packed, bits), codes)


@given(st.sampled_from(BITS), st.integers(1, 50))
def test_rows_that_do_not_fill_their_bytes_are_refused(bits, columns):
    if columns * bits % 8 == 0 and columns % {4: 2, 6: 4, 8: 1}[bits] == 0:
        assert packed_width(columns, bits) == columns * bits // 8
        return
    with pytest.raises(FormatError, match=f"{columns} codes of {bits} bits"):
        pack(torch.zeros(1, columns, dtype=torch.uint8), bits)


@pytest.mark.parametrize("bits", [0, 1, 2, 3, 5, 7, 16])
def test_other_widths_cannot_be_packed(bits):
    with pytest.raises(FormatError, match="cannot be packed"):
        packed_width(8, bits)
