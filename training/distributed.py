"""Data parallelism in its simplest form: every rank holds the model, gradients are summed, rank 0 writes.

Reads torchrun's environment variables only; without them the world is one rank and nothing is initialized.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist


class DeviceError(ValueError):
    """A device that is not there; the message is one sentence."""


@dataclass(frozen=True)
class World:
    """This process's place among the ranks."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """True on the rank that writes files and shows progress."""
        return self.rank == 0

    def sum_(self, tensors: Iterable[torch.Tensor]) -> None:
        """Sum tensors over the ranks in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def any(self, flag: bool, device: torch.device) -> bool:
        """Return True on every rank if the flag is set on one: all leave the loop at the same step."""
        if self.size == 1:
            return flag
        value = torch.tensor(int(flag), device=device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item())

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the process group."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def open_world(device: str) -> World:
    """Return the world that torchrun's variables describe, its process group initialized if it has several ranks."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    world = World(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        cuda = device != "cpu" and torch.cuda.is_available()
        dist.init_process_group("nccl" if cuda else "gloo")
    return world


def pick_device(device: str, world: World) -> torch.device:
    """Return the device of this rank; raises DeviceError with one sentence if it is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise DeviceError(f"device is '{device}' but torch sees no CUDA device; set device = 'cpu'")
        index = world.local_rank if ":" not in device or world.size > 1 else int(device.split(":")[1])
        if index >= torch.cuda.device_count():
            raise DeviceError(f"device cuda:{index} does not exist, torch sees {torch.cuda.device_count()}")
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    return torch.device("cpu")
