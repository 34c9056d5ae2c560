"""The corrected interpreter casts like the hardware. Run by test_interpreted.py."""

from __future__ import annotations

import interpreter
import numpy as np
import pytest
import torch
import triton
import triton.language as tl

interpreter.correct()


@triton.jit
def copy(source, target, N: tl.constexpr):
    offsets = tl.arange(0, N)
    tl.store(target + offsets, tl.load(source + offsets).to(target.dtype.element_ty))


@triton.jit
def multiply(a, b, c, N: tl.constexpr):
    offsets = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(c + offsets, tl.dot(tl.load(a + offsets), tl.load(b + offsets)))


@triton.jit
def _first_nan_or_larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _low_and_sum(low_a, sum_a, low_b, sum_b):
    return tl.minimum(low_a, low_b), sum_a + sum_b


@triton.jit
def reduce(source, rows, lows, sums, everything, N: tl.constexpr, M: tl.constexpr):
    x = tl.load(source + tl.arange(0, N)[:, None] * M + tl.arange(0, M)[None, :])
    tl.store(rows + tl.arange(0, N), tl.reduce(x, 1, _first_nan_or_larger))
    low, total = tl.reduce((x, x), 0, _low_and_sum)
    tl.store(lows + tl.arange(0, M), low)
    tl.store(sums + tl.arange(0, M), total)
    tl.store(everything, tl.reduce(x, None, _first_nan_or_larger))


def cast(numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    size = 1 << (numbers.numel() - 1).bit_length()
    source = torch.zeros(size, dtype=numbers.dtype)
    source[: numbers.numel()] = numbers
    target = torch.empty(size, dtype=dtype)
    copy[(1,)](source, target, size)
    return target[: numbers.numel()]


def bits(numbers: torch.Tensor) -> list[int]:
    return numbers.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[numbers.element_size()]).tolist()


def saturated(numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    largest = torch.finfo(dtype).max
    return numbers.float().clamp(-largest, largest).to(dtype)


@pytest.mark.parametrize("wide", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("narrow", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_all_256_codes_survive_a_round_trip(narrow, wide):
    codes = torch.arange(256, dtype=torch.uint8).view(narrow)
    widened = cast(codes, wide)
    assert torch.equal(widened.nan_to_num(7e4), codes.to(wide).nan_to_num(7e4))
    finite = torch.isfinite(codes.float())
    assert bits(cast(widened, narrow)[finite]) == bits(codes[finite])


# value -> e4m3, by hand: carries at odd exponents, ties to even, subnormals, saturation.
BY_HAND = {
    31.42: 32.0,
    15.7: 16.0,
    255.9: 256.0,
    1.0625: 1.0,
    1.1875: 1.25,
    -1.0625: -1.0,
    0.0015: 2.0**-9,
    0.005: 0.005859375,
    2.0**-10: 0.0,
    1.5 * 2.0**-9: 2.0**-8,
    448.0: 448.0,
    -448.0: -448.0,
    464.0: 448.0,
    480.0: 448.0,
    1e4: 448.0,
    float("inf"): 448.0,
    float("-inf"): -448.0,
}


def test_edges_by_hand():
    result = cast(torch.tensor(list(BY_HAND)), torch.float8_e4m3fn).float()
    assert dict(zip(BY_HAND, result.tolist())) == BY_HAND
    assert cast(torch.tensor([float("nan")]), torch.float8_e4m3fn).isnan().all()
    assert cast(torch.tensor([1e6, float("inf")]), torch.float8_e5m2).tolist() == [57344.0] * 2


@pytest.mark.parametrize("wide", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("narrow", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_random_values_cast_like_torch(narrow, wide):
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-12, 10, (4096,), generator=generator)
    numbers = torch.ldexp(torch.randn(4096, generator=generator), exponents).to(wide)
    assert bits(cast(numbers, narrow)) == bits(saturated(numbers, narrow))


def test_bfloat16_rounds_to_nearest_and_multiplies():
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(1024, generator=generator)
    assert bits(cast(numbers, torch.bfloat16)) == bits(numbers.bfloat16())
    a, b = torch.randn(2, 16, 16, generator=generator).bfloat16()
    product = torch.empty(16, 16)
    multiply[(1,)](a, b, product, 16)
    assert torch.allclose(product, a.float() @ b.float(), atol=1e-5)


def test_other_types_are_left_to_triton():
    numbers = np.array([1.5, -2.25], dtype=np.float64)
    assert interpreter.interpreter._convert_float.corrected
    assert torch.equal(cast(torch.from_numpy(numbers), torch.float32), torch.tensor([1.5, -2.25]))


def test_reductions_with_a_function_of_ones_own():
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    rows, lows, sums, everything = torch.empty(8), torch.empty(16), torch.empty(16), torch.empty(1)
    reduce[(1,)](x, rows, lows, sums, everything, 8, 16)
    assert torch.equal(rows, x.amax(1)) and torch.equal(lows, x.amin(0)) and everything == x.max()
    assert torch.allclose(sums, x.sum(0), atol=1e-5)
    x[3, 5] = float("nan")
    reduce[(1,)](x, rows, lows, sums, everything, 8, 16)
    assert rows.isnan().tolist() == [i == 3 for i in range(8)] and everything.isnan().all()
