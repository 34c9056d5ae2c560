"""One file that ComfyUI loads, written as the tensors come: in bf16 or fp32, or in the host's own scaled FP8 form.

Scaled FP8 means, for a linear layer: ``<layer>.weight`` in e4m3, ``<layer>.weight_scale`` (one float32), and
``<layer>.comfy_quant`` (a few bytes of JSON), which is how ComfyUI itself saves such a model. The linear layers of the
blocks are stored so; everything else is bf16. Scales are powers of two: multiplying them out is exact in any type.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from ...kernels.checkpoint import Header, write_streamed
from ..names import WanShape

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp8": torch.bfloat16}
E4M3 = torch.float8_e4m3fn

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


def write_model(
    path: str | Path,
    shape: WanShape,
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    dtype: str = "bf16",
    header: Header | None = None,
    fp8_matmul: bool = False,
    extra_metadata: dict[str, str] | None = None,
) -> None:
    """Write a model's (original name, tensor) pairs to one file, whole or not at all.

    ``dtype`` is 'bf16', 'fp32' or 'fp8'; with ``fp8_matmul`` the host also multiplies in FP8, activations as they are,
    where its card can; without it the weights alone are FP8. Raises CheckpointError when it cannot be written.
    """
    quantized = {name for name, size in shape.tensors().items() if dtype == "fp8" and is_quantized(name, size)}
    marker = quantization_marker(fp8_matmul)
    write_streamed(
        path,
        _layout(shape, quantized, DTYPES[dtype], marker),
        _converted(tensors, quantized, DTYPES[dtype], marker),
        header,
        extra_metadata,
    )


def is_quantized(name: str, size: tuple[int, ...]) -> bool:
    """Return True for the weights that an FP8 file holds in FP8: the linear layers of the blocks."""
    return name.startswith("blocks.") and name.endswith(".weight") and len(size) == 2


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weight in e4m3 and its scale, the smallest power of two (float32) that lets the largest value fit."""
    weight = weight.float()
    largest = weight.abs().max()
    ratio = largest / torch.finfo(E4M3).max
    mantissa, exponent = torch.frexp(ratio)
    # frexp gives a mantissa in [0.5, 1): 2^exponent is above the ratio, or twice the ratio if that is a power of two.
    scale = torch.ldexp(torch.ones(()), torch.where(mantissa == 0.5, exponent - 1, exponent))
    scale = torch.where(largest > 0, scale, torch.ones(())).clamp(min=2.0**-100)
    return (weight / scale).to(E4M3), scale


def quantization_marker(fp8_matmul: bool) -> torch.Tensor:
    """Return what ComfyUI finds in ``comfy_quant``: JSON as bytes."""
    said: dict[str, object] = {"format": "float8_e4m3fn"}
    if not fp8_matmul:
        said["full_precision_matrix_mult"] = True
    return torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)


def _layout(shape: WanShape, quantized: set[str], dtype: torch.dtype, marker: torch.Tensor) -> Layout:
    layout: Layout = {}
    for name, size in shape.tensors().items():
        layout[name] = (E4M3 if name in quantized else dtype, size)
        if name in quantized:
            layout[f"{name}_scale"] = (torch.float32, ())
            layout[f"{name.removesuffix('weight')}comfy_quant"] = (torch.uint8, tuple(marker.shape))
    return layout


def _converted(
    tensors: Iterable[tuple[str, torch.Tensor]], quantized: set[str], dtype: torch.dtype, marker: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in tensors:
        if name not in quantized:
            yield name, tensor.to(dtype)
            continue
        weight, scale = quantize(tensor)
        yield name, weight
        yield f"{name}_scale", scale
        yield f"{name.removesuffix('weight')}comfy_quant", marker
