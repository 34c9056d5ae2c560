"""Run by torchrun with two processes: validation and previews of a model that they shard, or whose tokens they share.

Rank 0 prints one JSON line ``RESULT {case: figures}``. torchrun watch_parts.py CONFIG.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed as dist
from conftest import random_samples
from fpsattention.training.assemble import assemble
from fpsattention.training.config_file import check_config
from fpsattention.training.distributed import open_world
from fpsattention.training.model import starting_model
from fpsattention.training.parallel.shard import is_sharded
from fpsattention.training.validation import validate
from fpsattention.training.watch.preview import Previewer


def figures(config, world, samples) -> tuple[dict, torch.Tensor]:
    """Return the validation losses and the latents of the previews."""
    model = starting_model(config.model, config.seed)
    torch.nn.init.normal_(model.proj_out.weight, std=0.05, generator=torch.Generator().manual_seed(1))
    run = assemble(config, world, torch.device("cpu"), model)
    attention = config.attention.resolved()
    result = validate(run.model, samples, sigmas=(0.9, 0.4), attention=attention, batch=2, world=world)
    previewer = Previewer(config, samples, None, lambda: None, world)
    latents = previewer._sample(run.model, 1)
    together = torch.stack([latents[job] for job in previewer.jobs])
    return {"sharded": is_sharded(run.model), "loss": result.loss, "jobs": len(previewer.jobs)}, together


def main() -> None:
    """Compare one process with two, for either way to spread."""
    from fpsattention.training.distributed import World

    table = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    samples, found = random_samples(3), {}
    alone, expected = figures(check_config(table, "alone"), World(), samples)
    for name, parallel in (("shards", {}), ("tokens", {"sequence": 2})):
        config = check_config({**table, "parallel": parallel}, name)
        world = open_world("cpu", config.parallel)
        seen, latents = figures(config, world, samples)
        losses = world.gather_objects(seen["loss"])
        found[name] = {
            **seen,
            "same": losses[0] == losses[1],
            "loss_error": abs(seen["loss"] - alone["loss"]),
            "latent_error": float((latents - expected).abs().max()),
        }
    if dist.get_rank() == 0:
        print("RESULT " + json.dumps(found), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
