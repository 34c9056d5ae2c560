"""Weights, gradients and moments shared out over processes: torch's FSDP2, one group per block."""

from __future__ import annotations

import torch
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard

from ..distributed import World
from ..model import WanTransformer3DModel


def shard_model(model: WanTransformer3DModel, world: World, *, offload: bool = False) -> None:
    """Turn the parameters into shards over the world's mesh; a block's are gathered while it runs.

    With ``offload`` shards, gradients and moments live in CPU memory and a block's weights come to the GPU while it
    runs: block swap, which also works with one process. Weights stay float32; autocast decides what is computed in.
    """
    # The output is a view, on which FSDP2's hooks could be lost.
    model.register_forward_hook(lambda _module, _args, out: tuple(part.clone() for part in out))
    pinned = world.mesh.device_type == "cuda"
    policy = CPUOffloadPolicy(pin_memory=pinned) if offload else OffloadPolicy()
    for block in model.blocks:
        fully_shard(block, mesh=world.mesh, offload_policy=policy)
    fully_shard(model, mesh=world.mesh, offload_policy=policy)


def is_sharded(model: torch.nn.Module) -> bool:
    """Return True if the model's parameters are shards."""
    return isinstance(model, FSDPModule)


def local_parameters(model: torch.nn.Module) -> int:
    """Return how many numbers of the model's parameters this process holds."""
    return sum(local_of(parameter).numel() for parameter in model.parameters())


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a tensor that this process holds."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
