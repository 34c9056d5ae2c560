"""Linear layers of an MSFP file in the host: packed weights that it moves, pins and counts, dequantized as they are
used.

The packed weight is one of the host's quantized tensors with a layout of ours, so that all of its memory management
knows it. LoRAs are added to the dequantized weight in every call: neither are codes rounded anew, nor is a second copy
kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.ops
import torch
from comfy.model_patcher import LowVramPatch
from comfy.quant_ops import QuantizedTensor, register_layout_class
from comfy_kitchen.tensor import BaseLayoutParams, QuantizedLayout
from torch import Tensor
from torch.nn import functional

from ..kernels.msfp import ops
from ..kernels.msfp.file import PackedLayer
from ..kernels.msfp.inputs import InputQuantizer
from ..kernels.msfp.weights import PackedWeight, WeightFormat

LAYOUT = "FPSAttentionMsfpLayout"
_Plain = comfy.ops.manual_cast.Linear


class PackedWeightError(RuntimeError):
    """Something wants to write into packed weights; the message is one sentence."""


class MsfpLayout(QuantizedLayout):
    """Codes as the quantized data; scales and zero points as parameters."""

    @dataclass(frozen=True)
    class Params(BaseLayoutParams):
        """``format`` says how the codes are read; the columns are those of ``orig_shape``."""

        format: WeightFormat
        zero: Tensor | None = None

        def _tensor_fields(self) -> list[str]:
            return ["scale"] if self.zero is None else ["scale", "zero"]

    @classmethod
    def quantize(cls, tensor: Tensor, **kwargs: Any) -> tuple[Tensor, Any]:
        """Refuse: scales are found by a search, not here."""
        raise PackedWeightError("MSFP weights cannot be packed while a model runs; use `python -m training.quantize`.")

    @classmethod
    def dequantize(cls, qdata: Tensor, params: Params) -> Tensor:
        """Return the values (rows, columns) in the dtype that the tensor says it has."""
        packed = PackedWeight(qdata, params.scale, params.zero, params.format, params.orig_shape[1])
        return ops.dequantize(packed, params.orig_dtype)

    @classmethod
    def get_plain_tensors(cls, qtensor: QuantizedTensor) -> tuple[Tensor, ...]:
        """Return the tensors that it consists of."""
        return tuple(cls.state_dict_tensors(qtensor._qdata, qtensor._params).values())

    @classmethod
    def state_dict_tensors(cls, qdata: Tensor, params: Params) -> dict[str, Tensor]:
        """Return the same by the ends of their names."""
        return {"": qdata} | {f"_{field}": getattr(params, field) for field in params._tensor_fields()}


register_layout_class(LAYOUT, MsfpLayout)


def as_host_tensor(weight: PackedWeight, dtype: torch.dtype) -> QuantizedTensor:
    """Return ``weight`` as the host's quantized tensor, which stands for a matrix of ``dtype``; nothing is copied."""
    params = MsfpLayout.Params(weight.scale, dtype, tuple(weight.shape), weight.format, weight.zero)
    return QuantizedTensor(weight.codes, LAYOUT, params)


def packed_of(tensor: QuantizedTensor) -> PackedWeight:
    """Return the weight that ``as_host_tensor`` was given, wherever the host has moved it."""
    params = tensor._params
    return PackedWeight(tensor._qdata, params.scale, params.zero, params.format, params.orig_shape[1])


def is_packed(tensor: Any) -> bool:
    """Return whether a parameter is a packed weight of ours."""
    return isinstance(tensor, QuantizedTensor) and tensor._layout_cls == LAYOUT


