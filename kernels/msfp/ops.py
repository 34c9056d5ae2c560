"""What callers use: dequantize a weight, round an input, and multiply, by Triton kernels where they run.

Where none runs, the plain torch of ``weights`` and ``inputs`` does, which is also what the kernels are held to, and
``why_plain`` tells the reason. On a card the calls are opaque ``torch.library`` ops, so that ``torch.compile`` neither
looks into them nor changes how they round. None has a gradient with respect to what is rounded; training has its own.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor
from torch.nn import functional

from .. import triton_runtime
from . import triton_msfp
from .formats import FloatFormat
from .inputs import InputQuantizer
from .weights import PackedWeight, WeightFormat, dequantize_reference

logger = logging.getLogger(__name__)


def dequantize(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Return the values (rows, columns) of a packed weight in ``dtype``, on its device."""
    if not _opaque(weight.codes.device):
        return dequantize_reference(weight, dtype)
    return _dequantize(*_flat(weight), dtype)


def quantize_input(x: Tensor, quantizer: InputQuantizer | None) -> Tensor:
    """Return ``x (..., features)`` as the layer sees it, in its own dtype; ``x`` itself without a quantizer."""
    if quantizer is None:
        return x
    if not _opaque(x.device):
        return quantizer.reference(x)
    return _quantize_input(x.detach(), quantizer.form.name, quantizer.mode, quantizer.maxval, quantizer.zero)


def linear(
    x: Tensor, weight: PackedWeight, bias: Tensor | None = None, quantizer: InputQuantizer | None = None
) -> Tensor:
    """Return ``(..., rows)``: the quantized input times the dequantized weight in ``x``'s dtype, plus ``bias``.

    For few rows of ``x`` on a card the weight is dequantized within the product, whose sums are float32 either way.
    """
    x = quantize_input(x, quantizer)
    rows = x.numel() // max(1, x.shape[-1])
    if _opaque(x.device) and triton_msfp.fuses(rows, x.dtype) and not _trains(x, bias):
        return _product(x, *_flat(weight), bias)
    return functional.linear(x, dequantize(weight, x.dtype), bias)


def why_plain(weight: PackedWeight | None, quantizer: InputQuantizer | None, device: torch.device) -> str | None:
    """Return why plain torch computes a layer with this weight and quantizer on ``device``; None if kernels do."""
    device = torch.device(device)
    reason = triton_msfp.why_not(device)
    if reason is None and weight is not None:
        reason = triton_msfp.why_not_weight(weight.format, weight.columns)
        if reason is None and quantizer is not None:
            reason = triton_msfp.why_not_input(quantizer, weight.columns)
    return reason


def _opaque(device: torch.device) -> bool:
    return device.type == "cuda" or triton_runtime.interpreted()


def _trains(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _runs(reason: str | None) -> bool:
    if reason is not None:
        _note(reason)
    return reason is None


@functools.lru_cache(maxsize=32)
def _note(reason: str) -> None:
    """Say once why kernels stay unused where they are expected."""
    logger.warning("MSFP layers are computed by plain torch: %s.", reason)


# --- opaque ops: tensors and scalars only


Flat = tuple[Tensor, Tensor, Tensor | None, str, str, int]


def _flat(weight: PackedWeight) -> Flat:
    form = weight.format
    return weight.codes, weight.scale, weight.zero, form.form.name, str(form.granularity), weight.columns


@functools.lru_cache(maxsize=256)
def _format(form: str, granularity: str) -> WeightFormat:
    return WeightFormat(FloatFormat.parse(form), int(granularity) if granularity.isdigit() else granularity)


@functools.lru_cache(maxsize=1024)
def _quantizer(form: str, mode: str, maxval: float, zero: float) -> InputQuantizer:
    return InputQuantizer(FloatFormat.parse(form), mode, maxval, zero)


@torch.library.custom_op("fpsattention::msfp_dequantize", mutates_args=())
def _dequantize(
    codes: Tensor, scale: Tensor, zero: Tensor | None, form: str, granularity: str, columns: int, dtype: torch.dtype
) -> Tensor:
    weight = PackedWeight(codes, scale, zero, _format(form, granularity), columns)
    if _runs(why_plain(weight, None, codes.device)):
        return triton_msfp.dequantize(weight, dtype)
    return dequantize_reference(weight, dtype)


@_dequantize.register_fake
def _(codes, scale, zero, form, granularity, columns, dtype):
    return codes.new_empty((codes.shape[0], columns), dtype=dtype)


@torch.library.custom_op("fpsattention::msfp_quantize_input", mutates_args=())
def _quantize_input(x: Tensor, form: str, mode: str, maxval: float, zero: float) -> Tensor:
    quantizer = _quantizer(form, mode, maxval, zero)
    if _runs(triton_msfp.why_not(x.device) or triton_msfp.why_not_input(quantizer, x.shape[-1])):
        return triton_msfp.quantize_input(x, quantizer)
    return quantizer.reference(x).contiguous()


@_quantize_input.register_fake
def _(x, form, mode, maxval, zero):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("fpsattention::msfp_product", mutates_args=())
def _product(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    form: str,
    granularity: str,
    columns: int,
    bias: Tensor | None,
) -> Tensor:
    weight = PackedWeight(codes, scale, zero, _format(form, granularity), columns)
    if _runs(why_plain(weight, None, x.device)):
        return triton_msfp.product(x, weight, bias)
    return functional.linear(x, dequantize_reference(weight, x.dtype), bias)


@_product.register_fake
def _(x, codes, scale, zero, form, granularity, columns, bias):
    return x.new_empty((*x.shape[:-1], codes.shape[0]))
