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
