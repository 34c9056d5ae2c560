"""Run by torchrun: a sharded model is filled and gathered, each process reading only its own rows.

Rank 0 prints one JSON line ``RESULT {...}``. torchrun weights_parts.py FILE COPIES
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed as dist
from fpsattention.kernels.checkpoint import CheckpointError
from fpsattention.training.export_file import export
from fpsattention.training.model import build, load_model, original_state
from fpsattention.training.weights import gathered, load_into, open_weights
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


class Place:
    """What export needs of a world."""

    is_main = False


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    path, copies, size = Path(sys.argv[1]), int(sys.argv[2]), dist.get_world_size()
    names = ("copies", "shards")[copies == 1 :]
    mesh = init_device_mesh("cpu", (copies, size // copies)[copies == 1 :], mesh_dim_names=names)
    weights = open_weights(path)
    read = [0]
    whole = weights.read

    def counting(name, rows=None, dtype=None):
        tensor = whole(name, rows, dtype)
        read[0] += tensor.numel()
        return tensor

    weights.read = counting
    with torch.device("meta"):
        model = build(weights.shape)
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    load_into(model, weights)
    local = sum(parameter.to_local().numel() for parameter in model.parameters())
    found = dict(gathered(model, torch.float32))
    Place.is_main = dist.get_rank() == 0
    out = export(model, path.with_name("sharded.safetensors"), dtype="bf16", world=Place)
    failure = None
    try:
        export(model, path / "below" / "no.safetensors", dtype="bf16", world=Place)
    except CheckpointError as error:
        failure = str(error)
    dist.barrier()  # reached by all: nobody waits for rank 0
    counts = [None] * size
    dist.all_gather_object(counts, (read[0], local, all(t is None for t in found.values()), out is None))
    if dist.get_rank() == 0:
        plain = load_model(path)
        wanted = original_state(plain)
        x, text = torch.randn(1, weights.shape.in_channels, 1, 4, 4), torch.randn(1, 2, weights.shape.text_dim)
        inputs = (x, torch.tensor([500.0]), text)
    # The forward pass is collective and needs the rotary table: the same inputs everywhere.
    torch.manual_seed(0)
    inputs = (
        torch.randn(1, weights.shape.in_channels, 1, 4, 4),
        torch.tensor([500.0]),
        torch.randn(1, 2, weights.shape.text_dim),
    )
    with torch.no_grad():
        velocity = model(*inputs, return_dict=False)[0]
    if dist.get_rank() == 0:
        with torch.no_grad():
            same = torch.allclose(plain(*inputs, return_dict=False)[0], velocity, rtol=1e-4, atol=1e-4)
        result = {
            "equal": all(torch.equal(found[name], wanted[name]) for name in wanted) and list(found) == list(wanted),
            "velocity": same,
            "counts": counts,
            "failure": failure,
            "parameters": weights.shape.parameters,
        }
        print("RESULT", json.dumps(result), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
