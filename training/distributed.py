"""The processes of a run: who this one is, with whom it shares weights and tokens, and the few words they exchange.

Reads torchrun's environment variables only; without them the world is one process, and nothing is initialized unless
weights are offloaded, which FSDP2 does in a group of one too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from .config import ParallelSection


# How long processes wait at a barrier: one may be encoding the captions of a large data set. A process that dies is
# noticed at once, whatever this is.
PATIENCE = timedelta(days=7)


class DeviceError(ValueError):
    """A device or an arrangement of processes that is not possible; the message is one sentence."""


@dataclass(frozen=True)
class World:
    """This process's place among the others.

    ``sequence_size`` neighbors share the tokens of a sample; ``mesh`` is what weights are sharded over, None for one
    process that holds them whole. ``waiting_group`` is where processes wait for each other, for hours if need be.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    sequence_size: int = 1
    sequence_group: dist.ProcessGroup | None = None
    mesh: DeviceMesh | None = None
    waiting_group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """True on the process that writes files and shows progress."""
        return self.rank == 0

    @property
    def data_size(self) -> int:
        """How many processes, or groups that share tokens, take samples of their own."""
        return self.size // self.sequence_size

    @property
    def data_rank(self) -> int:
        """Which of those this process is or belongs to."""
        return self.rank // self.sequence_size

    @property
    def sequence_rank(self) -> int:
        """This process's place in the group that shares tokens."""
        return self.rank % self.sequence_size

    def sum_(self, tensors: Iterable[torch.Tensor]) -> None:
        """Sum tensors over all processes in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def any(self, flag: bool) -> bool:
        """Return True on every process if the flag is set on one: all leave the loop at the same step.

        Said over the CPU: the GPU is not waited for, and no exchange of its own is taken for another.
        """
        if self.size == 1:
            return flag
        value = torch.tensor(int(flag))
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item())

    def gather_objects(self, value: Any) -> list[Any]:
        """Return every process's value, in order of rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for all processes, as long as it takes."""
        if self.size > 1:
            dist.barrier(group=self.waiting_group)

    def close(self) -> None:
        """Leave the process group."""
        if self.mesh is not None and dist.is_initialized():
            dist.destroy_process_group()


def open_world(device: str, parallel: ParallelSection | None = None) -> World:
    """Return the world that torchrun's variables describe, its groups and its mesh made.

    Raises DeviceError when the processes do not divide as ``parallel`` says.
    """
    from .config import ParallelSection

    parallel = parallel or ParallelSection()
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    sequence, shard = parallel.sequence, parallel.shard or size
    for key, value in (("sequence", sequence), ("shard", shard)):
        if size % value:
            raise DeviceError(
                f"parallel.{key} is {value}, but there are {size} processes; start a multiple of {value}, "
                f"or set parallel.{key} to a divisor of {size}"
            )
    if size == 1 and not parallel.offload:
        return World()
    kind = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        if local >= torch.cuda.device_count():
            raise DeviceError(
                f"process {local} of this machine has no GPU, torch sees {torch.cuda.device_count()}; "
                "start one process per GPU (--nproc-per-node gpu)"
            )
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        # States are saved and flags agreed upon over the CPU, whatever the GPUs are doing.
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        if size == 1:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        else:
            dist.init_process_group(backend)
    from torch.distributed.device_mesh import init_device_mesh

    if shard == size:
        mesh = init_device_mesh(kind, (size,), mesh_dim_names=("shard",))
    else:
        mesh = init_device_mesh(kind, (size // shard, shard), mesh_dim_names=("replicate", "shard"))
    group = dist.new_subgroups(sequence)[0] if sequence > 1 else None
    # Not NCCL's: its watchdog ends a run whose processes wait for minutes.
    waiting = dist.new_group(backend="gloo", timeout=PATIENCE) if size > 1 else None
    return World(rank, size, local, sequence, group, mesh, waiting)


def pick_device(device: str, world: World) -> torch.device:
    """Return the device of this process; raises DeviceError with one sentence if it is not there."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise DeviceError(f"device is '{device}', it should be auto, cpu, cuda, or one card such as cuda:1")
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
