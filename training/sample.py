"""Sampling without ComfyUI: the Euler flow sampler over the same model, attention engine and VAE, and mp4 out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..kernels.outlook import sampler_sigmas
from .attention import NEGATIVE, PROMPT, attention_state, compute_device
from .model import WanTransformer3DModel, autocast
from .sparse import DENSE, SparseAttention, latent_grid
from .step import model_inputs


@torch.no_grad()
def sample(
    model: WanTransformer3DModel,
    *,
    shape: tuple[int, int, int, int],
    seeds: Sequence[int],
    text: torch.Tensor,
    steps: int = 20,
    shift: float = 5.0,
    attention: SparseAttention = DENSE,
    cfg: float = 1.0,
    negative: torch.Tensor | None = None,
    dtype: str = "fp32",
    condition: torch.Tensor | None = None,
    image: torch.Tensor | None = None,
    progress: str | None = None,
    on_step: Callable[[], object] | None = None,
) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """Return latents (len(seeds), *shape) and per step what ran: sigma, phase, density (of what is decided while
    sampling: measured, None in compiled blocks).

    ``shape`` is (16, T, H, W), ``text`` (L, D) conditions every seed; with ``cfg`` other than 1 the model also runs on
    ``negative`` (zeros if None). Image-to-video models also take ``condition`` (20, T, H, W) and ``image`` (tokens,
    1280). The starting noise of a seed is ComfyUI's: CPU, one generator per video. ``progress`` labels a bar,
    ``on_step`` is called after every step. Where the weights are sharded all processes must call it, with the same
    steps and ``cfg``.
    """
    device = compute_device(model)
    state, training = attention_state(model), model.training
    grid, guided = latent_grid(shape), cfg != 1.0
    noise = [torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    x = torch.cat(noise).to(device)
    empty = torch.zeros_like(text) if negative is None else negative
    given = [None if c is None else c.to(device).expand(len(seeds), *c.shape) for c in (condition, image)]
    sigmas, report = sampler_sigmas(steps, shift), []
    model.eval()
    try:
        bar = tqdm(pairwise(sigmas), desc=progress, total=steps, disable=progress is None, unit="step")
        for sigma, following in bar:
            level = torch.full((len(seeds),), sigma, device=device)
            velocities, measured = [], []
            with autocast(device, dtype):  # around both, which share the weights that it casts
                for branch, words in ((PROMPT, text), (NEGATIVE, empty))[: 2 if guided else 1]:
                    inputs = model_inputs(x, level, [words] * len(seeds), *given)
                    with state.step(attention, sigma, shape, branch):
                        velocities.append(model(*inputs, return_dict=False)[0].float())
                    measured.append(state.online_density)
            velocity = velocities[0]
            if guided:
                velocity = velocities[1] + cfg * (velocities[0] - velocities[1])
            x = x + velocity * (following - sigma)
            density = attention.density(grid, sigma, 0.5 if guided else 0.0)
            if density is None and None not in measured:
                density = sum(measured) / len(measured)
            if on_step is not None:
                on_step()
            report.append({"sigma": sigma, "phase": attention.phase(sigma), "density": density})
    finally:
        model.train(training)
    return x.cpu(), report


def to_frames(video: torch.Tensor) -> torch.Tensor:
    """Return uint8 frames (T, H, W, 3) of a video (3, T, H, W) in [-1, 1]."""
    return ((video.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu()


def write_video(path: str | Path, frames: torch.Tensor, fps: float) -> Path:
    """Return the path of an mp4 (H.264 where the FFmpeg at hand encodes it, else MPEG-4) of uint8 (T, H, W, 3) frames.

    The file appears complete or not at all. Raises ValueError for odd sizes, which 4:2:0 video cannot hold.
    """
    import av
    from av.codec.codec import UnknownCodecError

    path = Path(path)
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"an mp4 needs even sizes, not {width} x {height}; crop the frames")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.part{path.suffix or '.mp4'}")
    try:
        with av.open(str(partial), "w", format="mp4") as container:
            try:
                stream = container.add_stream("libx264", rate=round(fps), options={"crf": "12", "preset": "medium"})
            except UnknownCodecError:
                stream = container.add_stream("mpeg4", rate=round(fps), bit_rate=8_000_000)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for array in frames.numpy():
                for packet in stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
