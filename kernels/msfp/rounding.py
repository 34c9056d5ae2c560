"""Rounding tensors to a low-bit format, to codes and back. Plain torch, and the oracle of the Triton kernels.

``x ~ scale * steps + zero``. ``scale`` and ``zero`` are float32 and broadcast against ``x``; signed formats have no
zero point. Arithmetic is float32 whatever ``x`` is. Rounding is to nearest, ties to the even mantissa; a format without
mantissa bits has no even one, and ties go up, as IEEE 754 has it (2019, section 4.3.1). What exceeds the largest
magnitude is clamped to it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .formats import FloatFormat

_EXPONENT_BITS = 0x7F800000


def round_steps(u: Tensor, form: FloatFormat) -> Tensor:
    """Return magnitudes ``u >= 0`` (float32, in steps) rounded to those of the format, at most ``top``; NaN stays."""
    u = u.clamp(max=float(form.top))
    # The power of two at or below u, from its bits: numbers in [2^e, 2^(e+1)) are spaced by 2^(e - mantissa).
    power = (u.view(torch.int32) & _EXPONENT_BITS).view(torch.float32)
    spacing = (power * 2.0**-form.mantissa).clamp_(min=1.0)
    # NaN has an infinite power of two, and stays what it is.
    return (u / spacing).round_().mul_(spacing).clamp_(max=float(form.top))


def fake_quantize(x: Tensor, form: FloatFormat, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Return ``x`` rounded to the format's values, in ``x``'s dtype. A scale of 0 gives the zero point (or 0)."""
    steps = _signed_steps(x, form, scale, zero)
    return _value(steps, scale, zero).to(x.dtype)


def encode(x: Tensor, form: FloatFormat, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Return the codes (uint8) of ``x``; NaN becomes 0, as no code says it, and zero has one code only."""
    steps = _signed_steps(x, form, scale, zero).nan_to_num_(0.0)
    magnitude = steps.abs().to(torch.int32)
    # Ordered as magnitudes: p * 2^mantissa + m, with p from the place of the leading bit.
    _, exponent = torch.frexp(magnitude.float())
    p = (exponent - form.mantissa).clamp(min=0)
    subnormal = p == 0
    m = torch.where(subnormal, magnitude, (magnitude >> (p - 1).clamp(min=0)) - (1 << form.mantissa))
    code = (p << form.mantissa) + m
    if form.signed:
        code = code + ((steps < 0).int() << (form.bits - 1))
    return code.to(torch.uint8)


def decode(
    codes: Tensor, form: FloatFormat, scale: Tensor, zero: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the values of codes (uint8), in ``dtype``."""
    code = codes.to(torch.int32)
    negative = None
    if form.signed:
        negative = code >> (form.bits - 1) != 0
        code = code & ((1 << (form.bits - 1)) - 1)
    p, m = code >> form.mantissa, code & ((1 << form.mantissa) - 1)
    steps = torch.where(p == 0, m, (m + (1 << form.mantissa)) << (p - 1).clamp(min=0)).float()
    if negative is not None:
        steps = torch.where(negative, -steps, steps)
    return _value(steps, scale, zero).to(dtype)


def _signed_steps(x: Tensor, form: FloatFormat, scale: Tensor, zero: Tensor | None) -> Tensor:
    x = x.float() if zero is None else x.float() - zero
    # Whatever is divided by nothing is multiplied by nothing again.
    u = x / torch.where(scale == 0, 1.0, scale)
    if form.signed:
        return round_steps(u.abs(), form).copysign_(u)
    return round_steps(u.clamp(min=0.0), form)


def _value(steps: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    value = steps * scale
    return value if zero is None else value + zero
