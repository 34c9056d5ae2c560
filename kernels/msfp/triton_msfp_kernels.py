"""The Triton kernels of MSFP: codes to values, rounding of inputs, and few rows times a packed weight.

Imports triton, so it is imported only by the launchers, and only when that path is asked for.

Codes are read in units of eight, which take as many bytes as a code has bits, so that eight numbers of 16 bits are
written at once. Arithmetic is that of ``rounding``, to the bit: nothing may be fused into a multiply-add (launchers say
so), and subnormal floats must not be flushed (Triton does not).
"""

from __future__ import annotations

import triton
import triton.language as tl

UNIT = tl.constexpr(8)
ROUNDER = tl.constexpr(1.5 * 2.0**23)
_NAN = tl.PropagateNan.ALL
ALL_NAN = tl.constexpr(_NAN)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=ALL_NAN)


@triton.jit
def _extremes(low_a, high_a, low_b, high_b):
    return tl.minimum(low_a, low_b, propagate_nan=ALL_NAN), _larger(high_a, high_b)


@triton.jit
def _codes(codes_ptr, unit, live, BITS: tl.constexpr):
    """Return the codes (n, 8), int32, of the units ``unit (n)``. ``codes_ptr``: int32 for 4 bits, int16 for 6, uint8
    for 8."""
    place = tl.arange(0, UNIT)[None, :]
    if BITS == 4:
        word = tl.load(codes_ptr + unit, mask=live, other=0)
        return (word[:, None] >> (place * 4)) & 15
    if BITS == 6:
        low = tl.load(codes_ptr + unit * 3, mask=live, other=0).to(tl.int64) & 0xFFFF
        middle = tl.load(codes_ptr + unit * 3 + 1, mask=live, other=0).to(tl.int64) & 0xFFFF
        high = tl.load(codes_ptr + unit * 3 + 2, mask=live, other=0).to(tl.int64) & 0xFFFF
        word = low | (middle << 16) | (high << 32)
        return ((word[:, None] >> (place * 6)) & 63).to(tl.int32)
    return tl.load(codes_ptr + unit[:, None] * UNIT + place, mask=live[:, None], other=0).to(tl.int32)


