"""What image-to-video samples carry is what the host's own nodes give its model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fpsattention.training.data.condition import ImageEncoder, condition_mask, condition_video, known_frames
from fpsattention.training.torchvision_guard import hide_broken_torchvision
from fpsattention.training.vae import encode, load_vae

SHIPPED = Path(__file__).parents[2] / "training" / "assets" / "wan2.1-tiny-vae.safetensors"


@pytest.fixture(scope="module")
def results(inside, tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditions")
    hide_broken_torchvision()
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    shape = {"hidden_size": 1280, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 16}
    clip = CLIPVisionModel(CLIPVisionConfig(**shape, image_size=224, patch_size=14, hidden_act="gelu"))
    clip.save_pretrained(folder / "clip")
    video = torch.rand(3, 9, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.save({"video": video}, folder / "inputs.pt")
    said = inside(
        "fps_conditions",
        FPS_VAE=str(SHIPPED),
        FPS_CLIP=str(folder / "clip"),
        FPS_INPUTS=str(folder / "inputs.pt"),
        FPS_OUTPUTS=str(folder / "outputs.pt"),
    )
    return said, video, folder


@pytest.mark.parametrize("kind", ["first", "first-last"])
def test_mask_and_condition_latents_are_the_hosts(results, kind):
    said, video, folder = results
    assert said["channels"][kind] == [20, 3, 4, 6]
    host = torch.load(folder / "outputs.pt", weights_only=True)[kind]
    ours = encode(load_vae(SHIPPED), condition_video(kind, video)[None])[0]
    assert torch.equal(condition_mask(kind, (3, 4, 6)), host[:4])
    assert (ours - host[4:]).abs().max() < 1e-3


def test_the_pictures_feature_is_the_hosts(results):
    said, video, folder = results
    assert said["feature"] == [257, 1280]
    host = torch.load(folder / "outputs.pt.feature", weights_only=True)
    ours = ImageEncoder(str(folder / "clip"))(known_frames("first", video))
    assert (ours - host).abs().max() < 1e-2 * host.abs().max()
