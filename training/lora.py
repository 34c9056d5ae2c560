"""Low-rank adapters (LoRA) on the linear layers of the blocks, and their files as ComfyUI reads them.

An adapted layer stays where it is, under its own parameter names, and gains ``lora_A`` (rank, in) and ``lora_B``
(out, rank): its output is ``W x + b + alpha / rank * B A x``. ``B`` starts as zeros, so training starts at the base.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from .fits import check_targets
from .linear import FrozenLinear, become
from .model import WanTransformer3DModel, model_shape
from .names import ModelError, original_names

if TYPE_CHECKING:
    from .layer_settings import LoraSection

PREFIX = "diffusion_model."


class LoraLinear(FrozenLinear):
    """A linear layer with an adapter; an existing layer becomes one by having its class set."""

    lora_scale = 1.0
    lora_on = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output (..., out_features), with the adapter's share while it is on."""
        out = super().forward(x)
        if not self.lora_on:
            return out
        return out + F.linear(F.linear(x, self.lora_A), self.lora_B) * self.lora_scale

    def extra_repr(self) -> str:
        """Return the layer's numbers, with the adapter's."""
        return f"{super().extra_repr()}, rank={self.lora_A.shape[0]}, scale={self.lora_scale:g}"


def add_lora(model: WanTransformer3DModel, section: LoraSection, seed: int) -> None:
    """Freeze the model and give the linear layers that ``section.targets`` names adapters, the model's only training.

    Adapters are float32 on their layer's device. On 'meta' they have no values: call ``init_lora`` once they do.
    Call this before ``fully_shard``. Raises ConfigError with one sentence for a target that no block has.
    """
    if any(True for _ in _adapted(model)):
        raise ValueError("the model has adapters already; add them once")
    known = linear_layers(model)
    found = {_target(original) for original in known if original.startswith("blocks.")}
    check_targets(section.targets, found)
    model.requires_grad_(False)
    alpha = section.alpha if section.alpha is not None else float(section.rank)
    for original, (_, layer) in known.items():
        if original.startswith("blocks.") and _target(original) in section.targets:
            _adapt(layer, section.rank, alpha)
    init_lora(model, seed)


def init_lora(model: nn.Module, seed: int) -> None:
    """Fill all adapters, plain or sharded, from the seed and each layer's name; those on 'meta' are left."""
    with torch.no_grad():
        for name, layer in _adapted(model):
            if layer.lora_A.device.type == "meta":
                continue
            digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            bound = 1 / math.sqrt(layer.in_features)
            first = torch.empty(layer.lora_A.shape).uniform_(-bound, bound, generator=generator)
            fill(layer.lora_A, first)
            layer.lora_B.zero_()


@contextlib.contextmanager
def lora_off(model: nn.Module) -> Iterator[None]:
    """Run the body with the model as it was without adapters; leave it before any backward of the adapted model."""
    layers = [layer for _, layer in _adapted(model) if layer.lora_on]
    for layer in layers:
        layer.lora_on = False
    try:
        yield
    finally:
        for layer in layers:
            layer.lora_on = True


