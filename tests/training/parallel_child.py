"""Processes of a sharded run: trains each configuration of a JSON list on random latents, and prints what came out.

torchrun ... parallel_child.py SCENARIOS.json; rank 0 prints one JSON line per scenario.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def run(scenario: dict) -> dict | None:
    """Return losses, order, exported names and what each process holds; None on other ranks."""
    import torch
    from fpsattention.training.config_file import check_config
    from fpsattention.training.distributed import open_world
    from fpsattention.training.loop import fit
    from fpsattention.training.model import starting_model
    from fpsattention.training.parallel.shard import local_parameters
    from fpsattention.training.weights import gathered

    config = check_config(scenario["config"], scenario["name"])
    generator = torch.Generator().manual_seed(0)
    # Two sizes and texts of two lengths, as mixed data have them.
    samples = [
        {
            "latent": torch.randn(16, 1 if i % 3 == 2 else 3, 8, 8, generator=generator),
            "text": torch.randn(1 if i % 2 else 3, 16, generator=generator),
            "name": f"sample {i}",
        }
        for i in range(7)
    ]
    world = open_world("cpu", config.parallel)
    model = None
    if config.model.init == "random":
        # A last layer of zeros would hide every error of the layers before it for a step.
        model = starting_model(config.model, 0)
        torch.nn.init.normal_(model.proj_out.weight, std=0.02, generator=generator)
    result = fit(config, samples, samples[:3], model=model, world=world, progress=None)
    if hasattr(result.model, "reshard"):
        result.model.reshard()  # after a forward without backward the last layers are still gathered
    found = {
        "name": scenario["name"],
        "losses": [record["loss"] for record in result.records],
        "densities": [record["density"] for record in result.records],
        "order": [record["samples"] for record in result.records],
        "sigmas": [record["sigma"] for record in result.records],
        "norms": [record["norm"] for record in result.records],
        "block_norms": result.records[0]["block_norms"],
        "validation": result.validation.loss,
        "held": world.gather_objects(local_parameters(result.model)),
        "whole": sum(parameter.numel() for parameter in result.model.parameters()),
        "keys": [],
        "sums": [],
    }
    for name, tensor in gathered(result.model):
        found["keys"].append(name)
        found["sums"].append(None if tensor is None else float(tensor.double().square().sum()))
    return found if world.is_main else None


def main() -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    logging.basicConfig(level=logging.ERROR)
    for scenario in json.loads(Path(sys.argv[1]).read_text()):
        found = run(scenario)
        if found is not None:
            print("found", json.dumps(found), flush=True)
    # One process group for all: every scenario lays its own meshes over it.
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
