"""Writes and reads states with 1, 2 and 4 processes (gloo, FSDP2) and prints what came of it as one line of JSON.

python state_parts.py FOLDER adamw|adamw-8bit

Processes are forked from one that has imported everything, so that all cases take seconds.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed as dist
from fpsattention.training.config_file import check_config
from fpsattention.training.distributed import World
from fpsattention.training.ema import Ema
from fpsattention.training.optimizer import make_optimizer
from fpsattention.training.plateau import Plateau
from fpsattention.training.resume import Saver
from fpsattention.training.state import load_tensors
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

# From so many processes to so many, with the weights in so many copies.
WAYS = ((1, 2, 1), (2, 1, 1), (2, 4, 2), (4, 2, 1))
STEP = 2


class Block(nn.Module):
    """Matrices whose moments are 8-bit in 4 parts, in 2 uneven ones, and in one only; and a parameter of one row."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.back = nn.Linear(256, 64), nn.Linear(64, 256)
        self.uneven, self.small = nn.Linear(256, 33), nn.Linear(256, 24)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, 256) / 16)

    def forward(self, x):
        x = x + self.back(self.wide(x * (1 + self.scale_shift_table[0, 0])).tanh())
        return x + self.uneven(x).tanh() @ self.uneven.weight / 33 + self.small(x).tanh() @ self.small.weight / 24


def config_for(folder: Path, **changes):
    """Return a configuration whose states go to the folder."""
    table = {
        "device": "cpu",
        "model": {"init": "random", "dim": 128, "ffn_dim": 64, "layers": 2, "text_dim": 16},
        "vae": {"path": "vae.safetensors"},
        "data": {"videos": "clip.mp4", "frames": 9, "height": 64, "width": 64},
        "optim": {"lr": 1e-3, "steps": 20, "batch": 2, "warmup": 2},
        "checkpoint": {"dir": str(folder), "every": 2, "keep": 3},
        "output": {"dir": str(folder / "out"), "name": "tiny"},
    }
    for name, value in changes.items():
        section, key = name.split("__")
        table[section] = {**table.get(section, {}), key: value}
    return check_config(table, "parts")


def new_run(config, mesh: DeviceMesh | None):
    """Return what the saver sees of a run: model, optimizer, average, counters."""
    torch.manual_seed(0)
    model = nn.Sequential(Block(), nn.Linear(256, 5))
    if mesh is not None:
        for part in model:
            fully_shard(part, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return SimpleNamespace(
        model=model,
        optimizer=make_optimizer(config.optim, model),
        ema=Ema(model, 0.9),
        plateau=Plateau(config.optim),
        step=0,
        skipped=0,
        skipped_in_a_row=0,
    )


def train(run, steps: int) -> list[float]:
    """Take steps on the same batch in all processes and return the losses."""
    losses = []
    for _ in range(steps):
        generator = torch.Generator().manual_seed(run.step)
        loss = run.model(torch.randn(4, 256, generator=generator)).square().mean()
        loss.backward()
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.ema.update()
        run.step += 1
        losses.append(float(loss.detach()))
    return losses


def mesh_for(world: World, copies: int = 1) -> DeviceMesh | None:
    """Return the mesh that weights are sharded over, in so many copies (HSDP)."""
    if world.size == 1:
        return None
    if copies == 1:
        return init_device_mesh("cpu", (world.size,))
    return init_device_mesh("cpu", (copies, world.size // copies), mesh_dim_names=("copy", "shard"))


def write(folder: Path, name: str, world: World) -> dict:
    """Train, save in the background while training goes on, and save another at the end."""
    config = config_for(folder, optim__name=name)
    run = new_run(config, mesh_for(world))
    saver = Saver(config, run, world)
    train(run, STEP)
    run.plateau.factor = 0.25
    saver.save()
    losses = train(run, 2)
    saver.finish()
    return {"losses": losses, "held": sum(p.to_local().numel() if world.size > 1 else p.numel()
                                          for p in run.model.parameters())}  # fmt: skip


def read(folder: Path, copy: Path, name: str, copies: int, world: World) -> dict:
    """Go on from the state of other processes: write what was read, and train on."""
    config = config_for(folder, optim__name=name)
    run = new_run(config, mesh_for(world, copies))
    Saver(config, run, world).restore("auto")
    again = Saver(config_for(copy, optim__name=name, checkpoint__background=False), run, world)
    again.save()
    again.finish()
    return {"step": run.step, "factor": run.plateau.factor, "losses": train(run, 2)}


def together(size: int, job, *arguments) -> list[dict]:
    """Return what a job gave in each of so many processes."""
    context = multiprocessing.get_context("fork")
    pipes, processes = [], []
    meeting = Path(sys.argv[1]) / f"meeting-{len(list(Path(sys.argv[1]).glob('meeting-*')))}"
    meeting.touch()
    for rank in range(size):
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_one, args=(rank, size, str(meeting), theirs, job, arguments))
        process.start()
        theirs.close()
        pipes.append(mine)
        processes.append(process)
    results = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join()
    return results


def _one(rank: int, size: int, meeting: str, pipe, job, arguments) -> None:
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}-store", rank=rank, world_size=size)
    pipe.send(job(*arguments, World(rank, size)))
    pipe.close()
    if size > 1:
        dist.destroy_process_group()


def decoded(path: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of a state, 8-bit moments as the numbers that they stand for."""
    found = {f"{group}/{n}": t for group in ("model", "ema", "optimizer") for n, t in load_tensors(path, group).items()}
    plain = {name: tensor for name, tensor in found.items() if not any(
        part in name for part in (".codes/", ".scale/", ".map"))}  # fmt: skip
    for name in [name for name in found if ".codes/" in name]:
        slot = name.split(".codes/")[0]
        codes, scale = found[name], found[name.replace(".codes/", ".scale/")]
        values = found[f"{slot}.map"][codes.long()].view(len(scale), -1) * scale[:, None]
        plain[name.replace(".codes/", "/")] = values.view(codes.shape)
    return plain


def main() -> None:
    logging.disable(logging.INFO)
    root = Path(sys.argv[1])
    report = {}
    name = sys.argv[2]
    written = {size: together(size, write, root / f"{size}", name) for size in (1, 2, 4)}
    for here, there, copies in WAYS:
        source, copy = root / f"{here}", root / f"{here}-{there}"
        results = together(there, read, source, copy, name, copies)
        old, new = decoded(source / f"step-{STEP:06d}"), decoded(copy / f"step-{STEP:06d}")
        changed = {key: float((old[key] - new[key]).abs().max() / old[key].abs().max())
                   for key in old if not torch.equal(old[key], new[key])}  # fmt: skip
        report[f"{here} to {there}"] = {
            "same names": old.keys() == new.keys(),
            "changed": changed,
            "results": results,
            "losses before": written[here][0]["losses"],
            "held": [one["held"] for one in written[here]],
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
