"""NVFP4, the 4-bit form that Blackwell multiplies: ComfyUI's own layout, made by ComfyUI's own library.

It is e2m1 with an e4m3 scale per 16 neighbors and one float32 scale per tensor. Nothing of ours is in such a file: any
loader of ComfyUI takes it, multiplies in 4 bits where the card can (inputs rounded in every call), and dequantizes
elsewhere. Other forms of this package have no hardware behind them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...kernels.checkpoint import Header, write_streamed
from ..config import ConfigError
from ..weights import Weights

STEP = 16


def nvfp4_layout() -> Any:
    """Return comfy-kitchen's layout. Raises ConfigError, one sentence, where the package is missing or too old."""
    try:
        from comfy_kitchen.tensor import TensorCoreNVFP4Layout
    except ImportError as error:
        raise ConfigError(f"--form nvfp4 needs ComfyUI's library: pip install comfy-kitchen ({error})") from None
    return TensorCoreNVFP4Layout


def nvfp4(weight: Tensor) -> tuple[dict[str, Tensor], float]:
    """Return a weight's tensors by what follows its name in the file, and its mean squared error over its mean square.

    Raises ValueError for sizes that are no multiples of 16, or numbers that are not finite.
    """
    if weight.shape[0] % STEP or weight.shape[1] % STEP:
        raise ValueError(f"its weight is {tuple(weight.shape)}, and NVFP4 needs multiples of {STEP}; --keep it")
    if not bool(weight.isfinite().all()):
        raise ValueError(f"{int((~weight.isfinite()).sum())} of its {weight.numel()} weights are not finite")
    layout, weight = nvfp4_layout(), weight.to(torch.bfloat16)
    codes, params = layout.quantize(weight)
    back = layout.dequantize(codes, params).float()
    power = float(weight.double().square().mean()) or 1.0
    tensors = {f"weight{end}": tensor.cpu() for end, tensor in layout.state_dict_tensors(codes, params).items()}
    marker = torch.tensor(list(json.dumps({"format": "nvfp4"}).encode()), dtype=torch.uint8)
    return {**tensors, "comfy_quant": marker}, float((back - weight.float()).double().square().mean()) / power


def write_nvfp4(out: Path, weights: Weights, packed: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write a Wan whose ``packed`` layers are NVFP4 and whose rest is bf16, whole or not at all."""
    shapes = weights.shape.tensors()
    plain = [name for name in shapes if name.removesuffix(".weight") not in packed or not name.endswith(".weight")]
    layout = {name: (torch.bfloat16, shapes[name]) for name in plain}
    for layer, tensors in packed.items():
        layout |= {f"{layer}.{end}": (tensor.dtype, tuple(tensor.shape)) for end, tensor in tensors.items()}
    back = {original: name for name, original in weights.original.items()}

    def parts() -> Iterator[tuple[str, Tensor]]:
        for layer, tensors in packed.items():
            yield from ((f"{layer}.{end}", tensor) for end, tensor in tensors.items())
        for name in plain:
            yield name, weights.read(back[name]).to(torch.bfloat16)

    write_streamed(out, layout, parts(), Header.from_metadata(weights.metadata))