@triton.jit
def _values(
    codes_ptr, scale_ptr, zero_ptr, unit, live, span,
    BITS: tl.constexpr, MANTISSA: tl.constexpr, SIGNED: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Return the values (n, 8), float32, of the units ``unit (n)``.

    ``SPAN`` units share a scale; 0: all of them; -1: ``span`` units, which compiles nothing anew for another width.
    """
    code = _codes(codes_ptr, unit, live, BITS)
    # Exponent and mantissa where a float has them: its subnormals are the format's, and a power of two makes steps.
    bits = (code & ((1 << (BITS - SIGNED)) - 1)) << (23 - MANTISSA)
    if SIGNED:
        bits |= (code >> (BITS - 1)) << 31
    steps = bits.to(tl.float32, bitcast=True) * 2.0**126 * 2.0**MANTISSA
    which = unit * 0
    if SPAN > 0:
        which = unit // SPAN
    elif SPAN < 0:
        which = unit // span
    values = steps * tl.load(scale_ptr + which, mask=live, other=0.0).to(tl.float32)[:, None]
    if zero_ptr is not None:
        values += tl.load(zero_ptr + which, mask=live, other=0.0).to(tl.float32)[:, None]
    return values


@triton.jit(do_not_specialize=["span"])
def dequantize_units(
    codes_ptr,
    scale_ptr,
    zero_ptr,
    out_ptr,
    units,
    span,
    BITS: tl.constexpr,
    MANTISSA: tl.constexpr,
    SIGNED: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the values of ``BLOCK`` units of a matrix, whose rows are whole units."""
    unit = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = unit < units
    values = _values(codes_ptr, scale_ptr, zero_ptr, unit, live, span, BITS, MANTISSA, SIGNED, SPAN)
    target = unit.to(tl.int64)[:, None] * UNIT + tl.arange(0, UNIT)[None, :]
    tl.store(out_ptr + target, values.to(out_ptr.dtype.element_ty), mask=live[:, None])


@triton.jit
def _rounded(
    x, scale, zero, MANTISSA: tl.constexpr, SIGNED: tl.constexpr, EVEN: tl.constexpr, TOP: tl.constexpr
):  # fmt: skip
    """Return ``x`` rounded as ``rounding.fake_quantize`` does; ``zero`` is None for signed formats. EVEN: every value
    is one step from the next."""
    if zero is not None:
        x -= zero
    u = tl.div_rn(x, tl.where(scale == 0.0, 1.0, scale))
    u = tl.minimum(tl.maximum(u, -TOP if SIGNED else 0.0, propagate_nan=ALL_NAN), TOP, propagate_nan=ALL_NAN)
    if EVEN:
        u = (u + ROUNDER) - ROUNDER
    else:
        power = (u.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        rounder = tl.maximum(power * (ROUNDER * 2.0**-MANTISSA), ROUNDER)
        u = (u + rounder) - rounder
    value = u * scale
    if zero is not None:
        value += zero
    return value


@triton.jit(do_not_specialize=["maxval", "zero"])
def round_all(
    x_ptr,
    out_ptr,
    count,
    maxval,
    zero,
    MANTISSA: tl.constexpr,
    SIGNED: tl.constexpr,
    EVEN: tl.constexpr,
    TOP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write ``count`` numbers rounded, all with one largest magnitude and zero point (None: none)."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = place < count
    x = tl.load(x_ptr + place, mask=live, other=0.0).to(tl.float32)
    value = _rounded(x, tl.div_rn(maxval, TOP), zero, MANTISSA, SIGNED, EVEN, TOP)
    tl.store(out_ptr + place, value.to(out_ptr.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["share"])
def round_rows(
    x_ptr,
    out_ptr,
    columns,
    share,
    MANTISSA: tl.constexpr,
    SIGNED: tl.constexpr,
    EVEN: tl.constexpr,
    TOP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write one row rounded with the scale of its own range, of which the format takes ``share``."""
    start = tl.program_id(0).to(tl.int64) * columns
    place = tl.arange(0, BLOCK)
    live = place < columns
    x = tl.load(x_ptr + start + place, mask=live, other=0.0).to(tl.float32)
    if SIGNED:
        span = tl.reduce(tl.abs(x), 0, _larger)
        low = None
    else:
        low, high = tl.reduce((tl.where(live, x, float("inf")), tl.where(live, x, float("-inf"))), 0, _extremes)
        span = high - low
    value = _rounded(x, tl.div_rn(span * share, TOP), low, MANTISSA, SIGNED, EVEN, TOP)
    tl.store(out_ptr + start + place, value.to(out_ptr.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["span", "rows", "outputs"])
def packed_product(
    x_ptr,
    codes_ptr,
    scale_ptr,
    zero_ptr,
    bias_ptr,
    out_ptr,
    rows,
    outputs,
    columns,
    span,
    BITS: tl.constexpr,
    MANTISSA: tl.constexpr,
    SIGNED: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Write ``out (rows, outputs) = x (rows, columns) W^T + bias`` for ``BLOCK_N`` outputs; ``rows <= BLOCK_M``.

    The weight's values, rounded to ``x``'s dtype as ``dequantize_units`` does, are the left side of the product, so
    that few rows of ``x`` leave no part of a matrix instruction idle that a weight could fill.
    """
    wide: tl.constexpr = BLOCK_K // UNIT
    units = columns // UNIT
    first = tl.program_id(0) * BLOCK_N
    # Units of the block as one list, row after row.
    place = tl.arange(0, BLOCK_N * wide)
    output, column = first + place // wide, place % wide
    row = tl.arange(0, BLOCK_M)
    channel = tl.arange(0, BLOCK_K)
    x_place = x_ptr + row[None, :] * columns + channel[:, None]
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in range(0, units, wide):
        live = (output < outputs) & (start + column < units)
        unit = output * units + (start + column)
        values = _values(codes_ptr, scale_ptr, zero_ptr, unit, live, span, BITS, MANTISSA, SIGNED, SPAN)
        w = tl.reshape(values.to(x_ptr.dtype.element_ty), [BLOCK_N, BLOCK_K])
        seen = (row[None, :] < rows) & (start * UNIT + channel[:, None] < columns)
        x = tl.load(x_place + start * UNIT, mask=seen, other=0.0)
        total = tl.dot(w, x, total)
    output = first + tl.arange(0, BLOCK_N)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + output, mask=output < outputs, other=0.0).to(tl.float32)[:, None]
    target = out_ptr + row[None, :] * outputs + output[:, None]
    kept = (row[None, :] < rows) & (output[:, None] < outputs)
    tl.store(target, total.to(out_ptr.dtype.element_ty), mask=kept)
