"""The model of an MSFP file in training: linear layers in low-bit floating point, computed by fake quantization.

A layer's weight holds the values of its codes, so a frozen one costs nothing more; its input is rounded in every
forward pass. Where weights are trained they are float32 masters, rounded in every forward at the file's own scales.
Gradients pass rounding unchanged and stop where it clamped (the clipped straight-through estimator, as in
quantization-aware training; arXiv 1308.3432, 1712.05877). Scales are not trained.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..kernels.checkpoint import HeaderError
from ..kernels.msfp import ops
from ..kernels.msfp.file import MsfpFile, PackedLayer
from ..kernels.msfp.inputs import DYNAMIC, InputQuantizer
from ..kernels.msfp.rounding import fake_quantize
from ..kernels.msfp.weights import WeightFormat
from .linear import FrozenLinear, become, linear
from .lora import linear_layers
from .model import WanTransformer3DModel, load_model
from .names import ModelError


class QuantizedLinear(FrozenLinear):
    """A linear layer of an MSFP file: quantized input, weight that is one of codes.

    ``scale`` and ``zero`` (float32) are no buffers: what casts or empties a module must not reach them. ``master`` says
    that the weight is trained, so that it is rounded before use.
    """

    packed_layer: PackedLayer
    scale: Tensor
    zero: Tensor | None = None
    master = False

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output (..., out_features)."""
        device = x.device.type
        if torch.is_autocast_enabled(device):  # the input is rounded as it is multiplied
            x = x.to(torch.get_autocast_dtype(device))
        x = round_input(x, self.packed_layer.input)
        return linear(x, self.rounded() if self.master else self.weight, self.bias)

    def rounded(self) -> Tensor:
        """Return the weight rounded to its codes' values, in its own dtype."""
        scale, zero = self._scales(self.weight.device)
        return _RoundWeight.apply(self.weight, self.packed_layer.weight, scale, zero)

    def _scales(self, device: torch.device) -> tuple[Tensor, Tensor | None]:
        if self.scale.device != device:
            self.scale = self.scale.to(device)
            self.zero = None if self.zero is None else self.zero.to(device)
        return self.scale, self.zero

    def extra_repr(self) -> str:
        """Return the layer's numbers, with its formats."""
        layer = self.packed_layer
        said = "as it is" if layer.input is None else layer.input.text
        return f"{super().extra_repr()}, weight={layer.weight.form.name}, input={said}"


def load_quantized(path: str | Path) -> WanTransformer3DModel:
    """Return the model of an MSFP file, float32, on the CPU. Raises ModelError, one sentence, for any other file."""
    model = load_model(path)
    if not is_quantized(model):
        raise ModelError(f"{path}: is no MSFP file; make one with `python -m training.quantize`")
    return model


def quantize_layers(model: WanTransformer3DModel, file: MsfpFile) -> None:
    """Make the layers that the file packs quantize, with its scales; weights are filled by ``weights.load_into``.

    Raises ModelError for scales that are not finite.
    """
    for name, (_, layer) in linear_layers(model).items():
        if name in file.layers:
            try:
                scale, zero = file.scales(name)
            except HeaderError as error:
                raise ModelError(str(error)) from None
            become(layer, QuantizedLinear)
            layer.packed_layer, layer.scale = file.layers[name], scale.float()
            layer.zero = None if zero is None else zero.float()
    model.msfp = file


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    """Return {original name: layer} of the model's quantized layers."""
    if not is_quantized(model):
        return {}
    return {n: layer for n, (_, layer) in linear_layers(model).items() if isinstance(layer, QuantizedLinear)}


def is_quantized(model: nn.Module) -> bool:
    """Return whether the model is that of an MSFP file."""
    return getattr(model, "msfp", None) is not None


def train_quantized(model: WanTransformer3DModel) -> None:
    """Make the quantized layers' weights masters that are trained: they are rounded in every forward from now on."""
    for layer in quantized_layers(model).values():
        layer.master = True


def round_input(x: Tensor, quantizer: InputQuantizer | None) -> Tensor:
    """Return ``x (..., features)`` as a layer sees it, in its own dtype, with a clipped straight-through gradient."""
    if quantizer is None:
        return x
    if not (x.requires_grad and torch.is_grad_enabled()):
        return ops.quantize_input(x, quantizer)
    return _RoundInput.apply(x, quantizer)


class _RoundInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, quantizer: InputQuantizer) -> Tensor:
        inside = _inside(x, quantizer)
        ctx.save_for_backward(*(() if inside is None else (inside,)))
        return ops.quantize_input(x, quantizer)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        saved = ctx.saved_tensors  # read once: a recomputed block gives them once
        return (grad * saved[0] if saved else grad), None


class _RoundWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight: Tensor, form: WeightFormat, scale: Tensor, zero: Tensor | None) -> Tensor:
        grouped = weight.reshape(weight.shape[0], scale.shape[1], -1)
        scale, zero = scale[..., None], None if zero is None else zero[..., None]
        ctx.save_for_backward(_within(grouped, form.form.top * scale, zero).reshape(weight.shape))
        return fake_quantize(grouped, form.form, scale, zero).reshape(weight.shape)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return grad * ctx.saved_tensors[0], None, None, None


def _inside(x: Tensor, quantizer: InputQuantizer) -> Tensor | None:
    """Return which of the numbers are not clamped, None where none can be."""
    if quantizer.mode == DYNAMIC:
        if quantizer.maxval >= 1:
            return None
        scale, zero = quantizer.ranges(x)
        return _within(x, scale * quantizer.form.top, zero)
    if quantizer.form.signed:
        return x.abs() <= quantizer.maxval
    return (x >= quantizer.zero) & (x <= quantizer.zero + quantizer.maxval)


def _within(x: Tensor, most: Tensor, zero: Tensor | None) -> Tensor:
    return x.abs() <= most if zero is None else (x >= zero) & (x <= zero + most)
