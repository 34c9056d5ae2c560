"""Small MSFP files of random models: every kind of scale, signed and unsigned weights and inputs."""

from __future__ import annotations

from pathlib import Path

import torch
from fpsattention.kernels.checkpoint import Header
from fpsattention.kernels.msfp.file import PackedLayer, fingerprint_of, write_msfp
from fpsattention.kernels.msfp.formats import FloatFormat
from fpsattention.kernels.msfp.inputs import InputQuantizer
from fpsattention.kernels.msfp.weights import PackedWeight, WeightFormat, quantize_weight
from fpsattention.training.model import original_state, random_model
from fpsattention.training.names import WanShape

SHAPE = WanShape(128, 64, 2, text_dim=16)
LAYERS = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "ffn.0", "ffn.2")


def layer_of(name: str, columns: int) -> PackedLayer:
    """Return how a block's layer is packed here."""
    form = lambda text: FloatFormat.parse(text)  # noqa: E731
    if name.endswith("ffn.2"):
        weight = WeightFormat(form("ue2m2"), 32)
        return PackedLayer(weight, columns, InputQuantizer(form("ue2m2"), "static", 2.5, -0.17))
    if name.endswith("self_attn.v"):
        return PackedLayer(WeightFormat(form("e2m1"), "tensor"), columns, InputQuantizer(form("e2m1"), "dynamic", 0.8))
    if name.endswith("cross_attn.q"):
        return PackedLayer(WeightFormat(form("e2m3"), "channel"), columns, None)
    return PackedLayer(WeightFormat(form("e2m1"), "channel"), columns, InputQuantizer(form("e2m1"), "static", 3.0))


def quantize(weight: torch.Tensor, form: WeightFormat) -> PackedWeight:
    """Return the weight at the scales of its groups' least and largest values."""
    rows, columns = weight.shape
    scales = form.scale_shape(rows, columns)
    grouped = weight.reshape(scales[0], scales[1], -1)
    if form.form.signed:
        return quantize_weight(weight, form, grouped.abs().amax(-1) / form.form.top)
    low = grouped.amin(-1)
    return quantize_weight(weight, form, (grouped.amax(-1) - low) / form.form.top, low)


def small_state(shape: WanShape = SHAPE, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a random model's tensors by original name; its head is no zero."""
    model = random_model(shape, seed)
    torch.nn.init.normal_(model.proj_out.weight, std=0.1, generator=torch.Generator().manual_seed(seed + 1))
    return original_state(model)


def write(path: Path, shape: WanShape = SHAPE, seed: int = 0) -> Path:
    """Write the MSFP file of a random model and return its path."""
    return write_state(path, small_state(shape, seed))


def write_state(
    path: Path, state: dict[str, torch.Tensor], outside: tuple[str, ...] = (), header: Header | None = None
) -> Path:
    """Write a model's tensors with ``LAYERS`` of every block packed, and the layers ``outside`` the blocks."""
    packed, kinds = {}, {}
    for name, tensor in state.items():
        layer = name.removesuffix(".weight")
        if name.endswith(".weight") and (layer in outside or layer.split(".", 2)[-1] in LAYERS):
            kinds[layer] = layer_of(layer, tensor.shape[1])
            packed[layer] = quantize(tensor.float(), kinds[layer].weight)
    plain = {name: tensor for name, tensor in state.items() if name.removesuffix(".weight") not in packed}
    write_msfp(
        path, kinds, {name: weight.shape[0] for name, weight in packed.items()},
        {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in plain.items()},
        [*plain.items(), *packed.items()], scale_dtype=torch.float32,
        fingerprint=fingerprint_of(kinds, {name: weight.scale for name, weight in packed.items()}),
        header=header,
    )  # fmt: skip
    return path
