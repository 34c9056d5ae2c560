"""Processes of a sharded run on an MSFP model: trains the configurations of a JSON list and exports what came out.

torchrun ... msfp_child.py SCENARIOS.json; rank 0 prints one JSON line per scenario.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))


def main() -> None:
    """Train every scenario."""
    import torch
    import torch.distributed as dist
    from conftest import random_samples
    from fpsattention.training.config_file import check_config
    from fpsattention.training.distributed import open_world
    from fpsattention.training.export_file import export_run
    from fpsattention.training.loop import fit

    torch.set_num_threads(1)
    logging.basicConfig(level=logging.ERROR)
    samples = random_samples(6)
    for name, table in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")).items():
        config = check_config(table, name)
        world = open_world("cpu", config.parallel)
        result = fit(config, samples[:4], samples[4:], world=world, progress=None)
        path = export_run(config, result.model, result.step, None, world)
        if world.is_main:
            losses = [record["loss"] for record in result.records]
            routes = [record.get("routes") for record in result.records]
            found = {"losses": losses, "routes": routes, "validation": result.validation.loss, "path": str(path)}
            print("found", json.dumps({"name": name, **found}), flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
