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
_ROUNDER = 1.5 * 2.0**23
# Numbers per thread that are rounded at once on a processor: what the passes hand on then stays in its cache.
_BLOCK = 1 << 17


def round_steps(u: Tensor, form: FloatFormat) -> Tensor:
    """Return ``u`` (float32, in steps) rounded to the format's values, at most ``top`` in magnitude; NaN stays, and
    zero has no sign. ``u`` is overwritten."""
    u = u.clamp_(-float(form.top) if form.signed else 0.0, float(form.top))
    # A number of [2^23, 2^24) times a power of two has no bits below that power, so adding one rounds to its multiples.
    if form.exponent < 2:
        return u.add_(_ROUNDER).sub_(_ROUNDER)
    # The power of two at or below |u|, from its bits: numbers in [2^e, 2^(e+1)) are spaced by 2^(e - mantissa), at
    # least by one step. NaN has an infinite power of two, and stays what it is.
    rounder = (u.view(torch.int32) & _EXPONENT_BITS).view(torch.float32)
    rounder.mul_(_ROUNDER * 2.0**-form.mantissa).clamp_(min=_ROUNDER)
    return u.add_(rounder).sub_(rounder)


def fake_quantize(x: Tensor, form: FloatFormat, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Return ``x`` rounded to the format's values, in ``x``'s dtype, without a gradient. A scale of 0 gives the zero
    point (or 0)."""
    parts = _parts(x, scale, zero)
    if len(parts) == 1:
        return _fake_quantize(x, form, scale, zero)
    return torch.cat([_fake_quantize(part[0], form, *part[1:]) for part in parts]).view(x.shape)


def _fake_quantize(x: Tensor, form: FloatFormat, scale: Tensor, zero: Tensor | None) -> Tensor:
    return _value(_rounded_steps(x, form, scale, zero), scale, zero).to(x.dtype)


def _parts(x: Tensor, scale: Tensor, zero: Tensor | None) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Return rows of ``x`` with their scales and zero points: as many as stay in a processor's cache, else all."""
    if x.device.type != "cpu" or scale.shape[-1:] != (1,) or torch.compiler.is_compiling():
        return [(x, scale, zero)]
    most = _BLOCK * torch.get_num_threads()
    if x.numel() <= most:
        return [(x, scale, zero)]
    rows = max(1, most // x.shape[-1])
    parts = x.reshape(-1, x.shape[-1]).split(rows)
    scales, zeros = (
        [None] * len(parts) if t is None else t.expand(*x.shape[:-1], 1).reshape(-1, 1).split(rows)
        for t in (scale, zero)
    )
    return list(zip(parts, scales, zeros, strict=True))


def encode(x: Tensor, form: FloatFormat, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Return the codes (uint8) of ``x``; NaN becomes 0, as no code says it, and zero has one code only."""
    steps = _rounded_steps(x, form, scale, zero).nan_to_num_(0.0)
    magnitude = steps.abs()
    # Ordered as magnitudes: p * 2^mantissa + m, with p from the place of the leading bit.
    leading = (magnitude.view(torch.int32) >> 23) - 127
    p = (leading - form.mantissa + 1).clamp_(min=0)
    m = (magnitude / _power(p)).to(torch.int32)
    # m still has the leading bit of a normal number, which counts as one in p.
    code = ((p - 1).clamp_(min=0) << form.mantissa) + m
    if form.signed:
        code = code + ((steps < 0).int() << (form.bits - 1))
    return code.to(torch.uint8)


def decode(
    codes: Tensor, form: FloatFormat, scale: Tensor, zero: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the values of codes (uint8), in ``dtype``."""
    steps = _table(form, codes.device).index_select(0, codes.flatten().int()).view(codes.shape)
    return _value(steps, scale, zero).to(dtype)


def _table(form: FloatFormat, device: torch.device) -> Tensor:
    """Return the value of every code in steps, float32, the sign of minus zero included."""
    half = [float(form.steps(code)) for code in range(1 << (form.exponent + form.mantissa))]
    return torch.tensor([*half, *(-steps for steps in half)] if form.signed else half, device=device)


def _power(p: Tensor) -> Tensor:
    """Return the spacing of the numbers with exponent field ``p``, in steps: 2^(p - 1), 1 for 0."""
    return ((p.clamp(min=1) + 126) << 23).view(torch.float32)


def _rounded_steps(x: Tensor, form: FloatFormat, scale: Tensor, zero: Tensor | None) -> Tensor:
    # Whatever is divided by nothing is multiplied by nothing again.
    scale, x = torch.where(scale == 0, 1.0, scale), x.detach().float()
    return round_steps(x / scale if zero is None else (x - zero).div_(scale), form)


def _value(steps: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """Return the value of ``steps``, which are overwritten."""
    value = steps.mul_(scale)
    return value if zero is None else value.add_(zero)
