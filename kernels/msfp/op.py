"""The MSFP ops: ``torch.library`` custom ops with fakes, opaque to ``torch.compile``, by kernels or by plain torch.

They take tensors and scalars only, and have no gradient.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor
from torch.nn import functional

from . import triton_msfp
from .formats import FloatFormat
from .inputs import InputQuantizer
from .weights import PackedWeight, WeightFormat, dequantize_reference

logger = logging.getLogger(__name__)

Flat = tuple[Tensor, Tensor, Tensor | None, str, str, int]


def flat(weight: PackedWeight) -> Flat:
    """Return what the ops take of a packed weight: tensors and scalars."""
    form = weight.format
    return weight.codes, weight.scale, weight.zero, form.form.name, str(form.granularity), weight.columns


def why_plain(weight: PackedWeight | None, quantizer: InputQuantizer | None, device: torch.device) -> str | None:
    """Return why plain torch computes a layer with this weight and quantizer on ``device``; None if kernels do."""
    device = torch.device(device)
    reason = triton_msfp.why_not(device)
    if reason is None and weight is not None:
        reason = triton_msfp.why_not_weight(weight.format, weight.columns)
        if reason is None and quantizer is not None:
            reason = triton_msfp.why_not_input(quantizer, weight.columns)
    return reason


def _runs(reason: str | None) -> bool:
    if reason is not None:
        _note(reason)
    return reason is None


@functools.lru_cache(maxsize=32)
def _note(reason: str) -> None:
    """Say once why kernels stay unused where they are expected."""
    logger.warning("MSFP layers are computed by plain torch: %s.", reason)


@functools.lru_cache(maxsize=256)
def _format(form: str, granularity: str) -> WeightFormat:
    return WeightFormat(FloatFormat.parse(form), int(granularity) if granularity.isdigit() else granularity)


@functools.lru_cache(maxsize=1024)
def _quantizer(form: str, mode: str, maxval: float, zero: float) -> InputQuantizer:
    return InputQuantizer(FloatFormat.parse(form), mode, maxval, zero)


@torch.library.custom_op("fpsattention::msfp_dequantize", mutates_args=())
def msfp_dequantize(
    codes: Tensor, scale: Tensor, zero: Tensor | None, form: str, granularity: str, columns: int, dtype: torch.dtype
) -> Tensor:
    """Return the values (rows, columns) of a packed weight in ``dtype``."""
    weight = PackedWeight(codes, scale, zero, _format(form, granularity), columns)
    if _runs(why_plain(weight, None, codes.device)):
        return triton_msfp.dequantize(weight, dtype)
    return dequantize_reference(weight, dtype)


@msfp_dequantize.register_fake
def _(codes, scale, zero, form, granularity, columns, dtype):
    return codes.new_empty((codes.shape[0], columns), dtype=dtype)


@torch.library.custom_op("fpsattention::msfp_quantize_input", mutates_args=())
def msfp_quantize_input(x: Tensor, form: str, mode: str, maxval: float, zero: float) -> Tensor:
    """Return ``x (..., features)`` rounded, contiguous, in its own dtype."""
    quantizer = _quantizer(form, mode, maxval, zero)
    if _runs(triton_msfp.why_not(x.device) or triton_msfp.why_not_input(quantizer, x.shape[-1])):
        return triton_msfp.quantize_input(x, quantizer)
    return quantizer.reference(x).contiguous()


@msfp_quantize_input.register_fake
def _(x, form, mode, maxval, zero):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("fpsattention::msfp_product", mutates_args=())
def msfp_product(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    form: str,
    granularity: str,
    columns: int,
    bias: Tensor | None,
) -> Tensor:
    """Return ``(..., rows)``: few rows of x times a packed weight, plus ``bias``; sums are float32."""
    weight = PackedWeight(codes, scale, zero, _format(form, granularity), columns)
    if _runs(why_plain(weight, None, x.device)):
        return triton_msfp.product(x, weight, bias)
    return functional.linear(x, dequantize_reference(weight, x.dtype), bias)


@msfp_product.register_fake
def _(x, codes, scale, zero, form, granularity, columns, bias):
    return x.new_empty((*x.shape[:-1], codes.shape[0]))