def lora_state(model: WanTransformer3DModel, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Return the adapters under ComfyUI's names, on the CPU; every process takes part when they are sharded."""
    state: dict[str, torch.Tensor] = {}
    for original, (_, layer) in linear_layers(model).items():
        if isinstance(layer, LoraLinear):
            name = f"{PREFIX}{original}"
            state[f"{name}.lora_A.weight"] = whole(layer.lora_A, dtype)
            state[f"{name}.lora_B.weight"] = whole(layer.lora_B, dtype)
            state[f"{name}.alpha"] = torch.tensor(layer.lora_scale * layer.lora_A.shape[0], dtype=torch.float32)
    return state


def load_lora(model: WanTransformer3DModel, path: str | Path) -> None:
    """Put a LoRA file's adapters into the model, which gets them where it has none.

    Values are copied into adapters that are there, plain or sharded, and these must be the file's own layers and
    ranks; without them the model is frozen and adapted as the file says. Raises ModelError with one sentence.
    """
    found = _read(Path(path))
    if getattr(model, "msfp", None) is not None:
        raise ModelError(
            f"{path}: is an ordinary LoRA, which is merged into weights, but this model's are quantized; train a "
            "timestep-aware LoRA ([talora]) on it, hub = 1 for a single one"
        )
    layers = {original: layer for original, (_, layer) in linear_layers(model).items()}
    for original, (first, second, _) in found.items():
        layer = layers.get(original)
        if layer is None:
            raise ModelError(f"{path}: adapts {original}, which is no linear layer of this model")
        if (first.shape[1], second.shape[0]) != (layer.in_features, layer.out_features):
            raise ModelError(
                f"{path}: adapts {original} as {first.shape[1]} -> {second.shape[0]} features, but this model's is "
                f"{layer.in_features} -> {layer.out_features}; the file is for a model of another size"
            )
    have = {original: layer for original, layer in layers.items() if isinstance(layer, LoraLinear)}
    if not have:
        model.requires_grad_(False)
        for original, (first, _, alpha) in found.items():
            _adapt(layers[original], first.shape[0], alpha)
    elif differing := sorted(have.keys() ^ found.keys()):
        raise ModelError(
            f"{path}: has {len(found)} adapters and the model has {len(have)}; the first that only one of them has "
            f"is {differing[0]}; set lora.targets to the file's layers"
        )
    for original, (first, _, _) in found.items():
        if layers[original].lora_A.shape != first.shape:
            raise ModelError(
                f"{path}: the adapter of {original} has rank {first.shape[0]}, the model's has "
                f"{layers[original].lora_A.shape[0]}; set lora.rank to {first.shape[0]}"
            )
    with torch.no_grad():
        for original, (first, second, alpha) in found.items():
            layer = layers[original]
            fill(layer.lora_A, first.float())
            fill(layer.lora_B, second.float())
            layer.lora_scale = alpha / first.shape[0]


def _read(path: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read as a safetensors file: {error}") from None
    ends = (".lora_A.weight", ".lora_B.weight", ".alpha")
    other = [name for name in tensors if not (name.startswith(PREFIX) and name.endswith(ends))]
    if other or not tensors:
        which = f"it has the tensor {min(other)}" if other else "it is empty"
        raise ModelError(
            f"{path}: is no LoRA in ComfyUI's names ({PREFIX}<layer>.lora_A.weight, lora_B.weight, alpha): {which}"
        )
    found = {}
    for layer in sorted(
        {name[len(PREFIX) :].removesuffix(end) for name in tensors for end in ends if name.endswith(end)}
    ):
        first, second, alpha = (tensors.get(f"{PREFIX}{layer}{end}") for end in ends)
        if first is None or second is None:
            raise ModelError(f"{path}: {layer} lacks its lora_{'A' if first is None else 'B'}; the file is incomplete")
        if first.ndim != 2 or second.ndim != 2 or first.shape[0] != second.shape[1]:
            raise ModelError(
                f"{path}: {layer} has lora_A {tuple(first.shape)} and lora_B {tuple(second.shape)}, "
                "which make no low-rank matrix"
            )
        found[layer] = (first, second, float(first.shape[0]) if alpha is None else float(alpha))
    return found


def linear_layers(model: WanTransformer3DModel) -> dict[str, tuple[str, nn.Linear]]:
    """Return {original name: (diffusers' name, layer)} of all linear layers, in the order of the published files."""
    shape = model_shape(model)
    place = {name: i for i, name in enumerate(shape.tensors())}
    names = sorted(original_names(shape).items(), key=lambda pair: place[pair[1]])
    modules = dict(model.named_modules())
    found = {}
    for new, original in names:
        if new.endswith(".weight") and isinstance(modules.get(new.removesuffix(".weight")), nn.Linear):
            new = new.removesuffix(".weight")
            found[original.removesuffix(".weight")] = (new, modules[new])
    return found


def _target(original: str) -> str:
    return original.split(".", 2)[2] if original.startswith("blocks.") else original


def _adapted(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def _adapt(layer: nn.Linear, rank: int, alpha: float) -> None:
    device = layer.weight.device
    become(layer, LoraLinear)
    layer.lora_A = nn.Parameter(torch.zeros(rank, layer.in_features, device=device))
    layer.lora_B = nn.Parameter(torch.zeros(layer.out_features, rank, device=device))
    layer.lora_scale = alpha / rank


def fill(parameter: torch.Tensor, whole: torch.Tensor) -> None:
    """Copy a whole tensor, the same on every process, into a plain parameter or into this process's shard of one."""
    if hasattr(parameter, "to_local"):
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = parameter.device_mesh, parameter.placements
        whole = distribute_tensor(whole, mesh, placements, src_data_rank=None).to_local()
        parameter = parameter.to_local()
    parameter.copy_(whole)


def whole(parameter: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """Return a copy of the whole parameter on the CPU; every process takes part when it is sharded."""
    tensor = parameter.detach()
    if hasattr(tensor, "full_tensor"):  # shards that wait in CPU memory are gathered where the processes can talk
        tensor = tensor.to(tensor.device_mesh.device_type).full_tensor()
    return tensor.to("cpu", dtype, copy=True).contiguous()
