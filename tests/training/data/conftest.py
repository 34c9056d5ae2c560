"""Small clips, written with PyAV, and an untrained VAE."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest


def write_clip(path: Path, *, frames: int = 40, fps: int = 25, height: int = 48, width: int = 64, **options) -> Path:
    """Write a clip whose brightness grows by 4 per frame, on a fine texture; return its path."""
    rng = np.random.default_rng(0)
    texture = rng.integers(-15, 16, (height, width, 1))
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"crf": "8", "g": "10", "preset": "ultrafast"}
        for number in range(frames):
            image = np.repeat(texture + 30 + 4 * (number % 48), 3, axis=2).clip(0, 255).astype(np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.fixture(scope="session")
def good_clip(tmp_path_factory) -> Path:
    """A clip of 40 frames at 25 fps, 48 x 64."""
    return write_clip(tmp_path_factory.mktemp("clips") / "good.mp4")


@pytest.fixture(scope="session")
def vae_file(tmp_path_factory) -> Path:
    """An untrained VAE of width 8 in a ComfyUI-named file."""
    import torch
    from fpsattention.training.vae import save_vae
    from fpsattention.training.vae_pass import AutoencoderKLWan

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
    save_vae(AutoencoderKLWan(base_dim=8), path, {"note": "untrained"})
    return path
