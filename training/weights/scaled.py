"""ComfyUI's scaled FP8: which tensors are scales, which form the file has, and which forms can be multiplied out.

Three spellings exist: the old one (a tensor ``scaled_fp8``, scales ``<layer>.scale_weight``), a table in the metadata
(``_quantization_metadata``), and a tensor ``<layer>.comfy_quant`` per layer; both have ``<layer>.weight_scale``.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from safetensors import safe_open

from ..names import ModelError
from .files import Stored

FORMATS = ("float8_e4m3fn", "float8_e5m2")
_SCALES = ("weight_scale", "scale_weight")
_NOT_WEIGHTS = ("input_scale", "scale_input", "comfy_quant")


@dataclass(frozen=True)
class Scale:
    """The scale of one weight: a number, or one per row."""

    stored: Stored
    per_row: bool


def split_scales(
    tensors: dict[str, Stored], metadata: dict[str, str], source: str
) -> tuple[dict[str, Stored], dict[str, Scale], bool]:
    """Return the weights alone, the scale of each scaled one by its name, and whether the file is a scaled one.

    Raises ModelError with one sentence for a quantization that a factor per tensor or row does not undo.
    """
    weights: dict[str, Stored] = {}
    scales: dict[str, Scale] = {}
    formats: dict[str, str] = {}
    for name, stored in tensors.items():
        layer, _, last = name.rpartition(".")
        if last in _SCALES:
            scales[f"{layer}.weight"] = _scale(stored, tensors.get(f"{layer}.weight"), source)
        elif last == "comfy_quant":
            formats[layer] = _format(stored)
        elif last not in _NOT_WEIGHTS and name != "scaled_fp8":
            weights[name] = stored
    for layer, entry in _table(metadata, source).items():
        formats[layer] = str(entry.get("format"))
    for layer, name in formats.items():
        if name not in FORMATS:
            raise ModelError(
                f"{source}: layer {layer} is quantized as {name}, which cannot be trained from; "
                "give the bf16 file of this model"
            )
    for name, stored in weights.items():
        eight_bit = stored.dtype.startswith("F8")
        if name in scales and not eight_bit:
            raise ModelError(f"{source}: tensor {name} has a scale but is {stored.dtype}, not FP8; the file is damaged")
    return weights, scales, bool(scales)


def _scale(stored: Stored, weight: Stored | None, source: str) -> Scale:
    if weight is None:
        raise ModelError(f"{source}: has the scale {stored.name} of a weight that it lacks; the file is incomplete")
    rows = weight.shape[0] if weight.shape else 1
    numbers = math.prod(stored.shape)
    if numbers == 1:
        return Scale(stored, per_row=False)
    if stored.shape == (rows, 1):
        return Scale(stored, per_row=True)
    raise ModelError(
        f"{source}: {stored.name} has shape {stored.shape}, which is neither one number nor one per row of "
        f"{weight.name}; give the bf16 file of this model"
    )


def _format(stored: Stored) -> str:
    with safe_open(stored.file, "pt") as file:
        said = bytes(file.get_tensor(stored.name).flatten().tolist())
    try:
        return str(json.loads(said).get("format"))
    except (ValueError, AttributeError):
        return "something unreadable"


def _table(metadata: dict[str, str], source: str) -> dict[str, dict]:
    if "_quantization_metadata" not in metadata:
        return {}
    try:
        layers = json.loads(metadata["_quantization_metadata"])["layers"]
        if all(isinstance(entry, dict) for entry in layers.values()):
            return layers
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ModelError(f"{source}: its _quantization_metadata cannot be read; download the file again")
