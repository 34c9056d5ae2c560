"""What callers use: dequantize a weight, round an input, and multiply, by Triton kernels where they run.

Where none runs, the plain torch of ``weights`` and ``inputs`` does, which is also what the kernels are held to, and
``why_plain`` tells the reason. On a card the calls are opaque ``torch.library`` ops, so that ``torch.compile`` neither
looks into them nor changes how they round. None has a gradient with respect to what is rounded; training has its own.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .. import triton_runtime
from . import triton_msfp
from .inputs import InputQuantizer
from .op import flat, msfp_dequantize, msfp_product, msfp_quantize_input, why_plain
from .weights import PackedWeight, dequantize_reference

__all__ = ["dequantize", "linear", "quantize_input", "why_plain"]


def dequantize(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Return the values (rows, columns) of a packed weight in ``dtype``, on its device."""
    if not _opaque(weight.codes.device):
        return dequantize_reference(weight, dtype)
    return msfp_dequantize(*flat(weight), dtype)


def quantize_input(x: Tensor, quantizer: InputQuantizer | None) -> Tensor:
    """Return ``x (..., features)`` as the layer sees it, in its own dtype; ``x`` itself without a quantizer."""
    if quantizer is None:
        return x
    if not _opaque(x.device):
        return quantizer.reference(x)
    return msfp_quantize_input(x.detach(), quantizer.form.name, quantizer.mode, quantizer.maxval, quantizer.zero)


def linear(
    x: Tensor, weight: PackedWeight, bias: Tensor | None = None, quantizer: InputQuantizer | None = None
) -> Tensor:
    """Return ``(..., rows)``: the quantized input times the dequantized weight in ``x``'s dtype, plus ``bias``.

    For few rows of ``x`` on a card the weight is dequantized within the product, whose sums are float32 either way.
    """
    x = quantize_input(x, quantizer)
    rows = x.numel() // max(1, x.shape[-1])
    if _opaque(x.device) and triton_msfp.fuses(rows, x.dtype) and not _trains(x, bias):
        return msfp_product(x, *flat(weight), bias)
    return functional.linear(x, dequantize(weight, x.dtype), bias)


def _opaque(device: torch.device) -> bool:
    return device.type == "cuda" or triton_runtime.interpreted()


def _trains(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
