"""A training process to be killed: trains the configuration given as JSON on random latents and prints its steps.

python child.py FILE.json auto|none
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main() -> None:
    import torch
    from fpsattention.training.config_file import check_config
    from fpsattention.training.distributed import open_world
    from fpsattention.training.loop import fit
    from fpsattention.training.stopping import StopFlag

    torch.set_num_threads(1)
    config = check_config(json.loads(Path(sys.argv[1]).read_text()), "child")
    generator = torch.Generator().manual_seed(0)
    samples = [{"latent": torch.randn(16, 3, 8, 8, generator=generator), "text": torch.zeros(2, 16)} for _ in range(5)]
    world = open_world("cpu")
    with StopFlag().on_signals() as stop:
        result = fit(
            config,
            samples,
            resume=sys.argv[2],
            progress=None,
            world=world,
            stop=stop,
            on_step=lambda step, _: print("step", step, flush=True),
        )
    world.close()
    if result.stopped:
        sys.exit(75)
    sha = hashlib.sha256()
    for name, tensor in sorted(result.model.state_dict().items()):
        sha.update(name.encode() + tensor.numpy().tobytes())
    print("hash", sha.hexdigest(), flush=True)


if __name__ == "__main__":
    main()
