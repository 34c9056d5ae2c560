"""A model of one head and two blocks, random latents, and a configuration that trains it in a second."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

SCHEDULE = "0.90 fp8 x2 all 2 2\n0.50 fp8 x1 all 3 3\n0.00 fp8 x1 all 2 3"


@pytest.fixture
def table(tmp_path: Path) -> dict:
    """A configuration as TOML would give it."""
    return {
        "device": "cpu",
        "model": {"init": "random", "dim": 128, "ffn_dim": 64, "layers": 2, "text_dim": 16},
        "vae": {"path": "vae.safetensors"},
        "data": {"videos": "clip.mp4", "frames": 9, "height": 64, "width": 64},
        "attention": {"schedule": SCHEDULE, "slots": 16},
        "optim": {"lr": 1e-3, "steps": 6, "batch": 2, "warmup": 2, "decay": "cosine", "betas": [0.9, 0.99]},
        "flow": {"shift": 3.0},
        "validation": {"sigmas": [0.9, 0.5]},
        "checkpoint": {"dir": str(tmp_path / "checkpoints"), "every": 2, "keep": 2},
        "output": {"dir": str(tmp_path / "out"), "name": "tiny"},
    }


@pytest.fixture
def make_config(table):
    """Return a function that gives the configuration with ``section__key=value`` changes."""
    from fpsattention.training.config_file import check_config

    def make(**changes):
        changed = copy.deepcopy(table)
        for name, value in changes.items():
            *parents, last = name.split("__")
            node = changed
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
        return check_config(changed, "test.toml")

    return make


def random_samples(count: int, seed: int = 0) -> list[dict]:
    """Return samples of 3 x 8 x 8 latents (48 tokens), the same in every process."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {"latent": torch.randn(16, 3, 8, 8, generator=generator), "text": torch.zeros(2, 16), "name": f"sample {i}"}
        for i in range(count)
    ]


@pytest.fixture
def samples() -> list[dict]:
    """Five samples."""
    return random_samples(5)


@pytest.fixture
def weights_hash():
    """Return a function that gives a model's hash over all parameters' bits."""
    import hashlib

    def digest(model) -> str:
        sha = hashlib.sha256()
        for name, tensor in sorted(model.state_dict().items()):
            sha.update(name.encode() + tensor.cpu().numpy().tobytes())
        return sha.hexdigest()

    return digest
