"""From disk into a model and from a model back to whole tensors; with FSDP2 every process handles only its own rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

from ..names import ModelError, original_names

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

    from .read import Weights

# What wrappers of activation checkpointing and torch.compile add to a parameter's name.
_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.", "_fsdp_wrapped_module.")
_ADAPTERS = (".lora_", ".talora_")


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the model's own parameters by diffusers' names, without wrappers' prefixes and without adapters'."""
    found = {}
    for name, parameter in model.named_parameters():
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        if not any(part in f".{name}" for part in _ADAPTERS):
            found[name] = parameter
    return found


@torch.no_grad()
def load_into(model: nn.Module, weights: Weights) -> None:
    """Fill the model with the weights, one tensor at a time.

    Plain parameters on 'meta' become real float32 ones on the CPU; others keep their device and dtype. Of a sharded
    parameter (after ``to_empty``) a process reads only its own part. The rotary table, in no file, is computed.
    Raises ModelError if the model has another shape.
    """
    parameters = base_parameters(model)
    if set(parameters) != set(weights.original):
        wrong = sorted(set(parameters) ^ set(weights.original))
        raise ModelError(f"{weights.path}: does not fit this model, which differs in {len(wrong)} tensors ({wrong[0]})")
    shapes = weights.shape.tensors()
    for name, parameter in parameters.items():
        want = shapes[weights.original[name]]
        if tuple(parameter.shape) != want:
            raise ModelError(f"{weights.path}: {name} is {want}, but {tuple(parameter.shape)} in this model")
    owners = _owners(model)
    for name in weights.names:
        parameter = parameters[name]
        if _is_sharded(parameter):
            _fill_part(parameter, weights, name)
        elif parameter.is_meta:
            fresh = weights.read(name, dtype=torch.float32)
            for module, attribute in owners[id(parameter)]:
                setattr(module, attribute, nn.Parameter(fresh, parameter.requires_grad))
        else:
            parameter.copy_(weights.read(name, dtype=parameter.dtype))
    compute_rope(model)


@torch.no_grad()
def gathered(model: nn.Module, dtype: torch.dtype | None = None) -> Iterator[tuple[str, torch.Tensor | None]]:
    """Yield (original name, whole tensor on the CPU) in the order of the published files, one tensor at a time.

    All processes of a sharded model must take part to the end; tensors come on rank 0 only, None elsewhere.
    """
    from ..model import model_shape

    shape = model_shape(model)
    back = {original: name for name, original in original_names(shape).items()}
    parameters = base_parameters(model)
    is_main = not dist.is_initialized() or dist.get_rank() == 0
    for original in shape.tensors():
        yield original, whole(parameters[back[original]], dtype, is_main)


def whole(parameter: torch.Tensor, dtype: torch.dtype | None, is_main: bool) -> torch.Tensor | None:
    """Return the whole parameter on the CPU where ``is_main``, None elsewhere; collective for a sharded one."""
    tensor = parameter.detach()
    if _is_sharded(tensor):
        device = torch.device(tensor.device_mesh.device_type)
        if tensor.device.type != device.type:  # offloaded: the mesh gathers on its own kind of device
            tensor = tensor.to(device)
        tensor = tensor.full_tensor()
    return tensor.to("cpu", dtype).contiguous() if is_main else None


def compute_rope(model: nn.Module) -> None:
    """Give the model's rotary table its values: it is no parameter, so ``to_empty`` and 'meta' leave it without any."""
    from ..model import build_rope

    with torch.device("cpu"):
        fresh = build_rope(model)
    for name, table in fresh.named_buffers():
        old = getattr(model.rope, name)
        setattr(model.rope, name, table.to("cpu" if old.is_meta else old.device))


def _is_sharded(tensor: torch.Tensor) -> bool:
    return hasattr(tensor, "device_mesh")


def _fill_part(parameter: DTensor, weights: Weights, name: str) -> None:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    local = parameter.to_local()
    if local.is_meta:
        raise RuntimeError("a sharded model on 'meta' needs model.to_empty(device=...) before it can be filled")
    shape, start = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    if 0 in shape:
        return
    part = weights.read(name, slice(start[0], start[0] + shape[0]), local.dtype)
    for dimension in range(1, len(shape)):
        part = part.narrow(dimension, start[dimension], shape[dimension])
    local.copy_(part)


def _owners(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((module, name))
    return owners
