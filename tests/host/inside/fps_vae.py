"""The shipped tiny VAE in the host's own VAE class: what it makes of a fixed picture and of fixed latents."""

from __future__ import annotations

import os

import comfy.sd
import comfy.utils
import torch
from fps_common import run_cases


def _vae():
    tensors, metadata = comfy.utils.load_torch_file(os.environ["FPS_VAE"], return_metadata=True)
    vae = comfy.sd.VAE(sd=tensors, metadata=metadata)
    vae.throw_exception_if_invalid()
    return vae


def case_kind():
    """The host takes the file for a Wan 2.1 VAE."""
    vae = _vae()
    model = vae.first_stage_model
    return {
        "class": f"{type(model).__module__}.{type(model).__name__}",
        "dim": model.dim,
        "channels": vae.latent_channels,
    }


def case_codec():
    """Writes the host's latents and pictures, in Wan's latent format, for the test to compare."""
    from comfy.latent_formats import Wan21

    inputs = torch.load(os.environ["FPS_INPUTS"], weights_only=True)
    vae, latent_format = _vae(), Wan21()
    frames = inputs["video"][0].permute(1, 2, 3, 0).add(1).div(2)
    latents = latent_format.process_in(vae.encode(frames))
    pictures = vae.decode(latent_format.process_out(inputs["latents"]))
    torch.save({"latents": latents.float(), "pictures": pictures.float()}, os.environ["FPS_OUTPUTS"])
    return {"latents": list(latents.shape), "pictures": list(pictures.shape)}


run_cases(globals())
