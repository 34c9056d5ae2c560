"""The shipped tiny VAE is an ordinary Wan VAE to the host, and both compute the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fpsattention.training.vae import decode, encode, load_vae

SHIPPED = Path(__file__).parents[2] / "training" / "assets" / "wan2.1-tiny-vae.safetensors"


@pytest.fixture(scope="module")
def results(inside, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "video": torch.rand(1, 3, 9, 32, 48, generator=generator) * 2 - 1,
        "latents": torch.randn(1, 16, 3, 4, 6, generator=generator),
    }
    torch.save(inputs, folder / "inputs.pt")
    outputs = folder / "outputs.pt"
    said = inside("fps_vae", FPS_VAE=str(SHIPPED), FPS_INPUTS=str(folder / "inputs.pt"), FPS_OUTPUTS=str(outputs))
    return said, inputs, said["codec"] and torch.load(outputs, weights_only=True)


def test_the_host_knows_it(results):
    assert results[0]["kind"] == {"class": "comfy.ldm.wan.vae.WanVAE", "dim": 8, "channels": 16}


def test_the_host_decodes_the_same(results):
    _, inputs, host = results
    ours = decode(load_vae(SHIPPED), inputs["latents"])[0].permute(1, 2, 3, 0).add(1).div(2)
    assert (host["pictures"].reshape(ours.shape) - ours).abs().max() < 1e-4


def test_the_host_encodes_the_same(results):
    _, inputs, host = results
    assert (host["latents"] - encode(load_vae(SHIPPED), inputs["video"])).abs().max() < 1e-3
