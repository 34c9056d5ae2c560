"""The LoRAs of a timestep-aware LoRA as modules in the host's memory management, and the sum that one adds to a layer.

Every LoRA of every layer is two linear layers of the host's own kind, so with little memory the host keeps them where
they fit and fetches them when they are used, as it does with the model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import comfy.model_patcher
import comfy.ops
import torch

from ..kernels.checkpoint import HeaderError
from ..kernels.timestep_lora import TimestepLora

_Linear = comfy.ops.manual_cast.Linear


class Branch(torch.nn.Module):
    """One LoRA of one layer: ``down`` is A (rank, in), ``up`` is factor * B (out, rank)."""

    def __init__(self, first: torch.Tensor, second: torch.Tensor, factor: float, dtype: torch.dtype):
        super().__init__()
        self.down, self.up = _linear(first, dtype), _linear(second.float() * factor, dtype)

    def add(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Return ``out + (x A^T) (factor B)^T`` for x (..., in), out (..., out), in place of ``out`` where that can be.

        A second pass over the layer's output is what this costs, so the sum is part of the matrix product.
        """
        hidden = self.down(x)
        weight, bias, stream = comfy.ops.cast_bias_weight(self.up, hidden, offloadable=True)
        if out.is_contiguous() and out.dtype == hidden.dtype and not torch.is_grad_enabled():
            out.view(-1, out.shape[-1]).addmm_(hidden.view(-1, hidden.shape[-1]), weight.t())
        else:
            out = out + torch.nn.functional.linear(hidden, weight).to(out.dtype)
        comfy.ops.uncast_bias_weight(self.up, weight, bias, stream)
        return out


def _linear(weight: torch.Tensor, dtype: torch.dtype) -> torch.nn.Module:
    layer = _Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = torch.nn.Parameter(weight.to(dtype).contiguous(), requires_grad=False)
    return layer


class Hub(torch.nn.Module):
    """All branches, by layer and LoRA."""

    def __init__(self, layers: Mapping[str, Sequence[Branch]], dtype: torch.dtype):
        super().__init__()
        self.names = {name: number for number, name in enumerate(layers)}
        self.layers = torch.nn.ModuleList(torch.nn.ModuleList(branches) for branches in layers.values())
        self.dtype = dtype

    def get_dtype(self) -> torch.dtype:
        """Return the dtype of the matrices; the host asks for it."""
        return self.dtype

    def branch(self, layer: str, index: int) -> Branch:
        """Return LoRA ``index`` of ``layer``."""
        return self.layers[self.names[layer]][index]


def load_hub(file: TimestepLora, strength: float, dtype: torch.dtype) -> Hub:
    """Return the LoRAs of ``file`` in ``dtype``, scaled by its scale and ``strength``. Raises HeaderError for values
    that are not finite, in the file or once scaled."""
    factor = strength * file.scale
    layers = {}
    for layer, first, second in file.tensors():
        layers[layer] = [Branch(a, b, factor, dtype) for a, b in zip(first, second)]
        if not all(bool(part.weight.isfinite().all()) for branch in layers[layer] for part in (branch.down, branch.up)):
            raise HeaderError(
                f"{file.path.name}: the LoRA of {layer} at scale {file.scale:g} and strength {strength:g} exceeds what "
                f"{str(dtype).removeprefix('torch.')} holds; choose a smaller strength, or export it again."
            )
    return Hub(layers, dtype)


def managed(hub: Hub, model: Any) -> Any:
    """Return ``hub`` as the host manages it, on the devices of ``model``."""
    dynamic = getattr(model, "is_dynamic", lambda: False)()
    patcher = comfy.model_patcher.ModelPatcherDynamic if dynamic else comfy.model_patcher.ModelPatcher
    return patcher(hub, load_device=model.load_device, offload_device=model.offload_device)
