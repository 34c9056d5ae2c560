"""The host's own image-to-video nodes on a fixed clip: the channels that its model gets beside the noise."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import comfy.clip_vision
import comfy.sd
import comfy.utils
import torch
from comfy.latent_formats import Wan21
from comfy.model_base import WAN21
from comfy_extras.nodes_wan import WanFirstLastFrameToVideo, WanImageToVideo
from fps_common import run_cases
from safetensors.torch import load_file


def _inputs():
    return torch.load(os.environ["FPS_INPUTS"], weights_only=True)


def _concat(node, **images):
    """Return the channels that WAN21.concat_cond makes of a node's conditioning."""
    tensors, metadata = comfy.utils.load_torch_file(os.environ["FPS_VAE"], return_metadata=True)
    vae = comfy.sd.VAE(sd=tensors, metadata=metadata)
    video = _inputs()["video"]
    frames, height, width = video.shape[1:]
    empty = [[torch.zeros(1, 1, 4096), {}]]
    positive, _, latent = node.execute(empty, empty, vae, width, height, frames, 1, **images).result
    noise = torch.zeros_like(latent["samples"])
    # concat_cond needs of the model only how many channels it takes, and the latent format.
    model = SimpleNamespace(
        diffusion_model=SimpleNamespace(patch_embedding=SimpleNamespace(weight=torch.empty(1, 36, 1, 2, 2))),
        latent_format=Wan21(),
        image_to_video=True,
        process_latent_in=Wan21().process_in,
    )
    return WAN21.concat_cond(model, noise=noise, device="cpu", **positive[0][1])[0].float()


def case_channels():
    """Writes the 20 channels of both nodes for the test to compare."""
    frames = _inputs()["video"].permute(1, 2, 3, 0).add(1).div(2)
    out = {
        "first": _concat(WanImageToVideo, start_image=frames[:1]),
        "first-last": _concat(WanFirstLastFrameToVideo, start_image=frames[:1], end_image=frames[-1:]),
    }
    torch.save(out, os.environ["FPS_OUTPUTS"])
    return {name: list(value.shape) for name, value in out.items()}


def case_feature():
    """Writes what the host's CLIP vision model gives for the first frame, not cropped."""
    folder = os.environ["FPS_CLIP"]
    with open(os.path.join(folder, "config.json")) as file:
        said = json.load(file)
    said["projection_dim"] = 64
    with open(os.path.join(folder, "host.json"), "w") as file:
        json.dump(said, file)
    model = comfy.clip_vision.ClipVisionModel(os.path.join(folder, "host.json"))
    weights = load_file(os.path.join(folder, "model.safetensors"))
    # Published files have this prefix; transformers 5 writes none.
    weights = {f"vision_model.{name.removeprefix('vision_model.')}": value for name, value in weights.items()}
    missing, _ = model.load_sd(weights)
    assert {name.split(".")[0] for name in missing} <= {"visual_projection"}, missing
    frames = _inputs()["video"].permute(1, 2, 3, 0).add(1).div(2)
    feature = model.encode_image(frames[:1], crop=False)["penultimate_hidden_states"][0].float()
    torch.save(feature, os.environ["FPS_OUTPUTS"] + ".feature")
    return list(feature.shape)


run_cases(globals())