class MsfpLinear(_Plain):
    """The host's linear layer with a packed weight. One whose weight comes as it was becomes the host's own.

    ``on_the_fly`` is what changes the weight in every call: a LoRA, or None.
    """

    layers: Mapping[str, PackedLayer] = {}
    round_inputs = True

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        # The weight comes with the file; no memory is taken for what it would be unpacked.
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        self.register_parameter("weight", None)
        empty = torch.empty(out_features, device=device, dtype=dtype) if bias else None
        self.register_parameter("bias", None if empty is None else torch.nn.Parameter(empty, requires_grad=False))
        self.weight_comfy_model_dtype = dtype
        self.input_quantizer: InputQuantizer | None = None
        self.on_the_fly: LowVramPatch | None = None

    @property
    def weight_lowvram_function(self) -> Any:
        """What the host's dynamic memory would round into the weights that it keeps; here it is added on the fly."""
        return None

    @weight_lowvram_function.setter
    def weight_lowvram_function(self, function: Any) -> None:
        self.on_the_fly = function

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest: Any) -> None:
        name = prefix.removesuffix(".")
        if name not in self.layers:
            self.__class__ = _Plain
            empty = torch.empty(self.out_features, self.in_features, dtype=self.weight_comfy_model_dtype)
            self.weight = torch.nn.Parameter(empty, requires_grad=False)
            return self._load_from_state_dict(state_dict, prefix, *rest)
        weight = state_dict.pop(prefix + "weight")
        super()._load_from_state_dict(state_dict, prefix, *rest)
        # What the file maps is taken as it is: copied into an own parameter it would be in memory twice.
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.input_quantizer = self.layers[name].input if self.round_inputs else None

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight is not None:
            # Detached, it would be a copy of its scales, each time that the host asks how large the model is.
            destination[prefix + "weight"] = self.weight

    def _apply(self, fn: Any, recurse: bool = True) -> MsfpLinear:
        if self.weight is None:
            return super()._apply(fn, recurse)
        # As the host's own quantized layers do: writing through .data would leave the codes where they are.
        moved = fn(self.weight)
        if moved.is_inference() and not torch.is_inference_mode_enabled():
            moved = moved.clone()
        self.register_parameter("weight", None)
        super()._apply(fn, recurse)
        self.weight = torch.nn.Parameter(moved, requires_grad=False)
        return self

    def convert_weight(self, weight: Tensor, **_: Any) -> Tensor:
        """Return the values of a packed weight, for whoever merges this model into another."""
        return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight

    def set_weight(self, weight: Tensor, return_weight: bool = False, **_: Any) -> Tensor:
        """Return ``weight`` if it is only asked for; refuse to write it over the codes."""
        if return_weight:
            return weight
        raise PackedWeightError(
            "a node wants to write into the packed weights of an MSFP model; use a LoRA loader without hooks, or the "
            "model's file in full precision."
        )

    # A compiler would specialize on every layer's codes and LoRA, and give up after a few.
    @torch.compiler.disable
    def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
        """Return the layer's output: rounded input times the dequantized weight, LoRAs added to it."""
        functions = self.weight_function
        # Without functions and in its own dtype the host hands back the packed weight, on the input's device.
        self.weight_function = []
        try:
            weight, bias, stream = comfy.ops.cast_bias_weight(
                self, dtype=self.weight.dtype, device=input.device, bias_dtype=input.dtype, offloadable=True
            )
        finally:
            self.weight_function = functions
        if self.on_the_fly is not None and not any(isinstance(f, LowVramPatch) for f in functions):
            functions = [self.on_the_fly, *functions]
        if not functions and is_packed(weight):
            out = ops.linear(input, packed_of(weight), bias, self.input_quantizer)
        else:
            values = ops.dequantize(packed_of(weight), input.dtype) if is_packed(weight) else weight.to(input.dtype)
            for function in functions:
                values = function(values)
            out = functional.linear(ops.quantize_input(input, self.input_quantizer), values, bias)
        comfy.ops.uncast_bias_weight(self, weight, bias, stream)
        return out


def extra_bytes(module: torch.nn.Module) -> int:
    """Return the bytes of a module's scales, which the host's sizes leave out."""
    return packed_of(module.weight).nbytes - module.weight.nbytes if isinstance(module, MsfpLinear) else 0


def operations(packed: Mapping[str, PackedLayer], round_inputs: bool) -> type[comfy.ops.manual_cast]:
    """Return the host's operations for a model with these packed layers, by name."""

    class MsfpOps(comfy.ops.manual_cast):
        class Linear(MsfpLinear):
            layers = packed

    MsfpOps.Linear.round_inputs = round_inputs
    return MsfpOps
